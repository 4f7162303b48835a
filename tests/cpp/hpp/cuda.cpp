// CUDA through the C++ header: without a driver, what is missing; on one, a step whose pairs overlap part by part. With
// an argument there must be a driver.
#include <dualpipe.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline.hpp"
#include "throws.hpp"

using namespace dualpipe;

namespace {

void nothing_is_there() {
  const Error error = thrown_by<Error>([] { cuda_available(); });
  CHECK(error.status() == Status::unavailable && std::string(error.what()).find("libcuda.so") != std::string::npos);
  CHECK(thrown_by<Error>([] { Overlap::create(0); }).status() == Status::unavailable);
}

ExecutorOptions on_device(const Inproc &inproc) {
  ExecutorOptions options;
  options.tensors = {TensorSpec(DType::f32, {16})};
  options.inproc = &inproc;
  options.cuda.emplace();
  options.cuda->has_comm_stream = 1;
  options.cuda->is_timed = 1;
  return options;
}

/// Tasks that enqueue nothing of their own, and the parts of pairs in their order.
void pairs_overlap_part_by_part() {
  const Schedule schedule = Schedule::create(ScheduleKind::dualpipe, 2, 6);
  for (const bool fails : {false, true}) {
    const Inproc inproc = Inproc::create(2);
    on_threads(2, [&](std::uint32_t rank) {
      Executor executor = Executor::create(Program::create(schedule, rank), on_device(inproc));
      const Overlap overlap = Overlap::create(0);
      std::size_t num_pairs = 0;
      const auto run = [&](const Task &task) {
        CHECK(task.compute_stream() != nullptr && task.comm_stream() != nullptr);
        if (task.kind() != OpKind::FB) return;
        std::vector<Part> parts;
        overlap.run(task, 1, 1, [&](Part part, std::uint32_t block, void *stream) {
          CHECK(block == 0);
          const bool communicates = part == Part::dispatch_F || part == Part::combine_F || part == Part::combine_B ||
                                    part == Part::dispatch_B;
          CHECK(stream == (communicates ? task.comm_stream() : task.compute_stream()));
          if (fails && rank == 1 && part == Part::mlp_W) throw std::runtime_error("no room for gradients");
          parts.push_back(part);
        });
        CHECK(parts.size() == 10);
        num_pairs += 1;
      };
      if (fails && rank == 1) {
        const auto error = thrown_by<std::runtime_error>([&] { executor.step(run); });
        CHECK(std::string(error.what()) == "no room for gradients");
      } else if (fails) {
        const Error error = thrown_by<Error>([&] { executor.step(run); });
        CHECK(std::string(error.what()).find("no room for gradients") != std::string::npos);
      } else {
        executor.step(run);
        executor.synchronize(std::chrono::seconds(10));
        CHECK(num_pairs > 0 && executor.timeline().summarize().source() == TimelineSource::recorded);
      }
    });
  }
}

/// Ranks of one process, joined as if they were of several.
void nccl_joins_ranks() {
  const Schedule schedule = Schedule::create(ScheduleKind::one_f_one_b, 2, 4);
  CHECK(nccl_version() >= 20000);
  NcclOptions nccl(nccl_unique_id(schedule));
  CHECK(nccl.unique_id.size() == 256);
  nccl.max_ctas = 1;
  on_threads(2, [&](std::uint32_t rank) {
    ExecutorOptions options;
    options.tensors = {TensorSpec(DType::f32, {16})};
    options.cuda.emplace();
    options.cuda->uses_graph = 1;
    options.nccl = nccl;
    Executor executor = Executor::create(Program::create(schedule, rank), options);
    for (int step = 0; step < 3; step++) executor.step([](const Task &) {});
    CHECK(executor.graph().state == GraphState::captured);
  });
}

} // namespace

int main(int argc, char **) {
  if (argc == 1) {
    // A machine may have a driver.
    try {
      cuda_available();
    } catch (const Error &) {
      nothing_is_there();
    }
    return 0;
  }
  CHECK(cuda_available().num_devices >= 1 && cuda_available().driver_version >= 12000);
  pairs_overlap_part_by_part();
  nccl_joins_ranks();
}
