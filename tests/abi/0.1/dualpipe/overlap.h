/*
 * Overlap: the halves of an F&B pair under one another on a CUDA device, communication of the one while the other
 * computes, in the order of DeepSeek's published trace.
 *
 * Create one for each executor that has a comm stream (has_comm_stream), and call dualpipe_overlap_run in its tasks.
 * You say how to enqueue each part of a block, it says when and on which of the two streams.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_OVERLAP_H
#define DUALPIPE_OVERLAP_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * A part of a block of attention and experts (MLP).
 */
enum dualpipe_part
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Forward through the attention; computes.
   */
  DUALPIPE_PART_ATTENTION_F = 0,
  /**
   * Tokens to their experts; communicates.
   */
  DUALPIPE_PART_DISPATCH_F = 1,
  /**
   * Forward through the experts; computes.
   */
  DUALPIPE_PART_MLP_F = 2,
  /**
   * Tokens back from their experts; communicates.
   */
  DUALPIPE_PART_COMBINE_F = 3,
  /**
   * Gradients to the experts: backward through combine; communicates.
   */
  DUALPIPE_PART_COMBINE_B = 4,
  /**
   * Backward for the input through the experts; computes.
   */
  DUALPIPE_PART_MLP_B = 5,
  /**
   * Backward for the experts' weights; computes.
   */
  DUALPIPE_PART_MLP_W = 6,
  /**
   * Gradients back from the experts: backward through dispatch; communicates.
   */
  DUALPIPE_PART_DISPATCH_B = 7,
  /**
   * Backward for the input through the attention; computes.
   */
  DUALPIPE_PART_ATTENTION_B = 8,
  /**
   * Backward for the attention's weights; computes.
   */
  DUALPIPE_PART_ATTENTION_W = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_part dualpipe_part;
#else
typedef uint32_t dualpipe_part;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_overlap_t points to: nothing that C could look into.
 */
typedef struct dualpipe_overlap dualpipe_overlap;

/**
 * Enqueues tasks part by part on two streams, with the waits that the parts need between them. One thread at a time:
 * another gets DUALPIPE_ERROR_BUSY. It is useless in a child of fork. Free it with dualpipe_overlap_free.
 */
typedef struct dualpipe_overlap *dualpipe_overlap_t;

/**
 * Enqueues one part of a block on `stream`, a CUstream: the task's compute_stream, or its comm_stream for a part that
 * communicates. part: a dualpipe_part. block: its number in the order of the model, from 0. What the part reads from
 * the part before it in its half is there in the order of the stream. Returns 0, or anything else to stop.
 */
typedef int32_t (*dualpipe_part_fn)(void *user_data, uint32_t part, uint32_t block, void *stream);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates what is needed to overlap tasks on CUDA device `device`, from 0.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, DUALPIPE_ERROR_UNAVAILABLE without a driver or a device,
 * DUALPIPE_ERROR_DEVICE.
 */
dualpipe_status dualpipe_overlap_create(uint32_t device, dualpipe_overlap_t *overlap);

/**
 * Frees it. NULL is fine. What it has enqueued goes on.
 */
dualpipe_status dualpipe_overlap_free(dualpipe_overlap_t overlap);

/**
 * Has `enqueue` enqueue every part of num_forward forward blocks and num_backward backward blocks (each 0 to 4096),
 * from within a task, on the task's two streams. Of each pair of blocks in turn, forward ones from the first, backward
 * ones from the last: on the compute stream attention F, MLP B, MLP W, MLP F, attention B, attention W; on the comm
 * stream combine B under attention F, dispatch F under MLP B, dispatch B under MLP W and MLP F, combine F under
 * attention B.
 *
 * The first parts come after what the task reads, whoever reads what the task writes comes after the last. What the
 * task itself enqueues before or after is not ordered with the parts on the comm stream: that takes an event.
 *
 * Where one half has more blocks than the other, or a task is only one half (0 blocks of the other), the other's
 * parts are left out.
 *
 * Errors: DUALPIPE_ERROR_CALLBACK_FAILED if enqueue returns anything but 0; DUALPIPE_ERROR_DEVICE.
 */
dualpipe_status dualpipe_overlap_run(dualpipe_overlap_t overlap,
                                     void *compute_stream,
                                     void *comm_stream,
                                     uint32_t num_forward,
                                     uint32_t num_backward,
                                     dualpipe_part_fn enqueue,
                                     void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_OVERLAP_H */
