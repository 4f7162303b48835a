/* Numbers from a seed, the same on every machine (SplitMix64: Steele, Lea, Flood, OOPSLA 2014). */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

static inline uint64_t random_next(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* A state of its own for each (seed, index). */
static inline uint64_t random_seed(uint64_t seed, uint64_t index) {
  uint64_t state = seed, mixed = random_next(&state) ^ index;
  return random_next(&mixed);
}

/* 0 or more, below 1. */
static inline double random_real(uint64_t *state) { return (double)(random_next(state) >> 11) * (1.0 / (1ull << 53)); }

#endif
