// A block on a device: block.hpp, part for part, as kernels and products that are enqueued.
//
// What an expert gets depends on the router, which the host does not ask: the kernels find each visit's expert
// themselves, so that what is enqueued is always the same. "By visit" here is in the order of tokens.
#pragma once

#include <cstdint>

#include "../shape.hpp"
#include "queue.hpp"

namespace trainer::cuda {

// What a block keeps of a micro-batch, in device memory.
struct BlockBuffers {
  // `take` gives room for so many 4-byte numbers.
  template <class Take>
  BlockBuffers(const Shape &s, const Take &take)
      : normalized(take(s.num_values())), scales(take(s.num_tokens)), rows(take(s.num_values())),
        scores(take(scores_of(s))), probabilities(take(scores_of(s))), weights(take(s.num_visits())),
        shared_in(take(hidden_of(s))), shared_out(take(hidden_of(s))), answer(take(s.num_values())),
        choices(take(s.num_visits())), queue(take(s.num_visits())), ends(take(s.num_experts + 1)),
        hidden_in(take(2 * hidden_of(s))), hidden_out(take(2 * hidden_of(s))), answers(take(2 * s.num_values())),
        mixed(take(s.num_values())), own_output(take(s.num_values())), answer_grads(take(2 * s.num_values())),
        weight_grads(take(s.num_visits())), hidden_grads(take(2 * hidden_of(s))),
        visit_grads(take(2 * s.num_values())), score_grads(take(scores_of(s))), shared_grads(take(hidden_of(s))),
        row_grads(take(s.num_values())), own_input_grad(take(s.num_values())) {}

  static size_t scores_of(const Shape &s) { return size_t{s.num_tokens} * s.num_experts; }
  static size_t hidden_of(const Shape &s) { return size_t{s.num_tokens} * s.hidden; }

  Address input = 0, output = 0, output_grad = 0, input_grad = 0;
  Address normalized, scales, rows, scores, probabilities, weights, shared_in, shared_out, answer;
  Address choices, queue, ends; // u32: of each visit; the visits by expert; where each expert's begin
  Address hidden_in, hidden_out, answers, mixed, own_output;
  Address answer_grads, weight_grads, hidden_grads, visit_grads, score_grads, shared_grads, row_grads, own_input_grad;
};

class CudaBlock {
public:
  // `parameters`, `grads`: the stage's. `loads`: u64 for each expert, added to.
  CudaBlock(const Shape &shape, const BlockLayout &layout, Address parameters, Address grads, Address loads)
      : shape_(shape), at_(layout), parameters_(parameters), grads_(grads), loads_(loads) {}

  void dense_f(const Queue &q, const BlockBuffers &b) const {
    const uint32_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    const uint64_t count = uint64_t{tokens} * hidden;
    q.launch("rmsnorm", tokens, b.input, weight(at_.gain), b.normalized, b.scales, b.rows, tokens, width);
    q.multiply(b.rows, weight(at_.router), b.scores, tokens, shape_.num_experts, width);
    q.multiply(b.rows, weight(at_.shared_up), b.shared_in, tokens, hidden, width);
    q.launch("silu", count, b.shared_in, b.shared_out, count);
    q.multiply(b.shared_out, weight(at_.shared_down), b.answer, tokens, width, hidden);
    q.launch("route", tokens, b.scores, b.choices, b.weights, b.probabilities, tokens, shape_.num_experts);
  }

  void dispatch_f(const Queue &q, const BlockBuffers &b) const {
    q.launch("expert_queues", shape_.num_experts, b.choices, b.queue, b.ends, loads_, shape_.num_visits(),
             shape_.num_experts);
  }

  void experts_f(const Queue &q, const BlockBuffers &b) const {
    const uint64_t count = uint64_t{shape_.num_visits()} * shape_.hidden;
    product(q, b.rows, visits_per_token, b.choices, at_.up, As::is, b.hidden_in, shape_.hidden, shape_.width);
    q.launch("silu", count, b.hidden_in, b.hidden_out, count);
    product(q, b.hidden_out, 1, b.choices, at_.down, As::is, b.answers, shape_.width, shape_.hidden);
  }

  void combine_f(const Queue &q, const BlockBuffers &b) const {
    q.launch("combine", shape_.num_values(), b.answers, b.weights, b.mixed, shape_.num_tokens, shape_.width);
    q.add(b.input, b.answer, b.output, shape_.num_values());
    q.add(b.output, b.mixed, b.output, shape_.num_values());
  }

