/*
 * Expert plans: which slots hold which replicas of which experts, and how good that is.
 *
 * A plan is made from the loads of the experts, say how many tokens each got in the last steps. Experts that are in
 * demand get replicas, and replicas are placed so that GPUs are loaded evenly; a lower bound says what no placement
 * could better. dualpipe_expert_plan_create has DeepSeek's policy, dualpipe_expert_plan_balance the best that can be
 * found, on any cluster (cluster.h), also from a placement that is there with few moves (moves.h).
 *
 *     // One layer: 8 experts in 12 slots on 4 GPUs of one node. experts[slot] is then the expert in that slot.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status place(const float loads[8], int64_t experts[12]) {
 *       dualpipe_balance_options options = DUALPIPE_BALANCE_OPTIONS_INIT;
 *       dualpipe_expert_plan_t plan = NULL;
 *       size_t count = 0;
 *       options.num_layers = options.num_groups = options.num_nodes = options.num_threads = 1;
 *       options.num_experts = 8;
 *       options.num_slots = 12;
 *       options.num_gpus = 4;
 *       dualpipe_status status = dualpipe_expert_plan_create(&options, loads, 8, &plan);
 *       if (status == DUALPIPE_OK) status = dualpipe_expert_plan_slot_to_expert(plan, experts, 12, &count);
 *       dualpipe_expert_plan_free(plan);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_BALANCE_H
#define DUALPIPE_BALANCE_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "moves.h"
#include "status.h"

/**
 * What a dualpipe_expert_plan_t points to: nothing that C could look into.
 */
typedef struct dualpipe_expert_plan dualpipe_expert_plan;

/**
 * What to place. Start from DUALPIPE_BALANCE_OPTIONS_INIT.
 *
 * If num_nodes divides num_groups, groups of experts stay on one node (hierarchical), and num_groups must divide
 * num_experts, num_nodes num_gpus and num_slots, num_gpus num_slots; otherwise nodes and groups do not count (global).
 */
typedef struct dualpipe_balance_options {
  /**
   * sizeof(dualpipe_balance_options).
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
   * Slots of all GPUs together, at least num_experts, at most 2^20.
   */
  uint32_t num_slots;
  /**
   * Groups of experts, at least 1.
   */
  uint32_t num_groups;
  /**
   * Nodes, at least 1.
   */
  uint32_t num_nodes;
  /**
   * GPUs, at least 1.
   */
  uint32_t num_gpus;
  /**
   * Threads, at most 4096: 1 is the caller's alone, 0 as many as there are cores. The result is the same.
   * In a child of fork it is always 1.
   */
  uint32_t num_threads;
} dualpipe_balance_options;

/**
 * Where the replicas of every layer's experts lie. It never changes: any number of threads may use it at once. It
 * stays usable after a fork. Free it with dualpipe_expert_plan_free.
 */
typedef struct dualpipe_expert_plan *dualpipe_expert_plan_t;

/**
 * What a plan is of. Start from DUALPIPE_EXPERT_PLAN_INFO_INIT.
 */
typedef struct dualpipe_expert_plan_info {
  /**
   * sizeof(dualpipe_expert_plan_info).
   */
  uint32_t size;
  /**
   * MoE layers.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer.
   */
  uint32_t num_experts;
  /**
   * Slots of a layer, those of dead GPUs too.
   */
  uint32_t num_slots;
  /**
   * GPUs, dead ones too.
   */
  uint32_t num_gpus;
  /**
   * Nodes.
   */
  uint32_t num_nodes;
  /**
   * Groups of experts.
   */
  uint32_t num_groups;
  /**
   * A dualpipe_split.
   */
  uint32_t split;
} dualpipe_expert_plan_info;

/**
 * How well a layer is balanced, in multiples of the mean load of a live GPU; 1 where there is no load. Of a window of
 * steps all are sums over the steps, each weighted by its load.
 */
typedef struct dualpipe_layer_balance {
  /**
   * The heaviest GPU's load, at least 1; of a window, the inverse of what vLLM calls balancedness.
   */
  double imbalance;
  /**
   * No placement of this kind has a lower imbalance: the greatest of the bounds below that hold for it.
   */
  double lower_bound;
  /**
   * No placement has a lower imbalance, even if replicas share a load unequally.
   */
  double joint_bound;
  /**
   * No placement whose replicas share a load equally has a lower imbalance.
   */
  double equal_bound;
  /**
   * No placement that keeps every group on one node has a lower imbalance; 1 where groups need not be whole.
   */
  double node_bound;
  /**
   * The share of all load that is not on the node that most of its group's load is on, 0 to 1; 0 without
   * DUALPIPE_GROUPS_PRICED.
   */
  double away;
} dualpipe_layer_balance;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Places the experts of every layer by DeepSeek's policy (EPLB: github.com/deepseek-ai/EPLB), number for number; of
 * equal loads the lower index comes first.
 *
 * loads: num_layers rows of num_experts numbers, in all num_loads, finite and not negative: tokens, or any
 * measure that adds up. Calls the progress callback now and then.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with the nearest numbers that would do; DUALPIPE_ERROR_CANCELLED.
 */
dualpipe_status dualpipe_expert_plan_create(const struct dualpipe_balance_options *options,
                                            const float *loads,
                                            size_t num_loads,
                                            dualpipe_expert_plan_t *plan);

