/*
 * A placement one can trust: whether it is right, the same on all ranks, and what memory it asks for.
 *
 * A wrong placement seldom fails: tokens are lost, or computed by another expert, and the model is a little worse. So
 * a placement from a file, an engine or another planner is verified before it is used. Any numbers may be in it.
 *
 *     // Prints what is wrong with a placement; returns how many errors there were, or -1 if it could not be told.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static int print_errors(const dualpipe_cluster *cluster, const dualpipe_goal *goal,
 *                             const int64_t *slot_to_expert, size_t num_slots) {
 *       dualpipe_unverified_placement placement = DUALPIPE_UNVERIFIED_PLACEMENT_INIT;
 *       dualpipe_verdict verdict;
 *       static char text[1 << 16];
 *       size_t count = 0;
 *       placement.slot_to_expert = slot_to_expert;
 *       placement.num_slots = num_slots;
 *       if (dualpipe_expert_verify(cluster, goal, &placement, &verdict, NULL, 0, &count) != DUALPIPE_OK) return -1;
 *       if (dualpipe_expert_verify_text(cluster, goal, &placement, text, sizeof text, &count) == DUALPIPE_OK)
 *         fputs(text, stderr);
 *       return (int)verdict.num_errors;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_VERIFY_H
#define DUALPIPE_VERIFY_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "op.h"
#include "status.h"

/**
 * How bad a finding is.
 */
enum dualpipe_severity
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Tokens are lost or computed wrongly, or what was asked for is not so.
   */
  DUALPIPE_SEVERITY_ERROR = 1,
  /**
   * Memory or time is wasted.
   */
  DUALPIPE_SEVERITY_WARNING = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_severity dualpipe_severity;
#else
typedef uint32_t dualpipe_severity;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What is wrong. Behind each: the fields of dualpipe_finding that say where, and what its numbers are.
 */
enum dualpipe_finding_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * expert: it is on no live GPU.
   */
  DUALPIPE_FINDING_MISSING = 1,
  /**
   * slot: it holds `value`, which is no expert.
   */
  DUALPIPE_FINDING_NOT_AN_EXPERT = 2,
  /**
   * slot, gpu, expert: the GPU is dead.
   */
  DUALPIPE_FINDING_ON_DEAD_GPU = 3,
  /**
   * expert: it is on `value` GPUs, less than `wanted`.
   */
  DUALPIPE_FINDING_TOO_FEW_GPUS = 4,
  /**
   * expert: it is on `value` nodes, less than `wanted`.
   */
  DUALPIPE_FINDING_TOO_FEW_NODES = 5,
  /**
   * group: it is to be whole, and is on `value` nodes instead of `wanted`, which is 1.
   */
  DUALPIPE_FINDING_SPLIT_GROUP = 6,
  /**
   * slot: its share, `amount`, is negative or not finite, or not 0 though there is no expert on a live GPU.
   */
  DUALPIPE_FINDING_SHARE = 7,
  /**
   * expert: its shares sum to `amount` instead of `limit`, which is 1.
   */
  DUALPIPE_FINDING_SHARE_SUM = 8,
  /**
   * expert: its replica count is `value`, but `wanted` live slots hold it.
   */
  DUALPIPE_FINDING_REPLICA_COUNT = 9,
  /**
   * expert, entry: the entry of its slots is `value`, which does not belong there.
   */
  DUALPIPE_FINDING_WRONG_SLOT = 10,
  /**
   * slot, expert: the slot holds the expert and is not among the expert's slots.
   */
  DUALPIPE_FINDING_UNLISTED = 11,
  /**
   * slot, gpu: the GPU is alive and the slot empty.
   */
  DUALPIPE_FINDING_EMPTY = 12,
  /**
   * gpu, expert: the GPU holds it `value` times; is_avoidable says whether other experts are left for the slot.
   */
  DUALPIPE_FINDING_TWICE = 13,
  /**
   * gpu: it carries `amount` times the mean, more than `limit`.
   */
  DUALPIPE_FINDING_OVERLOADED = 14,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_finding_kind dualpipe_finding_kind;
#else
typedef uint32_t dualpipe_finding_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A placement that is to be verified, and whatever else is said about it. Start from
 * DUALPIPE_UNVERIFIED_PLACEMENT_INIT.
 */
