// Stream capture, and the graphs that come of it.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "objects.h"

namespace standin {

struct Life;

// The nodes of one captured stream, in order: a graph is a few of these with edges between them.
struct Chain {
  int32_t rank = -1;
  Context *context = nullptr;
};

struct Node {
  Op::Kind kind = Op::Kind::WORK;
  size_t chain = 0;
  std::vector<Tail> after;
  std::shared_ptr<const Work> work;
  std::shared_ptr<Event> event;  // of an external record or wait
};

// Nodes in the order of capture, which is topological.
struct Graph {
  std::vector<Chain> chains;
  std::vector<Node> nodes;
};

// Replays run in lanes of their own, one for each chain, which last as long as the executable graph: launch after
// launch, each chain keeps its place in the vector clocks.
struct GraphExec {
  std::shared_ptr<const Graph> graph;
  std::vector<std::shared_ptr<Lane>> lanes;
  std::vector<std::shared_ptr<Version>> ends;  // of the launch before, by chain
};

enum CaptureMode : uint32_t { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

struct Capture {
  // A stream that takes part, and the ends of what it captured. Its chain has the same index.
  struct Branch {
    std::weak_ptr<Stream> stream;
    std::vector<Tail> tails;
  };

  uint64_t id = 0;
  uint32_t mode = GLOBAL;
  bool is_valid = true;
  bool is_over = false;
  std::thread::id thread;
  std::vector<Branch> branches;  // the first is the origin
  std::shared_ptr<Graph> graph;
};

// All of these are called under the engine's lock.

std::shared_ptr<Capture> begin_capture(Life &life, const std::shared_ptr<Stream> &origin, uint32_t mode);

// Ends the capture that `origin` began: the graph, or null with a status.
Status end_capture(Life &life, const std::shared_ptr<Stream> &origin, std::shared_ptr<Graph> &graph);

// Another node of a stream that takes part in a valid capture.
void add_node(const Stream &stream, Node node);

// An event recorded in a capture.
std::shared_ptr<Version> captured_version(const Stream &stream);

// A stream waits for an event where either of them is captured. A ghost orders nothing.
Status wait_in_capture(const std::shared_ptr<Stream> &stream, const Version &version, bool is_ghost);

// Whether a thread may make a call that is unsafe during captures; if not, those are invalidated.
Status check_unsafe_call(Life &life, uint32_t thread_mode);

std::shared_ptr<GraphExec> instantiate(Life &life, const std::shared_ptr<const Graph> &graph);

// Enqueues a replay.
void launch(GraphExec &exec, Lane &lane);

}  // namespace standin
