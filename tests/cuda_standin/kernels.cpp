// The project's kernels, from the same text that makes their PTX, as the stand-in runs and checks them.

// The stand-in is compiled for debugging; a step of a model would take minutes so.
#pragma GCC optimize("O2")

#include "kernel_shim.h"

#include "../../kernels/attention.cu"
#include "../../kernels/bench.cu"
#include "../../kernels/cast.cu"
#include "../../kernels/elementwise.cu"
#include "../../kernels/ends.cu"
#include "../../kernels/experts.cu"
#include "../../kernels/gemm.cu"
#include "../../kernels/norm.cu"

// For each kernel a function of its name and parameters says what a launch reads and writes: all that it may touch.
// What is read to be changed counts as written.
namespace accesses {

using standin::Accesses;

void attention_weights(Accesses &at, const float *qkv, float *weights, float, u32 tokens, u32 sequence, u32 heads,
                       u32 head_size) {
  at.reads(qkv, u64{3} * tokens * heads * head_size);
  at.writes(weights, u64{tokens} * heads * sequence);
}

void attention_mix(Accesses &at, const float *qkv, const float *weights, float *mixed, u32 tokens, u32 sequence,
                   u32 heads, u32 head_size) {
  at.reads(qkv, u64{3} * tokens * heads * head_size);
  at.reads(weights, u64{tokens} * heads * sequence);
  at.writes(mixed, u64{tokens} * heads * head_size);
}

void attention_score_grad(Accesses &at, const float *qkv, const float *weights, const float *mixed_grad,
                          float *score_grad, float, u32 tokens, u32 sequence, u32 heads, u32 head_size) {
  at.reads(qkv, u64{3} * tokens * heads * head_size);
  at.reads(weights, u64{tokens} * heads * sequence);
  at.reads(mixed_grad, u64{tokens} * heads * head_size);
  at.writes(score_grad, u64{tokens} * heads * sequence);
}

void attention_qkv_grad(Accesses &at, const float *qkv, const float *weights, const float *mixed_grad,
                        const float *score_grad, float *qkv_grad, u32 tokens, u32 sequence, u32 heads,
                        u32 head_size) {
  at.reads(qkv, u64{3} * tokens * heads * head_size);
  at.reads(weights, u64{tokens} * heads * sequence);
  at.reads(mixed_grad, u64{tokens} * heads * head_size);
  at.reads(score_grad, u64{tokens} * heads * sequence);
  at.writes(qkv_grad, u64{3} * tokens * heads * head_size);
}

void spin(Accesses &, u64) {}

void mix(Accesses &at, const u32 *a, const u32 *b, u32 *out, u32, u64 count) {
  at.reads(a, count);
  at.reads(b, count);
  at.writes(out, count);
}

void cast_to_f32(Accesses &at, const bf16 *in, float *out, u64 count) {
  at.reads(in, count);
  at.writes(out, count);
}

void cast_to_bf16(Accesses &at, const float *in, bf16 *out, u64 count) {
  at.reads(in, count);
  at.writes(out, count);
}

void fill_f32(Accesses &at, float *out, float, u64 count) { at.writes(out, count); }

void copy_f32(Accesses &at, const float *in, float *out, u64 count) {
  at.reads(in, count);
  at.writes(out, count);
}

void add_f32(Accesses &at, const float *a, const float *b, float *out, u64 count) {
  at.reads(a, count);
  at.reads(b, count);
  at.writes(out, count);
}

void axpy_f32(Accesses &at, float, const float *x, float *y, u64 count) {
  at.reads(x, count);
  at.writes(y, count);
}

void silu(Accesses &at, const float *x, float *out, u64 count) {
  at.reads(x, count);
  at.writes(out, count);
}

void silu_backward(Accesses &at, const float *x, const float *out_grad, float *x_grad, u64 count) {
  at.reads(x, count);
  at.reads(out_grad, count);
  at.writes(x_grad, count);
}

void adam(Accesses &at, float *params, const float *grads, float *first, float *second, float, float, float, float,
          float, float, u64 count) {
  at.writes(params, count);
  at.reads(grads, count);
  at.writes(first, count);
  at.writes(second, count);
}

void embedding(Accesses &at, const u8 *bytes, const float *by_byte, const float *by_position, float *out, u32 tokens,
               u32 sequence, u32 width) {
  at.reads(bytes, tokens);
  at.reads(by_byte, width);  // at least; which rows the bytes say, and how many there are is not said
  at.reads(by_position, u64{sequence} * width);
  at.writes(out, u64{tokens} * width);
}

void embedding_byte_grad(Accesses &at, const u8 *bytes, const float *out_grad, float *byte_grad, u32 tokens,
                         u32 vocabulary, u32 width) {
  at.reads(bytes, tokens);
  at.reads(out_grad, u64{tokens} * width);
  at.writes(byte_grad, u64{vocabulary} * width);
}

void embedding_position_grad(Accesses &at, const float *out_grad, float *position_grad, u32 tokens, u32 sequence,
                             u32 width) {
  at.reads(out_grad, u64{tokens} * width);
  at.writes(position_grad, u64{sequence} * width);
}

void cross_entropy(Accesses &at, float *logits, const u8 *targets, float *losses, u32 tokens, u32 vocabulary) {
  at.writes(logits, u64{tokens} * vocabulary);
  at.reads(targets, tokens);
  at.writes(losses, tokens);
}

void add_mean(Accesses &at, const float *losses, double *sum, u32 count) {
  at.reads(losses, count);
  at.writes(sum, 1);
}

void route(Accesses &at, const float *scores, u32 *choices, float *weights, float *probabilities, u32 tokens,
           u32 experts) {
  at.reads(scores, u64{tokens} * experts);
  at.writes(choices, u64{VISITS_PER_TOKEN} * tokens);
  at.writes(weights, u64{VISITS_PER_TOKEN} * tokens);
  at.writes(probabilities, u64{tokens} * experts);
}

void expert_queues(Accesses &at, const u32 *choices, u32 *queue, u32 *offsets, u64 *loads, u32 visits, u32 experts) {
  at.reads(choices, visits);
  at.writes(queue, visits);
  at.writes(offsets, u64{experts} + 1);
  at.writes(loads, experts);
}

void expert_product(Accesses &at, const float *in, const float *w, const u32 *choices, float *out, u32 visits,
                    u32 visits_per_row, u32 columns, u32 depth, u32 w_row, u32 w_column, u64) {
  at.reads(in, u64{visits} / visits_per_row * depth);
  at.matrix(false, w, depth, columns, w_row, w_column);  // at least: how many experts there are is not said
  at.reads(choices, visits);
  at.writes(out, u64{visits} * columns);
}

void expert_weight_grad(Accesses &at, const float *in, const float *out_grad, const u32 *queue, const u32 *offsets,
                        float *w_grad, u32 experts, u32, u32 columns, u32 depth, u64 w_expert) {
  at.reads(in, depth), at.reads(out_grad, columns), at.reads(queue, 1);  // at least: visits are counted on the device
  at.reads(offsets, u64{experts} + 1);
  for (u64 expert = 0; expert < experts; ++expert) at.writes(w_grad + expert * w_expert, u64{depth} * columns);
}

void combine(Accesses &at, const float *answers, const float *weights, float *out, u32 tokens, u32 width) {
  at.reads(answers, u64{VISITS_PER_TOKEN} * tokens * width);
  at.reads(weights, u64{VISITS_PER_TOKEN} * tokens);
  at.writes(out, u64{tokens} * width);
}

void combine_backward(Accesses &at, const float *answers, const float *weights, const float *out_grad,
                      float *answer_grad, float *weight_grad, u32 visits, u32 width) {
  at.reads(answers, u64{visits} * width);
  at.reads(weights, visits);
  at.reads(out_grad, u64{visits} / VISITS_PER_TOKEN * width);
  at.writes(answer_grad, u64{visits} * width);
  at.writes(weight_grad, visits);
}

void sum_visits(Accesses &at, const float *by_visit, float *out, u32 tokens, u32 width) {
  at.reads(by_visit, u64{VISITS_PER_TOKEN} * tokens * width);
  at.writes(out, u64{tokens} * width);
}

void route_backward(Accesses &at, const float *probabilities, const u32 *choices, const float *weights,
                    const float *weight_grad, const u32 *offsets, float *score_grad, float, u32 tokens, u32 experts) {
  at.reads(probabilities, u64{tokens} * experts);
  at.reads(choices, u64{VISITS_PER_TOKEN} * tokens);
  at.reads(weights, u64{VISITS_PER_TOKEN} * tokens);
  at.reads(weight_grad, u64{VISITS_PER_TOKEN} * tokens);
  at.reads(offsets, u64{experts} + 1);
  at.writes(score_grad, u64{tokens} * experts);
}

template <class Number>
void gemm(Accesses &at, const Number *a, const Number *b, Number *c, u32 rows, u32 columns, u32 depth, u32 a_row,
          u32 a_column, u32 b_row, u32 b_column, u32 c_row, u64 a_batch, u64 b_batch, u64 c_batch, float, float) {
  for (u64 z = 0; z < gridDim.z; ++z) {
    at.matrix(false, a + z * a_batch, rows, depth, a_row, a_column);
    at.matrix(false, b + z * b_batch, depth, columns, b_row, b_column);
    at.matrix(true, c + z * c_batch, rows, columns, c_row, 1);
  }
}

constexpr auto gemm_f32 = gemm<float>;
constexpr auto gemm_bf16 = gemm<bf16>;

void rmsnorm(Accesses &at, const float *x, const float *gain, float *normalized, float *scales, float *out, u32 rows,
             u32 columns) {
  at.reads(x, u64{rows} * columns);
  at.reads(gain, columns);
  at.writes(normalized, u64{rows} * columns);
  at.writes(scales, rows);
  at.writes(out, u64{rows} * columns);
}

void rmsnorm_backward(Accesses &at, const float *normalized, const float *scales, const float *gain,
                      const float *out_grad, float *x_grad, u32 rows, u32 columns) {
  at.reads(normalized, u64{rows} * columns);
  at.reads(scales, rows);
  at.reads(gain, columns);
  at.reads(out_grad, u64{rows} * columns);
  at.writes(x_grad, u64{rows} * columns);
}

void rmsnorm_gain_grad(Accesses &at, const float *normalized, const float *out_grad, float *gain_grad, u32 rows,
                       u32 columns) {
  at.reads(normalized, u64{rows} * columns);
  at.reads(out_grad, u64{rows} * columns);
  at.writes(gain_grad, columns);
}

}  // namespace accesses

