// Which of the streams that can go on does: a function of the seed and of what is queued.
#pragma once

#include <cstdint>
#include <vector>

#include "objects.h"

namespace standin {

// Three seeds of four choose by priority, as PCT does (Burckhardt et al., ASPLOS 2010): every lane has a seeded
// priority, the highest that can run does, and at seeded steps the chosen lane falls below all others. PCT knows the
// number of steps beforehand; here changes come at a seeded rate. This finds what needs one stream to be late for long.
// The fourth seed chooses uniformly.
class Strategy {
 public:
  explicit Strategy(uint64_t seed);

  uint64_t priority(const Lane::Key &key) const;

  // One of these lanes, which come in the order of their keys.
  Lane &pick(const std::vector<Lane *> &runnable);

  // A draw that follows the steps; for the jitter of an eager life.
  uint64_t draw() const { return mix_step(2); }

 private:
  uint64_t mix_step(uint64_t salt) const;

  uint64_t seed_;
  bool is_uniform_;
  uint64_t steps_per_change_;
  uint64_t num_steps_ = 0;
  uint64_t next_low_;
};

}  // namespace standin
