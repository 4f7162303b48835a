// A block: RMSNorm, a shared expert, and two of `num_experts` experts for each token; forward and backward in parts.
//
//   dense_f    normalizes, scores the experts, runs the shared expert      dense_b, dense_w
//   dispatch_f brings each expert the rows that are for it                 dispatch_b
//   experts_f  runs the experts                                            experts_b, experts_w
//   combine_f  brings the answers back, and adds all up                    combine_b
//
// The parts are those that DeepSeek's trace overlaps: where experts live on other ranks, dispatch and combine are what
// communicates. _b is the backward for the input, _w the one for the weights.
#pragma once

#include <cstdint>
#include <vector>

#include "shape.hpp"
#include "tensor.hpp"

namespace trainer {

// What a block keeps of a micro-batch from its F to its W. "By visit" are rows in the order of the visits' experts.
struct BlockState {
  explicit BlockState(const Shape &s)
      : normalized(s.num_values()), scales(s.num_tokens), rows(s.num_values()),
        scores(size_t{s.num_tokens} * s.num_experts), weights(s.num_visits()),
        shared_in(size_t{s.num_tokens} * s.hidden), shared_out(shared_in.size()), answer(s.num_values()),
        choices(s.num_visits()), places(s.num_visits()), ends(s.num_experts + 1),
        gathered(size_t{s.num_visits()} * s.width), hidden_in(size_t{s.num_visits()} * s.hidden),
        hidden_out(hidden_in.size()), answers(gathered.size()), own_output(s.num_values()),
        answer_grads(gathered.size()), weight_grads(s.num_visits()), hidden_grads(hidden_in.size()),
        gathered_grads(gathered.size()), score_grads(scores.size()), shared_grads(shared_in.size()),
        row_grads(s.num_values()), own_input_grad(s.num_values()) {}

  // Of this state, of a neighbour block's, or of the executor.
  const float *input = nullptr, *output_grad = nullptr;
  float *output = nullptr, *input_grad = nullptr;

  std::vector<float> normalized, scales, rows, scores, weights, shared_in, shared_out, answer;
  std::vector<uint32_t> choices; // the expert of each visit
  std::vector<uint32_t> places;  // the row of each visit, by visit
  std::vector<uint32_t> ends;    // expert e has the rows from ends[e] to ends[e + 1]
  std::vector<float> gathered, hidden_in, hidden_out, answers, own_output;
  std::vector<float> answer_grads, weight_grads, hidden_grads, gathered_grads, score_grads, shared_grads, row_grads;
  std::vector<float> own_input_grad;
};

class Block {
public:
  // Block `number` of a stage, whose vectors these are: they outlive it.
  Block(const Shape &shape, const Layout &layout, uint32_t number, const std::vector<float> &parameters,
        std::vector<float> &grads, std::vector<float> &loads)
      : shape_(shape), number_(number), at_(layout.blocks[number]), parameters_(parameters), grads_(grads),
        loads_(loads) {}

  void dense_f(BlockState &b) const {
    const size_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    rmsnorm(b.input, weight(at_.gain), b.normalized.data(), b.scales.data(), b.rows.data(), tokens, width);
    multiply(b.rows.data(), weight(at_.router), b.scores.data(), tokens, shape_.num_experts, width);
    multiply(b.rows.data(), weight(at_.shared_up), b.shared_in.data(), tokens, hidden, width);
    silu(b.shared_in.data(), b.shared_out.data(), b.shared_in.size());
    multiply(b.shared_out.data(), weight(at_.shared_down), b.answer.data(), tokens, width, hidden);
    for (size_t token = 0; token < tokens; token++) route(b, token);
  }

  void dispatch_f(BlockState &b) const {
    uint32_t place = 0;
    for (uint32_t expert = 0; expert < shape_.num_experts; expert++) {
      b.ends[expert] = place;
      for (uint32_t visit = 0; visit < shape_.num_visits(); visit++) {
        if (b.choices[visit] != expert) continue;
        copy_row(b.rows.data(), visit / visits_per_token, b.gathered.data(), place);
        b.places[visit] = place++;
      }
      loads_[size_t{number_} * shape_.num_experts + expert] += static_cast<float>(place - b.ends[expert]);
    }
    b.ends[shape_.num_experts] = place;
  }

  void experts_f(BlockState &b) const {
    const size_t width = shape_.width, hidden = shape_.hidden;
    for_each_expert(b, [&](size_t expert, size_t first, size_t count) {
      const size_t in = first * width, middle = first * hidden, matrix = expert * width * hidden;
      multiply(&b.gathered[in], weight(at_.up) + matrix, &b.hidden_in[middle], count, hidden, width);
      silu(&b.hidden_in[middle], &b.hidden_out[middle], count * hidden);
      multiply(&b.hidden_out[middle], weight(at_.down) + matrix, &b.answers[in], count, width, hidden);
    });
  }

  void combine_f(BlockState &b) const {
    for (size_t token = 0; token < shape_.num_tokens; token++) {
      const size_t visit = visits_per_token * token;
      const float *const first = &b.answers[size_t{b.places[visit]} * shape_.width];
      const float *const second = &b.answers[size_t{b.places[visit + 1]} * shape_.width];
      for (size_t i = 0; i < shape_.width; i++) {
        const size_t at = token * shape_.width + i;
        b.output[at] = b.input[at] + b.answer[at] + b.weights[visit] * first[i] + b.weights[visit + 1] * second[i];
      }
    }
  }

  void combine_b(BlockState &b) const {
    for (size_t visit = 0; visit < shape_.num_visits(); visit++) {
      const float *const grad = b.output_grad + visit / visits_per_token * shape_.width;
      const size_t row = size_t{b.places[visit]} * shape_.width;
      b.weight_grads[visit] = dot(grad, &b.answers[row], shape_.width);
      for (size_t i = 0; i < shape_.width; i++) b.answer_grads[row + i] = b.weights[visit] * grad[i];
    }
  }

