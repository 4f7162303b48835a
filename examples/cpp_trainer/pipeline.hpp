// The ranks of this process: an executor for each, on a thread of its own while a step runs.
#pragma once

#include <dualpipe.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "rank.hpp"

namespace trainer {

inline dualpipe::TensorSpec boundary(const Shape &shape) {
  return dualpipe::TensorSpec(dualpipe::DType::f32, {shape.num_tokens, shape.width});
}

class Pipeline {
public:
  Pipeline(const dualpipe::Schedule &schedule, const Options &options, const Shape &shape,
           std::vector<std::unique_ptr<Rank>> ranks)
      : inproc_(dualpipe::Inproc::create(options.num_ranks)), ranks_(std::move(ranks)) {
    dualpipe::ExecutorOptions how;
    how.tensors = {boundary(shape)};
    how.timeout = std::chrono::seconds(options.timeout_s);
    how.inproc = &inproc_;
    for (uint32_t rank = 0; rank < options.num_ranks; rank++) {
      how.cuda = ranks_[rank]->cuda();
      executors_.push_back(dualpipe::Executor::create(dualpipe::Program::create(schedule, rank), how));
    }
  }

  // All of a step but the update; its loss, the mean over micro-batches.
  double step(uint64_t step) {
    on_all([&](uint32_t rank) {
      Rank &work = *ranks_[rank];
      work.begin_step(step);
      executors_[rank].step([&](const dualpipe::Task &task) { work.run(task); });
    });
    on_all([&](uint32_t rank) { ranks_[rank]->finish_step(); });
    const std::vector<double> losses = add_up<double>([](Rank &rank) { return rank.losses(); });
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  }

  void update() {
    on_all([&](uint32_t rank) { ranks_[rank]->update(); });
  }

  // The last step's.
  dualpipe::Timeline timeline() const {
    std::vector<dualpipe::Timeline> timelines;
    for (const dualpipe::Executor &executor : executors_) timelines.push_back(executor.timeline());
    return dualpipe::Timeline::merge(timelines);
  }

  std::vector<float> loads() {
    return add_up<float>([](Rank &rank) { return rank.loads(); });
  }

  // Calls run(rank, which of its copies, the stage) for every stage copy.
  template <class Run>
  void on_copies(const Run &run) {
    for (const std::unique_ptr<Rank> &rank : ranks_) {
      for (size_t copy = 0; copy < rank->copies().size(); copy++) run(*rank, copy, rank->copies()[copy].stage);
    }
  }

private:
  // A thread for each rank. If some fail, the one that failed by itself is told, not those that heard of it.
  template <class Work>
  void on_all(const Work &work) {
    std::vector<std::exception_ptr> thrown(ranks_.size());
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < ranks_.size(); rank++) {
      threads.emplace_back([&, rank] {
        try {
          work(rank);
        } catch (...) {
          thrown[rank] = std::current_exception();
        }
      });
    }
    for (std::thread &thread : threads) thread.join();
    std::exception_ptr heard;
    for (const std::exception_ptr &one : thrown) {
      if (one == nullptr) continue;
      try {
        std::rethrow_exception(one);
      } catch (const dualpipe::Error &error) {
        if (error.status() != dualpipe::Status::peer_failed) throw;
        heard = one;
      }
    }
    if (heard != nullptr) std::rethrow_exception(heard);
  }

  template <class Number, class Get>
  std::vector<Number> add_up(const Get &get) {
    std::vector<Number> sums;
    for (const std::unique_ptr<Rank> &rank : ranks_) {
      const std::vector<Number> own = get(*rank);
      sums.resize(own.size());
      for (size_t i = 0; i < own.size(); i++) sums[i] += own[i];
    }
    return sums;
  }

  dualpipe::Inproc inproc_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<dualpipe::Executor> executors_; // the last: their devices and streams are the ranks'
};

} // namespace trainer
