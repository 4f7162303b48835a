/// Which placement: published schedules and planned ones on equal devices, with what each costs.
#ifndef DUALPIPE_COMPARISON_HPP
#define DUALPIPE_COMPARISON_HPP

#include <dualpipe/comparison.h>
#include <dualpipe/cost.hpp>
#include <dualpipe/plan.hpp>
#include <dualpipe/schedule.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/timeline.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// A model and the devices to train it on, whatever the placement: num_ranks, num_microbatches, num_threads,
/// iterations, time_limit_ns, seed. dualpipe/comparison.h has their ranges.
class ComparisonOptions : public dualpipe_comparison_options {
public:
  ComparisonOptions(std::uint32_t ranks, std::uint32_t microbatches)
      : dualpipe_comparison_options DUALPIPE_COMPARISON_OPTIONS_INIT {
    num_ranks = ranks;
    num_microbatches = microbatches;
  }

  ComparisonOptions(const ComparisonOptions &other)
      : dualpipe_comparison_options(other), activations_(other.activations_), bytes_(other.bytes_) {
    point();
  }
  ComparisonOptions &operator=(const ComparisonOptions &other) {
    dualpipe_comparison_options::operator=(other);
    activations_ = other.activations_;
    bytes_ = other.bytes_;
    point();
    return *this;
  }
  ~ComparisonOptions() = default;

  /// At most so many activations alive at once, counted in those of one micro-batch on one num_ranks-th of the model:
  /// one number for all ranks, or one for each; none: no limit.
  ComparisonOptions &limit_activations(std::vector<std::uint64_t> caps) {
    activations_ = std::move(caps);
    point();
    return *this;
  }

  /// At most so many bytes on a rank, parameters included, likewise. Only one of the limits may be there.
  ComparisonOptions &limit_bytes(std::vector<std::uint64_t> caps) {
    bytes_ = std::move(caps);
    point();
    return *this;
  }

private:
  /// C's fields lead to the lists.
  void point() noexcept {
    cap_activations = activations_.empty() ? nullptr : activations_.data();
    num_cap_activations = activations_.size();
    cap_bytes = bytes_.empty() ? nullptr : bytes_.data();
    num_cap_bytes = bytes_.size();
  }

  std::vector<std::uint64_t> activations_;
  std::vector<std::uint64_t> bytes_;
};

/// A schedule that was compared: stages_per_rank, is_planned, is_possible, fits, parameter_copies, makespan_ns,
/// lower_bound_ns, bubble_share, parameter_bytes, peak_activations, peak_activation_bytes, sent_messages, sent_bytes,
/// excess_activations, excess_bytes.
struct Candidate : dualpipe_candidate {
  Candidate() : dualpipe_candidate DUALPIPE_CANDIDATE_INIT {}

  PlacementKind placement() const noexcept { return static_cast<PlacementKind>(dualpipe_candidate::placement); }
};

inline namespace DUALPIPE_ERRORS {

/// Schedules on several placements, ranked. It never changes: any number of threads may use it at once. It stays usable
/// after a fork.
class Comparison : public detail::Handle<dualpipe_comparison_t, dualpipe_comparison_free> {
public:
  using Handle::Handle;

  /// Published schedules and one plan on each placement: linear, V, bidirectional, and interleaved with 2, 3 and 4
  /// stages on a rank. costs: of the finest stages that the model is to be cut into, a multiple of num_ranks; or one
  /// entry, of one num_ranks-th of the model. Iterations and time are those of each of the 6 plans. If the progress
  /// callback asks to stop, the plan at hand is the best so far, and later ones are listed as not made.
  ///
  /// Errors: Status::invalid_argument. What a placement does not admit is no error, but a candidate's reason.
  static Result<Comparison> create(const ComparisonOptions &options, const Costs &costs) {
    const dualpipe_costs in_c = costs.in_c();
    dualpipe_comparison_t comparison = nullptr;
    const dualpipe_status status = dualpipe_comparison_create(&options, &in_c, &comparison);
    return detail::outcome(status, [&] { return Comparison(comparison); });
  }

  /// How many candidates there are, at least 1.
  Result<std::uint32_t> count() const {
    std::uint32_t count = 0;
    const dualpipe_status status = dualpipe_comparison_count(get(), &count);
    return detail::outcome(status, [&] { return count; });
  }

  /// A candidate, the best first: those that fit by makespan, then those that do not, then those that are not possible.
  Result<Candidate> candidate(std::uint32_t candidate) const {
    Candidate info;
    const dualpipe_status status = dualpipe_comparison_candidate(get(), candidate, &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// Of a published schedule such as "dualpipe_v", or "planned".
  Result<std::string> name(std::uint32_t candidate) const {
    return detail::text([&](char *name, std::size_t capacity, std::size_t *length) {
      return dualpipe_comparison_name(get(), candidate, name, capacity, length);
    });
  }

  /// Why it is not possible; empty if it is.
  Result<std::string> reason(std::uint32_t candidate) const {
    return detail::text([&](char *reason, std::size_t capacity, std::size_t *length) {
      return dualpipe_comparison_reason(get(), candidate, reason, capacity, length);
    });
  }

  /// A candidate's schedule. Errors: Status::invalid_argument for one that is not possible, with the reason.
  Result<Schedule> schedule(std::uint32_t candidate) const {
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_comparison_schedule(get(), candidate, &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// It as Timeline::simulate plays it, with its placement's stages cut from the comparison's costs.
  Result<Timeline> timeline(std::uint32_t candidate) const {
    dualpipe_timeline_t timeline = nullptr;
    const dualpipe_status status = dualpipe_comparison_timeline(get(), candidate, &timeline);
    return detail::outcome(status, [&] { return Timeline(timeline); });
  }

  /// The table for people, and below it why some are not possible.
  Result<std::string> to_text() const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_comparison_text(get(), text, capacity, length);
    });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_COMPARISON_HPP
