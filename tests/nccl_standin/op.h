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

/// All that one call, or one group, asks of one end. In a graph it is done once for each launch.
struct Op : std::enable_shared_from_this<Op> {
  std::shared_ptr<End> end;
  void *stream = nullptr;
  std::vector<Part> parts;

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

/// Nothing touches memory for this end any more, and what it has in streams is done, as if kernels had seen an abort
/// flag; `is_gone` from now on. Without the lock.
void withdraw(End &end);

}  // namespace nccl_standin
