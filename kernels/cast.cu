// Between f32 and bf16. Launch: one dimension, a thread for each number.
#include "prelude.h"

// Each bf16 is an f32.
extern "C" __global__ void cast_to_f32(const bf16 *in, float *out, u64 count) {
  const u64 i = element();
  if (i < count) out[i] = to_float(in[i]);
}

// The nearest bf16.
extern "C" __global__ void cast_to_bf16(const float *in, bf16 *out, u64 count) {
  const u64 i = element();
  if (i < count) set(out[i], in[i]);
}
