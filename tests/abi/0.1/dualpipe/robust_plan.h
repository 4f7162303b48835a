/*
 * Robust plans: the schedule that is best when times spread, as clocks jitter and experts are unevenly loaded.
 *
 * A step never runs at its mean costs, and where ranks wait for one another the slowest counts: the mean makespan is
 * above the makespan of the mean. A robust plan is a plan (plan.h), searched on seeded samples.
 *
 *     // The mean over samples in which each op varies by 5 % and each micro-batch at a stage by 20 %.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static dualpipe_status plan(const dualpipe_plan_options *options, const dualpipe_costs *costs,
 *                                 dualpipe_plan_t *made) {
 *       dualpipe_spread spread = DUALPIPE_SPREAD_INIT;
 *       dualpipe_sampled sampled = DUALPIPE_SAMPLED_INIT;
 *       spread.op_jitter = 0.05;
 *       spread.expert_imbalance = 0.2;
 *       spread.samples = 64;
 *       dualpipe_status status = dualpipe_plan_create_robust(options, costs, &spread, DUALPIPE_OBJECTIVE_MEAN, made);
 *       if (status == DUALPIPE_OK) status = dualpipe_plan_sampled(*made, DUALPIPE_SAMPLED_PLAN, &sampled);
 *       if (status == DUALPIPE_OK) printf("%.1f us to be expected\n", sampled.held_out_mean_ns / 1e3);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_ROBUST_PLAN_H
#define DUALPIPE_ROBUST_PLAN_H

#include <stddef.h>
#include <stdint.h>
#include "cost.h"
#include "plan.h"
#include "status.h"

/**
 * What of the makespans on samples is made small.
 */
enum dualpipe_plan_objective
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Their mean.
   */
  DUALPIPE_OBJECTIVE_MEAN = 1,
  /**
   * The least that 95 of 100 do not exceed.
   */
  DUALPIPE_OBJECTIVE_P95 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_plan_objective dualpipe_plan_objective;
#else
typedef uint32_t dualpipe_plan_objective;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which schedule was played on samples.
 */
enum dualpipe_sampled_schedule
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The plan's.
   */
  DUALPIPE_SAMPLED_PLAN = 1,
  /**
   * That of a plan without a spread, which the search began with.
   */
  DUALPIPE_SAMPLED_WITHOUT_SPREAD = 2,
  /**
   * The published one with the lowest objective of those that are possible and keep to the cap.
   */
  DUALPIPE_SAMPLED_PUBLISHED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_sampled_schedule dualpipe_sampled_schedule;
#else
typedef uint32_t dualpipe_sampled_schedule;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How far the times of ops spread about their costs. Start from DUALPIPE_SPREAD_INIT.
 *
 * Factors of mean 1 are drawn from what is close to a normal distribution, kept between 0.1 and 10. Messages do not
 * spread.
 */
typedef struct dualpipe_spread {
  /**
   * sizeof(dualpipe_spread).
   */
  uint32_t size;
  /**
   * Samples to search on, 1 to 1024, and with the passes of a step at most 4194304. As many others are held out.
   */
  uint32_t samples;
  /**
   * Relative standard deviation of each F, each I and each W, 0 to 1.
   */
  double op_jitter;
  /**
   * Relative standard deviation of what a micro-batch takes at a stage, 0 to 1: its F, I and W alike, as uneven
   * experts make it.
   */
  double expert_imbalance;
  /**
   * Another seed draws other samples.
   */
  uint64_t seed;
} dualpipe_spread;

/**
 * What a schedule takes when times spread. Start from DUALPIPE_SAMPLED_INIT.
 */
typedef struct dualpipe_sampled {
  /**
   * sizeof(dualpipe_sampled).
   */
  uint32_t size;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Without a spread.
   */
  uint64_t nominal_ns;
  /**
   * Mean over the samples that were searched on.
   */
  uint64_t mean_ns;
  /**
   * Of those: the least that 95 of 100 do not exceed.
   */
  uint64_t p95_ns;
  /**
   * Of those: the shortest.
   */
  uint64_t min_ns;
  /**
   * Of those: the longest.
   */
  uint64_t max_ns;
  /**
   * Mean over as many samples that the search never saw: what to expect.
   */
  uint64_t held_out_mean_ns;
  /**
   * Of these: the least that 95 of 100 do not exceed.
   */
  uint64_t held_out_p95_ns;
  /**
   * Of these: the shortest.
   */
  uint64_t held_out_min_ns;
  /**
   * Of these: the longest.
   */
  uint64_t held_out_max_ns;
} dualpipe_sampled;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Plans for times that spread: the schedule of least objective, a dualpipe_plan_objective, on seeded samples. Half of
 * the effort plans without a spread; on the samples the result is never worse than that, nor than any published
 * schedule. Progress and its callback as of dualpipe_plan_create.
 *
 * Errors: those of dualpipe_plan_create; a spread that is not in its ranges; times that all together exceed
 * 9 * 10^14 ns.
 */
dualpipe_status dualpipe_plan_create_robust(const dualpipe_plan_options *options,
                                            const dualpipe_costs *costs,
                                            const struct dualpipe_spread *spread,
                                            uint32_t objective,
                                            dualpipe_plan_t *plan);

/**
 * What a schedule, a dualpipe_sampled_schedule, takes on the samples of a plan with a spread.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a plan without one, and for the published schedule where none is
 * possible.
 */
dualpipe_status dualpipe_plan_sampled(dualpipe_plan_t plan,
                                      uint32_t which,
                                      struct dualpipe_sampled *sampled);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_spread: `dualpipe_spread x = DUALPIPE_SPREAD_INIT;` */
#define DUALPIPE_SPREAD_INIT { sizeof(dualpipe_spread), 0, 0, 0, 0 }

/** Initializes a dualpipe_sampled: `dualpipe_sampled x = DUALPIPE_SAMPLED_INIT;` */
#define DUALPIPE_SAMPLED_INIT { sizeof(dualpipe_sampled), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_ROBUST_PLAN_H */
