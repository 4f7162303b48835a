/*
 * What a verification found: whether a schedule can be trusted, each fault in words, and a smallest counterexample.
 *
 * Findings are in order of what depends on what, then of ranks; a fault is reported for itself, not again for what
 * follows from it: a deadlock is looked for only where each op, message and reduction is there once and in its place.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_VERIFICATION_H
#define DUALPIPE_VERIFICATION_H

#include <stddef.h>
#include <stdint.h>
#include "action.h"
#include "op.h"
#include "schedule.h"
#include "status.h"

/**
 * What sort of fault a finding is.
 */
enum dualpipe_schedule_finding_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * An op of a stage or micro-batch that the schedule does not have, on a rank that does not hold the stage, or a
   * backward in a forward-only schedule.
   */
  DUALPIPE_SCHEDULE_FINDING_FOREIGN_OP = 1,
  /**
   * A pass without its F, its B or I, or its B or W.
   */
  DUALPIPE_SCHEDULE_FINDING_MISSING_OP = 2,
  /**
   * A second F, backward for the input or backward for the weights of a pass.
   */
  DUALPIPE_SCHEDULE_FINDING_DOUBLED_OP = 3,
  /**
   * An op before one of the same rank that it needs.
   */
  DUALPIPE_SCHEDULE_FINDING_OP_ORDER = 4,
  /**
   * Ops of several ranks that need one another in a circle: a deadlock under any transport.
   */
  DUALPIPE_SCHEDULE_FINDING_DEPENDENCY_CYCLE = 5,
  /**
   * Actions whose ops are not those of the schedule, in its order.
   */
  DUALPIPE_SCHEDULE_FINDING_TASK_ORDER = 6,
  /**
   * A message that the schedule does not have, or has between other ranks.
   */
  DUALPIPE_SCHEDULE_FINDING_FOREIGN_MESSAGE = 7,
  /**
   * A message that is not sent or not received.
   */
  DUALPIPE_SCHEDULE_FINDING_MISSING_MESSAGE = 8,
  /**
   * A message that is sent or received twice.
   */
  DUALPIPE_SCHEDULE_FINDING_DOUBLED_MESSAGE = 9,
  /**
   * A send before the op that makes the message.
   */
  DUALPIPE_SCHEDULE_FINDING_SEND_BEFORE_MADE = 10,
  /**
   * A receive after the op that needs the message.
   */
  DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE = 11,
  /**
   * A WAIT_SEND without an earlier send of its own.
   */
  DUALPIPE_SCHEDULE_FINDING_WAIT_WITHOUT_SEND = 12,
  /**
   * REDUCE_GRADS of a stage that the rank does not hold or that has one copy only, or in a forward-only schedule.
   */
  DUALPIPE_SCHEDULE_FINDING_FOREIGN_REDUCTION = 13,
  /**
   * A replicated stage's copy whose gradients are not reduced.
   */
  DUALPIPE_SCHEDULE_FINDING_MISSING_REDUCTION = 14,
  /**
   * A copy whose gradients are reduced twice.
   */
  DUALPIPE_SCHEDULE_FINDING_DOUBLED_REDUCTION = 15,
  /**
   * A reduction before the copy's last weight gradient.
   */
  DUALPIPE_SCHEDULE_FINDING_PREMATURE_REDUCTION = 16,
  /**
   * Two ranks that reduce the gradients of the stages they share in different orders: each waits for the other.
   */
  DUALPIPE_SCHEDULE_FINDING_CROSSED_REDUCTIONS = 17,
  /**
   * A receive that a transport without tags gives another message than the one it is for.
   */
  DUALPIPE_SCHEDULE_FINDING_FIFO_MISMATCH = 18,
  /**
   * Ranks that wait for one another.
   */
  DUALPIPE_SCHEDULE_FINDING_DEADLOCK = 19,
  /**
   * More kept alive than the cap allows.
   */
  DUALPIPE_SCHEDULE_FINDING_EXCEEDS_CAP = 20,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_schedule_finding_kind dualpipe_schedule_finding_kind;
#else
typedef uint32_t dualpipe_schedule_finding_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_verification_t points to: nothing that C could look into.
 */
typedef struct dualpipe_verification dualpipe_verification;

/**
 * What a verification found. It never changes: any number of threads may use it at once. It stays usable after a
 * fork. Free it with dualpipe_verification_free.
 */
typedef struct dualpipe_verification *dualpipe_verification_t;

/**
 * What was found, in numbers. Start from DUALPIPE_VERIFICATION_INFO_INIT.
 */
typedef struct dualpipe_verification_info {
  /**
   * sizeof(dualpipe_verification_info).
   */
  uint32_t size;
  /**
   * 1 if all that was asked for holds: there is no finding.
   */
  uint32_t is_valid;
  /**
   * The ranks of the schedule.
   */
  uint32_t num_ranks;
  /**
   * The findings, of each kind the first 8.
   */
  uint32_t num_findings;
  /**
   * The transports that were asked for: bits of dualpipe_verify_transport.
   */
  uint32_t transports;
  /**
   * Those of them under which no finding is a fault.
   */
  uint32_t holds_for;
  /**
   * Whether peak_bytes of dualpipe_verification_rank is known: with costs, and if each pass is there once, in order.
   */
  uint32_t has_bytes;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * How many findings there are more, of kinds with more than 8.
   */
  uint64_t num_omitted;
} dualpipe_verification_info;

/**
 * What a rank keeps at most.
 */
