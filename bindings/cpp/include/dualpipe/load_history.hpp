/// Loads of a recorded run, and placements, in the files of other programs.
#ifndef DUALPIPE_LOAD_HISTORY_HPP
#define DUALPIPE_LOAD_HISTORY_HPP

#include <dualpipe/cluster.h>
#include <dualpipe/expert_map.h>
#include <dualpipe/load_history.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dualpipe {

/// How a history is written.
enum class LoadFormat : std::uint32_t {
  vllm = DUALPIPE_LOAD_FORMAT_VLLM, ///< vLLM's JSON lines: loads of slots, with the expert in each.
  json = DUALPIPE_LOAD_FORMAT_JSON, ///< {"load_history": [{"logical_expert_load": [[...]]}]}: loads of experts.
  csv = DUALPIPE_LOAD_FORMAT_CSV,   ///< A line for each layer, a number for each expert, an empty line between steps.
};

/// What a new history is of: num_layers of num_experts, and, if it is to be said, num_ranks, num_groups, num_nodes,
/// and the model's name, which is borrowed until the history is made.
struct LoadHistoryOptions : dualpipe_load_history_options {
  LoadHistoryOptions(std::uint32_t layers, std::uint32_t experts)
      : dualpipe_load_history_options DUALPIPE_LOAD_HISTORY_OPTIONS_INIT {
    num_layers = layers;
    num_experts = experts;
  }
};

/// What a history is of: num_layers, num_experts, num_steps; num_ranks, num_groups, num_nodes, 0 if nothing says.
struct LoadHistoryInfo : dualpipe_load_history_info {
  LoadHistoryInfo() : dualpipe_load_history_info DUALPIPE_LOAD_HISTORY_INFO_INIT {}
};

inline namespace DUALPIPE_ERRORS {

/// Loads step by step. One thread at a time: others get Status::busy. It stays usable after a fork.
class LoadHistory : public detail::Handle<dualpipe_load_history_t, dualpipe_load_history_free> {
public:
  using Handle::Handle;

  /// One without steps.
  static Result<LoadHistory> create(const LoadHistoryOptions &options) {
    dualpipe_load_history_t history = nullptr;
    const dualpipe_status status = dualpipe_load_history_create(&options, &history);
    return detail::outcome(status, [&] { return LoadHistory(history); });
  }

  /// From a text in UTF-8. Errors: Status::invalid_argument with line and place.
  static Result<LoadHistory> read(std::string_view text, LoadFormat format) {
    dualpipe_load_history_t history = nullptr;
    // An empty view may be of nothing.
    const char *const bytes = text.empty() ? "" : text.data();
    const dualpipe_status status =
        dualpipe_load_history_read(bytes, text.size(), static_cast<std::uint32_t>(format), &history);
    return detail::outcome(status, [&] { return LoadHistory(history); });
  }

  /// Adds steps to the end, numbered from step on: of each num_layers rows of num_experts loads.
  Result<void> append(std::uint64_t step, Span<const float> loads) {
    return detail::outcome(dualpipe_load_history_append(get(), step, loads.data(), loads.size()));
  }

  /// Adds one step as slots got it, num_layers rows, and the expert that each held, -1 where there was none and no
  /// load.
  Result<void> append_slots(std::uint64_t step, Span<const std::int64_t> slot_to_expert, Span<const float> loads) {
    // C takes one length for both: the experts of another one are none, which it refuses.
    const std::int64_t *const slots = slot_to_expert.size() == loads.size() ? slot_to_expert.data() : nullptr;
    return detail::outcome(dualpipe_load_history_append_slots(get(), step, slots, loads.data(), loads.size()));
  }

  /// What it is of.
  Result<LoadHistoryInfo> describe() const {
    LoadHistoryInfo info;
    const dualpipe_status status = dualpipe_load_history_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The model's name, empty if nothing says.
  Result<std::string> model() const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_load_history_model(get(), text, capacity, length);
    });
  }

  /// The loads of all steps, one after the other: of each num_layers rows of num_experts numbers.
  Result<std::vector<float>> loads() const {
    return detail::values<float>([&](float *loads, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_history_loads(get(), loads, capacity, count);
    });
  }

  /// The number of each step, as the file has it.
  Result<std::vector<std::uint64_t>> step_numbers() const {
    return detail::values<std::uint64_t>([&](std::uint64_t *steps, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_history_step_numbers(get(), steps, capacity, count);
    });
  }

  /// The placement of a step, counted from 0: num_layers rows of its slots, the expert in each, -1 where there was
  /// none. Empty if that was not recorded.
  Result<std::vector<std::int64_t>> slot_to_expert(std::uint64_t index) const {
    return detail::values<std::int64_t>([&](std::int64_t *experts, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_history_slot_to_expert(get(), index, experts, capacity, count);
    });
  }

  /// What each slot got in a step, counted from 0, in the order of slot_to_expert; empty likewise.
  Result<std::vector<float>> slot_loads(std::uint64_t index) const {
    return detail::values<float>([&](float *loads, std::size_t capacity, std::size_t *count) {
      return dualpipe_load_history_slot_loads(get(), index, loads, capacity, count);
    });
  }

  /// It as a text. Only LoadFormat::vllm keeps the numbers of steps and what slots got.
  Result<std::string> write(LoadFormat format) const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_load_history_write(get(), static_cast<std::uint32_t>(format), text, capacity, length);
    });
  }
};

/// The expert in each slot of vllm-ascend's expert map: a row for each layer, slots GPU by GPU. Errors:
/// Status::invalid_argument with the place.
inline Result<std::vector<std::int64_t>> read_expert_map_slots(std::string_view text) {
  return detail::values<std::int64_t>([&](std::int64_t *experts, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_map_read_slots(text.empty() ? "" : text.data(), text.size(), experts, capacity, count);
  });
}

/// How many slots each GPU has in every layer of it, for a Cluster.
inline Result<std::vector<std::uint32_t>> read_expert_map_gpus(std::string_view text) {
  return detail::values<std::uint32_t>([&](std::uint32_t *slots, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_map_read_gpus(text.empty() ? "" : text.data(), text.size(), slots, capacity, count);
  });
}

/// A placement, rows of the cluster's slots, as such a map. Errors: Status::invalid_argument also for a slot without
/// an expert, for which it has no word.
inline Result<std::string> write_expert_map(const dualpipe_cluster &cluster,
                                            Span<const std::int64_t> slot_to_expert) {
  return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
    return dualpipe_expert_map_write(&cluster, slot_to_expert.data(), slot_to_expert.size(), text, capacity, length);
  });
}

/// Tokens of slots, of each step num_layers rows, as loads of their experts: what SGLang has as global_physical_count
/// and last_physical_to_logical_map.
inline Result<std::vector<float>> logical_loads(std::uint32_t num_layers, std::uint32_t num_experts,
                                                Span<const std::int64_t> slot_to_expert,
                                                Span<const std::int64_t> counts) {
  return detail::values<float>([&](float *loads, std::size_t capacity, std::size_t *count) {
    return dualpipe_expert_logical_loads(num_layers, num_experts, slot_to_expert.data(), slot_to_expert.size(),
                                         counts.data(), counts.size(), loads, capacity, count);
  });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_LOAD_HISTORY_HPP
