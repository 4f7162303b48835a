// The life of communicators.
#include <atomic>
#include <chrono>
#include <cstring>

#include "tests.h"

namespace {

using std::chrono::milliseconds;

Options non_blocking(uint64_t seed, unsigned mode) {
  Options options;
  options.seed = seed;
  options.mode = mode;
  options.is_blocking = false;
  return options;
}

void the_api_answers() {
  nccl_standin_reset(0, 23102);
  int version = 0;
  CHECK_EQ(ncclGetVersion(&version), ncclSuccess);
  CHECK_EQ(version, 23102);
  CHECK_EQ(ncclGetVersion(nullptr), ncclInvalidArgument);
  CHECK(std::string(ncclGetErrorString(ncclInvalidUsage)) == "invalid usage");
  CHECK(std::string(ncclGetErrorString(77)) == "unknown result code");
  World world({});
  for (World::Rank &rank : world.rank) {
    int value = -1;
    CHECK_EQ(ncclCommCount(rank.comm, &value), ncclSuccess);
    CHECK_EQ(value, 2);
    CHECK_EQ(ncclCommUserRank(rank.comm, &value), ncclSuccess);
    CHECK_EQ(value, rank.index);
    CHECK_EQ(ncclCommCuDevice(rank.comm, &value), ncclSuccess);
    CHECK_EQ(value, rank.device);
    CHECK_EQ(ncclSend(rank.data(0), 1, kInt32, 2, rank.comm, cast(rank.stream[0])), ncclInvalidArgument);
    CHECK_EQ(ncclSend(rank.data(0), 1, 12, 0, rank.comm, cast(rank.stream[0])), ncclInvalidArgument);
  }
  CHECK_EQ(ncclSend(world.rank[0].data(0), 1, kInt32, 1, nullptr, nullptr), ncclInvalidArgument);
  CHECK_EQ(ncclCommAbort(nullptr), ncclSuccess);
  CHECK(World::problems().empty());
  CHECK_EQ(nccl_standin_live_comms(), 2);
}

void configurations_are_checked() {
  World world({});
  ncclUniqueId id;
  ncclComm_t comm = nullptr;
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t wanted = config(true);
  wanted.magic = 0;
  CHECK_EQ(ncclCommInitRankConfig(&comm, 1, id, 0, &wanted), ncclInvalidArgument);
  wanted = config(true);
  wanted.blocking = 2;
  CHECK_EQ(ncclCommInitRankConfig(&comm, 1, id, 0, &wanted), ncclInvalidArgument);
  wanted = config(true);
  wanted.minCTAs = 8;
  CHECK_EQ(ncclCommInitRankConfig(&comm, 1, id, 0, &wanted), ncclInvalidArgument);
  CHECK_EQ(ncclCommInitRankConfig(&comm, 1, id, 1, nullptr), ncclInvalidArgument);
  CHECK(comm == nullptr);
  // A newer, longer one.
  struct {
    ncclConfig_t known;
    int more[16];
  } longer = {config(true), {}};
  longer.known.size = sizeof longer;
  longer.known.version = 23004;
  world.each([&](World::Rank &rank) {
    if (rank.index == 0) CHECK_EQ(ncclCommInitRankConfig(&comm, 1, id, 0, &longer.known), ncclSuccess);
  });
  // To itself, which only a group can.
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(ncclSend(world.rank[0].data(0), 4, kInt32, 0, comm, cast(world.rank[0].stream[0])), ncclSuccess);
  CHECK_EQ(ncclRecv(world.rank[0].data(1), 4, kInt32, 0, comm, cast(world.rank[0].stream[0])), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
  CHECK_EQ(ncclCommDestroy(comm), ncclSuccess);
  CHECK(World::problems().empty());
  // An id makes one communicator.
  world.each([&](World::Rank &rank) {
    if (rank.index == 0) CHECK_EQ(ncclCommInitRank(&comm, 1, id, 0), ncclInvalidUsage);
  });
  CHECK(!World::problems().empty());
}

void half_an_id_is_none() {
  World world({});
  ncclUniqueId id;
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  memset(id.internal + 64, 0, 64);
  ncclComm_t comm = nullptr;
  CHECK_EQ(ncclCommInitRank(&comm, 1, id, 0), ncclInvalidArgument);
  CHECK_EQ(World::problems(), "ncclCommInitRank: not an id that ncclGetUniqueId gave\n");
}

void without_blocking_one_has_to_ask(unsigned mode) {
  int times_in_progress = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Options options = non_blocking(seed, mode);
    options.is_connected_lazily = seed % 2 == 0;
    World world(options);
    std::vector<int32_t> numbers;
    std::atomic<int> in_progress{0};
    world.each([&](World::Rank &rank) {
      for (int i = 0; i < 10; ++i) {
        if (rank.index == 0) rank.fill(0, i);
        int code = rank.index == 0 ? rank.send(0) : rank.receive(0);
        CHECK(code == ncclSuccess || code == ncclInProgress);
        in_progress += code == ncclInProgress;
        CHECK_EQ(rank.poll(), ncclSuccess);
        if (rank.index == 1) rank.read(0, &numbers);
      }
      CHECK_EQ(ncclGroupStart(), ncclSuccess);
      CHECK_EQ(rank.send(1), ncclSuccess);
      CHECK_EQ(rank.receive(2), ncclSuccess);
      CHECK_EQ(ncclGroupEnd(), ncclInProgress);
      CHECK_EQ(rank.poll(), ncclSuccess);
    });
    times_in_progress += in_progress;
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.size(), 20);
    for (int i = 0; i < 20; ++i) CHECK_EQ(numbers[i], i / 2);
    CHECK(World::races().empty());
    world.each([](World::Rank &rank) {
      CHECK_EQ(ncclCommFinalize(rank.comm), ncclInProgress);
      CHECK_EQ(rank.poll(), ncclSuccess);
    });
    world.destroy();
    CHECK(World::problems().empty());
  }
  CHECK(times_in_progress > 100 && times_in_progress < 380);
}

