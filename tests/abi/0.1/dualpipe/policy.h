/*
 * Policies to replay: those of this library, and callbacks.
 *
 *     // A policy that puts back what there was an hour ago: user_data points to it, a number for each slot.
 *     #include <dualpipe.h>
 *     #include <string.h>
 *
 *     static int32_t put_back(void *user_data, const dualpipe_policy_past *past, int64_t *slot_to_expert,
 *                             double *shares) {
 *       (void)shares;
 *       memcpy(slot_to_expert, user_data, past->num_slots * sizeof *slot_to_expert);
 *       return DUALPIPE_POLICY_PLACED;
 *     }
 *
 *     static dualpipe_policy policy_of(int64_t *what_there_was) {
 *       dualpipe_policy policy = {0};
 *       policy.kind = DUALPIPE_POLICY_CALLBACK;
 *       policy.name = "put back";
 *       policy.plan = put_back;
 *       policy.user_data = what_there_was;
 *       return policy;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_POLICY_H
#define DUALPIPE_POLICY_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "moves.h"
#include "status.h"

/**
 * What a policy does.
 */
enum dualpipe_policy_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Nothing: what there is stays.
   */
  DUALPIPE_POLICY_NONE = 0,
  /**
   * DeepSeek's policy on the sum of the window. Only for equal GPUs in equal nodes, all alive.
   */
  DUALPIPE_POLICY_DEEPSEEK = 1,
  /**
   * dualpipe_expert_plan_balance on the steps of the window, anew each time, numbered so that as much as possible
   * stays where it is.
   */
  DUALPIPE_POLICY_REFINED = 2,
  /**
   * dualpipe_expert_plan_balance on the steps of the window, from what there is, within a budget.
   */
  DUALPIPE_POLICY_FEW_MOVES = 3,
  /**
   * What a callback says.
   */
  DUALPIPE_POLICY_CALLBACK = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_policy_kind dualpipe_policy_kind;
#else
typedef uint32_t dualpipe_policy_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a callback says.
 */
enum dualpipe_policy_answer
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * What there is stays.
   */
  DUALPIPE_POLICY_KEEP = 0,
  /**
   * slot_to_expert was written; each expert's replicas share equally.
   */
  DUALPIPE_POLICY_PLACED = 1,
  /**
   * slot_to_expert and shares were written.
   */
  DUALPIPE_POLICY_PLACED_WITH_SHARES = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_policy_answer dualpipe_policy_answer;
#else
typedef uint32_t dualpipe_policy_answer;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a callback may know: the steps before a rebalance, and where the experts are. Valid until it returns.
 */
typedef struct dualpipe_policy_past {
  /**
   * num_steps times num_layers rows of num_experts: the loads of all steps before the rebalance.
   */
  const float *loads;
  /**
   * The expert in each of the cluster's slots, num_layers rows, -1 where there is none.
   */
  const int64_t *slot_to_expert;
  /**
   * The share of its expert's tokens that each slot gets, likewise; NULL: an equal split.
   */
  const double *shares;
  /**
   * How many numbers slot_to_expert has, and shares if there are any.
   */
  size_t num_slots;
  /**
   * Steps before the rebalance.
   */
  uint32_t num_steps;
  /**
   * How many of them, the last ones, are the window.
   */
  uint32_t window;
  /**
   * MoE layers.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer.
   */
  uint32_t num_experts;
} dualpipe_policy_past;

/**
 * Plans one rebalance: reads `past` and returns a dualpipe_policy_answer; anything else ends the replay with
 * DUALPIPE_ERROR_CALLBACK_FAILED.
 *
 * slot_to_expert and shares have room for past->num_slots numbers each; the first begins as what there is, the second
 * as zeros. Called on the thread that replays. It may call the library. It must return: no exception, no longjmp.
 */
typedef int32_t (*dualpipe_policy_fn)(void *user_data,
                                      const struct dualpipe_policy_past *past,
                                      int64_t *slot_to_expert,
                                      double *shares);

/**
 * A policy to replay. What it has no use for must be 0.
 */
typedef struct dualpipe_policy {
  /**
   * A dualpipe_policy_kind.
   */
  uint32_t kind;
  /**
   * For DUALPIPE_POLICY_FEW_MOVES: a dualpipe_budget, of each layer at each rebalance.
   */
  uint32_t budget;
  /**
   * NULL for the kind's own, or its name: UTF-8, NUL-terminated, of which at most 255 bytes count.
   */
  const char *name;
  /**
   * For DUALPIPE_POLICY_CALLBACK: what to call.
   */
  dualpipe_policy_fn plan;
  /**
   * For DUALPIPE_POLICY_CALLBACK: what it is handed.
   */
  void *user_data;
  /**
   * For DUALPIPE_BUDGET_MOVES, as of dualpipe_current_placement; likewise the next.
   */
  uint64_t max_moves;
  /**
   * For DUALPIPE_BUDGET_PRICE.
   */
  double max_price;
  /**
   * For DUALPIPE_BUDGET_REACH.
   */
  double imbalance;
  /**
   * For DUALPIPE_BUDGET_PRICE and _REACH.
   */
  double same_node_price;
  /**
   * For DUALPIPE_BUDGET_PRICE and _REACH.
   */
  double other_node_price;
} dualpipe_policy;

#endif /* DUALPIPE_POLICY_H */
