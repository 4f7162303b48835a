// The processes of the job, one for each rank: how they hear of one another's failures, and waits for them that end.
#pragma once

#define OMPI_SKIP_MPICXX 1 // MPI's own C++ is long gone from the standard
#include <dualpipe.hpp>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace trainer {

class MpiError : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

// What a number says that a function of MPI has returned.
inline std::string mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return text;
}

inline void check_mpi(int code, const char *function) {
  if (code != MPI_SUCCESS) throw MpiError(std::string(function) + ": " + mpi_text(code));
}

// A communicator of one's own, whose messages nobody else's are mistaken for. Its functions return errors.
class Communicator {
public:
  explicit Communicator(MPI_Comm of) {
    check_mpi(MPI_Comm_dup(of, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  }
  Communicator(const Communicator &) = delete;
  Communicator &operator=(const Communicator &) = delete;
  ~Communicator() { MPI_Comm_free(&comm_); }

  MPI_Comm get() const { return comm_; }

private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

// A rank that waits leaves its core to one that computes.
inline void pause_briefly() { std::this_thread::sleep_for(std::chrono::microseconds(20)); }

class Peers {
public:
  // For all processes of `comm`. No wait for one of them lasts longer than the timeout.
  Peers(MPI_Comm comm, std::chrono::nanoseconds timeout) : comm_(comm), timeout_(timeout) {
    MPI_Comm_rank(comm, &rank_);
    MPI_Comm_size(comm, &num_ranks_);
  }

  uint32_t rank() const { return static_cast<uint32_t>(rank_); }
  uint32_t num_ranks() const { return static_cast<uint32_t>(num_ranks_); }

  // Tells all others that `rank` has failed, and how, once. Does not wait.
  void abort(uint32_t rank, const std::string &text) {
    if (!sends_.empty()) return;
    told_.rank = rank;
    std::snprintf(told_.text, sizeof told_.text, "%s", text.c_str());
    sends_.assign(num_ranks(), MPI_REQUEST_NULL);
    for (int to = 0; to < num_ranks_; to++) {
      MPI_Request *const send = &sends_[static_cast<size_t>(to)];
      if (to != rank_) MPI_Isend(&told_, sizeof told_, MPI_BYTE, to, alarm_tag, comm_.get(), send);
    }
  }

  // What another rank has told by abort.
  std::optional<dualpipe::PeerAbort> poll() {
    int is_there = 0;
    MPI_Status status;
    if (!heard_ && MPI_Iprobe(MPI_ANY_SOURCE, alarm_tag, comm_.get(), &is_there, &status) == MPI_SUCCESS && is_there) {
      // What has been probed is received at once.
      Alarm alarm;
      check_mpi(MPI_Recv(&alarm, sizeof alarm, MPI_BYTE, status.MPI_SOURCE, alarm_tag, comm_.get(),
                         MPI_STATUS_IGNORE),
                "MPI_Recv");
      heard_ = dualpipe::PeerAbort{alarm.rank, alarm.text};
    }
    return heard_;
  }

  // Waits until the requests have ended. If another rank fails, or if it takes too long, it throws what begins with
  // `what`, and the others know then, too. The requests may still go on: their memory must stay.
  void wait(std::vector<MPI_Request> &requests, const std::string &what) {
    const auto deadline = std::chrono::steady_clock::now() + timeout_;
    std::string why;
    for (int are_done = 0; why.empty();) {
      const int code =
          MPI_Testall(static_cast<int>(requests.size()), requests.data(), &are_done, MPI_STATUSES_IGNORE);
      if (are_done) return;
      if (const auto heard = poll()) {
        throw std::runtime_error(what + ": rank " + std::to_string(heard->rank) + " failed [" + heard->text + "]");
      }
      if (code != MPI_SUCCESS) why = ": " + mpi_text(code);
      else if (std::chrono::steady_clock::now() >= deadline) why = ": waited " + seconds(timeout_) + " s";
      pause_briefly();
    }
    abort(rank(), what + why);
    throw std::runtime_error(what + why);
  }

  // After a failure has been printed: waits until all others have come here too, at most a second, and prints who has
  // not. The rank whose deadline was the first need not have waited for the one that died, and a launcher may end all
  // processes as soon as the first is gone. MPI_Finalize would wait for the dead.
  void leave() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    // The roll: every rank calls all others.
    std::vector<MPI_Request> requests(size_t{2} * num_ranks(), MPI_REQUEST_NULL);
    for (int rank = 0; rank < num_ranks_; rank++) {
      if (rank == rank_) continue;
      MPI_Irecv(nullptr, 0, MPI_BYTE, rank, roll_tag, comm_.get(), &requests[static_cast<size_t>(rank)]);
      MPI_Isend(nullptr, 0, MPI_BYTE, rank, roll_tag, comm_.get(), &requests[static_cast<size_t>(num_ranks_ + rank)]);
    }
    for (int are_done = 0; !are_done && std::chrono::steady_clock::now() < deadline; pause_briefly()) {
      const int count = static_cast<int>(requests.size());
      if (MPI_Testall(count, requests.data(), &are_done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) break;
    }
    for (int rank = 0; rank < num_ranks_; rank++) {
      int is_here = 0;
      MPI_Test(&requests[static_cast<size_t>(rank)], &is_here, MPI_STATUS_IGNORE);
      if (!is_here) std::fprintf(stderr, "rank %d: rank %d does not answer any more\n", rank_, rank);
    }
    std::fflush(stderr);
  }

private:
  static constexpr int alarm_tag = 0, roll_tag = 1;

  // What a rank that fails sends to all others.
  struct Alarm {
    uint32_t rank = 0;
    char text[1020] = "";
  };

  static std::string seconds(std::chrono::nanoseconds time) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", std::chrono::duration<double>(time).count());
    return text;
  }

  Communicator comm_; // of alarms
  std::chrono::nanoseconds timeout_;
  int rank_ = 0, num_ranks_ = 0;
  Alarm told_;
  std::vector<MPI_Request> sends_; // of told_
  std::optional<dualpipe::PeerAbort> heard_;
};

} // namespace trainer
