/*
 * Placements and counts as other engines have them: vllm-ascend's expert map, SGLang's counts of slots.
 *
 *     // Reads what vllm-ascend's expert_map_record_path wrote: experts of slots, to plan from, and the slots of each
 *     // GPU for a dualpipe_cluster.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status read_map(const char *text, size_t num_bytes, int64_t *experts, size_t num_slots,
 *                                     uint32_t *slots_per_gpu, size_t num_gpus) {
 *       size_t count = 0;
 *       dualpipe_status status = dualpipe_expert_map_read_slots(text, num_bytes, experts, num_slots, &count);
 *       if (status == DUALPIPE_OK)
 *         status = dualpipe_expert_map_read_gpus(text, num_bytes, slots_per_gpu, num_gpus, &count);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_EXPERT_MAP_H
#define DUALPIPE_EXPERT_MAP_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The expert in each slot of an expert map, a text of num_bytes bytes, which needs no NUL: a row for each layer,
 * slots GPU by GPU. Buffers are filled as dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT with the place: what is not such a text, lacks a layer or a device or has
 * one twice, has devices with other numbers of experts in other layers, an expert of 65536 or more.
 */
dualpipe_status dualpipe_expert_map_read_slots(const char *text,
                                               size_t num_bytes,
                                               int64_t *experts,
                                               size_t capacity,
                                               size_t *count);

/**
 * How many slots each GPU has in every layer of an expert map. Buffers are filled as dualpipe.h says under
 * "Buffers".
 */
dualpipe_status dualpipe_expert_map_read_gpus(const char *text,
                                              size_t num_bytes,
                                              uint32_t *slots_per_gpu,
                                              size_t capacity,
                                              size_t *count);

/**
 * Writes an expert map: slot_to_expert has rows of the cluster's slots, a row for each layer, in all num_slots.
 * UTF-8; a NUL ends it; the length is without the NUL.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a slot without an expert, for which the map has no word.
 */
dualpipe_status dualpipe_expert_map_write(const dualpipe_cluster *cluster,
                                          const int64_t *slot_to_expert,
                                          size_t num_slots,
                                          char *text,
                                          size_t capacity,
                                          size_t *length);

/**
 * Tokens of slots as loads of their experts, as of SGLang's global_physical_count and last_physical_to_logical_map:
 * for each step num_layers rows of slots, in all num_counts, become as many rows of num_experts numbers.
 *
 * slot_to_expert: num_layers rows of the slots' experts, the same in all steps, in all num_slots; -1 where there is
 * none and no token. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_expert_logical_loads(uint32_t num_layers,
                                              uint32_t num_experts,
                                              const int64_t *slot_to_expert,
                                              size_t num_slots,
                                              const int64_t *counts,
                                              size_t num_counts,
                                              float *loads,
                                              size_t capacity,
                                              size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_EXPERT_MAP_H */