#define KERNEL(name) standin::Shim<::name, accesses::name>::add(#name)

// While the library is loaded: before anybody can ask a module for a kernel.
[[maybe_unused]] static const bool are_registered = [] {
  KERNEL(attention_weights);
  KERNEL(attention_mix);
  KERNEL(attention_score_grad);
  KERNEL(attention_qkv_grad);
  KERNEL(spin);
  KERNEL(mix);
  KERNEL(cast_to_f32);
  KERNEL(cast_to_bf16);
  KERNEL(fill_f32);
  KERNEL(copy_f32);
  KERNEL(add_f32);
  KERNEL(axpy_f32);
  KERNEL(silu);
  KERNEL(silu_backward);
  KERNEL(adam);
  KERNEL(embedding);
  KERNEL(embedding_byte_grad);
  KERNEL(embedding_position_grad);
  KERNEL(cross_entropy);
  KERNEL(add_mean);
  KERNEL(route);
  KERNEL(expert_queues);
  KERNEL(expert_product);
  KERNEL(expert_weight_grad);
  KERNEL(combine);
  KERNEL(combine_backward);
  KERNEL(sum_visits);
  KERNEL(route_backward);
  KERNEL(gemm_f32);
  KERNEL(gemm_bf16);
  KERNEL(rmsnorm);
  KERNEL(rmsnorm_backward);
  KERNEL(rmsnorm_gain_grad);
  return true;
}();
