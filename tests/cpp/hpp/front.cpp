// Memory against time and the choice across placements, in C++.
#include <dualpipe.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

const Costs unit({1000, 1000, 1000, 2500, 16, 32, 64});

PlanOptions options() {
  PlanOptions options(PlacementKind::v, 4, 8);
  options.iterations = 100;
  options.num_threads = 1;
  return options;
}

void fronts_have_points_schedules_and_pictures() {
  const std::vector<std::uint64_t> caps = {4, 6, 9};
  const Front front = Front::create(options(), unit, MemoryUnit::activations, caps);
  const FrontInfo info = front.describe();
  CHECK(info.unit() == MemoryUnit::activations && info.num_points == 3 && info.is_stopped == 0);
  std::uint64_t before = UINT64_MAX;
  for (std::uint32_t i = 0; i < info.num_points; i++) {
    const FrontPoint point = front.point(i);
    CHECK(point.cap == caps[i] && point.peak <= point.cap && point.makespan_ns <= before);
    const Schedule schedule = front.schedule(i);
    const std::vector<std::uint32_t> live = schedule.check();
    CHECK(*std::max_element(live.begin(), live.end()) == point.peak);
    CHECK(Timeline::simulate(schedule, unit).summarize().makespan_ns == point.makespan_ns);
    CHECK(!front.started_from(i).empty());
    before = point.makespan_ns;
  }
  const std::vector<FrontPublished> published = front.published();
  CHECK(published.size() == info.num_published && published.size() == 4);
  bool has_dualpipe_v = false;
  for (std::uint32_t i = 0; i < info.num_published; i++) has_dualpipe_v |= front.published_name(i) == "dualpipe_v";
  CHECK(has_dualpipe_v);
  CHECK(front.draw(FrontFormat::text).rfind("4 ranks, 8 micro-batches: ", 0) == 0);
  CHECK(front.draw(FrontFormat::svg).find("dualpipe_v") != std::string::npos);

  const Front in_bytes = Front::create(options(), unit, MemoryUnit::bytes);
  CHECK(in_bytes.describe().unit() == MemoryUnit::bytes && in_bytes.point(0).cap == 2 * 64 + 2 * 32);

  const std::array<std::uint64_t, 2> falling = {6, 4};
  const Error refused =
      thrown_by<Error>([&] { Front::create(options(), unit, MemoryUnit::activations, falling); });
  CHECK(refused.status() == Status::invalid_argument);
  CHECK(std::string(refused.what()).find("caps[1] is 4, must be more than 6") != std::string::npos);
  CHECK(thrown_by<Error>([&] { front.point(3); }).status() == Status::invalid_argument);
}

void comparisons_rank_placements() {
  ComparisonOptions given(4, 6);
  given.iterations = 20;
  given.limit_activations({5});
  const ComparisonOptions copied = given;
  given.limit_activations({1}); // not the copy's
  const Comparison comparison = Comparison::create(copied, unit);
  CHECK(comparison.count() == 28);
  const Candidate best = comparison.candidate(0);
  CHECK(best.is_possible == 1 && best.fits == 1 && best.peak_activations <= 5 && comparison.reason(0).empty());
  CHECK(comparison.timeline(0).summarize().makespan_ns == best.makespan_ns);
  CHECK(!comparison.schedule(0).check().empty());
  // DualPipeV on 4 ranks wants 7 micro-batches.
  const std::uint32_t last = comparison.count() - 1;
  CHECK(comparison.candidate(last).is_possible == 0 && comparison.candidate(last).makespan_ns == 0);
  CHECK(comparison.candidate(last).placement() == PlacementKind::v);
  CHECK(comparison.name(last) == "dualpipe_v");
  const Error refused = thrown_by<Error>([&] { comparison.schedule(last); });
  CHECK(std::string(refused.what()).find(comparison.reason(last)) != std::string::npos);
  CHECK(comparison.to_text().rfind("4 ranks, 6 micro-batches, at most 5 on each rank (activations)\n", 0) == 0);
  given.limit_activations({}).limit_bytes({1 << 20});
  CHECK(Comparison::create(given, unit).to_text().find("(MiB)") != std::string::npos);
}

} // namespace

int main() {
  fronts_have_points_schedules_and_pictures();
  comparisons_rank_placements();
  return 0;
}
