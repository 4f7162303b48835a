/*
 * Loads of experts, counted step by step on many ranks, to plan placements of.
 *
 * A monitor keeps the tokens of each layer and expert for the last steps. Each rank may record what it sees;
 * monitors are merged in any order with the same result, to the byte, and saved and loaded.
 *
 *     // On each rank, after each step: what its slots got in all layers, as DeepEP's counters say, which only grow.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status after_step(dualpipe_load_monitor_t monitor, uint64_t step, const int64_t *slot_to_expert,
 *                                       const int32_t *counters, size_t num_counters) {
 *       uint32_t is_kept = 0;
 *       return dualpipe_load_monitor_record_cumulative(monitor, step, slot_to_expert, counters, num_counters,
 *                                                      &is_kept);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_LOAD_MONITOR_H
#define DUALPIPE_LOAD_MONITOR_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * What a dualpipe_load_monitor_t points to: nothing that C could look into.
 */
typedef struct dualpipe_load_monitor dualpipe_load_monitor;

/**
 * What a monitor keeps. Monitors that are to be merged have the same. Start from DUALPIPE_LOAD_MONITOR_OPTIONS_INIT.
 */
typedef struct dualpipe_load_monitor_options {
  /**
   * sizeof(dualpipe_load_monitor_options).
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
   * Step numbers that are kept: the newest and those less than this before it. At most 65536, and num_layers *
   * num_experts * window at most 2^28. 0 stands for 1000, as vLLM's, or as many as may be.
   */
  uint32_t window;
  /**
   * Reports that make a step complete: ranks, if each reports for itself, or 1, if one rank has all counts. At
   * most 65536; 0 stands for 1.
   */
  uint32_t num_ranks;
  /**
   * Must be 0.
   */
  uint32_t reserved;
  /**
   * Steps after which a load weighs half as much in DUALPIPE_LOADS_AVERAGE; above 0, also infinite. 0 stands for a
   * quarter of the window.
   */
  double half_life;
} dualpipe_load_monitor_options;

/**
 * Counts of the last steps. One thread at a time may use it: others get DUALPIPE_ERROR_BUSY. It stays usable after a
 * fork. Free it with dualpipe_load_monitor_free.
 */
typedef struct dualpipe_load_monitor *dualpipe_load_monitor_t;

/**
 * What a monitor is and has. Start from DUALPIPE_LOAD_MONITOR_INFO_INIT.
 */
typedef struct dualpipe_load_monitor_info {
  /**
   * sizeof(dualpipe_load_monitor_info).
   */
  uint32_t size;
  /**
   * MoE layers.
   */
  uint32_t num_layers;
  /**
   * Logical experts of a layer.
   */
  uint32_t num_experts;
  /**
   * Step numbers that are kept.
   */
  uint32_t window;
  /**
   * Reports that make a step complete.
   */
  uint32_t num_ranks;
  /**
   * Steps in the window with any report.
   */
  uint32_t num_steps;
  /**
   * Those of them with all.
   */
  uint32_t num_complete_steps;
  /**
   * Counters of a layer that dualpipe_load_monitor_record_cumulative has read; 0 if none.
   */
  uint32_t num_counters;
  /**
   * The newest step with a report; 0 if num_steps is.
   */
  uint64_t newest_step;
  /**
   * Steps after which a load weighs half as much.
   */
  double half_life;
} dualpipe_load_monitor_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates a monitor that has recorded nothing.
 */
dualpipe_status dualpipe_load_monitor_create(const struct dualpipe_load_monitor_options *options,
                                             dualpipe_load_monitor_t *monitor);

/**
 * Frees a monitor. NULL is fine.
 */
dualpipe_status dualpipe_load_monitor_free(dualpipe_load_monitor_t monitor);

/**
 * One report of a step, of all layers: num_layers rows of num_experts numbers of tokens. is_kept becomes 1, or 0 if
 * the step is older than the window and was left out.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a step of 2^63 or more, or one that has all its reports; nothing
 * is recorded then. So with the other ways to record.
 */
dualpipe_status dualpipe_load_monitor_record_logical(dualpipe_load_monitor_t monitor,
                                                     uint64_t step,
                                                     const uint32_t *counts,
                                                     size_t num_counts,
                                                     uint32_t *is_kept);

