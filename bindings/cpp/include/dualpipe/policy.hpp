/// Policies to replay: those of this library, and callbacks.
#ifndef DUALPIPE_POLICY_HPP
#define DUALPIPE_POLICY_HPP

#include <dualpipe/moves.hpp>
#include <dualpipe/policy.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// What a policy does.
enum class PolicyKind : std::uint32_t {
  stay = DUALPIPE_POLICY_NONE,           ///< Nothing: what there is stays.
  deepseek = DUALPIPE_POLICY_DEEPSEEK,   ///< DeepSeek's policy on the sum of the window; for equal GPUs, all alive.
  refined = DUALPIPE_POLICY_REFINED,     ///< ExpertPlan::balance on the steps of the window, anew each time.
  few_moves = DUALPIPE_POLICY_FEW_MOVES, ///< The same from what there is, within a budget.
  callback = DUALPIPE_POLICY_CALLBACK,   ///< What a callback says.
};

/// What a callback may know, valid until it returns: the steps before a rebalance, and where the experts are.
class PolicyPast {
public:
  explicit PolicyPast(const dualpipe_policy_past &in_c) noexcept : in_c_(&in_c) {}

  std::uint32_t num_layers() const noexcept { return in_c_->num_layers; }
  std::uint32_t num_experts() const noexcept { return in_c_->num_experts; }
  /// Steps so far: the number of the next one.
  std::uint32_t num_steps() const noexcept { return in_c_->num_steps; }
  /// The loads of all of them, step after step: num_layers rows of num_experts.
  Span<const float> loads() const noexcept { return {in_c_->loads, num_steps() * of_step()}; }
  /// Of the last of them.
  Span<const float> window() const noexcept {
    return {in_c_->loads + (num_steps() - in_c_->window) * of_step(), in_c_->window * of_step()};
  }
  /// The expert in each slot of the cluster, layer after layer, -1 where there is none.
  Span<const std::int64_t> slot_to_expert() const noexcept { return {in_c_->slot_to_expert, in_c_->num_slots}; }
  /// The share of its expert's tokens that each slot gets; none: an equal split.
  Span<const double> shares() const noexcept {
    return {in_c_->shares, in_c_->shares == nullptr ? 0 : in_c_->num_slots};
  }

private:
  std::size_t of_step() const noexcept { return std::size_t{in_c_->num_layers} * in_c_->num_experts; }

  const dualpipe_policy_past *in_c_;
};

/// Where a callback puts the experts.
struct PolicyPlacement {
  std::vector<std::int64_t> slot_to_expert; ///< In each slot of the cluster, layer after layer, -1 where there is none.
  std::vector<double> shares;               ///< As many, or none for an equal split.
};

inline namespace DUALPIPE_ERRORS {

/// A policy and its name.
class Policy {
public:
  /// Never moves anything.
  static Policy none() { return Policy(PolicyKind::stay); }
  /// DeepSeek's policy on the sum of the window. Only for equal GPUs in equal nodes, all alive.
  static Policy deepseek() { return Policy(PolicyKind::deepseek); }
  /// ExpertPlan::balance on the steps of the window, anew each time, numbered so that as much as possible stays.
  static Policy refined() { return Policy(PolicyKind::refined); }
  /// From what there is: at most so many moves of each layer at each rebalance.
  static Policy within_moves(std::uint64_t most) { return few(CurrentPlacement({}).within_moves(most)); }
  /// From what there is: moves of at most this price.
  static Policy within_price(double most, MovePrices prices = {}) {
    return few(CurrentPlacement({}).within_price(most, prices));
  }
  /// From what there is: the cheapest that reaches this imbalance, at least 1.
  static Policy reaching(double target, MovePrices prices = {}) {
    return few(CurrentPlacement({}).reaching(target, prices));
  }

  /// What a callback says at each rebalance: nothing keeps what there is; a placement of another length than the past's
  /// ends the replay. What it throws comes out of the replay.
  Policy(std::string name, std::function<std::optional<PolicyPlacement>(const PolicyPast &)> plan)
      : Policy(PolicyKind::callback) {
    name_ = std::move(name);
    plan_ = std::move(plan);
  }

  /// The same under another name, of which 255 bytes count.
  Policy named(std::string name) && {
    name_ = std::move(name);
    return std::move(*this);
  }

  /// As C has it, while this lives and stays where it is.
  dualpipe_policy in_c() const noexcept {
    dualpipe_policy in_c = in_c_;
    in_c.name = name_.empty() ? nullptr : name_.c_str();
    if (plan_ != nullptr) {
      in_c.plan = run;
      in_c.user_data = const_cast<Policy *>(this);
    }
    return in_c;
  }

private:
  explicit Policy(PolicyKind kind) { in_c_.kind = static_cast<std::uint32_t>(kind); }

  static Policy few(const dualpipe_current_placement &budget) {
    Policy policy(PolicyKind::few_moves);
    policy.in_c_.budget = budget.budget;
    policy.in_c_.max_moves = budget.max_moves;
    policy.in_c_.max_price = budget.max_price;
    policy.in_c_.imbalance = budget.imbalance;
    policy.in_c_.same_node_price = budget.same_node_price;
    policy.in_c_.other_node_price = budget.other_node_price;
    return policy;
  }

  static std::int32_t run(void *self, const dualpipe_policy_past *past, std::int64_t *slot_to_expert,
                          double *shares) noexcept {
    std::int32_t answer = -1;
    detail::runs_here([&] {
      const std::optional<PolicyPlacement> placed = static_cast<Policy *>(self)->plan_(PolicyPast(*past));
      answer = DUALPIPE_POLICY_KEEP;
      if (placed.has_value()) answer = write(*placed, past->num_slots, slot_to_expert, shares);
    });
    return answer;
  }

  static std::int32_t write(const PolicyPlacement &placed, std::size_t num_slots, std::int64_t *slot_to_expert,
                            double *shares) {
    const bool has_shares = !placed.shares.empty();
    if (placed.slot_to_expert.size() != num_slots || (has_shares && placed.shares.size() != num_slots)) return -1;
    std::copy(placed.slot_to_expert.begin(), placed.slot_to_expert.end(), slot_to_expert);
    std::copy(placed.shares.begin(), placed.shares.end(), shares);
    return has_shares ? DUALPIPE_POLICY_PLACED_WITH_SHARES : DUALPIPE_POLICY_PLACED;
  }

  dualpipe_policy in_c_{};
  std::string name_;
  std::function<std::optional<PolicyPlacement>(const PolicyPast &)> plan_;
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_POLICY_HPP
