// Messages: what arrives, in which order, and what hangs.
#include <chrono>

#include "tests.h"

namespace {

Options with(unsigned mode) {
  Options options;
  options.mode = mode;
  return options;
}

void data_arrives_in_order(unsigned mode) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Options options = with(mode);
    options.seed = seed;
    World world(options);
    std::vector<int32_t> numbers;
    const int messages = 20;
    world.each([&](World::Rank &rank) {
      for (int i = 0; i < messages; ++i) {
        if (rank.index == 0) {
          rank.fill(0, 1000 + i);
          CHECK_EQ(rank.send(0), ncclSuccess);
        } else {
          CHECK_EQ(rank.receive(1), ncclSuccess);
          rank.read(1, &numbers);
        }
      }
    });
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.size(), 2 * messages);
    for (int i = 0; i < 2 * messages; ++i) CHECK_EQ(numbers[i], 1000 + i / 2);
    CHECK_EQ(nccl_standin_num_sends(0, 1), messages);
    CHECK_EQ(nccl_standin_num_sends(1, 0), 0);
    CHECK(World::report().find("race") == std::string::npos);
    world.destroy();
    CHECK(World::problems().empty());
  }
}

void who_does_not_wait_for_a_receive_races(unsigned mode) {
  World world(with(mode));
  std::vector<int32_t> numbers;
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  world.rank[1].read(0, &numbers, 1);
  CHECK_EQ(standin_run(), 0);
  CHECK(World::races().find("race") != std::string::npos);
}

void the_order_of_a_communicator_orders_no_memory(unsigned mode) {
  World world(with(mode));
  for (int i = 0; i < 2; ++i) {
    CHECK_EQ(world.rank[0].send(0), ncclSuccess);
    // The second is done after the first, by chance of being with the same communicator.
    CHECK_EQ(world.rank[1].receive(0, i), ncclSuccess);
  }
  CHECK_EQ(standin_run(), 0);
  // What the second arrival knows of the first went through the sender, which does not count.
  CHECK(World::races().find("race") != std::string::npos);
}

void a_receiver_knows_what_its_sender_knew(unsigned mode) {
  World world(with(mode));
  std::vector<int32_t> numbers;
  world.rank[0].fill(0, 5);
  world.rank[0].fill(1, 6);
  CHECK_EQ(world.rank[0].send(1), ncclSuccess);
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  // Of the other rank's memory, which it could not read otherwise.
  World::Rank guest = world.rank[0];
  guest.stream[0] = world.rank[1].stream[0];
  guest.read(0, &numbers);
  CHECK_EQ(standin_run(), 0);
  CHECK_EQ(numbers.at(0), 5);
  CHECK(World::races().empty());
}

void a_group_exchanges(unsigned mode) {
  World world(with(mode));
  std::vector<int32_t> numbers[2];
  world.each([&](World::Rank &rank) {
    rank.fill(0, 10 + rank.index);
    rank.fill(1, 20 + rank.index);
    CHECK_EQ(ncclGroupStart(), ncclSuccess);
    // In opposite orders: a group has none, but that of each direction.
    for (int step = 0; step < 2; ++step) {
      int code = step == rank.index ? rank.send(0) : rank.receive(2);
      CHECK_EQ(code, ncclSuccess);
    }
    CHECK_EQ(rank.send(1), ncclSuccess);
    CHECK_EQ(rank.receive(3), ncclSuccess);
    CHECK_EQ(ncclGroupEnd(), ncclSuccess);
    rank.read(2, &numbers[rank.index]);
    rank.read(3, &numbers[rank.index]);
  });
  CHECK_EQ(standin_run(), 0);
  for (int i = 0; i < 2; ++i) {
    CHECK_EQ(numbers[i].at(0), 10 + 1 - i);
    CHECK_EQ(numbers[i].at(3), 20 + 1 - i);
  }
  CHECK(World::races().empty());
  world.destroy();
  CHECK(World::problems().empty());
}

