// Files with and without exceptions in one program: each has its own kind of the same functions. Compiled together with
// two_kinds_other.cpp.
#include <dualpipe.hpp>

#include "throws.hpp"

std::uint32_t stages_or_none(std::uint32_t num_ranks);

int main() {
  const auto stages = [](std::uint32_t num_ranks) {
    return dualpipe::Schedule::create(dualpipe::ScheduleKind::dualpipe, num_ranks, 40).describe().num_stages;
  };
  CHECK(stages(8) == 8 && stages_or_none(8) == 8);
  CHECK(stages_or_none(7) == dualpipe::none);
  CHECK(thrown_by<dualpipe::Error>([&] { stages(7); }).status() == dualpipe::Status::invalid_argument);
}
