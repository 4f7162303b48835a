/// Expert plans: which slots hold which replicas of which experts, and how good that is.
#ifndef DUALPIPE_BALANCE_HPP
#define DUALPIPE_BALANCE_HPP

#include <dualpipe/balance.h>
#include <dualpipe/cluster.hpp>
#include <dualpipe/moves.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstdint>
#include <vector>

namespace dualpipe {

/// What to place: num_layers of num_experts experts into num_slots slots on num_gpus GPUs, num_groups and num_nodes (1
/// and 1 unless said), num_threads (1 unless said). dualpipe/balance.h has what must divide what.
struct BalanceOptions : dualpipe_balance_options {
  BalanceOptions(std::uint32_t layers, std::uint32_t experts, std::uint32_t slots, std::uint32_t gpus)
      : dualpipe_balance_options DUALPIPE_BALANCE_OPTIONS_INIT {
    num_layers = layers;
    num_experts = experts;
    num_slots = slots;
    num_gpus = gpus;
    num_groups = num_nodes = num_threads = 1;
  }
};

/// How well a layer is balanced: imbalance (the heaviest GPU's load / the mean), a lower_bound of it that no
/// placement of its kind beats, the joint_bound, equal_bound and node_bound that this is made of, and the share of
/// load that is away from its group's node.
using LayerBalance = dualpipe_layer_balance;

/// What a plan is of: num_layers, num_experts, num_slots, num_gpus, num_nodes, num_groups.
struct ExpertPlanInfo : dualpipe_expert_plan_info {
  ExpertPlanInfo() : dualpipe_expert_plan_info DUALPIPE_EXPERT_PLAN_INFO_INIT {}

