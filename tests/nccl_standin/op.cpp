// An operation is two entries of its stream.
//
// The first, "arrive", waits until the communicator has done what it was asked before, in the order of calls and over
// all its streams, as NCCL does. It tells the world that the stream has come here. Whichever side of a message comes
// second copies it.
//
// The second is done when all messages have been copied. Each side then knows all that its partners had done before
// they arrived. Nothing else is promised: that a communicator does one thing after the other orders no memory here.
#include "op.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "driver.h"

namespace nccl_standin {
namespace {

using Clock = std::chrono::steady_clock;

struct Move {
  std::shared_ptr<Op> from, to;
  size_t from_part, to_part;
  int32_t delay_ms;

  Part &sent() const { return from->parts[from_part]; }
  Part &received() const { return to->parts[to_part]; }
};

/// Both ends are there: they stay so until `move`. With the lock held.
void begin(const Move &move) {
  move.from->end->num_moving += 1;
  move.to->end->num_moving += 1;
}

/// After `begin`; without the lock.
void move(const Move &move) {
  size_t bytes = move.sent().bytes;
  if (bytes > 0) memmove(move.received().address, move.sent().address, bytes);
  std::lock_guard<std::mutex> lock(state().mutex);
  move.sent().state = move.received().state = Part::kDone;
  move.from->end->num_moving -= 1;
  move.to->end->num_moving -= 1;
  state().changed.notify_all();
}

/// Moves messages later. Its thread ends with the process.
class Delays {
 public:
  ~Delays() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void add(const Move &move) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      due_.emplace(Clock::now() + std::chrono::milliseconds(move.delay_ms), move);
      if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    }
    changed_.notify_all();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!is_over_) {
      if (due_.empty()) {
        changed_.wait(lock);
      } else if (due_.begin()->first > Clock::now()) {
        changed_.wait_until(lock, due_.begin()->first);
      } else {
        Move next = due_.begin()->second;
        due_.erase(due_.begin());
        lock.unlock();
        if (is_still_wanted(next)) {
          move(next);
          driver()->wake();
        }
        lock.lock();
      }
    }
  }

  static bool is_still_wanted(const Move &move) {
    std::lock_guard<std::mutex> lock(state().mutex);
    bool is_wanted = !move.from->end->is_gone && !move.to->end->is_gone && move.sent().state == Part::kMoving &&
                     move.received().state == Part::kMoving;
    if (is_wanted) begin(move);
    return is_wanted;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, Move> due_;
  bool is_over_ = false;
  std::thread thread_;
};

Delays &delays() {
  static Delays there;
  return there;
}

/// Pairs what has arrived, first with first. With the lock held.
void match(Channel &channel, std::vector<Move> *moves) {
  while (!channel.sends.empty() && !channel.receives.empty()) {
    Waiting send = channel.sends.front(), receive = channel.receives.front();
    channel.sends.pop_front();
    channel.receives.pop_front();
    Move move{send.op->shared_from_this(), receive.op->shared_from_this(), send.part, receive.part, 0};
    Part &sent = move.sent(), &received = move.received();
    sent.peer_token = receive.op->token;
    received.peer_token = send.op->token;
    std::string from = send.op->end->name(), to = receive.op->end->name();
    if (sent.bytes != received.bytes) {
      problem("%s sends %zu bytes, %s receives %zu: both hang", from.c_str(), sent.bytes, to.c_str(), received.bytes);
      sent.state = received.state = Part::kLost;
      continue;
    }
    if (sent.type != received.type) {
      problem("%s sends type %d, %s receives type %d", from.c_str(), sent.type, to.c_str(), received.type);
    }
    if (sent.is_dropped) {
      sent.state = Part::kDone;
      received.state = Part::kLost;
      continue;
    }
    sent.state = received.state = Part::kMoving;
    move.delay_ms = sent.delay_ms;
    if (move.delay_ms == 0) begin(move);
    moves->push_back(move);
  }
}

Channel &channel_of(const Op &op, const Part &part) {
  int from = part.is_send ? op.end->rank : part.peer, to = part.is_send ? part.peer : op.end->rank;
  return op.end->clique->channels[{from, to}];
}

/// Takes out of the queues what `is_meant`. With the lock held.
template <typename Test>
void take_out(Clique &clique, Test is_meant) {
  auto test = [&](const Waiting &waiting) { return is_meant(*waiting.op); };
  for (auto &entry : clique.channels) {
    for (std::deque<Waiting> *queue : {&entry.second.sends, &entry.second.receives}) {
      queue->erase(std::remove_if(queue->begin(), queue->end(), test), queue->end());
    }
  }
}

/// What the driver holds for one of the two entries.
struct Entry {
  std::shared_ptr<Op> op;
};

int is_ready_to_arrive(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (op.end->is_gone || op.previous == nullptr || op.previous->is_gone) return 1;
  return op.previous->times > (op.is_captured ? op.own->times : 0);
}

