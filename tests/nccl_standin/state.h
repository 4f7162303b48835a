// What the stand-in NCCL knows: communicators, what is on its way between them, and what tests have asked for.
//
// One lock guards all of it. It may be taken under the driver's own lock (which is held where `ready` is called), so
// nothing here calls the driver while holding it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "api.h"

/// What a program holds of a communicator. Never freed, so that a stale one is recognised.
struct ncclComm {
  uint64_t number;
};

namespace nccl_standin {

struct Op;

/// A side of a message that a stream has come to.
struct Waiting {
  Op *op;
  size_t part;
};

/// From one rank of a communicator to another.
struct Channel {
  std::deque<Waiting> sends, receives;
  bool is_send_called = false, is_receive_called = false;
  bool is_connected() const { return is_send_called && is_receive_called; }
};

/// Memory that the ranks of a communicator have registered together; by rank.
struct Registration {
  explicit Registration(int size) : address(size), bytes(size), is_live(size), is_target(size) {}

  std::vector<char *> address;
  std::vector<size_t> bytes;
  std::vector<bool> is_live;
  /// Something has been put there, or will be.
  std::vector<bool> is_target;
  int num_registered = 0;
};

struct End;

/// A communicator as a whole.
struct Clique {
  int size = 0;
  int num_joined = 0;
  /// Why it cannot be; ncclSuccess if it can.
  int failure = ncclSuccess;
  /// By rank.
  std::vector<int> labels, devices;
  /// By sender and receiver.
  std::map<std::pair<int, int>, Channel> channels;
  /// By rank: its end, and whether it has put, signalled or waited.
  std::vector<std::weak_ptr<End>> ends;
  std::vector<bool> has_signalled;
  /// In the order in which each rank registers.
  std::vector<std::shared_ptr<Registration>> registrations;
};

/// How often an operation has been done.
struct Progress {
  uint64_t times = 0;
  /// It has been thrown away: nobody shall wait for it.
  bool is_gone = false;
};

/// One rank's end of a communicator.
struct End {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  int label = 0;
  bool is_blocking = true;
  /// The reset that it came after.
  uint64_t generation = 0;
  bool is_initialised = false;
  bool is_finalized = false;
  /// Aborted or destroyed.
  bool is_gone = false;
  int async_error = ncclSuccess;
  /// Calls that threads are in, other than questions.
  int num_inside = 0;
  /// Messages from or to here that are being copied right now.
  int num_moving = 0;
  /// Operations that have been enqueued, or begun by a graph, and are not done.
  uint64_t num_pending = 0;
  /// What the last call began and polls will bring to an end: so many say "in progress" at least.
  bool is_in_progress = false;
  int num_polls = 0;
  std::vector<std::shared_ptr<Op>> deferred;
  /// Only its own questions go on with `deferred`: what the driver knows of the calling thread has to be true of it.
  std::thread::id caller;
  /// What is being registered, and where its window goes.
  std::shared_ptr<Registration> registering;
  ncclWindow_t *window = nullptr;
  size_t num_registrations = 0;
  /// Signals that have come, by rank and whether a graph sent them: what their senders had done.
  std::map<std::pair<int, bool>, std::deque<uint64_t>> signals;
  /// How many of the pending operations wait for signals.
  uint64_t num_waits = 0;
  /// What the next operation has to wait for.
  std::shared_ptr<Progress> last_eager, last_captured;
  uint64_t last_capture = 0;
  void *last_captured_stream = nullptr;
  uint64_t num_rolls = 0;

  /// For problems: "rank 2 (0 of 2)".
  std::string name() const;
};

struct Rule {
  enum Kind { kDrop, kDelay, kAsyncError, kFailCall } kind;
  std::string function;
  int32_t from, to;
  uint64_t ordinal;
  int32_t value;
};

struct State {
  std::mutex mutex;
  /// Something that a call waits for may have changed.
  std::condition_variable changed;

  uint64_t generation = 0;
  uint64_t seed = 0;
  int version = 22809;
  bool is_init_hung = false, is_abort_hung = false, is_same_device_forbidden = false, is_connected_lazily = true;
  bool has_windows = true, is_waiting_over = false;
  std::vector<Rule> rules;
  std::vector<std::string> problems;
  /// By function and label, or -1 for all of them.
  std::map<std::pair<std::string, int32_t>, uint64_t> num_calls;
  std::map<std::pair<int32_t, int32_t>, uint64_t> num_sends;
  /// By label: ncclSend and ncclRecv together.
  std::map<int32_t, uint64_t> num_messages;

  std::unordered_map<ncclComm *, std::pair<std::unique_ptr<ncclComm>, std::shared_ptr<End>>> handles;
  uint64_t num_ids = 0;
  /// By unique id: nothing yet, some ranks, or, once all have joined, nothing again.
  std::map<std::string, std::shared_ptr<Clique>> cliques;
};

/// There is one, which outlives whatever runs when the process ends.
State &state();

/// The label of the calling thread; -1: none.
int32_t &thread_label();

// With the lock held:

__attribute__((format(printf, 1, 2))) void problem(const char *format, ...);
/// A number that depends on the seed, the end and how often it was asked for, and on no other thread.
uint64_t roll(End &end);
/// The value of a rule that says something of this; `otherwise` if there is none.
int32_t rule(Rule::Kind kind, int32_t from, int32_t to, uint64_t ordinal, int32_t otherwise);
/// Whether this call of a function shall fail, and how; counts it.
int fail_call(const char *function, int32_t label);

// Without:

/// What ncclGetLastError says; returns `code`.
__attribute__((format(printf, 2, 3))) int last_error(int code, const char *format, ...);

}  // namespace nccl_standin
