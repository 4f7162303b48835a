// The engine. One op runs at a time, whoever runs it: the worker of an eager life, or in a lazy one whoever waits.
#include "engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "drops.h"
#include "text.h"
#include "thread.h"

namespace standin {

namespace {

// How often a `ready` is asked again when nobody said that it changed.
constexpr std::chrono::microseconds POLL_PERIOD{200};

int64_t now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

}  // namespace

Thread &this_thread(uint64_t life) {
  static thread_local Thread thread;
  if (life != thread.life) {
    Thread fresh;
    fresh.rank = thread.rank;
    fresh.is_inside_op = thread.is_inside_op;
    fresh.life = life;
    thread = std::move(fresh);
  }
  return thread;
}

// Never destroyed: its worker may outlive static objects.
Engine &Engine::get() {
  static Engine *const engine = new Engine;
  return *engine;
}

Engine::Engine() : life_(std::make_unique<Life>(number_, Settings{})) {}

void Engine::reset(const Settings &settings) {
  static std::mutex resets;
  const std::lock_guard<std::mutex> one_at_a_time(resets);
  std::unique_ptr<Life> old;
  {
    Lock lock(mutex_);
    number_ += 1;
    is_stopping_ = true;
    changed_.notify_all();
    std::thread worker = std::move(worker_);
    lock.unlock();
    if (worker.joinable()) worker.join();
    lock.lock();
    changed_.wait(lock, [&] { return executing_ == nullptr; });
    old = std::exchange(life_, std::make_unique<Life>(number_, settings));
    is_stopping_ = false;
    is_polling_ = false;
    changed_.notify_all();
  }
  old->clear();
  old.reset();
  run_drops();
}

void Engine::enqueue(Lane &lane, Op op) {
  op.host = this_thread(life_->number).knows();
  if (op.kind == Op::Kind::WORK) {
    RankFaults &faults = life_->faults.rank(lane.rank);
    op.ordinal = faults.num_ops++;
    op.hangs = faults.hanging_ops.count(op.ordinal) > 0;
    const auto failure = faults.failing_ops.find(op.ordinal);
    if (failure != faults.failing_ops.end()) op.failure = failure->second;
    for (const Access &access : op.work->accesses) {
      auto allocation = life_->memory.find(access.begin, access.end);
      if (allocation == nullptr) continue;
      allocation->num_uses += 1;
      op.uses.push_back(std::move(allocation));
    }
  }
  lane.queue.push_back(std::move(op));
  lane.num_enqueued += 1;
  if (!life_->settings.is_lazy && !is_stopping_ && !worker_.joinable()) worker_ = std::thread([this] { work(); });
  changed_.notify_all();
}

bool Engine::wait_until(Lock &lock, const std::function<bool()> &holds) {
  const uint64_t number = life_->number;
  // The life may end whenever the lock is let go; then nothing of it may be touched.
  while (number == number_) {
    if (holds()) return true;
    if (life_->settings.is_lazy && step(lock)) continue;
    if (number == number_) pause(lock);
  }
  return false;
}

uint64_t Engine::run(Lock &lock) {
  const uint64_t number = life_->number;
  while (life_->settings.is_lazy && number == number_ && step(lock)) continue;
  wait_until(lock, [&] { return executing_ == nullptr && !collect_runnable(); });
  uint64_t num_queued = 0;
  for (const auto &lane : life_->lanes) num_queued += lane->queue.size();
  return num_queued;
}

void Engine::fail(Context &context, Status code) {
  if (context.failure == SUCCESS) context.failure = code;
  for (const auto &lane : life_->lanes) {
    if (lane->context != &context) continue;
    for (const Op &op : lane->queue) {
      for (const auto &allocation : op.uses) allocation->num_uses -= 1;
      if (op.kind != Op::Kind::RECORD) continue;
      op.version->is_lost = true;
      life_->lost.push_back(op.version);
    }
    lane->num_finished += lane->queue.size();
    lane->queue.clear();
  }
  life_->sweep_lanes();
  changed_.notify_all();
}

void Engine::release() {
  life_->faults.release();
  for (const auto &lane : life_->lanes) {
    for (Op &op : lane->queue) op.hangs = false;
  }
  for (const auto &version : life_->lost) version->is_done = true;
  life_->lost.clear();
  changed_.notify_all();
}

Lane *Engine::running_lane() { return this_thread(life_->number).is_inside_op ? executing_ : nullptr; }

bool Engine::is_runnable(const Op &op) {
  if (op.hangs) return false;
  if (op.kind == Op::Kind::WAIT) return op.version->is_done;
  if (op.kind == Op::Kind::RECORD || op.work->ready == nullptr) return true;
  const bool is_ready = op.work->ready(op.work->user) != 0;
  is_polling_ = is_polling_ || !is_ready;
  return is_ready;
}

bool Engine::collect_runnable() {
  runnable_.clear();
  is_polling_ = false;
  for (const auto &lane : life_->lanes) {
    if (!lane->queue.empty() && is_runnable(lane->queue.front())) runnable_.push_back(lane.get());
  }
  return !runnable_.empty();
}

bool Engine::step(Lock &lock) {
  if (executing_ != nullptr || !collect_runnable()) return false;
  const std::shared_ptr<Lane> lane = life_->strategy.pick(runnable_).shared_from_this();
  executing_ = lane.get();
  execute(lock, *lane);
  executing_ = nullptr;
  if (lane->is_destroyed) life_->sweep_lanes();
  changed_.notify_all();
  lock.unlock();
  run_drops();
  lock.lock();
  return true;
}

void Engine::execute(Lock &lock, Lane &lane) {
  const Op op = std::move(lane.queue.front());
  lane.queue.pop_front();
  const Components &components = life_->components;
  if (op.host != nullptr) components.join(lane.clock, lane.rank, *op.host);
  Status status = SUCCESS;
  switch (op.kind) {
    case Op::Kind::RECORD:
      op.version->clock = lane.clock;
      op.version->rank = lane.rank;
      op.version->component = lane.component;
      op.version->nanoseconds = now();
      op.version->is_done = true;
      break;
    case Op::Kind::WAIT:
      components.join(lane.clock, lane.rank, op.version->clock, op.version->rank, op.version->component);
      break;
    case Op::Kind::WORK:
      status = execute_work(lock, lane, op);
      break;
  }
  lane.num_finished += 1;
  for (const auto &allocation : op.uses) allocation->num_uses -= 1;
  if (status != SUCCESS) fail(*lane.context, status);
}

Status Engine::execute_work(Lock &lock, Lane &lane, const Op &op) {
  if (op.failure != SUCCESS) return op.failure;
  std::vector<std::shared_ptr<Allocation>> memory;
  const Status status = find_memory(lane, op, memory);
  if (status != SUCCESS) return status;
  const Work &work = *op.work;
  const uint32_t time = lane.clock.at(lane.component) + 1;
  lane.clock.raise(lane.component, time);
  if (work.run) {
    Thread &thread = this_thread(life_->number);
    if (!work.holds_lock) lock.unlock();
    thread.is_inside_op = true;
    work.run();
    thread.is_inside_op = false;
    if (!work.holds_lock) lock.lock();
  }
  Mark mark{lane.component, time, life_->checker.intern(work.label), false, op.ordinal};
  for (size_t i = 0; i < work.accesses.size(); ++i) {
    const Access &access = work.accesses[i];
    Allocation &allocation = *memory[i];
    mark.is_write = access.is_write;
    const bool is_visit = lane.rank >= 0 && allocation.rank >= 0 && allocation.rank != lane.rank;
    if (is_visit) life_->components.set_visitor(lane.component);
    life_->checker.access(allocation.history, allocation.name, access.begin - allocation.begin,
                          access.end - allocation.begin, mark, lane.clock);
    if (!life_->memory.are_guards_whole(allocation)) life_->memory.mend_guards(allocation, "by " + name(lane, op));
  }
  return SUCCESS;
}

Status Engine::find_memory(const Lane &lane, const Op &op, std::vector<std::shared_ptr<Allocation>> &found) {
  for (const Access &access : op.work->accesses) {
    auto allocation = life_->memory.find(access.begin, access.end);
    if (allocation == nullptr) {
      life_->problems.add(name(lane, op) + " touches " + life_->memory.describe(access.begin, access.end));
      return ILLEGAL_ADDRESS;
    }
    const int32_t device = allocation->device;
    const bool is_peer = device >= 0 && device != lane.context->device;
    if (is_peer && op.work->needs_peer_access && lane.context->peers.count(device) == 0) {
      life_->problems.add(name(lane, op) + " touches " + allocation->name +
                          text(" on device %d: device %d has no peer access to it", device, lane.context->device));
      return ILLEGAL_ADDRESS;
    }
    found.push_back(std::move(allocation));
  }
  return SUCCESS;
}

std::string Engine::name(const Lane &lane, const Op &op) {
  return life_->checker.name({lane.component, 0, life_->checker.intern(op.work->label), false, op.ordinal});
}

void Engine::pause(Lock &lock) {
  if (is_polling_) {
    changed_.wait_for(lock, POLL_PERIOD);
  } else {
    changed_.wait(lock);
  }
}

// An eager life dawdles now and then, so that the host gets ahead, or not, at different places.
void Engine::work() {
  Lock lock(mutex_);
  while (!is_stopping_) {
    const uint64_t draw = life_->strategy.draw();
    if (draw % 64 == 0) {
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(draw / 64 % 21));
      lock.lock();
      if (is_stopping_) break;
    }
    if (!step(lock) && !is_stopping_) pause(lock);
  }
}

}  // namespace standin
