/*
 * Whether a planned placement is worth moving to: its gain over a horizon against the move's price, aware of noise.
 *
 * A step of a layer takes as long as its heaviest GPU. The gain is judged step by step, on counts of the last steps,
 * as sums hide that every sample of tokens is uneven: docs/loads.md has the rule, and what it does not know.
 *
 *     // 2 ms of each step are the experts'. The move would hold up steps for 0.8 s and has 5000 steps to pay off.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status decide(const dualpipe_cluster *cluster, dualpipe_rebalance_proposal proposal,
 *                                   dualpipe_rebalance_decision *decision) {
 *       const dualpipe_rebalance_decision none = DUALPIPE_REBALANCE_DECISION_INIT;
 *       *decision = none;
 *       proposal.expert_seconds = 2e-3;
 *       proposal.price_seconds = 0.8;
 *       proposal.horizon = 5000;
 *       return dualpipe_should_rebalance(cluster, &proposal, decision);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_REBALANCE_H
#define DUALPIPE_REBALANCE_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * What decided.
 */
enum dualpipe_rebalance_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The gain exceeds the cost, beyond doubt: move.
   */
  DUALPIPE_REBALANCE_WORTHWHILE = 1,
  /**
   * The placements are the same.
   */
  DUALPIPE_REBALANCE_SAME_PLACEMENT = 2,
  /**
   * There are too few steps to know how far gains vary.
   */
  DUALPIPE_REBALANCE_TOO_FEW_STEPS = 3,
  /**
   * The plan is not better.
   */
  DUALPIPE_REBALANCE_NO_GAIN = 4,
  /**
   * The gain is within what chance may bring.
   */
  DUALPIPE_REBALANCE_WITHIN_NOISE = 5,
  /**
   * The gain is real and not certain to exceed the cost.
   */
  DUALPIPE_REBALANCE_BELOW_COST = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_rebalance_reason dualpipe_rebalance_reason;
#else
typedef uint32_t dualpipe_rebalance_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A move that might be made, and what there is to judge it by. Start from DUALPIPE_REBALANCE_PROPOSAL_INIT.
 */
typedef struct dualpipe_rebalance_proposal {
  /**
   * sizeof(dualpipe_rebalance_proposal).
   */
  uint32_t size;
  /**
   * MoE layers, 1 to 4096.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer, 1 to 65536.
   */
  uint32_t num_experts;
  /**
   * 1 if the plan was made of these steps, otherwise 0. Better that it was made of older ones.
   */
  uint32_t plan_saw_counts;
  /**
   * The tokens of each of the last steps, one step after the other: of each num_layers rows of num_experts
   * numbers. At least 4 steps; more than 16 tell more.
   */
  const uint32_t *counts;
  /**
   * How many numbers `counts` has.
   */
  size_t num_counts;
  /**
   * Now: num_layers rows of the cluster's slots, the expert in each, -1 where there is none.
   */
  const int64_t *current;
  /**
   * NULL for an equal split, or as many shares.
   */
  const double *current_shares;
  /**
   * The same after the move.
   */
  const int64_t *planned;
  /**
   * NULL for an equal split, or as many shares.
   */
  const double *planned_shares;
  /**
   * How many numbers `current`, `planned` and their shares have each.
   */
  size_t num_slots;
  /**
   * Steps that the move has to pay for itself in, at most 2^53.
   */
  uint64_t horizon;
  /**
   * What the experts of all layers take of a step now, as far as it grows with the heaviest GPU's tokens: seconds,
   * 0 to 1e9.
   */
  double expert_seconds;
  /**
   * What the move costs: seconds that it holds up steps, finite, not negative. 0 with bytes_per_second.
   */
  double price_seconds;
  /**
   * Or, with bytes_per_second: the bytes of one expert of one layer, 0 to 1e18. Layers are moved one after the
   * other, each as long as its busiest GPU receives.
   */
  double bytes_per_expert;
  /**
   * What a GPU receives in a second, 1 to 1e18; 0: the price is price_seconds.
   */
  double bytes_per_second;
  /**
   * By how many standard errors the gain must exceed the cost, at most 100. 0 stands for 3: of moves that cost and
   * bring nothing, 1 in 300 is then made.
   */
  double standard_errors;
} dualpipe_rebalance_proposal;

/**
 * Whether to move, and why. Start from DUALPIPE_REBALANCE_DECISION_INIT.
 */
typedef struct dualpipe_rebalance_decision {
  /**
   * sizeof(dualpipe_rebalance_decision).
   */
  uint32_t size;
  /**
   * 1 if the move pays, otherwise 0.
   */
  uint32_t rebalance;
  /**
   * A dualpipe_rebalance_reason.
   */
  uint32_t reason;
  /**
   * Always 0.
   */
  uint32_t reserved;
  /**
   * Replicas that GPUs have to receive, in all layers.
   */
  uint64_t moved_replicas;
  /**
   * Now: the heaviest GPU's load / the mean, of sums over steps and layers.
   */
  double current_imbalance;
  /**
   * After the move: the same, as expected of steps that the plan has not seen.
   */
  double planned_imbalance;
  /**
   * What the planned imbalance would be if only its steps differed, each from their mean: 1 or a little more than
   * the sampling of tokens makes inevitable.
   */
  double noise_floor;
  /**
   * What is expected to be saved over the horizon, in seconds; negative if the plan is worse.
   */
  double gain_seconds;
  /**
   * The standard error of that; infinite with too few steps.
   */
  double gain_error_seconds;
  /**
   * The price of the move, in seconds.
   */
  double cost_seconds;
} dualpipe_rebalance_decision;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Says whether a planned placement is worth moving to: if (gain per step - standard_errors * its standard error) *
 * horizon exceeds the cost.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement under which the counts do not arrive.
 */
dualpipe_status dualpipe_should_rebalance(const dualpipe_cluster *cluster,
                                          const struct dualpipe_rebalance_proposal *proposal,
                                          struct dualpipe_rebalance_decision *decision);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_rebalance_proposal: `dualpipe_rebalance_proposal x = DUALPIPE_REBALANCE_PROPOSAL_INIT;` */
#define DUALPIPE_REBALANCE_PROPOSAL_INIT \
  { sizeof(dualpipe_rebalance_proposal), 0, 0, 0, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_rebalance_decision: `dualpipe_rebalance_decision x = DUALPIPE_REBALANCE_DECISION_INIT;` */
#define DUALPIPE_REBALANCE_DECISION_INIT { sizeof(dualpipe_rebalance_decision), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_REBALANCE_H */
