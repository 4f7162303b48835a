// Steps through the C++ header: tasks, exceptions, threads of the executor's own, memory and transports of the
// caller's.
#include <dualpipe.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pipeline.hpp"
#include "throws.hpp"

using namespace dualpipe;
using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t num_ranks = 3, num_microbatches = 7;
// The last of the 6 stages is on rank 0: micro-batches 0 to 6, and 1 + 2 + ... + 6 for each.
constexpr float expected = 21 + num_microbatches * 21;

Schedule v() { return Schedule::create(ScheduleKind::dualpipe_v, num_ranks, num_microbatches); }

ExecutorOptions one_float(const Inproc &inproc) {
  ExecutorOptions options;
  options.tensors = {TensorSpec(DType::f32, {1})};
  options.timeout = 10s;
  options.inproc = &inproc;
  return options;
}

void a_step_runs_and_is_recorded() {
  const Schedule schedule = v();
  const Inproc inproc = Inproc::create(num_ranks);
  std::vector<Adder> adders(num_ranks);
  std::vector<Timeline> timelines(num_ranks);
  on_threads(num_ranks, [&](std::uint32_t rank) {
    Executor made = Executor::create(Program::create(schedule, rank), one_float(inproc));
    Executor executor = std::move(made);
    for (int step = 0; step < 3; step++) executor.step(adders[rank]);
    timelines[rank] = executor.timeline();
    CHECK(!executor.fault().has_value());
    CHECK(executor.graph().state == GraphState::off && executor.graph().why.empty());
    executor.synchronize(1s);
  });
  CHECK(adders[0].sum == 3 * expected && adders[1].sum == 0 && adders[2].num_backward > 0);
  const TimelineSummary summary = Timeline::merge(timelines).summarize();
  CHECK(summary.source() == TimelineSource::recorded && summary.num_ranks == num_ranks);
}

struct Planned : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What rank 1 throws comes out of its step, and the others hear its words.
void what_a_task_throws_comes_out_of_the_step() {
  const Schedule schedule = v();
  for (const bool is_started : {false, true}) {
    const Inproc inproc = Inproc::create(num_ranks);
    std::vector<std::string> said(num_ranks);
    on_threads(num_ranks, [&](std::uint32_t rank) {
      Executor executor = Executor::create(Program::create(schedule, rank), one_float(inproc));
      const auto run = [&](const Task &task) {
        if (rank == 1 && task.backward() != nullptr) throw Planned("no more memory, as planned");
        Adder()(task);
      };
      const auto step = [&] {
        if (!is_started) return executor.step(run);
        executor.start(run);
        executor.wait(10s);
      };
      if (rank == 1) {
        said[rank] = thrown_by<Planned>(step).what();
      } else {
        const Error error = thrown_by<Error>(step);
        CHECK(error.status() == Status::peer_failed);
        said[rank] = error.what();
      }
      const std::optional<Fault> fault = executor.fault();
      CHECK(fault.has_value() && fault->rank == rank);
      CHECK(rank != 1 || fault->status() == Status::callback_failed);
      // And the executor can only go.
      CHECK(thrown_by<Error>([&] { executor.step(Adder()); }).status() == Status::poisoned);
    });
    for (const std::string &text : said) CHECK(text.find("no more memory, as planned") != std::string::npos);
  }
}

void a_task_may_answer_as_in_c() {
  const Schedule schedule = Schedule::create(ScheduleKind::one_f_one_b, 1, 2);
  const Program program = Program::create(schedule, 0);
  const Inproc inproc = Inproc::create(1), another = Inproc::create(1);
  Executor executor = Executor::create(program, one_float(inproc));
  executor.step([](const Task &) { return 0; });
  executor.step([](const Task &) { return Expected<void>(); });
  CHECK(thrown_by<Error>([&] { executor.step([](const Task &) { return 7; }); }).status() == Status::callback_failed);
  executor = Executor::create(program, one_float(another));
  const Error error = thrown_by<Error>([&] {
    executor.step([](const Task &) { return Expected<void>(Error(Status::internal, "so it is")); });
  });
  CHECK(error.status() == Status::callback_failed);
  CHECK(std::string(error.what()).find("so it is") != std::string::npos);
}

void waiting_has_a_deadline() {
  const Schedule schedule = Schedule::create(ScheduleKind::one_f_one_b, 1, 1);
  const Inproc inproc = Inproc::create(1);
  Executor executor = Executor::create(Program::create(schedule, 0), one_float(inproc));
  CHECK(thrown_by<Error>([&] { executor.wait(1s); }).status() == Status::invalid_argument);
  std::mutex mutex;
  std::unique_lock<std::mutex> lock(mutex);
  executor.start([&](const Task &) { const std::lock_guard<std::mutex> waits(mutex); });
  CHECK(thrown_by<Error>([&] { executor.wait(10ms); }).status() == Status::timeout);
  // What is running is not replaced.
  CHECK(thrown_by<Error>([&] { executor.start([](const Task &) {}); }).status() == Status::busy);
  lock.unlock();
  executor.wait(10s);
  executor.start([](const Task &) {});
  executor.wait(10s);
}

