// ncclSend, ncclRecv and groups of them, as the program's threads see them.
#include <algorithm>

#include "call.h"
#include "op.h"

namespace nccl_standin {
namespace {

/// By ncclDataType_t: eight bits twice, 32 and 64 bits twice, then half, float, double, bfloat16 and two of eight bits.
const size_t kTypeBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
const int kNumTypes = sizeof kTypeBytes / sizeof *kTypeBytes;

/// `op` gets to know what the call asks for; with the lock held.
int describe(const char *function, End &end, Part part, size_t count, Op *op) {
  if (int code = ensure_ready(function, end)) return code;
  if (end.is_finalized) {
    problem("%s: %s has been finalized", function, end.name().c_str());
    return last_error(ncclInvalidArgument, "%s: the communicator has been finalized", function);
  }
  if (part.peer < 0 || part.peer >= end.clique->size) {
    return last_error(ncclInvalidArgument, "%s : invalid root %d", function, part.peer);
  }
  if (type_bytes(part.type) == 0) {
    return last_error(ncclInvalidArgument, "%s : invalid type %d", function, part.type);
  }
  if (part.address == nullptr && count > 0) {
    // NCCL would let the kernel run into it.
    problem("%s: %s gives no memory for %zu elements", function, end.name().c_str(), count);
    return last_error(ncclInvalidArgument, "%s: the buffer is NULL", function);
  }
  part.bytes = count * type_bytes(part.type);
  int32_t peer = end.clique->labels[part.peer];
  if (part.is_send) {
    uint64_t ordinal = state().num_sends[{end.label, peer}]++;
    part.is_dropped = rule(Rule::kDrop, end.label, peer, ordinal, 0) != 0;
    part.delay_ms = rule(Rule::kDelay, end.label, peer, ordinal, 0);
  }
  part.async_error = rule(Rule::kAsyncError, end.label, -1, state().num_messages[end.label]++, ncclSuccess);
  op->parts.push_back(part);
  return ncclSuccess;
}

/// One operation for each end, in the order in which they were first spoken of; with the lock held.
int merge(const std::vector<std::shared_ptr<Op>> &calls, std::vector<std::shared_ptr<Op>> *ops) {
  for (const std::shared_ptr<Op> &call : calls) {
    auto is_same = [&](const std::shared_ptr<Op> &op) { return op->end == call->end; };
    auto found = std::find_if(ops->begin(), ops->end(), is_same);
    if (call->end->is_gone) {
      problem("ncclGroupEnd: %s has been aborted or destroyed since", call->end->name().c_str());
      return last_error(ncclInvalidArgument, "ncclGroupEnd: corrupted comm object detected");
    }
    if (call->end->is_blocking != calls[0]->end->is_blocking) {
      problem("ncclGroupEnd: some communicators of the group block, others do not");
      return last_error(ncclInvalidArgument, "Blocking and nonblocking communicators are not allowed in a group.");
    }
    if (found == ops->end()) {
      ops->push_back(call);
    } else if ((*found)->stream != call->stream) {
      // NCCL would make both streams wait for each other, which nobody should want; not stood in for.
      problem("ncclGroupEnd: %s uses two streams in one group", call->end->name().c_str());
      return last_error(ncclInvalidUsage, "ncclGroupEnd: one communicator, two streams");
    } else {
      (*found)->parts.push_back(call->parts[0]);
    }
  }
  return ncclSuccess;
}

int message(const char *function, Part part, size_t count, ncclComm_t comm, cudaStream_t stream) {
  Call call(function, comm, Call::kAlone);
  if (call.code != ncclSuccess) return tell_group(call.code);
  std::shared_ptr<Op> op = std::make_shared<Op>();
  op->end = call.end;
  op->stream = stream;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (int code = describe(function, *call.end, part, count, op.get())) return tell_group(code);
  }
  if (group().depth == 0) return launch({op}, false);
  group().ops.push_back(op);
  return ncclSuccess;
}

/// What the outermost ncclGroupEnd does.
int finish(Group &&group) {
  if (group.error != ncclSuccess) return group.error;
  int result = ncclSuccess;
  std::vector<std::shared_ptr<Op>> ops;
  {
    std::unique_lock<std::mutex> lock(state().mutex);
    for (const std::shared_ptr<End> &end : group.initialising) {
      if (!end->is_blocking) {
        result = ncclInProgress;
      } else if (int code = wait_until_initialised(*end, lock)) {
        return code;
      }
    }
    if (int code = merge(group.ops, &ops)) return code;
    for (const std::shared_ptr<Op> &op : ops) {
      if (op->end->num_inside > 0) {
        problem("ncclGroupEnd: another thread is in a call with the communicator of %s", op->end->name().c_str());
      }
      op->end->num_inside += 1;
    }
  }
  int code = launch(ops, true);
  std::lock_guard<std::mutex> lock(state().mutex);
  for (const std::shared_ptr<Op> &op : ops) op->end->num_inside -= 1;
  return code == ncclSuccess ? result : code;
}

}  // namespace

