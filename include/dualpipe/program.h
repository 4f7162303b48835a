/*
 * Programs: one rank's part of a schedule, with receives, sends and frees.
 *
 * A program never changes. Give it to an executor; or read its instructions and run them with a runtime of your own:
 * they say everything, also which buffer holds what, so that a runtime has no decision to take. Buffers are counted,
 * not allocated: there are as many as the schedule needs at once, whatever the number of micro-batches.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_PROGRAM_H
#define DUALPIPE_PROGRAM_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "schedule.h"
#include "status.h"

/**
 * What an instruction does.
 */
enum dualpipe_instruction_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Post the receive of a message into a buffer. It does not wait.
   */
  DUALPIPE_INSTRUCTION_RECEIVE = 1,
  /**
   * Wait until what the op reads has been received, then run it.
   */
  DUALPIPE_INSTRUCTION_RUN = 2,
  /**
   * Start to send a message from a buffer. It does not wait.
   */
  DUALPIPE_INSTRUCTION_SEND = 3,
  /**
   * The buffer is not needed any more; if it is being sent, wait until it has been.
   */
  DUALPIPE_INSTRUCTION_FREE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_instruction_kind dualpipe_instruction_kind;
#else
typedef uint32_t dualpipe_instruction_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_program_t points to: nothing that C could look into.
 */
typedef struct dualpipe_program dualpipe_program;

/**
 * What one rank does in a step, in order. It never changes: any number of threads may use it at once. It stays usable
 * after a fork. Free it with dualpipe_program_free.
 */
typedef struct dualpipe_program *dualpipe_program_t;

/**
 * One instruction. What its kind does not have is DUALPIPE_NONE, in every field.
 */
typedef struct dualpipe_instruction {
  /**
   * A dualpipe_instruction_kind.
   */
  uint32_t kind;
  /**
   * RECEIVE, SEND: the other rank.
   */
  uint32_t peer;
  /**
   * RECEIVE, SEND, FREE: an index into the program's buffers.
   */
  uint32_t buffer;
  /**
   * RECEIVE, SEND: what travels.
   */
  dualpipe_message message;
  /**
   * RUN: what runs.
   */
  dualpipe_op op;
} dualpipe_instruction;

/**
 * A place for what one message carries, used again and again.
 */
typedef struct dualpipe_program_buffer {
  /**
   * A dualpipe_message_kind.
   */
  uint32_t kind;
  /**
   * The direction of what it holds.
   */
  uint32_t direction;
  /**
   * It holds outputs of this stage, or gradients for them.
   */
  uint32_t stage;
} dualpipe_program_buffer;

/**
 * Where the ops of a pass find what they read and write: indices into the program's buffers, DUALPIPE_NONE at the
 * ends of the model.
 */
typedef struct dualpipe_pass_buffers {
  /**
   * The activation from the previous stage: read by F, B, I and W.
   */
  uint32_t input;
  /**
   * The activation for the next stage: written by F.
   */
  uint32_t output;
  /**
   * The gradient from the next stage: read by B, I and W.
   */
  uint32_t output_grad;
  /**
   * The gradient for the previous stage: written by B and I.
   */
  uint32_t input_grad;
} dualpipe_pass_buffers;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates the program of `rank`, 0 to num_ranks - 1. All ranks' programs are made and checked together, the first
 * time that one is asked for: they are complete, and deadlock neither with asynchronous nor with blocking exchanges.
 *
 * Errors: DUALPIPE_ERROR_INVALID_SCHEDULE. Time: proportional to the ops of all ranks, the first time.
 */
dualpipe_status dualpipe_program_create(dualpipe_schedule_t schedule,
                                        uint32_t rank,
                                        dualpipe_program_t *program);

/**
 * Frees a program. NULL is fine.
 */
dualpipe_status dualpipe_program_free(dualpipe_program_t program);

/**
 * The instructions of a program, in order. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_program_instructions(dualpipe_program_t program,
                                              struct dualpipe_instruction *instructions,
                                              size_t capacity,
                                              size_t *count);

/**
 * The message buffers that a program needs, by their index. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_program_buffers(dualpipe_program_t program,
                                         struct dualpipe_program_buffer *buffers,
                                         size_t capacity,
                                         size_t *count);

/**
 * The buffers of one pass of the program's rank. `microbatch` counts within its direction.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if the rank does not hold this stage in this direction.
 */
dualpipe_status dualpipe_program_pass_buffers(dualpipe_program_t program,
                                              uint32_t direction,
                                              uint32_t stage,
                                              uint32_t microbatch,
                                              struct dualpipe_pass_buffers *buffers);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_PROGRAM_H */
