// What the stand-in knows of a host thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "clock.h"

namespace standin {

struct Thread {
  int32_t rank = -1;
  bool is_inside_op = false;

  // The rest is forgotten when the thread first calls into a new life.
  uint64_t life = 0;
  uint32_t capture_mode = 0;
  std::vector<void *> contexts;
  HostClock clock;
  std::shared_ptr<const HostClock> snapshot;  // of the clock; null when it has changed since
  uint64_t num_barriers = 0;                  // of the life, that the clock has

  // What the thread knows, for an op that it enqueues.
  const std::shared_ptr<const HostClock> &knows() {
    if (snapshot == nullptr && clock.all.size() > 0) snapshot = std::make_shared<const HostClock>(clock);
    return snapshot;
  }

  // The thread learns what another host clock has.
  void learn(const Components &components, const HostClock &from) {
    components.join(clock, from);
    snapshot = nullptr;
  }

  // The thread has synchronised with a stream of a rank.
  void learn(const Components &components, const Clock &from, int32_t from_rank) {
    components.join(clock, from, from_rank);
    snapshot = nullptr;
  }
};

Thread &this_thread(uint64_t life);

}  // namespace standin
