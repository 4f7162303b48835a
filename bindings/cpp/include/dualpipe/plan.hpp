/// Plans: the best schedule that can be found for given costs and memory, beside what no schedule can beat.
#ifndef DUALPIPE_PLAN_HPP
#define DUALPIPE_PLAN_HPP

#include <dualpipe/cost.hpp>
#include <dualpipe/op.hpp>
#include <dualpipe/plan.h>
#include <dualpipe/robust_plan.h>
#include <dualpipe/schedule.hpp>
#include <dualpipe/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// Which rank holds which stages. P is the number of ranks.
enum class PlacementKind : std::uint32_t {
  linear = DUALPIPE_PLACEMENT_LINEAR,               ///< Stage r on rank r.
  v = DUALPIPE_PLACEMENT_V,                         ///< Stages r and 2P-1-r on rank r: down the ranks and back up.
  interleaved = DUALPIPE_PLACEMENT_INTERLEAVED,     ///< Stages r, r+P, r+2P ... on rank r: stages_per_rank of them.
  bidirectional = DUALPIPE_PLACEMENT_BIDIRECTIONAL, ///< Stages r and, in direction 1, P-1-r on rank r: two copies.
  custom = DUALPIPE_PLACEMENT_CUSTOM,               ///< As rank_of says.
};

/// What to plan for: a training step. iterations and time_limit_ns say how long to search: 0 is no limit, and both 0
/// are 2 seconds; another seed searches another way. stages_per_rank is for PlacementKind::interleaved only;
/// num_threads 0 is as many as there are cores.
class PlanOptions : public dualpipe_plan_options {
public:
  /// Any number of micro-batches, both directions together.
  PlanOptions(PlacementKind kind, std::uint32_t ranks, std::uint32_t microbatches)
      : dualpipe_plan_options DUALPIPE_PLAN_OPTIONS_INIT {
    placement = static_cast<std::uint32_t>(kind);
    num_ranks = ranks;
    num_microbatches = microbatches;
  }

  /// The rank of each stage: a row for each direction, one or two, of as many stages.
  PlanOptions(const std::vector<std::vector<std::uint32_t>> &rank_of_stages, std::uint32_t ranks,
              std::uint32_t microbatches)
      : PlanOptions(PlacementKind::custom, ranks, microbatches) {
    std::size_t stages = 0;
    for (const auto &row : rank_of_stages) stages = std::max(stages, row.size());
    for (const auto &row : rank_of_stages) {
      rank_of_.insert(rank_of_.end(), row.begin(), row.end());
      rank_of_.resize(rank_of_.size() + stages - row.size(), none); // refused: directions have as many stages
    }
    num_stages = static_cast<std::uint32_t>(std::min<std::size_t>(stages, none));
    num_directions = static_cast<std::uint32_t>(std::min<std::size_t>(rank_of_stages.size(), none));
    point();
  }

  PlanOptions(const PlanOptions &other)
      : dualpipe_plan_options(other), rank_of_(other.rank_of_), activations_(other.activations_), bytes_(other.bytes_) {
    point();
  }
  PlanOptions &operator=(const PlanOptions &other) {
    dualpipe_plan_options::operator=(other);
    rank_of_ = other.rank_of_;
    activations_ = other.activations_;
    bytes_ = other.bytes_;
    point();
    return *this;
  }
  ~PlanOptions() = default;

  /// At most so many micro-batch activations alive at once: one number for all ranks, or one for each; none: no limit.
  PlanOptions &limit_activations(std::vector<std::uint64_t> caps) {
    activations_ = std::move(caps);
    point();
    return *this;
  }

  /// At most so many bytes on a rank, parameters included, likewise. Only one of the limits may be there.
  PlanOptions &limit_bytes(std::vector<std::uint64_t> caps) {
    bytes_ = std::move(caps);
    point();
    return *this;
  }

private:
  /// C's fields lead to the lists.
  void point() noexcept {
    rank_of = rank_of_.empty() ? nullptr : rank_of_.data();
    cap_activations = activations_.empty() ? nullptr : activations_.data();
    num_cap_activations = activations_.size();
    cap_bytes = bytes_.empty() ? nullptr : bytes_.data();
    num_cap_bytes = bytes_.size();
  }

  std::vector<std::uint32_t> rank_of_;
  std::vector<std::uint64_t> activations_;
  std::vector<std::uint64_t> bytes_;
};

/// Why a search ended.
enum class PlanStop : std::uint32_t {
  optimal = DUALPIPE_STOP_OPTIMAL,       ///< It found what no schedule can beat.
  iterations = DUALPIPE_STOP_ITERATIONS, ///< All iterations were made.
  time = DUALPIPE_STOP_TIME,             ///< The time was up.
  cancelled = DUALPIPE_STOP_CANCELLED,   ///< The progress callback asked for it.
};

/// What of the makespans on samples is made small.
enum class PlanObjective : std::uint32_t {
  mean = DUALPIPE_OBJECTIVE_MEAN, ///< Their mean.
  p95 = DUALPIPE_OBJECTIVE_P95,   ///< The least that 95 of 100 do not exceed.
};

