// Everything there is between two resets.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "checker.h"
#include "faults.h"
#include "graph.h"
#include "handles.h"
#include "memory.h"
#include "objects.h"
#include "problems.h"
#include "strategy.h"

namespace standin {

struct Settings {
  uint64_t seed = 0;
  bool is_lazy = false;
  uint32_t num_devices = 1;
  bool is_rank_local = false;
};

struct Life {
  Life(uint64_t number, const Settings &settings);
  Life(const Life &) = delete;
  Life &operator=(const Life &) = delete;

  const uint64_t number;
  const Settings settings;
  int32_t driver_version = 13000;
  bool is_peer_access_possible = true;

  Components components;
  Problems problems;
  Checker checker;
  Memory memory;
  Faults faults;
  Strategy strategy;

  std::vector<std::unique_ptr<Context>> contexts;  // by device
  std::vector<std::shared_ptr<Lane>> lanes;        // in the order of their keys
  std::vector<std::shared_ptr<Version>> lost;
  std::vector<std::shared_ptr<Capture>> captures;  // under way
  std::vector<std::tuple<Clock, int32_t, uint32_t>> tokens;  // token n is the n-th, with its rank and component
  uint64_t num_captures = 0;
  HostClock barrier;  // what every host thread knows since the last of so many barriers
  uint64_t num_barriers = 0;

  Handles<Stream> streams;
  Handles<Event> events;
  Handles<Module> modules;
  Handles<Function> functions;
  Handles<Graph> graphs;
  Handles<GraphExec> graph_execs;

  // The next ordinal of a rank's streams, graph chains and allocations.
  struct Ordinals {
    uint64_t streams = 0;
    uint64_t chains = 0;
    uint64_t allocations = 0;
  };
  std::map<int32_t, Ordinals> ordinals;

  // A new lane, which is a chain of a graph or a stream of a rank, or the default stream of its context.
  std::shared_ptr<Lane> add_lane(Context &context, int32_t rank, bool is_graph);
  std::shared_ptr<Lane> add_default_lane(Context &context);

  // Forgets destroyed lanes that have nothing left to do.
  void sweep_lanes();

  // Lets every host thread know of all that has run.
  void add_barrier();

  // Breaks what holds itself, so that all is freed.
  void clear();

 private:
  std::shared_ptr<Lane> add_lane(Context &context, const Lane::Key &key, const std::string &name);
};

// "rank 1 stream 2", "stream 2" of no rank.
std::string in_words(int32_t rank, const char *what, uint64_t ordinal);

}  // namespace standin
