// ncclPutSignal, ncclSignal and ncclWaitSignal: what one rank does to another's memory, and how it says so.
//
// An operation is two entries of its stream. The first puts: it is a copy, and waits for nobody. The second signals, or
// waits for as many signals as were asked for, and takes them. A wait comes after all that the signallers had done
// before they signalled. As in NCCL, signals of graphs and others are counted apart, the first use lets the ranks
// connect, and a stream that waits sees no abort: what is put in streams is done by the device alone.
#include <algorithm>
#include <cstring>

#include "call.h"
#include "driver.h"
#include "op.h"
#include "window.h"

namespace nccl_standin {
namespace {

/// The first version that puts, and the first whose puts may be captured.
const int kVersion = 22900, kGraphVersion = 23000;

/// What the driver holds for one of the two entries.
struct Entry {
  std::shared_ptr<Op> op;
};

bool is_own_memory(const End &end, const char *data, size_t bytes) {
  for (const auto &window : end.clique->registrations) {
    const char *begin = window->address[end.rank];
    if (window->is_live[end.rank] && begin <= data && data + bytes <= begin + window->bytes[end.rank]) return true;
  }
  return false;
}

/// Checks what all three have in common; with the lock held.
int check(const char *function, End &end, const std::vector<int> &zeros, const std::vector<int> &peers) {
  if (state().version < kVersion) {
    return last_error(ncclInvalidUsage, "%s: NCCL %d has no such function", function, state().version);
  }
  if (int code = ensure_ready(function, end)) return code;
  if (end.is_finalized) {
    problem("%s: %s has been finalized", function, end.name().c_str());
    return last_error(ncclInvalidArgument, "%s: the communicator has been finalized", function);
  }
  if (group().depth > 0) {
    problem("%s: in a group, which is not stood in for", function);
    return last_error(ncclInvalidUsage, "%s: not stood in for in a group", function);
  }
  if (std::count(zeros.begin(), zeros.end(), 0) != static_cast<long>(zeros.size())) {
    return last_error(ncclInvalidArgument, "%s: signal index, context and flags have to be 0", function);
  }
  for (int peer : peers) {
    if (peer < 0 || peer >= end.clique->size) return last_error(ncclInvalidArgument, "%s: no rank %d", function, peer);
  }
  return ncclSuccess;
}

/// Where a put goes; with the lock held.
int check_put(const End &end, Signal *signal, ncclWindow_t window) {
  const char *name = "ncclPutSignal";
  signal->to = find_window(window, end);
  if (signal->to == nullptr) {
    problem("%s: %s puts into what is no window of its own", name, end.name().c_str());
    return last_error(ncclInvalidArgument, "%s: no such window", name);
  }
  if (!is_own_memory(end, signal->data, signal->bytes)) {
    problem("%s: %s puts what is in none of its windows", name, end.name().c_str());
    return last_error(ncclInvalidArgument, "%s: the source is not in a valid symmetric window", name);
  }
  size_t room = signal->to->bytes[signal->peer];
  if (signal->offset > room || signal->bytes > room - signal->offset) {
    // NCCL would write there.
    problem("%s: %s puts bytes [%zu, %zu) into a window of %zu", name, end.name().c_str(), signal->offset,
            signal->offset + signal->bytes, room);
    return last_error(ncclInvalidArgument, "%s: outside of the window", name);
  }
  signal->to->is_target[signal->peer] = true;
  return ncclSuccess;
}

/// What the test wants to happen to an operation; with the lock held.
void look_up_rules(Op &op) {
  const End &end = *op.end;
  if (op.kind == Op::kPut) {
    int32_t peer = end.clique->labels[op.signal.peer];
    uint64_t ordinal = state().num_sends[{end.label, peer}]++;
    op.signal.is_dropped = rule(Rule::kDrop, end.label, peer, ordinal, 0) != 0;
  }
  if (op.kind != Op::kSignal) {
    op.signal.async_error = rule(Rule::kAsyncError, end.label, -1, state().num_messages[end.label]++, ncclSuccess);
  }
}

/// The first entry.
void begin(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  const Signal &signal = op.signal;
  char *to = nullptr;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    End &end = *op.end;
    if (end.is_gone) return problem("%s: a stream goes on to use it after its end", end.name().c_str());
    if (op.has_arrived) {
      return problem("%s: a graph with its signals is launched while an earlier launch is not done", end.name().c_str());
    }
    op.has_arrived = true;
    set_pending(op, true);
    if (signal.async_error != ncclSuccess) {
      op.is_lost = true;
      end.async_error = signal.async_error;
      state().changed.notify_all();
      return;
    }
    if (op.kind != Op::kPut || signal.is_dropped) return;
    // What was of a communicator that failed is there for nobody, and harms nobody.
    std::shared_ptr<End> peer = end.clique->ends[signal.peer].lock();
    bool is_gone = peer == nullptr || peer->is_gone;
    if (!is_gone && !signal.to->is_live[signal.peer]) {
      return problem("%s: puts into a window that its rank %d has given back", end.name().c_str(), signal.peer);
    }
    to = signal.to->address[signal.peer] + signal.offset;
  }
  // The driver keeps the memory while this entry uses it.
  memmove(to, signal.data, signal.bytes);
}

int is_ready(void *user) {
  const Op &op = *static_cast<Entry *>(user)->op;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (state().is_waiting_over) return 1;
  if (op.is_lost) return 0;
  for (auto [peer, count] : op.signal.awaited) {
    auto found = op.end->signals.find({peer, op.is_captured});
    if (count > (found == op.end->signals.end() ? 0 : found->second.size())) return 0;
  }
  return 1;
}

/// The second entry.
void finish(void *user) {
  Op &op = *static_cast<Entry *>(user)->op;
  uint64_t own = 0;
  if (op.kind != Op::kWait) driver()->clock_release(&own);
  std::vector<uint64_t> tokens;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    End &end = *op.end;
    op.has_arrived = false;
    set_pending(op, false);
    for (auto [peer, count] : op.signal.awaited) {
      std::deque<uint64_t> &signals = end.signals[{peer, op.is_captured}];
      auto last = signals.begin() + static_cast<long>(std::min(count, signals.size()));
      tokens.insert(tokens.end(), signals.begin(), last);
      signals.erase(signals.begin(), last);
    }
    if (op.kind != Op::kWait && !op.signal.is_dropped && !end.is_gone) {
      std::shared_ptr<End> peer = end.clique->ends[op.signal.peer].lock();
      if (peer != nullptr) peer->signals[{end.rank, op.is_captured}].push_back(own);
    }
    state().changed.notify_all();
  }
  for (uint64_t token : tokens) driver()->clock_acquire(token);
  driver()->wake();
}