/// A micro-batch of another shape, and a gradient that is absent.
void shapes_and_absent_gradients() {
  const Schedule schedule = Schedule::create(ScheduleKind::one_f_one_b, 2, 3);
  const Inproc inproc = Inproc::create(2);
  on_threads(2, [&](std::uint32_t rank) {
    ExecutorOptions options = one_float(inproc);
    options.tensors.emplace_back(DType::i64, Span<const std::int64_t>{});
    Executor executor = Executor::create(Program::create(schedule, rank), options);
    executor.set_boundary(0, 0, options.tensors);
    executor.set_microbatch(0, 1, {TensorSpec(DType::f32, {2, 3}), TensorSpec(DType::i64, {})});
    executor.step([&](const Task &task) {
      if (task.kind() == OpKind::F && rank == 0) {
        const OutTensors outputs = task.forward()->outputs();
        CHECK(outputs[0].size() == (task.op().forward.microbatch == 1 ? 6U : 1U));
        for (float &value : outputs[0].values<float>()) value = 5;
        CHECK(outputs[1].shape().empty() && outputs[1].size() == 1 && outputs[1].dtype().bits == 64);
        outputs[1].values<std::int64_t>()[0] = -8;
      }
      if (task.kind() == OpKind::F && rank == 1) {
        const Tensors inputs = task.forward()->inputs();
        CHECK(inputs.size() == 2 && inputs[0].values<float>()[inputs[0].size() - 1] == 5);
        CHECK(inputs[1].values<std::int64_t>()[0] == -8);
      }
      if (task.backward() != nullptr && rank == 1) {
        task.backward()->input_grads()[0].values<float>()[0] = 1;
        task.backward()->input_grads()[1].set_absent();
      }
      if (task.backward() != nullptr && rank == 0) {
        CHECK(task.backward()->output_grads()[0].is_present() && !task.backward()->output_grads()[1].is_present());
      }
    });
    const Error error = thrown_by<Error>([&] {
      executor.set_microbatch(0, 0, {TensorSpec(DType::f32, {1, 1, 1, 1, 1, 1, 1, 1, 1})});
    });
    CHECK(std::string(error.what()).find("ndim is 9") != std::string::npos);
  });
}

/// Everything that was given comes back, also at the end of the executor.
class Heap : public Memory {
public:
  ~Heap() override { CHECK(live_.empty()); }

  Allocation allocate(std::uint64_t num_bytes) override {
    if (num_left_ == 0) throw std::bad_alloc();
    num_left_ -= 1;
    void *const data = std::malloc(static_cast<std::size_t>(num_bytes));
    live_.insert(data);
    return {data, this};
  }

  void release(void *data, void *owner) override {
    CHECK(owner == this && live_.erase(data) == 1);
    std::free(data);
  }

  void allow(std::size_t allocations) { num_left_ = allocations; }

private:
  std::set<void *> live_;
  std::size_t num_left_ = 1000;
};

void memory_is_the_callers() {
  const Schedule schedule = v();
  for (const bool is_scarce : {false, true}) {
    const Inproc inproc = Inproc::create(num_ranks);
    std::vector<Adder> adders(num_ranks);
    on_threads(num_ranks, [&](std::uint32_t rank) {
      auto heap = std::make_shared<Heap>();
      ExecutorOptions options = one_float(inproc);
      options.memory = heap;
      Executor executor = Executor::create(Program::create(schedule, rank), options);
      options.memory = nullptr;
      const auto run = [&](const Task &task) {
        const auto place = [&](const OutTensor tensor) {
          const Allocation given = heap->allocate(sizeof(float));
          tensor.place(given.data, given.owner);
        };
        if (task.forward() != nullptr) {
          for (const OutTensor output : task.forward()->outputs()) place(output);
        }
        if (task.backward() != nullptr && task.kind() != OpKind::W) {
          for (const OutTensor grad : task.backward()->input_grads()) place(grad);
        }
        adders[rank](task);
      };
      if (!is_scarce) return executor.step(run);
      if (rank == 2) heap->allow(3);
      const auto step = [&] { executor.step(run); };
      rank == 2 ? static_cast<void>(thrown_by<std::bad_alloc>(step)) : static_cast<void>(thrown_by<Error>(step));
      heap->allow(1000);
    });
    CHECK(is_scarce || adders[0].sum == expected);
  }
}

