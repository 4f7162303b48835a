/*
 * What a monitor has counted (load_monitor.h): loads to balance, which steps are there, how balanced they are.
 *
 *     // On one rank, now and then: the states of all ranks, sent in whatever way, become loads for
 *     // dualpipe_expert_plan_balance.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status loads_of_all(dualpipe_load_monitor_t sum, const uint8_t *const *states,
 *                                         const size_t *lengths, size_t num_ranks, float *loads, size_t capacity,
 *                                         size_t *count) {
 *       dualpipe_status status = DUALPIPE_OK;
 *       for (size_t rank = 0; rank < num_ranks && status == DUALPIPE_OK; rank++) {
 *         dualpipe_load_monitor_t one = NULL;
 *         status = dualpipe_load_monitor_load(states[rank], lengths[rank], &one);
 *         if (status == DUALPIPE_OK) status = dualpipe_load_monitor_merge(sum, one);
 *         dualpipe_load_monitor_free(one);
 *       }
 *       if (status != DUALPIPE_OK) return status;
 *       return dualpipe_load_monitor_loads(sum, DUALPIPE_REPORTED_BY_ALL_RANKS, DUALPIPE_LOADS_AVERAGE, loads,
 *                                          capacity, count);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_MONITOR_LOADS_H
#define DUALPIPE_MONITOR_LOADS_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "load_monitor.h"
#include "status.h"

/**
 * Which steps of a window are asked for.
 */
enum dualpipe_reported
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Those with num_ranks reports of each layer.
   */
  DUALPIPE_REPORTED_BY_ALL_RANKS = 1,
  /**
   * Those with any report. Where ranks report their own slots, experts of absent ranks look idle in these.
   */
  DUALPIPE_REPORTED_BY_ANY = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_reported dualpipe_reported;
#else
typedef uint32_t dualpipe_reported;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What becomes of the steps.
 */
enum dualpipe_monitor_loads
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Their tokens: num_layers rows of num_experts numbers.
   */
  DUALPIPE_LOADS_SUM = 1,
  /**
   * Tokens per step, alike, averaged with weights that halve with each half_life of steps before the newest.
   */
  DUALPIPE_LOADS_AVERAGE = 2,
  /**
   * The tokens of each step, one step after the other in order of their numbers.
   */
  DUALPIPE_LOADS_STEPS = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_monitor_loads dualpipe_monitor_loads;
#else
typedef uint32_t dualpipe_monitor_loads;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The loads of the steps asked for (reported: a dualpipe_reported), summed, averaged or one by one (kind: a
 * dualpipe_monitor_loads); 0 where there is no such step. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * The average is computed from the window's integers, so that it too does not depend on the order of merging. A step
 * that is missing has no weight.
 */
dualpipe_status dualpipe_load_monitor_loads(dualpipe_load_monitor_t monitor,
                                            uint32_t reported,
                                            uint32_t kind,
                                            float *loads,
                                            size_t capacity,
                                            size_t *count);

/**
 * The tokens of the steps asked for (a dualpipe_reported), exactly: num_layers rows of num_experts numbers. Buffers
 * are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_monitor_counts(dualpipe_load_monitor_t monitor,
                                             uint32_t reported,
                                             uint64_t *counts,
                                             size_t capacity,
                                             size_t *count);

/**
 * The numbers of the steps asked for (a dualpipe_reported), in order. Buffers are filled as dualpipe.h says under
 * "Buffers".
 */
dualpipe_status dualpipe_load_monitor_step_numbers(dualpipe_load_monitor_t monitor,
                                                   uint32_t reported,
                                                   uint64_t *steps,
                                                   size_t capacity,
                                                   size_t *count);

/**
 * The steps that have a report but not all, in order. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_monitor_incomplete_steps(dualpipe_load_monitor_t monitor,
                                                       uint64_t *steps,
                                                       size_t capacity,
                                                       size_t *count);

/**
 * How many reports there are of a step, for each layer; 0 of a step that is not in the window. Buffers are filled as
 * dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_monitor_reports(dualpipe_load_monitor_t monitor,
                                              uint64_t step,
                                              uint32_t *reports,
                                              size_t capacity,
                                              size_t *count);

/**
 * How balanced the steps asked for (a dualpipe_reported) are on the GPUs of a placement, as vLLM logs it: the mean
 * GPU's load / the greatest, 0 where there is no load. overall: the sum over layers of the means / that of the
 * greatest; layers: of each layer.
 *
 * slot_to_expert: num_layers rows of the cluster's slots, -1 where there is no expert, in all num_slots. shares:
 * NULL for an equal split, or as many numbers. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_monitor_balancedness(dualpipe_load_monitor_t monitor,
                                                   uint32_t reported,
                                                   const dualpipe_cluster *cluster,
                                                   const int64_t *slot_to_expert,
                                                   const double *shares,
                                                   size_t num_slots,
                                                   double *overall,
                                                   double *layers,
                                                   size_t capacity,
                                                   size_t *count);

/**
 * The same of loads of GPUs, however they came about: rows of the cluster's num_gpus numbers, 0 to 1e100, in all
 * num_gpu_loads, a row for each layer. Dead GPUs do not count.
 */
dualpipe_status dualpipe_expert_balancedness(const dualpipe_cluster *cluster,
                                             const double *gpu_loads,
                                             size_t num_gpu_loads,
                                             double *overall,
                                             double *layers,
                                             size_t capacity,
                                             size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_MONITOR_LOADS_H */
