// Vector clocks: who comes after whom, with a component for each stream and each chain of a graph.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace standin {

class Clock {
 public:
  uint32_t at(uint32_t component) const { return component < times_.size() ? times_[component] : 0; }

  void raise(uint32_t component, uint32_t time) {
    if (component >= times_.size()) times_.resize(component + 1);
    times_[component] = std::max(times_[component], time);
  }

  uint32_t size() const { return static_cast<uint32_t>(times_.size()); }

 private:
  std::vector<uint32_t> times_;
};

// What a host thread has synchronised with. `own` holds for each rank only what was learnt from that rank's own
// streams: in rank-local mode a rank gets this view of itself, and the whole view of the others.
struct HostClock {
  Clock all;
  Clock own;
};

// The components of a life and the rule by which clocks are joined. A rank of -1 is none: nothing is hidden from it.
class Components {
 public:
  bool is_rank_local = false;

  uint32_t add(int32_t rank, std::string name) {
    ranks_.push_back(rank);
    is_visitor_.push_back(false);
    names_.push_back(std::move(name));
    return static_cast<uint32_t>(ranks_.size() - 1);
  }

  int32_t rank(uint32_t component) const { return ranks_[component]; }
  const std::string &name(uint32_t component) const { return names_[component]; }

  // A stream has touched memory of another rank's.
  void set_visitor(uint32_t component) { is_visitor_[component] = true; }

  // A stream of `into_rank` learns what stream `teller` of `from_rank` knew. In rank-local mode not about itself, and
  // about streams that visit its memory only from these: what they did there is not proved by what their rank did next.
  void join(Clock &into, int32_t into_rank, const Clock &from, int32_t from_rank, uint32_t teller) const {
    const bool is_foreign = is_rank_local && into_rank >= 0 && into_rank != from_rank;
    for (uint32_t c = 0; c < from.size(); ++c) {
      const bool is_hidden = ranks_[c] == into_rank || (is_visitor_[c] && c != teller);
      if (!is_foreign || !is_hidden) into.raise(c, from.at(c));
    }
  }

  void join(HostClock &into, const Clock &from, int32_t from_rank) const {
    for (uint32_t c = 0; c < from.size(); ++c) {
      into.all.raise(c, from.at(c));
      if (ranks_[c] < 0 || ranks_[c] == from_rank) into.own.raise(c, from.at(c));
    }
  }

  void join(HostClock &into, const HostClock &from) const {
    for (uint32_t c = 0; c < from.all.size(); ++c) into.all.raise(c, from.all.at(c));
    for (uint32_t c = 0; c < from.own.size(); ++c) into.own.raise(c, from.own.at(c));
  }

  // An op of `into_rank` was enqueued by a host thread that knew `from`.
  void join(Clock &into, int32_t into_rank, const HostClock &from) const {
    for (uint32_t c = 0; c < from.all.size(); ++c) {
      const bool is_own = is_rank_local && into_rank >= 0 && ranks_[c] == into_rank;
      into.raise(c, is_own ? from.own.at(c) : from.all.at(c));
    }
  }

  // Whether everything that comes after an op of `later_rank` must come after what it came after in this component:
  // the rule hides all of a rank or nothing, so a rank's own past (and that of no rank) is carried along with it.
  bool carries(int32_t later_rank, uint32_t component) const {
    return !is_rank_local || ranks_[component] < 0 || ranks_[component] == later_rank;
  }

 private:
  std::vector<int32_t> ranks_;
  std::vector<bool> is_visitor_;
  std::vector<std::string> names_;
};

}  // namespace standin
