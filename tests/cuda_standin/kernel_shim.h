// CUDA C for a C++ compiler: what kernels/*.cu use of the language, and a launch as a loop over blocks and threads.
//
// A thread runs to its end before the next starts, so that kernels with barriers cannot run here. Threads that write
// what others read show up as wrong numbers, in the order of this loop only; memory beyond an allocation is found by
// its guards.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "standin.h"

#define __global__
#define __device__

struct KernelIndex {
  uint32_t x, y, z;
};

// Threads of the stand-in may run kernels at once: each has its own place.
inline thread_local KernelIndex threadIdx, blockIdx, blockDim, gridDim;

inline float __uint_as_float(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline uint32_t __float_as_uint(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

// Kernels that look at the clock wait: they leave the core to others meanwhile.
inline unsigned long long clock_ns() {
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<unsigned long long>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

namespace standin {

// Collects what a launch reads and writes. Null pointers are skipped.
class Accesses {
 public:
  template <class Number>
  void reads(const Number *start, uint64_t count) {
    add(start, count, false);
  }

  template <class Number>
  void writes(const Number *start, uint64_t count) {
    add(start, count, true);
  }

  // A matrix with gaps: its rows, or its columns where these lie together.
  template <class Number>
  void matrix(bool is_write, const Number *start, uint64_t rows, uint64_t columns, uint64_t row, uint64_t column) {
    if (rows == 0 || columns == 0) return;
    if (column > row) std::swap(rows, columns), std::swap(row, column);
    if (column != 1 || row <= columns) return add(start, (rows - 1) * row + (columns - 1) * column + 1, is_write);
    for (uint64_t i = 0; i < rows; ++i) add(start + i * row, columns, is_write);
  }

  size_t copy_to(standin_access *out, size_t capacity) const {
    std::copy_n(list_.begin(), std::min(capacity, list_.size()), out);
    return list_.size();
  }

 private:
  template <class Number>
  void add(const Number *start, uint64_t count, bool is_write) {
    if (start == nullptr || count == 0) return;
    list_.push_back({reinterpret_cast<uint64_t>(start), count * sizeof(Number), is_write ? 1u : 0u, 0});
  }

  std::vector<standin_access> list_;
};

// Every thread of a launch, one after the other.
template <class Thread>
void for_each_thread(const uint32_t grid[3], const uint32_t block[3], Thread thread) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x) thread();
}

// A kernel, and a function of the same parameters that says what it reads and writes.
template <auto kernel, auto describe>
struct Shim;

template <class... Parameters, void (*kernel)(Parameters...), void (*describe)(Accesses &, Parameters...)>
struct Shim<kernel, describe> {
  static void add(const char *name) {
    static const size_t sizes[] = {sizeof(Parameters)...};
    standin_register_kernel(name, run, accesses, sizes, sizeof...(Parameters));
  }

 private:
  template <class Parameter>
  static Parameter value(void *parameter) {
    Parameter value;
    std::memcpy(&value, parameter, sizeof value);
    return value;
  }

  template <class Function, size_t... i>
  static void apply(Function function, void **params, std::index_sequence<i...>) {
    function(value<Parameters>(params[i])...);
  }

  static void run(const uint32_t grid[3], const uint32_t block[3], uint32_t, void **params) {
    auto all = [&](Parameters... values) { for_each_thread(grid, block, [&] { kernel(values...); }); };
    apply(all, params, std::index_sequence_for<Parameters...>());
  }

  static size_t accesses(const uint32_t grid[3], const uint32_t *, void **params, standin_access *out,
                         size_t capacity) {
    gridDim = {grid[0], grid[1], grid[2]};
    Accesses accesses;
    auto ask = [&](Parameters... values) { describe(accesses, values...); };
    apply(ask, params, std::index_sequence_for<Parameters...>());
    return accesses.copy_to(out, capacity);
  }
};

}  // namespace standin
