// ncclMemAlloc and windows: memory that NCCL would like best, which here is like any other.
#include <set>

#include "call.h"
#include "driver.h"

/// What a program holds of a window.
struct ncclWindow_vidmem {
  std::shared_ptr<nccl_standin::End> end;
};

namespace nccl_standin {
namespace {

/// Under the lock of the state.
std::set<ncclWindow_t> &windows() {
  static std::set<ncclWindow_t> *there = new std::set<ncclWindow_t>;
  return *there;
}

int count_call(const char *function) {
  std::lock_guard<std::mutex> lock(state().mutex);
  int code = fail_call(function, thread_label());
  return code == ncclSuccess ? code : last_error(code, "%s: as asked for", function);
}

}  // namespace
}  // namespace nccl_standin

using namespace nccl_standin;

NCCL_FUNCTION int ncclMemAlloc(void **memory, size_t bytes) {
  if (int code = count_call("ncclMemAlloc")) return code;
  if (memory == nullptr) return last_error(ncclInvalidArgument, "ncclMemAlloc : ptr argument is NULL");
  const Driver *found = driver();
  uint64_t address = 0;
  if (found == nullptr || found->allocate == nullptr || found->allocate(&address, bytes) != 0) {
    return last_error(ncclUnhandledCudaError, "ncclMemAlloc: the driver gives no %zu bytes", bytes);
  }
  *memory = reinterpret_cast<void *>(address);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclMemFree(void *memory) {
  if (int code = count_call("ncclMemFree")) return code;
  if (memory == nullptr) return ncclSuccess;
  const Driver *found = driver();
  if (found == nullptr || found->free == nullptr || found->free(reinterpret_cast<uint64_t>(memory)) != 0) {
    return last_error(ncclUnhandledCudaError, "ncclMemFree: the driver does not take it back");
  }
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommWindowRegister(ncclComm_t comm, void *data, size_t bytes, ncclWindow_t *window, int) {
  Call call("ncclCommWindowRegister", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (int code = ensure_ready("ncclCommWindowRegister", *call.end)) return code;
  if (data == nullptr || bytes == 0 || window == nullptr) {
    return last_error(ncclInvalidArgument, "ncclCommWindowRegister : an argument is NULL");
  }
  *window = new ncclWindow_vidmem{call.end};
  windows().insert(*window);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window) {
  Call call("ncclCommWindowDeregister", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (window == nullptr) return ncclSuccess;
  auto found = windows().find(window);
  if (found == windows().end() || window->end != call.end) {
    problem("ncclCommWindowDeregister: that is no window of %s", call.end->name().c_str());
    return last_error(ncclInvalidArgument, "ncclCommWindowDeregister: no such window");
  }
  windows().erase(found);
  delete window;
  return ncclSuccess;
}