/**
 * Places the experts of every layer as well as it can within the limits of `goal`, with a proven lower bound beside
 * it.
 *
 * loads: num_layers rows of num_experts numbers, finite and not negative; or so many of each step of a window, one
 * step after the other: then the sum over its steps of the heaviest GPU's load is made small.
 *
 * current: NULL, or the placement that is there and how much of it may change; what stays keeps its slot.
 *
 * num_threads: 1 is the caller's alone, 0 as many as there are cores, at most 4096. The plan is the same. In a child
 * of fork it is always 1. Calls the progress callback now and then.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if no placement was found that keeps groups whole and every expert on
 * enough GPUs and nodes; DUALPIPE_ERROR_CANCELLED.
 */
dualpipe_status dualpipe_expert_plan_balance(const dualpipe_cluster *cluster,
                                             const dualpipe_goal *goal,
                                             const float *loads,
                                             size_t num_loads,
                                             const dualpipe_current_placement *current,
                                             uint32_t num_threads,
                                             dualpipe_expert_plan_t *plan);

/**
 * Makes a plan of a placement from anywhere, to be routed by, compared, or moved from.
 *
 * slot_to_expert: num_layers rows of the cluster's num_slots numbers, -1 in slots of dead GPUs, in all num_slots.
 * shares: for DUALPIPE_SPLIT_WEIGHTED as many numbers, otherwise NULL and 0. loads: NULL and 0, or as for
 * dualpipe_expert_plan_balance: what imbalance and bounds are said of, which are 1 otherwise. The goal's groups and
 * what is to be survived need not be kept.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement by which tokens would be lost, with the first place
 * where.
 */
dualpipe_status dualpipe_expert_plan_create_from_slots(const dualpipe_cluster *cluster,
                                                       const dualpipe_goal *goal,
                                                       const int64_t *slot_to_expert,
                                                       size_t num_slots,
                                                       const double *shares,
                                                       size_t num_shares,
                                                       const float *loads,
                                                       size_t num_loads,
                                                       dualpipe_expert_plan_t *plan);

/**
 * Says what a plan is of.
 */
dualpipe_status dualpipe_expert_plan_describe(dualpipe_expert_plan_t plan,
                                              struct dualpipe_expert_plan_info *info);

/**
 * Frees a plan. NULL is fine.
 */
dualpipe_status dualpipe_expert_plan_free(dualpipe_expert_plan_t plan);

/**
 * The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log), -1 in slots of dead GPUs.
 * Slots are numbered GPU by GPU. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_plan_slot_to_expert(dualpipe_expert_plan_t plan,
                                                    int64_t *experts,
                                                    size_t capacity,
                                                    size_t *count);

/**
 * How many replicas each expert has: num_layers rows of num_experts numbers (DeepSeek's logcnt). Buffers are filled as
 * dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_plan_replica_counts(dualpipe_expert_plan_t plan,
                                                    int64_t *counts,
                                                    size_t capacity,
                                                    size_t *count);

/**
 * The share of its expert's tokens that each slot gets: num_layers rows of num_slots numbers; of an expert they sum
 * to 1, and with DUALPIPE_SPLIT_EQUAL they are alike. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_plan_shares(dualpipe_expert_plan_t plan,
                                            double *shares,
                                            size_t capacity,
                                            size_t *count);

/**
 * The load of each GPU under any loads, say those of the next step: num_layers rows of num_gpus numbers; loads are
 * num_layers rows of num_experts numbers. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
 */
dualpipe_status dualpipe_expert_plan_gpu_loads(dualpipe_expert_plan_t plan,
                                               const float *loads,
                                               size_t num_loads,
                                               double *gpu_loads,
                                               size_t capacity,
                                               size_t *count);

/**
 * The load of each node under any loads: num_layers rows of num_nodes numbers; otherwise as
 * dualpipe_expert_plan_gpu_loads.
 */
dualpipe_status dualpipe_expert_plan_node_loads(dualpipe_expert_plan_t plan,
                                                const float *loads,
                                                size_t num_loads,
                                                double *node_loads,
                                                size_t capacity,
                                                size_t *count);

/**
 * The slots of each expert, in the order of its replicas: num_layers tables of num_experts rows as long as the most
 * replicas of any expert, -1 behind the last (DeepSeek's log2phy). Buffers are filled as dualpipe.h says under
 * "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if that is more than 2^28 numbers.
 */
dualpipe_status dualpipe_expert_plan_expert_to_slots(dualpipe_expert_plan_t plan,
                                                     int64_t *slots,
                                                     size_t capacity,
                                                     size_t *count);

/**
 * How well each layer is balanced, num_layers entries. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_plan_layers(dualpipe_expert_plan_t plan,
                                            struct dualpipe_layer_balance *layers,
                                            size_t capacity,
                                            size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_balance_options: `dualpipe_balance_options x = DUALPIPE_BALANCE_OPTIONS_INIT;` */
#define DUALPIPE_BALANCE_OPTIONS_INIT { sizeof(dualpipe_balance_options), 0, 0, 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_expert_plan_info: `dualpipe_expert_plan_info x = DUALPIPE_EXPERT_PLAN_INFO_INIT;` */
#define DUALPIPE_EXPERT_PLAN_INFO_INIT { sizeof(dualpipe_expert_plan_info), 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_BALANCE_H */
