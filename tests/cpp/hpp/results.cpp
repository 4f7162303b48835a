// The C++ header without exceptions: compiled with and without -fno-exceptions.
#define DUALPIPE_NO_EXCEPTIONS
#include <dualpipe.hpp>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../c/check.h"
#include "pipeline.hpp"

using namespace dualpipe;

namespace {

void values_and_errors_are_returned() {
  const Expected<Schedule> schedule = Schedule::create(ScheduleKind::dualpipe, 8, 20);
  CHECK(schedule.has_value() && schedule && schedule->describe()->num_stages == 8);
  CHECK(schedule->order(0).value().size() == (*schedule).order(7)->size());
  CHECK(schedule->order(8).error().status() == Status::invalid_argument);
  CHECK(schedule->to_text().has_value() && schedule->check()->size() == 8);

  const Expected<Schedule> odd = Schedule::create(ScheduleKind::dualpipe, 7, 20);
  CHECK(!odd.has_value() && !odd && odd.error().status() == Status::invalid_argument);
  CHECK(std::strstr(odd.error().what(), "num_ranks is 7") != nullptr);

  const auto timeline = Timeline::simulate(*schedule, Costs({1000, 1000, 1000, 2500, 0, 0, 0}));
  CHECK(timeline->summarize()->makespan_ns == 59000);
  Schedule moved = Schedule::create(ScheduleKind::one_f_one_b, 2, 2).value();
  CHECK(moved.rank_of(0, 1).value() == 1);

  const Expected<CudaInfo> cuda = cuda_available();
  CHECK(cuda.has_value() || cuda.error().status() == Status::unavailable || cuda.error().status() == Status::device);
  static_cast<void>(set_log(nullptr));
}

void steps_end_with_a_result() {
  const auto schedule = Schedule::create(ScheduleKind::one_f_one_b, 2, 4);
  for (const bool fails : {false, true}) {
    const auto inproc = Inproc::create(2);
    std::vector<Adder> adders(2);
    on_threads(2, [&](std::uint32_t rank) {
      ExecutorOptions options;
      options.tensors = {TensorSpec(DType::f32, {1})};
      options.inproc = &*inproc;
      Expected<Executor> executor = Executor::create(*Program::create(*schedule, rank), options);
      CHECK(executor.has_value());
      const Expected<void> stepped = executor->step([&](const Task &task) -> Expected<void> {
        if (fails && rank == 1 && task.backward() != nullptr) return Error(Status::internal, "out of luck");
        adders[rank](task);
        return {};
      });
      CHECK(stepped.has_value() == !fails);
      CHECK(executor->fault()->has_value() == fails);
      if (fails) {
        CHECK(stepped.error().status() == (rank == 1 ? Status::callback_failed : Status::peer_failed));
        CHECK(std::strstr(stepped.error().what(), "out of luck") != nullptr);
      } else {
        CHECK(executor->timeline()->spans()->size() == 8 && executor->graph()->why.empty());
        CHECK(executor->start([&](const Task &task) { adders[rank](task); }).has_value());
        CHECK(executor->wait(std::chrono::seconds(10)).has_value());
      }
    });
    CHECK(fails || adders[1].sum == 2 * (6 + 4 * 3)); // micro-batches 0 to 3, and 1 + 2 for each
  }
}

} // namespace

int main() {
  values_and_errors_are_returned();
  steps_end_with_a_result();
}
