// What every kernel file starts with: names for integers, bf16 numbers, and which element a thread is at.
//
// The kernels include no header but this one, so that NVRTC needs no toolkit, and take everything else from CUDA C
// itself; tests/cuda_standin/kernel_shim.h gives a C++ compiler the same words.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A bfloat16, as its bits: the upper half of an f32.
struct bf16 {
  u16 bits;
};

static __device__ inline float to_float(float number) { return number; }

static __device__ inline float to_float(bf16 number) { return __uint_as_float(static_cast<u32>(number.bits) << 16); }

static __device__ inline void set(float &to, float number) { to = number; }

// The nearest bfloat16, the even one of two that are as near. Not-a-numbers stay so.
static __device__ inline void set(bf16 &to, float number) {
  const u32 bits = __float_as_uint(number);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  to.bits = static_cast<u16>((is_nan ? bits | 0x400000u : rounded) >> 16);
}

#ifdef __CUDACC__
// The device's clock.
static __device__ inline u64 clock_ns() {
  u64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
#endif

// The element of a one-dimensional launch that this thread computes: those beyond the last have nothing to do.
static __device__ inline u64 element() { return static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; }

// A row of a matrix without gaps.
template <class Number>
static __device__ inline Number *row_of(Number *matrix, u64 row, u32 columns) {
  return matrix + row * columns;
}

static __device__ inline float dot(const float *a, const float *b, u32 count) {
  float sum = 0.0f;
  for (u32 i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

static __device__ inline float sigmoid(float x) { return 1.0f / (expf(-x) + 1.0f); }

// Turns a row of logits into probabilities.
static __device__ inline void softmax(const float *logits, float *probabilities, u32 count) {
  float highest = logits[0];
  for (u32 i = 1; i < count; ++i) highest = fmaxf(highest, logits[i]);
  float sum = 0.0f;
  for (u32 i = 0; i < count; ++i) {
    probabilities[i] = expf(logits[i] - highest);
    sum += probabilities[i];
  }
  for (u32 i = 0; i < count; ++i) probabilities[i] /= sum;
}
