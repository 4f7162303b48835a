// The callbacks of the process: what they hear, and what they throw.
#include <dualpipe.hpp>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "throws.hpp"

using namespace dualpipe;

namespace {

const auto wrong = [] { Schedule::create(ScheduleKind::dualpipe, 7, 20); };

void the_log_hears_what_fails() {
  std::vector<std::string> lines;
  set_log([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::debug) lines.emplace_back(line);
  });
  thrown_by<Error>(wrong);
  CHECK(!lines.empty() && lines.back().find("num_ranks is 7") != std::string::npos);

  set_log([&](LogLevel, std::string_view) { throw std::out_of_range("the log is full"); });
  CHECK(std::string(thrown_by<std::out_of_range>(wrong).what()) == "the log is full");
  CHECK(Schedule::create(ScheduleKind::dualpipe, 8, 20).check().size() == 8); // nothing is left of it

  set_log(nullptr);
  const std::size_t num_lines = lines.size();
  thrown_by<Error>(wrong);
  CHECK(lines.size() == num_lines);
}

void progress_may_cancel_and_throw() {
  const std::vector<float> loads(64 * 256, 1);
  const BalanceOptions options(64, 256, 288, 32);
  std::uint64_t total = 0;
  set_progress([&](std::uint64_t done, std::uint64_t of) {
    CHECK(done <= of);
    total = of;
    return true;
  });
  CHECK(ExpertPlan::create(options, loads).layers().size() == 64 && total > 0);

  set_progress([](std::uint64_t, std::uint64_t) { return false; });
  CHECK(thrown_by<Error>([&] { ExpertPlan::create(options, loads); }).status() == Status::cancelled);

  set_progress([](std::uint64_t, std::uint64_t) -> bool { throw std::length_error("too long"); });
  CHECK(std::string(thrown_by<std::length_error>([&] { ExpertPlan::create(options, loads); }).what()) == "too long");
  set_progress(nullptr);
  CHECK(ExpertPlan::create(options, loads).layers().size() == 64);
}

} // namespace

int main() {
  the_log_hears_what_fails();
  progress_may_cancel_and_throw();
}
