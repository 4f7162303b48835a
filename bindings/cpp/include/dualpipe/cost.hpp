/// Costs: the time and bytes of each stage, and of the links between ranks.
#ifndef DUALPIPE_COST_HPP
#define DUALPIPE_COST_HPP

#include <dualpipe/cost.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace dualpipe {

/// What one stage costs for one micro-batch: times of F, I, W and FB in nanoseconds, bytes of what it sends, keeps and
/// owns. dualpipe/cost.h has their ranges.
using StageCosts = dualpipe_stage_costs;

/// What an FB of two stages takes: forward_stage, backward_stage, overlapped_ns.
using PairCosts = dualpipe_pair_costs;

/// The costs of a model and of the links that it runs over.
struct Costs {
  Costs() = default;
  /// All stages cost the same; messages take no time.
  explicit Costs(const StageCosts &each) : stages{each} {}
  explicit Costs(std::vector<StageCosts> of_stages) : stages(std::move(of_stages)) {}

  /// One entry for each stage of the model, or one for all.
  std::vector<StageCosts> stages;
  /// Times of FB that pairs of stages have of their own, each pair once; the others shrink as their stages' do.
  std::vector<PairCosts> pairs = {};
  /// Time of a message without bytes from one rank to another, at most 10^12.
  std::uint64_t p2p_latency_ns = 0;
  /// Bytes per second from one rank to another; 0 if bytes take no time.
  std::uint64_t p2p_bytes_per_second = 0;

  /// As C has them, while this lives and stays as it is.
  dualpipe_costs in_c() const noexcept {
    dualpipe_costs costs = DUALPIPE_COSTS_INIT;
    costs.stages = stages.data();
    costs.num_stages = stages.size();
    costs.pairs = pairs.data();
    costs.num_pairs = pairs.size();
    costs.p2p_latency_ns = p2p_latency_ns;
    costs.p2p_bytes_per_second = p2p_bytes_per_second;
    return costs;
  }
};

} // namespace dualpipe

#endif // DUALPIPE_COST_HPP
