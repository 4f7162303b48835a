// The control functions of standin.h.
#include "standin.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "registry.h"
#include "session.h"

using namespace standin;

namespace {

void add_accesses(Work &work, const standin_access *accesses, size_t num_accesses) {
  for (size_t i = 0; i < num_accesses; ++i) {
    const uint64_t begin = accesses[i].address;
    const uint64_t end = begin + accesses[i].num_bytes;
    if (begin < end) work.accesses.push_back({begin, end, accesses[i].is_write != 0});
  }
}

// A Session for what is no driver function: it is not counted and meets no faults.
template <typename Body>
auto control(const char *function, Body body) {
  Session session(function);
  return body(session);
}

Status submit(const char *function, void *handle, const std::shared_ptr<Work> &work) {
  return control(function, [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (session.thread.is_inside_op) return session.refuse(NOT_PERMITTED, "called from inside an op");
    if (const Status status = session.stream(handle, stream)) return status;
    return session.submit(*stream, work);
  });
}

uint64_t count(const Life &life, const char *kind) {
  auto is = [&](const char *word) { return std::strcmp(kind, word) == 0; };
  if (is("streams")) return life.streams.size();
  if (is("events")) return life.events.size();
  if (is("allocations")) return life.memory.count(false);
  if (is("host_allocations")) return life.memory.count(true);
  if (is("graphs")) return life.graphs.size();
  if (is("graph_execs")) return life.graph_execs.size();
  if (is("modules")) return life.modules.size();
  if (!is("contexts")) return UINT64_MAX;
  return std::accumulate(life.contexts.begin(), life.contexts.end(), uint64_t{0},
                         [](uint64_t sum, const auto &context) { return sum + context->num_retains; });
}

}  // namespace

void standin_reset(uint64_t seed, uint32_t mode, uint32_t num_devices, uint32_t flags) {
  Engine &engine = Engine::get();
  const bool is_inside_op = control("standin_reset", [](Session &session) {
    if (session.thread.is_inside_op) session.report("called from inside an op");
    return session.thread.is_inside_op;
  });
  if (is_inside_op) return;
  engine.reset({seed, mode == STANDIN_LAZY, num_devices, (flags & STANDIN_RANK_LOCAL) != 0});
}

uint64_t standin_run() {
  const uint64_t num_queued = control("standin_run", [](Session &session) {
    if (session.thread.is_inside_op) session.report("called from inside an op");
    return session.thread.is_inside_op ? UINT64_MAX : session.engine.run(session.lock);
  });
  run_drops();
  return num_queued;
}

void standin_host_barrier() {
  control("standin_host_barrier", [](Session &session) { session.life.add_barrier(); });
}

void standin_set_rank(int32_t rank) {
  control("standin_set_rank", [&](Session &session) { session.thread.rank = std::max(rank, -1); });
}

int32_t standin_launch(void *stream, const char *label, void (*fn)(void *), void *user,
                       const standin_access *accesses, size_t num_accesses) {
  auto work = make_work(label == nullptr ? "kernel" : label);
  add_accesses(*work, accesses, num_accesses);
  work->needs_peer_access = true;
  if (fn != nullptr) work->run = [fn, user] { fn(user); };
  return submit("standin_launch", stream, work);
}

int32_t standin_enqueue(void *stream, const char *label, int (*ready)(void *), void (*run)(void *),
                        void (*drop)(void *), void *user, const standin_access *accesses, size_t num_accesses) {
  auto work = make_work(label == nullptr ? "op" : label);
  add_accesses(*work, accesses, num_accesses);
  if (run != nullptr) work->run = [run, user] { run(user); };
  work->ready = ready;
  work->drop = drop;
  work->user = user;
  const Status status = submit("standin_enqueue", stream, work);
  if (status != SUCCESS) work->drop = nullptr;
  work.reset();
  run_drops();
  return status;
}

void standin_wake() { Engine::get().wake(); }

void standin_clock_release(uint64_t *token) {
  control("standin_clock_release", [&](Session &session) {
    const Lane *const lane = session.engine.running_lane();
    *token = 0;
    if (lane == nullptr) return session.report("called outside of an op");
    session.life.tokens.push_back({lane->clock, lane->rank, lane->component});
    *token = session.life.tokens.size();
  });
}

void standin_clock_acquire(uint64_t token) {
  control("standin_clock_acquire", [&](Session &session) {
    Lane *const lane = session.engine.running_lane();
    if (token == 0) return;
    if (lane == nullptr) return session.report("called outside of an op");
    if (token > session.life.tokens.size()) return session.report("there is no such token");
    const auto &[clock, rank, component] = session.life.tokens[token - 1];
    session.life.components.join(lane->clock, lane->rank, clock, rank, component);
  });
}

uint64_t standin_num_waits(int32_t rank) {
  return control("standin_num_waits", [&](Session &session) { return session.life.faults.rank(rank).num_waits; });
}

void standin_skip_wait(int32_t rank, uint64_t ordinal) {
  control("standin_skip_wait", [&](Session &session) { session.life.faults.rank(rank).skipped_wait = ordinal; });
}

uint64_t standin_num_ops(int32_t rank) {
  return control("standin_num_ops", [&](Session &session) { return session.life.faults.rank(rank).num_ops; });
}

void standin_fail_op(int32_t rank, uint64_t ordinal, int32_t code) {
  control("standin_fail_op", [&](Session &session) {
    session.life.faults.rank(rank).failing_ops[ordinal] = code;
  });
}

void standin_hang_op(int32_t rank, uint64_t ordinal) {
  control("standin_hang_op", [&](Session &session) {
    session.life.faults.rank(rank).hanging_ops.insert(ordinal);
  });
}

void standin_release() {
  control("standin_release", [](Session &session) { session.engine.release(); });
}

void standin_fail_call(const char *function, uint64_t ordinal, int32_t code) {
  control("standin_fail_call", [&](Session &session) { session.life.faults.fail_call(function, ordinal, code); });
}

uint64_t standin_num_calls(const char *function) {
  return control("standin_num_calls", [&](Session &session) {
    Faults &faults = session.life.faults;
    return function == nullptr ? faults.num_calls() : faults.num_calls(function);
  });
}

uint64_t standin_live(const char *kind) {
  return control("standin_live", [&](Session &session) { return count(session.life, kind); });
}

size_t standin_report(char *report, size_t capacity) {
  return control("standin_report", [&](Session &session) {
    session.life.memory.check_all();
    const std::string all = session.life.problems.all();
    if (capacity > 0) {
      const size_t length = std::min(all.size(), capacity - 1);
      std::memcpy(report, all.data(), length);
      report[length] = '\0';
    }
    return all.size();
  });
}

void standin_set_driver_version(int32_t version) {
  control("standin_set_driver_version", [&](Session &session) { session.life.driver_version = version; });
}

void standin_set_peer_access(int32_t is_possible) {
  control("standin_set_peer_access", [&](Session &session) {
    session.life.is_peer_access_possible = is_possible != 0;
  });
}

void standin_register_kernel(
    const char *name, void (*fn)(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **params),
    size_t (*accesses)(const uint32_t grid[3], const uint32_t block[3], void **params, standin_access *out,
                       size_t capacity),
    const size_t *param_sizes, size_t num_params) {
  register_kernel({name, fn, accesses, std::vector<size_t>(param_sizes, param_sizes + num_params)});
}
