// A stage on a device: stage.hpp, as work that is enqueued.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../parameters.hpp"
#include "../shape.hpp"
#include "cuda_block.hpp"

namespace trainer::cuda {

// A micro-batch's bytes and where its loss goes, at the model's ends.
struct BatchAddress {
  Address contexts = 0, targets = 0; // u8, [num_tokens, context] and [num_tokens]
  Address loss = 0;                  // f64, added to
};

// What a stage keeps of a micro-batch.
struct StageBuffers {
  StageBuffers(const Device &device, const Shape &s, const Layout &layout) {
    size_t size = 0;
    lay_out(s, layout, [&](size_t count) { return take(size, count, 0); });
    memory = std::make_unique<Memory>(device, size * sizeof(float));
    size = 0;
    lay_out(s, layout, [&](size_t count) { return take(size, count, memory->at()); });
  }

  std::unique_ptr<Memory> memory;
  BatchAddress batch;
  std::vector<BlockBuffers> blocks;
  Address embedded = 0;                                                             // first stage
  Address normalized = 0, scales = 0, rows = 0, row_grads = 0, output_grad = 0;     // last stage
  Address logits = 0 /* and, after the F, their gradients */, losses = 0;           // last stage

private:
  static Address take(size_t &size, size_t count, Address start) {
    constexpr size_t alignment = 64;
    const Address at = start + size * sizeof(float);
    size += (count + alignment - 1) / alignment * alignment;
    return at;
  }

  template <class Take>
  void lay_out(const Shape &s, const Layout &layout, const Take &take) {
    blocks.clear();
    for (uint32_t i = 0; i < s.num_blocks; i++) blocks.emplace_back(s, take);
    if (layout.is_first) embedded = take(s.num_values());
    if (!layout.is_last) return;
    normalized = take(s.num_values());
    scales = take(s.num_tokens);
    rows = take(s.num_values());
    row_grads = take(s.num_values());
    output_grad = take(s.num_values());
    logits = take(size_t{s.num_tokens} * vocabulary);
    losses = take(s.num_tokens);
  }
};

class CudaStage {
public:
  CudaStage(const Device &device, const Shape &shape, uint32_t stage)
      : device_(device), shape_(shape), layout_(shape, stage), parameters_(device, layout_.size * sizeof(float)),
        grads_(device, layout_.size * sizeof(float)),
        loads_(device, size_t{shape.num_blocks} * shape.num_experts * sizeof(uint64_t)) {
    for (uint32_t i = 0; i < shape.num_blocks; i++) {
      const Address loads = loads_.at() + size_t{i} * shape.num_experts * sizeof(uint64_t);
      blocks_.emplace_back(shape, layout_.blocks[i], parameters_.at(), grads_.at(), loads);
    }
  }

  StageBuffers &begin_forward(const Queue &q, uint32_t microbatch, BatchAddress batch, Address input, Address output) {
    StageBuffers &s = keep(microbatch);
    s.batch = batch;
    if (layout_.is_first) {
      const uint32_t rows = shape_.num_tokens * shape_.context, columns = shape_.width / shape_.context;
      q.launch("embedding", shape_.num_values(), batch.contexts, weight(layout_.by_byte), weight(layout_.by_position),
               s.embedded, rows, shape_.context, columns);
    }
    for (uint32_t i = 0; i < shape_.num_blocks; i++) {
      s.blocks[i].input = i > 0 ? s.blocks[i - 1].output : layout_.is_first ? s.embedded : input;
      s.blocks[i].output = i + 1 < shape_.num_blocks || layout_.is_last ? s.blocks[i].own_output : output;
    }
    return s;
  }

