/// Load monitors: tokens of experts, counted step by step on many ranks, to plan placements of.
#ifndef DUALPIPE_LOAD_MONITOR_HPP
#define DUALPIPE_LOAD_MONITOR_HPP

#include <dualpipe/cluster.h>
#include <dualpipe/load_monitor.h>
#include <dualpipe/monitor_loads.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dualpipe {

/// Which steps of a window are asked for.
enum class Reported : std::uint32_t {
  by_all_ranks = DUALPIPE_REPORTED_BY_ALL_RANKS, ///< Those with num_ranks reports of each layer.
  by_any = DUALPIPE_REPORTED_BY_ANY, ///< Those with any; experts of absent ranks may look idle in these.
};

/// What becomes of the steps.
enum class MonitorLoads : std::uint32_t {
  sum = DUALPIPE_LOADS_SUM,         ///< Their tokens: num_layers rows of num_experts numbers.
  average = DUALPIPE_LOADS_AVERAGE, ///< Tokens per step, with weights that halve with each half_life of steps.
  steps = DUALPIPE_LOADS_STEPS,     ///< The tokens of each step, one step after the other.
};

/// What a monitor keeps: num_layers of num_experts, and, if they are not to be as usual, window (step numbers),
/// num_ranks (reports of a step), half_life (of the average, in steps).
struct LoadMonitorOptions : dualpipe_load_monitor_options {
  LoadMonitorOptions(std::uint32_t layers, std::uint32_t experts)
      : dualpipe_load_monitor_options DUALPIPE_LOAD_MONITOR_OPTIONS_INIT {
    num_layers = layers;
    num_experts = experts;
  }
};

/// What a monitor is and has: its options, num_steps, num_complete_steps, newest_step (0 if there is no step),
/// num_counters (of a layer, that were read).
struct LoadMonitorInfo : dualpipe_load_monitor_info {
  LoadMonitorInfo() : dualpipe_load_monitor_info DUALPIPE_LOAD_MONITOR_INFO_INIT {}
};

/// The mean GPU's load / the greatest, as vLLM logs it; 0 where there is no load.
struct Balancedness {
  double overall = 0;         ///< The sum over layers of the means / that of the greatest.
  std::vector<double> layers; ///< Of each layer.
};

