// A stand-in for cuBLAS on the stand-in driver (tests/cuda_standin): products of f32 matrices as ops of its streams,
// run on the CPU, with what they read and write told to the race checker. It has what examples/cpp_trainer calls, and
// refuses what cuBLAS refuses.
//
// A program that cannot ask the stand-in driver for what it found hears of it here: the last handle that is destroyed
// prints it and ends the process.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "../cuda_standin/standin.h"

#define CUBLAS_API extern "C" __attribute__((visibility("default")))

namespace {

// cublasStatus_t
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };

struct Handle {
  void *context; // that it was made in
  void *stream = nullptr;
};

// Of the driver. The program has loaded it, perhaps for itself alone.
struct Driver {
  decltype(&standin_enqueue) enqueue = nullptr;
  decltype(&standin_report) report = nullptr;
  int (*current_context)(void **context) = nullptr;

  Driver() {
    void *const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return;
    enqueue = reinterpret_cast<decltype(enqueue)>(dlsym(library, "standin_enqueue"));
    report = reinterpret_cast<decltype(report)>(dlsym(library, "standin_report"));
    current_context = reinterpret_cast<decltype(current_context)>(dlsym(library, "cuCtxGetCurrent"));
  }

  // This thread's context; nullptr if there is none.
  void *context() const {
    void *context = nullptr;
    return current_context != nullptr && current_context(&context) == 0 ? context : nullptr;
  }
};

const Driver &driver() {
  static const Driver driver;
  return driver;
}

std::mutex mutex;
std::set<Handle *> handles;

// A handle that lives and whose context is this thread's.
Handle *find(void *handle) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = handles.find(static_cast<Handle *>(handle));
  return found != handles.end() && (*found)->context == driver().context() ? *found : nullptr;
}

// Column-major, as cuBLAS has it: element (i, j) is start[i + j stride].
struct Matrix {
  const float *start;
  int stride;
  bool is_transposed;

  float at(int row, int column) const {
    const auto [i, j] = is_transposed ? std::pair(column, row) : std::pair(row, column);
    return start[i + static_cast<int64_t>(j) * stride];
  }

  // Of the matrix as it lies in memory, which has this many columns and rows in them.
  static uint64_t num_bytes(int rows, int columns, int stride) {
    return sizeof(float) * (static_cast<uint64_t>(columns - 1) * static_cast<uint64_t>(stride) +
                            static_cast<uint64_t>(rows));
  }
};

struct Product {
  Matrix a, b;
  float *c;
  int c_stride, rows, columns, depth;
  float alpha, beta;

  static void run(void *self) {
    const Product &p = *static_cast<Product *>(self);
    for (int column = 0; column < p.columns; ++column) {
      for (int row = 0; row < p.rows; ++row) {
        float sum = 0.0f;
        for (int k = 0; k < p.depth; ++k) sum += p.a.at(row, k) * p.b.at(k, column);
        float &to = p.c[row + static_cast<int64_t>(column) * p.c_stride];
        to = p.beta == 0.0f ? p.alpha * sum : p.alpha * sum + p.beta * to;
      }
    }
  }

  static void drop(void *self) { delete static_cast<Product *>(self); }
};

standin_access access(const float *start, uint64_t num_bytes, bool is_write) {
  return {reinterpret_cast<uint64_t>(start), num_bytes, is_write ? 1u : 0u, 0};
}

}  // namespace

CUBLAS_API int cublasCreate_v2(void **handle) {
  if (handle == nullptr) return INVALID_VALUE;
  if (driver().enqueue == nullptr || driver().context() == nullptr) return NOT_INITIALIZED;
  const std::lock_guard<std::mutex> lock(mutex);
  *handle = *handles.insert(new Handle{driver().context()}).first;
  return SUCCESS;
}

CUBLAS_API int cublasDestroy_v2(void *handle) {
  Handle *const found = find(handle);
  if (found == nullptr) return NOT_INITIALIZED;
  const std::lock_guard<std::mutex> lock(mutex);
  handles.erase(found);
  delete found;
  if (!handles.empty()) return SUCCESS;
  std::vector<char> text(1 << 14);
  if (driver().report(text.data(), text.size()) > 0) {
    std::fprintf(stderr, "cublas_standin: the stand-in driver found:\n%s\n", text.data());
    std::abort();
  }
  return SUCCESS;
}

CUBLAS_API int cublasSetStream_v2(void *handle, void *stream) {
  Handle *const found = find(handle);
  if (found == nullptr) return NOT_INITIALIZED;
  found->stream = stream;
  return SUCCESS;
}

// c [rows, columns] = alpha op(a) op(b) + beta c
CUBLAS_API int cublasSgemm_v2(void *handle, int a_op, int b_op, int rows, int columns, int depth, const float *alpha,
                              const float *a, int a_stride, const float *b, int b_stride, const float *beta, float *c,
                              int c_stride) {
  const Handle *const found = find(handle);
  if (found == nullptr) return NOT_INITIALIZED;
  if (rows < 0 || columns < 0 || depth < 0 || a_op < 0 || a_op > 2 || b_op < 0 || b_op > 2) return INVALID_VALUE;
  if (rows == 0 || columns == 0) return SUCCESS;
  const int a_rows = a_op == 0 ? rows : depth, a_columns = a_op == 0 ? depth : rows;
  const int b_rows = b_op == 0 ? depth : columns, b_columns = b_op == 0 ? columns : depth;
  if (alpha == nullptr || beta == nullptr || c == nullptr || c_stride < rows) return INVALID_VALUE;
  if (a_stride < a_rows || b_stride < b_rows || (depth > 0 && (a == nullptr || b == nullptr))) return INVALID_VALUE;
  std::vector<standin_access> accesses;
  if (depth > 0) {
    accesses.push_back(access(a, Matrix::num_bytes(a_rows, a_columns, a_stride), false));
    accesses.push_back(access(b, Matrix::num_bytes(b_rows, b_columns, b_stride), false));
  }
  accesses.push_back(access(c, Matrix::num_bytes(rows, columns, c_stride), true));
  auto *const product = new Product{{a, a_stride, a_op != 0}, {b, b_stride, b_op != 0}, c,      c_stride, rows,
                                    columns,                  depth,                    *alpha, *beta};
  if (driver().enqueue(found->stream, "sgemm", nullptr, Product::run, Product::drop, product, accesses.data(),
                       accesses.size()) != 0) {
    delete product;
    return EXECUTION_FAILED;
  }
  return SUCCESS;
}
