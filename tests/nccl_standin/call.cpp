// What is checked at each call.
#include "call.h"

#include <algorithm>

#include "op.h"

namespace nccl_standin {

Call::Call(const char *function, ncclComm_t comm, Use use) {
  std::lock_guard<std::mutex> lock(state().mutex);
  auto found = state().handles.find(comm);
  if (found != state().handles.end()) end = found->second.second;
  code = fail_call(function, end != nullptr ? end->label : thread_label());
  if (code != ncclSuccess) {
    last_error(code, "%s: a failure that the test asked for", function);
    // Where NCCL cannot return an error in time, the communicator keeps it.
    if (use == kAlone && end != nullptr && !end->is_blocking) end->async_error = code;
    return;
  }
  if (comm == nullptr) {
    code = last_error(ncclInvalidArgument, "%s : comm argument is NULL", function);
    return;
  }
  if (end == nullptr) {
    problem("%s: that is no communicator", function);
    code = last_error(ncclInvalidArgument, "%s: corrupted comm object detected", function);
    return;
  }
  if (end->is_gone) {
    if (end->generation == state().generation) {
      problem("%s: %s has been aborted or destroyed", function, end->name().c_str());
    }
    code = last_error(ncclInvalidArgument, "%s: corrupted comm object detected", function);
    return;
  }
  if (use == kQuestion) return;
  if (end->num_inside > 0 && use == kAlone) {
    problem("%s: another thread is in a call with the communicator of %s", function, end->name().c_str());
  }
  if (end->num_inside > 0 && use == kAbort && end->is_blocking) {
    problem("%s: a thread is in a call with the communicator of %s, which blocks", function, end->name().c_str());
  }
  if (use == kAbort) return;
  is_inside_ = true;
  end->num_inside += 1;
}

Call::~Call() {
  if (!is_inside_) return;
  std::lock_guard<std::mutex> lock(state().mutex);
  end->num_inside -= 1;
}

int ensure_ready(const char *function, End &end) {
  if (end.async_error != ncclSuccess) {
    return last_error(end.async_error, "%s: the communicator has failed", function);
  }
  if (end.is_initialised && !end.is_in_progress) return ncclSuccess;
  problem("%s: %s has not said yet that its previous call is done", function, end.name().c_str());
  return last_error(ncclInvalidArgument,
                    "Attempt to use communicator before the previous operation returned ncclSuccess");
}

int wait_until_initialised(End &end, std::unique_lock<std::mutex> &lock) {
  state().changed.wait(lock, [&] {
    return end.is_gone || (end.clique->num_joined == end.clique->size && !state().is_init_hung);
  });
  if (end.is_gone) return ncclInternalError;
  end.async_error = end.clique->failure;
  end.is_initialised = end.async_error == ncclSuccess;
  return end.async_error;
}

bool is_connected(const End &end, const std::vector<std::shared_ptr<Op>> &ops) {
  if (!state().is_connected_lazily) return true;
  for (const std::shared_ptr<Op> &op : ops) {
    const std::vector<bool> &others = end.clique->has_signalled;
    if (op->kind != Op::kMessages && std::count(others.begin(), others.end(), false) > 0) return false;
    for (const Part &part : op->parts) {
      int from = part.is_send ? end.rank : part.peer, to = part.is_send ? part.peer : end.rank;
      if (!end.clique->channels[{from, to}].is_connected()) return false;
    }
  }
  return true;
}

Group &group() {
  static thread_local Group there;
  return there;
}

int tell_group(int code) {
  bool is_failure = code != ncclSuccess && code != ncclInProgress;
  if (is_failure && group().depth > 0 && group().error == ncclSuccess) group().error = code;
  return code;
}

}  // namespace nccl_standin
