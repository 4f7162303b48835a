// The race checker: what touched each byte of an allocation last, and whether the next access comes after it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clock.h"
#include "problems.h"

namespace standin {

// An op that accessed memory: when, by its stream's component, and how to name it.
struct Mark {
  uint32_t component = 0;
  uint32_t time = 0;
  uint32_t label = 0;
  bool is_write = false;
  uint64_t ordinal = 0;
};

// Accesses of an allocation, by offset. A segment's bytes have all been accessed by the same ops.
struct Segment {
  uint64_t end = 0;
  std::vector<Mark> marks;
};
using History = std::map<uint64_t, Segment>;

class Checker {
 public:
  Checker(const Components &components, Problems &problems) : components_(components), problems_(problems) {}

  // The number of a label, for marks.
  uint32_t intern(const std::string &label);

  // "label" (#ordinal, rank 0 stream 1)
  std::string name(const Mark &mark) const;

  // An op whose stream's clock is `clock` accesses [begin, end) of an allocation: reports what it races with.
  void access(History &history, const std::string &allocation, uint64_t begin, uint64_t end, const Mark &mark,
              const Clock &clock);

 private:
  void check(const Segment &segment, const std::string &allocation, uint64_t begin, const Mark &mark,
             const Clock &clock);
  void add(Segment &segment, const Mark &mark) const;

  const Components &components_;
  Problems &problems_;
  std::vector<std::string> labels_;
  std::map<std::string, uint32_t> label_numbers_;
};

}  // namespace standin