inline namespace DUALPIPE_ERRORS {

/// Counts of the last steps. One thread at a time: others get Status::busy. It stays usable after a fork.
class LoadMonitor : public detail::Handle<dualpipe_load_monitor_t, dualpipe_load_monitor_free> {
public:
  using Handle::Handle;

  /// One that has recorded nothing.
  static Result<LoadMonitor> create(const LoadMonitorOptions &options) {
    dualpipe_load_monitor_t monitor = nullptr;
    const dualpipe_status status = dualpipe_load_monitor_create(&options, &monitor);
    return detail::outcome(status, [&] { return LoadMonitor(monitor); });
  }

  /// From what save gave. Errors: Status::invalid_argument for bytes of something else, damaged, or cut off.
  static Result<LoadMonitor> load(Span<const std::uint8_t> bytes) {
    dualpipe_load_monitor_t monitor = nullptr;
    const dualpipe_status status = dualpipe_load_monitor_load(bytes.data(), bytes.size(), &monitor);
    return detail::outcome(status, [&] { return LoadMonitor(monitor); });
  }

  /// The state; equal monitors have equal bytes. It has the last reading of record_cumulative's counters.
  Result<std::vector<std::uint8_t>> save() const {
    return detail::values<std::uint8_t>([&](std::uint8_t *bytes, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_save(get(), bytes, capacity, count);
    });
  }

  /// One report of a step: num_layers rows of num_experts numbers of tokens. Whether it is kept: false if the step is
  /// older than the window.
  ///
  /// Errors: Status::invalid_argument also for a step that has all its reports; nothing is recorded then. So with the
  /// other ways to record.
  Result<bool> record(std::uint64_t step, Span<const std::uint32_t> counts) {
    return is_kept([&](std::uint32_t *kept) {
      return dualpipe_load_monitor_record_logical(get(), step, counts.data(), counts.size(), kept);
    });
  }

  /// One report of one layer of a step: num_experts numbers. A step's layers may come in any order.
  Result<bool> record_layer(std::uint64_t step, std::uint32_t layer, Span<const std::uint32_t> counts) {
    return is_kept([&](std::uint32_t *kept) {
      return dualpipe_load_monitor_record_layer(get(), step, layer, counts.data(), counts.size(), kept);
    });
  }

  /// One report of a step from slots, a rank's own or all, as DeepEP counts what it receives: num_layers rows of
  /// tokens, which count for the experts in the slots, -1 where there is none and no token.
  Result<bool> record_physical(std::uint64_t step, Span<const std::int64_t> slot_to_expert,
                               Span<const std::int32_t> counts) {
    return record_slots(dualpipe_load_monitor_record_physical, step, slot_to_expert, counts);
  }

  /// record_physical from counters that only grow: what they have grown by since this monitor last read them, or
  /// since they were 0. They may run over, and be set to 0.
  Result<bool> record_cumulative(std::uint64_t step, Span<const std::int64_t> slot_to_expert,
                                 Span<const std::int32_t> counters) {
    return record_slots(dualpipe_load_monitor_record_cumulative, step, slot_to_expert, counters);
  }

  /// What the counters show now, of which nothing is to count; none: they have been set to 0. To be called where they
  /// are set to 0, also in a new process.
  Result<void> set_counters(Span<const std::int32_t> counters = {}) {
    return detail::outcome(dualpipe_load_monitor_set_counters(get(), counters.data(), counters.size()));
  }

  /// Adds what another monitor, made with the same options, has recorded. Any order of merging and recording comes to
  /// the same. Errors: Status::invalid_argument also after merging a monitor twice; nothing has changed then.
  Result<void> merge(const LoadMonitor &other) {
    return detail::outcome(dualpipe_load_monitor_merge(get(), other.get()));
  }

  /// What it is and has.
  Result<LoadMonitorInfo> describe() const {
    LoadMonitorInfo info;
    const dualpipe_status status = dualpipe_load_monitor_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// Loads to balance; 0 where there is no such step.
  Result<std::vector<float>> loads(MonitorLoads kind = MonitorLoads::average,
                                   Reported reported = Reported::by_all_ranks) const {
    return detail::values<float>([&](float *loads, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_loads(get(), in_c(reported), static_cast<std::uint32_t>(kind), loads, capacity,
                                         count);
    });
  }

  /// The tokens of the window, exactly.
  Result<std::vector<std::uint64_t>> counts(Reported reported = Reported::by_all_ranks) const {
    return detail::values<std::uint64_t>([&](std::uint64_t *counts, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_counts(get(), in_c(reported), counts, capacity, count);
    });
  }

  /// The numbers of the window's steps, in order.
  Result<std::vector<std::uint64_t>> step_numbers(Reported reported = Reported::by_all_ranks) const {
    return detail::values<std::uint64_t>([&](std::uint64_t *steps, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_step_numbers(get(), in_c(reported), steps, capacity, count);
    });
  }

  /// The steps that have a report but not all, in order.
  Result<std::vector<std::uint64_t>> incomplete_steps() const {
    return detail::values<std::uint64_t>([&](std::uint64_t *steps, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_incomplete_steps(get(), steps, capacity, count);
    });
  }

  /// How many reports there are of a step, for each layer; 0 of a step that is not in the window.
  Result<std::vector<std::uint32_t>> reports(std::uint64_t step) const {
    return detail::values<std::uint32_t>([&](std::uint32_t *reports, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_monitor_reports(get(), step, reports, capacity, count);
    });
  }

  /// How balanced the window's tokens are on the GPUs of a placement, of which each expert's slots have these shares,
  /// or equal ones if none are given. Errors: Status::invalid_argument for lists of a wrong length.
  Result<Balancedness> balancedness(const dualpipe_cluster &cluster, Span<const std::int64_t> slot_to_expert,
                                    Span<const double> shares = {},
                                    Reported reported = Reported::by_all_ranks) const {
    const bool fits = shares.empty() || shares.size() == slot_to_expert.size();
    Balancedness found;
    std::size_t count = 0;
    dualpipe_load_monitor_info info = DUALPIPE_LOAD_MONITOR_INFO_INIT;
    dualpipe_status status = dualpipe_load_monitor_describe(get(), &info);
    if (status == DUALPIPE_OK) {
      found.layers.resize(info.num_layers);
      // C takes one length for both: of another one nothing is given, which it refuses.
      status = dualpipe_load_monitor_balancedness(
          get(), in_c(reported), &cluster, slot_to_expert.data(), shares.empty() ? nullptr : shares.data(),
          fits ? slot_to_expert.size() : 0, &found.overall, found.layers.data(), found.layers.size(), &count);
    }
    return detail::outcome(status, [&] { return std::move(found); });
  }

private:
  static std::uint32_t in_c(Reported reported) noexcept { return static_cast<std::uint32_t>(reported); }

  template <class Record>
  Result<bool> is_kept(Record record) {
    std::uint32_t kept = 0;
    const dualpipe_status status = record(&kept);
    return detail::outcome(status, [&] { return kept != 0; });
  }

  template <class Function>
  Result<bool> record_slots(Function function, std::uint64_t step, Span<const std::int64_t> slot_to_expert,
                            Span<const std::int32_t> counts) {
    // C takes one length for both: the experts of another one are none, which it refuses.
    const bool fits = slot_to_expert.size() == counts.size();
    return is_kept([&](std::uint32_t *kept) {
      return function(get(), step, fits ? slot_to_expert.data() : nullptr, counts.data(), counts.size(), kept);
    });
  }
};

/// The same of loads of GPUs, however they came about: a row of the cluster's GPUs for each layer.
inline Result<Balancedness> balancedness(const dualpipe_cluster &cluster, Span<const double> gpu_loads) {
  Balancedness found;
  std::size_t count = 0;
  dualpipe_status status = dualpipe_expert_balancedness(&cluster, gpu_loads.data(), gpu_loads.size(), &found.overall,
                                                        nullptr, 0, &count);
  if (status == DUALPIPE_OK) {
    found.layers.resize(count);
    status = dualpipe_expert_balancedness(&cluster, gpu_loads.data(), gpu_loads.size(), &found.overall,
                                          found.layers.data(), count, &count);
  }
  return detail::outcome(status, [&] { return std::move(found); });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_LOAD_MONITOR_HPP
