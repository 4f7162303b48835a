// Without a driver: as NCCL itself on a machine without a GPU.
#include <cstdio>
#include <cstring>

#include "../api.h"

int main() {
  int version = 0;
  ncclUniqueId id;
  ncclComm_t comm = nullptr;
  bool is_good = ncclGetVersion(&version) == ncclSuccess && version == 22809 && ncclGetUniqueId(&id) == ncclSuccess &&
                 ncclCommInitRank(&comm, 1, id, 0) == ncclUnhandledCudaError && comm == nullptr &&
                 strstr(ncclGetLastError(nullptr), "libcuda.so.1") != nullptr &&
                 strstr(ncclGetErrorString(ncclUnhandledCudaError), "unhandled cuda error") != nullptr;
  printf("without a driver: %s\n", is_good ? "ok" : "WRONG");
  return is_good ? 0 : 1;
}