void arrive(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  uint64_t token = 0;
  driver()->clock_release(&token);
  std::vector<Move> moves;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    End &end = *op.end;
    if (end.is_gone) return;
    if (op.has_arrived) {
      problem("%s: a graph with its messages is launched while an earlier launch is not done", end.name().c_str());
      return;
    }
    op.has_arrived = true;
    op.token = token;
    set_pending(op, true);
    int async_error = ncclSuccess;
    for (Part &part : op.parts) async_error = async_error != ncclSuccess ? async_error : part.async_error;
    if (async_error != ncclSuccess) {
      for (Part &part : op.parts) part.state = Part::kLost;
      end.async_error = async_error;
      state().changed.notify_all();
      return;
    }
    for (size_t i = 0; i < op.parts.size(); ++i) {
      Part &part = op.parts[i];
      part.state = Part::kWaiting;
      Channel &channel = channel_of(op, part);
      (part.is_send ? channel.sends : channel.receives).push_back({&op, i});
    }
    for (Part &part : op.parts) match(channel_of(op, part), &moves);
  }
  for (const Move &next : moves) {
    if (next.delay_ms > 0) {
      delays().add(next);
    } else {
      move(next);
    }
  }
  driver()->wake();
}

int is_ready_to_end(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (op.end->is_gone) return 1;
  auto is_done = [](const Part &part) { return part.state == Part::kDone; };
  return op.has_arrived && std::all_of(op.parts.begin(), op.parts.end(), is_done);
}

void end(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  std::vector<uint64_t> tokens;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    op.has_arrived = false;
    op.own->times += 1;
    set_pending(op, false);
    for (Part &part : op.parts) {
      if (part.state == Part::kDone) tokens.push_back(part.peer_token);
      part.state = Part::kIdle;
    }
    state().changed.notify_all();
  }
  for (uint64_t token : tokens) driver()->clock_acquire(token);
  // What the communicator was asked next may begin.
  driver()->wake();
}

/// The driver needs an entry no more: it is done, or will not be.
void drop(void *user) {
  std::unique_ptr<Entry> entry(static_cast<Entry *>(user));
  Op &op = *entry->op;
  std::unique_lock<std::mutex> lock(state().mutex);
  op.num_entries -= 1;
  if (op.num_entries > 0) return;
  take_out(*op.end->clique, [&](const Op &waiting) { return &waiting == &op; });
  state().changed.wait(lock, [&] { return op.end->num_moving == 0; });
  for (Part &part : op.parts) part.state = Part::kIdle;
  op.has_arrived = false;
  op.own->is_gone = true;
  set_pending(op, false);
}

}  // namespace

void set_pending(Op &op, bool is_pending) {
  if (op.is_pending == is_pending) return;
  op.is_pending = is_pending;
  op.end->num_pending += is_pending ? 1 : -1;
  if (op.kind == Op::kWait) op.end->num_waits += is_pending ? 1 : -1;
}

int enqueue(const std::shared_ptr<Op> &op) {
  if (op->kind != Op::kMessages) return enqueue_signal(op);
  const Driver *found = driver();
  uint64_t capture = found->capture(op->stream);
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    End &end = *op->end;
    op->is_captured = capture != 0;
    if (op->is_captured) {
      // Launches of a graph are ordered by their stream: what waits for what starts anew in each capture. The order
      // of one stream is the driver's affair.
      bool is_ordered = end.last_capture != capture || end.last_captured_stream == op->stream;
      op->previous = is_ordered ? nullptr : end.last_captured;
      end.last_captured = op->own;
      end.last_capture = capture;
      end.last_captured_stream = op->stream;
    } else {
      op->previous = end.last_eager;
      end.last_eager = op->own;
      if (!end.is_gone) set_pending(*op, true);
    }
  }
  std::vector<Access> accesses;
  for (const Part &part : op->parts) {
    if (part.bytes == 0) continue;
    accesses.push_back({reinterpret_cast<uint64_t>(part.address), part.bytes, !part.is_send, 0});
  }
  const char *label = op->parts.size() > 1 ? "NCCL group" : op->parts[0].is_send ? "ncclSend" : "ncclRecv";
  op->num_entries = 2;
  Entry *first = new Entry{op}, *second = new Entry{op};
  int code = found->enqueue(op->stream, label, is_ready_to_arrive, arrive, drop, first, nullptr, 0);
  if (code == 0) {
    code = found->enqueue(op->stream, label, is_ready_to_end, end, drop, second, accesses.data(), accesses.size());
  } else {
    drop(first);
  }
  if (code == 0) return ncclSuccess;
  drop(second);
  return last_error(ncclUnhandledCudaError, "the driver refused to enqueue a message: error %d", code);
}

void withdraw(End &end) {
  {
    std::unique_lock<std::mutex> lock(state().mutex);
    end.is_gone = true;
    end.is_in_progress = false;
    end.deferred.clear();
    end.registering = nullptr;
    forget_windows(end);
    take_out(*end.clique, [&](const Op &op) { return op.end.get() == &end; });
    state().changed.wait(lock, [&] { return end.num_moving == 0; });
  }
  state().changed.notify_all();
  if (const Driver *found = driver()) found->wake();
}

}  // namespace nccl_standin
