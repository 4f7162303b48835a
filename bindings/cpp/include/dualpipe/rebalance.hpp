/// Whether a planned placement is worth moving to.
#ifndef DUALPIPE_REBALANCE_HPP
#define DUALPIPE_REBALANCE_HPP

#include <dualpipe/cluster.h>
#include <dualpipe/rebalance.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>

namespace dualpipe {

/// What decided.
enum class RebalanceReason : std::uint32_t {
  worthwhile = DUALPIPE_REBALANCE_WORTHWHILE,         ///< The gain exceeds the cost, beyond doubt: move.
  same_placement = DUALPIPE_REBALANCE_SAME_PLACEMENT, ///< The placements are the same.
  too_few_steps = DUALPIPE_REBALANCE_TOO_FEW_STEPS,   ///< There are too few steps to know how far gains vary.
  no_gain = DUALPIPE_REBALANCE_NO_GAIN,               ///< The plan is not better.
  within_noise = DUALPIPE_REBALANCE_WITHIN_NOISE,     ///< The gain is within what chance may bring.
  below_cost = DUALPIPE_REBALANCE_BELOW_COST,         ///< The gain is real and not certain to exceed the cost.
};

/// A move that might be made: num_layers of num_experts; expert_seconds, horizon, standard_errors, plan_saw_counts;
/// its price, price_seconds or bytes_per_expert and bytes_per_second. dualpipe/rebalance.h has what they are.
struct RebalanceProposal : dualpipe_rebalance_proposal {
  RebalanceProposal(std::uint32_t layers, std::uint32_t experts)
      : dualpipe_rebalance_proposal DUALPIPE_REBALANCE_PROPOSAL_INIT {
    num_layers = layers;
    num_experts = experts;
  }
};

/// A placement as it is judged, which it borrows: the expert in each slot, and the slots' shares if they are not
/// equal.
struct JudgedPlacement {
  Span<const std::int64_t> slot_to_expert;
  Span<const double> shares = {};
};

/// Whether to move, and why: rebalance (0 or 1), moved_replicas, current_imbalance, planned_imbalance, noise_floor,
/// gain_seconds, gain_error_seconds, cost_seconds.
struct RebalanceDecision : dualpipe_rebalance_decision {
  RebalanceDecision() : dualpipe_rebalance_decision DUALPIPE_REBALANCE_DECISION_INIT {}

  RebalanceReason reason() const noexcept {
    return static_cast<RebalanceReason>(dualpipe_rebalance_decision::reason);
  }

  /// Whether the move pays.
  explicit operator bool() const noexcept { return rebalance != 0; }
};

inline namespace DUALPIPE_ERRORS {

/// Whether to move from one placement to the other, judged on counts: the tokens of each of the last steps,
/// num_layers rows of num_experts. If (gain per step - standard_errors * its standard error) * horizon exceeds the
/// cost.
///
/// Errors: Status::invalid_argument, also for lists of wrong lengths and a placement under which counts do not
/// arrive.
inline Result<RebalanceDecision> should_rebalance(const dualpipe_cluster &cluster, const RebalanceProposal &proposal,
                                                  Span<const std::uint32_t> counts, const JudgedPlacement &current,
                                                  const JudgedPlacement &planned) {
  dualpipe_rebalance_proposal in_c = proposal;
  in_c.counts = counts.data();
  in_c.num_counts = counts.size();
  in_c.num_slots = current.slot_to_expert.size();
  // C takes one length for all four lists: one of another length is none, or odd, which it refuses.
  const auto fits = [&](std::size_t size) { return size == in_c.num_slots; };
  in_c.current = current.slot_to_expert.data();
  in_c.planned = fits(planned.slot_to_expert.size()) ? planned.slot_to_expert.data() : nullptr;
  in_c.current_shares = current.shares.empty() ? nullptr : current.shares.data();
  in_c.planned_shares = planned.shares.empty() ? nullptr : planned.shares.data();
  const bool shares_fit = (current.shares.empty() || fits(current.shares.size())) &&
                          (planned.shares.empty() || fits(planned.shares.size()));
  if (!shares_fit) in_c.num_slots = 0;
  RebalanceDecision decision;
  const dualpipe_status status = dualpipe_should_rebalance(&cluster, &in_c, &decision);
  return detail::outcome(status, [&] { return decision; });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_REBALANCE_HPP