/// The driver needs an entry no more.
void drop(void *user) {
  std::unique_ptr<Entry> entry(static_cast<Entry *>(user));
  Op &op = *entry->op;
  std::lock_guard<std::mutex> lock(state().mutex);
  op.num_entries -= 1;
  if (op.num_entries > 0) return;
  op.has_arrived = false;
  set_pending(op, false);
}

}  // namespace

int enqueue_signal(const std::shared_ptr<Op> &op) {
  const Driver *found = driver();
  const char *const name = op->kind == Op::kPut ? "ncclPutSignal" : op->kind == Op::kSignal ? "ncclSignal"
                                                                                            : "ncclWaitSignal";
  op->is_captured = found->capture(op->stream) != 0;
  std::vector<Access> accesses;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    const Signal &signal = op->signal;
    if (op->is_captured && state().version < kGraphVersion) {
      problem("%s: captured, which NCCL %d gets wrong", name, state().version);
    }
    if (!op->is_captured && !op->end->is_gone) set_pending(*op, true);
    if (op->kind == Op::kPut && signal.bytes > 0 && !signal.is_dropped) {
      char *to = signal.to->address[signal.peer] + signal.offset;
      accesses.push_back({reinterpret_cast<uint64_t>(signal.data), signal.bytes, 0, 0});
      accesses.push_back({reinterpret_cast<uint64_t>(to), signal.bytes, 1, 0});
    }
  }
  op->num_entries = 2;
  Entry *first = new Entry{op}, *second = new Entry{op};
  int code = found->enqueue(op->stream, name, nullptr, begin, drop, first, accesses.data(), accesses.size());
  if (code == 0) {
    code = found->enqueue(op->stream, name, is_ready, finish, drop, second, nullptr, 0);
  } else {
    drop(first);
  }
  if (code == 0) return ncclSuccess;
  drop(second);
  return last_error(ncclUnhandledCudaError, "the driver refused to enqueue %s: error %d", name, code);
}

}  // namespace nccl_standin

using namespace nccl_standin;

NCCL_FUNCTION int ncclPutSignal(const void *data, size_t count, int type, int peer, ncclWindow_t window, size_t offset,
                                int sigIdx, int ctx, unsigned flags, ncclComm_t comm, cudaStream_t stream) {
  Call call("ncclPutSignal", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::shared_ptr<Op> op = std::make_shared<Op>();
  op->kind = Op::kPut;
  op->end = call.end;
  op->stream = stream;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (int code = check("ncclPutSignal", *call.end, {sigIdx, ctx, static_cast<int>(flags)}, {peer})) return code;
    if (type_bytes(type) == 0) return last_error(ncclInvalidArgument, "ncclPutSignal : invalid type %d", type);
    op->signal.peer = peer;
    op->signal.data = static_cast<const char *>(data);
    op->signal.bytes = count * type_bytes(type);
    op->signal.offset = offset;
    if (int code = check_put(*call.end, &op->signal, window)) return code;
    look_up_rules(*op);
  }
  return launch({op}, false);
}

NCCL_FUNCTION int ncclSignal(int peer, int sigIdx, int ctx, unsigned flags, ncclComm_t comm, cudaStream_t stream) {
  Call call("ncclSignal", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::shared_ptr<Op> op = std::make_shared<Op>();
  op->kind = Op::kSignal;
  op->end = call.end;
  op->stream = stream;
  op->signal.peer = peer;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (int code = check("ncclSignal", *call.end, {sigIdx, ctx, static_cast<int>(flags)}, {peer})) return code;
  }
  return launch({op}, false);
}

NCCL_FUNCTION int ncclWaitSignal(int count, ncclWaitSignalDesc_t *signals, ncclComm_t comm, cudaStream_t stream) {
  Call call("ncclWaitSignal", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::shared_ptr<Op> op = std::make_shared<Op>();
  op->kind = Op::kWait;
  op->end = call.end;
  op->stream = stream;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (count <= 0 || signals == nullptr) return last_error(ncclInvalidArgument, "ncclWaitSignal: invalid arguments");
    for (const ncclWaitSignalDesc_t *wanted = signals; wanted < signals + count; ++wanted) {
      if (int code = check("ncclWaitSignal", *call.end, {wanted->sigIdx, wanted->ctx}, {wanted->peer})) return code;
      if (wanted->opCnt <= 0) return last_error(ncclInvalidArgument, "ncclWaitSignal: invalid opCnt %d", wanted->opCnt);
      op->signal.awaited.push_back({wanted->peer, static_cast<size_t>(wanted->opCnt)});
    }
    look_up_rules(*op);
  }
  return launch({op}, false);
}
