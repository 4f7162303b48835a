// Finds the stand-in driver.
#include "driver.h"

#include <dlfcn.h>

#include <mutex>

namespace nccl_standin {
namespace {

template <typename Function>
bool look_up(void *library, const char *name, Function *function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

bool fill(void *library, Driver *found) {
  if (!look_up(library, "standin_enqueue", &found->enqueue) || !look_up(library, "standin_wake", &found->wake) ||
      !look_up(library, "standin_clock_release", &found->clock_release) ||
      !look_up(library, "standin_clock_acquire", &found->clock_acquire)) {
    return false;
  }
  look_up(library, "cuCtxGetDevice", &found->context_device);
  look_up(library, "cuStreamGetCaptureInfo_v2", &found->capture_info);
  look_up(library, "cuStreamIsCapturing", &found->is_capturing);
  look_up(library, "cuMemAlloc_v2", &found->allocate);
  look_up(library, "cuMemFree_v2", &found->free);
  return true;
}

}  // namespace

int Driver::device() const {
  int found = 0;
  if (context_device == nullptr) return 0;
  return context_device(&found) == 0 ? found : -1;
}

uint64_t Driver::capture(void *stream) const {
  unsigned status = 0;
  uint64_t id = 0;
  if (capture_info != nullptr) {
    bool is_active = capture_info(stream, &status, &id, nullptr, nullptr, nullptr) == 0 && status == 1;
    return is_active ? id : 0;
  }
  if (is_capturing == nullptr || is_capturing(stream, &status) != 0) return 0;
  return status == 1;
}

const Driver *driver() {
  static std::mutex mutex;
  static Driver found;
  static bool is_found = false;
  std::lock_guard<std::mutex> lock(mutex);
  if (is_found) return &found;
  // The program may have loaded it for itself alone, or not yet.
  is_found = fill(RTLD_DEFAULT, &found);
  void *library = is_found ? nullptr : dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) {
    is_found = fill(library, &found);
    if (!is_found) dlclose(library);
  }
  return is_found ? &found : nullptr;
}

}  // namespace nccl_standin
