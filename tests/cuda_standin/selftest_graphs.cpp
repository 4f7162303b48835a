// Capture by CUDA's rules, and replays that keep the captured order and no more.
#include <thread>

#include "selftest.h"

namespace selftest {

namespace {

constexpr uint32_t GLOBAL = 0;
constexpr uint32_t THREAD_LOCAL = 1;
constexpr uint32_t RELAXED = 2;

// Ends a capture that should fail, which leaves no graph.
void ends_with(void *stream, int32_t status) {
  void *graph = stream;
  CHECK_EQUAL(cuStreamEndCapture(stream, &graph), status);
  CHECK(graph == nullptr);
  int is_capturing = 1;
  OK(cuStreamIsCapturing(stream, &is_capturing));
  CHECK_EQUAL(is_capturing, 0);
}

// A capture is invalid after a call, and says so.
void is_invalid(void *stream) {
  int status = 0;
  OK(cuStreamIsCapturing(stream, &status));
  CHECK_EQUAL(status, 2);
  CHECK_EQUAL(standin_launch(stream, "late", nullptr, nullptr, nullptr, 0), 901);
  ends_with(stream, 901);
}

void unjoined_and_isolated() {
  World world;
  void *const a = world.stream();
  void *const b = world.stream();
  void *const event = world.event();
  const uint64_t memory = world.memory();

  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  follow(b, event, a);
  writes(b, memory);
  ends_with(a, 904);
  int is_capturing = 1;
  OK(cuStreamIsCapturing(b, &is_capturing));
  CHECK_EQUAL(is_capturing, 0);

  OK(cuEventRecord(event, b));
  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  CHECK_EQUAL(cuStreamWaitEvent(a, event, 0), 905);
  is_invalid(a);

  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  OK(cuStreamBeginCapture_v2(b, GLOBAL));
  OK(cuEventRecord(event, b));
  CHECK_EQUAL(cuStreamWaitEvent(a, event, 0), 902);
  is_invalid(b);
  is_invalid(a);

  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  follow(b, event, a);
  void *graph = nullptr;
  CHECK_EQUAL(cuStreamEndCapture(b, &graph), 903);
  OK(cuStreamEndCapture(a, &graph));
  OK(cuGraphDestroy(graph));
  CHECK_EQUAL(cuStreamEndCapture(a, &graph), 401);
  CHECK_EQUAL(cuStreamWaitEvent(a, event, 0), 907);
}

void forbidden_calls() {
  World world;
  void *const a = world.stream();
  void *const event = world.event();
  const auto calls = {
      std::function<int32_t()>([&] { return cuStreamSynchronize(a); }),
      std::function<int32_t()>([&] { return cuStreamQuery(a); }),
      std::function<int32_t()>([&] { return cuEventRecord(event, a) + cuEventQuery(event); }),
      std::function<int32_t()>([&] { return cuEventRecord(event, a) + cuEventSynchronize(event); }),
      std::function<int32_t()>([] { return cuCtxSynchronize(); }),
      std::function<int32_t()>([] {
        uint64_t memory = 0;
        return cuMemAlloc_v2(&memory, 8);
      }),
  };
  for (const auto &call : calls) {
    OK(cuStreamBeginCapture_v2(a, THREAD_LOCAL));
    CHECK_EQUAL(call(), 900);
    is_invalid(a);
  }

  // A relaxed capture, or a relaxed thread, may allocate; another thread may not under a global capture only.
  void *graph = nullptr;
  OK(cuStreamBeginCapture_v2(a, RELAXED));
  const uint64_t memory = world.memory();
  std::thread([&] {
    void *other = nullptr;
    CHECK_EQUAL(cuStreamEndCapture(a, &other), 0);
    OK(cuGraphDestroy(other));
  }).join();
  uint32_t mode = RELAXED;
  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  CHECK_EQUAL(mode, GLOBAL);
  OK(cuMemFree_v2(memory));
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  std::thread([&] {
    CHECK_EQUAL(cuStreamEndCapture(a, &graph), 908);
    OK(cuCtxSetCurrent(world.contexts[0]));
    CHECK_EQUAL(cuCtxSynchronize(), 900);
  }).join();
  is_invalid(a);
  REPORTS("");
}

// a: write x; b: copy x to y; a, meanwhile: count; joined: read y. Each launch counts once.
struct ForkJoin {
  World world;
  void *a, *b, *exec = nullptr;
  uint64_t x, y;
  int num_runs = 0;

