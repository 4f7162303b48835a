/* The driver as a caller of the library has it: looked up in libcuda.so.1, which may be the stand-in, of which it then
 * also finds what tests tell it (tests/cuda_standin/standin.h). */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <dlfcn.h>
#include <dualpipe.h>
#include <string.h>

#include "check.h"

typedef unsigned long long device_pointer;

static struct {
  int (*init)(unsigned flags);
  int (*retain)(void **context, int device);
  int (*release)(int device);
  int (*set_current)(void *context);
  int (*stream_create)(void **stream, unsigned flags);
  int (*stream_destroy)(void *stream);
  int (*stream_synchronize)(void *stream);
  int (*stream_wait)(void *stream, void *event, unsigned flags);
  int (*event_create)(void **event, unsigned flags);
  int (*event_record)(void *event, void *stream);
  int (*event_destroy)(void *event);
  int (*allocate)(device_pointer *memory, size_t num_bytes);
  int (*release_memory)(device_pointer memory);
  int (*copy)(device_pointer to, device_pointer from, size_t num_bytes, void *stream);
  int (*copy_to_host)(void *to, device_pointer from, size_t num_bytes);
  int (*set)(device_pointer to, unsigned char value, size_t count, void *stream);
} cu;

/* NULL with a driver that is none of this project's. */
static struct {
  void (*reset)(uint64_t seed, uint32_t mode, uint32_t num_devices, uint32_t flags);
  void (*set_rank)(int32_t rank);
  void (*fail_op)(int32_t rank, uint64_t ordinal, int32_t code);
  uint64_t (*live)(const char *kind);
  size_t (*report)(char *text, size_t capacity);
} standin;

enum { NOT_RANK_LOCAL = 0, RANK_LOCAL = 1 };

#define CHECK_CU(call) CHECK((call) == 0)

/* Puts a function where a pointer to one is. */
static int find(void *library, const char *name, void *pointer) {
  void *symbol = dlsym(library, name);
  memcpy(pointer, &symbol, sizeof symbol);
  return symbol != NULL;
}

static void load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  CHECK(library != NULL);
  CHECK(find(library, "cuInit", &cu.init));
  CHECK(find(library, "cuDevicePrimaryCtxRetain", &cu.retain));
  CHECK(find(library, "cuDevicePrimaryCtxRelease_v2", &cu.release));
  CHECK(find(library, "cuCtxSetCurrent", &cu.set_current));
  CHECK(find(library, "cuStreamCreate", &cu.stream_create));
  CHECK(find(library, "cuStreamDestroy_v2", &cu.stream_destroy));
  CHECK(find(library, "cuStreamSynchronize", &cu.stream_synchronize));
  CHECK(find(library, "cuStreamWaitEvent", &cu.stream_wait));
  CHECK(find(library, "cuEventCreate", &cu.event_create));
  CHECK(find(library, "cuEventRecord", &cu.event_record));
  CHECK(find(library, "cuEventDestroy_v2", &cu.event_destroy));
  CHECK(find(library, "cuMemAlloc_v2", &cu.allocate));
  CHECK(find(library, "cuMemFree_v2", &cu.release_memory));
  CHECK(find(library, "cuMemcpyAsync", &cu.copy));
  CHECK(find(library, "cuMemcpyDtoH_v2", &cu.copy_to_host));
  CHECK(find(library, "cuMemsetD8Async", &cu.set));
  if (find(library, "standin_reset", &standin.reset)) {
    CHECK(find(library, "standin_set_rank", &standin.set_rank));
    CHECK(find(library, "standin_fail_op", &standin.fail_op));
    CHECK(find(library, "standin_live", &standin.live));
    CHECK(find(library, "standin_report", &standin.report));
  }
}

/* A fresh device, if it is one that can be made so: it works on its own, in an order that the seed decides. */
static void begin_session(uint64_t seed, uint32_t flags) {
  if (standin.reset != NULL) standin.reset(seed, 0, 1, flags);
  CHECK_CU(cu.init(0));
}

/* Nothing was found wrong, and nothing is left. */
static void end_session(void) {
  static const char *const kinds[] = {"streams", "events", "allocations", "host_allocations", "graphs", "graph_execs",
                                      "contexts"};
  char text[4096];
  size_t i;
  if (standin.reset == NULL) return;
  if (standin.report(text, sizeof text) > 0) {
    fprintf(stderr, "the stand-in found:\n%s\n", text);
    exit(1);
  }
  for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    if (standin.live(kinds[i]) > 0) {
      fprintf(stderr, "%s are left\n", kinds[i]);
      exit(1);
    }
  }
}

/* Whether there is a driver. If there is none, all that needs one says so. */
static int has_driver(int is_needed) {
  dualpipe_cuda_info info = DUALPIPE_CUDA_INFO_INIT;
  dualpipe_status status = dualpipe_cuda_available(&info);
  if (status == DUALPIPE_OK) {
    CHECK(info.num_devices >= 1 && info.driver_version >= 12000 && info.reserved == 0);
    return 1;
  }
  CHECK(!is_needed);
  CHECK(status == DUALPIPE_ERROR_UNAVAILABLE && info.num_devices == 0);
  CHECK(strstr(dualpipe_last_error(), "dualpipe_cuda_available: cuda: ") != NULL);
  return 0;
}

#endif
