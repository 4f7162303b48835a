// Proves the stand-in: that it keeps the order it should, keeps no more, and finds what it is there to find.
#include "selftest.h"

#include <chrono>
#include <cstring>
#include <thread>

namespace selftest {

int num_failures = 0;

namespace {

// The labels in the order in which lazy ops of four streams ran.
std::string order_of(uint64_t seed) {
  static std::string order;
  order.clear();
  World world(seed);
  static const char names[] = "abcd";
  for (size_t i = 0; i < 4; ++i) {
    void *const stream = world.stream(static_cast<int32_t>(i % 2));
    for (int op = 0; op < 8; ++op) {
      auto append = [](void *name) { order += *static_cast<const char *>(name); };
      OK(standin_launch(stream, "append", append, const_cast<char *>(names + i), nullptr, 0));
    }
  }
  CHECK(order.empty());
  CHECK_EQUAL(standin_run(), 0);
  CHECK_EQUAL(order.size(), 32);
  return order;
}

}  // namespace

void test_order() {
  std::vector<std::string> orders;
  size_t num_different = 0;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    orders.push_back(order_of(seed));
    CHECK(order_of(seed) == orders.back());
    num_different += orders.back() != orders.front();
  }
  CHECK(num_different > 16);

  // A wait means the recording at the time of the call: a later one, which hangs here, does not matter.
  World world;
  void *const a = world.stream(0);
  void *const b = world.stream(1);
  void *const event = world.event(0, 0);
  const uint64_t memory = world.memory();
  standin_hang_op(0, 1);
  writes(a, memory);
  follow(b, event, a);
  reads(b, memory);
  writes(a, world.memory());
  OK(cuEventRecord(event, a));
  OK(cuStreamSynchronize(b));
  CHECK_EQUAL(cuEventQuery(event), 600);
  CHECK_EQUAL(cuStreamQuery(a), 600);
  CHECK(standin_run() > 0);
  standin_release();
  OK(cuEventSynchronize(event));
  OK(cuEventQuery(event));
  OK(cuStreamWaitEvent(b, world.event(), 0));
  OK(cuEventQuery(world.event()));
  float milliseconds = -1;
  OK(cuEventElapsedTime(&milliseconds, event, event));
  CHECK(milliseconds == 0);
  CHECK_EQUAL(cuEventElapsedTime(&milliseconds, event, world.event()), 400);
  REPORTS("without timing");
}

void test_races() {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    for (const bool is_ordered : {true, false}) {
      for (const bool is_write_first : {true, false}) {
        World world(seed, seed % 10 == 0 ? STANDIN_EAGER : STANDIN_LAZY);
        void *const a = world.stream(0);
        void *const b = world.stream(1);
        const uint64_t memory = world.memory();
        touch(a, "first", memory, is_write_first);
        if (is_ordered) follow(b, world.event(), a);
        touch(b, "second", memory, !is_write_first);
        OK(cuCtxSynchronize());
        REPORTS(is_ordered ? "" : "race: ");
        if (!is_ordered) REPORTS("(#0, rank 1 stream 0)");
      }
    }
  }

  // Two reads are none, nor are neighbours; a copy reads and writes; a host that waited is an order too.
  World world;
  void *const a = world.stream();
  void *const b = world.stream();
  const uint64_t memory = world.memory(256);
  reads(a, memory);
  reads(b, memory);
  OK(cuMemcpyDtoDAsync_v2(memory + 64, memory, 64, a));
  writes(b, memory + 128);
  OK(cuStreamSynchronize(a));
  OK(cuMemsetD32Async(memory, 7, 32, b));
  OK(cuCtxSynchronize());
  REPORTS("");
  OK(cuMemsetD8Async(memory + 100, 1, 8, a));
  reads(b, memory + 64);
  OK(cuCtxSynchronize());
  REPORTS("allocation 0 bytes [100, 108)");
}

namespace {

// What a thread has synchronised with another knows by a barrier only, or by waiting for all of a context, be it for a
// stream that is no more.
void across_threads(bool has_barrier, bool synchronizes) {
  World world;
  const uint64_t memory = world.memory();
  void *const reader = world.stream();
  std::thread([&] {
    OK(cuCtxSetCurrent(world.contexts[0]));
    void *const writer = world.stream();
    writes(writer, memory);
    OK(cuStreamSynchronize(writer));
    OK(cuStreamDestroy_v2(writer));
  }).join();
  if (has_barrier) standin_host_barrier();
  if (synchronizes) OK(cuCtxSynchronize());
  reads(reader, memory);
  CHECK_EQUAL(standin_run(), 0);
  REPORTS(has_barrier || synchronizes ? "" : "race: ");
}

}  // namespace

void test_host_threads() {
  across_threads(false, false);
  across_threads(true, false);
  across_threads(false, true);
}

namespace {

// 2,000 ops on 48 streams of 8 ranks, each after some others: what a checker's run costs.
void measure() {
  const auto start = std::chrono::steady_clock::now();
  const int num_runs = 20;
  for (int run = 0; run < num_runs; ++run) {
    World world(static_cast<uint64_t>(run), STANDIN_LAZY, 8, STANDIN_RANK_LOCAL);
    std::vector<void *> streams;
    std::vector<void *> events;
    std::vector<uint64_t> buffers;
    for (size_t i = 0; i < 48; ++i) {
      streams.push_back(world.stream(static_cast<int32_t>(i % 8), i % 8));
      events.push_back(world.event(i % 8));
      buffers.push_back(world.memory(4096, i % 8));
    }
    for (size_t op = 0; op < 2000; ++op) {
      const size_t i = op % 48;
      const size_t other = (op * 7 + 1) % 48;
      OK(cuStreamWaitEvent(streams[i], events[other], 0));
      touch(streams[i], "op", buffers[i], true);
      OK(cuEventRecord(events[i], streams[i]));
    }
    CHECK_EQUAL(standin_run(), 0);
    REPORTS("");
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::printf("%.1f ms for a run of 2,000 ops, 2,000 waits and 2,000 records\n", time.count() * 1e3 / num_runs);
}

}  // namespace

}  // namespace selftest

int main(int num_arguments, char **arguments) {
  using namespace selftest;
  if (num_arguments > 1 && std::strcmp(arguments[1], "--measure") == 0) {
    measure();
  } else {
    test_order();
    test_races();
    test_host_threads();
    test_ranks();
    test_memory();
    test_faults();
    test_capture_rules();
    test_graphs();
    test_eager();
  }
  standin_reset(0, STANDIN_EAGER, 0, 0);
  std::printf("%d checks failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
