/*
 * Expert plans: which slots hold which replicas of which experts, and how good that is.
 *
 * A plan is made from the loads of the experts, say how many tokens each got in the last steps. Experts that are in
 * demand get replicas, and replicas are placed so that GPUs are loaded evenly; a lower bound says what no placement
 * could better.
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
 * How well a layer is balanced.
 */
typedef struct dualpipe_layer_balance {
  /**
   * The heaviest GPU's load / the mean GPU load, at least 1.
   */
  double imbalance;
  /**
   * No placement has a lower imbalance (hierarchical: none that keeps groups on their nodes), at least 1.
   */
  double lower_bound;
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
 * Frees a plan. NULL is fine.
 */
dualpipe_status dualpipe_expert_plan_free(dualpipe_expert_plan_t plan);

/**
 * The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log). GPU g holds the slots from g *
 * num_slots / num_gpus on. Buffers are filled as dualpipe.h says under "Buffers".
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

#endif /* DUALPIPE_BALANCE_H */
