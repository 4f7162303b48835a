/// Transports: how messages get from rank to rank.
#ifndef DUALPIPE_TRANSPORT_HPP
#define DUALPIPE_TRANSPORT_HPP

#include <dualpipe/status.hpp>
#include <dualpipe/transport.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

namespace dualpipe {

/// What a transport's functions answer.
enum class TransportCode : std::uint32_t {
  ok = DUALPIPE_TRANSPORT_OK,               ///< Done; of test: see done.
  again = DUALPIPE_TRANSPORT_AGAIN,         ///< send and receive: not now, ask again.
  peer_gone = DUALPIPE_TRANSPORT_PEER_GONE, ///< The peer is no longer there.
  failed = DUALPIPE_TRANSPORT_FAILED,       ///< The transport failed; last_error may tell how.
  timed_out = DUALPIPE_TRANSPORT_TIMED_OUT, ///< test: it has waited as long as the executor's timeout.
};

/// One tensor of one message: peer, channel, tag, data, num_bytes; on a CUDA device stream and device.
/// dualpipe/transport.h describes each.
using Transfer = dualpipe_transfer;

/// What another rank told by Transport::abort.
struct PeerAbort {
  std::uint32_t rank = 0; ///< Which rank failed.
  std::string text;       ///< Why.
};

/// A transport of the caller's, one rank's end of it: derive from it (MPI, torch.distributed, UCX, anything that sends
/// bytes).
///
/// The functions are called on the thread that runs the executor's step, one at a time, and when the executor goes.
/// None but wait may wait. They may not call the executor. What they throw fails the step, and comes out of it. On a
/// CUDA device abort and poll_abort are also called by the executor's watchdog, on threads of its own, at any time.
class Transport {
public:
  Transport() = default;
  Transport(const Transport &) = delete;
  Transport &operator=(const Transport &) = delete;
  virtual ~Transport() = default;

  /// Starts to send; sets `request` to a number of its own choice by which test asks for it.
  virtual TransportCode send(const Transfer &transfer, std::uint64_t &request) = 0;
  /// Posts a receive, likewise.
  virtual TransportCode receive(const Transfer &transfer, std::uint64_t &request) = 0;
  /// Whether a transfer has ended; if so sets `done` and how many bytes were transferred.
  virtual TransportCode test(std::uint64_t request, bool &done, std::uint64_t &num_bytes) = 0;
  /// Ends all transfers: when it returns, none of their memory is touched any more.
  virtual void withdraw() = 0;

  /// Returns when something may have changed, or after `timeout`, or for no reason.
  virtual void wait(std::chrono::nanoseconds timeout) {
    constexpr std::chrono::nanoseconds pause = std::chrono::microseconds(20);
    std::this_thread::sleep_for(timeout < pause ? timeout : pause);
  }
  /// What another rank told by abort, if any did. Without it failing ranks are found by the deadline.
  virtual std::optional<PeerAbort> poll_abort() { return std::nullopt; }
  /// Tells all other ranks that `rank` failed, as far as possible. On a CUDA device it also ends what has been enqueued
  /// and cannot end any more.
  virtual void abort(std::uint32_t rank, const std::string &text) {
    static_cast<void>(rank);
    static_cast<void>(text);
  }
  /// In words what went wrong last; "" for no words.
  virtual std::string last_error() { return {}; }
};

inline namespace DUALPIPE_ERRORS {

/// What the ranks of one process share, so that their executors can exchange messages: a message is one copy. Each rank
/// is for one executor; after a failure create a new one. Any number of threads may use it at once. It is useless in a
/// child of fork. Executors that use it keep what they need.
class Inproc : public detail::Handle<dualpipe_inproc_t, dualpipe_inproc_free> {
public:
  using Handle::Handle;

  /// For num_ranks ranks of this process, 1 to 4096.
  static Result<Inproc> create(std::uint32_t num_ranks) {
    dualpipe_inproc_t inproc = nullptr;
    const dualpipe_status status = dualpipe_inproc_create(num_ranks, &inproc);
    return detail::outcome(status, [&] { return Inproc(inproc); });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_TRANSPORT_HPP
