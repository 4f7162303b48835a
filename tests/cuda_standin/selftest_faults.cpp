// Faults: misused handles, failures that stick, ops that hang, calls that fail; and that all is given back.
#include <atomic>
#include <cstring>
#include <thread>

#include "selftest.h"

namespace selftest {

namespace {

void handles() {
  World world(0, STANDIN_LAZY, 2);
  void *const stream = world.stream();
  void *const event = world.event();
  OK(cuEventDestroy_v2(event));
  CHECK_EQUAL(cuStreamWaitEvent(stream, event, 0), 400);
  REPORTS("cuStreamWaitEvent: event 1 was destroyed");
  CHECK_EQUAL(cuStreamSynchronize(event), 400);
  REPORTS("cuStreamSynchronize: ");
  CHECK_EQUAL(cuEventRecord(world.event(1), stream), 400);
  REPORTS("an event of device 1 on a stream of device 0");

  // What is queued on a destroyed stream, or waits for a destroyed event, is still done.
  static int num_runs;
  num_runs = 0;
  void *const other = world.stream();
  void *const last = world.event();
  OK(standin_launch(stream, "count", [](void *) { num_runs += 1; }, nullptr, nullptr, 0));
  follow(other, last, stream);
  OK(cuEventDestroy_v2(last));
  OK(cuStreamDestroy_v2(stream));
  OK(cuStreamSynchronize(other));
  CHECK_EQUAL(num_runs, 1);
  CHECK_EQUAL(cuStreamDestroy_v2(stream), 400);
  OK(cuCtxSetCurrent(nullptr));
  void *made = nullptr;
  CHECK_EQUAL(cuStreamCreate(&made, 0), 201);
  OK(cuCtxSetCurrent(world.contexts[0]));
  OK(cuDevicePrimaryCtxRelease_v2(0));
  CHECK_EQUAL(cuStreamCreate(&made, 0), 709);
  REPORTS("the context of device 0 is not retained");
}

void sticky() {
  World world(0, STANDIN_LAZY, 2);
  void *const a = world.stream(0);
  void *const b = world.stream(1, 1);
  void *const event = world.event();
  const uint64_t memory = world.memory();
  standin_fail_op(0, 1, 719);
  writes(a, memory);
  writes(a, memory);
  OK(cuEventRecord(event, a));
  OK(cuStreamWaitEvent(b, event, 0));
  writes(b, world.memory(64, 1));
  CHECK(standin_run() > 0);
  CHECK_EQUAL(cuStreamSynchronize(a), 719);
  CHECK_EQUAL(cuEventQuery(event), 719);
  CHECK_EQUAL(cuStreamQuery(a), 719);
  CHECK_EQUAL(cuMemsetD8Async(memory, 0, 1, a), 719);
  CHECK_EQUAL(cuCtxSynchronize(), 719);
  CHECK_EQUAL(cuStreamQuery(b), 600);
  int count = 0;
  OK(cuDeviceGetCount(&count));
  CHECK_EQUAL(count, 2);
  standin_release();
  OK(cuStreamSynchronize(b));
  CHECK_EQUAL(cuStreamDestroy_v2(a), 719);
  CHECK_EQUAL(cuEventDestroy_v2(event), 719);
  CHECK_EQUAL(cuMemFree_v2(memory), 719);
  CHECK_EQUAL(standin_live("streams"), 1);
  CHECK_EQUAL(standin_live("events"), 0);
  CHECK_EQUAL(standin_live("allocations"), 1);
  REPORTS("");
}

// A thread that waits for a stream that hangs comes back when let go, when the context fails, or when the life ends.
void hang() {
  for (const uint32_t mode : {STANDIN_EAGER, STANDIN_LAZY}) {
    for (const int way : {0, 1, 2}) {
      World world(1, mode);
      void *const stream = world.stream(0);
      void *const other = world.stream(1);
      standin_hang_op(0, 0);
      writes(stream, world.memory());
      std::atomic<int32_t> status{-1};
      std::thread waiting([&] {
        OK(cuCtxSetCurrent(world.contexts[0]));
        status = cuStreamSynchronize(stream);
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      CHECK_EQUAL(status, -1);
      if (way == 0) standin_release();
      if (way == 1) {
        standin_fail_op(1, 0, 719);
        writes(other, world.memory());
        if (mode == STANDIN_LAZY) standin_run();
      }
      if (way == 2) standin_reset(0, mode, 1, 0);
      waiting.join();
      CHECK_EQUAL(status, way == 0 ? 0 : way == 1 ? 719 : 4);
    }
  }
}

void calls() {
  World world;
  void *const a = world.stream(0);
  void *const b = world.stream(1);
  const uint64_t memory = world.memory();
  standin_fail_call("cuEventRecord", 1, 999);
  void *const event = world.event();
  OK(cuEventRecord(event, a));
  CHECK_EQUAL(cuEventRecord(event, a), 999);
  OK(cuEventRecord(event, a));
  CHECK_EQUAL(standin_num_calls("cuEventRecord"), 3);
  CHECK_EQUAL(standin_num_calls("cuMemAlloc"), 1);
  CHECK(standin_num_calls(nullptr) > 5);
  const char *name = nullptr;
  OK(cuGetErrorName(719, &name));
  CHECK(std::strcmp(name, "CUDA_ERROR_LAUNCH_FAILED") == 0);

  standin_skip_wait(1, 1);
  OK(cuStreamWaitEvent(b, event, 0));
  writes(a, memory);
  follow(b, event, a);
  reads(b, memory);
  CHECK_EQUAL(standin_num_waits(1), 2);
  CHECK_EQUAL(standin_num_waits(0), 0);
  CHECK_EQUAL(standin_num_ops(1), 1);
  CHECK_EQUAL(standin_run(), 0);
  REPORTS("race: ");
}

// Host functions and ops must not call the driver.
void inside_an_op() {
  World world;
  static int32_t status;
  auto synchronize = [](void *) { status = cuCtxSynchronize(); };
  OK(cuLaunchHostFunc(world.stream(), synchronize, nullptr));
  OK(cuCtxSynchronize());
  CHECK_EQUAL(status, 800);
  REPORTS("cuCtxSynchronize: called from inside an op");
}

void drops() {
  static std::atomic<int> num_drops;
  num_drops = 0;
  auto drop = [](void *) { num_drops += 1; };
  auto never = [](void *) { return 0; };
  {
    World world;
    void *const stream = world.stream();
    OK(standin_enqueue(stream, "done", nullptr, nullptr, drop, nullptr, nullptr, 0));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(num_drops, 1);
    OK(standin_enqueue(stream, "never", never, nullptr, drop, nullptr, nullptr, 0));
    CHECK_EQUAL(standin_run(), 1);
    CHECK_EQUAL(standin_enqueue(world.event(), "refused", never, nullptr, drop, nullptr, nullptr, 0), 400);
    CHECK_EQUAL(num_drops, 1);
  }
  standin_reset(0, STANDIN_LAZY, 0, 0);
  CHECK_EQUAL(num_drops, 2);
  for (const char *kind : {"streams", "events", "allocations", "host_allocations", "graphs", "graph_execs", "modules",
                           "contexts"}) {
    CHECK_EQUAL(standin_live(kind), 0);
  }
  CHECK_EQUAL(cuInit(0), 100);
}

}  // namespace

void test_faults() {
  handles();
  sticky();
  hang();
  calls();
  inside_an_op();
  drops();
}

}  // namespace selftest
