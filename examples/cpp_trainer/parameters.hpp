// What a stage begins with.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "random.hpp"
#include "shape.hpp"

namespace trainer {

// Uniform numbers of variance 1 / fan_in; gains are 1.
inline std::vector<float> initial_parameters(const Layout &layout, uint32_t stage, uint64_t seed) {
  constexpr float embedding_scale = 0.5f; // a row of the embedding needs no unit variance: it is normalized
  std::vector<float> parameters(layout.size);
  Random random({seed, 0x70617261 /* not a step's number */, stage});
  for (const Piece &piece : layout.pieces) {
    const float fan_in = static_cast<float>(piece.fan_in);
    const float bound = piece.fan_in == 1 ? embedding_scale : std::sqrt(3.0f / fan_in);
    for (size_t i = piece.offset; i < piece.offset + piece.size; i++) {
      parameters[i] = piece.fan_in == 0 ? 1.0f : bound * (2.0f * random.uniform() - 1.0f);
    }
  }
  return parameters;
}

} // namespace trainer
