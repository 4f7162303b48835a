// A call by the program of a function that takes a communicator: what is checked for all of them.
#pragma once

#include <memory>

#include "state.h"

namespace nccl_standin {

/// From the first line of the function to its return.
class Call {
 public:
  enum Use {
    /// No other thread may be in such a call with this communicator.
    kAlone,
    /// Any thread may ask at any time.
    kQuestion,
    /// Ends what others do.
    kAbort,
  };

  Call(const char *function, ncclComm_t comm, Use use);
  ~Call();
  Call(const Call &) = delete;

  /// If it is not ncclSuccess, the function returns it at once, and there may be no `end`.
  int code = ncclSuccess;
  std::shared_ptr<End> end;

 private:
  bool is_inside_ = false;
};

/// Whether the end can be asked for something new; if not, what to return, after telling of misuse. With the lock held.
int ensure_ready(const char *function, End &end);

/// Waits until all ranks have joined; what ncclCommInitRank returns. With the lock held.
int wait_until_initialised(End &end, std::unique_lock<std::mutex> &lock);

/// Whether the end's operations could be enqueued now: the other sides of their first messages have been asked for as
/// well. With the lock held.
bool is_connected(const End &end, const std::vector<std::shared_ptr<Op>> &ops);

/// The calling thread's group.
struct Group {
  int depth = 0;
  /// The first that failed: nothing of the group happens.
  int error = ncclSuccess;
  std::vector<std::shared_ptr<Op>> ops;
  std::vector<std::shared_ptr<End>> initialising;
};
Group &group();

/// Remembers in the group, if there is one, that a call failed; returns `code`.
int tell_group(int code);

}  // namespace nccl_standin
