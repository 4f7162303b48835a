// A user's program in C++: the schedule of the README, simulated.
#include <dualpipe.hpp>

#include <cstdio>

int main() {
  const auto schedule = dualpipe::Schedule::create(dualpipe::ScheduleKind::dualpipe, 8, 20);
  const dualpipe::Costs costs({1000, 1000, 1000, 2500, 0, 0, 0});
  const auto summary = dualpipe::Timeline::simulate(schedule, costs).summarize();
  std::printf("%.1f us\n", static_cast<double>(summary.makespan_ns) / 1e3);
  return summary.makespan_ns == 59000 ? 0 : 1;
}
