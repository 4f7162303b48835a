// NCCL's own interface, as far as it is stood in for: names, numbers and layouts of its nccl.h, 2.17 to 2.30.
//
// An `ncclResult_t` and an `ncclDataType_t` are written `int` here, as which they are passed.
#pragma once

#include <cstddef>
#include <cstdint>

#define NCCL_FUNCTION extern "C" __attribute__((visibility("default")))

// NOLINTBEGIN: the names are NCCL's.
enum {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
  ncclTimeout = 8,
};

struct ncclUniqueId {
  char internal[128];
};

struct ncclComm;
struct ncclWindow_vidmem;
typedef struct ncclComm *ncclComm_t;
typedef struct ncclWindow_vidmem *ncclWindow_t;
typedef struct CUstream_st *cudaStream_t;

// Grown over the versions; `size` says how much of it there is. What follows `splitShare` is not looked at here.
struct ncclConfig_t {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int blocking;
  int cgaClusterSize;
  int minCTAs;
  int maxCTAs;
  const char *netName;
  int splitShare;
};

struct ncclWaitSignalDesc_t {
  int opCnt;
  int peer;
  int sigIdx;
  int ctx;
};

// For windows that others may put into.
const int NCCL_WIN_COLL_SYMMETRIC = 1;

NCCL_FUNCTION int ncclGetVersion(int *version);
NCCL_FUNCTION int ncclGetUniqueId(ncclUniqueId *id);
NCCL_FUNCTION const char *ncclGetErrorString(int code);
NCCL_FUNCTION const char *ncclGetLastError(ncclComm_t comm);
NCCL_FUNCTION int ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank);
NCCL_FUNCTION int ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank, ncclConfig_t *config);
NCCL_FUNCTION int ncclCommGetAsyncError(ncclComm_t comm, int *error);
NCCL_FUNCTION int ncclCommFinalize(ncclComm_t comm);
NCCL_FUNCTION int ncclCommDestroy(ncclComm_t comm);
NCCL_FUNCTION int ncclCommAbort(ncclComm_t comm);
NCCL_FUNCTION int ncclCommCount(const ncclComm_t comm, int *count);
NCCL_FUNCTION int ncclCommUserRank(const ncclComm_t comm, int *rank);
NCCL_FUNCTION int ncclCommCuDevice(const ncclComm_t comm, int *device);
NCCL_FUNCTION int ncclSend(const void *data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream);
NCCL_FUNCTION int ncclRecv(void *data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream);
NCCL_FUNCTION int ncclGroupStart();
NCCL_FUNCTION int ncclGroupEnd();
NCCL_FUNCTION int ncclMemAlloc(void **memory, size_t bytes);
NCCL_FUNCTION int ncclMemFree(void *memory);
NCCL_FUNCTION int ncclCommWindowRegister(ncclComm_t comm, void *data, size_t bytes, ncclWindow_t *window, int flags);
NCCL_FUNCTION int ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window);
// From 2.29 on. `sigIdx`, `ctx` and `flags` have to be 0.
NCCL_FUNCTION int ncclPutSignal(const void *data, size_t count, int type, int peer, ncclWindow_t window, size_t offset,
                                int sigIdx, int ctx, unsigned flags, ncclComm_t comm, cudaStream_t stream);
NCCL_FUNCTION int ncclSignal(int peer, int sigIdx, int ctx, unsigned flags, ncclComm_t comm, cudaStream_t stream);
NCCL_FUNCTION int ncclWaitSignal(int count, ncclWaitSignalDesc_t *signals, ncclComm_t comm, cudaStream_t stream);
// NOLINTEND
