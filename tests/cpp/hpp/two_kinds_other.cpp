// The half of two_kinds.cpp that throws nothing.
#define DUALPIPE_NO_EXCEPTIONS
#include <dualpipe.hpp>

std::uint32_t stages_or_none(std::uint32_t num_ranks) {
  const auto schedule = dualpipe::Schedule::create(dualpipe::ScheduleKind::dualpipe, num_ranks, 40);
  return schedule.has_value() ? schedule->describe()->num_stages : dualpipe::none;
}