  ForkJoin(uint64_t seed, uint32_t flags, uint64_t skipped)
      : world(seed, STANDIN_LAZY, 2, flags),
        a(world.stream(0)),
        b(world.stream(1, 1)),
        x(world.memory()),
        y(world.memory(64, 1)) {
    void *graph = nullptr;
    void *const fork = world.event();
    void *const join = world.event(1);
    standin_skip_wait(0, skipped == 1 ? 0 : UINT64_MAX);
    standin_skip_wait(1, skipped == 0 ? 0 : UINT64_MAX);
    OK(cuStreamBeginCapture_v2(a, THREAD_LOCAL));
    OK(cuMemsetD32Async(x, 7, 16, a));
    follow(b, fork, a);
    OK(cuMemcpyPeerAsync(y, world.contexts[1], x, world.contexts[0], 64, b));
    auto count = [](void *num) { ++*static_cast<int *>(num); };
    OK(standin_launch(a, "count", count, &num_runs, nullptr, 0));
    follow(a, join, b);
    OK(cuMemcpyDtoDAsync_v2(x, y, 4, a));
    OK(cuStreamEndCapture(a, &graph));
    size_t num_nodes = 0;
    OK(cuGraphGetNodes(graph, nullptr, &num_nodes));
    CHECK_EQUAL(num_nodes, 4);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    CHECK_EQUAL(standin_num_ops(0) + standin_num_ops(1), 0);
  }
};

void replays() {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    for (const uint32_t flags : {0u, static_cast<uint32_t>(STANDIN_RANK_LOCAL)}) {
      ForkJoin good(seed, flags, UINT64_MAX);
      for (int launch = 0; launch < 3; ++launch) OK(cuGraphLaunch(good.exec, good.a));
      CHECK_EQUAL(good.num_runs, 0);
      OK(cuStreamSynchronize(good.a));
      CHECK_EQUAL(good.num_runs, 3);
      CHECK_EQUAL(standin_num_ops(0), 9);
      uint32_t value = 0;
      OK(cuMemcpyDtoH_v2(&value, good.y, 4));
      CHECK_EQUAL(value, 7);
      REPORTS("");
      OK(cuGraphLaunch(good.exec, good.a));
      OK(cuGraphExecDestroy(good.exec));
      OK(cuStreamSynchronize(good.a));
      CHECK_EQUAL(good.num_runs, 4);
      CHECK_EQUAL(cuGraphLaunch(good.exec, good.a), 400);
      REPORTS("executable graph 1 was destroyed");
    }
    for (const uint64_t skipped : {0, 1}) {
      ForkJoin bad(seed, 0, skipped);
      OK(cuGraphLaunch(bad.exec, bad.a));
      OK(cuStreamSynchronize(bad.a));
      REPORTS("graph chain 0");
    }
  }
}

// Launches on two streams follow each other; what is outside must wait as for anything else.
void around_a_graph() {
  World world;
  void *const a = world.stream();
  void *const b = world.stream();
  void *const event = world.event();
  void *graph = nullptr;
  void *exec = nullptr;
  const uint64_t memory = world.memory();
  OK(cuStreamBeginCapture_v2(a, GLOBAL));
  writes(a, memory);
  OK(cuEventRecordWithFlags(event, a, 1));
  OK(cuStreamEndCapture(a, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuEventQuery(event));
  OK(cuGraphLaunch(exec, a));
  CHECK_EQUAL(cuEventQuery(event), 600);
  OK(cuGraphLaunch(exec, b));
  OK(cuStreamWaitEvent(a, event, 0));
  reads(a, memory);
  OK(cuEventSynchronize(event));
  OK(cuCtxSynchronize());
  REPORTS("");
  reads(a, memory);
  OK(cuGraphLaunch(exec, b));
  OK(cuCtxSynchronize());
  REPORTS("race: ");
  OK(cuMemFree_v2(memory));
  CHECK_EQUAL(cuGraphLaunch(exec, a), 1);
  REPORTS("cuGraphLaunch: writer touches");
}

// A launch begins when the one before is over, on whatever stream, and in all of its chains.
void launches_in_turn() {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    World world(seed);
    void *const a = world.stream(0);
    void *const b = world.stream(1);
    void *const other = world.stream(2);
    void *graph = nullptr;
    void *exec = nullptr;
    const uint64_t memory = world.memory();
    OK(cuStreamBeginCapture_v2(a, GLOBAL));
    writes(a, memory);
    follow(b, world.event(), a);
    writes(b, memory);
    follow(a, world.event(), b);
    OK(cuStreamEndCapture(a, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, a));
    OK(cuGraphLaunch(exec, other));
    CHECK_EQUAL(standin_run(), 0);
    REPORTS("");
  }
}

}  // namespace

void test_capture_rules() {
  unjoined_and_isolated();
  forbidden_calls();
}

void test_graphs() {
  replays();
  around_a_graph();
  launches_in_turn();
}

}  // namespace selftest
