// An F&B pair part by part on two threads: the rank's own computes, a helper moves rows (dispatch and combine). The
// order is the one of DeepSeek's published trace, which dualpipe/overlap.h describes and which CUDA ranks get from the
// library. Where experts are on other ranks, the helper is who communicates.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "stage.hpp"

namespace trainer {

// A thread that runs what it is given, in order. What it is given does not throw.
class Helper {
public:
  explicit Helper(std::chrono::nanoseconds timeout) : timeout_(timeout), thread_([this] { loop(); }) {}
  Helper(const Helper &) = delete;
  Helper &operator=(const Helper &) = delete;
  ~Helper() {
    give([this] { is_over_ = true; });
    thread_.join();
  }

  // Returns at once; the number to wait for.
  uint64_t give(std::function<void()> part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    parts_.push_back(std::move(part));
    change_.notify_all();
    return ++num_given_;
  }

  // Until this part and all before it are done.
  void wait(uint64_t number) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!change_.wait_for(lock, timeout_, [&] { return num_done_ >= number; })) {
      throw std::runtime_error("the helper thread of an F&B pair did not answer in time");
    }
  }

private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!is_over_) {
      change_.wait(lock, [&] { return !parts_.empty(); }); // the destructor gives something
      const std::function<void()> part = std::move(parts_.front());
      parts_.pop_front();
      lock.unlock();
      part();
      lock.lock();
      num_done_++;
      change_.notify_all();
    }
  }

  std::chrono::nanoseconds timeout_;
  std::mutex mutex_;
  std::condition_variable change_;
  std::deque<std::function<void()>> parts_;
  uint64_t num_given_ = 0, num_done_ = 0;
  bool is_over_ = false; // the helper's own
  std::thread thread_;   // the last: it uses the others
};

// The blocks of both halves, those of F from the first, those of B from the last. The stages are two, or two copies.
inline void run_overlapped(const Stage &f, StageState &forward, const Stage &b, StageState &backward, Helper &helper) {
  const uint32_t num_blocks = f.num_blocks();
  for (uint32_t i = 0; i < num_blocks; i++) {
    const uint32_t j = num_blocks - 1 - i;
    const Block &block_f = f.block(i), &block_b = b.block(j);
    BlockState &state_f = forward.blocks[i], &state_b = backward.blocks[j];

    const uint64_t combined_b = helper.give([&] { block_b.combine_b(state_b); });
    block_f.dense_f(state_f);
    const uint64_t dispatched_f = helper.give([&] { block_f.dispatch_f(state_f); });
    helper.wait(combined_b);
    block_b.experts_b(state_b);
    const uint64_t dispatched_b = helper.give([&] { block_b.dispatch_b(state_b); });
    block_b.experts_w(state_b);
    helper.wait(dispatched_f);
    block_f.experts_f(state_f);
    const uint64_t combined_f = helper.give([&] { block_f.combine_f(state_f); });
    helper.wait(dispatched_b);
    block_b.dense_b(state_b);
    block_b.dense_w(state_b);
    helper.wait(combined_f);
  }
}

} // namespace trainer
