/*
 * Loads of a recorded run, step by step, in the files of other programs: read, written, made anew.
 *
 * Text in, text out: opening files is the caller's. What is read is checked number by number, and an error names the
 * line and the place. docs/loads.md has the formats.
 *
 *     // vLLM's load statistics become loads for dualpipe_expert_plan_balance: [num_steps, num_layers, num_experts].
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status read_loads(const char *text, size_t num_bytes, dualpipe_load_history_info *info,
 *                                       float *loads, size_t capacity, size_t *count) {
 *       const dualpipe_load_history_info none = DUALPIPE_LOAD_HISTORY_INFO_INIT;
 *       dualpipe_load_history_t history = NULL;
 *       dualpipe_status status = dualpipe_load_history_read(text, num_bytes, DUALPIPE_LOAD_FORMAT_VLLM, &history);
 *       *info = none;
 *       if (status == DUALPIPE_OK) status = dualpipe_load_history_describe(history, info);
 *       if (status == DUALPIPE_OK) status = dualpipe_load_history_loads(history, loads, capacity, count);
 *       dualpipe_load_history_free(history);
 *       return status;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_LOAD_HISTORY_H
#define DUALPIPE_LOAD_HISTORY_H

#include <stddef.h>
#include <stdint.h>
#include "cluster.h"
#include "status.h"

/**
 * How a history is written.
 */
enum dualpipe_load_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * vLLM's JSON lines: loads of slots, with the expert in each.
   */
  DUALPIPE_LOAD_FORMAT_VLLM = 1,
  /**
   * {"load_history": [{"logical_expert_load": [[...]]}]}: loads of experts.
   */
  DUALPIPE_LOAD_FORMAT_JSON = 2,
  /**
   * A line for each layer, a number for each expert, an empty line between steps.
   */
  DUALPIPE_LOAD_FORMAT_CSV = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_load_format dualpipe_load_format;
#else
typedef uint32_t dualpipe_load_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_load_history_t points to: nothing that C could look into.
 */
typedef struct dualpipe_load_history dualpipe_load_history;

/**
 * What a new history is of. Start from DUALPIPE_LOAD_HISTORY_OPTIONS_INIT.
 */
typedef struct dualpipe_load_history_options {
  /**
   * sizeof(dualpipe_load_history_options).
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
   * GPUs that share the experts; 0 if it is not to be said.
   */
  uint32_t num_ranks;
  /**
   * Groups of experts; 0 likewise.
   */
  uint32_t num_groups;
  /**
   * Nodes of the GPUs; 0 likewise.
   */
  uint32_t num_nodes;
  /**
   * The model's name: UTF-8, NUL-terminated, of which at most 4095 bytes count; NULL likewise.
   */
  const char *model;
} dualpipe_load_history_options;

/**
 * Loads step by step. One thread at a time may use it: others get DUALPIPE_ERROR_BUSY. It stays usable after a fork.
 * Free it with dualpipe_load_history_free.
 */
typedef struct dualpipe_load_history *dualpipe_load_history_t;

/**
 * What a history is of. Start from DUALPIPE_LOAD_HISTORY_INFO_INIT.
 */
typedef struct dualpipe_load_history_info {
  /**
   * sizeof(dualpipe_load_history_info).
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
   * GPUs that share the experts; 0 if nothing says.
   */
  uint32_t num_ranks;
  /**
   * Groups of experts; 0 likewise.
   */
  uint32_t num_groups;
  /**
   * Nodes of the GPUs; 0 likewise.
   */
  uint32_t num_nodes;
  /**
   * Steps.
   */
  uint64_t num_steps;
} dualpipe_load_history_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates a history without steps, for dualpipe_load_history_append and dualpipe_load_history_append_slots.
 */
dualpipe_status dualpipe_load_history_create(const struct dualpipe_load_history_options *options,
                                             dualpipe_load_history_t *history);