typedef struct dualpipe_unverified_placement {
  /**
   * sizeof(dualpipe_unverified_placement).
   */
  uint32_t size;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * num_layers rows of the cluster's slots: the expert in each, -1 on dead GPUs (DeepSeek's phy2log).
   */
  const int64_t *slot_to_expert;
  /**
   * How many numbers slot_to_expert has, and shares if there are any.
   */
  size_t num_slots;
  /**
   * NULL, or the share of its expert's tokens that each slot gets, 0 where there is no expert.
   */
  const double *shares;
  /**
   * NULL, or num_layers tables of num_experts rows of equal length: the slots of each expert in any order, then -1
   * (DeepSeek's log2phy).
   */
  const int64_t *expert_to_slots;
  /**
   * How many numbers expert_to_slots has; 0 without.
   */
  size_t num_expert_to_slots;
  /**
   * NULL, or num_layers rows of num_experts: how many slots each expert has (DeepSeek's logcnt).
   */
  const int64_t *replica_counts;
  /**
   * NULL, or num_layers rows of num_experts: loads under which no GPU may carry more than imbalance_max.
   */
  const float *loads;
  /**
   * How many numbers replica_counts and loads have, each if it is there; 0 without both.
   */
  size_t num_experts;
  /**
   * With loads: in multiples of the mean GPU load, at least 1; without: 0.
   */
  double imbalance_max;
} dualpipe_unverified_placement;

/**
 * How many findings there were.
 */
typedef struct dualpipe_verdict {
  /**
   * Errors; with none the placement can be used.
   */
  uint64_t num_errors;
  /**
   * Warnings.
   */
  uint64_t num_warnings;
  /**
   * Of each kind, `counts` at the number of the kind: all, while the first 64 of a kind are given in detail.
   */
  uint64_t counts[16];
} dualpipe_verdict;

/**
 * One thing that is wrong in a layer. Where it is, is DUALPIPE_NONE and 0 in fields that its kind does not name.
 */
typedef struct dualpipe_finding {
  /**
   * A dualpipe_finding_kind.
   */
  uint32_t kind;
  /**
   * A dualpipe_severity.
   */
  uint32_t severity;
  /**
   * The layer.
   */
  uint32_t layer;
  /**
   * The expert.
   */
  uint32_t expert;
  /**
   * The slot.
   */
  uint32_t slot;
  /**
   * The GPU.
   */
  uint32_t gpu;
  /**
   * The group.
   */
  uint32_t group;
  /**
   * The entry among the expert's slots.
   */
  uint32_t entry;
  /**
   * 0 or 1.
   */
  uint32_t is_avoidable;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What was found, a whole number: as it was given.
   */
  int64_t value;
  /**
   * What it should have been.
   */
  int64_t wanted;
  /**
   * What was found, a share or a load.
   */
  double amount;
  /**
   * What it should have been, or the most it may be.
   */
  double limit;
} dualpipe_finding;

/**
 * What is sent to experts and kept of them. Start from DUALPIPE_EXPERT_TRAFFIC_INIT.
 */
typedef struct dualpipe_expert_traffic {
  /**
   * sizeof(dualpipe_expert_traffic).
   */
  uint32_t size;
  /**
   * Layers whose experts are in memory at the same time, 1 to 4096.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer, 1 to 65536.
   */
  uint32_t num_experts;
  /**
   * Experts of a token, 1 to num_experts.
   */
  uint32_t top_k;
  /**
   * Numbers of a token's hidden state, 1 to 2^20; 2 bytes each.
   */
  uint32_t hidden;
  /**
   * Tokens that a rank sends in one dispatch, at most; 1 to 2^20.
   */
  uint32_t tokens_per_rank;
  /**
   * Bytes of one expert's weights in one layer, with scales and whatever else lies beside them; at most 2^37.
   */
  uint64_t expert_bytes;
} dualpipe_expert_traffic;

/**
 * What memory a placement asks for on the GPU that needs most. Start from DUALPIPE_EXPERT_MEMORY_INIT.
 */
