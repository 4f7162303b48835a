/*
 * The words of schedules, programs and timelines in C: passes, ops and messages.
 *
 * An op is what a rank does at once; a pass is what it does it to: a micro-batch at a stage. An F has a forward pass,
 * a B, I or W a backward pass, an FB both, of two micro-batches in opposite directions or at two stages of the rank.
 *
 * These are plain values: copy them, compare their fields, keep them. What is not there is DUALPIPE_NONE.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_OP_H
#define DUALPIPE_OP_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * Stands for "there is none" in a field that is a number.
 */
#define DUALPIPE_NONE UINT32_MAX

/**
 * What an op does.
 */
enum dualpipe_op_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Forward.
   */
  DUALPIPE_OP_F = 1,
  /**
   * Full backward: for the input and for the weights.
   */
  DUALPIPE_OP_B = 2,
  /**
   * Backward for the input.
   */
  DUALPIPE_OP_I = 3,
  /**
   * Backward for the weights.
   */
  DUALPIPE_OP_W = 4,
  /**
   * F of one micro-batch and B of another, run as an overlapped pair.
   */
  DUALPIPE_OP_FB = 5,
  /**
   * Every weight gradient of a parameter copy is final on this rank: sum it with those of the other copies of its
   * stage. Not part of a schedule's order; programs and timelines have it.
   */
  DUALPIPE_OP_REDUCE_GRADS = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_op_kind dualpipe_op_kind;
#else
typedef uint32_t dualpipe_op_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a message carries.
 */
enum dualpipe_message_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The output of a forward, for the next stage.
   */
  DUALPIPE_MESSAGE_ACTIVATION = 1,
  /**
   * The gradient for an input, for the previous stage.
   */
  DUALPIPE_MESSAGE_GRADIENT = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_message_kind dualpipe_message_kind;
#else
typedef uint32_t dualpipe_message_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One micro-batch at one stage. All four fields are DUALPIPE_NONE where there is no pass.
 */
typedef struct dualpipe_pass {
  /**
   * Where the micro-batch entered: 0, stage 0 is at rank 0; 1, stage 0 is at the last rank.
   */
  uint32_t direction;
  /**
   * The stage, 0 to num_stages - 1.
   */
  uint32_t stage;
  /**
   * The micro-batch, counted within its direction; DUALPIPE_NONE in a reduction, which is of all.
   */
  uint32_t microbatch;
  /**
   * Which of its rank's parameter copies it uses: in DualPipe the direction; in DualPipeV 0 on the way down and 1
   * on the way back. Written, never read.
   */
  uint32_t copy;
} dualpipe_pass;

/**
 * One compute step of one rank.
 */
typedef struct dualpipe_op {
  /**
   * A dualpipe_op_kind.
   */
  uint32_t kind;
  /**
   * What goes forward: of F and FB.
   */
  struct dualpipe_pass forward;
  /**
   * What goes backward: of B, I, W and FB; and the copy that REDUCE_GRADS is about.
   */
  struct dualpipe_pass backward;
} dualpipe_op;

/**
 * What one stage hands to its neighbour. All fields are DUALPIPE_NONE where there is no message.
 */
typedef struct dualpipe_message {
  /**
   * A dualpipe_message_kind.
   */
  uint32_t kind;
  /**
   * The stage that it goes to.
   */
  uint32_t to_stage;
  /**
   * The pass that made it.
   */
  struct dualpipe_pass pass;
} dualpipe_message;

#endif /* DUALPIPE_OP_H */
