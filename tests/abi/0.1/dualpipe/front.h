/*
 * Memory against time: the best schedule within each of several memory caps, beside what no schedule can beat.
 *
 * One plan for each cap, as of plan.h. A schedule that keeps to a cap keeps to every larger one, and a bound that
 * holds within a cap holds within every smaller one: along a front neither makespan nor bound ever rises.
 *
 *     // What fewer activations cost: a line for each cap from 4 to 9. Free the front with dualpipe_front_free.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static dualpipe_status print_front(const dualpipe_plan_options *options, const dualpipe_costs *costs,
 *                                        dualpipe_front_t *front) {
 *       const uint64_t caps[] = {4, 5, 6, 7, 8, 9};
 *       dualpipe_status status = dualpipe_front_create(options, costs, DUALPIPE_MEMORY_ACTIVATIONS, caps, 6, front);
 *       for (uint32_t i = 0; status == DUALPIPE_OK && i < 6; i++) {
 *         dualpipe_front_point point = DUALPIPE_FRONT_POINT_INIT;
 *         status = dualpipe_front_describe_point(*front, i, &point);
 *         if (status == DUALPIPE_OK) printf("%d: %.3f ms\n", (int)point.cap, point.makespan_ns / 1e6);
 *       }
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_FRONT_H
#define DUALPIPE_FRONT_H

#include <stddef.h>
#include <stdint.h>
#include "cost.h"
#include "plan.h"
#include "schedule.h"
#include "status.h"

/**
 * What memory is counted in.
 */
enum dualpipe_memory_unit
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Micro-batch activations alive at once, as dualpipe_schedule_check counts them.
   */
  DUALPIPE_MEMORY_ACTIVATIONS = 1,
  /**
   * Bytes, parameters included, as dualpipe_timeline_ranks counts them.
   */
  DUALPIPE_MEMORY_BYTES = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_memory_unit dualpipe_memory_unit;
#else
typedef uint32_t dualpipe_memory_unit;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a front can be drawn as.
 */
enum dualpipe_front_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * A table for a terminal, a line for each cap and each published schedule, with a bar from bound to makespan.
   */
  DUALPIPE_FRONT_TEXT = 1,
  /**
   * A self-contained SVG: makespan over memory as steps, bounds as a line below, published schedules as named dots.
   */
  DUALPIPE_FRONT_SVG = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_front_format dualpipe_front_format;
#else
typedef uint32_t dualpipe_front_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_front_t points to: nothing that C could look into.
 */
typedef struct dualpipe_front dualpipe_front;

/**
 * Plans within several memory caps. It never changes: any number of threads may use it at once. It stays usable after
 * a fork. Free it with dualpipe_front_free.
 */
typedef struct dualpipe_front *dualpipe_front_t;

/**
 * What a front is. Start from DUALPIPE_FRONT_INFO_INIT.
 */
typedef struct dualpipe_front_info {
  /**
   * sizeof(dualpipe_front_info).
   */
  uint32_t size;
  /**
   * A dualpipe_memory_unit.
   */
  uint32_t unit;
  /**
   * Points: one for each cap.
   */
  uint32_t num_points;
  /**
   * Published schedules beside them.
   */
  uint32_t num_published;
  /**
   * 1 if the progress callback stopped it: then some points were not searched for. Otherwise 0.
   */
  uint32_t is_stopped;
  /**
   * Always 0.
   */
  uint32_t reserved;
} dualpipe_front_info;

/**
 * The best schedule within a cap, which is the same for all ranks. Start from DUALPIPE_FRONT_POINT_INIT.
 */
typedef struct dualpipe_front_point {
  /**
   * sizeof(dualpipe_front_point).
   */
  uint32_t size;
  /**
   * Always 0.
   */
  uint32_t reserved;
  /**
   * Activations or bytes.
   */
  uint64_t cap;
  /**
   * What the rank that keeps most keeps at once, in the same unit.
   */
  uint64_t peak;
  /**
   * How long a step takes.
   */
  uint64_t makespan_ns;
  /**
   * No schedule on this placement that keeps to the cap is faster.
   */
  uint64_t lower_bound_ns;
} dualpipe_front_point;

