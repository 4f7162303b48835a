// Kernels that stand for work: one that only takes time, one whose result shows what it read.
#include "prelude.h"

// Every thread is busy until `nanoseconds` have passed.
extern "C" __global__ void spin(u64 nanoseconds) {
  const u64 start = clock_ns();
  while (clock_ns() - start < nanoseconds) {
  }
}

// Every bit of the result depends on all bits of `x`: the last steps of MurmurHash3's 32-bit hash.
static __device__ inline u32 scramble(u32 x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// A thread for each number: out = scramble(scramble(scramble(seed + i) + a) + b). Absent inputs (NULL) count as
// zeros; `out` may be one of them. Whoever reads the wrong tensor, or too early, gets another result.
extern "C" __global__ void mix(const u32 *a, const u32 *b, u32 *out, u32 seed, u64 count) {
  const u64 i = element();
  if (i >= count) return;
  u32 x = scramble(seed + static_cast<u32>(i));
  x = scramble(x + (a == nullptr ? 0u : a[i]));
  out[i] = scramble(x + (b == nullptr ? 0u : b[i]));
}
