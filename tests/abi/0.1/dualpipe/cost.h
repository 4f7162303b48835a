/*
 * Costs: the time and bytes of each stage, and of the links between ranks.
 *
 * They are the caller's, read by dualpipe_simulate and not kept. One entry does for all stages; measured ones come
 * from the spans of a recorded timeline. Times and bytes may be 0: what costs nothing takes no time.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_COST_H
#define DUALPIPE_COST_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * What one stage costs for one micro-batch. Times are in nanoseconds, at most 10^12 (a quarter of an hour); bytes at
 * most 2^50. B takes input_ns + weight_ns.
 */
typedef struct dualpipe_stage_costs {
  /**
   * Time of F.
   */
  uint64_t forward_ns;
  /**
   * Time of I.
   */
  uint64_t input_ns;
  /**
   * Time of W.
   */
  uint64_t weight_ns;
  /**
   * Time of FB when both are of this stage: at least the longer of F and B, and F + B if nothing overlaps.
   */
  uint64_t overlapped_ns;
  /**
   * Bytes that its F sends to the next stage, and that the gradient coming back has.
   */
  uint64_t output_bytes;
  /**
   * Bytes that one micro-batch keeps on this stage from its F to its W.
   */
  uint64_t activation_bytes;
  /**
   * Bytes of its parameters, their gradients and optimizer state, for each copy of them.
   */
  uint64_t parameter_bytes;
} dualpipe_stage_costs;

/**
 * What an FB of two stages takes, where it was measured or the stages differ.
 */
typedef struct dualpipe_pair_costs {
  /**
   * The stage whose F it is.
   */
  uint32_t forward_stage;
  /**
   * The stage whose B it is.
   */
  uint32_t backward_stage;
  /**
   * Time of the pair, at most 10^12: at least the longer of that F and that B.
   */
  uint64_t overlapped_ns;
} dualpipe_pair_costs;

/**
 * The costs of a model and of the links it runs over. Start from DUALPIPE_COSTS_INIT.
 */
typedef struct dualpipe_costs {
  /**
   * sizeof(dualpipe_costs).
   */
  uint32_t size;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * The costs of each stage, num_stages of them, read during the call.
   */
  const struct dualpipe_stage_costs *stages;
  /**
   * The stages of the model, or 1 if all cost the same.
   */
  size_t num_stages;
  /**
   * Time of a message without bytes from one rank to another, at most 10^12.
   */
  uint64_t p2p_latency_ns;
  /**
   * Bytes per second from one rank to another; 0 if bytes take no time. No message may take more than 10^12 ns.
   */
  uint64_t p2p_bytes_per_second;
  /**
   * Times of FB that pairs of stages have of their own, num_pairs of them in any order, each pair once. In others F
   * and B shrink by their own stage's overlapped_ns / (F + B). Where all stages cost the same, any may be named.
   */
  const struct dualpipe_pair_costs *pairs;
  /**
   * 0 to 1048576.
   */
  size_t num_pairs;
} dualpipe_costs;

/** Initializes a dualpipe_costs: `dualpipe_costs x = DUALPIPE_COSTS_INIT;` */
#define DUALPIPE_COSTS_INIT { sizeof(dualpipe_costs), 0, NULL, 0, 0, 0, NULL, 0 }

#endif /* DUALPIPE_COST_H */
