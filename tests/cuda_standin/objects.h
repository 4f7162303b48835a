// What the stand-in is made of: ops in lanes, and the streams, events and contexts that handles stand for.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "clock.h"
#include "driver.h"
#include "memory.h"

namespace standin {

struct Capture;
struct Lane;
struct Stream;

// What an op does; shared with the graph node that it came from.
struct Work {
  std::string label;
  std::vector<Access> accesses;
  std::function<void()> run;
  // Copies and sets run under the engine's lock, so that their memory stays; user code without.
  bool holds_lock = false;
  bool needs_peer_access = false;
  int (*ready)(void *) = nullptr;
  void (*drop)(void *) = nullptr;
  void *user = nullptr;

  Work() = default;
  Work(const Work &) = delete;
  Work &operator=(const Work &) = delete;
  // Puts `drop` off until no lock is held; see drops.h.
  ~Work();
};

// Where a capturing stream stands: a node that its next one comes after. A ghost is an edge that a skipped wait would
// have made: it counts when EndCapture looks for streams that never joined, but orders nothing.
struct Tail {
  size_t node = 0;
  bool is_ghost = false;
};

// One recording of an event.
struct Version {
  bool is_done = false;
  bool is_lost = false;  // dropped by a failed context: never done, unless released
  Clock clock;
  int32_t rank = -1;
  uint32_t component = 0;
  int64_t nanoseconds = 0;
  // Recorded during a capture: what it stands for there.
  std::shared_ptr<Capture> capture;
  std::vector<Tail> tails;
};

struct Op {
  enum class Kind { WORK, RECORD, WAIT };

  Kind kind = Kind::WORK;
  std::shared_ptr<const Work> work;
  std::shared_ptr<Version> version;
  // What the thread that enqueued it had synchronised with; null: nothing.
  std::shared_ptr<const HostClock> host;
  std::vector<std::shared_ptr<Allocation>> uses;
  uint64_t ordinal = 0;
  Status failure = SUCCESS;
  bool hangs = false;
};

struct Context {
  int32_t device = 0;
  void *handle = nullptr;
  uint64_t num_retains = 0;
  Status failure = SUCCESS;  // sticky
  std::set<int32_t> peers;
  std::shared_ptr<Stream> default_stream;
  HostClock retired;  // what lanes knew that are no more
};

// A FIFO of ops: a stream's, or a chain of a graph's nodes.
struct Lane : std::enable_shared_from_this<Lane> {
  // What the seeded choice knows it by: no addresses, no times.
  struct Key {
    int32_t rank = -1;
    bool is_graph = false;
    uint64_t ordinal = 0;
  };

  Key key;
  int32_t rank = -1;
  Context *context = nullptr;
  uint32_t component = 0;
  uint64_t priority = 0;  // of the seeded choice
  Clock clock;
  std::deque<Op> queue;
  uint64_t num_enqueued = 0;
  uint64_t num_finished = 0;
  bool is_destroyed = false;
};

struct Stream {
  std::shared_ptr<Lane> lane;
  uint32_t flags = 0;
  int32_t priority = 0;
  std::shared_ptr<Capture> capture;
  size_t branch = 0;  // of the capture
};

struct Event {
  static constexpr uint32_t DISABLE_TIMING = 2;

  Context *context = nullptr;
  uint32_t flags = 0;
  std::shared_ptr<Version> last;
};

struct Module {
  bool is_loaded = true;
};

struct Kernel;

struct Function {
  const Kernel *kernel = nullptr;
  std::shared_ptr<Module> module;
};

}  // namespace standin
