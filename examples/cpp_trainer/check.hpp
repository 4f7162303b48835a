// Gradients against those of a sequential run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <vector>

namespace trainer {

// On a CPU every sum is the same, in the same order (sequential.hpp). On a device those over tokens and columns are in
// another order.
constexpr double host_tolerance = 0;
constexpr double device_tolerance = 1e-4;

// Compares the copies of stages, one after the other.
class Check {
public:
  // `tolerance`: of a stage's largest gradient.
  explicit Check(double tolerance) : tolerance_(tolerance) {}

  void add(uint32_t stage, const std::vector<float> &grads, const std::vector<float> &reference) {
    if (grads.size() != reference.size()) throw std::logic_error("gradients of another stage");
    Difference &difference = stages_[stage];
    float largest = 0, apart = 0;
    for (size_t i = 0; i < reference.size(); i++) {
      const float by = std::fabs(grads[i] - reference[i]);
      largest = std::max(largest, std::fabs(reference[i]));
      apart = std::isnan(by) ? INFINITY : std::max(apart, by);
      difference.num_equal += grads[i] == reference[i];
    }
    difference.num_grads += reference.size();
    difference.num_copies++;
    if (apart == 0) return;
    difference.relative = std::max(difference.relative, static_cast<double>(apart) / static_cast<double>(largest));
  }

  // A line for each stage. Whether all are within the tolerance.
  bool print() const {
    bool agrees = !stages_.empty();
    for (const auto &[stage, difference] : stages_) {
      agrees = agrees && difference.relative <= tolerance_;
      std::printf("  stage %u, %u %s   max. relative difference %.1e, %5.1f %% equal to the bit\n", stage,
                  difference.num_copies, difference.num_copies == 1 ? "copy  " : "copies", difference.relative,
                  100 * static_cast<double>(difference.num_equal) / static_cast<double>(difference.num_grads));
    }
    std::printf("  They %s: ", agrees ? "agree" : "DO NOT AGREE");
    if (tolerance_ == 0) {
      std::printf("the same numbers are added in the same order, and must be equal to the bit.\n");
    } else {
      std::printf("the tolerance is %.0e of a stage's largest gradient.\n", tolerance_);
    }
    return agrees;
  }

private:
  struct Difference {
    double relative = 0; // the largest one, in terms of the reference's largest gradient
    size_t num_equal = 0, num_grads = 0;
    uint32_t num_copies = 0;
  };

  double tolerance_;
  std::map<uint32_t, Difference> stages_;
};

} // namespace trainer
