/*
 * Plans: the best schedule that can be found for given costs and memory, beside what no schedule can beat.
 *
 * The search starts from the best published schedule that is possible on the placement and keeps to the memory cap, so
 * that a plan is never slower. docs/planning.md says how it searches, and how good plans are.
 *
 *     // For 8 ranks in two directions, 20 micro-batches, at most 9 activations on each rank: 2 seconds of search.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static dualpipe_status plan(const dualpipe_costs *costs, dualpipe_schedule_t *schedule) {
 *       const uint64_t cap = 9;
 *       dualpipe_plan_options options = DUALPIPE_PLAN_OPTIONS_INIT;
 *       dualpipe_plan_info info = DUALPIPE_PLAN_INFO_INIT;
 *       dualpipe_plan_t made = NULL;
 *       options.placement = DUALPIPE_PLACEMENT_BIDIRECTIONAL;
 *       options.num_ranks = 8;
 *       options.num_microbatches = 20;
 *       options.cap_activations = &cap;
 *       options.num_cap_activations = 1; // one entry: every rank's
 *       dualpipe_status status = dualpipe_plan_create(&options, costs, &made);
 *       if (status != DUALPIPE_OK) return status;
 *       status = dualpipe_plan_describe(made, &info);
 *       if (status == DUALPIPE_OK) {
 *         printf("%llu ns, gap %.2f %%\n", (unsigned long long)info.makespan_ns, 100 * info.gap);
 *         status = dualpipe_plan_schedule(made, schedule); // an object of its own
 *       }
 *       dualpipe_plan_free(made);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_PLAN_H
#define DUALPIPE_PLAN_H

#include <stddef.h>
#include <stdint.h>
#include "cost.h"
#include "schedule.h"
#include "status.h"

/**
 * Which rank holds which stages. P is the number of ranks.
 */
enum dualpipe_placement_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Stage r on rank r.
   */
  DUALPIPE_PLACEMENT_LINEAR = 1,
  /**
   * Stages r and 2P-1-r on rank r: down the ranks and back up.
   */
  DUALPIPE_PLACEMENT_V = 2,
  /**
   * Stages r, r+P, r+2P ... on rank r: stages_per_rank of them.
   */
  DUALPIPE_PLACEMENT_INTERLEAVED = 3,
  /**
   * Stage r of direction 0 and stage P-1-r of direction 1 on rank r: two copies of the parameters.
   */
  DUALPIPE_PLACEMENT_BIDIRECTIONAL = 4,
  /**
   * As rank_of says.
   */
  DUALPIPE_PLACEMENT_CUSTOM = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_placement_kind dualpipe_placement_kind;
#else
typedef uint32_t dualpipe_placement_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why a search ended.
 */
enum dualpipe_plan_stop
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * It found what no schedule can beat.
   */
  DUALPIPE_STOP_OPTIMAL = 1,
  /**
   * All iterations were made.
   */
  DUALPIPE_STOP_ITERATIONS = 2,
  /**
   * The time was up.
   */
  DUALPIPE_STOP_TIME = 3,
  /**
   * The progress callback asked for it.
   */
  DUALPIPE_STOP_CANCELLED = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_plan_stop dualpipe_plan_stop;
#else
typedef uint32_t dualpipe_plan_stop;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_plan_t points to: nothing that C could look into.
 */
typedef struct dualpipe_plan dualpipe_plan;

/**
 * What to plan for: a training step. Start from DUALPIPE_PLAN_OPTIONS_INIT.
 */
typedef struct dualpipe_plan_options {
  /**
   * sizeof(dualpipe_plan_options).
   */
  uint32_t size;
  /**
   * A dualpipe_placement_kind.
   */
  uint32_t placement;
  /**
   * The ranks of the pipeline, 1 to 4096.
   */
  uint32_t num_ranks;
  /**
   * The micro-batches of a step, both directions together: any number from 1 on, odd too; at most as of
   * dualpipe_schedule_options.
   */
  uint32_t num_microbatches;
  /**
   * Of DUALPIPE_PLACEMENT_INTERLEAVED: stages on each rank, at least 1. Otherwise 0.
   */
  uint32_t stages_per_rank;
  /**
   * Of DUALPIPE_PLACEMENT_CUSTOM: stages of the model, 1 to 8192. Otherwise 0.
   */
  uint32_t num_stages;
  /**
   * Of DUALPIPE_PLACEMENT_CUSTOM: 1, or 2 for two copies of each stage. Otherwise 0.
   */
  uint32_t num_directions;
  /**
   * Threads, at most 4096; 0 is as many as there are cores. With a limit of iterations the plan is the same. In a
   * child of fork it is always 1.
   */
  uint32_t num_threads;
  /**
   * Of DUALPIPE_PLACEMENT_CUSTOM: the rank of each stage, num_directions rows of num_stages. Otherwise NULL.
   */
  const uint32_t *rank_of;
  /**
   * NULL, or how many micro-batch activations may be alive at once, at least 1: on each rank, or one entry for all.
   */
  const uint64_t *cap_activations;
  /**
   * How many there are: 1, or the number of ranks; 0 without.
   */
  size_t num_cap_activations;
  /**
   * NULL, or how many bytes each rank may keep, parameters included, at most 2^50; likewise. Only one of the caps
   * may be there.
   */
  const uint64_t *cap_bytes;
  /**
   * How many there are; 0 without.
   */
  size_t num_cap_bytes;
  /**
   * Changes to try. With iterations and without a time limit, the same options give the same plan on every machine.
   * 0: as many as there is time for.
   */
  uint64_t iterations;
  /**
   * How long the search may take, at most a day; 0: as long as the iterations take. It looks at the clock every few
   * milliseconds; the first schedules and the lower bound come before, and are not cut short. Both 0: 2 seconds.
   */
  uint64_t time_limit_ns;
  /**
   * Another seed searches another way.
   */
  uint64_t seed;
} dualpipe_plan_options;