  void end_forward(const Queue &q, const StageBuffers &s) const {
    if (!layout_.is_last) return;
    const uint32_t tokens = shape_.num_tokens, width = shape_.width;
    q.launch("rmsnorm", tokens, s.blocks.back().output, weight(layout_.final_gain), s.normalized, s.scales, s.rows,
             tokens, width);
    q.multiply(s.rows, weight(layout_.head), s.logits, tokens, vocabulary, width);
    q.launch("cross_entropy", tokens, s.logits, s.batch.targets, s.losses, tokens, vocabulary);
    q.launch("add_mean", 1, s.losses, s.batch.loss, tokens);
  }

  StageBuffers &begin_backward(const Queue &q, uint32_t microbatch, Address output_grad, Address input_grad) {
    StageBuffers &s = kept(microbatch);
    if (layout_.is_last) {
      const uint32_t tokens = shape_.num_tokens, width = shape_.width;
      q.multiply_by_transposed(s.logits, weight(layout_.head), s.row_grads, tokens, width, vocabulary, false);
      q.launch("rmsnorm_backward", tokens, s.normalized, s.scales, weight(layout_.final_gain), s.row_grads,
               s.output_grad, tokens, width);
      output_grad = s.output_grad;
    }
    for (uint32_t i = shape_.num_blocks; i-- > 0;) {
      BlockBuffers &block = s.blocks[i];
      block.output_grad = i + 1 < shape_.num_blocks ? s.blocks[i + 1].input_grad : output_grad;
      block.input_grad = i > 0 || layout_.is_first ? block.own_input_grad : input_grad;
    }
    return s;
  }

  void end_backward(const Queue &q, uint32_t microbatch) {
    const StageBuffers &s = kept(microbatch);
    if (layout_.is_last) {
      const uint32_t tokens = shape_.num_tokens, width = shape_.width;
      q.add_transposed_product(s.rows, s.logits, grad(layout_.head), tokens, vocabulary, width);
      q.launch("rmsnorm_gain_grad", width, s.normalized, s.row_grads, grad(layout_.final_gain), tokens, width);
    }
    if (layout_.is_first) {
      const uint32_t rows = shape_.num_tokens * shape_.context, columns = shape_.width / shape_.context;
      const Address grads = s.blocks.front().input_grad;
      q.launch("embedding_byte_grad", vocabulary * columns, s.batch.contexts, grads, grad(layout_.by_byte), rows,
               vocabulary, columns);
      q.launch("embedding_position_grad", shape_.width, grads, grad(layout_.by_position), rows, shape_.context,
               columns);
    }
    free_.push_back(std::move(kept_.at(microbatch))); // what uses it next comes later on the stream
    kept_.erase(microbatch);
  }

  StageBuffers &kept(uint32_t microbatch) {
    const auto found = kept_.find(microbatch);
    if (found == kept_.end()) throw std::logic_error("micro-batch " + std::to_string(microbatch) + " is not kept");
    return *found->second;
  }

  uint32_t num_blocks() const { return shape_.num_blocks; }
  const CudaBlock &block(uint32_t i) const { return blocks_[i]; }
  const Layout &layout() const { return layout_; }
  const Memory &parameters() const { return parameters_; }
  const Memory &grads() const { return grads_; }
  const Memory &loads() const { return loads_; } // u64, [num_blocks, num_experts]

private:
  Address weight(size_t offset) const { return parameters_.at(offset); }
  Address grad(size_t offset) const { return grads_.at(offset); }

  StageBuffers &keep(uint32_t microbatch) {
    if (free_.empty()) free_.push_back(std::make_unique<StageBuffers>(device_, shape_, layout_));
    std::unique_ptr<StageBuffers> &place = kept_[microbatch];
    if (place) throw std::logic_error("micro-batch " + std::to_string(microbatch) + " went forward twice");
    place = std::move(free_.back());
    free_.pop_back();
    return *place;
  }

  const Device &device_;
  Shape shape_;
  Layout layout_;
  Memory parameters_, grads_, loads_;
  std::vector<CudaBlock> blocks_;
  std::map<uint32_t, std::unique_ptr<StageBuffers>> kept_;
  std::vector<std::unique_ptr<StageBuffers>> free_;
};

} // namespace trainer::cuda
