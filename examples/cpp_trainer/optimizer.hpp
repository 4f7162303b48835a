// Adam (arXiv 1412.6980), algorithm 1.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trainer {

// What a step multiplies by: the same on the host and on a device.
struct AdamFactors {
  static constexpr float beta_1 = 0.9f, beta_2 = 0.95f, epsilon = 1e-8f;

  // Moments begin as zero, which the two make up for in update number `update`, from 1.
  AdamFactors(float learning_rate, uint64_t update)
      : rate(learning_rate / (1.0f - std::pow(beta_1, static_cast<float>(update)))),
        second_scale(1.0f / (1.0f - std::pow(beta_2, static_cast<float>(update)))) {}

  float rate, second_scale;
};

class Adam {
public:
  Adam(size_t count, float rate) : rate_(rate), first_(count), second_(count) {}

  // `scale` makes means of the gradients, which are sums.
  void apply(std::vector<float> &parameters, const std::vector<float> &grads, float scale) {
    const AdamFactors factors(rate_, ++num_updates_);
    for (size_t i = 0; i < parameters.size(); i++) {
      const float grad = scale * grads[i];
      first_[i] = AdamFactors::beta_1 * first_[i] + (1.0f - AdamFactors::beta_1) * grad;
      second_[i] = AdamFactors::beta_2 * second_[i] + (1.0f - AdamFactors::beta_2) * grad * grad;
      parameters[i] -= factors.rate * first_[i] / (std::sqrt(factors.second_scale * second_[i]) + AdamFactors::epsilon);
    }
  }

private:
  float rate_;
  uint64_t num_updates_ = 0;
  std::vector<float> first_, second_;
};

} // namespace trainer
