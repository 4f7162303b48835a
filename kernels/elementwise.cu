// One number for one thread: sums, copies, SiLU, and the optimizer. Launch: one dimension, a thread for each number.
#include "prelude.h"

extern "C" __global__ void fill_f32(float *out, float value, u64 count) {
  const u64 i = element();
  if (i < count) out[i] = value;
}

extern "C" __global__ void copy_f32(const float *in, float *out, u64 count) {
  const u64 i = element();
  if (i < count) out[i] = in[i];
}

// `out` may be `a` or `b`. The sum does not depend on which of the two is `a`.
extern "C" __global__ void add_f32(const float *a, const float *b, float *out, u64 count) {
  const u64 i = element();
  if (i < count) out[i] = a[i] + b[i];
}

// y += alpha x
extern "C" __global__ void axpy_f32(float alpha, const float *x, float *y, u64 count) {
  const u64 i = element();
  if (i < count) y[i] += alpha * x[i];
}

// out = x sigmoid(x)
extern "C" __global__ void silu(const float *x, float *out, u64 count) {
  const u64 i = element();
  if (i < count) out[i] = x[i] * sigmoid(x[i]);
}

// The gradient for x; `x_grad` may be `out_grad`.
extern "C" __global__ void silu_backward(const float *x, const float *out_grad, float *x_grad, u64 count) {
  const u64 i = element();
  if (i >= count) return;
  const float s = sigmoid(x[i]);
  x_grad[i] = out_grad[i] * (s * (1.0f + x[i] * (1.0f - s)));
}

// Adam (arXiv 1412.6980), algorithm 1: `rate` and `second_scale` make up for moments that start at zero.
extern "C" __global__ void adam(float *params, const float *grads, float *first, float *second, float grad_scale,
                                float rate, float second_scale, float beta_1, float beta_2, float epsilon,
                                u64 count) {
  const u64 i = element();
  if (i >= count) return;
  const float grad = grad_scale * grads[i];
  first[i] = beta_1 * first[i] + (1.0f - beta_1) * grad;
  second[i] = beta_2 * second[i] + (1.0f - beta_2) * grad * grad;
  params[i] -= rate * first[i] / (sqrtf(second_scale * second[i]) + epsilon);
}
