// RMSNorm (arXiv 1910.07467): y = x / rms(x) * gain, by row.
#include "prelude.h"

// A thread for each row. Leaves `normalized`, x / rms(x), and `scales`, 1 / rms(x), for the backward.
extern "C" __global__ void rmsnorm(const float *x, const float *gain, float *normalized, float *scales, float *out,
                                   u32 rows, u32 columns) {
  const u64 row = element();
  if (row >= rows) return;
  x = row_of(x, row, columns);
  normalized = row_of(normalized, row, columns);
  out = row_of(out, row, columns);
  const float scale = 1.0f / sqrtf(dot(x, x, columns) / columns + 1e-6f);
  scales[row] = scale;
  for (u32 i = 0; i < columns; ++i) {
    normalized[i] = x[i] * scale;
    out[i] = normalized[i] * gain[i];
  }
}

// A thread for each row: the gradient for x.
extern "C" __global__ void rmsnorm_backward(const float *normalized, const float *scales, const float *gain,
                                            const float *out_grad, float *x_grad, u32 rows, u32 columns) {
  const u64 row = element();
  if (row >= rows) return;
  normalized = row_of(normalized, row, columns);
  out_grad = row_of(out_grad, row, columns);
  x_grad = row_of(x_grad, row, columns);
  // The part of the gradient along x only changes rms(x), which the division takes out again.
  float along = 0.0f;
  for (u32 i = 0; i < columns; ++i) along += out_grad[i] * gain[i] * normalized[i];
  along /= columns;
  for (u32 i = 0; i < columns; ++i) x_grad[i] = (out_grad[i] * gain[i] - normalized[i] * along) * scales[row];
}

// A thread for each column: adds the gradient for the gain.
extern "C" __global__ void rmsnorm_gain_grad(const float *normalized, const float *out_grad, float *gain_grad,
                                             u32 rows, u32 columns) {
  const u64 column = element();
  if (column >= columns) return;
  float sum = 0.0f;
  for (u32 row = 0; row < rows; ++row) {
    sum += row_of(normalized, row, columns)[column] * row_of(out_grad, row, columns)[column];
  }
  gain_grad[column] += sum;
}
