// What the self-test stands on: two ranks, each with a device, streams, a buffer and an end of one communicator.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../api.h"
#include "../nccl_standin.h"
#include "standin.h"

#define CHECK(condition) check_that(condition, __FILE__, __LINE__, #condition)
#define CHECK_EQ(left, right) check_equal(left, right, __FILE__, __LINE__, #left)

/// Ends the process, with what the stand-ins have to say, unless it holds.
void check_that(bool holds, const char *file, int line, const char *what);
void check_equal(long long left, long long right, const char *file, int line, const char *what);
void check_equal(const std::string &left, const std::string &right, const char *file, int line, const char *what);

// Of the driver. NOLINTBEGIN: the names are its own.
extern "C" {
int cuInit(unsigned flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuCtxPushCurrent_v2(void *context);
int cuCtxPopCurrent_v2(void **context);
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority);
int cuStreamDestroy_v2(void *stream);
int cuStreamQuery(void *stream);
int cuStreamBeginCapture_v2(void *stream, unsigned mode);
int cuStreamEndCapture(void *stream, void **graph);
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags);
int cuGraphLaunch(void *executable, void *stream);
int cuGraphDestroy(void *graph);
int cuGraphExecDestroy(void *executable);
int cuEventCreate(void **event, unsigned flags);
int cuEventRecord(void *event, void *stream);
int cuEventDestroy_v2(void *event);
int cuStreamWaitEvent(void *stream, void *event, unsigned flags);
int cuMemAlloc_v2(uint64_t *memory, size_t bytes);
int cuMemFree_v2(uint64_t memory);
}
// NOLINTEND

const size_t kElements = 64;
const int kInt32 = 2;

inline cudaStream_t cast(void *stream) { return static_cast<cudaStream_t>(stream); }

/// What is needed of ncclConfig_t to ask for a communicator that does not block.
inline ncclConfig_t config(bool is_blocking) {
  const int undefined = INT32_MIN;
  return {sizeof(ncclConfig_t), 0xcafebeef, 21700, is_blocking, undefined, undefined, 4, nullptr, undefined};
}

struct Options {
  unsigned mode = STANDIN_EAGER;
  uint64_t seed = 1;
  bool is_blocking = true;
  bool is_one_device = false;
  bool is_connected_lazily = false;
  int version = 22809;
};

class World {
 public:
  struct Rank {
    int index = 0, device = 0;
    void *context = nullptr;
    /// Two, and one for whoever looks on.
    void *stream[3] = {};
    uint64_t memory = 0;
    ncclComm_t comm = nullptr;

    int32_t *data(size_t block) const { return reinterpret_cast<int32_t *>(memory) + block * kElements; }
    int send(size_t block, int stream_index = 0, size_t count = kElements) const;
    int receive(size_t block, int stream_index = 0, size_t count = kElements) const;
    /// A kernel that fills a block.
    void fill(size_t block, int32_t value, int stream_index = 0) const;
    /// A kernel that appends the first and the last number of a block.
    void read(size_t block, std::vector<int32_t> *numbers, int stream_index = 0) const;
    /// Asks until the communicator is done; what it says then.
    int poll() const;
    int async_error() const;
  };

  explicit World(const Options &options);
  /// Destroys what is left, and checks that nothing lives on.
  ~World();
  World(const World &) = delete;

  /// Both ranks at a time, on threads of their own that have the context.
  void each(const std::function<void(Rank &)> &work);
  /// Destroys the communicators.
  void destroy();

  static std::string problems();
  static std::string races();
  /// All that the stand-ins have to say.
  static std::string report();

  Rank rank[2];
  /// A context has failed: nothing of it can be given back.
  bool is_broken = false;
};
