/// Expert plans: which slots hold which replicas of which experts, and how good that is.
#ifndef DUALPIPE_BALANCE_HPP
#define DUALPIPE_BALANCE_HPP

#include <dualpipe/balance.h>
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

/// How well a layer is balanced: imbalance (the heaviest GPU's load / the mean), and a lower_bound of it that no
/// placement beats.
using LayerBalance = dualpipe_layer_balance;

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

  /// The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log). GPU g holds the slots from g *
  /// num_slots / num_gpus on.
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
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_BALANCE_HPP
