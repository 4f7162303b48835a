/// Executors: run one rank's program, step after step.
#ifndef DUALPIPE_EXECUTOR_HPP
#define DUALPIPE_EXECUTOR_HPP

#include <dualpipe/cuda.hpp>
#include <dualpipe/executor.h>
#include <dualpipe/executor_callbacks.hpp>
#include <dualpipe/memory.hpp>
#include <dualpipe/program.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/task.hpp>
#include <dualpipe/tensor.hpp>
#include <dualpipe/timeline.hpp>
#include <dualpipe/transport.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dualpipe {

/// Why an executor failed: rank (which stopped: the executor's own), peer (the other rank that it is about, or `none`),
/// instruction (of the program).
struct Fault : dualpipe_fault {
  Fault() : dualpipe_fault DUALPIPE_FAULT_INIT {}

  /// That of the step.
  Status status() const noexcept { return static_cast<Status>(dualpipe_fault::status); }
};

inline namespace DUALPIPE_ERRORS {

/// How an executor is to run.
struct ExecutorOptions {
  /// What crosses each boundary, at most 32 tensors. A gradient has the dtype and shape of its activation. All ranks
  /// must say the same.
  std::vector<TensorSpec> tensors;
  /// No single wait for a peer lasts longer: more than the longest task of any rank, at most a day. 0 is a minute.
  std::chrono::nanoseconds timeout{0};
  /// Joins the ranks of one process. Exactly one of inproc, transport and nccl is there.
  const Inproc *inproc = nullptr;
  /// The caller's own transport; the executor keeps it.
  std::shared_ptr<Transport> transport;
  /// The caller's own memory for tensors; the executor keeps it. Without it the executor has its own, reused from step
  /// to step. With cuda it is memory of the device, used and given back in the order of the compute stream.
  std::shared_ptr<Memory> memory;
  /// The CUDA device to run on; without it the host.
  std::optional<CudaOptions> cuda;
  /// NCCL joins the ranks, each in a process of its own. Only with cuda.
  std::optional<NcclOptions> nccl;
};

/// Runs one rank's program. One thread at a time: another gets Status::busy, and so does a task of its own. After a
/// failed step it can only be asked for its fault and its timeline, and go. It is useless in a child of fork.
class Executor {
public:
  /// Takes its rank's place in the inproc, or the transport; its buffers are allocated now, with cuda on the device,
  /// with its streams and events. With nccl it waits, at most the timeout, until all ranks that it has messages with
  /// have come. The program may go.
  ///
  /// Errors: Status::invalid_argument, also if the rank's place is taken; Status::poisoned if a rank of the inproc has
  /// failed; with cuda Status::unavailable and Status::device, with nccl Status::timeout and Status::transport.
  static Result<Executor> create(const Program &program, const ExecutorOptions &options) {
    Executor made;
    dualpipe_executor_options in_c = DUALPIPE_EXECUTOR_OPTIONS_INIT;
    in_c.num_tensors = static_cast<std::uint32_t>(options.tensors.size());
    in_c.tensors = options.tensors.data();
    in_c.timeout_ns = nanoseconds(options.timeout);
    in_c.inproc = options.inproc == nullptr ? nullptr : options.inproc->get();
    in_c.cuda = options.cuda.has_value() ? &*options.cuda : nullptr;

    dualpipe_memory memory;
    if (options.memory != nullptr) {
      made.memory_ = std::make_unique<detail::MemoryEnd>(options.memory, made.carrier_);
      memory = made.memory_->in_c();
      in_c.memory = &memory;
    }
    std::unique_ptr<detail::TransportEnd> end;
    dualpipe_transport transport;
    if (options.transport != nullptr) {
      end = std::make_unique<detail::TransportEnd>(options.transport, made.carrier_);
      transport = end->in_c();
      in_c.transport = &transport;
    }
    dualpipe_nccl_options nccl;
    if (options.nccl.has_value()) {
      nccl = options.nccl->in_c();
      in_c.nccl = &nccl;
    }

    dualpipe_executor_t executor = nullptr;
    const dualpipe_status status = dualpipe_executor_create(program.get(), &in_c, &executor);
    if (status == DUALPIPE_OK) {
      static_cast<void>(end.release()); // until destroy
      made.handle_ = Handle(executor);
    }
    return detail::outcome(status, [&] { return std::move(made); });
  }

  Executor(Executor &&) noexcept = default;
  Executor &operator=(Executor &&other) noexcept {
    handle_ = std::move(other.handle_); // first what uses the others
    started_ = std::move(other.started_);
    memory_ = std::move(other.memory_);
    carrier_ = std::move(other.carrier_);
    return *this;
  }

  /// The C handle, which stays this object's.
  dualpipe_executor_t get() const noexcept { return handle_.get(); }

  /// Other tensors at the boundary after `stage` of `direction`, for every micro-batch, from the next step on. Every
  /// rank must be told the same. Allocates if they are larger than any before.
  Result<void> set_boundary(std::uint32_t direction, std::uint32_t stage, Span<const TensorSpec> tensors) {
    return detail::outcome(dualpipe_executor_set_boundary(get(), direction, stage, tensors.data(), length(tensors)));
  }

  /// Other tensors for one micro-batch, counted within its direction, at every boundary, from the next step on: for
  /// example another sequence length. It overrides set_boundary. Every rank must be told the same.
  Result<void> set_microbatch(std::uint32_t direction, std::uint32_t microbatch, Span<const TensorSpec> tensors) {
    return detail::outcome(
        dualpipe_executor_set_microbatch(get(), direction, microbatch, tensors.data(), length(tensors)));
  }

  /// Runs one step on this thread: calls task(const Task &) for every task of the program, in order, each when what it
  /// reads is there. Returns when all are done and all that was sent has been taken. It does not allocate once the
  /// first step has run.
  ///
  /// What task throws ends the step on all ranks, and comes out of here; the other ranks' errors repeat its words. It
  /// may instead return a number as in C, 0 to go on, or an Expected<void>.
  ///
  /// On a CUDA device a task only enqueues, on the streams that it is handed. The step returns when the device is done,
  /// or with is_stream_ordered when all of it is enqueued; it then first waits for the end of the step before.
  ///
  /// Errors, each with rank, instruction and peer: Status::timeout, Status::callback_failed, Status::peer_failed,
  /// Status::transport, Status::device; Status::poisoned after any of them. All other ranks end with an error too.
  template <class F>
  Result<void> step(F &&task) {
    detail::TaskCall<std::remove_reference_t<F>> call{task, *carrier_};
    return finish(dualpipe_executor_step(get(), decltype(call)::run, &call));
  }

  /// Runs one step like step, but on a thread of the executor's own, and returns at once. task is called on that
  /// thread, and kept until the next. wait ends it.
  Result<void> start(std::function<void(const Task &)> task) {
    auto started = std::make_unique<Started>(Started{std::move(task), carrier_});
    const dualpipe_status status = dualpipe_executor_start(get(), Started::run, started.get());
    if (status == DUALPIPE_OK) started_ = std::move(started);
    return detail::outcome(status);
  }

  /// Waits for the step that start began, at most `timeout`, and ends as step would have.
  ///
  /// Errors: Status::timeout with the text "still running" if it goes on, then wait again; Status::invalid_argument if
  /// no step was started.
  Result<void> wait(std::chrono::nanoseconds timeout) {
    return finish(dualpipe_executor_wait(get(), nanoseconds(timeout)));
  }

  /// Waits, at most `timeout`, until the device is done with the last step. On the host it always is.
  ///
  /// Errors: Status::timeout with the text "still running" if it is not, then wait again; those of step if the step
  /// failed on the device.
  Result<void> synchronize(std::chrono::nanoseconds timeout) {
    return finish(dualpipe_executor_synchronize(get(), nanoseconds(timeout)));
  }

  /// How far it is from launching whole steps as CUDA graphs.
  Result<GraphStatus> graph() const {
    std::uint32_t state = 0;
    const auto fill = [&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_executor_graph(get(), &state, text, capacity, length);
    };
    auto why = detail::text(fill);
#ifdef DUALPIPE_NO_EXCEPTIONS
    if (!why.has_value()) return why.error();
    return GraphStatus{static_cast<GraphState>(state), std::move(*why)};
#else
    return {static_cast<GraphState>(state), std::move(why)};
#endif
  }

  /// The timeline of this rank in its last step, which may have failed. Timeline::merge joins the ranks'. On a CUDA
  /// device it is there if the executor is_timed and the step is known to be done.
  Result<Timeline> timeline() const {
    dualpipe_timeline_t timeline = nullptr;
    const dualpipe_status status = dualpipe_executor_timeline(get(), &timeline);
    return detail::outcome(status, [&] { return Timeline(timeline); });
  }

  /// Whether and why it failed.
  Result<std::optional<Fault>> fault() const {
    Fault fault;
    const dualpipe_status status = dualpipe_executor_fault(get(), &fault);
    return detail::outcome(status, [&] { return fault.has_failed ? std::optional<Fault>(fault) : std::nullopt; });
  }

private:
  using Handle = detail::Handle<dualpipe_executor_t, dualpipe_executor_free>;

  struct Started {
    std::function<void(const Task &)> task;
    std::shared_ptr<detail::Carrier> carrier;

    static std::int32_t run(void *self, const dualpipe_task *task) noexcept {
      Started &started = *static_cast<Started *>(self);
      detail::TaskCall<std::function<void(const Task &)>> call{started.task, *started.carrier};
      return decltype(call)::run(&call, task);
    }
  };

  Executor() = default;

  static std::uint64_t nanoseconds(std::chrono::nanoseconds time) noexcept {
    return static_cast<std::uint64_t>(time.count()); // the library refuses what was negative
  }

  static std::uint32_t length(Span<const TensorSpec> tensors) noexcept {
    return static_cast<std::uint32_t>(tensors.size());
  }

  /// What a step ended with: what a callback threw comes first.
  Result<void> finish(dualpipe_status status) {
#ifndef DUALPIPE_NO_EXCEPTIONS
    if (std::exception_ptr thrown = carrier_->take()) {
      detail::carried = nullptr;
      std::rethrow_exception(thrown);
    }
#endif
    return detail::outcome(status);
  }

  std::shared_ptr<detail::Carrier> carrier_ = std::make_shared<detail::Carrier>();
  std::unique_ptr<detail::MemoryEnd> memory_;
  std::unique_ptr<Started> started_;
  Handle handle_; // the last: it goes first
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_EXECUTOR_HPP
