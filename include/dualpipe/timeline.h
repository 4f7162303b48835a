/*
 * Timelines: who did what when, simulated or recorded; and their pictures.
 *
 * A timeline comes from dualpipe_simulate, or from an executor after a step (dualpipe_executor_timeline: its own
 * rank's part). Those of all ranks are merged to one of the step. It never changes, gives its spans and messages, and
 * is drawn as text, SVG or Chrome trace. Simulated and recorded ones are of one type, so that they can be laid side by
 * side.
 *
 *     // The picture of a step as it was simulated and as it was recorded, rank by rank, in a buffer of the caller's.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status draw_both(dualpipe_timeline_t simulated, const dualpipe_timeline_t *ranks,
 *                                      size_t num_ranks, char *svg, size_t capacity, size_t *length) {
 *       dualpipe_timeline_t both[2] = {simulated, NULL};
 *       dualpipe_status status = dualpipe_timeline_merge(ranks, num_ranks, &both[1]);
 *       if (status == DUALPIPE_OK) status = dualpipe_timeline_compare(both, 2, svg, capacity, length);
 *       dualpipe_timeline_free(both[1]);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_TIMELINE_H
#define DUALPIPE_TIMELINE_H

#include <stddef.h>
#include <stdint.h>
#include "cost.h"
#include "op.h"
#include "schedule.h"
#include "status.h"

/**
 * Where a timeline comes from.
 */
enum dualpipe_timeline_source
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Computed from costs.
   */
  DUALPIPE_TIMELINE_SIMULATED = 1,
  /**
   * Measured while a program ran.
   */
  DUALPIPE_TIMELINE_RECORDED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_timeline_source dualpipe_timeline_source;
#else
typedef uint32_t dualpipe_timeline_source;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a timeline can be drawn as.
 */
enum dualpipe_draw_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Text for a terminal: one line per rank.
   */
  DUALPIPE_DRAW_TEXT = 1,
  /**
   * A self-contained SVG.
   */
  DUALPIPE_DRAW_SVG = 2,
  /**
   * A Chrome trace (JSON), for ui.perfetto.dev.
   */
  DUALPIPE_DRAW_TRACE = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_draw_format dualpipe_draw_format;
#else
typedef uint32_t dualpipe_draw_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_timeline_t points to: nothing that C could look into.
 */
typedef struct dualpipe_timeline dualpipe_timeline;

/**
 * A timeline: who did what when, in one step. It never changes: any number of threads may use it at once. It stays
 * usable after a fork. Free it with dualpipe_timeline_free.
 */
typedef struct dualpipe_timeline *dualpipe_timeline_t;

/**
 * A timeline as a whole. Start from DUALPIPE_TIMELINE_SUMMARY_INIT.
 */
typedef struct dualpipe_timeline_summary {
  /**
   * sizeof(dualpipe_timeline_summary).
   */
  uint32_t size;
  /**
   * A dualpipe_timeline_source.
   */
  uint32_t source;
  /**
   * Its ranks.
   */
  uint64_t num_ranks;
  /**
   * Its spans, over all ranks.
   */
  uint64_t num_spans;
  /**
   * Its messages between different ranks.
   */
  uint64_t num_messages;
  /**
   * When the last task ends, in nanoseconds from the start of the step.
   */
  uint64_t makespan_ns;
  /**
   * No schedule of these micro-batches on this placement has a shorter makespan; 0 if that is not known, as of a
   * recorded one. makespan_ns / lower_bound_ns - 1 is the gap.
   */
  uint64_t lower_bound_ns;
  /**
   * The bubble's share of the step, mean over ranks, 0 to 1.
   */
  double bubble_share;
} dualpipe_timeline_summary;

/**
 * One rank's part of a timeline.
 */
typedef struct dualpipe_timeline_rank {
  /**
   * Time that it spends on tasks.
   */
  uint64_t busy_ns;
  /**
   * Its bubble: time of the step in which it does nothing.
   */
  uint64_t idle_ns;
  /**
   * The parameters of its copies and the most activations alive at once; 0 if that is not known, as of a recorded
   * timeline.
   */
  uint64_t peak_memory_bytes;
  /**
   * The number of its spans.
   */
  uint64_t num_spans;
} dualpipe_timeline_rank;

