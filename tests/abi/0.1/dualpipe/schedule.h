/*
 * Schedules: who computes what in which order.
 *
 * A schedule is created for a kind, a number of ranks and one of micro-batches, or from orders of the caller's
 * (schedule_orders.h); then it never changes. It gives the order of each rank, itself as text, a proof that it can
 * run, and it is what simulations and programs are made from.
 *
 *     // Prints the kinds of the ops of a rank, in order. First the count is asked for, then the ops.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *
 *     static dualpipe_status print_order(dualpipe_schedule_t schedule, uint32_t rank) {
 *       size_t count = 0;
 *       dualpipe_status status = dualpipe_schedule_order(schedule, rank, NULL, 0, &count);
 *       if (status != DUALPIPE_OK) return status;
 *       dualpipe_op *ops = calloc(count, sizeof *ops);
 *       if (ops != NULL) status = dualpipe_schedule_order(schedule, rank, ops, count, &count);
 *       for (size_t i = 0; ops != NULL && status == DUALPIPE_OK && i < count; i++) printf("%u\n", ops[i].kind);
 *       free(ops);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_SCHEDULE_H
#define DUALPIPE_SCHEDULE_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "status.h"

/**
 * The published schedules.
 */
enum dualpipe_schedule_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * DualPipe (DeepSeek-V3, arXiv 2412.19437): two directions, two copies of the parameters. num_ranks even, 2 to
   * 4096; num_microbatches counts both directions, even, at least 2 * num_ranks - 2 (2 if forward_only).
   */
  DUALPIPE_KIND_DUALPIPE = 1,
  /**
   * DualPipeV: DualPipe folded into a V, one copy of the parameters, two stages on each rank. num_ranks 1 to 4096;
   * num_microbatches at least 2 * num_ranks - 1 (1 if forward_only).
   */
  DUALPIPE_KIND_DUALPIPE_V = 2,
  /**
   * 1F1B (PipeDream-Flush, arXiv 2006.09503). num_ranks 1 to 4096; num_microbatches at least 1.
   */
  DUALPIPE_KIND_1F1B = 3,
  /**
   * GPipe (arXiv 1811.06965): all forwards, then all backwards. Sizes as of 1F1B.
   */
  DUALPIPE_KIND_GPIPE = 4,
  /**
   * Interleaved 1F1B (Megatron-LM, arXiv 2104.04473): stages_per_rank stages on each rank, at least 1;
   * num_microbatches a multiple of num_ranks.
   */
  DUALPIPE_KIND_INTERLEAVED_1F1B = 5,
  /**
   * Interleaved 1F1B with a forward more in the warm-up, so that each forward behind it runs as a pair with a
   * backward (Megatron-LM's combined 1F1B). Sizes as of interleaved 1F1B.
   */
  DUALPIPE_KIND_INTERLEAVED_OVERLAPPED = 6,
  /**
   * Interleaved 1F1B with backwards in halves (torch's ScheduleInterleavedZeroBubble). stages_per_rank at least 1;
   * num_microbatches a multiple of num_microbatches / num_ranks, rounded down, if that is not 0.
   */
  DUALPIPE_KIND_INTERLEAVED_ZERO_BUBBLE = 7,
  /**
   * Looped breadth first (arXiv 2211.05953): all micro-batches through a stage before the rank's next.
   * stages_per_rank at least 1; num_microbatches at least 1.
   */
  DUALPIPE_KIND_LOOPED_BFS = 8,
  /**
   * Chimera (arXiv 2107.06925): two directions, two copies of the parameters, whole backwards. num_ranks even,
   * num_microbatches even.
   */
  DUALPIPE_KIND_CHIMERA = 9,
  /**
   * ZB-H1 (Zero Bubble, arXiv 2401.10241): backwards in halves, the memory of 1F1B. Sizes as of 1F1B.
   */
  DUALPIPE_KIND_ZB_H1 = 10,
  /**
   * ZB-H2 (the same): no bubble where F = I = W, for more memory. Sizes as of 1F1B.
   */
  DUALPIPE_KIND_ZB_H2 = 11,
  /**
   * ZB-V (the same, and arXiv 2405.15362): two stages on each rank in a V, the memory of 1F1B. num_ranks at least 1;
   * num_microbatches at least 1.
   */
  DUALPIPE_KIND_ZB_V = 12,
  /**
   * V-Half (arXiv 2405.15362): half the memory of 1F1B. Sizes as of ZB-V.
   */
  DUALPIPE_KIND_V_HALF = 13,
  /**
   * V-Min (arXiv 2405.15362): a third of the memory of 1F1B. Sizes as of ZB-V.
   */
  DUALPIPE_KIND_V_MIN = 14,
  /**
   * None of these: from outside, by dualpipe_schedule_create_from_orders, _from_text or _from_torch_csv.
   * dualpipe_schedule_create does not take it.
   */
  DUALPIPE_KIND_CUSTOM = 1000,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_schedule_kind dualpipe_schedule_kind;
#else
typedef uint32_t dualpipe_schedule_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_schedule_t points to: nothing that C could look into.
 */
