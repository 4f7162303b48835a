/*
 * Loads of GPUs: of any placement under any loads, and as a picture.
 *
 *     // Draws what two placements of one layer make of the same loads: 8 experts in 12 slots on 4 GPUs.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status draw(const dualpipe_cluster *cluster, const int64_t before[12], const int64_t after[12],
 *                                 const float loads[8], char *svg, size_t capacity, size_t *length) {
 *       double gpus[2][4];
 *       dualpipe_heat_map_panel panels[2] = {{"before", NULL, NULL, 4}, {"after", NULL, NULL, 4}};
 *       size_t count = 0;
 *       dualpipe_status status;
 *       panels[0].cluster = panels[1].cluster = cluster;
 *       panels[0].loads = gpus[0];
 *       panels[1].loads = gpus[1];
 *       status = dualpipe_expert_gpu_loads(cluster, 8, before, NULL, 12, loads, 8, gpus[0], 4, &count);
 *       if (status == DUALPIPE_OK)
 *         status = dualpipe_expert_gpu_loads(cluster, 8, after, NULL, 12, loads, 8, gpus[1], 4, &count);
 *       if (status == DUALPIPE_OK)
 *         status = dualpipe_heat_map(panels, 2, DUALPIPE_HEAT_MAP_SVG, svg, capacity, length);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_HEAT_MAP_H
#define DUALPIPE_HEAT_MAP_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * What a heat map can be drawn as.
 */
enum dualpipe_heat_map_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Text for a terminal, in at most 100 columns; the height of a block is a GPU's load.
   */
  DUALPIPE_HEAT_MAP_TEXT = 1,
  /**
   * A self-contained SVG; hovering over a row names its layer and its heaviest GPU.
   */
  DUALPIPE_HEAT_MAP_SVG = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_heat_map_format dualpipe_heat_map_format;
#else
typedef uint32_t dualpipe_heat_map_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The loads of one placement's GPUs.
 */
typedef struct dualpipe_heat_map_panel {
  /**
   * What it shows, in one line: UTF-8, NUL-terminated, of which at most 1023 bytes count.
   */
  const char *title;
  /**
   * Whose nodes are separated by lines, and whose dead GPUs are grey.
   */
  const dualpipe_cluster *cluster;
  /**
   * 1 to 4096 rows of the cluster's num_gpus numbers, as of dualpipe_expert_gpu_loads.
   */
  const double *loads;
  /**
   * How many numbers `loads` has.
   */
  size_t num_loads;
} dualpipe_heat_map_panel;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The load of each GPU under a placement: num_layers rows of the cluster's num_gpus numbers, 0 on dead ones.
 *
 * slot_to_expert: num_layers rows of the cluster's slots, -1 where there is no expert, in all num_slots. shares: NULL
 * for an equal split, or as many numbers. loads: num_layers rows of num_experts, in all num_loads, which says how
 * many layers there are. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also where a load would get lost: an expert that has load and no live
 * slot, or shares that do not sum to 1.
 */
dualpipe_status dualpipe_expert_gpu_loads(const dualpipe_cluster *cluster,
                                          uint32_t num_experts,
                                          const int64_t *slot_to_expert,
                                          const double *shares,
                                          size_t num_slots,
                                          const float *loads,
                                          size_t num_loads,
                                          double *gpu_loads,
                                          size_t capacity,
                                          size_t *count);

/**
 * The load of each node, num_layers rows, from those of the GPUs: num_layers rows of the cluster's num_gpus numbers,
 * in all num_gpu_loads. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_node_loads(const dualpipe_cluster *cluster,
                                           const double *gpu_loads,
                                           size_t num_gpu_loads,
                                           double *node_loads,
                                           size_t capacity,
                                           size_t *count);

/**
 * Draws GPU loads: a row for each layer, a column for each GPU; the colour, or the height of a block, says how far
 * from the layer's mean. 1 to 16 panels beside each other (in text, below each other) have one scale, for before and
 * after.
 *
 * format: a dualpipe_heat_map_format. Of more than 128 layers or 256 GPUs (in text 64 and about 80), a cell is the
 * heaviest of several, and the picture says of how many. UTF-8; a NUL ends it; the length is without the NUL.
 */
dualpipe_status dualpipe_heat_map(const struct dualpipe_heat_map_panel *panels,
                                  size_t num_panels,
                                  uint32_t format,
                                  char *text,
                                  size_t capacity,
                                  size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_HEAT_MAP_H */
