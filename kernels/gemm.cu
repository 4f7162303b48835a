// Products of matrices with any strides: transposes, parts of matrices, batches.
//
//   c = alpha a b + beta c        [rows, columns] = [rows, depth] [depth, columns]
//
// Element (i, k) of a is a[i a_row + k a_column], and so on; c's columns lie side by side. Matrix z of a batch starts
// at a + z a_batch. With beta 0 c is not read. A sum over depth is f32, runs upwards, and is added to c as a whole.
//
// Launch: blocks (32, 8), one for 128 columns (x), 8 rows (y) and a matrix of the batch (z). A thread makes four
// columns.
#include "prelude.h"

static const u32 COLUMNS_PER_THREAD = 4;

template <class Number>
static __device__ inline void gemm(const Number *a, const Number *b, Number *c, u32 rows, u32 columns, u32 depth,
                                   u32 a_row, u32 a_column, u32 b_row, u32 b_column, u32 c_row, float alpha,
                                   float beta) {
  const u32 row = blockIdx.y * blockDim.y + threadIdx.y;
  const u32 first = (blockIdx.x * blockDim.x + threadIdx.x) * COLUMNS_PER_THREAD;
  if (row >= rows || first >= columns) return;
  a += static_cast<u64>(row) * a_row;
  b += static_cast<u64>(first) * b_column;
  c += static_cast<u64>(row) * c_row + first;
  // Beyond the last column a thread computes the last again, and does not write it.
  const u32 last = columns - 1 - first;
  u64 offsets[COLUMNS_PER_THREAD];
  for (u32 i = 0; i < COLUMNS_PER_THREAD; ++i) offsets[i] = static_cast<u64>(last < i ? last : i) * b_column;
  float sums[COLUMNS_PER_THREAD] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (u32 k = 0; k < depth; ++k) {
    const float factor = to_float(*a);
    for (u32 i = 0; i < COLUMNS_PER_THREAD; ++i) sums[i] += factor * to_float(b[offsets[i]]);
    a += a_column;
    b += b_row;
  }
  for (u32 i = 0; i < COLUMNS_PER_THREAD && i <= last; ++i) {
    const float product = alpha * sums[i];
    set(c[i], beta == 0.0f ? product : product + beta * to_float(c[i]));
  }
}

extern "C" __global__ void gemm_f32(const float *a, const float *b, float *c, u32 rows, u32 columns, u32 depth,
                                    u32 a_row, u32 a_column, u32 b_row, u32 b_column, u32 c_row, u64 a_batch,
                                    u64 b_batch, u64 c_batch, float alpha, float beta) {
  const u64 z = blockIdx.z;
  gemm(a + z * a_batch, b + z * b_batch, c + z * c_batch, rows, columns, depth, a_row, a_column, b_row, b_column,
       c_row, alpha, beta);
}

// The same with bf16 matrices; a number of c is rounded once.
extern "C" __global__ void gemm_bf16(const bf16 *a, const bf16 *b, bf16 *c, u32 rows, u32 columns, u32 depth,
                                     u32 a_row, u32 a_column, u32 b_row, u32 b_column, u32 c_row, u64 a_batch,
                                     u64 b_batch, u64 c_batch, float alpha, float beta) {
  const u64 z = blockIdx.z;
  gemm(a + z * a_batch, b + z * b_batch, c + z * c_batch, rows, columns, depth, a_row, a_column, b_row, b_column,
       c_row, alpha, beta);
}