/**
 * A task and when it ran, in nanoseconds from the start of the step.
 */
typedef struct dualpipe_span {
  /**
   * Who ran it.
   */
  uint32_t rank;
  /**
   * What ran.
   */
  dualpipe_op op;
  /**
   * When it started.
   */
  uint64_t start_ns;
  /**
   * When it ended.
   */
  uint64_t end_ns;
} dualpipe_span;

/**
 * A message between two ranks and when it travelled, in nanoseconds from the start of the step.
 */
typedef struct dualpipe_message_span {
  /**
   * What travelled.
   */
  dualpipe_message message;
  /**
   * The rank that sent it.
   */
  uint32_t from;
  /**
   * The rank that received it.
   */
  uint32_t to;
  /**
   * When it left.
   */
  uint64_t start_ns;
  /**
   * When it had arrived.
   */
  uint64_t end_ns;
} dualpipe_message_span;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Plays a schedule against costs: every op starts as soon as its rank is free and its messages are there. The
 * timeline knows its lower bound and each rank's peak memory.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if a cost is outside its range, or the costs are of another number of
 * stages than the schedule's (or 1); DUALPIPE_ERROR_INVALID_SCHEDULE. Time: proportional to the ops.
 */
dualpipe_status dualpipe_simulate(dualpipe_schedule_t schedule,
                                  const dualpipe_costs *costs,
                                  dualpipe_timeline_t *timeline);

/**
 * One timeline of `count` (1 to 4096) that each recorded some ranks of the same step on a common clock. They stay the
 * caller's.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT unless all have the same ranks and stages and no rank is in two of them.
 */
dualpipe_status dualpipe_timeline_merge(const dualpipe_timeline_t *timelines,
                                        size_t count,
                                        dualpipe_timeline_t *timeline);

/**
 * Frees a timeline. NULL is fine.
 */
dualpipe_status dualpipe_timeline_free(dualpipe_timeline_t timeline);

/**
 * A timeline as a whole: its sizes, its makespan, its bubble and its lower bound.
 */
dualpipe_status dualpipe_timeline_summarize(dualpipe_timeline_t timeline,
                                            struct dualpipe_timeline_summary *summary);

/**
 * Each rank's part of a timeline, in order of ranks. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_timeline_ranks(dualpipe_timeline_t timeline,
                                        struct dualpipe_timeline_rank *ranks,
                                        size_t capacity,
                                        size_t *count);

/**
 * The spans of a timeline, rank by rank, each rank's in the order in which they ran. Buffers are filled as dualpipe.h
 * says under "Buffers".
 */
dualpipe_status dualpipe_timeline_spans(dualpipe_timeline_t timeline,
                                        struct dualpipe_span *spans,
                                        size_t capacity,
                                        size_t *count);

/**
 * The messages of a timeline between different ranks, in an order that is always the same. Buffers are filled as
 * dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_timeline_messages(dualpipe_timeline_t timeline,
                                           struct dualpipe_message_span *messages,
                                           size_t capacity,
                                           size_t *count);

/**
 * Draws a timeline in `format`, a dualpipe_draw_format. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_timeline_draw(dualpipe_timeline_t timeline,
                                       uint32_t format,
                                       char *text,
                                       size_t capacity,
                                       size_t *length);

/**
 * Draws `count` timelines (1 to 64) as one SVG, one above the other on one scale of time: say, a step simulated and
 * recorded. UTF-8; a NUL ends it; the length is without the NUL. The timelines stay the caller's.
 */
dualpipe_status dualpipe_timeline_compare(const dualpipe_timeline_t *timelines,
                                          size_t count,
                                          char *text,
                                          size_t capacity,
                                          size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_timeline_summary: `dualpipe_timeline_summary x = DUALPIPE_TIMELINE_SUMMARY_INIT;` */
#define DUALPIPE_TIMELINE_SUMMARY_INIT { sizeof(dualpipe_timeline_summary), 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_TIMELINE_H */