  void combine_b(const Queue &q, const BlockBuffers &b) const {
    q.launch("combine_backward", shape_.num_visits(), b.answers, b.weights, b.output_grad, b.answer_grads,
             b.weight_grads, shape_.num_visits(), shape_.width);
  }

  void experts_b(const Queue &q, const BlockBuffers &b) const {
    const uint64_t count = uint64_t{shape_.num_visits()} * shape_.hidden;
    product(q, b.answer_grads, 1, b.choices, at_.down, As::transposed, b.hidden_grads, shape_.hidden, shape_.width);
    q.launch("silu_backward", count, b.hidden_in, b.hidden_grads, b.hidden_grads, count);
    product(q, b.hidden_grads, 1, b.choices, at_.up, As::transposed, b.visit_grads, shape_.width, shape_.hidden);
  }

  void experts_w(const Queue &q, const BlockBuffers &b) const {
    expert_grad(q, b, b.rows, visits_per_token, b.hidden_grads, at_.up, shape_.hidden, shape_.width);
    expert_grad(q, b, b.hidden_out, 1, b.answer_grads, at_.down, shape_.width, shape_.hidden);
  }

  void dispatch_b(const Queue &q, const BlockBuffers &b) const {
    q.launch("sum_visits", shape_.num_values(), b.visit_grads, b.row_grads, shape_.num_tokens, shape_.width);
  }

  void dense_b(const Queue &q, const BlockBuffers &b) const {
    const uint32_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    const uint64_t count = uint64_t{tokens} * hidden;
    constexpr float balance = 0; // the kernel knows a loss that evens out the experts' loads, which this model has not
    q.launch("route_backward", tokens, b.probabilities, b.choices, b.weights, b.weight_grads, b.ends, b.score_grads,
             balance, tokens, shape_.num_experts);
    q.multiply_by_transposed(b.score_grads, weight(at_.router), b.row_grads, tokens, width, shape_.num_experts, true);
    q.multiply_by_transposed(b.output_grad, weight(at_.shared_down), b.shared_grads, tokens, hidden, width, false);
    q.launch("silu_backward", count, b.shared_in, b.shared_grads, b.shared_grads, count);
    q.multiply_by_transposed(b.shared_grads, weight(at_.shared_up), b.row_grads, tokens, width, hidden, true);
    q.launch("rmsnorm_backward", tokens, b.normalized, b.scales, weight(at_.gain), b.row_grads, b.input_grad, tokens,
             width);
    q.add(b.input_grad, b.output_grad, b.input_grad, shape_.num_values());
  }

  void dense_w(const Queue &q, const BlockBuffers &b) const {
    const uint32_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    q.add_transposed_product(b.rows, b.score_grads, grad(at_.router), tokens, shape_.num_experts, width);
    q.add_transposed_product(b.rows, b.shared_grads, grad(at_.shared_up), tokens, hidden, width);
    q.add_transposed_product(b.shared_out, b.output_grad, grad(at_.shared_down), tokens, width, hidden);
    q.launch("rmsnorm_gain_grad", width, b.normalized, b.row_grads, grad(at_.gain), tokens, width);
  }

private:
  Address weight(size_t offset) const { return parameters_ + offset * sizeof(float); }
  Address grad(size_t offset) const { return grads_ + offset * sizeof(float); }
  uint64_t matrix() const { return uint64_t{shape_.width} * shape_.hidden; } // from an expert's to the next one's

  // out = in w for each visit, with its expert's w [depth, columns], or [columns, depth] transposed.
  void product(const Queue &q, Address in, uint32_t visits_per_row, Address choices, size_t w, As as, Address out,
               uint32_t columns, uint32_t depth) const {
    const uint32_t row = as == As::is ? columns : 1, column = as == As::is ? 1 : depth;
    q.launch("expert_product", uint64_t{shape_.num_visits()} * columns, in, weight(w), choices, out,
             shape_.num_visits(), visits_per_row, columns, depth, row, column, matrix());
  }

  void expert_grad(const Queue &q, const BlockBuffers &b, Address in, uint32_t visits_per_row, Address out_grad,
                   size_t w, uint32_t columns, uint32_t depth) const {
    q.launch("expert_weight_grad", shape_.num_experts * matrix(), in, out_grad, b.queue, b.ends, grad(w),
             shape_.num_experts, visits_per_row, columns, depth, matrix());
  }

  Shape shape_;
  BlockLayout at_;
  Address parameters_, grads_, loads_;
};

} // namespace trainer::cuda
