/*
 * A schedule one can trust: whether it is complete, in order and within memory, whether every message finds its
 * receive, and under which transports no rank waits for ever. What fails comes with a smallest counterexample.
 *
 * A communicating order (action.h) may be given: of a runtime of your own, of a program. Without one, sends stand
 * behind what makes the message, and three places of the receives are tried: the schedule is good for a transport if
 * it is with one of them. docs/schedules.md has the table of what is proved.
 *
 *     // Prints what is wrong with a schedule on a transport without tags; returns whether nothing is.
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static int is_right(dualpipe_schedule_t schedule) {
 *       dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
 *       dualpipe_verification_info info = DUALPIPE_VERIFICATION_INFO_INIT;
 *       dualpipe_verification_t verification = NULL;
 *       static char text[1 << 16];
 *       size_t length = 0;
 *       options.transports = DUALPIPE_VERIFY_ASYNCHRONOUS | DUALPIPE_VERIFY_RENDEZVOUS;
 *       if (dualpipe_schedule_verify(schedule, &options, &verification) != DUALPIPE_OK) return 0;
 *       if (dualpipe_verification_to_text(verification, text, sizeof text, &length) == DUALPIPE_OK)
 *         fputs(text, stdout);
 *       (void)dualpipe_verification_describe(verification, &info);
 *       (void)dualpipe_verification_free(verification);
 *       return info.is_valid == 1;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_SCHEDULE_VERIFY_H
#define DUALPIPE_SCHEDULE_VERIFY_H

#include <stddef.h>
#include <stdint.h>
#include "action.h"
#include "cost.h"
#include "schedule.h"
#include "status.h"
#include "torch_csv.h"
#include "verification.h"

/**
 * What to verify besides the schedule, and for what. Start from DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT: all transports,
 * no actions, no costs, no cap, with counterexamples.
 */
typedef struct dualpipe_schedule_verify_options {
  /**
   * sizeof(dualpipe_schedule_verify_options).
   */
  uint32_t size;
  /**
   * Bits of dualpipe_verify_transport: those to hold for. 0: all.
   */
  uint32_t transports;
  /**
   * NULL, or the communicating order of each rank.
   */
  const dualpipe_action_order *orders;
  /**
   * How many there are: the number of ranks; 0 without.
   */
  size_t num_orders;
  /**
   * NULL, or costs to count bytes with; only those of memory matter.
   */
  const dualpipe_costs *costs;
  /**
   * NULL, or how many micro-batch activations may be alive at once, at least 1: on each rank, or one entry for all.
   */
  const uint64_t *cap_activations;
  /**
   * How many there are: 1, or the number of ranks; 0 without.
   */
  size_t num_cap_activations;
  /**
   * NULL, or how many bytes each rank may keep, parameters included, at most 2^50; likewise. It needs costs. Only
   * one of the caps may be there.
   */
  const uint64_t *cap_bytes;
  /**
   * How many there are; 0 without.
   */
  size_t num_cap_bytes;
  /**
   * 1: do not look for counterexamples, which takes time where there are faults. 0: look for them.
   */
  uint32_t no_counterexamples;
  /**
   * Must be 0.
   */
  uint32_t reserved;
} dualpipe_schedule_verify_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Verifies a schedule, and with `orders` of the options a communicating order of it.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT where it cannot be told what is meant: an action of no kind, of a rank that
 * is none of the schedule's, or of a pass that no schedule has, with rank and position; a cap of another number of
 * ranks, or in bytes without costs; costs of another number of stages. Whatever else is wrong is a finding. Time and
 * memory: proportional to the ops, the actions and the passes; a counterexample for each kind of fault takes a bounded
 * number of tries more.
 */
dualpipe_status dualpipe_schedule_verify(dualpipe_schedule_t schedule,
                                         const struct dualpipe_schedule_verify_options *options,
                                         dualpipe_verification_t *verification);

/**
 * Verifies a CSV of torch's: text, version and format as of dualpipe_schedule_create_from_torch_csv. The communicating
 * order of COMPUTE_COMMS is verified as it stands in the file; `orders` of the options must be NULL. Torch starts
 * each send and each receive by itself, which with gloo is ASYNCHRONOUS; NCCL runs them one after another, so that a
 * receive keeps a later send waiting: of these transports none does.
 *
 * Errors: as of both.
 */
dualpipe_status dualpipe_schedule_verify_torch_csv(const char *text,
                                                   size_t num_bytes,
                                                   uint32_t torch_major,
                                                   uint32_t torch_minor,
                                                   uint32_t format,
                                                   const struct dualpipe_schedule_verify_options *options,
                                                   dualpipe_verification_t *verification);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_schedule_verify_options:
 * `dualpipe_schedule_verify_options x = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;` */
#define DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT \
  { sizeof(dualpipe_schedule_verify_options), 0, NULL, 0, NULL, NULL, 0, NULL, 0, 0, 0 }

#endif /* DUALPIPE_SCHEDULE_VERIFY_H */