/**
 * One report of one layer of a step: num_experts numbers of tokens. A step's layers may come in any order.
 */
dualpipe_status dualpipe_load_monitor_record_layer(dualpipe_load_monitor_t monitor,
                                                   uint64_t step,
                                                   uint32_t layer,
                                                   const uint32_t *counts,
                                                   size_t num_counts,
                                                   uint32_t *is_kept);

/**
 * One report of a step from slots, a rank's own or all: num_layers rows of tokens of as many slots each, in all
 * num_counts, as DeepEP counts what it receives. They count for the experts that the slots hold: slot_to_expert, of
 * the same shape, -1 where there is none and no token.
 */
dualpipe_status dualpipe_load_monitor_record_physical(dualpipe_load_monitor_t monitor,
                                                      uint64_t step,
                                                      const int64_t *slot_to_expert,
                                                      const int32_t *counts,
                                                      size_t num_counts,
                                                      uint32_t *is_kept);

/**
 * dualpipe_load_monitor_record_physical from counters that only grow, such as DeepEP's
 * cumulative_local_expert_recv_stats: what they have grown by since this monitor last read them, or since they were
 * 0.
 *
 * A counter may run over, and grow by less than 2^31 between two readings. If one of a layer has fallen, the layer's
 * were set to 0 and are counted from there. If all have outgrown what they were before, that cannot be seen: see
 * dualpipe_load_monitor_set_counters.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for another number of counters than last time. The counters have not
 * been read then; a step that was left out has read them.
 */
dualpipe_status dualpipe_load_monitor_record_cumulative(dualpipe_load_monitor_t monitor,
                                                        uint64_t step,
                                                        const int64_t *slot_to_expert,
                                                        const int32_t *counters,
                                                        size_t num_counters,
                                                        uint32_t *is_kept);

/**
 * Says what the counters show now, of which nothing is to count; NULL and 0: they have been set to 0, and there may
 * be another number of them from now on.
 *
 * A saved state has the last reading. After a restart, counters that have outlived it go on without being counted
 * twice. Counters that began at 0 again, as those in a process that ended do, need this call with NULL.
 */
dualpipe_status dualpipe_load_monitor_set_counters(dualpipe_load_monitor_t monitor,
                                                   const int32_t *counters,
                                                   size_t num_counters);

/**
 * Adds what another monitor, made with the same options, has recorded; it stays as it is. Any order of merging and
 * recording comes to the same. The readings of counters are not merged: each monitor keeps its own.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if a step would have more reports than ranks, as after merging a
 * monitor twice; nothing has changed then.
 */
dualpipe_status dualpipe_load_monitor_merge(dualpipe_load_monitor_t monitor,
                                            dualpipe_load_monitor_t other);

/**
 * Says what a monitor is and has.
 */
dualpipe_status dualpipe_load_monitor_describe(dualpipe_load_monitor_t monitor,
                                               struct dualpipe_load_monitor_info *info);

/**
 * The state, from which dualpipe_load_monitor_load makes the same monitor, also on another machine; equal monitors
 * have equal bytes. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_monitor_save(dualpipe_load_monitor_t monitor,
                                           uint8_t *bytes,
                                           size_t capacity,
                                           size_t *count);

/**
 * Creates a monitor from a saved state.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for bytes of something else, of another version, damaged, or cut off.
 */
dualpipe_status dualpipe_load_monitor_load(const uint8_t *bytes,
                                           size_t num_bytes,
                                           dualpipe_load_monitor_t *monitor);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_load_monitor_options:
 * `dualpipe_load_monitor_options x = DUALPIPE_LOAD_MONITOR_OPTIONS_INIT;` */
#define DUALPIPE_LOAD_MONITOR_OPTIONS_INIT { sizeof(dualpipe_load_monitor_options), 0, 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_load_monitor_info: `dualpipe_load_monitor_info x = DUALPIPE_LOAD_MONITOR_INFO_INIT;` */
#define DUALPIPE_LOAD_MONITOR_INFO_INIT { sizeof(dualpipe_load_monitor_info), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_LOAD_MONITOR_H */
