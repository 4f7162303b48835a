// The problems found in a life: one line each, none twice.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "text.h"

namespace standin {

class Problems {
 public:
  void add(const std::string &line) {
    if (!seen_.insert(line).second) return;
    if (lines_.size() < MAX_LINES) {
      lines_.push_back(line);
    } else {
      num_left_out_ += 1;
    }
  }

  std::string all() const {
    std::string joined;
    for (const std::string &line : lines_) joined += line + "\n";
    if (num_left_out_ > 0) joined += text("and %zu more problems\n", num_left_out_);
    return joined;
  }

 private:
  // One missing wait can make a race of every op after it.
  static constexpr size_t MAX_LINES = 200;

  std::vector<std::string> lines_;
  std::set<std::string> seen_;
  size_t num_left_out_ = 0;
};

}  // namespace standin