/**
 * A schedule that was planned, and how good it is. It never changes: any number of threads may use it at once. It
 * stays usable after a fork. Free it with dualpipe_plan_free.
 */
typedef struct dualpipe_plan *dualpipe_plan_t;

/**
 * How good a plan is. Start from DUALPIPE_PLAN_INFO_INIT.
 */
typedef struct dualpipe_plan_info {
  /**
   * sizeof(dualpipe_plan_info).
   */
  uint32_t size;
  /**
   * Ranks of the pipeline.
   */
  uint32_t num_ranks;
  /**
   * A dualpipe_plan_stop.
   */
  uint32_t stop;
  /**
   * A dualpipe_plan_objective (robust_plan.h); 0 if it was planned without a spread.
   */
  uint32_t objective;
  /**
   * How long a step takes, as dualpipe_simulate says.
   */
  uint64_t makespan_ns;
  /**
   * No schedule on this placement that keeps to the cap takes less; of a plan with a spread, none has a lower
   * objective on the samples.
   */
  uint64_t lower_bound_ns;
  /**
   * How long the schedule of dualpipe_plan_started_from takes.
   */
  uint64_t start_makespan_ns;
  /**
   * Changes that were tried; with a spread each counts for every sample.
   */
  uint64_t iterations;
  /**
   * The makespan, or with a spread the objective on the samples, divided by the lower bound, less 1. 0: proven to be
   * the best; infinite if only the lower bound is 0.
   */
  double gap;
} dualpipe_plan_info;

/**
 * The most that a rank keeps at once.
 */
typedef struct dualpipe_plan_peak {
  /**
   * Micro-batch activations, as dualpipe_schedule_check counts them.
   */
  uint64_t live;
  /**
   * Bytes, parameters included.
   */
  uint64_t memory_bytes;
} dualpipe_plan_peak;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Plans: finds the best schedule for training that it can within the limits of `options`. It is never slower than the
 * best published one that is possible on the placement and keeps to the cap.
 *
 * Calls the progress callback about every few milliseconds, with iterations of iterations, or nanoseconds of the time
 * limit where only that is given. If the callback asks to stop, the call succeeds with the best so far, and the plan's
 * `stop` says so.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for costs of another number of stages, and for a cap that not even one
 * micro-batch after the other keeps to. Memory: proportional to the ops times the threads of the search.
 */
dualpipe_status dualpipe_plan_create(const struct dualpipe_plan_options *options,
                                     const dualpipe_costs *costs,
                                     dualpipe_plan_t *plan);

/**
 * Frees a plan. NULL is fine. A schedule that was taken from it stays.
 */
dualpipe_status dualpipe_plan_free(dualpipe_plan_t plan);

/**
 * Says how good a plan is.
 */
dualpipe_status dualpipe_plan_describe(dualpipe_plan_t plan, struct dualpipe_plan_info *info);

/**
 * The name of the schedule that the search began with: the best published one that is possible and keeps to the cap,
 * such as "dualpipe_v"; "constructed" where there is none, or, of a plan with a spread, "planned" for the one without.
 * A NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_plan_started_from(dualpipe_plan_t plan,
                                           char *name,
                                           size_t capacity,
                                           size_t *length);

/**
 * The most that each rank keeps at once; the count is num_ranks. Buffers are filled as dualpipe.h says under
 * "Buffers".
 */
dualpipe_status dualpipe_plan_peaks(dualpipe_plan_t plan,
                                    struct dualpipe_plan_peak *peaks,
                                    size_t capacity,
                                    size_t *count);

/**
 * The schedule of a plan, as an object of its own: DUALPIPE_KIND_CUSTOM, or of its kind if nothing better was found
 * than a published one. Free it with dualpipe_schedule_free.
 */
dualpipe_status dualpipe_plan_schedule(dualpipe_plan_t plan,
                                       dualpipe_schedule_t *schedule);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_plan_options: `dualpipe_plan_options x = DUALPIPE_PLAN_OPTIONS_INIT;` */
#define DUALPIPE_PLAN_OPTIONS_INIT \
  { sizeof(dualpipe_plan_options), 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, NULL, 0, 0, 0, 0 }

/** Initializes a dualpipe_plan_info: `dualpipe_plan_info x = DUALPIPE_PLAN_INFO_INIT;` */
#define DUALPIPE_PLAN_INFO_INIT { sizeof(dualpipe_plan_info), 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_PLAN_H */
