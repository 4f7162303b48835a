// Eager lives under real threads: rank threads that enqueue, wait and hand over to each other.
#include <atomic>
#include <thread>

#include "selftest.h"

namespace selftest {

namespace {

constexpr int NUM_RANKS = 4;
constexpr int NUM_ROUNDS = 50;

struct Shared {
  void *context = nullptr;
  uint64_t buffers[NUM_RANKS] = {};
  void *filled[NUM_RANKS] = {};
  void *emptied[NUM_RANKS] = {};
  std::atomic<int> num_filled[NUM_RANKS] = {};
  std::atomic<int> num_emptied[NUM_RANKS] = {};
};

void wait_for(const std::atomic<int> &number, int wanted) {
  while (number < wanted) std::this_thread::yield();
}

// Each rank fills its buffer, which the next rank copies away on a stream of its own.
void rank_thread(Shared &shared, int rank) {
  const int before = (rank + NUM_RANKS - 1) % NUM_RANKS;
  void *sender = nullptr;
  void *receiver = nullptr;
  uint64_t received = 0;
  standin_set_rank(rank);
  OK(cuCtxSetCurrent(shared.context));
  OK(cuStreamCreate(&sender, 1));
  OK(cuStreamCreate(&receiver, 1));
  OK(cuMemAlloc_v2(&received, 64));
  for (int round = 0; round < NUM_ROUNDS; ++round) {
    wait_for(shared.num_emptied[rank], round);
    OK(cuStreamWaitEvent(sender, shared.emptied[rank], 0));
    OK(cuMemsetD32Async(shared.buffers[rank], static_cast<uint32_t>(100 * round + rank), 16, sender));
    OK(cuEventRecord(shared.filled[rank], sender));
    shared.num_filled[rank] = round + 1;
    wait_for(shared.num_filled[before], round + 1);
    OK(cuStreamWaitEvent(receiver, shared.filled[before], 0));
    OK(cuMemcpyDtoDAsync_v2(received, shared.buffers[before], 64, receiver));
    OK(cuEventRecord(shared.emptied[before], receiver));
    shared.num_emptied[before] = round + 1;
    if (round % 8 != 7) continue;
    uint32_t value = 0;
    OK(cuStreamSynchronize(receiver));
    OK(cuMemcpyDtoH_v2(&value, received, 4));
    CHECK_EQUAL(value, 100 * round + before);
  }
  OK(cuCtxSynchronize());
  OK(cuStreamDestroy_v2(sender));
  OK(cuStreamDestroy_v2(receiver));
  OK(cuMemFree_v2(received));
}

}  // namespace

void test_eager() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const uint32_t mode : {STANDIN_EAGER, STANDIN_LAZY}) {
      World world(seed, mode, 1, STANDIN_RANK_LOCAL);
      Shared shared;
      shared.context = world.contexts[0];
      for (int rank = 0; rank < NUM_RANKS; ++rank) {
        shared.buffers[rank] = world.memory();
        shared.filled[rank] = world.event();
        shared.emptied[rank] = world.event();
      }
      std::vector<std::thread> threads;
      for (int rank = 0; rank < NUM_RANKS; ++rank) {
        threads.emplace_back([&shared, rank] { rank_thread(shared, rank); });
      }
      for (std::thread &thread : threads) thread.join();
      CHECK_EQUAL(standin_live("streams"), 0);
      CHECK_EQUAL(standin_live("allocations"), NUM_RANKS);
      REPORTS("");
    }
  }
}

}  // namespace selftest