/**
 * Reads a history (format: a dualpipe_load_format) from a text of num_bytes bytes, which needs no NUL.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT with line and place: what is not such a text in UTF-8, has steps of
 * different sizes, a number that is negative or not finite, no step, or more than 2^28 loads.
 */
dualpipe_status dualpipe_load_history_read(const char *text,
                                           size_t num_bytes,
                                           uint32_t format,
                                           dualpipe_load_history_t *history);

/**
 * Frees a history. NULL is fine.
 */
dualpipe_status dualpipe_load_history_free(dualpipe_load_history_t history);

/**
 * Adds steps to the end, numbered step, step + 1 and so on: of each num_layers rows of num_experts loads, finite and
 * not negative, in all num_loads.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for more than 2^28 loads of all steps; nothing has been added then.
 */
dualpipe_status dualpipe_load_history_append(dualpipe_load_history_t history,
                                             uint64_t step,
                                             const float *loads,
                                             size_t num_loads);

/**
 * Adds one step to the end, as slots got it: num_layers rows of as many slots each, in all num_slots, finite and not
 * negative. slot_to_expert: the expert in each, -1 where there is none and no load.
 */
dualpipe_status dualpipe_load_history_append_slots(dualpipe_load_history_t history,
                                                   uint64_t step,
                                                   const int64_t *slot_to_expert,
                                                   const float *loads,
                                                   size_t num_slots);

/**
 * Says what a history is of.
 */
dualpipe_status dualpipe_load_history_describe(dualpipe_load_history_t history,
                                               struct dualpipe_load_history_info *info);

/**
 * The model's name in UTF-8, empty if nothing says. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_history_model(dualpipe_load_history_t history,
                                            char *text,
                                            size_t capacity,
                                            size_t *length);

/**
 * The loads of all steps, one after the other: of each num_layers rows of num_experts numbers. Buffers are filled as
 * dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_history_loads(dualpipe_load_history_t history,
                                            float *loads,
                                            size_t capacity,
                                            size_t *count);

/**
 * The number of each step, as the file has it. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_history_step_numbers(dualpipe_load_history_t history,
                                                   uint64_t *steps,
                                                   size_t capacity,
                                                   size_t *count);

/**
 * The placement of a step, counted from 0: num_layers rows of its slots, the expert in each, -1 where there is none.
 * No number if the step was recorded without. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_history_slot_to_expert(dualpipe_load_history_t history,
                                                     uint64_t index,
                                                     int64_t *experts,
                                                     size_t capacity,
                                                     size_t *count);

/**
 * What each slot got in a step, counted from 0, in the order of dualpipe_load_history_slot_to_expert; no number
 * likewise. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_load_history_slot_loads(dualpipe_load_history_t history,
                                                 uint64_t index,
                                                 float *loads,
                                                 size_t capacity,
                                                 size_t *count);

/**
 * Writes a history (format: a dualpipe_load_format). As vLLM wants a placement with each step, a step without one
 * gets a slot for each expert there; the other formats have neither slots nor numbers of steps. UTF-8; a NUL ends
 * it; the length is without the NUL.
 */
dualpipe_status dualpipe_load_history_write(dualpipe_load_history_t history,
                                            uint32_t format,
                                            char *text,
                                            size_t capacity,
                                            size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_load_history_options:
 * `dualpipe_load_history_options x = DUALPIPE_LOAD_HISTORY_OPTIONS_INIT;` */
#define DUALPIPE_LOAD_HISTORY_OPTIONS_INIT { sizeof(dualpipe_load_history_options), 0, 0, 0, 0, 0, NULL }

/** Initializes a dualpipe_load_history_info: `dualpipe_load_history_info x = DUALPIPE_LOAD_HISTORY_INFO_INIT;` */
#define DUALPIPE_LOAD_HISTORY_INFO_INIT { sizeof(dualpipe_load_history_info), 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_LOAD_HISTORY_H */
