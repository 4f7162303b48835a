// The world of the self-test.
#include "world.h"

#include <cstdio>
#include <cstdlib>

namespace {

struct Fill {
  int32_t *data;
  int32_t value;
};

struct Read {
  const int32_t *data;
  std::vector<int32_t> *numbers;
};

const size_t kBlocks = 16;

template <typename Ask>
std::string text_of(Ask ask) {
  std::vector<char> text(1 << 16);
  ask(text.data(), text.size());
  return text.data();
}

[[noreturn]] void fail(const char *file, int line, const std::string &what) {
  printf("%s:%d: %s\n%s", file, line, what.c_str(), World::report().c_str());
  fflush(stdout);
  // Other threads may wait for ever.
  _Exit(1);
}

}  // namespace

void check_that(bool holds, const char *file, int line, const char *what) {
  if (!holds) fail(file, line, std::string(what) + " does not hold");
}

void check_equal(long long left, long long right, const char *file, int line, const char *what) {
  if (left != right) fail(file, line, what + (" is " + std::to_string(left)) + ", not " + std::to_string(right));
}

void check_equal(const std::string &left, const std::string &right, const char *file, int line, const char *what) {
  if (left != right) fail(file, line, what + (" is\n" + left) + "not\n" + right);
}

World::World(const Options &options) {
  standin_reset(options.seed, options.mode, options.is_one_device ? 1 : 2, STANDIN_RANK_LOCAL);
  nccl_standin_reset(options.seed, options.version);
  nccl_standin_connect_at_first_use(options.is_connected_lazily);
  CHECK_EQ(cuInit(0), 0);
  for (int i = 0; i < 2; ++i) {
    rank[i].index = i;
    rank[i].device = options.is_one_device ? 0 : i;
    CHECK_EQ(cuDevicePrimaryCtxRetain(&rank[i].context, rank[i].device), 0);
  }
  ncclUniqueId id;
  CHECK_EQ(ncclGetUniqueId(&id), ncclSuccess);
  each([&](Rank &rank) {
    standin_set_rank(rank.index);
    for (void *&stream : rank.stream) CHECK_EQ(cuStreamCreateWithPriority(&stream, 1, 0), 0);
    CHECK_EQ(cuMemAlloc_v2(&rank.memory, kBlocks * kElements * sizeof(int32_t)), 0);
    ncclConfig_t wanted = config(options.is_blocking);
    int code = ncclCommInitRankConfig(&rank.comm, 2, id, rank.index, &wanted);
    if (options.is_blocking) {
      CHECK_EQ(code, ncclSuccess);
    } else {
      CHECK_EQ(code, ncclInProgress);
      CHECK_EQ(rank.poll(), ncclSuccess);
    }
  });
}

World::~World() {
  standin_release();
  nccl_standin_hang_abort(0);
  each([&](Rank &rank) {
    if (rank.comm != nullptr) CHECK_EQ(ncclCommAbort(rank.comm), ncclSuccess);
  });
  if (!is_broken) CHECK_EQ(standin_run(), 0);
  each([&](Rank &rank) {
    if (is_broken) return;
    for (void *stream : rank.stream) CHECK_EQ(cuStreamDestroy_v2(stream), 0);
    CHECK_EQ(cuMemFree_v2(rank.memory), 0);
  });
  for (Rank &rank : this->rank) CHECK_EQ(cuDevicePrimaryCtxRelease_v2(rank.device), 0);
  CHECK_EQ(nccl_standin_live_comms(), 0);
  // Gives back what it holds.
  standin_reset(0, STANDIN_EAGER, 1, 0);
}

void World::each(const std::function<void(Rank &)> &work) {
  std::vector<std::thread> threads;
  for (Rank &rank : this->rank) {
    threads.emplace_back([&] {
      CHECK_EQ(cuCtxPushCurrent_v2(rank.context), 0);
      nccl_standin_set_rank(rank.index);
      standin_set_rank(rank.index);
      work(rank);
      void *context;
      CHECK_EQ(cuCtxPopCurrent_v2(&context), 0);
    });
  }
  for (std::thread &thread : threads) thread.join();
}

void World::destroy() {
  each([](Rank &rank) {
    CHECK_EQ(ncclCommDestroy(rank.comm), ncclSuccess);
    rank.comm = nullptr;
  });
}

int World::Rank::send(size_t block, int stream_index, size_t count) const {
  return ncclSend(data(block), count, kInt32, 1 - index, comm, cast(stream[stream_index]));
}

int World::Rank::receive(size_t block, int stream_index, size_t count) const {
  return ncclRecv(data(block), count, kInt32, 1 - index, comm, cast(stream[stream_index]));
}

void World::Rank::fill(size_t block, int32_t value, int stream_index) const {
  standin_access access = {reinterpret_cast<uint64_t>(data(block)), kElements * sizeof(int32_t), 1, 0};
  auto run = [](void *user) {
    Fill *fill = static_cast<Fill *>(user);
    for (size_t i = 0; i < kElements; ++i) fill->data[i] = fill->value;
  };
  // As entries of a library, which give back what they hold; `kernels` could not.
  auto drop = [](void *user) { delete static_cast<Fill *>(user); };
  Fill *fill = new Fill{data(block), value};
  CHECK_EQ(standin_enqueue(stream[stream_index], "fill", nullptr, run, drop, fill, &access, 1), 0);
}

void World::Rank::read(size_t block, std::vector<int32_t> *numbers, int stream_index) const {
  standin_access access = {reinterpret_cast<uint64_t>(data(block)), kElements * sizeof(int32_t), 0, 0};
  auto run = [](void *user) {
    Read *read = static_cast<Read *>(user);
    read->numbers->push_back(read->data[0]);
    read->numbers->push_back(read->data[kElements - 1]);
  };
  auto drop = [](void *user) { delete static_cast<Read *>(user); };
  Read *read = new Read{data(block), numbers};
  CHECK_EQ(standin_enqueue(stream[stream_index], "read", nullptr, run, drop, read, &access, 1), 0);
}

int World::Rank::async_error() const {
  int error = -1;
  CHECK_EQ(ncclCommGetAsyncError(comm, &error), ncclSuccess);
  return error;
}

int World::Rank::poll() const {
  for (int error = async_error();; error = async_error()) {
    if (error != ncclInProgress) return error;
    std::this_thread::yield();
  }
}

std::string World::problems() { return text_of(nccl_standin_report); }

std::string World::races() { return text_of(standin_report); }

std::string World::report() { return problems() + races() + text_of(nccl_standin_waiting); }
