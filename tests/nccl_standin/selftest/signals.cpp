// Windows, puts and signals: what arrives, what has to be waited for, and what is refused.
#include "tests.h"

namespace {

const size_t kBytes = kElements * sizeof(int32_t);
/// Of a window.
const size_t kBlocks = 2;

Options with(unsigned mode, uint64_t seed = 1) {
  Options options;
  options.mode = mode;
  options.seed = seed;
  options.version = 23004;
  return options;
}

/// A world whose ranks have a window each.
class Windows {
 public:
  explicit Windows(const Options &options) : world(options) {
    world.each([&](World::Rank &rank) {
      void *memory = nullptr;
      CHECK_EQ(ncclMemAlloc(&memory, kBlocks * kBytes), ncclSuccess);
      int code = ncclCommWindowRegister(rank.comm, memory, kBlocks * kBytes, &window[rank.index], 1);
      CHECK_EQ(code, options.is_blocking ? ncclSuccess : ncclInProgress);
      CHECK_EQ(rank.poll(), ncclSuccess);
      CHECK(window[rank.index] != nullptr);
      inside[rank.index] = rank;
      inside[rank.index].memory = reinterpret_cast<uint64_t>(memory);
    });
  }

  void close() {
    world.each([&](World::Rank &rank) {
      CHECK_EQ(ncclCommWindowDeregister(rank.comm, window[rank.index]), ncclSuccess);
      CHECK_EQ(ncclMemFree(inside[rank.index].data(0)), ncclSuccess);
    });
    world.destroy();
    CHECK_EQ(World::report(), "");
  }

  /// What rank 0 calls, on its first stream.
  int put(size_t block, size_t count = kElements) {
    const World::Rank &rank = inside[0];
    return ncclPutSignal(rank.data(block), count, kInt32, 1, window[0], block * kBytes, 0, 0, 0, rank.comm,
                         cast(rank.stream[0]));
  }
  int signal(int index) {
    const World::Rank &rank = inside[index];
    return ncclSignal(1 - index, 0, 0, 0, rank.comm, cast(rank.stream[0]));
  }
  int wait(int index, int count = 1) {
    const World::Rank &rank = inside[index];
    ncclWaitSignalDesc_t wanted = {count, 1 - index, 0, 0};
    return ncclWaitSignal(1, &wanted, rank.comm, cast(rank.stream[0]));
  }
  void done(int index, int code) {
    CHECK(code == ncclSuccess || code == ncclInProgress);
    CHECK_EQ(inside[index].poll(), ncclSuccess);
  }

  World world;
  ncclWindow_t window[2] = {};
  /// The ranks, with their windows for memory.
  World::Rank inside[2];
};

/// Messages through one block of the windows, whose receiver says that it is free.
void pass(Windows *windows, int messages, std::vector<int32_t> *numbers) {
  windows->world.each([&](World::Rank &rank) {
    for (int i = 0; i < messages; ++i) {
      if (rank.index == 0) {
        windows->inside[0].fill(0, 1000 + i);
        windows->done(0, windows->wait(0));
        windows->done(0, windows->put(0));
      } else {
        windows->done(1, windows->signal(1));
        windows->done(1, windows->wait(1));
        windows->inside[1].read(0, numbers);
      }
    }
  });
}

void puts_arrive_in_order(unsigned mode) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Options options = with(mode, seed);
    options.is_blocking = seed % 2 == 0;
    options.is_connected_lazily = mode == STANDIN_EAGER;
    Windows windows(options);
    const int messages = 20;
    std::vector<int32_t> numbers;
    pass(&windows, messages, &numbers);
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.size(), 2 * messages);
    for (size_t i = 0; i < numbers.size(); ++i) CHECK_EQ(numbers[i], 1000 + i / 2);
    CHECK_EQ(nccl_standin_num_sends(0, 1), messages);
    windows.close();
  }
}

void a_block_that_was_not_said_to_be_free_races(unsigned mode) {
  Windows windows(with(mode));
  std::vector<int32_t> numbers;
  for (int i = 0; i < 2; ++i) {
    windows.inside[0].fill(0, i);
    CHECK_EQ(windows.put(0), ncclSuccess);
    CHECK_EQ(windows.wait(1), ncclSuccess);
    windows.inside[1].read(0, &numbers);
  }
  CHECK_EQ(standin_run(), 0);
  CHECK(World::races().find("\"ncclPutSignal\"") != std::string::npos);
}

void who_does_not_wait_for_a_put_races(unsigned mode) {
  Windows windows(with(mode));
  std::vector<int32_t> numbers;
  windows.inside[0].fill(0, 1);
  CHECK_EQ(windows.put(0), ncclSuccess);
  CHECK_EQ(windows.wait(1), ncclSuccess);
  windows.inside[1].read(0, &numbers, 1);
  CHECK_EQ(standin_run(), 0);
  CHECK(World::races().find("race") != std::string::npos);
}

