// Plans in C++: what is found, on any placement, within limits; and how progress stops the search, or throws out of it.
#include <dualpipe.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

/// Whether a call is refused.
template <class F>
bool is_refused(F &&call) {
  return thrown_by<Error>(call).status() == Status::invalid_argument;
}

const Costs uneven(StageCosts{1000, 1300, 700, 2100, 0, 100, 1000});

PlanOptions few(PlacementKind kind, std::uint32_t ranks, std::uint32_t microbatches) {
  PlanOptions options(kind, ranks, microbatches);
  options.iterations = 300;
  return options;
}

void a_plan_is_what_it_says() {
  const Plan plan = Plan::create(few(PlacementKind::bidirectional, 2, 4).limit_activations({3}), uneven);
  const PlanInfo info = plan.describe();
  const Schedule schedule = plan.schedule();
  CHECK(info.num_ranks == 2 && info.objective == 0 && info.gap >= 0);
  CHECK(info.lower_bound_ns <= info.makespan_ns && info.makespan_ns <= info.start_makespan_ns);
  CHECK(info.stop() == PlanStop::optimal || info.stop() == PlanStop::iterations);
  CHECK(Timeline::simulate(schedule, uneven).summarize().makespan_ns == info.makespan_ns);
  CHECK(!plan.started_from().empty());
  const std::vector<PlanPeak> peaks = plan.peaks();
  const std::vector<std::uint32_t> live = schedule.check();
  CHECK(peaks.size() == 2 && live.size() == 2);
  for (std::size_t rank = 0; rank < 2; rank++) {
    CHECK(peaks[rank].live == live[rank] && live[rank] <= 3);
    CHECK(peaks[rank].memory_bytes == 2 * 1000 + 100 * peaks[rank].live);
  }
  CHECK(is_refused([&] { static_cast<void>(plan.sampled()); }));
}

void options_own_their_lists() {
  PlanOptions options({{0, 1, 1, 0}}, 2, 3);
  options.iterations = 100;
  options.limit_bytes({4000, 5000});
  PlanOptions copy = options;
  CHECK(copy.rank_of != options.rank_of && copy.cap_bytes != options.cap_bytes && copy.num_cap_bytes == 2);
  copy.limit_bytes({1});
  CHECK(is_refused([&] { static_cast<void>(Plan::create(copy, uneven)); }));
  copy = options;
  const Plan plan = Plan::create(copy, uneven);
  CHECK(plan.schedule().rank_of(0, 2) == 1);
  CHECK(is_refused([&] { static_cast<void>(Plan::create(PlanOptions({{0, 1}, {0}}, 2, 3), uneven)); }));
  PlanOptions interleaved = few(PlacementKind::interleaved, 2, 2);
  CHECK(is_refused([&] { static_cast<void>(Plan::create(interleaved, uneven)); }));
  interleaved.stages_per_rank = 3;
  CHECK(Plan::create(interleaved, uneven).schedule().describe().num_stages == 6);
  for (const PlacementKind kind : {PlacementKind::linear, PlacementKind::v})
    CHECK(Plan::create(few(kind, 2, 3), uneven).describe().makespan_ns > 0);
}

void a_robust_plan_knows_its_samples() {
  Spread spread(0.05, 0.2, 8);
  spread.seed = 2;
  const Plan plan =
      Plan::create_robust(few(PlacementKind::bidirectional, 2, 4), uneven, spread, PlanObjective::p95);
  CHECK(plan.describe().objective == DUALPIPE_OBJECTIVE_P95);
  const Sampled best = plan.sampled();
  for (const SampledSchedule other : {SampledSchedule::without_spread, SampledSchedule::published}) {
    const Sampled sampled = plan.sampled(other);
    CHECK(best.p95_ns <= sampled.p95_ns && sampled.held_out_mean_ns > 0);
  }
  CHECK(Plan::create_robust(few(PlacementKind::v, 1, 1), uneven, spread).describe().objective ==
        DUALPIPE_OBJECTIVE_MEAN);
  CHECK(is_refused([&] {
    static_cast<void>(Plan::create_robust(few(PlacementKind::v, 1, 1), uneven, Spread(2, 0)));
  }));
}

void progress_stops_it_with_what_there_is() {
  PlanOptions endless = few(PlacementKind::bidirectional, 4, 7);
  endless.iterations = UINT64_MAX;
  int calls = 0;
  set_progress([&](std::uint64_t, std::uint64_t) { return ++calls < 3; });
  CHECK(Plan::create(endless, uneven).describe().stop() == PlanStop::cancelled);
  CHECK(calls == 3);
  set_progress([](std::uint64_t, std::uint64_t) -> bool { throw std::runtime_error("enough"); });
  const auto thrown = thrown_by<std::runtime_error>([&] { static_cast<void>(Plan::create(endless, uneven)); });
  CHECK(thrown.what() == std::string("enough"));
  set_progress(nullptr);
}

} // namespace

int main() {
  a_plan_is_what_it_says();
  options_own_their_lists();
  a_robust_plan_knows_its_samples();
  progress_stops_it_with_what_there_is();
  return 0;
}