/// How good a plan is: num_ranks, makespan_ns, lower_bound_ns, start_makespan_ns, iterations, gap; objective is 0 if it
/// was planned without a spread.
struct PlanInfo : dualpipe_plan_info {
  PlanInfo() : dualpipe_plan_info DUALPIPE_PLAN_INFO_INIT {}

  PlanStop stop() const noexcept { return static_cast<PlanStop>(dualpipe_plan_info::stop); }
};

/// The most that a rank keeps at once: live micro-batch activations; memory_bytes, parameters included.
using PlanPeak = dualpipe_plan_peak;

/// How far the times of ops spread about their costs: relative standard deviations op_jitter of each F, I and W, and
/// expert_imbalance of each micro-batch at a stage, 0 to 1; samples, 1 to 1024; a seed.
struct Spread : dualpipe_spread {
  Spread(double of_ops, double of_experts, std::uint32_t num_samples = 64) : dualpipe_spread DUALPIPE_SPREAD_INIT {
    op_jitter = of_ops;
    expert_imbalance = of_experts;
    samples = num_samples;
  }
};

/// Which schedule was played on samples.
enum class SampledSchedule : std::uint32_t {
  plan = DUALPIPE_SAMPLED_PLAN,                     ///< The plan's.
  without_spread = DUALPIPE_SAMPLED_WITHOUT_SPREAD, ///< That of a plan without a spread.
  published = DUALPIPE_SAMPLED_PUBLISHED,           ///< The best published one.
};

/// What a schedule takes when times spread: nominal_ns without; mean_ns, p95_ns, min_ns, max_ns on the samples that
/// were searched on, and held_out_mean_ns and so on on as many that the search never saw.
struct Sampled : dualpipe_sampled {
  Sampled() : dualpipe_sampled DUALPIPE_SAMPLED_INIT {}
};

inline namespace DUALPIPE_ERRORS {

/// A schedule that was planned, and how good it is. It never changes: any number of threads may use it at once. It
/// stays usable after a fork.
class Plan : public detail::Handle<dualpipe_plan_t, dualpipe_plan_free> {
public:
  using Handle::Handle;

  /// The best schedule for training that is found within the limits of the options; never slower than the best
  /// published one that is possible and keeps to the cap. The progress callback is called about every few milliseconds;
  /// if it asks to stop, this gives the best so far, with PlanStop::cancelled.
  ///
  /// Errors: Status::invalid_argument, also for costs of another number of stages, and for a cap that not even one
  /// micro-batch after the other keeps to.
  static Result<Plan> create(const dualpipe_plan_options &options, const Costs &costs) {
    const dualpipe_costs in_c = costs.in_c();
    dualpipe_plan_t plan = nullptr;
    const dualpipe_status status = dualpipe_plan_create(&options, &in_c, &plan);
    return detail::outcome(status, [&] { return Plan(plan); });
  }

  /// The same for times that spread: the schedule of least objective on seeded samples. On those it is never worse than
  /// the plan without a spread, which half of the effort goes to.
  ///
  /// Errors: those of create; a spread that is not in its ranges; times that all together exceed 9 * 10^14 ns.
  static Result<Plan> create_robust(const dualpipe_plan_options &options, const Costs &costs,
                                    const dualpipe_spread &spread, PlanObjective objective = PlanObjective::mean) {
    const dualpipe_costs in_c = costs.in_c();
    const auto objective_in_c = static_cast<std::uint32_t>(objective);
    dualpipe_plan_t plan = nullptr;
    const dualpipe_status status = dualpipe_plan_create_robust(&options, &in_c, &spread, objective_in_c, &plan);
    return detail::outcome(status, [&] { return Plan(plan); });
  }

  /// How good it is.
  Result<PlanInfo> describe() const {
    PlanInfo info;
    const dualpipe_status status = dualpipe_plan_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The name of the schedule that the search began with: the best published one that is possible and keeps to the cap;
  /// "constructed" where there is none, and "planned", of a plan with a spread, for the one without.
  Result<std::string> started_from() const {
    return detail::text([&](char *name, std::size_t capacity, std::size_t *length) {
      return dualpipe_plan_started_from(get(), name, capacity, length);
    });
  }

  /// The most that each rank keeps at once.
  Result<std::vector<PlanPeak>> peaks() const {
    return detail::values<PlanPeak>([&](PlanPeak *peaks, std::size_t capacity, std::size_t *count) {
      return dualpipe_plan_peaks(get(), peaks, capacity, count);
    });
  }

  /// What a schedule takes on the samples of a plan with a spread.
  ///
  /// Errors: Status::invalid_argument for a plan without one, and for the published schedule where none is possible.
  Result<Sampled> sampled(SampledSchedule which = SampledSchedule::plan) const {
    Sampled sampled;
    const dualpipe_status status = dualpipe_plan_sampled(get(), static_cast<std::uint32_t>(which), &sampled);
    return detail::outcome(status, [&] { return sampled; });
  }

  /// The schedule: of kind custom, or of its own if nothing better was found than a published one.
  Result<Schedule> schedule() const {
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_plan_schedule(get(), &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_PLAN_HPP
