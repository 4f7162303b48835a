/*
 * Replays: how policies would have done on recorded loads, judged by what came next.
 *
 * A policy sees the steps before a rebalance, and never more; what it places runs until the next rebalance and is
 * judged by the loads of these steps alone. All policies of a replay see the same loads and start alike.
 *
 *     // A table of four policies over recorded steps: plans from the last 10, every 10; 8 moves of each layer.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status compare(const dualpipe_cluster *cluster, const dualpipe_goal *goal, const float *loads,
 *                                    size_t num_loads, char *table, size_t capacity, size_t *length) {
 *       dualpipe_replay_options options = DUALPIPE_REPLAY_OPTIONS_INIT;
 *       dualpipe_policy policies[4] = {{0}};
 *       dualpipe_replay_t replay = NULL;
 *       dualpipe_status status;
 *       options.window = options.every = 10;
 *       policies[0].kind = DUALPIPE_POLICY_NONE;
 *       policies[1].kind = DUALPIPE_POLICY_DEEPSEEK;
 *       policies[2].kind = DUALPIPE_POLICY_REFINED;
 *       policies[3].kind = DUALPIPE_POLICY_FEW_MOVES;
 *       policies[3].budget = DUALPIPE_BUDGET_MOVES;
 *       policies[3].max_moves = 8;
 *       status = dualpipe_replay_create(cluster, goal, loads, num_loads, &options, policies, 4, &replay);
 *       if (status == DUALPIPE_OK) status = dualpipe_replay_text(replay, table, capacity, length);
 *       dualpipe_replay_free(replay);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_REPLAY_H
#define DUALPIPE_REPLAY_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "op.h"
#include "policy.h"
#include "status.h"

/**
 * What a dualpipe_replay_t points to: nothing that C could look into.
 */
typedef struct dualpipe_replay dualpipe_replay;

/**
 * When to rebalance, and from where. Start from DUALPIPE_REPLAY_OPTIONS_INIT.
 */
typedef struct dualpipe_replay_options {
  /**
   * sizeof(dualpipe_replay_options).
   */
  uint32_t size;
  /**
   * Steps that a policy plans for; the first rebalance is after so many. At least 1, less than there are.
   */
  uint32_t window;
  /**
   * Steps from one rebalance to the next, at least 1.
   */
  uint32_t every;
  /**
   * 1: also say what no placement could beat in the same steps, even one made for each of them alone; else 0.
   */
  uint32_t with_bounds;
  /**
   * Threads of the policies of this library, at most 4096; 0 stands for as many as there are cores. The results are
   * the same. In a child of fork it is always 1.
   */
  uint32_t num_threads;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * NULL, or num_layers rows of the cluster's slots: the placement at first. NULL: the experts in order, again and
   * again.
   */
  const int64_t *initial;
  /**
   * How many numbers `initial` has; 0 without.
   */
  size_t num_slots;
  /**
   * Bytes of one expert's weights in one layer, at most 2^37: what a move carries.
   */
  uint64_t expert_bytes;
} dualpipe_replay_options;

/**
 * How policies did. It never changes: any number of threads may use it at once. It stays usable after a fork. Free it
 * with dualpipe_replay_free.
 */
typedef struct dualpipe_replay *dualpipe_replay_t;

/**
 * Slots whose expert is not the one they held before, by where the nearest copy of it was.
 */
typedef struct dualpipe_replay_moves {
  /**
   * In another slot of the same GPU.
   */
  uint64_t same_gpu;
  /**
   * On another GPU of the same node.
   */
  uint64_t same_node;
  /**
   * On another node.
   */
  uint64_t other_node;
  /**
   * What the moves within nodes carry.
   */
  uint64_t same_node_bytes;
  /**
   * What the moves between nodes carry.
   */
  uint64_t other_node_bytes;
} dualpipe_replay_moves;

/**
 * How a policy did. Imbalances are those of the judged steps: the heaviest GPU of every step summed up / the means of
 * the steps summed up, the inverse of what vLLM calls balancedness.
 */
