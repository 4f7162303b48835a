// From recorded steps to costs: what the simulator is told about this machine.
#pragma once

#include <dualpipe.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "shape.hpp"

namespace trainer {

class Profile {
public:
  explicit Profile(const Shape &shape) : shape_(shape), alone_(shape.num_stages), pairs_(shape.num_stages) {}

  void add(const dualpipe::Timeline &step) {
    makespans_.push_back(step.summarize().makespan_ns);
    bubbles_.push_back(step.summarize().bubble_share);
    for (const dualpipe::OpSpan &span : step.spans()) {
      const dualpipe::Op op = span.op();
      const uint64_t ns = span.end_ns - span.start_ns;
      if (op.kind() == dualpipe::OpKind::F) alone_[op.forward.stage][op.kind()].push_back(ns);
      if (op.kind() == dualpipe::OpKind::FB) pairs_[op.forward.stage].push_back({op.backward.stage, ns});
      if (op.kind() == dualpipe::OpKind::B || op.kind() == dualpipe::OpKind::I || op.kind() == dualpipe::OpKind::W) {
        alone_[op.backward.stage][op.kind()].push_back(ns);
      }
    }
  }

  uint64_t makespan_ns() const { return median(makespans_, uint64_t{0}); }
  double bubble() const { return median(bubbles_, 0.0); }
  bool has_pairs() const {
    return std::any_of(pairs_.begin(), pairs_.end(), [](const auto &pairs) { return !pairs.empty(); });
  }
  size_t num_steps() const { return makespans_.size(); }

  // Medians. Half of a B stands for I and W where they never run apart. A pair's time is shared out to its two stages
  // in the ratio of their F + B, as the simulator puts it together again.
  dualpipe::Costs costs() const {
    std::vector<dualpipe::StageCosts> costs(shape_.num_stages);
    for (uint32_t stage = 0; stage < shape_.num_stages; stage++) {
      dualpipe::StageCosts &cost = costs[stage];
      const uint64_t half = median_of(stage, dualpipe::OpKind::B, 0) / 2;
      cost.forward_ns = median_of(stage, dualpipe::OpKind::F, 0);
      cost.input_ns = median_of(stage, dualpipe::OpKind::I, half);
      cost.weight_ns = median_of(stage, dualpipe::OpKind::W, half);
      cost.output_bytes = shape_.num_values() * sizeof(float);
      cost.overlapped_ns = whole(cost);
    }
    const std::vector<dualpipe::StageCosts> apart = costs;
    std::vector<std::vector<double>> shares(shape_.num_stages); // of a pair's time in its F + B
    for (uint32_t stage = 0; stage < shape_.num_stages; stage++) {
      for (const auto &[other, ns] : pairs_[stage]) {
        const uint64_t both = apart[stage].forward_ns + apart[other].input_ns + apart[other].weight_ns;
        if (both == 0) continue;
        shares[stage].push_back(static_cast<double>(ns) / static_cast<double>(both));
        shares[other].push_back(shares[stage].back());
      }
    }
    for (uint32_t stage = 0; stage < shape_.num_stages; stage++) {
      dualpipe::StageCosts &cost = costs[stage];
      const double share = median(shares[stage], 1.0);
      const uint64_t least = std::max(cost.forward_ns, cost.input_ns + cost.weight_ns);
      cost.overlapped_ns = std::max(least, static_cast<uint64_t>(share * static_cast<double>(whole(cost))));
    }
    return dualpipe::Costs(std::move(costs));
  }

private:
  static uint64_t whole(const dualpipe::StageCosts &cost) {
    return cost.forward_ns + cost.input_ns + cost.weight_ns;
  }

  template <class Number>
  static Number median(std::vector<Number> values, Number otherwise) {
    if (values.empty()) return otherwise;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  uint64_t median_of(uint32_t stage, dualpipe::OpKind kind, uint64_t otherwise) const {
    const auto found = alone_[stage].find(kind);
    return found == alone_[stage].end() ? otherwise : median(found->second, otherwise);
  }

  Shape shape_;
  std::vector<uint64_t> makespans_;
  std::vector<double> bubbles_;
  std::vector<std::map<dualpipe::OpKind, std::vector<uint64_t>>> alone_; // by stage, in nanoseconds
  std::vector<std::vector<std::pair<uint32_t, uint64_t>>> pairs_;        // by F's stage: B's stage, nanoseconds
};

} // namespace trainer
