// Rank-local checking: a rank is safe by its own waits, or it is not.
#include "selftest.h"

namespace selftest {

namespace {

enum class Path { EVENT, HOST, TOKEN };

uint64_t token = 0;

int is_released(void *) { return token != 0; }
void release(void *) { standin_clock_release(&token); }
void acquire(void *) { standin_clock_acquire(token); }

// Rank 0 writes on one stream and reads on another; between them is only rank 1, which waited for the write and which
// the reader follows. With `waits_itself` the reader also waits for the write.
void pass_through_rank_1(uint64_t seed, uint32_t flags, Path path, bool waits_itself) {
  World world(seed, STANDIN_LAZY, 1, flags);
  void *const writer = world.stream(0);
  void *const reader = world.stream(0);
  void *const between = world.stream(1);
  void *const written = world.event();
  void *const passed = world.event();
  const uint64_t memory = world.memory();
  writes(writer, memory);
  follow(between, written, writer);
  if (waits_itself) OK(cuStreamWaitEvent(reader, written, 0));
  const standin_access access = {memory, 64, 0, 0};
  if (path == Path::TOKEN) {
    token = 0;
    OK(standin_enqueue(between, "send", nullptr, release, nullptr, nullptr, nullptr, 0));
    OK(standin_enqueue(reader, "receive", is_released, acquire, nullptr, nullptr, &access, 1));
  } else {
    OK(cuEventRecord(passed, between));
    if (path == Path::HOST) OK(cuEventSynchronize(passed));
    if (path == Path::EVENT) OK(cuStreamWaitEvent(reader, passed, 0));
    reads(reader, memory);
  }
  CHECK_EQUAL(standin_run(), 0);
  const bool is_race = flags == STANDIN_RANK_LOCAL && !waits_itself;
  REPORTS(is_race ? "race: read" : "");
}

// What rank 2 learns of rank 0 through rank 1 it may rely on.
void third_rank(uint32_t flags) {
  World world(0, STANDIN_LAZY, 1, flags);
  void *const streams[3] = {world.stream(0), world.stream(1), world.stream(2)};
  const uint64_t memory = world.memory();
  writes(streams[0], memory);
  follow(streams[1], world.event(), streams[0]);
  follow(streams[2], world.event(), streams[1]);
  writes(streams[2], memory);
  CHECK_EQUAL(standin_run(), 0);
  REPORTS("");
}

// Rank 1 overwrote what rank 0 wrote: rank 0's reader is safe from rank 1, not from its own other stream.
void overwritten(uint32_t flags) {
  World world(0, STANDIN_LAZY, 1, flags);
  void *const writer = world.stream(0);
  void *const reader = world.stream(0);
  void *const between = world.stream(1);
  const uint64_t memory = world.memory();
  writes(writer, memory);
  follow(between, world.event(), writer);
  writes(between, memory);
  follow(reader, world.event(), between);
  reads(reader, memory);
  CHECK_EQUAL(standin_run(), 0);
  REPORTS(flags == STANDIN_RANK_LOCAL ? "\"writer\" (#0, rank 0 stream 0)" : "");
}

}  // namespace

void test_ranks() {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    for (const uint32_t flags : {0u, static_cast<uint32_t>(STANDIN_RANK_LOCAL)}) {
      for (const Path path : {Path::EVENT, Path::HOST, Path::TOKEN}) {
        pass_through_rank_1(seed, flags, path, true);
        pass_through_rank_1(seed, flags, path, false);
      }
      third_rank(flags);
      overwritten(flags);
    }
  }
}

}  // namespace selftest