size_t type_bytes(int type) { return type < 0 || type >= kNumTypes ? 0 : kTypeBytes[type]; }

int launch(const std::vector<std::shared_ptr<Op>> &ops, bool is_group) {
  std::vector<std::shared_ptr<Op>> now;
  int result = ncclSuccess;
  {
    std::unique_lock<std::mutex> lock(state().mutex);
    for (const std::shared_ptr<Op> &op : ops) {
      if (op->kind != Op::kMessages) op->end->clique->has_signalled[op->end->rank] = true;
      for (const Part &part : op->parts) {
        int rank = op->end->rank;
        Channel &channel = op->end->clique->channels[part.is_send ? std::pair(rank, part.peer)
                                                                  : std::pair(part.peer, rank)];
        (part.is_send ? channel.is_send_called : channel.is_receive_called) = true;
      }
    }
    state().changed.notify_all();
    for (const std::shared_ptr<Op> &op : ops) {
      End &end = *op->end;
      if (end.is_blocking) {
        state().changed.wait(lock, [&] { return end.is_gone || is_connected(end, {op}); });
        if (end.is_gone) return ncclInternalError;
        now.push_back(op);
      } else if (is_group || !is_connected(end, {op}) || roll(end) % 2 == 0) {
        end.is_in_progress = true;
        end.num_polls = static_cast<int>(roll(end) % 4);
        end.deferred.push_back(op);
        end.caller = std::this_thread::get_id();
        result = ncclInProgress;
      } else {
        now.push_back(op);
      }
    }
  }
  for (const std::shared_ptr<Op> &op : now) {
    if (int code = enqueue(op)) return code;
  }
  return result;
}

}  // namespace nccl_standin

using namespace nccl_standin;

NCCL_FUNCTION int ncclSend(const void *data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream) {
  Part part{true, peer, const_cast<char *>(static_cast<const char *>(data)), 0, type, false, 0, ncclSuccess};
  return message("ncclSend", part, count, comm, stream);
}

NCCL_FUNCTION int ncclRecv(void *data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream) {
  Part part{false, peer, static_cast<char *>(data), 0, type, false, 0, ncclSuccess};
  return message("ncclRecv", part, count, comm, stream);
}

NCCL_FUNCTION int ncclGroupStart() {
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (int code = fail_call("ncclGroupStart", thread_label())) return last_error(code, "ncclGroupStart: as asked for");
  }
  group().depth += 1;
  return ncclSuccess;
}

NCCL_FUNCTION int ncclGroupEnd() {
  int code = ncclSuccess;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    code = fail_call("ncclGroupEnd", thread_label());
    if (group().depth == 0) {
      problem("ncclGroupEnd: not in a group");
      return last_error(ncclInvalidUsage, "ncclGroupEnd: not in a group call.");
    }
  }
  group().depth -= 1;
  if (code != ncclSuccess) {
    if (group().error == ncclSuccess) group().error = last_error(code, "ncclGroupEnd: as asked for");
  }
  if (group().depth > 0) return group().error;
  Group all = std::move(group());
  group() = Group();
  return finish(std::move(all));
}
