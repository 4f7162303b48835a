/// Errors: exceptions, or results where there are none.
#ifndef DUALPIPE_STATUS_HPP
#define DUALPIPE_STATUS_HPP

#include <dualpipe/status.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// Define DUALPIPE_NO_EXCEPTIONS before the first include and functions return Expected instead of throwing. Without
/// exceptions in the compiler it is so by itself. Files of both kinds may be in one program.
#if !defined(DUALPIPE_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define DUALPIPE_NO_EXCEPTIONS 1
#endif

#ifdef DUALPIPE_NO_EXCEPTIONS
#define DUALPIPE_ERRORS returned
#else
#define DUALPIPE_ERRORS thrown
#endif

namespace dualpipe {

/// dualpipe_status: what can go wrong.
enum class Status : std::uint32_t {
  ok = DUALPIPE_OK,
  invalid_argument = DUALPIPE_ERROR_INVALID_ARGUMENT,
  invalid_handle = DUALPIPE_ERROR_INVALID_HANDLE,
  invalid_schedule = DUALPIPE_ERROR_INVALID_SCHEDULE,
  buffer_too_small = DUALPIPE_ERROR_BUFFER_TOO_SMALL,
  timeout = DUALPIPE_ERROR_TIMEOUT,
  peer_failed = DUALPIPE_ERROR_PEER_FAILED,
  callback_failed = DUALPIPE_ERROR_CALLBACK_FAILED,
  transport = DUALPIPE_ERROR_TRANSPORT,
  poisoned = DUALPIPE_ERROR_POISONED,
  busy = DUALPIPE_ERROR_BUSY,
  forked = DUALPIPE_ERROR_FORKED,
  cancelled = DUALPIPE_ERROR_CANCELLED,
  panic = DUALPIPE_ERROR_PANIC,
  internal = DUALPIPE_ERROR_INTERNAL,
  device = DUALPIPE_ERROR_DEVICE,
  unavailable = DUALPIPE_ERROR_UNAVAILABLE,
};

/// The name of a status in C, such as "DUALPIPE_ERROR_BUSY". Any thread.
inline const char *status_name(Status status) noexcept {
  return dualpipe_status_name(static_cast<std::uint32_t>(status));
}

/// Why this thread's last failing call failed; an Error has it already. Valid until the next failing call.
inline const char *last_error() noexcept { return dualpipe_last_error(); }

/// What the library refused or what failed, in words: the function, the argument, its value and its range; of a step
/// rank, instruction and peer.
class Error : public std::runtime_error {
public:
  Error(Status status, const std::string &text) : std::runtime_error(text), status_(status) {}

