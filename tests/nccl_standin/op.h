// What NCCL puts in a stream for a send, a receive or a group of them, and how the two sides of a message meet.
#pragma once

#include "state.h"

namespace nccl_standin {

/// One ncclSend or ncclRecv.
struct Part {
  bool is_send;
  int peer;
  char *address;
  size_t bytes;
  int type;
  /// What the test wants to happen to it.
  bool is_dropped;
  int32_t delay_ms;
  int async_error;

  /// Lost: it will never be done.
  enum { kIdle, kWaiting, kMoving, kDone, kLost } state = kIdle;
  /// The partner's clock when its stream got there.
  uint64_t peer_token = 0;
};

/// What a put, a signal or a wait for signals is.
struct Signal {
  int peer = 0;
  /// What is put, and where; nothing for a signal alone.
  const char *data = nullptr;
  size_t bytes = 0, offset = 0;
  std::shared_ptr<Registration> to;
  /// What is waited for, by rank.
  std::vector<std::pair<int, size_t>> awaited;

  // What the test wants to happen to it.
  bool is_dropped = false;
  int async_error = ncclSuccess;
};

/// All that one call, or one group, asks of one end. In a graph it is done once for each launch.
struct Op : std::enable_shared_from_this<Op> {
  enum Kind { kMessages, kPut, kSignal, kWait } kind = kMessages;
  std::shared_ptr<End> end;
  void *stream = nullptr;
  std::vector<Part> parts;
  /// Of the other kinds.
  Signal signal;
  /// It will never be done.
  bool is_lost = false;

  bool is_captured = false;
  /// Of this one, and of the one that the communicator has to do before, if any.
  std::shared_ptr<Progress> own = std::make_shared<Progress>(), previous;
  /// Its stream has come to it, and it is not done.
  bool has_arrived = false;
  /// It counts in `num_pending` of its end.
  bool is_pending = false;
  uint64_t token = 0;
  /// How many of its entries the driver still has.
  int num_entries = 0;
};

/// Puts an operation in its stream. Without the lock. Returns what ncclSend would.
int enqueue(const std::shared_ptr<Op> &op);
/// The same for those that are no messages.
int enqueue_signal(const std::shared_ptr<Op> &op);

/// Puts operations in their streams, now or, for ends that do not block, perhaps at a later question. Without the lock.
int launch(const std::vector<std::shared_ptr<Op>> &ops, bool is_group);

/// Whether it is enqueued, or begun by a graph, and not done. With the lock held.
void set_pending(Op &op, bool is_pending);

/// What has been registered becomes a window. With the lock held.
void finish_registration(const std::shared_ptr<End> &end);
/// The end has no windows any more. With the lock held.
void forget_windows(End &end);

/// Bytes of an element; 0 if there is no such type.
size_t type_bytes(int type);

/// Nothing touches memory for this end any more, and what it has in streams is done, as if kernels had seen an abort
/// flag; `is_gone` from now on. Without the lock.
void withdraw(End &end);

}  // namespace nccl_standin
