// Trains a small mixture-of-experts language model with any schedule: see README.md.
#include <dualpipe.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "cuda/cuda_rank.hpp"
#include "data.hpp"
#include "host_rank.hpp"
#include "options.hpp"
#include "pipeline.hpp"
#include "profile.hpp"
#include "rank.hpp"
#include "reduce.hpp"
#include "report.hpp"
#include "sequential.hpp"

namespace trainer {
namespace {

void print_header(const Options &o, const Shape &shape, const Data &data) {
  std::printf("A language model of bytes, %u stages of %u MoE block%s: width %u, 1 shared and 2 of %u experts\n",
              shape.num_stages, shape.num_blocks, shape.num_blocks == 1 ? "" : "s", shape.width, shape.num_experts);
  std::printf("  text       %zu bytes\n", data.size());
  std::printf("  step       %u micro-batches of %u tokens\n", o.num_microbatches, shape.num_tokens);
  std::printf("  schedule   %s, %u ranks, F&B pairs %s\n", o.schedule.c_str(), o.num_ranks,
              o.overlaps ? "overlapped" : "one half after the other");
  std::printf("  device     %s\n\n", o.device.c_str());
}

// Loss and gradients of one more step against a sequential run with the same parameters. Whether they agree.
bool check(Pipeline &pipeline, const Options &o, const Shape &shape, uint32_t num_directions, const Data &data) {
  Sequential sequential(shape, data, o.seed);
  std::vector<std::vector<float>> parameters(shape.num_stages);
  pipeline.on_copies([&](Rank &rank, size_t copy, uint32_t stage) {
    if (parameters[stage].empty()) parameters[stage] = rank.parameters(copy);
    if (parameters[stage] != rank.parameters(copy)) {
      throw std::runtime_error("the two copies of stage " + std::to_string(stage) + " are not equal any more");
    }
  });
  for (uint32_t stage = 0; stage < shape.num_stages; stage++) sequential.stage(stage).parameters() = parameters[stage];

  const double loss = pipeline.step(o.num_steps);
  const double reference = sequential.step(o.num_steps, o.num_microbatches, num_directions);
  std::printf("\nOne more step against a sequential run: loss %.9f, sequentially %.9f\n", loss, reference);
  const double tolerance = o.device == "cpu" ? host_tolerance : device_tolerance;
  Check check(tolerance);
  pipeline.on_copies([&](Rank &rank, size_t copy, uint32_t stage) {
    check.add(stage, rank.grads(copy), sequential.stage(stage).grads());
  });
  const bool is_loss_right = std::fabs(loss - reference) <= tolerance * reference;
  if (!is_loss_right) std::printf("  The losses differ.\n");
  return check.print() && is_loss_right;
}

int train(const Options &o) {
  const dualpipe::Schedule schedule = create_schedule(o);
  Shape shape = o.shape;
  shape.num_stages = schedule.describe().num_stages;
  const Data data(o.data, shape, o.seed);
  ThreadReduction reduction{std::chrono::seconds(o.timeout_s)};
  std::vector<std::unique_ptr<Rank>> ranks;
  if (o.device == "cuda") {
    ranks = cuda::create_ranks(schedule, o, shape, data);
  } else {
    for (uint32_t rank = 0; rank < o.num_ranks; rank++) {
      ranks.push_back(std::make_unique<HostRank>(schedule, rank, o, shape, data, reduction));
    }
  }
  Pipeline pipeline(schedule, o, shape, std::move(ranks));
  print_header(o, shape, data);

  Profile profile(shape);
  for (uint32_t step = 0; step < o.num_steps; step++) {
    const double loss = pipeline.step(step);
    pipeline.update();
    if (step > 0 || o.num_steps == 1) profile.add(pipeline.timeline()); // the first is slower: it allocates
    if (step % std::max(o.num_steps / 8, 1u) == 0 || step + 1 == o.num_steps) {
      std::printf("  step %4u   loss %.6f\n", step, loss);
      std::fflush(stdout);
    }
  }
  print_times(schedule, profile, pipeline.timeline());
  print_placement(pipeline.loads(), shape, o.num_gpus);
  return !o.checks || check(pipeline, o, shape, schedule.describe().num_directions, data) ? 0 : 1;
}

int run(const std::vector<std::string> &arguments) {
  try {
    const Options options = Options::parse(arguments);
    if (options.asks_for_help) return std::printf("cpp_trainer [options]\n%s", Options::usage()), 0;
    return train(options);
  } catch (const UsageError &error) {
    std::fprintf(stderr, "cpp_trainer: %s\n", error.what());
    return 2;
  } catch (const dualpipe::Error &error) {
    std::fprintf(stderr, "cpp_trainer: %s\n", error.what());
    // What was asked for cannot be done, or the run failed.
    const bool is_refused =
        error.status() == dualpipe::Status::invalid_argument || error.status() == dualpipe::Status::unavailable;
    return is_refused ? 2 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "cpp_trainer: %s\n", error.what());
    return 1;
  }
}

} // namespace
} // namespace trainer

int main(int count, char **arguments) { return trainer::run({arguments + 1, arguments + count}); }
