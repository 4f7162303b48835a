// Memory: bounds, guard zones, frees, peers, copies' values, kernels.
#include <cstring>
#include <numeric>

#include "selftest.h"

namespace selftest {

namespace {

void write_behind(void *memory) { static_cast<unsigned char *>(memory)[64] = 1; }

void bounds() {
  World world;
  void *const stream = world.stream();
  const uint64_t memory = world.memory();
  const uint64_t other = world.memory();
  CHECK_EQUAL(cuMemcpyDtoDAsync_v2(memory + 32, other, 64, stream), 1);
  REPORTS("cuMemcpyDtoDAsync_v2: writes bytes [32, 96) of allocation 0, which has 64 bytes");
  CHECK_EQUAL(cuMemsetD8Async(memory - 1, 0, 4, stream), 1);
  OK(cuMemFree_v2(other));
  unsigned char bytes[64] = {};
  CHECK_EQUAL(cuMemcpyHtoDAsync_v2(other, bytes, 64, stream), 1);
  REPORTS("was freed");
  CHECK_EQUAL(cuMemFree_v2(other), 1);
  CHECK_EQUAL(cuMemFree_v2(memory + 8), 1);
  OK(cuCtxSynchronize());

  // A kernel's accesses are looked at when it runs, as on a GPU.
  const standin_access access = {memory, 65, 0, 0};
  OK(standin_launch(stream, "too far", nullptr, nullptr, &access, 1));
  CHECK_EQUAL(cuStreamSynchronize(stream), 700);
  REPORTS("\"too far\" (#0, stream 0) touches bytes [0, 65)");
}

void guards() {
  World world;
  void *const stream = world.stream();
  const uint64_t memory = world.memory();
  const standin_access access = {memory, 64, 1, 0};
  OK(standin_launch(stream, "overrun", write_behind, reinterpret_cast<void *>(memory), &access, 1));
  OK(cuCtxSynchronize());
  REPORTS("bytes behind allocation 0 were overwritten by \"overrun\"");
  OK(cuMemFree_v2(memory));
  *reinterpret_cast<unsigned char *>(memory + 5) = 0;
  REPORTS("allocation 0 was written after it was freed");
}

void free_in_use() {
  World world;
  void *const stream = world.stream();
  const uint64_t memory = world.memory();
  writes(stream, memory);
  OK(cuMemFree_v2(memory));
  OK(cuStreamQuery(stream));
  REPORTS("allocation 0 is used by ops that are queued");
}

void peers() {
  World world(0, STANDIN_LAZY, 2);
  void *const stream = world.stream();
  const uint64_t here = world.memory();
  const uint64_t there = world.memory(64, 1);
  int is_possible = 0;
  OK(cuDeviceCanAccessPeer(&is_possible, 0, 1));
  CHECK_EQUAL(is_possible, 1);
  OK(cuMemsetD8Async(here, 9, 64, stream));
  OK(cuMemcpyPeerAsync(there, world.contexts[1], here, world.contexts[0], 64, stream));
  OK(cuCtxSynchronize());
  unsigned char value = 0;
  OK(cuMemcpyDtoH_v2(&value, there + 63, 1));
  CHECK_EQUAL(value, 9);
  OK(cuCtxEnablePeerAccess(world.contexts[1], 0));
  CHECK_EQUAL(cuCtxEnablePeerAccess(world.contexts[1], 0), 704);
  writes(stream, there);
  OK(cuCtxSynchronize());
  int32_t device = -1;
  OK(cuPointerGetAttribute(&device, 9, there));
  CHECK_EQUAL(device, 1);
  REPORTS("");
  CHECK_EQUAL(cuMemcpyPeerAsync(there, world.contexts[0], here, world.contexts[0], 64, stream), 1);
  void *const other = world.stream(-1, 1);
  writes(other, here);
  CHECK_EQUAL(cuStreamSynchronize(other), 700);
  REPORTS("device 1 has no peer access to it");
  standin_set_peer_access(0);
  OK(cuDeviceCanAccessPeer(&is_possible, 0, 1));
  CHECK_EQUAL(is_possible, 0);
}

void pinned() {
  World world;
  void *const a = world.stream();
  void *const b = world.stream();
  const uint64_t memory = world.memory();
  void *host = nullptr;
  OK(cuMemAllocHost_v2(&host, 64));
  OK(cuMemcpyHtoDAsync_v2(memory, host, 64, a));
  std::vector<unsigned char> pageable(64, 3);
  OK(cuMemcpyHtoDAsync_v2(memory, pageable.data(), 64, a));
  pageable.assign(64, 4);
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(pageable.data(), memory, 64));
  CHECK_EQUAL(pageable[63], 3);
  REPORTS("");
  OK(cuMemcpyDtoHAsync_v2(host, memory, 64, a));
  OK(cuMemcpyHtoDAsync_v2(world.memory(), host, 64, b));
  OK(cuCtxSynchronize());
  REPORTS("pinned allocation 1 bytes [0, 64)");
  CHECK_EQUAL(standin_live("host_allocations"), 1);
  OK(cuMemFreeHost(host));
  CHECK_EQUAL(standin_live("host_allocations"), 0);
}

// out[i] = in[i] + add
void add_run(const uint32_t *grid, const uint32_t *, uint32_t, void **params) {
  auto *const out = *static_cast<uint32_t **>(params[0]);
  const auto *const in = *static_cast<const uint32_t **>(params[1]);
  for (uint32_t i = 0; i < grid[0]; ++i) out[i] = in[i] + *static_cast<uint32_t *>(params[2]);
}

size_t add_accesses(const uint32_t *grid, const uint32_t *, void **params, standin_access *out, size_t capacity) {
  if (capacity < 2) return 2;
  out[0] = {*static_cast<uint64_t *>(params[0]), 4 * uint64_t{grid[0]}, 1, 0};
  out[1] = {*static_cast<uint64_t *>(params[1]), 4 * uint64_t{grid[0]}, 0, 0};
  return 2;
}

void kernels() {
  World world;
  const size_t sizes[] = {8, 8, 4};
  standin_register_kernel("add", add_run, add_accesses, sizes, 3);
  void *const a = world.stream();
  void *const b = world.stream();
  void *module = nullptr;
  void *function = nullptr;
  OK(cuModuleLoadData(&module, "any text"));
  CHECK_EQUAL(cuModuleGetFunction(&function, module, "subtract"), 500);
  OK(cuModuleGetFunction(&function, module, "add"));
  std::vector<uint32_t> values(16);
  std::iota(values.begin(), values.end(), 0);
  uint64_t in = world.memory();
  uint64_t out = world.memory();
  uint32_t add = 5;
  void *params[] = {&out, &in, &add};
  OK(cuMemcpyHtoD_v2(in, values.data(), 64));
  OK(cuLaunchKernel(function, 16, 1, 1, 1, 1, 1, 0, a, params, nullptr));
  add = 6;  // the launch has its own
  OK(cuStreamSynchronize(a));
  OK(cuMemcpyDtoH_v2(values.data(), out, 64));
  CHECK_EQUAL(values[15], 20);
  REPORTS("");
  OK(cuLaunchKernel(function, 16, 1, 1, 1, 1, 1, 0, a, params, nullptr));
  writes(b, in);
  OK(cuCtxSynchronize());
  REPORTS("\"add\"");
  CHECK_EQUAL(cuLaunchKernel(function, 16, 1, 1, 2048, 1, 1, 0, a, params, nullptr), 1);
  CHECK_EQUAL(standin_live("modules"), 1);
  OK(cuModuleUnload(module));
  CHECK_EQUAL(cuLaunchKernel(function, 16, 1, 1, 1, 1, 1, 0, a, params, nullptr), 400);
}

}  // namespace

void test_memory() {
  bounds();
  guards();
  free_in_use();
  peers();
  pinned();
  kernels();
}

}  // namespace selftest
