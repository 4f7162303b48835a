/*
 * Which placement: published schedules and planned ones on equal devices, with what each costs.
 *
 * The same model is cut into the stages of each placement: linear, V, bidirectional, and interleaved with 2, 3 and 4
 * stages on a rank. Of each there are the published schedules and a plan (plan.h), ranked by makespan; those that do
 * not fit the memory come behind, then those that these sizes do not admit. What makes them comparable: activations
 * are counted in those of one micro-batch on one num_ranks-th of the model, of which each of a rank's v stages keeps
 * 1/v; parameters in copies of the model, of which a bidirectional placement has two.
 *
 *     // The best schedule of all that keep to 9 activations on each rank.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status choose(const dualpipe_costs *costs, dualpipe_schedule_t *schedule) {
 *       const uint64_t cap = 9;
 *       dualpipe_comparison_options options = DUALPIPE_COMPARISON_OPTIONS_INIT;
 *       dualpipe_comparison_t comparison = NULL;
 *       dualpipe_status status;
 *       options.num_ranks = 8;
 *       options.num_microbatches = 20;
 *       options.cap_activations = &cap;
 *       options.num_cap_activations = 1;
 *       status = dualpipe_comparison_create(&options, costs, &comparison);
 *       if (status == DUALPIPE_OK) status = dualpipe_comparison_schedule(comparison, 0, schedule); // the best is first
 *       dualpipe_comparison_free(comparison);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_COMPARISON_H
#define DUALPIPE_COMPARISON_H

#include <stddef.h>
#include <stdint.h>
#include "cost.h"
#include "plan.h"
#include "schedule.h"
#include "schedule_verify.h"
#include "status.h"
#include "timeline.h"

/**
 * What a dualpipe_comparison_t points to: nothing that C could look into.
 */
typedef struct dualpipe_comparison dualpipe_comparison;

/**
 * A model and the devices to train it on, whatever the placement. Start from DUALPIPE_COMPARISON_OPTIONS_INIT.
 */
typedef struct dualpipe_comparison_options {
  /**
   * sizeof(dualpipe_comparison_options).
   */
  uint32_t size;
  /**
   * The ranks of the pipeline, P, 1 to 4096.
   */
  uint32_t num_ranks;
  /**
   * The micro-batches of a step, any number; times num_ranks at most 262144.
   */
  uint32_t num_microbatches;
  /**
   * Threads of the search: 0 for as many as there are cores, at most 4096. In a child of fork it is always 1.
   */
  uint32_t num_threads;
  /**
   * NULL, or how many activations may be alive at once, at least 1, counted in those of one micro-batch on one
   * num_ranks-th of the model: on each rank, or one entry for all.
   */
  const uint64_t *cap_activations;
  /**
   * How many there are: 1, or num_ranks; 0 without.
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
   * Changes that each plan tries. With iterations and without a time limit, the same options give the same schedules
   * on every machine. 0: as many as there is time for.
   */
  uint64_t iterations;
  /**
   * How long each plan may search, at most a day; 0: as long as the iterations take. Both 0: 2 seconds.
   */
  uint64_t time_limit_ns;
  /**
   * Another seed searches another way.
   */
  uint64_t seed;
} dualpipe_comparison_options;

/**
 * Schedules on several placements, ranked. It never changes: any number of threads may use it at once. It stays usable
 * after a fork. Free it with dualpipe_comparison_free.
 */
typedef struct dualpipe_comparison *dualpipe_comparison_t;

/**
 * A schedule that was compared. Start from DUALPIPE_CANDIDATE_INIT.
 */
