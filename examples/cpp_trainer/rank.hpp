// What one rank of the pipeline does: the tasks that the executor hands it, and the optimizer after them.
#pragma once

#include <dualpipe.hpp>

#include <optional>
#include <string>
#include <vector>

#include "options.hpp"
#include "shape.hpp"

namespace trainer {

inline dualpipe::Schedule create_schedule(const Options &options) {
  dualpipe::ScheduleKind kind = dualpipe::ScheduleKind::dualpipe;
  if (options.schedule == "dualpipe_v") kind = dualpipe::ScheduleKind::dualpipe_v;
  if (options.schedule == "1f1b") kind = dualpipe::ScheduleKind::one_f_one_b;
  return dualpipe::Schedule::create(kind, options.num_ranks, options.num_microbatches);
}

// A stage copy: the stage, and the direction of the micro-batches that it is for.
struct Place {
  uint32_t direction;
  uint32_t stage;
};

// The stage copies of a rank, in the order of its copies.
inline std::vector<Place> places(const dualpipe::Schedule &schedule, uint32_t rank) {
  const dualpipe::ScheduleInfo info = schedule.describe();
  std::vector<Place> found;
  for (uint32_t direction = 0; direction < info.num_directions; direction++) {
    for (uint32_t stage = 0; stage < info.num_stages; stage++) {
      if (schedule.rank_of(direction, stage) == rank) found.push_back({direction, stage});
    }
  }
  return found;
}

class Rank {
public:
  virtual ~Rank() = default;

  // A step is begin_step, then every task of the program, then finish_step.
  virtual void begin_step(uint64_t step) = 0;
  virtual void run(const dualpipe::Task &task) = 0;
  // Sums the gradients of stages with two copies.
  virtual void finish_step() = 0;
  // Changes the parameters by the gradients' mean over micro-batches.
  virtual void update() = 0;

  // The stage copies it has, and of each what it holds after finish_step.
  virtual const std::vector<Place> &copies() const = 0;
  virtual std::vector<float> parameters(size_t copy) = 0;
  virtual std::vector<float> grads(size_t copy) = 0;

  // Of the last step, [num_microbatches]; zero where another rank has it, so that the sum over ranks is all.
  virtual std::vector<double> losses() = 0;
  // Visits of each expert in all steps, [num_layers, num_experts], likewise.
  virtual std::vector<float> loads() = 0;

  // What an executor needs to know of the device that it computes on.
  virtual std::optional<dualpipe::CudaOptions> cuda() const { return std::nullopt; }
};

// The number of a micro-batch over both directions, by which data and losses are counted.
inline uint32_t global_microbatch(const dualpipe::ScheduleInfo &info, uint32_t direction, uint32_t microbatch) {
  return direction * (info.num_microbatches / info.num_directions) + microbatch;
}

} // namespace trainer