typedef struct dualpipe_schedule dualpipe_schedule;

/**
 * What schedule to create. Start from DUALPIPE_SCHEDULE_OPTIONS_INIT.
 */
typedef struct dualpipe_schedule_options {
  /**
   * sizeof(dualpipe_schedule_options).
   */
  uint32_t size;
  /**
   * A dualpipe_schedule_kind, which also says what the other fields may be.
   */
  uint32_t kind;
  /**
   * The ranks of the pipeline, P.
   */
  uint32_t num_ranks;
  /**
   * The micro-batches of a step, both directions together, at most 1048576 and 4194304 / (stages of a direction).
   */
  uint32_t num_microbatches;
  /**
   * 0: every micro-batch goes forward and backward. 1: only forward, for inference.
   */
  uint32_t forward_only;
  /**
   * For the interleaved kinds and looped breadth first: stages on each rank, num_ranks times as many at most 8192 in
   * all. Otherwise 0.
   */
  uint32_t stages_per_rank;
} dualpipe_schedule_options;

/**
 * A schedule: for every rank, the order of its ops. It never changes: any number of threads may use it at once. It
 * stays usable after a fork. Free it with dualpipe_schedule_free.
 */
typedef struct dualpipe_schedule *dualpipe_schedule_t;

/**
 * What a schedule is. Start from DUALPIPE_SCHEDULE_INFO_INIT.
 */
typedef struct dualpipe_schedule_info {
  /**
   * sizeof(dualpipe_schedule_info).
   */
  uint32_t size;
  /**
   * A dualpipe_schedule_kind.
   */
  uint32_t kind;
  /**
   * Ranks of the pipeline.
   */
  uint32_t num_ranks;
  /**
   * Stages of the model.
   */
  uint32_t num_stages;
  /**
   * 1, or 2: then each stage has two parameter copies.
   */
  uint32_t num_directions;
  /**
   * Micro-batches of a step, both directions together; of two directions each has half.
   */
  uint32_t num_microbatches;
  /**
   * Whether micro-batches only go forward: 0 or 1.
   */
  uint32_t forward_only;
} dualpipe_schedule_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates a published schedule.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if the options are outside the range that their kind has. Time and memory:
 * proportional to the ops of all ranks.
 */
dualpipe_status dualpipe_schedule_create(const struct dualpipe_schedule_options *options,
                                         dualpipe_schedule_t *schedule);

/**
 * Frees a schedule. NULL is fine. What was made from it stays.
 */
dualpipe_status dualpipe_schedule_free(dualpipe_schedule_t schedule);

/**
 * What a schedule is: its kind and sizes.
 */
dualpipe_status dualpipe_schedule_describe(dualpipe_schedule_t schedule,
                                           struct dualpipe_schedule_info *info);

/**
 * The ops of `rank`, 0 to num_ranks - 1, in order. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_schedule_order(dualpipe_schedule_t schedule,
                                        uint32_t rank,
                                        dualpipe_op *ops,
                                        size_t capacity,
                                        size_t *count);

/**
 * The rank that holds the parameters of `stage`, 0 to num_stages - 1, in `direction`, 0 to num_directions - 1.
 */
dualpipe_status dualpipe_schedule_rank_of(dualpipe_schedule_t schedule,
                                          uint32_t direction,
                                          uint32_t stage,
                                          uint32_t *rank);

/**
 * Proves that a schedule can run: every (direction, stage, micro-batch) has its F and then its B, or its I and then
 * its W, exactly once and on the right rank; every message has its pair; and no rank waits for ever, neither with
 * asynchronous sends nor with blocking grouped exchanges.
 *
 * Writes for each rank the most micro-batch activations alive at once: from the start of an F to the end of its B or
 * W (forward only: of the F). Buffers are filled as dualpipe.h says under "Buffers"; the count is num_ranks.
 *
 * Errors: DUALPIPE_ERROR_INVALID_SCHEDULE, with rank, position, op and reason. Time: proportional to the ops.
 */
dualpipe_status dualpipe_schedule_check(dualpipe_schedule_t schedule,
                                        uint32_t *peak_live,
                                        size_t capacity,
                                        size_t *count);

/**
 * A schedule as text: a line for each rank, such as "1| 1F0 2f0 1F1 ...". A token is stage, kind, micro-batch; the
 * kind is a small letter in direction 1; a pair is "2F3&5b1". A NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_schedule_to_text(dualpipe_schedule_t schedule,
                                          char *text,
                                          size_t capacity,
                                          size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_schedule_options: `dualpipe_schedule_options x = DUALPIPE_SCHEDULE_OPTIONS_INIT;` */
#define DUALPIPE_SCHEDULE_OPTIONS_INIT { sizeof(dualpipe_schedule_options), 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_schedule_info: `dualpipe_schedule_info x = DUALPIPE_SCHEDULE_INFO_INIT;` */
#define DUALPIPE_SCHEDULE_INFO_INIT { sizeof(dualpipe_schedule_info), 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_SCHEDULE_H */