typedef struct dualpipe_verification_rank {
  /**
   * Micro-batch activations alive at once, in the order as it is.
   */
  uint64_t peak_live;
  /**
   * Bytes, parameters included; 0 unless has_bytes of dualpipe_verification_info.
   */
  uint64_t peak_bytes;
} dualpipe_verification_rank;

/**
 * One fault.
 */
typedef struct dualpipe_schedule_finding {
  /**
   * A dualpipe_schedule_finding_kind.
   */
  uint32_t kind;
  /**
   * The transports, of those asked for, under which it is a fault: bits of dualpipe_verify_transport.
   */
  uint32_t transports;
  /**
   * The communicating order that it is about, a dualpipe_receives; DUALPIPE_NONE if the schedule itself is wrong.
   */
  uint32_t receives;
  /**
   * 1 if it has a counterexample: of each kind, and of each set of transports, the first one has.
   */
  uint32_t has_counterexample;
  /**
   * 1 if no micro-batch can be left out of the counterexample; 0 if the search for a smaller one was cut short.
   */
  uint32_t is_smallest;
} dualpipe_schedule_finding;

/**
 * How one communicating order fares under one transport, memory and the schedule itself left aside.
 */
typedef struct dualpipe_verification_trial {
  /**
   * The order, a dualpipe_receives.
   */
  uint32_t receives;
  /**
   * The transport, a dualpipe_verify_transport.
   */
  uint32_t transport;
  /**
   * What is wrong, a dualpipe_schedule_finding_kind; DUALPIPE_NONE if nothing is.
   */
  uint32_t kind;
} dualpipe_verification_trial;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Frees a verification. NULL is fine.
 */
dualpipe_status dualpipe_verification_free(dualpipe_verification_t verification);

/**
 * Writes what was found, in numbers.
 */
dualpipe_status dualpipe_verification_describe(dualpipe_verification_t verification,
                                               struct dualpipe_verification_info *info);

/**
 * What each rank keeps at most, num_ranks entries. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_verification_ranks(dualpipe_verification_t verification,
                                            struct dualpipe_verification_rank *ranks,
                                            size_t capacity,
                                            size_t *count);

/**
 * What is wrong, fault by fault. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_verification_findings(dualpipe_verification_t verification,
                                               struct dualpipe_schedule_finding *findings,
                                               size_t capacity,
                                               size_t *count);

/**
 * The ranks that a finding is about; of a deadlock those in a shortest circle of waits, each waiting for the next.
 * `finding` is its index. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_verification_finding_ranks(dualpipe_verification_t verification,
                                                    uint32_t finding,
                                                    uint32_t *ranks,
                                                    size_t capacity,
                                                    size_t *count);

/**
 * The passes that a finding is about; of a reduction, micro-batch 0 stands for all. `copy` is DUALPIPE_NONE where the
 * schedule has no such stage. Buffers are filled as dualpipe.h says under "Buffers".
 */
dualpipe_status dualpipe_verification_finding_passes(dualpipe_verification_t verification,
                                                     uint32_t finding,
                                                     dualpipe_pass *passes,
                                                     size_t capacity,
                                                     size_t *count);

/**
 * A finding in words: a line, and for faults between ranks a drawing of the actions around it. A NUL ends it; the
 * length is without the NUL.
 */
dualpipe_status dualpipe_verification_finding_text(dualpipe_verification_t verification,
                                                   uint32_t finding,
                                                   char *text,
                                                   size_t capacity,
                                                   size_t *length);

/**
 * The counterexample of a finding as a schedule, of kind DUALPIPE_KIND_CUSTOM: the one that was verified with most
 * micro-batches left out and the others numbered anew, and the same kind of fault. `finding` is the finding's index.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without one.
 */
dualpipe_status dualpipe_verification_counterexample(dualpipe_verification_t verification,
                                                     uint32_t finding,
                                                     dualpipe_schedule_t *schedule);

/**
 * The communicating order of a rank in the counterexample of a finding: none if none was given. Buffers are filled as
 * dualpipe.h says under "Buffers".
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without a counterexample.
 */
dualpipe_status dualpipe_verification_counterexample_actions(dualpipe_verification_t verification,
                                                             uint32_t finding,
                                                             uint32_t rank,
                                                             dualpipe_action *actions,
                                                             size_t capacity,
                                                             size_t *count);

/**
 * The counterexample of a finding in words: which micro-batches it has, its orders and its fault. A NUL ends it; the
 * length is without the NUL.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without one.
 */
dualpipe_status dualpipe_verification_counterexample_text(dualpipe_verification_t verification,
                                                          uint32_t finding,
                                                          char *text,
                                                          size_t capacity,
                                                          size_t *length);

/**
 * Each communicating order under each transport that was asked for: without `orders`, which places of the receives
 * would do. None if the schedule itself is so wrong that it has no order. Buffers are filled as dualpipe.h says under
 * "Buffers".
 */
dualpipe_status dualpipe_verification_trials(dualpipe_verification_t verification,
                                             struct dualpipe_verification_trial *trials,
                                             size_t capacity,
                                             size_t *count);

/**
 * All findings and their counterexamples in words; empty if nothing was found. A NUL ends it; the length is without
 * the NUL.
 */
dualpipe_status dualpipe_verification_to_text(dualpipe_verification_t verification,
                                              char *text,
                                              size_t capacity,
                                              size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_verification_info: `dualpipe_verification_info x = DUALPIPE_VERIFICATION_INFO_INIT;` */
#define DUALPIPE_VERIFICATION_INFO_INIT { sizeof(dualpipe_verification_info), 0, 0, 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_VERIFICATION_H */
