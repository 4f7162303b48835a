// cuBLAS: products of row-major matrices, through functions declared by hand.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "driver.hpp"
#include "library.hpp"

namespace trainer::cuda {

struct CublasLibrary {
  CublasLibrary()
      : library({"libcublas.so.13", "libcublas.so.12", "libcublas.so"},
                "install cuBLAS 12 or newer, or name its folder in LD_LIBRARY_PATH") {
    library.find("cublasCreate_v2", create);
    library.find("cublasDestroy_v2", destroy);
    library.find("cublasSetStream_v2", set_stream);
    library.find("cublasSgemm_v2", sgemm);
  }

  Library library;
  int (*create)(void **handle);
  int (*destroy)(void *handle);
  int (*set_stream)(void *handle, void *stream);
  int (*sgemm)(void *handle, int a_op, int b_op, int rows, int columns, int depth, const float *alpha, const float *a,
               int a_stride, const float *b, int b_stride, const float *beta, float *c, int c_stride);
};

enum class As { is, transposed }; // how an operand is taken

// A handle, of one stream and one thread at a time. The device's context is current when it is made and used.
class Cublas {
public:
  Cublas(const CublasLibrary &library, const Stream &stream) : library_(library) {
    check(library_.create(&handle_), "cublasCreate");
    const int status = library_.set_stream(handle_, stream.get());
    if (status != 0) library_.destroy(handle_);
    check(status, "cublasSetStream");
  }
  Cublas(const Cublas &) = delete;
  Cublas &operator=(const Cublas &) = delete;
  ~Cublas() { library_.destroy(handle_); }

  // c [rows, columns] = a b, or c += a b: a is [rows, depth], or transposed [depth, rows]; b likewise. Row-major
  // matrices are cuBLAS's column-major ones transposed, and c^T = b^T a^T.
  void multiply(Address a, As a_as, Address b, As b_as, Address c, uint32_t rows, uint32_t columns, uint32_t depth,
                bool adds) const {
    const float alpha = 1, beta = adds ? 1.0f : 0.0f;
    const uint32_t a_stride = a_as == As::is ? depth : rows, b_stride = b_as == As::is ? columns : depth;
    check(library_.sgemm(handle_, op(b_as), op(a_as), whole(columns), whole(rows), whole(depth), &alpha, pointer(b),
                         whole(b_stride), pointer(a), whole(a_stride), &beta, pointer(c), whole(columns)),
          "cublasSgemm");
  }

private:
  static int op(As as) { return as == As::is ? 0 : 1; } // CUBLAS_OP_N, CUBLAS_OP_T
  static int whole(uint32_t size) { return static_cast<int>(size); }
  static float *pointer(Address address) { return reinterpret_cast<float *>(static_cast<uintptr_t>(address)); }

  static void check(int status, const char *call) {
    if (status != 0) throw std::runtime_error(std::string(call) + ": cublasStatus_t " + std::to_string(status));
  }

  const CublasLibrary &library_;
  void *handle_ = nullptr;
};

} // namespace trainer::cuda
