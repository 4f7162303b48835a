// Where a stage enqueues its work: products by cuBLAS, everything else by the repository's kernels (kernels/*.cu).
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "cublas.hpp"
#include "driver.hpp"

namespace trainer::cuda {

class Queue {
public:
  // cuBLAS has the stream that it was made with: products go there, wherever the kernels go.
  Queue(Device &device, const Cublas &cublas, void *stream) : device_(device), cublas_(cublas), stream_(stream) {}

  // The same on another stream.
  Queue on(void *stream) const { return Queue(device_, cublas_, stream); }
  void *stream() const { return stream_; }

  // A kernel with a thread for each of `count`. The arguments are the kernel's, in its order and of its types.
  template <class... Arguments>
  void launch(const char *kernel, uint64_t count, Arguments... arguments) const {
    static_assert((is_parameter<Arguments>() && ...), "kernels take addresses, u32, u64 and f32");
    constexpr uint64_t block = 128;
    void *pointers[] = {&arguments...};
    const auto grid = static_cast<unsigned>((count + block - 1) / block);
    const Driver &driver = device_.driver;
    driver.check(driver.launch(device_.kernel(kernel), grid, 1, 1, block, 1, 1, 0, stream_, pointers, nullptr), kernel);
  }

  // out [rows, columns] = a [rows, depth] b [depth, columns]
  void multiply(Address a, Address b, Address out, uint32_t rows, uint32_t columns, uint32_t depth) const {
    cublas_.multiply(a, As::is, b, As::is, out, rows, columns, depth, false);
  }
  // The same with b [columns, depth] transposed, set or added.
  void multiply_by_transposed(Address a, Address b, Address out, uint32_t rows, uint32_t columns, uint32_t depth,
                              bool adds) const {
    cublas_.multiply(a, As::is, b, As::transposed, out, rows, columns, depth, adds);
  }
  // out [depth, columns] += a^T b, a [rows, depth], b [rows, columns]
  void add_transposed_product(Address a, Address b, Address out, uint32_t rows, uint32_t columns,
                              uint32_t depth) const {
    cublas_.multiply(a, As::transposed, b, As::is, out, depth, columns, rows, true);
  }

  void add(Address a, Address b, Address out, uint64_t count) const { launch("add_f32", count, a, b, out, count); }

private:
  template <class Argument>
  static constexpr bool is_parameter() {
    return std::is_same_v<Argument, Address> || std::is_same_v<Argument, uint32_t> ||
           std::is_same_v<Argument, uint64_t> || std::is_same_v<Argument, float>;
  }

  Device &device_;
  const Cublas &cublas_;
  void *stream_;
};

} // namespace trainer::cuda
