/// The log callback and the progress callback of the process. Without them the library says nothing.
#ifndef DUALPIPE_LOG_HPP
#define DUALPIPE_LOG_HPP

#include <dualpipe/log.h>
#include <dualpipe/status.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace dualpipe {

/// How much a line of the log matters.
enum class LogLevel : std::uint32_t {
  debug = DUALPIPE_LOG_DEBUG,     ///< For those who look for a mistake: also every call that fails.
  info = DUALPIPE_LOG_INFO,       ///< What the library decided.
  warning = DUALPIPE_LOG_WARNING, ///< It works, but not as well as it could.
  error = DUALPIPE_LOG_ERROR,     ///< A defect of this library.
};

inline namespace DUALPIPE_ERRORS {
namespace detail {

/// Keeps a callback for good, since another thread may still be in it when it is replaced.
template <class F>
F *keep(F callback) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<F>> &kept = *new std::vector<std::unique_ptr<F>>; // until the process ends
  const std::lock_guard<std::mutex> lock(mutex);
  return kept.emplace_back(std::make_unique<F>(std::move(callback))).get();
}

} // namespace detail

/// Sets the log callback of the process; an empty one turns the log off, which is how it starts. It gets a line without
/// a newline, valid during the call; on any thread, also on several at once, and on threads of the library's own. What
/// it throws comes out of the call that logged, or ends there on a thread of the library's. Callbacks are kept until
/// the process ends: set one once.
inline Result<void> set_log(std::function<void(LogLevel, std::string_view)> log) {
  using Log = std::function<void(LogLevel, std::string_view)>;
  if (log == nullptr) return detail::outcome(dualpipe_set_log(nullptr, nullptr));
  const dualpipe_log_fn in_c = [](void *kept, std::uint32_t level, const char *text) noexcept {
    detail::runs_here([&] { (*static_cast<Log *>(kept))(static_cast<LogLevel>(level), text); });
  };
  return detail::outcome(dualpipe_set_log(in_c, detail::keep(std::move(log))));
}

/// Sets the progress callback of the process; an empty one turns it off, which is how it starts. It is told how far a
/// long call has come, `done` of `total`, on the thread that made the call, and returns whether to go on: false ends
/// the call with Status::cancelled. What it throws comes out of the call. Callbacks are kept until the process ends.
inline Result<void> set_progress(std::function<bool(std::uint64_t done, std::uint64_t total)> progress) {
  using Progress = std::function<bool(std::uint64_t, std::uint64_t)>;
  if (progress == nullptr) return detail::outcome(dualpipe_set_progress(nullptr, nullptr));
  const dualpipe_progress_fn in_c = [](void *kept, std::uint64_t done, std::uint64_t total) noexcept -> std::int32_t {
    bool goes_on = false;
    detail::runs_here([&] { goes_on = (*static_cast<Progress *>(kept))(done, total); });
    return goes_on ? 0 : 1;
  };
  return detail::outcome(dualpipe_set_progress(in_c, detail::keep(std::move(progress))));
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_LOG_HPP
