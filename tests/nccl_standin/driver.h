// What is needed of the driver: the hooks of the stand-in driver, found at run time as NCCL finds the real one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nccl_standin {

/// Memory that an operation of a stream touches; the layout is the stand-in driver's.
struct Access {
  uint64_t address;
  uint64_t num_bytes;
  uint32_t is_write;
  uint32_t reserved;
};

struct Driver {
  int32_t (*enqueue)(void *stream, const char *label, int (*ready)(void *), void (*run)(void *), void (*drop)(void *),
                     void *user, const Access *accesses, size_t num_accesses);
  void (*wake)();
  void (*clock_release)(uint64_t *token);
  void (*clock_acquire)(uint64_t token);
  // The rest is the driver's own, and may be missing.
  int (*context_device)(int *device);
  int (*capture_info)(void *stream, unsigned *status, uint64_t *id, void *graph, void *nodes, void *num_nodes);
  int (*is_capturing)(void *stream, unsigned *status);
  int (*allocate)(uint64_t *memory, size_t bytes);
  int (*free)(uint64_t memory);

  /// The device of the calling thread's context; -1 if it has none.
  int device() const;
  /// Which capture the stream is in; 0 if in none.
  uint64_t capture(void *stream) const;
};

/// The stand-in driver of this process, or nothing.
const Driver *driver();

}  // namespace nccl_standin