void who_does_not_ask_is_found_out() {
  World world(non_blocking(3, STANDIN_EAGER));
  World::Rank &rank = world.rank[0];
  while (rank.send(0) != ncclInProgress) CHECK_EQ(rank.poll(), ncclSuccess);
  CHECK(World::problems().empty());
  CHECK_EQ(rank.send(0), ncclInvalidArgument);
  CHECK_EQ(World::problems(), "ncclSend: rank 0 (0 of 2) has not said yet that its previous call is done\n");
  // Another thread's questions do not help.
  world.each([&](World::Rank &asked) {
    if (asked.index == 0) {
      for (int i = 0; i < 10; ++i) CHECK_EQ(asked.async_error(), ncclInProgress);
    }
  });
  CHECK_EQ(rank.poll(), ncclSuccess);
}

void init_waits_for_all_ranks() {
  World world({});
  for (bool is_hung : {false, true}) {
    ncclUniqueId id;
    CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
    ncclComm_t comms[2];
    ncclConfig_t wanted = config(false);
    auto join = [&](int i) {
      nccl_standin_set_rank(i);
      CHECK_EQ(cuCtxPushCurrent_v2(world.rank[i].context), 0);
      CHECK_EQ(ncclCommInitRankConfig(&comms[i], 2, id, i, &wanted), ncclInProgress);
      void *context;
      CHECK_EQ(cuCtxPopCurrent_v2(&context), 0);
    };
    auto ask = [&](int i) {
      int error = -1;
      for (int times = 0; times < 20; ++times) CHECK_EQ(ncclCommGetAsyncError(comms[i], &error), ncclSuccess);
      return error;
    };
    nccl_standin_hang_init(is_hung);
    join(0);
    CHECK_EQ(ask(0), ncclInProgress);
    join(1);
    CHECK_EQ(ask(0), is_hung ? ncclInProgress : ncclSuccess);
    CHECK_EQ(ask(1), is_hung ? ncclInProgress : ncclSuccess);
    // Those that hang can be aborted.
    for (ncclComm_t comm : comms) CHECK_EQ(ncclCommAbort(comm), ncclSuccess);
  }
  nccl_standin_set_rank(-1);
  CHECK(World::problems().empty());
}

