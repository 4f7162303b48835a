// Faults and mutations that a test asked for, and the counters that their ordinals refer to.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "driver.h"

namespace standin {

// What one rank's streams have seen, and what is to go wrong on them.
struct RankFaults {
  uint64_t num_waits = 0;
  uint64_t num_ops = 0;
  uint64_t skipped_wait = UINT64_MAX;
  std::map<uint64_t, Status> failing_ops;
  std::set<uint64_t> hanging_ops;
};

class Faults {
 public:
  RankFaults &rank(int32_t rank) { return ranks_[rank]; }

  // Counts a call of a driver function; the code it is to fail with, or SUCCESS.
  Status call(const std::string &function) {
    Calls &calls = calls_[plain(function)];
    num_calls_ += 1;
    const auto failing = calls.failing.find(calls.num++);
    return failing == calls.failing.end() ? SUCCESS : failing->second;
  }

  void fail_call(const std::string &function, uint64_t ordinal, Status code) {
    Calls &calls = calls_[plain(function)];
    calls.failing[calls.num + ordinal] = code;
  }

  uint64_t num_calls() const { return num_calls_; }
  uint64_t num_calls(const std::string &function) { return calls_[plain(function)].num; }

  void release() {
    for (auto &entry : ranks_) entry.second.hanging_ops.clear();
  }

 private:
  struct Calls {
    uint64_t num = 0;
    std::map<uint64_t, Status> failing;
  };

  // cuStreamDestroy_v2 is cuStreamDestroy.
  static std::string plain(const std::string &function) {
    const size_t length = function.size();
    return length > 3 && function.compare(length - 3, 3, "_v2") == 0 ? function.substr(0, length - 3) : function;
  }

  std::map<int32_t, RankFaults> ranks_;
  std::map<std::string, Calls> calls_;
  uint64_t num_calls_ = 0;
};

}  // namespace standin
