// Ops die wherever the last pointer to them goes, mostly under the engine's lock.
#include "drops.h"

#include <mutex>
#include <utility>
#include <vector>

#include "objects.h"

namespace standin {

namespace {

struct Drops {
  std::mutex mutex;
  std::vector<std::pair<void (*)(void *), void *>> waiting;
};

// Never destroyed: ops may die while the process ends.
Drops &drops() {
  static Drops *const drops = new Drops;
  return *drops;
}

}  // namespace

void put_off_drop(void (*drop)(void *), void *user) {
  const std::lock_guard<std::mutex> lock(drops().mutex);
  drops().waiting.emplace_back(drop, user);
}

void run_drops() {
  std::vector<std::pair<void (*)(void *), void *>> waiting;
  {
    const std::lock_guard<std::mutex> lock(drops().mutex);
    waiting.swap(drops().waiting);
  }
  for (const auto &[drop, user] : waiting) drop(user);
}

Work::~Work() {
  if (drop != nullptr) put_off_drop(drop, user);
}

}  // namespace standin