void three_in_a_ring_from_one_thread() {
  World world({});
  CHECK_EQ(cuCtxPushCurrent_v2(world.rank[0].context), 0);
  ncclUniqueId id;
  ncclComm_t comms[3];
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  for (int i = 0; i < 3; ++i) CHECK_EQ(ncclCommInitRank(&comms[i], 3, id, i), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclSuccess);
  World::Rank &rank = world.rank[0];
  std::vector<int32_t> numbers;
  nccl_standin_connect_at_first_use(1);
  for (int i = 0; i < 3; ++i) rank.fill(i, 100 + i, i);
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  for (int i = 0; i < 3; ++i) {
    int next = (i + 1) % 3, previous = (i + 2) % 3;
    CHECK_EQ(ncclSend(rank.data(i), kElements, kInt32, next, comms[i], cast(rank.stream[i])), ncclSuccess);
    CHECK_EQ(ncclRecv(rank.data(3 + i), kElements, kInt32, previous, comms[i], cast(rank.stream[i])), ncclSuccess);
  }
  CHECK_EQ(ncclGroupEnd(), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
  for (int i = 0; i < 3; ++i) {
    rank.read(3 + i, &numbers, i);
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.back(), 100 + (i + 2) % 3);
  }
  for (ncclComm_t comm : comms) CHECK_EQ(ncclCommDestroy(comm), ncclSuccess);
  void *context;
  CHECK_EQ(cuCtxPopCurrent_v2(&context), 0);
  CHECK(World::report().find("race") == std::string::npos);
  CHECK(World::problems().empty());
}

void a_context_is_wanted() {
  World world({});
  ncclUniqueId id;
  ncclComm_t comm;
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  CHECK_EQ(ncclCommInitRank(&comm, 1, id, 0), ncclSuccess);
  CHECK_EQ(ncclCommDestroy(comm), ncclSuccess);
  CHECK_EQ(World::problems(),
           "ncclCommInitRank: no context is current for rank 0 (0 of 1): NCCL would take device 0\n");
}

void a_reset_frees_who_waits() {
  World world({});
  ncclUniqueId id;
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::thread waiting([&] {
    ncclComm_t comm;
    CHECK_EQ(cuCtxPushCurrent_v2(world.rank[0].context), 0);
    CHECK_EQ(ncclCommInitRank(&comm, 2, id, 0), ncclInternalError);
    CHECK_EQ(ncclCommAbort(comm), ncclInvalidArgument);
  });
  while (nccl_standin_live_comms() < 3) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(10));
  nccl_standin_reset(0, 0);
  waiting.join();
  CHECK(World::problems().empty());
  CHECK_EQ(nccl_standin_live_comms(), 0);
  for (World::Rank &rank : world.rank) rank.comm = nullptr;
}

void one_device_is_for_one_rank() {
  for (int version : {22809, 23004}) {
    for (bool is_enabled : {false, true}) {
      Options options;
      options.is_one_device = true;
      World world(options);
      nccl_standin_reset(0, version);
      for (World::Rank &rank : world.rank) rank.comm = nullptr;
      nccl_standin_forbid_same_device(1);
      setenv("NCCL_MULTI_RANK_GPU_ENABLE", is_enabled ? "1" : "0", 1);
      bool is_accepted = version == 23004 && is_enabled;
      for (bool is_blocking : {false, true}) {
        ncclUniqueId id;
        CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
        world.each([&](World::Rank &rank) {
          ncclConfig_t wanted = config(is_blocking);
          int code = ncclCommInitRankConfig(&rank.comm, 2, id, rank.index, &wanted);
          CHECK_EQ(is_blocking ? code : rank.poll(), is_accepted ? ncclSuccess : ncclInvalidUsage);
        });
        const char *text = version == 22809 ? "Duplicate GPU detected" : "Multiple ranks detected using the same GPU";
        if (!is_accepted) CHECK(strstr(ncclGetLastError(nullptr), text) != nullptr);
        for (World::Rank &rank : world.rank) {
          CHECK_EQ(ncclCommDestroy(rank.comm), is_accepted ? ncclSuccess : ncclInvalidUsage);
          if (!is_accepted) CHECK_EQ(ncclCommAbort(rank.comm), ncclSuccess);
          rank.comm = nullptr;
        }
      }
      CHECK(World::problems().empty());
    }
  }
  unsetenv("NCCL_MULTI_RANK_GPU_ENABLE");
}

void the_first_message_connects() {
  for (bool is_blocking : {true, false}) {
    Options options;
    options.is_blocking = is_blocking;
    options.is_connected_lazily = true;
    World world(options);
    std::atomic<bool> is_sent{false};
    std::thread sender([&] {
      CHECK_EQ(world.rank[0].send(0), is_blocking ? ncclSuccess : ncclInProgress);
      CHECK_EQ(world.rank[0].poll(), ncclSuccess);
      is_sent = true;
    });
    std::this_thread::sleep_for(milliseconds(30));
    CHECK(!is_sent);
    CHECK(World::report().find("connects to 1") != std::string::npos);
    CHECK(world.rank[1].receive(0) == ncclSuccess || !is_blocking);
    CHECK_EQ(world.rank[1].poll(), ncclSuccess);
    sender.join();
    // From now on nobody waits for anybody.
    CHECK(world.rank[0].send(0) == ncclSuccess || !is_blocking);
    CHECK_EQ(world.rank[0].poll(), ncclSuccess);
    CHECK(World::problems().empty());
  }
}

