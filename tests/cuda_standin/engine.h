// The engine: runs the heads of lanes, one at a time, in a seeded order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "life.h"

namespace standin {

using Lock = std::unique_lock<std::mutex>;

class Engine {
 public:
  static Engine &get();

  std::mutex &mutex() { return mutex_; }

  // All that follows but `reset` and `wake` is called under the lock.
  Life &life() { return *life_; }

  void reset(const Settings &settings);

  // Puts an op at the end of a lane. Device work is counted, meets its faults and holds its memory in use.
  void enqueue(Lane &lane, Op op);

  // Waits until something holds; in a lazy life by running ops. False if the life ended first.
  bool wait_until(Lock &lock, const std::function<bool()> &holds);

  // Runs all that can run, or waits for it; how many ops remain.
  uint64_t run(Lock &lock);

  // A sticky failure: drops what is queued in a context.
  void fail(Context &context, Status code);

  // Lets go of ops that hang and of waits for lost events.
  void release();

  void wake() { changed_.notify_all(); }

  // The lane of the op that this thread is inside of, or null.
  Lane *running_lane();

  // A process-wide fact: cuInit was called.
  std::atomic<bool> is_initialized{false};

 private:
  Engine();

  bool step(Lock &lock);
  void execute(Lock &lock, Lane &lane);
  Status execute_work(Lock &lock, Lane &lane, const Op &op);
  Status find_memory(const Lane &lane, const Op &op, std::vector<std::shared_ptr<Allocation>> &found);
  bool is_runnable(const Op &op);
  bool collect_runnable();
  void pause(Lock &lock);
  void work();
  std::string name(const Lane &lane, const Op &op);

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t number_ = 1;  // of the life; ahead of life_ during a reset
  std::unique_ptr<Life> life_;
  std::thread worker_;   // of an eager life, once something was enqueued
  bool is_stopping_ = false;
  Lane *executing_ = nullptr;
  bool is_polling_ = false;  // an op waits for its `ready`
  std::vector<Lane *> runnable_;
};

}  // namespace standin
