/*
 * From the placement that is there: how much may change, what a change moves, what a move gains.
 *
 *     // At most 10 experts of each layer are moved; those of a failed GPU come on top, as they must.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status plan_next(const dualpipe_cluster *cluster, const dualpipe_goal *goal, const float *loads,
 *                                      const int64_t *slot_to_expert, dualpipe_expert_plan_t *next) {
 *       const size_t num_loads = (size_t)goal->num_layers * goal->num_experts;
 *       dualpipe_current_placement current = DUALPIPE_CURRENT_PLACEMENT_INIT;
 *       current.slot_to_expert = slot_to_expert;
 *       current.num_slots = (size_t)goal->num_layers * cluster->num_slots;
 *       current.budget = DUALPIPE_BUDGET_MOVES;
 *       current.max_moves = 10;
 *       return dualpipe_expert_plan_balance(cluster, goal, loads, num_loads, &current, 0, next);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_MOVES_H
#define DUALPIPE_MOVES_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * How much of a placement may change, of each layer for itself. A move is an expert that comes to a GPU that did not
 * have it. What must move, as a GPU died or the goal forbids what is there, comes on top.
 */
enum dualpipe_budget
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * All: it is placed anew, and numbered so that as much as possible stays.
   */
  DUALPIPE_BUDGET_FREE = 0,
  /**
   * At most max_moves moves.
   */
  DUALPIPE_BUDGET_MOVES = 1,
  /**
   * Moves of a price of at most max_price.
   */
  DUALPIPE_BUDGET_PRICE = 2,
  /**
   * The cheapest that reaches `imbalance`, or comes as near to it as can be found.
   */
  DUALPIPE_BUDGET_REACH = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_budget dualpipe_budget;
#else
typedef uint32_t dualpipe_budget;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What leads from one placement of a layer to another, by where the nearest replica of each expert is at first.
 */
typedef struct dualpipe_move_count {
  /**
   * Slots whose expert was not on their GPU: the sum of the next three.
   */
  uint32_t moves;
  /**
   * From another GPU of the node.
   */
  uint32_t same_node;
  /**
   * From another node.
   */
  uint32_t other_node;
  /**
   * From nowhere: they must be loaded again.
   */
  uint32_t lost;
  /**
   * Slots whose expert was in another slot of their GPU: copies within the GPU, no moves.
   */
  uint32_t same_gpu;
} dualpipe_move_count;

/**
 * A point of the curve of imbalance against moves.
 */
typedef struct dualpipe_move_point {
  /**
   * Its layer.
   */
  uint32_t layer;
  /**
   * Moves.
   */
  uint32_t moves;
  /**
   * The heaviest GPU's load / the mean, with an equal split.
   */
  double imbalance;
} dualpipe_move_point;

/**
 * The placement that experts lie by, and what may change. Start from DUALPIPE_CURRENT_PLACEMENT_INIT.
 */
typedef struct dualpipe_current_placement {
  /**
   * sizeof(dualpipe_current_placement).
   */
  uint32_t size;
  /**
   * A dualpipe_budget.
   */
  uint32_t budget;
  /**
   * num_layers rows of the cluster's slots: the expert in each, -1 where there is none. What slots of dead GPUs hold
   * does not matter.
   */
  const int64_t *slot_to_expert;
  /**
   * How many numbers slot_to_expert has.
   */
  size_t num_slots;
  /**
   * For DUALPIPE_BUDGET_MOVES, otherwise 0.
   */
  uint64_t max_moves;
  /**
   * For DUALPIPE_BUDGET_PRICE, otherwise 0. Finite, not negative.
   */
  double max_price;
  /**
   * For DUALPIPE_BUDGET_REACH, otherwise 0: the heaviest GPU's load / the mean, at least 1.
   */
  double imbalance;
  /**
   * For DUALPIPE_BUDGET_PRICE and _REACH, otherwise 0: the price of a move within a node, in any unit. Finite, not
   * negative.
   */
  double same_node_price;
  /**
   * Likewise, of a move between nodes.
   */
  double other_node_price;
} dualpipe_current_placement;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Counts for each layer what leads from a placement to another, num_layers entries; both are num_layers rows of the
 * cluster's slots, -1 where there is no expert, and have num_slots numbers. num_layers follows from them. Buffers are
 * filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
 */
dualpipe_status dualpipe_expert_moves(const dualpipe_cluster *cluster,
                                      uint32_t num_experts,
                                      const int64_t *from,
                                      const int64_t *to,
                                      size_t num_slots,
                                      struct dualpipe_move_count *counts,
                                      size_t capacity,
                                      size_t *count);

/**
 * What imbalance can be had for how many moves from a placement, up to max_moves (at most 2^20) or to where no more
 * is gained: for each layer points with more and more moves and less and less imbalance, of which the first is the
 * current placement, made valid where it is not. A layer that single moves cannot make valid has no points. Every
 * point was found by a search, which is no proof that none is lower.
 *
 * loads: as for dualpipe_expert_plan_balance. slot_to_expert: num_layers rows of the cluster's slots, -1 where there
 * is no expert, num_slots in all. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
 */
dualpipe_status dualpipe_expert_move_curve(const dualpipe_cluster *cluster,
                                           const dualpipe_goal *goal,
                                           const float *loads,
                                           size_t num_loads,
                                           const int64_t *slot_to_expert,
                                           size_t num_slots,
                                           uint32_t max_moves,
                                           struct dualpipe_move_point *points,
                                           size_t capacity,
                                           size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_current_placement: `dualpipe_current_placement x = DUALPIPE_CURRENT_PLACEMENT_INIT;` */
#define DUALPIPE_CURRENT_PLACEMENT_INIT { sizeof(dualpipe_current_placement), 0, NULL, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_MOVES_H */
