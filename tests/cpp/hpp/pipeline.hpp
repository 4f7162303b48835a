// A pipeline of which every number is known: stage s adds s + 1 to what it gets, and counts what it sees.
#ifndef PIPELINE_HPP
#define PIPELINE_HPP

#include <dualpipe.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

struct Adder {
  float sum = 0;
  std::uint32_t num_backward = 0;

  void operator()(const dualpipe::Task &task) {
    if (const dualpipe::TaskPass *pass = task.forward()) forward(*pass);
    if (const dualpipe::TaskPass *pass = task.backward()) {
      num_backward += 1;
      for (const dualpipe::OutTensor grad : pass->input_grads()) grad.values<float>()[0] = 1;
    }
  }

private:
  void forward(const dualpipe::TaskPass &pass) {
    const dualpipe::Tensors inputs = pass.inputs();
    const float input = inputs.empty() ? static_cast<float>(pass.pass().microbatch) : inputs[0].values<float>()[0];
    const float output = input + static_cast<float>(pass.pass().stage + 1);
    if (pass.outputs().empty()) {
      sum += output;
    } else {
      pass.outputs()[0].values<float>()[0] = output;
    }
  }
};

/// Runs `rank` on a thread for each of num_ranks.
inline void on_threads(std::uint32_t num_ranks, const std::function<void(std::uint32_t)> &rank) {
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < num_ranks; i++) threads.emplace_back(rank, i);
  for (std::thread &thread : threads) thread.join();
}

#endif