typedef struct dualpipe_replay_run {
  /**
   * Mean over layers.
   */
  double imbalance;
  /**
   * That of the worst layer.
   */
  double worst_imbalance;
  /**
   * What no placement could beat, mean over layers; 0 without bounds.
   */
  double lower_bound;
  /**
   * The share of all load that was not on its group's home node, mean over steps; 0 where groups are free.
   */
  double away;
  /**
   * Rebalances.
   */
  uint64_t num_windows;
  /**
   * Rebalances that placed anew.
   */
  uint64_t num_new;
  /**
   * All moves.
   */
  struct dualpipe_replay_moves moves;
} dualpipe_replay_run;

/**
 * A rebalance and the steps until the next.
 */
typedef struct dualpipe_replay_window {
  /**
   * The first step; the plan was made from the steps before.
   */
  uint32_t step;
  /**
   * Steps until the next rebalance, or the end.
   */
  uint32_t num_steps;
  /**
   * 1 if the policy placed anew, 0 if it kept what there was.
   */
  uint32_t is_new;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * In these steps, mean over layers.
   */
  double imbalance;
  /**
   * In these steps, that of the worst layer.
   */
  double worst_imbalance;
  /**
   * What no placement could beat in these steps, mean over layers; 0 without bounds.
   */
  double lower_bound;
  /**
   * The share of all load that was not on its group's home node; 0 where groups are free.
   */
  double away;
  /**
   * What the change of placement moved.
   */
  struct dualpipe_replay_moves moves;
} dualpipe_replay_window;

/**
 * A layer in some steps.
 */
typedef struct dualpipe_replay_layer {
  /**
   * As of dualpipe_replay_run.
   */
  double imbalance;
  /**
   * What no placement could beat; 0 without bounds.
   */
  double lower_bound;
} dualpipe_replay_layer;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Runs 1 to 64 policies, one after the other, over recorded loads.
 *
 * loads: 2 to 65536 steps of num_layers rows of num_experts numbers, one step after the other, in all num_loads. The
 * goal is what policies of this library plan for; a placement is only held to its numbers of layers and experts, so
 * that a policy that does not know of a rule can be compared with one that does. Calls the progress callback now and
 * then.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement that loses tokens, the initial one or a policy's;
 * DUALPIPE_ERROR_CALLBACK_FAILED; DUALPIPE_ERROR_CANCELLED.
 */
dualpipe_status dualpipe_replay_create(const dualpipe_cluster *cluster,
                                       const dualpipe_goal *goal,
                                       const float *loads,
                                       size_t num_loads,
                                       const struct dualpipe_replay_options *options,
                                       const dualpipe_policy *policies,
                                       size_t num_policies,
                                       dualpipe_replay_t *replay);

/**
 * Frees a replay. NULL is fine.
 */
dualpipe_status dualpipe_replay_free(dualpipe_replay_t replay);

/**
 * How each policy did, in their order. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_replay_runs(dualpipe_replay_t replay,
                                     struct dualpipe_replay_run *runs,
                                     size_t capacity,
                                     size_t *count);

/**
 * A policy's rebalances, from each to the next; `run` is the policy's index. Buffers are filled as dualpipe.h says
 * under "Buffers".
 */
dualpipe_status dualpipe_replay_windows(dualpipe_replay_t replay,
                                        uint32_t run,
                                        struct dualpipe_replay_window *windows,
                                        size_t capacity,
                                        size_t *count);

/**
 * Each layer of a policy's run, num_layers entries: in the steps of one window, or with DUALPIPE_NONE in all judged
 * steps. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_replay_layers(dualpipe_replay_t replay,
                                       uint32_t run,
                                       uint32_t window,
                                       struct dualpipe_replay_layer *layers,
                                       size_t capacity,
                                       size_t *count);

/**
 * The load of each GPU in the last window of a policy's run, num_layers rows of num_gpus numbers: for a heat map.
 * Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_replay_gpu_loads(dualpipe_replay_t replay,
                                          uint32_t run,
                                          double *gpu_loads,
                                          size_t capacity,
                                          size_t *count);

/**
 * A table for people: a line for each policy. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_replay_text(dualpipe_replay_t replay,
                                     char *text,
                                     size_t capacity,
                                     size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_replay_options: `dualpipe_replay_options x = DUALPIPE_REPLAY_OPTIONS_INIT;` */
#define DUALPIPE_REPLAY_OPTIONS_INIT { sizeof(dualpipe_replay_options), 0, 0, 0, 0, 0, NULL, 0, 0 }

#endif /* DUALPIPE_REPLAY_H */
