// A stage: its blocks, and at the ends of the model the embedding and the head. F, I and W of any number of
// micro-batches may be under way; what an F leaves is kept until the W.
#pragma once

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "block.hpp"
#include "data.hpp"
#include "parameters.hpp"

namespace trainer {

// What a stage keeps of a micro-batch.
struct StageState {
  StageState(const Shape &s, const Layout &layout) : blocks(s.num_blocks, BlockState(s)) {
    if (layout.is_first) embedded.resize(s.num_values());
    if (!layout.is_last) return;
    normalized.resize(s.num_values());
    scales.resize(s.num_tokens);
    rows.resize(s.num_values());
    logits.resize(size_t{s.num_tokens} * vocabulary);
    row_grads.resize(s.num_values());
    output_grad.resize(s.num_values());
  }

  const Batch *batch = nullptr;
  std::vector<BlockState> blocks;
  std::vector<float> embedded;                                         // first stage
  std::vector<float> normalized, scales, rows, row_grads, output_grad; // last stage
  std::vector<float> logits;                                           // and, after the F, their gradients
  double loss = 0;
};

class Stage {
public:
  // The parameters follow from the seed and the number of the stage, so that all copies begin equal.
  Stage(const Shape &shape, uint32_t stage, uint64_t seed)
      : shape_(shape), layout_(shape, stage), parameters_(initial_parameters(layout_, stage, seed)),
        grads_(layout_.size), loads_(size_t{shape.num_blocks} * shape.num_experts) {
    for (uint32_t i = 0; i < shape.num_blocks; i++) {
      blocks_.emplace_back(shape, layout_, i, parameters_, grads_, loads_);
    }
  }
  Stage(const Stage &) = delete;
  Stage &operator=(const Stage &) = delete;

  // F. The first stage reads the batch and no input, the last one the batch, and writes no output; what is pointed to
  // stays in place until W. The loss is the batch's mean.
  void forward(uint32_t microbatch, const Batch *batch, const float *input, float *output) {
    StageState &state = begin_forward(microbatch, batch, input, output);
    for (uint32_t i = 0; i < num_blocks(); i++) {
      blocks_[i].dense_f(state.blocks[i]);
      blocks_[i].dispatch_f(state.blocks[i]);
      blocks_[i].experts_f(state.blocks[i]);
      blocks_[i].combine_f(state.blocks[i]);
    }
    end_forward(state);
  }

  // I. The last stage has no output gradient, the first no input gradient to write.
  void backward_input(uint32_t microbatch, const float *output_grad, float *input_grad) {
    StageState &state = begin_backward(microbatch, output_grad, input_grad);
    for (uint32_t i = num_blocks(); i-- > 0;) {
      blocks_[i].combine_b(state.blocks[i]);
      blocks_[i].experts_b(state.blocks[i]);
      blocks_[i].dispatch_b(state.blocks[i]);
      blocks_[i].dense_b(state.blocks[i]);
    }
  }

  // W. Adds to the gradients and forgets the micro-batch.
  void backward_weight(uint32_t microbatch) {
    StageState &state = kept(microbatch);
    for (uint32_t i = num_blocks(); i-- > 0;) {
      blocks_[i].experts_w(state.blocks[i]);
      blocks_[i].dense_w(state.blocks[i]);
    }
    end_backward(microbatch);
  }

  // What the three above begin and end with, for callers that run the blocks themselves: part by part, see overlap.hpp.
  StageState &begin_forward(uint32_t microbatch, const Batch *batch, const float *input, float *output) {
    StageState &state = keep(microbatch);
    state.batch = batch;
    if (layout_.is_first) embed(state);
    for (uint32_t i = 0; i < num_blocks(); i++) {
      state.blocks[i].input = i > 0 ? state.blocks[i - 1].output : layout_.is_first ? state.embedded.data() : input;
      const bool is_own = i + 1 < num_blocks() || layout_.is_last;
      state.blocks[i].output = is_own ? state.blocks[i].own_output.data() : output;
    }
    return state;
  }

  void end_forward(StageState &state) {
    if (!layout_.is_last) return;
    const size_t tokens = shape_.num_tokens, width = shape_.width;
    rmsnorm(state.blocks.back().output, parameters_.data() + layout_.final_gain, state.normalized.data(),
            state.scales.data(), state.rows.data(), tokens, width);
    multiply(state.rows.data(), parameters_.data() + layout_.head, state.logits.data(), tokens, vocabulary, width);
    state.loss = cross_entropy(state);
  }

