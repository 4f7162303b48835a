// Products of row-major f32 matrices, and the few functions of a row that the model needs. Every sum runs in one fixed
// order, so that the same numbers give the same bits on every rank.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace trainer {

inline float dot(const float *a, const float *b, size_t count) {
  constexpr size_t lanes = 8; // as many sums as a vector register has numbers
  const size_t whole = count - count % lanes;
  float sums[lanes] = {};
  for (size_t i = 0; i < whole; i += lanes) {
    for (size_t lane = 0; lane < lanes; lane++) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  for (size_t i = whole; i < count; i++) sum += a[i] * b[i];
  return sum;
}

// out [rows, columns] = a [rows, depth] b [depth, columns]
inline void multiply(const float *a, const float *b, float *out, size_t rows, size_t columns, size_t depth) {
  for (size_t row = 0; row < rows; row++) {
    float *to = out + row * columns;
    std::fill_n(to, columns, 0.0f);
    for (size_t k = 0; k < depth; k++) {
      const float factor = a[row * depth + k];
      for (size_t i = 0; i < columns; i++) to[i] += factor * b[k * columns + i];
    }
  }
}

enum class Write { set, add };

// out [rows, columns] = a [rows, depth] b^T, b [columns, depth]; or adds it to out.
inline void multiply_by_transposed(const float *a, const float *b, float *out, size_t rows, size_t columns,
                                   size_t depth, Write write) {
  for (size_t row = 0; row < rows; row++) {
    for (size_t i = 0; i < columns; i++) {
      const float product = dot(a + row * depth, b + i * depth, depth);
      float &to = out[row * columns + i];
      to = write == Write::add ? to + product : product;
    }
  }
}

// out [depth, columns] += a^T b, a [rows, depth], b [rows, columns]: what a weight's gradient is.
inline void add_transposed_product(const float *a, const float *b, float *out, size_t rows, size_t columns,
                                   size_t depth) {
  for (size_t row = 0; row < rows; row++) {
    for (size_t k = 0; k < depth; k++) {
      const float factor = a[row * depth + k];
      for (size_t i = 0; i < columns; i++) out[k * columns + i] += factor * b[row * columns + i];
    }
  }
}

inline float sigmoid(float x) { return 1.0f / (std::exp(-x) + 1.0f); }

// out = x sigmoid(x)
inline void silu(const float *x, float *out, size_t count) {
  for (size_t i = 0; i < count; i++) out[i] = x[i] * sigmoid(x[i]);
}

// Turns the gradient for the output into the one for x, in place.
inline void silu_backward(const float *x, float *grad, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const float s = sigmoid(x[i]);
    grad[i] *= s * (1.0f + x[i] * (1.0f - s));
  }
}

// RMSNorm (arXiv 1910.07467): out = x / rms(x) * gain, by row. `normalized` is x / rms(x), `scales` 1 / rms(x).
inline void rmsnorm(const float *x, const float *gain, float *normalized, float *scales, float *out, size_t rows,
                    size_t columns) {
  for (size_t row = 0; row < rows; row++) {
    const float *const from = x + row * columns;
    const float scale = 1.0f / std::sqrt(dot(from, from, columns) / static_cast<float>(columns) + 1e-6f);
    scales[row] = scale;
    for (size_t i = 0; i < columns; i++) {
      normalized[row * columns + i] = from[i] * scale;
      out[row * columns + i] = from[i] * scale * gain[i];
    }
  }
}

// The gradient for x. Its part along x only changes rms(x), which the division takes out again.
inline void rmsnorm_backward(const float *normalized, const float *scales, const float *gain, const float *out_grad,
                             float *x_grad, size_t rows, size_t columns) {
  for (size_t row = 0; row < rows; row++) {
    const float *const n = normalized + row * columns;
    const float *const g = out_grad + row * columns;
    float along = 0;
    for (size_t i = 0; i < columns; i++) along += g[i] * gain[i] * n[i];
    along /= static_cast<float>(columns);
    for (size_t i = 0; i < columns; i++) x_grad[row * columns + i] = (g[i] * gain[i] - n[i] * along) * scales[row];
  }
}

// Adds the gradient for the gain.
inline void rmsnorm_gain_grad(const float *normalized, const float *out_grad, float *gain_grad, size_t rows,
                              size_t columns) {
  for (size_t row = 0; row < rows; row++) {
    for (size_t i = 0; i < columns; i++) gain_grad[i] += normalized[row * columns + i] * out_grad[row * columns + i];
  }
}

} // namespace trainer