  void experts_b(BlockState &b) const {
    const size_t width = shape_.width, hidden = shape_.hidden;
    for_each_expert(b, [&](size_t expert, size_t first, size_t count) {
      const size_t in = first * width, middle = first * hidden, matrix = expert * width * hidden;
      multiply_by_transposed(&b.answer_grads[in], weight(at_.down) + matrix, &b.hidden_grads[middle], count, hidden,
                             width, Write::set);
      silu_backward(&b.hidden_in[middle], &b.hidden_grads[middle], count * hidden);
      multiply_by_transposed(&b.hidden_grads[middle], weight(at_.up) + matrix, &b.gathered_grads[in], count, width,
                             hidden, Write::set);
    });
  }

  void experts_w(BlockState &b) const {
    const size_t width = shape_.width, hidden = shape_.hidden;
    for_each_expert(b, [&](size_t expert, size_t first, size_t count) {
      const size_t in = first * width, middle = first * hidden, matrix = expert * width * hidden;
      add_transposed_product(&b.gathered[in], &b.hidden_grads[middle], grad(at_.up) + matrix, count, hidden, width);
      add_transposed_product(&b.hidden_out[middle], &b.answer_grads[in], grad(at_.down) + matrix, count, width,
                             hidden);
    });
  }

  void dispatch_b(BlockState &b) const {
    for (size_t token = 0; token < shape_.num_tokens; token++) {
      const float *const first = &b.gathered_grads[size_t{b.places[2 * token]} * shape_.width];
      const float *const second = &b.gathered_grads[size_t{b.places[2 * token + 1]} * shape_.width];
      for (size_t i = 0; i < shape_.width; i++) b.row_grads[token * shape_.width + i] = first[i] + second[i];
    }
  }

  void dense_b(BlockState &b) const {
    const size_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    std::fill(b.score_grads.begin(), b.score_grads.end(), 0.0f);
    for (size_t token = 0; token < tokens; token++) {
      const size_t visit = visits_per_token * token;
      float *const grads = &b.score_grads[token * shape_.num_experts];
      const float grad = b.weights[visit] * b.weights[visit + 1] * (b.weight_grads[visit] - b.weight_grads[visit + 1]);
      grads[b.choices[visit]] = grad;
      grads[b.choices[visit + 1]] = -grad;
    }
    float *const rows = b.row_grads.data();
    multiply_by_transposed(b.score_grads.data(), weight(at_.router), rows, tokens, width, shape_.num_experts,
                           Write::add);
    multiply_by_transposed(b.output_grad, weight(at_.shared_down), b.shared_grads.data(), tokens, hidden, width,
                           Write::set);
    silu_backward(b.shared_in.data(), b.shared_grads.data(), b.shared_in.size());
    multiply_by_transposed(b.shared_grads.data(), weight(at_.shared_up), rows, tokens, width, hidden, Write::add);
    rmsnorm_backward(b.normalized.data(), b.scales.data(), weight(at_.gain), rows, b.input_grad, tokens,
                     width);
    for (size_t i = 0; i < shape_.num_values(); i++) b.input_grad[i] += b.output_grad[i];
  }

  void dense_w(BlockState &b) const {
    const size_t tokens = shape_.num_tokens, width = shape_.width, hidden = shape_.hidden;
    add_transposed_product(b.rows.data(), b.score_grads.data(), grad(at_.router), tokens, shape_.num_experts, width);
    add_transposed_product(b.rows.data(), b.shared_grads.data(), grad(at_.shared_up), tokens, hidden, width);
    add_transposed_product(b.shared_out.data(), b.output_grad, grad(at_.shared_down), tokens, width, hidden);
    rmsnorm_gain_grad(b.normalized.data(), b.row_grads.data(), grad(at_.gain), tokens, width);
  }

private:
  const float *weight(size_t offset) const { return parameters_.data() + offset; }
  float *grad(size_t offset) const { return grads_.data() + offset; }

  // The two experts that a token's row scores highest, the lower index first among equals, and the softmax of the two.
  void route(BlockState &b, size_t token) const {
    const float *const scores = &b.scores[token * shape_.num_experts];
    uint32_t first = 0;
    for (uint32_t i = 1; i < shape_.num_experts; i++) {
      if (scores[i] > scores[first]) first = i;
    }
    uint32_t second = first == 0 ? 1 : 0;
    for (uint32_t i = second + 1; i < shape_.num_experts; i++) {
      if (i != first && scores[i] > scores[second]) second = i;
    }
    const size_t visit = visits_per_token * token;
    b.choices[visit] = first;
    b.choices[visit + 1] = second;
    b.weights[visit] = 1.0f / (std::exp(scores[second] - scores[first]) + 1.0f);
    b.weights[visit + 1] = 1.0f - b.weights[visit];
  }

  void copy_row(const float *from, size_t row, float *to, size_t place) const {
    std::copy_n(from + row * shape_.width, shape_.width, to + place * shape_.width);
  }

  // Calls run(expert, first row, rows) for each expert that a token has chosen.
  template <class Run>
  void for_each_expert(const BlockState &b, const Run &run) const {
    for (size_t expert = 0; expert < shape_.num_experts; expert++) {
      const size_t first = b.ends[expert], end = b.ends[expert + 1];
      if (first < end) run(expert, first, end - first);
    }
  }

  Shape shape_;
  uint32_t number_;
  BlockLayout at_;
  const std::vector<float> &parameters_;
  std::vector<float> &grads_, &loads_;
};

} // namespace trainer