  Split split() const noexcept { return static_cast<Split>(dualpipe_expert_plan_info::split); }
};

inline namespace DUALPIPE_ERRORS {

/// Where the replicas of every layer's experts lie. It never changes: any number of threads may use it at once. It
/// stays usable after a fork.
class ExpertPlan : public detail::Handle<dualpipe_expert_plan_t, dualpipe_expert_plan_free> {
public:
  using Handle::Handle;

  /// Places the experts of every layer by DeepSeek's policy (EPLB: github.com/deepseek-ai/EPLB), number for number.
  ///
  /// loads: num_layers rows of num_experts numbers, finite and not negative: tokens, or any measure that adds up.
  ///
  /// Errors: Status::invalid_argument, with the nearest numbers that would do; Status::cancelled by the progress
  /// callback.
  static Result<ExpertPlan> create(const BalanceOptions &options, Span<const float> loads) {
    dualpipe_expert_plan_t plan = nullptr;
    const dualpipe_status status = dualpipe_expert_plan_create(&options, loads.data(), loads.size(), &plan);
    return detail::outcome(status, [&] { return ExpertPlan(plan); });
  }

  /// Places the experts of every layer as well as it can within the limits of the goal, with a proven lower bound
  /// beside it.
  ///
  /// loads: num_layers rows of num_experts numbers, finite and not negative; or so many of each step of a window, one
  /// step after the other: then the sum over its steps of the heaviest GPU's load is made small. num_threads: 1 is the
  /// caller's alone, 0 as many as there are cores. The plan is the same.
  ///
  /// Errors: Status::invalid_argument, also if no placement was found that keeps groups whole and every expert on
  /// enough GPUs and nodes; Status::cancelled by the progress callback.
  static Result<ExpertPlan> balance(const dualpipe_cluster &cluster, const dualpipe_goal &goal, Span<const float> loads,
                                    std::uint32_t num_threads = 1) {
    return balance(cluster, goal, loads, nullptr, num_threads);
  }

  /// Likewise, from the placement that is there: what stays keeps its slot.
  static Result<ExpertPlan> balance(const dualpipe_cluster &cluster, const dualpipe_goal &goal, Span<const float> loads,
                                    const CurrentPlacement &current, std::uint32_t num_threads = 1) {
    return balance(cluster, goal, loads, &current, num_threads);
  }

  /// Makes a plan of a placement from anywhere, to be routed by, compared, or moved from.
  ///
  /// slot_to_expert: the expert in each slot of the cluster, layer after layer, -1 in slots of dead GPUs. shares: of
  /// its expert's tokens, as many, for Split::weighted only. loads: none, or as for balance: what imbalance and
  /// bounds are said of, which are 1 otherwise. The goal's groups and what is to be survived need not be kept.
  ///
  /// Errors: Status::invalid_argument, also for a placement by which tokens would be lost, with the first place where.
  static Result<ExpertPlan> from_slots(const dualpipe_cluster &cluster, const dualpipe_goal &goal,
                                       Span<const std::int64_t> slot_to_expert, Span<const float> loads = {},
                                       Span<const double> shares = {}) {
    dualpipe_expert_plan_t plan = nullptr;
    const dualpipe_status status = dualpipe_expert_plan_create_from_slots(
        &cluster, &goal, slot_to_expert.data(), slot_to_expert.size(), shares.data(), shares.size(), loads.data(),
        loads.size(), &plan);
    return detail::outcome(status, [&] { return ExpertPlan(plan); });
  }

  /// What it is of.
  Result<ExpertPlanInfo> describe() const {
    ExpertPlanInfo info;
    const dualpipe_status status = dualpipe_expert_plan_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The share of its expert's tokens that each slot gets: num_layers rows of num_slots numbers; of an expert they
  /// sum to 1, and with Split::equal they are alike.
  Result<std::vector<double>> shares() const {
    return detail::values<double>([&](double *shares, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_shares(get(), shares, capacity, count);
    });
  }

  /// The load of each GPU under any loads, say those of the next step: num_layers rows of num_gpus numbers. loads:
  /// num_layers rows of num_experts numbers.
  Result<std::vector<double>> gpu_loads(Span<const float> loads) const {
    return detail::values<double>([&](double *of_gpus, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_gpu_loads(get(), loads.data(), loads.size(), of_gpus, capacity, count);
    });
  }

  /// The load of each node: num_layers rows of num_nodes numbers; otherwise as gpu_loads.
  Result<std::vector<double>> node_loads(Span<const float> loads) const {
    return detail::values<double>([&](double *of_nodes, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_node_loads(get(), loads.data(), loads.size(), of_nodes, capacity, count);
    });
  }

  /// The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log), -1 in slots of dead GPUs.
  /// Slots are numbered GPU by GPU.
  Result<std::vector<std::int64_t>> slot_to_expert() const {
    return detail::values<std::int64_t>([&](std::int64_t *experts, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_slot_to_expert(get(), experts, capacity, count);
    });
  }

  /// How many replicas each expert has: num_layers rows of num_experts numbers (DeepSeek's logcnt).
  Result<std::vector<std::int64_t>> replica_counts() const {
    return detail::values<std::int64_t>([&](std::int64_t *counts, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_replica_counts(get(), counts, capacity, count);
    });
  }

  /// The slots of each expert, in the order of its replicas: num_layers tables of num_experts rows as long as the most
  /// replicas of any expert, -1 behind the last (DeepSeek's log2phy).
  ///
  /// Errors: Status::invalid_argument if that is more than 2^28 numbers.
  Result<std::vector<std::int64_t>> expert_to_slots() const {
    return detail::values<std::int64_t>([&](std::int64_t *slots, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_expert_to_slots(get(), slots, capacity, count);
    });
  }

  /// How well each layer is balanced.
  Result<std::vector<LayerBalance>> layers() const {
    return detail::values<LayerBalance>([&](LayerBalance *layers, std::size_t capacity, std::size_t *count) {
      return dualpipe_expert_plan_layers(get(), layers, capacity, count);
    });
  }

private:
  static Result<ExpertPlan> balance(const dualpipe_cluster &cluster, const dualpipe_goal &goal, Span<const float> loads,
                                    const CurrentPlacement *current, std::uint32_t num_threads) {
    dualpipe_expert_plan_t plan = nullptr;
    const dualpipe_status status =
        dualpipe_expert_plan_balance(&cluster, &goal, loads.data(), loads.size(), current, num_threads, &plan);
    return detail::outcome(status, [&] { return ExpertPlan(plan); });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_BALANCE_HPP
