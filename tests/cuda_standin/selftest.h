// What the parts of the self-test share: the driver's functions they call, checks, and a small world of streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "standin.h"

extern "C" {
int32_t cuInit(uint32_t);
int32_t cuDriverGetVersion(int *);
int32_t cuDeviceGetCount(int *);
int32_t cuDeviceCanAccessPeer(int *, int32_t, int32_t);
int32_t cuDevicePrimaryCtxRetain(void **, int32_t);
int32_t cuDevicePrimaryCtxRelease_v2(int32_t);
int32_t cuCtxGetCurrent(void **);
int32_t cuCtxSetCurrent(void *);
int32_t cuCtxSynchronize();
int32_t cuCtxEnablePeerAccess(void *, uint32_t);
int32_t cuStreamCreate(void **, uint32_t);
int32_t cuStreamDestroy_v2(void *);
int32_t cuStreamSynchronize(void *);
int32_t cuStreamQuery(void *);
int32_t cuStreamWaitEvent(void *, void *, uint32_t);
int32_t cuStreamBeginCapture_v2(void *, uint32_t);
int32_t cuStreamEndCapture(void *, void **);
int32_t cuStreamIsCapturing(void *, int *);
int32_t cuThreadExchangeStreamCaptureMode(uint32_t *);
int32_t cuEventCreate(void **, uint32_t);
int32_t cuEventDestroy_v2(void *);
int32_t cuEventRecord(void *, void *);
int32_t cuEventRecordWithFlags(void *, void *, uint32_t);
int32_t cuEventQuery(void *);
int32_t cuEventSynchronize(void *);
int32_t cuEventElapsedTime(float *, void *, void *);
int32_t cuMemAlloc_v2(uint64_t *, size_t);
int32_t cuMemFree_v2(uint64_t);
int32_t cuMemAllocHost_v2(void **, size_t);
int32_t cuMemFreeHost(void *);
int32_t cuMemcpyHtoD_v2(uint64_t, const void *, size_t);
int32_t cuMemcpyDtoH_v2(void *, uint64_t, size_t);
int32_t cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *);
int32_t cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int32_t cuMemcpyDtoDAsync_v2(uint64_t, uint64_t, size_t, void *);
int32_t cuMemcpyPeerAsync(uint64_t, void *, uint64_t, void *, size_t, void *);
int32_t cuMemsetD8Async(uint64_t, unsigned char, size_t, void *);
int32_t cuMemsetD32Async(uint64_t, uint32_t, size_t, void *);
int32_t cuLaunchHostFunc(void *, void (*)(void *), void *);
int32_t cuLaunchKernel(void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *, void **,
                       void **);
int32_t cuModuleLoadData(void **, const void *);
int32_t cuModuleGetFunction(void **, void *, const char *);
int32_t cuModuleUnload(void *);
int32_t cuGraphInstantiateWithFlags(void **, void *, uint64_t);
int32_t cuGraphLaunch(void *, void *);
int32_t cuGraphDestroy(void *);
int32_t cuGraphExecDestroy(void *);
int32_t cuGraphGetNodes(void *, void **, size_t *);
int32_t cuPointerGetAttribute(void *, int, uint64_t);
int32_t cuGetErrorName(int32_t, const char **);
}

namespace selftest {

extern int num_failures;

inline void check(bool is_good, const char *what, const char *file, int line) {
  if (is_good) return;
  num_failures += 1;
  std::printf("%s:%d: failed: %s\n", file, line, what);
}

inline void check_equal(long long got, long long wanted, const char *what, const char *file, int line) {
  if (got == wanted) return;
  num_failures += 1;
  std::printf("%s:%d: %s is %lld, not %lld\n", file, line, what, got, wanted);
}

#define CHECK(condition) selftest::check((condition), #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(got, wanted)                                                                             \
  selftest::check_equal(static_cast<long long>(got), static_cast<long long>(wanted), #got, __FILE__, __LINE__)
#define OK(call) CHECK_EQUAL(call, 0)

inline std::string report() {
  std::string text(standin_report(nullptr, 0) + 1, '\0');
  standin_report(&text[0], text.size());
  text.pop_back();
  return text;
}

inline void check_report(const std::string &word, const char *file, int line) {
  const std::string text = report();
  const bool is_good = word.empty() ? text.empty() : text.find(word) != std::string::npos;
  if (!is_good) std::printf("wanted \"%s\" in the report:\n%s", word.c_str(), text.c_str());
  check(is_good, "the report", file, line);
}

// The report has this in it; nothing: it is empty.
#define REPORTS(word) selftest::check_report(word, __FILE__, __LINE__)

// A life with contexts retained and device 0 current.
class World {
 public:
  explicit World(uint64_t seed = 0, uint32_t mode = STANDIN_LAZY, uint32_t num_devices = 1, uint32_t flags = 0) {
    standin_reset(seed, mode, num_devices, flags);
    standin_set_rank(-1);
    OK(cuInit(0));
    contexts.resize(num_devices);
    for (uint32_t device = 0; device < num_devices; ++device) {
      OK(cuDevicePrimaryCtxRetain(&contexts[device], static_cast<int32_t>(device)));
    }
    OK(cuCtxSetCurrent(contexts[0]));
  }

  void *stream(int32_t rank = -1, size_t device = 0) {
    void *made = nullptr;
    OK(cuCtxSetCurrent(contexts[device]));
    standin_set_rank(rank);
    OK(cuStreamCreate(&made, 1));
    standin_set_rank(-1);
    OK(cuCtxSetCurrent(contexts[0]));
    return made;
  }

  void *event(size_t device = 0, uint32_t flags = 2) {
    void *made = nullptr;
    OK(cuCtxSetCurrent(contexts[device]));
    OK(cuEventCreate(&made, flags));
    OK(cuCtxSetCurrent(contexts[0]));
    return made;
  }

  uint64_t memory(size_t num_bytes = 64, size_t device = 0) {
    uint64_t made = 0;
    OK(cuCtxSetCurrent(contexts[device]));
    OK(cuMemAlloc_v2(&made, num_bytes));
    OK(cuCtxSetCurrent(contexts[0]));
    return made;
  }

  std::vector<void *> contexts;
};

// A kernel that reads or writes the 64 bytes at an address, and does nothing else.
inline void touch(void *stream, const char *label, uint64_t address, bool is_write) {
  const standin_access access = {address, 64, is_write, 0};
  OK(standin_launch(stream, label, nullptr, nullptr, &access, 1));
}
inline void reads(void *stream, uint64_t address) { touch(stream, "reader", address, false); }
inline void writes(void *stream, uint64_t address) { touch(stream, "writer", address, true); }

// Makes one stream wait for what another has so far.
inline void follow(void *stream, void *event, void *of) {
  OK(cuEventRecord(event, of));
  OK(cuStreamWaitEvent(stream, event, 0));
}

void test_order();
void test_races();
void test_host_threads();
void test_ranks();
void test_memory();
void test_faults();
void test_capture_rules();
void test_graphs();
void test_eager();

}  // namespace selftest