void a_group_meets_single_calls(unsigned mode) {
  World world(with(mode));
  World::Rank &one = world.rank[0], &other = world.rank[1];
  std::vector<int32_t> numbers;
  one.fill(0, 1);
  one.fill(1, 2);
  other.fill(3, 3);
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(one.send(0), ncclSuccess);
  CHECK_EQ(one.send(1), ncclSuccess);
  CHECK_EQ(one.receive(2), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclSuccess);
  CHECK_EQ(other.receive(0), ncclSuccess);
  CHECK_EQ(other.send(3), ncclSuccess);
  CHECK_EQ(other.receive(1), ncclSuccess);
  other.read(0, &numbers);
  other.read(1, &numbers);
  CHECK_EQ(standin_run(), 0);
  one.read(2, &numbers);
  CHECK_EQ(standin_run(), 0);
  CHECK((numbers == std::vector<int32_t>{1, 1, 2, 2, 3, 3}));
  CHECK(World::report().find("race") == std::string::npos);
}

void a_failed_call_undoes_its_group() {
  World world(with(STANDIN_EAGER));
  nccl_standin_fail_call("ncclRecv", 0, ncclSystemError);
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK_EQ(world.rank[0].receive(1), ncclSystemError);
  CHECK_EQ(ncclGroupEnd(), ncclSystemError);
  CHECK_EQ(standin_run(), 0);
  // The next group is a new one.
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclInvalidUsage);
  CHECK_EQ(World::problems(), "ncclGroupEnd: not in a group\n");
}

void without_a_peer_it_hangs_until_it_is_aborted(unsigned mode, uint64_t seed) {
  Options options = with(mode);
  options.seed = seed;
  World world(options);
  World::Rank &rank = world.rank[1];
  std::vector<int32_t> numbers;
  rank.fill(0, 7);
  CHECK_EQ(rank.receive(0), ncclSuccess);
  rank.read(0, &numbers);
  CHECK(standin_run() > 0);
  CHECK_EQ(cuStreamQuery(rank.stream[0]), 600);
  // Nobody is told, as with NCCL.
  CHECK_EQ(rank.async_error(), ncclSuccess);
  CHECK_EQ(ncclCommAbort(rank.comm), ncclSuccess);
  // What the other rank sends now is for nobody.
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(cuStreamQuery(rank.stream[0]), 0);
  CHECK_EQ(numbers.at(0), 7);
  CHECK_EQ(world.rank[0].async_error(), ncclSuccess);
  CHECK(World::problems().empty());
  // The handle is no good any more.
  CHECK_EQ(rank.receive(0), ncclInvalidArgument);
  CHECK_EQ(World::problems(), "ncclRecv: rank 1 (1 of 2) has been aborted or destroyed\n");
  rank.comm = nullptr;
}

void a_dropped_message_hangs_its_receiver_only(unsigned mode) {
  World world(with(mode));
  nccl_standin_drop(0, 1, 1);
  std::vector<int32_t> numbers;
  for (int i = 0; i < 3; ++i) {
    world.rank[0].fill(0, i);
    CHECK_EQ(world.rank[0].send(0), ncclSuccess);
    if (i == 2) break;
    CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
    world.rank[1].read(0, &numbers);
  }
  CHECK(standin_run() > 0);
  CHECK_EQ(numbers.size(), 2);
  CHECK_EQ(ncclCommAbort(world.rank[1].comm), ncclSuccess);
  world.rank[1].comm = nullptr;
  // The third is still without a partner.
  CHECK(standin_run() > 0);
  CHECK_EQ(numbers.at(2), 0);
}

void opposite_orders_deadlock(unsigned mode) {
  for (int streams = 1; streams <= 2; ++streams) {
    for (bool is_opposite : {true, false}) {
      World world(with(mode));
      for (World::Rank &rank : world.rank) {
        bool is_send_first = is_opposite || rank.index == 0;
        CHECK_EQ(is_send_first ? rank.send(0, 0) : rank.receive(1, 0), ncclSuccess);
        CHECK_EQ(is_send_first ? rank.receive(1, streams - 1) : rank.send(0, streams - 1), ncclSuccess);
      }
      CHECK_EQ(standin_run() > 0, is_opposite);
    }
  }
}