/**
 * A published schedule beside a front.
 */
typedef struct dualpipe_front_published {
  /**
   * What the rank that keeps most keeps at once, in the front's unit.
   */
  uint64_t peak;
  /**
   * How long a step takes.
   */
  uint64_t makespan_ns;
} dualpipe_front_published;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Plans within each of several memory caps.
 *
 * options: as for dualpipe_plan_create, but without caps: those are `caps`, 1 to 256 of them, rising, of a
 * dualpipe_memory_unit, each the same for all ranks. NULL and 0 for all: at most 24, evenly, from one micro-batch of
 * each direction at a time to where more gains nothing. Iterations and time are those of each plan; for caps that are
 * not given there is one plan more, without a cap.
 *
 * Calls the progress callback with what is done of all plans. If it asks to stop, the call succeeds: each point has
 * the best that was found until then, and dualpipe_front_describe says that it was stopped.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a cap that no schedule keeps to.
 */
dualpipe_status dualpipe_front_create(const dualpipe_plan_options *options,
                                      const dualpipe_costs *costs,
                                      uint32_t unit,
                                      const uint64_t *caps,
                                      size_t num_caps,
                                      dualpipe_front_t *front);

/**
 * Frees a front. NULL is fine.
 */
dualpipe_status dualpipe_front_free(dualpipe_front_t front);

/**
 * What a front is: its unit and how much it has.
 */
dualpipe_status dualpipe_front_describe(dualpipe_front_t front, struct dualpipe_front_info *info);

/**
 * A point: `point` is 0 to num_points - 1, the smallest cap first.
 */
dualpipe_status dualpipe_front_describe_point(dualpipe_front_t front,
                                              uint32_t point,
                                              struct dualpipe_front_point *info);

/**
 * The name of what the search that found a point's schedule began with, as of dualpipe_plan_started_from. A NUL ends
 * it; the length is without the NUL.
 */
dualpipe_status dualpipe_front_started_from(dualpipe_front_t front,
                                            uint32_t point,
                                            char *name,
                                            size_t capacity,
                                            size_t *length);

/**
 * A schedule of its own from a point: what was found within its cap, as of dualpipe_plan_schedule.
 */
dualpipe_status dualpipe_front_schedule(dualpipe_front_t front,
                                        uint32_t point,
                                        dualpipe_schedule_t *schedule);

/**
 * The published schedules that are possible, whether they fit a cap or not, by memory. Buffers are filled as
 * dualpipe.h says under "Buffers"; the count is num_published.
 */
dualpipe_status dualpipe_front_published_schedules(dualpipe_front_t front,
                                                   struct dualpipe_front_published *published,
                                                   size_t capacity,
                                                   size_t *count);

/**
 * The name of a published schedule, 0 to num_published - 1, such as "dualpipe_v". A NUL ends it; the length is without
 * the NUL.
 */
dualpipe_status dualpipe_front_published_name(dualpipe_front_t front,
                                              uint32_t published,
                                              char *name,
                                              size_t capacity,
                                              size_t *length);

/**
 * Draws a front. format: a dualpipe_front_format. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_front_draw(dualpipe_front_t front,
                                    uint32_t format,
                                    char *text,
                                    size_t capacity,
                                    size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_front_info: `dualpipe_front_info x = DUALPIPE_FRONT_INFO_INIT;` */
#define DUALPIPE_FRONT_INFO_INIT { sizeof(dualpipe_front_info), 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_front_point: `dualpipe_front_point x = DUALPIPE_FRONT_POINT_INIT;` */
#define DUALPIPE_FRONT_POINT_INIT { sizeof(dualpipe_front_point), 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_FRONT_H */
