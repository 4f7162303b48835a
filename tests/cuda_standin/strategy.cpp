// The seeded choice among streams.
#include "strategy.h"

#include <algorithm>

#include "text.h"

namespace standin {

namespace {

// Priorities start above this; changed ones count down from it.
constexpr uint64_t HIGH = uint64_t{1} << 63;

}  // namespace

Strategy::Strategy(uint64_t seed)
    : seed_(mix(seed, 0)),
      is_uniform_(seed % 4 == 3),
      steps_per_change_(uint64_t{8} << mix(seed, 1) % 8),
      next_low_(HIGH - 1) {}

uint64_t Strategy::priority(const Lane::Key &key) const {
  const uint64_t rank = static_cast<uint32_t>(key.rank);
  return HIGH | mix(mix(mix(seed_, rank), key.is_graph), key.ordinal);
}

Lane &Strategy::pick(const std::vector<Lane *> &runnable) {
  num_steps_ += 1;
  if (is_uniform_) return *runnable[mix_step(0) % runnable.size()];
  auto is_lower = [](const Lane *a, const Lane *b) { return a->priority < b->priority; };
  Lane &chosen = **std::max_element(runnable.begin(), runnable.end(), is_lower);
  if (mix_step(1) % steps_per_change_ == 0) chosen.priority = next_low_--;
  return chosen;
}

uint64_t Strategy::mix_step(uint64_t salt) const { return mix(mix(seed_, salt), num_steps_); }

}  // namespace standin