void counts_have_to_agree(unsigned mode) {
  World world(with(mode));
  CHECK_EQ(world.rank[0].send(0, 0, 3), ncclSuccess);
  CHECK_EQ(world.rank[1].receive(0, 0, 4), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(World::problems(), "rank 0 (0 of 2) sends 12 bytes, rank 1 (1 of 2) receives 16: both hang\n");
}

void nothing_can_be_sent(unsigned mode) {
  World world(with(mode));
  CHECK_EQ(world.rank[0].send(0, 0, 0), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(world.rank[1].receive(0, 0, 0), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
  CHECK(World::report().find("race") == std::string::npos);
}

void an_async_error_stops_one_end(unsigned mode) {
  World world(with(mode));
  nccl_standin_async_error(1, 1, ncclRemoteError);
  for (int i = 0; i < 2; ++i) {
    CHECK_EQ(world.rank[0].send(0), ncclSuccess);
    CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  }
  CHECK(standin_run() > 0);
  CHECK_EQ(world.rank[0].async_error(), ncclSuccess);
  CHECK_EQ(world.rank[1].async_error(), ncclRemoteError);
  CHECK_EQ(world.rank[1].receive(0), ncclRemoteError);
  // It has to be aborted.
  CHECK_EQ(ncclCommDestroy(world.rank[1].comm), ncclRemoteError);
  CHECK_EQ(nccl_standin_live_comms(), 2);
  CHECK(World::problems().empty());
}

void a_delayed_message_comes_later() {
  World world(with(STANDIN_EAGER));
  nccl_standin_delay(0, 1, 0, 50);
  std::vector<int32_t> numbers;
  world.rank[0].fill(0, 9);
  auto begun = std::chrono::steady_clock::now();
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  world.rank[1].read(0, &numbers);
  while (cuStreamQuery(world.rank[1].stream[0]) != 0) std::this_thread::yield();
  CHECK(std::chrono::steady_clock::now() - begun >= std::chrono::milliseconds(50));
  CHECK_EQ(numbers.at(0), 9);
  // One that is aborted meanwhile is left alone.
  nccl_standin_delay(0, 1, 1, 20);
  world.rank[1].fill(1, 4);
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK_EQ(world.rank[1].receive(1), ncclSuccess);
  CHECK(standin_run() > 0);
  CHECK_EQ(ncclCommAbort(world.rank[1].comm), ncclSuccess);
  world.rank[1].comm = nullptr;
  std::this_thread::sleep_for(std::chrono::milliseconds(40));
  world.rank[1].read(1, &numbers);
  while (cuStreamQuery(world.rank[1].stream[0]) != 0) std::this_thread::yield();
  CHECK_EQ(numbers.at(2), 4);
}

void a_group_is_for_one_stream_and_one_kind_of_communicator() {
  World world(with(STANDIN_EAGER));
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(world.rank[0].send(0, 0), ncclSuccess);
  CHECK_EQ(world.rank[0].receive(1, 1), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclInvalidUsage);
  CHECK_EQ(World::problems(), "ncclGroupEnd: rank 0 (0 of 2) uses two streams in one group\n");
  CHECK_EQ(standin_run(), 0);
  ncclUniqueId id;
  ncclComm_t other;
  ncclConfig_t wanted = config(false);
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  CHECK_EQ(ncclCommInitRankConfig(&other, 1, id, 0, &wanted), ncclInProgress);
  for (int error = ncclInProgress; error != ncclSuccess;) CHECK_EQ(ncclCommGetAsyncError(other, &error), ncclSuccess);
  CHECK_EQ(ncclGroupStart(), ncclSuccess);
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK_EQ(ncclRecv(world.rank[0].data(1), 1, kInt32, 0, other, cast(world.rank[0].stream[0])), ncclSuccess);
  CHECK_EQ(ncclGroupEnd(), ncclInvalidArgument);
  CHECK_EQ(ncclCommAbort(other), ncclSuccess);
  CHECK_EQ(standin_run(), 0);
}

void what_the_driver_drops_meets_nobody(unsigned mode) {
  World world(with(mode));
  world.is_broken = true;
  // A message is two entries of a stream; the third fails the context of rank 1.
  standin_fail_op(1, 2, 700);
  CHECK_EQ(world.rank[1].receive(0), ncclSuccess);
  CHECK(standin_run() > 0);
  world.rank[1].fill(1, 0, 1);
  CHECK_EQ(standin_run(), 0);
  CHECK(World::report().find("receives from 0") == std::string::npos);
  CHECK_EQ(world.rank[0].send(0), ncclSuccess);
  CHECK(standin_run() > 0);
}

void a_graph_sends_at_each_launch(unsigned mode) {
  World world(with(mode));
  std::vector<int32_t> numbers;
  void *executables[2];
  world.each([&](World::Rank &rank) {
    CHECK_EQ(cuStreamBeginCapture_v2(rank.stream[0], 1), 0);
    for (int i = 0; i < 3; ++i) {
      if (rank.index == 0) {
        rank.fill(0, i);
        CHECK_EQ(rank.send(0), ncclSuccess);
      } else {
        CHECK_EQ(rank.receive(0), ncclSuccess);
        rank.read(0, &numbers);
      }
    }
    void *graph;
    CHECK_EQ(cuStreamEndCapture(rank.stream[0], &graph), 0);
    CHECK_EQ(cuGraphInstantiateWithFlags(&executables[rank.index], graph, 0), 0);
    CHECK_EQ(cuGraphDestroy(graph), 0);
  });
  CHECK_EQ(standin_run(), 0);
  CHECK(numbers.empty());
  for (size_t launches = 1; launches <= 3; ++launches) {
    CHECK_EQ(cuGraphLaunch(executables[0], world.rank[0].stream[0]), 0);
    CHECK(standin_run() > 0);
    CHECK_EQ(cuGraphLaunch(executables[1], world.rank[1].stream[0]), 0);
    CHECK_EQ(standin_run(), 0);
    CHECK_EQ(numbers.size(), 6 * launches);
  }
  for (size_t i = 0; i < numbers.size(); ++i) CHECK_EQ(numbers[i], i / 2 % 3);
  CHECK(World::report().find("race") == std::string::npos);
  for (void *executable : executables) CHECK_EQ(cuGraphExecDestroy(executable), 0);
  world.destroy();
  CHECK(World::problems().empty());
}

}  // namespace

void test_messages() {
  for (unsigned mode : {STANDIN_EAGER, STANDIN_LAZY}) {
    RUN(data_arrives_in_order, mode);
    RUN(who_does_not_wait_for_a_receive_races, mode);
    RUN(the_order_of_a_communicator_orders_no_memory, mode);
    RUN(a_receiver_knows_what_its_sender_knew, mode);
    RUN(a_group_exchanges, mode);
    RUN(a_group_meets_single_calls, mode);
    for (uint64_t seed = 0; seed < 10; ++seed) RUN(without_a_peer_it_hangs_until_it_is_aborted, mode, seed);
    RUN(a_dropped_message_hangs_its_receiver_only, mode);
    RUN(opposite_orders_deadlock, mode);
    RUN(counts_have_to_agree, mode);
    RUN(nothing_can_be_sent, mode);
    RUN(an_async_error_stops_one_end, mode);
    RUN(what_the_driver_drops_meets_nobody, mode);
    RUN(a_graph_sends_at_each_launch, mode);
  }
  RUN(a_failed_call_undoes_its_group);
  RUN(a_group_is_for_one_stream_and_one_kind_of_communicator);
  RUN(a_delayed_message_comes_later);
}