/// What the ranks' ends of a transport share: messages by (from, to, tag), and who failed.
struct Post {
  std::mutex mutex;
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>, std::vector<char>> messages;
  std::optional<PeerAbort> aborted;
  int num_ends = 0;
};

class PostEnd : public Transport {
public:
  PostEnd(std::shared_ptr<Post> post, std::uint32_t rank) : post_(std::move(post)), rank_(rank) {
    post_->num_ends += 1;
  }
  ~PostEnd() override {
    const std::lock_guard<std::mutex> lock(post_->mutex);
    post_->num_ends -= 1;
  }

  TransportCode send(const Transfer &transfer, std::uint64_t &request) override {
    if (throws_at == 0) throw Planned("the cable is cut");
    throws_at -= 1;
    const std::lock_guard<std::mutex> lock(post_->mutex);
    const char *const data = static_cast<const char *>(transfer.data);
    post_->messages[{rank_, transfer.peer, transfer.tag}].assign(data, data + transfer.num_bytes);
    request = sent;
    return TransportCode::ok;
  }
  TransportCode receive(const Transfer &transfer, std::uint64_t &request) override {
    request = next_++;
    receives_[request] = transfer;
    return TransportCode::ok;
  }
  TransportCode test(std::uint64_t request, bool &done, std::uint64_t &num_bytes) override {
    done = request == sent;
    if (done) return TransportCode::ok;
    const Transfer &transfer = receives_.at(request);
    const std::lock_guard<std::mutex> lock(post_->mutex);
    const auto found = post_->messages.find({transfer.peer, rank_, transfer.tag});
    if (found == post_->messages.end()) return TransportCode::ok;
    CHECK(found->second.size() <= transfer.num_bytes);
    std::memcpy(transfer.data, found->second.data(), found->second.size());
    num_bytes = found->second.size();
    post_->messages.erase(found);
    receives_.erase(request);
    done = true;
    return TransportCode::ok;
  }
  void withdraw() override { receives_.clear(); }
  std::optional<PeerAbort> poll_abort() override {
    const std::lock_guard<std::mutex> lock(post_->mutex);
    return post_->aborted;
  }
  void abort(std::uint32_t rank, const std::string &text) override {
    const std::lock_guard<std::mutex> lock(post_->mutex);
    if (!post_->aborted.has_value()) post_->aborted = PeerAbort{rank, text};
  }

  std::size_t throws_at = 1000;

private:
  static constexpr std::uint64_t sent = 0;

  std::shared_ptr<Post> post_;
  std::uint32_t rank_;
  std::uint64_t next_ = 1;
  std::map<std::uint64_t, Transfer> receives_;
};

void transports_are_the_callers() {
  const Schedule schedule = v();
  for (const bool fails : {false, true}) {
    const auto post = std::make_shared<Post>();
    std::vector<Adder> adders(num_ranks);
    std::vector<std::shared_ptr<PostEnd>> ends;
    for (std::uint32_t rank = 0; rank < num_ranks; rank++) ends.push_back(std::make_shared<PostEnd>(post, rank));
    if (fails) ends[1]->throws_at = 4;
    on_threads(num_ranks, [&](std::uint32_t rank) {
      ExecutorOptions options;
      options.tensors = {TensorSpec(DType::f32, {1})};
      options.timeout = 10s;
      options.transport = std::exchange(ends[rank], nullptr);
      Executor executor = Executor::create(Program::create(schedule, rank), options);
      const auto step = [&] { executor.step(adders[rank]); };
      if (!fails) return step();
      if (rank == 1) {
        CHECK(std::string(thrown_by<Planned>(step).what()) == "the cable is cut");
      } else {
        const Error error = thrown_by<Error>(step);
        CHECK(error.status() == Status::peer_failed);
        CHECK(std::string(error.what()).find("rank 1") != std::string::npos);
        CHECK(std::string(error.what()).find("the cable is cut") != std::string::npos);
      }
    });
    CHECK(fails || adders[0].sum == expected);
    CHECK(fails || post->messages.empty());
    // One that could not be made gives its transport back at once.
    ExecutorOptions wrong;
    wrong.transport = std::make_shared<PostEnd>(post, 0);
    wrong.timeout = -1s;
    CHECK(thrown_by<Error>([&] { Executor::create(Program::create(schedule, 0), wrong); }).status() ==
          Status::invalid_argument);
    CHECK(wrong.transport.use_count() == 1);
    wrong.transport = nullptr;
    CHECK(post->num_ends == 0);
  }
}

} // namespace

int main() {
  a_step_runs_and_is_recorded();
  what_a_task_throws_comes_out_of_the_step();
  a_task_may_answer_as_in_c();
  waiting_has_a_deadline();
  shapes_and_absent_gradients();
  memory_is_the_callers();
  transports_are_the_callers();
}
