// Numbers that depend on nothing but the words they are made from.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace trainer {

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
class Random {
public:
  // Another word, or another order of them, is another sequence.
  explicit Random(std::initializer_list<uint64_t> words) {
    for (const uint64_t word : words) {
      state_ += word;
      state_ = next();
    }
  }

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // From 0 to below 1, in steps that an f32 has.
  float uniform() { return static_cast<float>(next() >> 40) / 16777216.0f; }

private:
  uint64_t state_ = 0;
};

} // namespace trainer