void an_abort_can_hang() {
  World world({});
  nccl_standin_hang_abort(1);
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  std::atomic<bool> is_over{false};
  std::thread aborting([&] {
    CHECK_EQ(ncclCommAbort(world.rank[1].comm), ncclSuccess);
    is_over = true;
  });
  std::this_thread::sleep_for(milliseconds(30));
  CHECK(!is_over);
  CHECK(standin_run() > 0);
  nccl_standin_hang_abort(0);
  aborting.join();
  world.rank[1].comm = nullptr;
  CHECK_EQ(standin_run(), 0);
  CHECK(World::problems().empty());
}

void an_abort_under_a_call_needs_a_communicator_that_does_not_block() {
  Options options;
  options.is_connected_lazily = true;
  World world(options);
  std::thread sender([&] { CHECK_EQ(world.rank[0].send(0), ncclInternalError); });
  while (World::report().find("connects to 1") == std::string::npos) std::this_thread::yield();
  CHECK_EQ(ncclCommAbort(world.rank[0].comm), ncclSuccess);
  world.rank[0].comm = nullptr;
  sender.join();
  CHECK(World::problems().find("which blocks") != std::string::npos);
}

void an_end_with_work_is_not_destroyed() {
  World world({});
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  CHECK_EQ(ncclCommDestroy(world.rank[1].comm), ncclSuccess);
  world.rank[1].comm = nullptr;
  CHECK_EQ(World::problems(),
           "ncclCommDestroy: rank 1 (1 of 2) has 1 operations pending, which may wait for ever\n");
  CHECK_EQ(standin_run(), 0);
}

void calls_fail_as_asked_for() {
  World world({});
  nccl_standin_fail_call("ncclSend", 1, ncclSystemError);
  nccl_standin_fail_call_of(1, "ncclSend", 1, ncclInternalError);
  CHECK_EQ(world.rank[1].send(0), ncclSuccess);
  CHECK_EQ(world.rank[0].send(0), ncclSystemError);
  CHECK_EQ(world.rank[1].send(0), ncclInternalError);
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  nccl_standin_fail_call("ncclCommAbort", 0, ncclUnhandledCudaError);
  CHECK_EQ(ncclCommAbort(world.rank[0].comm), ncclUnhandledCudaError);
  CHECK_EQ(nccl_standin_live_comms(), 2);
}

void windows_and_memory() {
  World world({});
  world.each([](World::Rank &rank) {
    void *memory = nullptr;
    ncclWindow_t window = nullptr;
    CHECK_EQ(ncclMemAlloc(&memory, 4096), ncclSuccess);
    CHECK_EQ(ncclCommWindowRegister(rank.comm, memory, 4096, &window, 1), ncclSuccess);
    CHECK_EQ(ncclCommWindowDeregister(rank.comm, window), ncclSuccess);
    CHECK_EQ(ncclCommWindowDeregister(rank.comm, window), ncclInvalidArgument);
    CHECK_EQ(ncclMemFree(memory), ncclSuccess);
  });
  CHECK(World::problems().find("that is no window of rank 0 (0 of 2)") != std::string::npos);
}

}  // namespace

void test_communicators() {
  RUN(the_api_answers);
  RUN(configurations_are_checked);
  RUN(half_an_id_is_none);
  RUN(without_blocking_one_has_to_ask, STANDIN_EAGER);
  RUN(without_blocking_one_has_to_ask, STANDIN_LAZY);
  RUN(who_does_not_ask_is_found_out);
  RUN(init_waits_for_all_ranks);
  RUN(three_in_a_ring_from_one_thread);
  RUN(a_context_is_wanted);
  RUN(a_reset_frees_who_waits);
  RUN(one_device_is_for_one_rank);
  RUN(the_first_message_connects);
  RUN(an_abort_can_hang);
  RUN(an_abort_under_a_call_needs_a_communicator_that_does_not_block);
  RUN(an_end_with_work_is_not_destroyed);
  RUN(calls_fail_as_asked_for);
  RUN(windows_and_memory);
}