  Status status() const noexcept { return status_; }

private:
  Status status_;
};

inline namespace DUALPIPE_ERRORS {

/// A value, or why there is none: the part of std::expected of C++23 that is needed. Asking for what is not there ends
/// the process.
template <class T>
class [[nodiscard]] Expected {
public:
  Expected(T value) : content_(std::in_place_index<0>, std::move(value)) {}
  Expected(Error error) : content_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  T &value() & noexcept { return *there(std::get_if<0>(&content_)); }
  const T &value() const & noexcept { return *there(std::get_if<0>(&content_)); }
  T &&value() && noexcept { return std::move(*there(std::get_if<0>(&content_))); }
  T &operator*() & noexcept { return value(); }
  const T &operator*() const & noexcept { return value(); }
  T &&operator*() && noexcept { return std::move(*this).value(); }
  T *operator->() noexcept { return &value(); }
  const T *operator->() const noexcept { return &value(); }
  const Error &error() const noexcept { return *there(std::get_if<1>(&content_)); }

private:
  template <class Pointer>
  static Pointer there(Pointer pointer) noexcept {
    if (pointer == nullptr) std::abort();
    return pointer;
  }

  std::variant<T, Error> content_;
};

/// Nothing, or why not.
template <>
class [[nodiscard]] Expected<void> {
public:
  Expected() = default;
  Expected(Error error) : error_(std::move(error)) {}

  bool has_value() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return has_value(); }
  void value() const noexcept {
    if (error_.has_value()) std::abort();
  }
  const Error &error() const noexcept {
    if (!error_.has_value()) std::abort();
    return *error_;
  }

private:
  std::optional<Error> error_;
};

#ifdef DUALPIPE_NO_EXCEPTIONS
/// What a function returns that can fail.
template <class T>
using Result = Expected<T>;
#else
/// What a function returns that can fail: it throws an Error then.
template <class T>
using Result = T;
#endif

namespace detail {

#ifndef DUALPIPE_NO_EXCEPTIONS
/// What a callback threw on this thread, on its way through C to the call that ran it.
inline thread_local std::exception_ptr carried;
#endif

/// Runs a callback; false if it threw, which `to` then has.
template <class F>
bool runs(std::exception_ptr &to, F &&callback) noexcept {
#ifdef DUALPIPE_NO_EXCEPTIONS
  static_cast<void>(to);
  callback();
#else
  try {
    callback();
  } catch (...) {
    if (to == nullptr) to = std::current_exception();
    return false;
  }
#endif
  return true;
}

/// Runs a callback; false if it threw, which comes out of the call that this thread is in.
template <class F>
bool runs_here(F &&callback) noexcept {
#ifdef DUALPIPE_NO_EXCEPTIONS
  callback();
  return true;
#else
  return runs(carried, callback);
#endif
}

/// Makes what a call gave: a value of its own type from what C wrote.
template <class Make>
auto outcome(dualpipe_status status, Make make) -> Result<decltype(make())> {
#ifdef DUALPIPE_NO_EXCEPTIONS
  if (status != DUALPIPE_OK) return Error(static_cast<Status>(status), dualpipe_last_error());
  if constexpr (std::is_void_v<decltype(make())>) {
    make();
    return {};
  } else {
    return make();
  }
#else
  std::exception_ptr thrown = std::exchange(carried, nullptr);
  if (thrown != nullptr) {
    if (status == DUALPIPE_OK) static_cast<void>(make()); // gives it back
    std::rethrow_exception(thrown);
  }
  if (status != DUALPIPE_OK) throw Error(static_cast<Status>(status), dualpipe_last_error());
  return make();
#endif
}

inline Result<void> outcome(dualpipe_status status) {
  return outcome(status, [] {});
}

/// All values of a buffer that C fills: `fill` takes the buffer, its capacity and the count. If there are no more than
/// `expected`, it is called once.
template <class T, class Fill>
Result<std::vector<T>> values(Fill fill, std::size_t expected = 0) {
  std::vector<T> values(expected);
  std::size_t count = 0;
  dualpipe_status status = fill(expected > 0 ? values.data() : nullptr, expected, &count);
  bool is_filled = expected > 0;
  while (status == DUALPIPE_ERROR_BUFFER_TOO_SMALL || (status == DUALPIPE_OK && !is_filled)) {
    values.resize(count);
    is_filled = true;
    if (count > 0) status = fill(values.data(), values.size(), &count);
  }
  values.resize(count);
  return outcome(status, [&] { return std::move(values); });
}

/// A text that C fills.
template <class Fill>
Result<std::string> text(Fill fill) {
  std::string text;
  std::size_t length = 0;
  dualpipe_status status = fill(nullptr, std::size_t{0}, &length);
  do {
    text.resize(length);
    if (length > 0) status = fill(text.data(), text.size() + 1, &length); // the NUL has its place behind
  } while (status == DUALPIPE_ERROR_BUFFER_TOO_SMALL);
  return outcome(status, [&] { return std::move(text); });
}

/// Owns what a handle stands for.
template <class Raw, dualpipe_status (*Free)(Raw)>
class Handle {
public:
  Handle() noexcept = default;
  explicit Handle(Raw raw) noexcept : raw_(raw) {}
  Handle(Handle &&other) noexcept : raw_(other.release()) {}
  Handle &operator=(Handle &&other) noexcept {
    Handle(std::move(other)).swap(*this);
    return *this;
  }
  ~Handle() { static_cast<void>(Free(raw_)); }

  /// The C handle, which stays this object's.
  Raw get() const noexcept { return raw_; }
  /// The C handle, to be freed by the caller. This object is empty then, and every call is refused.
  Raw release() noexcept { return std::exchange(raw_, nullptr); }
  /// Whether there is something.
  explicit operator bool() const noexcept { return raw_ != nullptr; }
  void swap(Handle &other) noexcept { std::swap(raw_, other.raw_); }

private:
  Raw raw_ = nullptr;
};

} // namespace detail
} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_STATUS_HPP
