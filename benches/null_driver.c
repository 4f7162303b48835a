/* A libcuda.so.1 that does nothing, for benches/cuda.rs: what is left is the executor's own time on the host. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint64_t address;

static void *fresh(void) {
  static uintptr_t last = 0x1000;
  return (void *)(last += 16);
}

static int same_context(void **context) {
  *context = (void *)0x10;
  return 0;
}

int cuInit(unsigned flags) { return flags != 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuGetErrorName(int code, const char **name) { return *name = "NULL_DRIVER", code < 0; }
int cuGetErrorString(int code, const char **text) { return *text = "no driver at all", code < 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return device + same_context(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { return *can = device == peer, 0; }
int cuCtxPushCurrent_v2(void *context) { return context == NULL; }
int cuCtxPopCurrent_v2(void **context) { return same_context(context); }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = *greatest = 0; }
int cuCtxEnablePeerAccess(void *peer, unsigned flags) { return peer == NULL || flags; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  return *stream = fresh(), flags != 1 || priority;
}
int cuStreamDestroy_v2(void *stream) { return stream == NULL; }
int cuStreamGetCtx(void *stream, void **context) { return stream == NULL || same_context(context); }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return !stream || !event || flags; }
int cuStreamIsCapturing(void *stream, unsigned *status) { return *status = 0, stream == NULL; }
int cuStreamBeginCapture_v2(void *stream, unsigned mode) { return stream == NULL || mode; }
int cuStreamEndCapture(void *stream, void **graph) { return *graph = fresh(), stream == NULL; }
int cuEventCreate(void **event, unsigned flags) { return *event = fresh(), flags > 2; }
int cuEventDestroy_v2(void *event) { return event == NULL; }
int cuEventRecord(void *event, void *stream) { return !event || !stream; }
int cuEventRecordWithFlags(void *event, void *stream, unsigned flags) { return !event || !stream || flags > 1; }
int cuEventQuery(void *event) { return event == NULL; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) { return *milliseconds = 0, !start || !end; }
int cuMemAlloc_v2(address *memory, size_t bytes) { return *memory = (address)(uintptr_t)malloc(bytes), *memory == 0; }
int cuMemFree_v2(address memory) { return free((void *)(uintptr_t)memory), 0; }
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { return *memory = malloc(bytes), flags > 1; }
int cuMemFreeHost(void *memory) { return free(memory), 0; }
int cuMemcpyAsync(address to, address from, size_t bytes, void *stream) { return !to || !from || !bytes || !stream; }
int cuMemcpyPeerAsync(address to, void *to_context, address from, void *from_context, size_t bytes, void *stream) {
  return !to || !to_context || !from || !from_context || !bytes || !stream;
}
int cuMemsetD32Async(address to, unsigned value, size_t count, void *stream) {
  return !to || !value || !count || !stream;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, uint64_t flags) {
  return *executable = fresh(), !graph || flags;
}
int cuGraphLaunch(void *executable, void *stream) { return !executable || !stream; }
int cuGraphDestroy(void *graph) { return graph == NULL; }
int cuGraphExecDestroy(void *executable) { return executable == NULL; }