  StageState &begin_backward(uint32_t microbatch, const float *output_grad, float *input_grad) {
    StageState &state = kept(microbatch);
    if (layout_.is_last) {
      const size_t tokens = shape_.num_tokens, width = shape_.width;
      multiply_by_transposed(state.logits.data(), parameters_.data() + layout_.head, state.row_grads.data(), tokens,
                             width, vocabulary, Write::set);
      rmsnorm_backward(state.normalized.data(), state.scales.data(), parameters_.data() + layout_.final_gain,
                       state.row_grads.data(), state.output_grad.data(), tokens, width);
      output_grad = state.output_grad.data();
    }
    for (uint32_t i = num_blocks(); i-- > 0;) {
      BlockState &block = state.blocks[i];
      block.output_grad = i + 1 < num_blocks() ? state.blocks[i + 1].input_grad : output_grad;
      block.input_grad = i > 0 || layout_.is_first ? block.own_input_grad.data() : input_grad;
    }
    return state;
  }

  void end_backward(uint32_t microbatch) {
    StageState &state = kept(microbatch);
    const size_t tokens = shape_.num_tokens, width = shape_.width;
    if (layout_.is_last) {
      add_transposed_product(state.rows.data(), state.logits.data(), grads_.data() + layout_.head, tokens, vocabulary,
                             width);
      rmsnorm_gain_grad(state.normalized.data(), state.row_grads.data(), grads_.data() + layout_.final_gain, tokens,
                        width);
    }
    if (layout_.is_first) embedding_grads(state);
    free_.push_back(std::move(kept_.at(microbatch)));
    kept_.erase(microbatch);
  }

  uint32_t num_blocks() const { return shape_.num_blocks; }
  const Block &block(uint32_t i) const { return blocks_[i]; }
  const Layout &layout() const { return layout_; }

  // Of a micro-batch between its F and its W, at the last stage.
  double loss(uint32_t microbatch) { return kept(microbatch).loss; }

  std::vector<float> &parameters() { return parameters_; }
  // Added up over micro-batches, until the caller sets them to zero.
  std::vector<float> &grads() { return grads_; }
  // Visits of each expert, [num_blocks, num_experts], likewise.
  std::vector<float> &loads() { return loads_; }

private:
  StageState &keep(uint32_t microbatch) {
    if (free_.empty()) free_.push_back(std::make_unique<StageState>(shape_, layout_));
    std::unique_ptr<StageState> &place = kept_[microbatch];
    if (place) throw std::logic_error("micro-batch " + std::to_string(microbatch) + " went forward twice");
    place = std::move(free_.back());
    free_.pop_back();
    return *place;
  }

  StageState &kept(uint32_t microbatch) {
    const auto found = kept_.find(microbatch);
    if (found == kept_.end()) throw std::logic_error("micro-batch " + std::to_string(microbatch) + " is not kept");
    return *found->second;
  }

  // A token's row: of each byte of its context, width / context columns.
  void embed(StageState &state) const {
    const size_t columns = shape_.width / shape_.context;
    for (size_t i = 0; i < state.batch->contexts.size(); i++) {
      const float *const byte = &parameters_[layout_.by_byte + state.batch->contexts[i] * columns];
      const float *const position = &parameters_[layout_.by_position + i % shape_.context * columns];
      for (size_t k = 0; k < columns; k++) state.embedded[i * columns + k] = byte[k] + position[k];
    }
  }

  void embedding_grads(const StageState &state) {
    const size_t columns = shape_.width / shape_.context;
    for (size_t i = 0; i < state.batch->contexts.size(); i++) {
      const float *const grad = state.blocks.front().input_grad + i * columns;
      float *const byte = &grads_[layout_.by_byte + state.batch->contexts[i] * columns];
      float *const position = &grads_[layout_.by_position + i % shape_.context * columns];
      for (size_t k = 0; k < columns; k++) {
        byte[k] += grad[k];
        position[k] += grad[k];
      }
    }
  }

  // The mean over tokens; turns the logits into its gradient for them.
  double cross_entropy(StageState &state) const {
    double loss = 0;
    for (size_t token = 0; token < shape_.num_tokens; token++) {
      float *const row = &state.logits[token * vocabulary];
      const uint8_t target = state.batch->targets[token];
      const float highest = *std::max_element(row, row + vocabulary);
      float sum = 0;
      for (size_t i = 0; i < vocabulary; i++) sum += row[i] = std::exp(row[i] - highest);
      for (size_t i = 0; i < vocabulary; i++) row[i] /= sum;
      loss -= std::log(std::max(row[target], 1.17549435e-38f)); // finite, even if the probability underflows
      row[target] -= 1.0f;
      for (size_t i = 0; i < vocabulary; i++) row[i] /= static_cast<float>(shape_.num_tokens);
    }
    return loss / shape_.num_tokens;
  }

  Shape shape_;
  Layout layout_;
  std::vector<float> parameters_, grads_, loads_;
  std::vector<Block> blocks_;
  std::map<uint32_t, std::unique_ptr<StageState>> kept_;
  std::vector<std::unique_ptr<StageState>> free_;
};

} // namespace trainer