void a_wait_takes_as_many_signals_as_it_says(unsigned mode) {
  Windows windows(with(mode));
  CHECK_EQ(windows.wait(1, 3), ncclSuccess);
  for (int i = 0; i < 3; ++i) {
    CHECK(standin_run() > 0);
    CHECK_EQ(windows.signal(0), ncclSuccess);
  }
  CHECK_EQ(standin_run(), 0);
  CHECK_EQ(windows.wait(1), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(windows.signal(0), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
  windows.close();
}

void a_graph_puts_at_each_launch(unsigned mode) {
  Windows windows(with(mode));
  std::vector<int32_t> numbers;
  void *executables[2];
  // One that is no graph's is none for a graph.
  CHECK_EQ(windows.signal(0), ncclSuccess);
  windows.world.each([&](World::Rank &rank) {
    CHECK_EQ(cuStreamBeginCapture_v2(rank.stream[0], 1), 0);
    for (int i = 0; i < 3; ++i) {
      if (rank.index == 0) {
        windows.inside[0].fill(0, i);
        CHECK_EQ(windows.wait(0), ncclSuccess);
        CHECK_EQ(windows.put(0), ncclSuccess);
      } else {
        CHECK_EQ(windows.signal(1), ncclSuccess);
        CHECK_EQ(windows.wait(1), ncclSuccess);
        windows.inside[1].read(0, &numbers);
      }
    }
    void *graph;
    CHECK_EQ(cuStreamEndCapture(rank.stream[0], &graph), 0);
    CHECK_EQ(cuGraphInstantiateWithFlags(&executables[rank.index], graph, 0), 0);
    CHECK_EQ(cuGraphDestroy(graph), 0);
  });
  CHECK_EQ(standin_run(), 0);
  for (size_t launches = 1; launches <= 3; ++launches) {
    CHECK_EQ(cuGraphLaunch(executables[1], windows.world.rank[1].stream[0]), 0);
    CHECK(standin_run() > 0);
    CHECK_EQ(cuGraphLaunch(executables[0], windows.world.rank[0].stream[0]), 0);
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.size(), 6 * launches);
  }
  for (size_t i = 0; i < numbers.size(); ++i) CHECK_EQ(numbers[i], i / 2 % 3);
  for (void *executable : executables) CHECK_EQ(cuGraphExecDestroy(executable), 0);
  windows.close();
}

void an_older_one_cannot_capture() {
  Options options = with(STANDIN_LAZY);
  options.version = 22907;
  Windows windows(options);
  void *graph, *stream = windows.world.rank[0].stream[0];
  CHECK_EQ(cuStreamBeginCapture_v2(stream, 1), 0);
  CHECK_EQ(windows.signal(0), ncclSuccess);
  CHECK_EQ(cuStreamEndCapture(stream, &graph), 0);
  CHECK_EQ(cuGraphDestroy(graph), 0);
  CHECK_EQ(World::problems(), "ncclSignal: captured, which NCCL 22907 gets wrong\n");
}

void an_even_older_one_puts_nothing() {
  Options options = with(STANDIN_LAZY);
  options.version = 22809;
  Windows windows(options);
  CHECK_EQ(windows.put(0), ncclInvalidUsage);
  CHECK_EQ(windows.signal(0), ncclInvalidUsage);
  CHECK_EQ(windows.wait(0), ncclInvalidUsage);
  windows.close();
}

void puts_are_checked() {
  Windows windows(with(STANDIN_LAZY));
  World::Rank &rank = windows.inside[0];
  cudaStream_t stream = cast(rank.stream[0]);
  CHECK_EQ(windows.put(1, kElements + 1), ncclInvalidArgument);
  auto put = [&](const void *data, ncclWindow_t window, size_t offset) {
    return ncclPutSignal(data, kElements, kInt32, 1, window, offset, 0, 0, 0, rank.comm, stream);
  };
  CHECK_EQ(put(rank.data(0), windows.window[0], kBytes + 4), ncclInvalidArgument);
  CHECK_EQ(put(windows.world.rank[0].data(0), windows.window[0], 0), ncclInvalidArgument);
  CHECK_EQ(put(rank.data(0), windows.window[1], 0), ncclInvalidArgument);
  CHECK_EQ(put(rank.data(0), nullptr, 0), ncclInvalidArgument);
  CHECK_EQ(World::problems(),
           "ncclPutSignal: rank 0 (0 of 2) puts what is in none of its windows\n"
           "ncclPutSignal: rank 0 (0 of 2) puts bytes [260, 516) into a window of 512\n"
           "ncclPutSignal: rank 0 (0 of 2) puts what is in none of its windows\n"
           "ncclPutSignal: rank 0 (0 of 2) puts into what is no window of its own\n"
           "ncclPutSignal: rank 0 (0 of 2) puts into what is no window of its own\n");
  CHECK_EQ(ncclSignal(1, 1, 0, 0, rank.comm, stream), ncclInvalidArgument);
  CHECK_EQ(ncclSignal(2, 0, 0, 0, rank.comm, stream), ncclInvalidArgument);
  CHECK_EQ(windows.wait(0, 0), ncclInvalidArgument);
}

void windows_are_looked_after() {
  Windows windows(with(STANDIN_LAZY));
  windows.world.is_broken = true;
  CHECK_EQ(ncclMemFree(windows.inside[0].data(0)), ncclSuccess);
  CHECK_EQ(windows.wait(1), ncclSuccess);
  CHECK_EQ(ncclCommWindowDeregister(windows.world.rank[1].comm, windows.window[1]), ncclSuccess);
  CHECK_EQ(World::problems(),
           "ncclMemFree: that is a window of rank 0 (0 of 2)\n"
           "ncclCommWindowDeregister: rank 1 (1 of 2) has 1 operations pending\n");
}

void a_window_that_is_gone_is_left_alone() {
  Windows windows(with(STANDIN_LAZY));
  CHECK_EQ(windows.put(0), ncclSuccess);
  CHECK_EQ(ncclCommWindowDeregister(windows.world.rank[1].comm, windows.window[1]), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
  CHECK_EQ(World::problems(), "rank 0 (0 of 2): puts into a window that its rank 1 has given back\n");
}

void a_registration_waits_for_all_and_may_give_nothing() {
  Options options = with(STANDIN_EAGER);
  options.is_blocking = false;
  World world(options);
  nccl_standin_offer_windows(0);
  ncclWindow_t windows[2] = {};
  for (int i = 0; i < 2; ++i) {
    World::Rank &rank = world.rank[i];
    CHECK_EQ(ncclCommWindowRegister(rank.comm, rank.data(0), kBytes, &windows[i], 1), ncclInProgress);
    if (i == 0) {
      for (int polls = 0; polls < 20; ++polls) CHECK_EQ(rank.async_error(), ncclInProgress);
    }
  }
  for (World::Rank &rank : world.rank) CHECK_EQ(rank.poll(), ncclSuccess);
  CHECK(windows[0] == nullptr);
}

void an_abort_wakes_no_wait(unsigned mode) {
  Windows windows(with(mode));
  windows.world.is_broken = true;
  CHECK_EQ(windows.wait(1), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(ncclCommAbort(windows.world.rank[1].comm), ncclSuccess);
  windows.world.rank[1].comm = nullptr;
  CHECK(standin_run() > 0);
  CHECK_EQ(World::problems(),
           "ncclCommAbort: streams wait for signals of rank 1 (1 of 2), go on to wait, and read memory that is gone\n");
}

void memory_that_is_still_put_into_stays(unsigned mode) {
  Windows windows(with(mode));
  CHECK_EQ(windows.wait(0), ncclSuccess);
  CHECK_EQ(windows.put(0), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(ncclCommAbort(windows.world.rank[1].comm), ncclSuccess);
  windows.world.rank[1].comm = nullptr;
  CHECK_EQ(ncclMemFree(windows.inside[1].data(0)), ncclSuccess);
  nccl_standin_release_waits();
  CHECK_EQ(standin_run(), 0);
  CHECK_EQ(World::problems() + World::races(), "");
}

void a_dropped_put_never_comes(unsigned mode) {
  Windows windows(with(mode));
  windows.world.is_broken = true;
  nccl_standin_drop(0, 1, 1);
  for (int i = 0; i < 2; ++i) {
    CHECK_EQ(windows.put(i), ncclSuccess);
    CHECK_EQ(windows.wait(1), ncclSuccess);
  }
  CHECK(standin_run() > 0);
  CHECK_EQ(cuStreamQuery(windows.world.rank[0].stream[0]), 0);
  CHECK_EQ(cuStreamQuery(windows.world.rank[1].stream[0]), 600);
  nccl_standin_release_waits();
  CHECK_EQ(standin_run(), 0);
}

}  // namespace

void test_signals() {
  for (unsigned mode : {STANDIN_EAGER, STANDIN_LAZY}) {
    RUN(puts_arrive_in_order, mode);
    RUN(a_block_that_was_not_said_to_be_free_races, mode);
    RUN(who_does_not_wait_for_a_put_races, mode);
    RUN(a_wait_takes_as_many_signals_as_it_says, mode);
    RUN(a_graph_puts_at_each_launch, mode);
    RUN(an_abort_wakes_no_wait, mode);
    RUN(memory_that_is_still_put_into_stays, mode);
    RUN(a_dropped_put_never_comes, mode);
  }
  RUN(an_older_one_cannot_capture);
  RUN(an_even_older_one_puts_nothing);
  RUN(puts_are_checked);
  RUN(windows_are_looked_after);
  RUN(a_window_that_is_gone_is_left_alone);
  RUN(a_registration_waits_for_all_and_may_give_nothing);
}
