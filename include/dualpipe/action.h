/*
 * Actions: what a rank does in a step, with its part in every exchange: a communicating order; and what carries it.
 *
 * A schedule says what runs; where the sends and receives stand between is a runtime's own choice, and a wrong one
 * swaps messages or lets ranks wait for ever. dualpipe_program_actions gives the order of this library's programs;
 * schedule_verify.h proves or refutes one of any other make.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_ACTION_H
#define DUALPIPE_ACTION_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "program.h"
#include "status.h"

/**
 * What an action does.
 */
enum dualpipe_action_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Wait for what the op needs, and run it.
   */
  DUALPIPE_ACTION_RUN = 1,
  /**
   * Start to send a message.
   */
  DUALPIPE_ACTION_SEND = 2,
  /**
   * Receive a message, or post its receive.
   */
  DUALPIPE_ACTION_RECEIVE = 3,
  /**
   * Wait until an earlier send of the message has been taken up.
   */
  DUALPIPE_ACTION_WAIT_SEND = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_action_kind dualpipe_action_kind;
#else
typedef uint32_t dualpipe_action_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How messages travel: bits, to be added up. Without tags, the k-th receive from a rank gets that rank's k-th send, as
 * with NCCL and torch.distributed; with them a receive finds its message by name, as with MPI and this library's own
 * executors.
 */
enum dualpipe_verify_transport
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * No tags. A send is started and a receive is posted, and neither waits; an op waits for the messages that it
   * needs, WAIT_SEND until the receive has been posted.
   */
  DUALPIPE_VERIFY_ASYNCHRONOUS = 1,
  /**
   * No tags. A send waits until its receive has been posted.
   */
  DUALPIPE_VERIFY_RENDEZVOUS = 2,
  /**
   * No tags. All sends and receives between two ops are one group, which ends when all of its members have met their
   * counterparts, as with batch_isend_irecv.
   */
  DUALPIPE_VERIFY_GROUPED = 4,
  /**
   * As ASYNCHRONOUS, with tags.
   */
  DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED = 8,
  /**
   * As RENDEZVOUS, with tags.
   */
  DUALPIPE_VERIFY_RENDEZVOUS_TAGGED = 16,
  /**
   * As GROUPED, with tags.
   */
  DUALPIPE_VERIFY_GROUPED_TAGGED = 32,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_verify_transport dualpipe_verify_transport;
#else
typedef uint32_t dualpipe_verify_transport;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where the receives of a communicating order stand.
 */
enum dualpipe_receives
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Where the caller put them.
   */
  DUALPIPE_RECEIVES_GIVEN = 1,
  /**
   * Where a program has them: on both ranks in the order in which the messages are made.
   */
  DUALPIPE_RECEIVES_LOWERED = 2,
  /**
   * Right before the op that needs the message.
   */
  DUALPIPE_RECEIVES_BEFORE_USE = 3,
  /**
   * Before the first op, those from one rank in the order in which that rank sends.
   */
  DUALPIPE_RECEIVES_AT_START = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_receives dualpipe_receives;
#else
typedef uint32_t dualpipe_receives;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One action. As an output, what its kind does not have is DUALPIPE_NONE, in every field; as an input, it is not read.
 */
typedef struct dualpipe_action {
  /**
   * A dualpipe_action_kind.
   */
  uint32_t kind;
  /**
   * SEND, RECEIVE: the other rank.
   */
  uint32_t peer;
  /**
   * SEND, RECEIVE, WAIT_SEND: what travels. As an input, to_stage may be DUALPIPE_NONE, and copy is not read.
   */
  dualpipe_message message;
  /**
   * RUN: what runs, also REDUCE_GRADS, whose copy is the direction and stage of its backward.
   */
  dualpipe_op op;
} dualpipe_action;

/**
 * The actions of one rank, in order.
 */
typedef struct dualpipe_action_order {
  /**
   * num_actions of them, read during the call; NULL if there are none.
   */
  const struct dualpipe_action *actions;
  /**
   * All ranks together may have at most 67108864.
   */
  size_t num_actions;
} dualpipe_action_order;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What a program does, as actions: its instructions without the buffers. Where a buffer is freed that is being sent,
 * its send is waited for. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_program_actions(dualpipe_program_t program,
                                         struct dualpipe_action *actions,
                                         size_t capacity,
                                         size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_ACTION_H */
