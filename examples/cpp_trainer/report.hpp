// What is printed when training is over.
#pragma once

#include <dualpipe.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "profile.hpp"
#include "shape.hpp"

namespace trainer {

inline double ms(uint64_t ns) { return static_cast<double>(ns) / 1e6; }

// What a column of a picture shows of an op: F, B, I and W, small letters in direction 1; & is an F&B pair, + a
// reduction.
inline char letter(const dualpipe::Op &op) {
  const bool is_small = (op.kind() == dualpipe::OpKind::F ? op.forward : op.backward).direction == 1;
  switch (op.kind()) {
  case dualpipe::OpKind::F: return is_small ? 'f' : 'F';
  case dualpipe::OpKind::B: return is_small ? 'b' : 'B';
  case dualpipe::OpKind::I: return is_small ? 'i' : 'I';
  case dualpipe::OpKind::W: return is_small ? 'w' : 'W';
  case dualpipe::OpKind::FB: return '&';
  case dualpipe::OpKind::reduce_grads: return '+';
  }
  return '?';
}

// A line for each rank, `width` columns of equal time. Timeline::draw(DrawFormat::text) has the micro-batches as well,
// and is wider.
inline void draw(const dualpipe::Timeline &timeline, size_t width) {
  const dualpipe::TimelineSummary summary = timeline.summarize();
  std::vector<std::string> lines(summary.num_ranks, std::string(width, '.'));
  const double column_ns = static_cast<double>(summary.makespan_ns) / static_cast<double>(width);
  for (const dualpipe::OpSpan &span : timeline.spans()) {
    for (size_t column = 0; column < width; column++) {
      const double at = (static_cast<double>(column) + 0.5) * column_ns; // its middle
      if (at >= static_cast<double>(span.start_ns) && at < static_cast<double>(span.end_ns)) {
        lines[span.rank][column] = letter(span.op());
      }
    }
  }
  for (size_t rank = 0; rank < lines.size(); rank++) std::printf("  %2zu |%s|\n", rank, lines[rank].c_str());
}

// The schedule as simulated with the measured costs, and the two beside one another.
inline void print_times(const dualpipe::Schedule &schedule, const Profile &profile, const dualpipe::Timeline &last) {
  const dualpipe::Costs costs = profile.costs();
  const dualpipe::Timeline simulated = dualpipe::Timeline::simulate(schedule, costs);
  const dualpipe::TimelineSummary summary = simulated.summarize();
  std::printf("\nThe schedule, as the measured task times predict it, and the last step\n");
  draw(simulated, 96);
  std::printf("\n");
  draw(last, 96);
  std::printf("\n  %-20s %9s %9s\n", "a step", "predicted", "measured");
  std::printf("  %-20s %6.2f ms %6.2f ms   the median of %zu\n", "makespan", ms(summary.makespan_ns),
              ms(profile.makespan_ns()), profile.num_steps());
  std::printf("  %-20s %7.1f %% %7.1f %%\n", "bubble", 100 * summary.bubble_share, 100 * profile.bubble());
  std::printf("  %-20s %6.2f ms\n", "no schedule is below", ms(summary.lower_bound_ns));
  dualpipe::StageCosts sum{};
  for (const dualpipe::StageCosts &cost : costs.stages) {
    sum.forward_ns += cost.forward_ns;
    sum.input_ns += cost.input_ns;
    sum.weight_ns += cost.weight_ns;
    sum.overlapped_ns += cost.overlapped_ns;
  }
  const double n = static_cast<double>(costs.stages.size());
  std::printf("  %-20s F %.2f, I %.2f, W %.2f ms", "mean of stages", ms(sum.forward_ns) / n, ms(sum.input_ns) / n,
              ms(sum.weight_ns) / n);
  if (profile.has_pairs()) {
    std::printf("; F&B %.2f ms, its halves alone %.2f ms", ms(sum.overlapped_ns) / n,
                ms(sum.forward_ns + sum.input_ns + sum.weight_ns) / n);
  }
  std::printf("\n");
}

// The fullest GPU's load / the mean, if each GPU has the same number of experts, in order.
inline double imbalance_in_order(const float *loads, uint32_t num_experts, uint32_t num_gpus) {
  const uint32_t each = num_experts / num_gpus;
  float fullest = 0;
  for (uint32_t gpu = 0; gpu < num_gpus; gpu++) {
    fullest = std::max(fullest, std::accumulate(loads + gpu * each, loads + (gpu + 1) * each, 0.0f));
  }
  const float all = std::accumulate(loads, loads + num_experts, 0.0f);
  return all > 0 ? static_cast<double>(fullest) * num_gpus / static_cast<double>(all) : 1.0;
}

// Places the experts by the visits that they had, [num_layers, num_experts], with a spare slot on each GPU.
inline void print_placement(const std::vector<float> &loads, const Shape &shape, uint32_t num_gpus) {
  const uint32_t num_slots = shape.num_experts + num_gpus;
  const dualpipe::BalanceOptions options(shape.num_layers(), shape.num_experts, num_slots, num_gpus);
  const dualpipe::ExpertPlan plan = dualpipe::ExpertPlan::create(options, loads);
  const std::vector<dualpipe::LayerBalance> layers = plan.layers();
  const std::vector<int64_t> slots = plan.slot_to_expert();
  std::printf("\nExperts on %u GPUs, by the tokens they had: the fullest GPU / mean\n", num_gpus);
  std::printf("  layer  in order  balanced  bound   experts of each GPU\n");
  constexpr uint32_t shown_max = 16; // more slots do not fit into a line
  for (uint32_t layer = 0; layer < shape.num_layers(); layer++) {
    const float *const row = loads.data() + size_t{layer} * shape.num_experts;
    std::printf("  %5u  %8.3f  %8.3f  %5.3f  ", layer, imbalance_in_order(row, shape.num_experts, num_gpus),
                layers[layer].imbalance, layers[layer].lower_bound);
    for (uint32_t slot = 0; slot < std::min(num_slots, shown_max); slot++) {
      const char *const separator = slot % (num_slots / num_gpus) == 0 && slot > 0 ? " | " : " ";
      std::printf("%s%d", separator, static_cast<int>(slots[size_t{layer} * num_slots + slot]));
    }
    std::printf("%s\n", num_slots > shown_max ? " ..." : "");
  }
}

} // namespace trainer