typedef struct dualpipe_expert_memory {
  /**
   * sizeof(dualpipe_expert_memory).
   */
  uint32_t size;
  /**
   * Slots of the fullest live GPU.
   */
  uint32_t slots_max;
  /**
   * Its weights: slots_max * num_layers * expert_bytes.
   */
  uint64_t weight_bytes;
  /**
   * Rows that its experts compute in one layer when every rank sends it all that it can.
   */
  uint64_t rows_max;
  /**
   * The buffers of a low-latency dispatch (DeepEP's), which grow with the slots of the whole cluster: twice the
   * sum of receive and send, where places = num_gpus * slots_max * tokens_per_rank, receive = places * (16 + 2 *
   * hidden), and send is the larger of places * 2 * hidden and tokens_per_rank * (16 + 2 * hidden).
   */
  uint64_t low_latency_bytes;
  /**
   * The same with as few slots as hold each expert once: what redundant slots cost is the difference.
   */
  uint64_t low_latency_bytes_without_redundancy;
} dualpipe_expert_memory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Looks for everything in a placement that is wrong, or worse than it need be: writes how many findings there are,
 * and the first 64 of each kind, layer by layer. Buffers are filled as dualpipe.h says under "Buffers"; NULL without
 * a capacity is enough for a verdict.
 *
 * Of the goal, num_layers, num_experts, num_groups, DUALPIPE_GROUPS_WHOLE, min_gpus and min_nodes count.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT where it cannot be told what is meant: numbers of values that do not fit, a
 * load that is negative or not finite. What is wrong with the placement is a finding.
 */
dualpipe_status dualpipe_expert_verify(const dualpipe_cluster *cluster,
                                       const dualpipe_goal *goal,
                                       const struct dualpipe_unverified_placement *placement,
                                       struct dualpipe_verdict *verdict,
                                       struct dualpipe_finding *findings,
                                       size_t capacity,
                                       size_t *count);

/**
 * The same as a text: a line for each finding, errors first, and for each kind how many more there were. Empty if
 * nothing was found. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_expert_verify_text(const dualpipe_cluster *cluster,
                                            const dualpipe_goal *goal,
                                            const struct dualpipe_unverified_placement *placement,
                                            char *text,
                                            size_t capacity,
                                            size_t *length);

/**
 * The hash of a placement and the cluster it is for, the same on every machine: ranks that route by different
 * placements compute wrong results without any error, so each hashes its own and they compare
 * (dualpipe_expert_hash_agree).
 *
 * slot_to_expert: num_slots numbers, -1 where there is no expert; shares: NULL, or as many. FNV-1a of 64 bits over
 * bytes that docs/trust.md lists.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a number that can be no expert's.
 */
dualpipe_status dualpipe_expert_hash(const dualpipe_cluster *cluster,
                                     const int64_t *slot_to_expert,
                                     const double *shares,
                                     size_t num_slots,
                                     uint64_t *hash);

/**
 * Which ranks have another hash than most. hashes: one for each rank. hash: what most have; of equally frequent ones
 * that of the lowest rank. ranks: who differs, in order. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_hash_agree(const uint64_t *hashes,
                                           size_t num_ranks,
                                           uint64_t *hash,
                                           uint32_t *ranks,
                                           size_t capacity,
                                           size_t *count);

/**
 * What memory placements on a cluster ask for. It counts messages and weights, not what a library takes besides.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for bytes that do not fit in 64 bits.
 */
dualpipe_status dualpipe_expert_buffers(const dualpipe_cluster *cluster,
                                        const struct dualpipe_expert_traffic *traffic,
                                        struct dualpipe_expert_memory *memory);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_unverified_placement:
 * `dualpipe_unverified_placement x = DUALPIPE_UNVERIFIED_PLACEMENT_INIT;` */
#define DUALPIPE_UNVERIFIED_PLACEMENT_INIT \
  { sizeof(dualpipe_unverified_placement), 0, NULL, 0, NULL, NULL, 0, NULL, NULL, 0, 0 }

/** Initializes a dualpipe_expert_traffic: `dualpipe_expert_traffic x = DUALPIPE_EXPERT_TRAFFIC_INIT;` */
#define DUALPIPE_EXPERT_TRAFFIC_INIT { sizeof(dualpipe_expert_traffic), 0, 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_expert_memory: `dualpipe_expert_memory x = DUALPIPE_EXPERT_MEMORY_INIT;` */
#define DUALPIPE_EXPERT_MEMORY_INIT { sizeof(dualpipe_expert_memory), 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_VERIFY_H */
