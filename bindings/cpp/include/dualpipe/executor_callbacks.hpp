/// What lies between an executor's C callbacks and the C++ objects that they run.
#ifndef DUALPIPE_EXECUTOR_CALLBACKS_HPP
#define DUALPIPE_EXECUTOR_CALLBACKS_HPP

#include <dualpipe/executor.h>
#include <dualpipe/memory.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/task.hpp>
#include <dualpipe/transport.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

namespace dualpipe {
inline namespace DUALPIPE_ERRORS {
namespace detail {

/// The first exception of an executor's callbacks, on its way to the step, whose thread may be another.
class Carrier {
public:
  /// Runs a callback; false if it threw.
  template <class F>
  bool runs(F &&callback) noexcept {
    std::exception_ptr thrown;
    if (detail::runs(thrown, std::forward<F>(callback))) return true;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (thrown_ == nullptr) thrown_ = std::move(thrown);
    return false;
  }

  /// What it said.
  std::string words() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return detail::words(thrown_);
  }

  std::exception_ptr take() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(thrown_, nullptr);
  }

private:
  std::mutex mutex_;
  std::exception_ptr thrown_;
};

/// A task callback of C that runs `callback`.
template <class F>
struct TaskCall {
  F &callback;
  Carrier &carrier;

  static std::int32_t run(void *self, const dualpipe_task *task) noexcept {
    const TaskCall &call = *static_cast<TaskCall *>(self);
    std::int32_t code = 1;
    const auto run = [&] {
      using Answer = std::invoke_result_t<F &, const Task &>;
      code = answer<Answer>([&] { return call.callback(Task(*task)); });
    };
    if (call.carrier.runs(run)) return code;
    static_cast<void>(dualpipe_task_set_error(call.carrier.words().c_str()));
    return 1;
  }
};

/// Memory in C's terms. It goes after its executor.
class MemoryEnd {
public:
  MemoryEnd(std::shared_ptr<Memory> memory, std::shared_ptr<Carrier> carrier)
      : memory_(std::move(memory)), carrier_(std::move(carrier)) {}

  dualpipe_memory in_c() noexcept {
    dualpipe_memory in_c = DUALPIPE_MEMORY_INIT;
    in_c.user_data = this;
    in_c.allocate = [](void *self, std::uint64_t num_bytes, void **data, void **owner) noexcept -> std::int32_t {
      const MemoryEnd &end = *static_cast<MemoryEnd *>(self);
      Allocation given;
      if (!end.carrier_->runs([&] { given = end.memory_->allocate(num_bytes); })) return 1;
      *data = given.data;
      *owner = given.owner;
      return given.data != nullptr || num_bytes == 0 ? 0 : 1;
    };
    in_c.release = [](void *self, void *data, void *owner) noexcept {
      const MemoryEnd &end = *static_cast<MemoryEnd *>(self);
      end.carrier_->runs([&] { end.memory_->release(data, owner); });
    };
    return in_c;
  }

private:
  std::shared_ptr<Memory> memory_;
  std::shared_ptr<Carrier> carrier_;
};

/// A transport in C's terms. It goes when C is done with it, which may be after its executor.
class TransportEnd {
public:
  TransportEnd(std::shared_ptr<Transport> transport, std::shared_ptr<Carrier> carrier)
      : transport_(std::move(transport)), carrier_(std::move(carrier)) {}

  /// C is to call destroy, and owns it then.
  dualpipe_transport in_c() noexcept {
    dualpipe_transport in_c = DUALPIPE_TRANSPORT_INIT;
    in_c.user_data = this;
    in_c.send = [](void *self, const dualpipe_transfer *transfer, std::uint64_t *request) noexcept {
      return run(self, [&](Transport &transport) { return transport.send(*transfer, *request); });
    };
    in_c.receive = [](void *self, const dualpipe_transfer *transfer, std::uint64_t *request) noexcept {
      return run(self, [&](Transport &transport) { return transport.receive(*transfer, *request); });
    };
    in_c.test = [](void *self, std::uint64_t request, std::uint32_t *done, std::uint64_t *num_bytes) noexcept {
      return run(self, [&](Transport &transport) {
        bool is_done = false;
        const TransportCode code = transport.test(request, is_done, *num_bytes);
        *done = is_done;
        return code;
      });
    };
    in_c.wait = [](void *self, std::uint64_t timeout_ns) noexcept {
      const auto most = static_cast<std::uint64_t>(std::chrono::nanoseconds::max().count());
      const std::chrono::nanoseconds timeout(static_cast<std::int64_t>(std::min(timeout_ns, most)));
      runs(self, [&](Transport &transport) { transport.wait(timeout); });
    };
    in_c.poll_abort = [](void *self, std::uint32_t *rank, char *text, std::size_t capacity) noexcept {
      std::uint32_t has_failed = 0;
      runs(self, [&](Transport &transport) {
        const std::optional<PeerAbort> abort = transport.poll_abort();
        if (!abort.has_value()) return;
        *rank = abort->rank;
        write(abort->text, text, capacity);
        has_failed = 1;
      });
      return has_failed;
    };
    in_c.abort = [](void *self, std::uint32_t rank, const char *text) noexcept {
      runs(self, [&](Transport &transport) { transport.abort(rank, text); });
    };
    in_c.withdraw = [](void *self) noexcept {
      runs(self, [](Transport &transport) { transport.withdraw(); });
    };
    in_c.last_error = [](void *self, char *text, std::size_t capacity) noexcept {
      const TransportEnd &end = *static_cast<TransportEnd *>(self);
      const std::string thrown = end.carrier_->words();
      if (!thrown.empty()) return write(thrown, text, capacity);
      runs(self, [&](Transport &transport) { write(transport.last_error(), text, capacity); });
    };
    in_c.destroy = [](void *self) noexcept { delete static_cast<TransportEnd *>(self); };
    return in_c;
  }

private:
  template <class F>
  static bool runs(void *self, F &&callback) noexcept {
    const TransportEnd &end = *static_cast<TransportEnd *>(self);
    return end.carrier_->runs([&] { callback(*end.transport_); });
  }

  /// The code that it gives; that it failed if it threw.
  template <class F>
  static std::uint32_t run(void *self, F &&callback) noexcept {
    TransportCode code = TransportCode::failed;
    const bool is_run = runs(self, [&](Transport &transport) { code = callback(transport); });
    return static_cast<std::uint32_t>(is_run ? code : TransportCode::failed);
  }

  /// As much of a text as there is room for, and a NUL.
  static void write(const std::string &from, char *to, std::size_t capacity) noexcept {
    if (capacity == 0) return;
    const std::size_t length = std::min(from.size(), capacity - 1);
    std::memcpy(to, from.data(), length);
    to[length] = '\0';
  }

  std::shared_ptr<Transport> transport_;
  std::shared_ptr<Carrier> carrier_;
};

} // namespace detail
} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_EXECUTOR_CALLBACKS_HPP