typedef struct dualpipe_candidate {
  /**
   * sizeof(dualpipe_candidate).
   */
  uint32_t size;
  /**
   * How stages are placed: a dualpipe_placement_kind.
   */
  uint32_t placement;
  /**
   * Stages of the model for each rank: 1, of a V 2.
   */
  uint32_t stages_per_rank;
  /**
   * 1 if it was planned, 0 if it is a published one.
   */
  uint32_t is_planned;
  /**
   * 1 if it is possible; 0 if not, as dualpipe_comparison_reason says: then all that follows is 0.
   */
  uint32_t is_possible;
  /**
   * 1 if it keeps to the memory caps, otherwise 0.
   */
  uint32_t fits;
  /**
   * Copies of the model's parameters that there are: 1, or 2.
   */
  uint32_t parameter_copies;
  /**
   * Always 0.
   */
  uint32_t reserved;
  /**
   * How long a step takes.
   */
  uint64_t makespan_ns;
  /**
   * No schedule on this placement is faster; where this one fits, none that fits is.
   */
  uint64_t lower_bound_ns;
  /**
   * The bubble's share of the step, mean over ranks, 0 to 1.
   */
  double bubble_share;
  /**
   * Bytes of parameters, of the rank that has most.
   */
  uint64_t parameter_bytes;
  /**
   * The most activations alive at once on any rank, counted in those of one micro-batch on one num_ranks-th of the
   * model.
   */
  double peak_activations;
  /**
   * The most bytes that activations take on any rank.
   */
  uint64_t peak_activation_bytes;
  /**
   * Messages to other ranks, of the rank that sends most.
   */
  uint64_t sent_messages;
  /**
   * Bytes to other ranks, of the rank that sends most.
   */
  uint64_t sent_bytes;
  /**
   * By how many activations it exceeds their cap, on the rank where that is most; 0 if it fits, or bytes are capped.
   */
  double excess_activations;
  /**
   * By how many bytes it exceeds their cap, on the rank where that is most; 0 if it fits, or activations are capped.
   */
  uint64_t excess_bytes;
} dualpipe_candidate;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Compares schedules on several placements.
 *
 * costs: of the finest stages that the model is to be cut into, a multiple of num_ranks; or one entry, of one
 * num_ranks-th of the model. Stages put together add up, and those that are cut are cut evenly. Pairs say nothing of
 * other stages than their own: only a placement with as many stages can have them. Messages do not slow one another
 * down: what a placement sends is in its makespan only as latency and as its own time on a link.
 *
 * Iterations and time are those of each of 6 plans, one for each placement. Calls the progress callback with what is
 * done of all of them. If it asks to stop, the call succeeds: the plan at hand is the best so far, and later ones are
 * listed as not made.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT. What a placement does not admit is no error, but a candidate's reason.
 */
dualpipe_status dualpipe_comparison_create(const struct dualpipe_comparison_options *options,
                                           const dualpipe_costs *costs,
                                           dualpipe_comparison_t *comparison);

/**
 * Frees a comparison. NULL is fine.
 */
dualpipe_status dualpipe_comparison_free(dualpipe_comparison_t comparison);

/**
 * How many candidates there are, at least 1.
 */
dualpipe_status dualpipe_comparison_count(dualpipe_comparison_t comparison, uint32_t *count);

/**
 * A candidate, the best first: those that fit by makespan, then those that do not by makespan, then those that are not
 * possible. Of two that are equal, a published one comes before a planned one.
 */
dualpipe_status dualpipe_comparison_candidate(dualpipe_comparison_t comparison,
                                              uint32_t candidate,
                                              struct dualpipe_candidate *info);

/**
 * A candidate's name: of a published schedule such as "dualpipe_v", or "planned". A NUL ends it; the length is without
 * the NUL.
 */
dualpipe_status dualpipe_comparison_name(dualpipe_comparison_t comparison,
                                         uint32_t candidate,
                                         char *name,
                                         size_t capacity,
                                         size_t *length);

/**
 * Why a candidate is not possible; empty if it is. A NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_comparison_reason(dualpipe_comparison_t comparison,
                                           uint32_t candidate,
                                           char *reason,
                                           size_t capacity,
                                           size_t *length);

/**
 * A schedule of its own from a candidate. It is of its placement's stages: the costs of the comparison are of others.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for one that is not possible, with the reason.
 */
dualpipe_status dualpipe_comparison_schedule(dualpipe_comparison_t comparison,
                                             uint32_t candidate,
                                             dualpipe_schedule_t *schedule);

/**
 * A candidate as dualpipe_simulate plays it, with its placement's stages cut from the comparison's costs.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for one that is not possible, with the reason.
 */
dualpipe_status dualpipe_comparison_timeline(dualpipe_comparison_t comparison,
                                             uint32_t candidate,
                                             dualpipe_timeline_t *timeline);

/**
 * The table for people: a line for each candidate, the best first, and below the reasons of those that are not
 * possible. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_comparison_text(dualpipe_comparison_t comparison,
                                         char *text,
                                         size_t capacity,
                                         size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_comparison_options: `dualpipe_comparison_options x = DUALPIPE_COMPARISON_OPTIONS_INIT;` */
#define DUALPIPE_COMPARISON_OPTIONS_INIT { sizeof(dualpipe_comparison_options), 0, 0, 0, NULL, 0, NULL, 0, 0, 0, 0 }

/** Initializes a dualpipe_candidate: `dualpipe_candidate x = DUALPIPE_CANDIDATE_INIT;` */
#define DUALPIPE_CANDIDATE_INIT { sizeof(dualpipe_candidate), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_COMPARISON_H */
