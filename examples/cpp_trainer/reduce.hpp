// Where the two copies of a stage sum their gradients.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace trainer {

class Reduction {
public:
  virtual ~Reduction() = default;

  // The gradients of this copy are final: they may travel to `peer`, the rank that has the other. Does not wait.
  virtual void begin(uint32_t direction, uint32_t stage, uint32_t peer, const std::vector<float> &grads) = 0;

  // After the step, once for each begin: makes of `grads` those of direction 0 plus those of direction 1. Waits for the
  // other copy's, up to a deadline.
  virtual void finish(uint32_t direction, uint32_t stage, uint32_t peer, std::vector<float> &grads) = 0;
};

// Both copies get the same bits: direction 0 comes first.
inline void sum_copies(uint32_t direction, std::vector<float> &own, const std::vector<float> &other) {
  for (size_t i = 0; i < own.size(); i++) own[i] = direction == 0 ? own[i] + other[i] : other[i] + own[i];
}

// Between threads.
class ThreadReduction : public Reduction {
public:
  explicit ThreadReduction(std::chrono::nanoseconds timeout) : timeout_(timeout) {}

  void begin(uint32_t direction, uint32_t stage, uint32_t, const std::vector<float> &grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    given_[{direction, stage}] = grads;
    change_.notify_all();
  }

  void finish(uint32_t direction, uint32_t stage, uint32_t peer, std::vector<float> &grads) override {
    const std::pair<uint32_t, uint32_t> other = {1 - direction, stage};
    std::unique_lock<std::mutex> lock(mutex_);
    if (!change_.wait_for(lock, timeout_, [&] { return given_.count(other) > 0; })) {
      throw std::runtime_error("the gradients of stage " + std::to_string(stage) + " in direction " +
                               std::to_string(other.first) + " did not come in time from rank " +
                               std::to_string(peer));
    }
    const std::vector<float> taken = std::move(given_.at(other));
    given_.erase(other);
    lock.unlock();
    sum_copies(direction, grads, taken);
  }

private:
  std::chrono::nanoseconds timeout_;
  std::mutex mutex_;
  std::condition_variable change_;
  std::map<std::pair<uint32_t, uint32_t>, std::vector<float>> given_; // by direction and stage
};

} // namespace trainer
