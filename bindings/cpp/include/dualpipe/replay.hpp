/// Replays: how policies would have done on recorded loads, judged by what came next.
#ifndef DUALPIPE_REPLAY_HPP
#define DUALPIPE_REPLAY_HPP

#include <dualpipe/cluster.hpp>
#include <dualpipe/op.hpp>
#include <dualpipe/policy.hpp>
#include <dualpipe/replay.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dualpipe {

/// When to rebalance, and from where: window, every, with_bounds (0 unless said), num_threads (all cores unless said),
/// expert_bytes (0 unless said). dualpipe/replay.h has what they mean, and their ranges.
struct ReplayOptions : dualpipe_replay_options {
  /// Plans from `of_window` steps, each for the next `for_steps`.
  ReplayOptions(std::uint32_t of_window, std::uint32_t for_steps)
      : dualpipe_replay_options DUALPIPE_REPLAY_OPTIONS_INIT {
    window = of_window;
    every = for_steps;
  }

  /// The placement at first, which is borrowed: the expert in each slot of the cluster, layer after layer. Without: the
  /// experts in order, again and again.
  void set_initial(Span<const std::int64_t> slots) noexcept {
    initial = slots.data();
    num_slots = slots.size();
  }
};

/// What was moved: same_gpu, same_node, other_node, same_node_bytes, other_node_bytes.
using ReplayMoves = dualpipe_replay_moves;
/// How a policy did: imbalance, worst_imbalance, lower_bound, away, num_windows, num_new, moves.
using ReplayRun = dualpipe_replay_run;
/// A rebalance and the steps until the next: step, num_steps, is_new, imbalance, worst_imbalance, lower_bound, away,
/// moves.
using ReplayWindow = dualpipe_replay_window;
/// A layer in some steps: imbalance, lower_bound.
using ReplayLayer = dualpipe_replay_layer;

inline namespace DUALPIPE_ERRORS {

/// How policies did. It never changes: any number of threads may use it at once. It stays usable after a fork.
class Replay : public detail::Handle<dualpipe_replay_t, dualpipe_replay_free> {
public:
  using Handle::Handle;

  /// Runs 1 to 64 policies, one after the other, over recorded loads: 2 to 65536 steps of num_layers rows of
  /// num_experts. A policy sees the steps before a rebalance, and never more; what it places is judged by the steps
  /// until the next. The goal is what policies of this library plan for; a placement is only held to its layers and
  /// experts. Calls the progress callback now and then.
  ///
  /// Errors: Status::invalid_argument, also for a placement that loses tokens; Status::callback_failed;
  /// Status::cancelled. What a policy threw comes out.
  static Result<Replay> create(const dualpipe_cluster &cluster, const dualpipe_goal &goal, Span<const float> loads,
                               const ReplayOptions &options, Span<const Policy> policies) {
    std::vector<dualpipe_policy> in_c;
    for (const Policy &policy : policies) in_c.push_back(policy.in_c());
    dualpipe_replay_t replay = nullptr;
    const dualpipe_status status = dualpipe_replay_create(&cluster, &goal, loads.data(), loads.size(), &options,
                                                          in_c.data(), in_c.size(), &replay);
    return detail::outcome(status, [&] { return Replay(replay); });
  }

  /// How each policy did, in their order.
  Result<std::vector<ReplayRun>> runs() const {
    return detail::values<ReplayRun>([&](ReplayRun *runs, std::size_t capacity, std::size_t *count) {
      return dualpipe_replay_runs(get(), runs, capacity, count);
    });
  }

  /// A policy's rebalances, from each to the next; `run` is the policy's index.
  Result<std::vector<ReplayWindow>> windows(std::uint32_t run) const {
    return detail::values<ReplayWindow>([&](ReplayWindow *windows, std::size_t capacity, std::size_t *count) {
      return dualpipe_replay_windows(get(), run, windows, capacity, count);
    });
  }

  /// Each layer of a policy's run: in the steps of one window, or with `none` in all judged steps.
  Result<std::vector<ReplayLayer>> layers(std::uint32_t run, std::uint32_t window = none) const {
    return detail::values<ReplayLayer>([&](ReplayLayer *layers, std::size_t capacity, std::size_t *count) {
      return dualpipe_replay_layers(get(), run, window, layers, capacity, count);
    });
  }

  /// The load of each GPU in the last window of a policy's run, layer after layer: for a heat map.
  Result<std::vector<double>> gpu_loads(std::uint32_t run) const {
    return detail::values<double>([&](double *gpu_loads, std::size_t capacity, std::size_t *count) {
      return dualpipe_replay_gpu_loads(get(), run, gpu_loads, capacity, count);
    });
  }

  /// A table for people: a line for each policy.
  Result<std::string> to_text() const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_replay_text(get(), text, capacity, length);
    });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_REPLAY_HPP
