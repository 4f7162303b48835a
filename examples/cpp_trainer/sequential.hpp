// The reference: all stages in one thread, one micro-batch after the other, in order.
//
// A schedule does the same additions: each copy of a stage adds its micro-batches up in order, then the copies are
// added, direction 0 first. So does this, and the gradients are equal to the bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "data.hpp"
#include "reduce.hpp"
#include "stage.hpp"

namespace trainer {

class Sequential {
public:
  Sequential(const Shape &shape, const Data &data, uint64_t seed) : data_(data) {
    for (uint32_t stage = 0; stage < shape.num_stages; stage++) {
      stages_.push_back(std::make_unique<Stage>(shape, stage, seed));
      outputs_.emplace_back(shape.num_values());
      input_grads_.emplace_back(shape.num_values());
    }
  }

  // Forward and backward of a whole step; its loss, the mean over micro-batches.
  double step(uint64_t step, uint32_t num_microbatches, uint32_t num_directions) {
    const uint32_t each = num_microbatches / num_directions;
    double loss = 0;
    for (uint32_t direction = 0; direction < num_directions; direction++) {
      std::vector<std::vector<float>> before;
      for (const auto &stage : stages_) {
        before.push_back(stage->grads());
        std::fill(stage->grads().begin(), stage->grads().end(), 0.0f);
      }
      for (uint32_t i = 0; i < each; i++) loss += microbatch(data_.batch(step, direction * each + i));
      for (size_t i = 0; i < stages_.size() && direction == 1; i++) sum_copies(1, stages_[i]->grads(), before[i]);
    }
    return loss / num_microbatches;
  }

  Stage &stage(uint32_t stage) { return *stages_[stage]; }

private:
  double microbatch(const Batch &batch) {
    constexpr uint32_t number = 0; // there is never more than one under way
    for (size_t i = 0; i < stages_.size(); i++) {
      stages_[i]->forward(number, &batch, i > 0 ? outputs_[i - 1].data() : nullptr, outputs_[i].data());
    }
    const double loss = stages_.back()->loss(number);
    for (size_t i = stages_.size(); i-- > 0;) {
      const bool is_last = i + 1 == stages_.size();
      stages_[i]->backward_input(number, is_last ? nullptr : input_grads_[i + 1].data(), input_grads_[i].data());
      stages_[i]->backward_weight(number);
    }
    return loss;
  }

  const Data &data_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<std::vector<float>> outputs_, input_grads_; // of each stage
};

} // namespace trainer
