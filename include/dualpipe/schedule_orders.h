/*
 * Schedules from outside: orders of the caller's, or a text.
 *
 * What a search of your own found, or another program wrote, becomes a schedule like the published ones: it can be
 * checked, simulated, drawn, lowered to programs and run. Ops may come in any order on any placement of stages on
 * ranks; whether that can run is dualpipe_schedule_check's to say, with rank and position.
 *
 *     // Two stages on one rank and one on the next, a single micro-batch.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_op op(uint32_t kind, uint32_t stage) {
 *       const dualpipe_pass pass = {0, stage, 0, DUALPIPE_NONE};
 *       const dualpipe_op made = {kind, pass, pass}; // F reads forward, B backward
 *       return made;
 *     }
 *
 *     static dualpipe_status create(dualpipe_schedule_t *schedule) {
 *       const uint32_t rank_of[] = {0, 0, 1}; // of stages 0, 1, 2
 *       const dualpipe_op first[] = {op(DUALPIPE_OP_F, 0), op(DUALPIPE_OP_F, 1), op(DUALPIPE_OP_B, 1),
 *                                    op(DUALPIPE_OP_B, 0)};
 *       const dualpipe_op second[] = {op(DUALPIPE_OP_F, 2), op(DUALPIPE_OP_B, 2)};
 *       const dualpipe_order orders[] = {{first, 4}, {second, 2}};
 *       dualpipe_schedule_orders given = DUALPIPE_SCHEDULE_ORDERS_INIT;
 *       given.num_ranks = 2;
 *       given.num_stages = 3;
 *       given.num_directions = 1;
 *       given.num_microbatches = 1;
 *       given.rank_of = rank_of;
 *       given.orders = orders;
 *       return dualpipe_schedule_create_from_orders(&given, schedule);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_SCHEDULE_ORDERS_H
#define DUALPIPE_SCHEDULE_ORDERS_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "schedule.h"
#include "status.h"

/**
 * The ops of one rank, in order.
 */
typedef struct dualpipe_order {
  /**
   * num_ops of them, read during the call; NULL if there are none.
   */
  const dualpipe_op *ops;
  /**
   * All ranks together may have at most 12582912.
   */
  size_t num_ops;
} dualpipe_order;

/**
 * A schedule in its parts. Start from DUALPIPE_SCHEDULE_ORDERS_INIT.
 */
typedef struct dualpipe_schedule_orders {
  /**
   * sizeof(dualpipe_schedule_orders).
   */
  uint32_t size;
  /**
   * The ranks of the pipeline, 1 to 4096.
   */
  uint32_t num_ranks;
  /**
   * The stages of the model, 1 to 8192.
   */
  uint32_t num_stages;
  /**
   * 1, or 2: then each stage has two parameter copies.
   */
  uint32_t num_directions;
  /**
   * The micro-batches of a step, as of dualpipe_schedule_options; of two directions the first has the odd one.
   */
  uint32_t num_microbatches;
  /**
   * 0: every micro-batch goes forward and backward. 1: only forward, for inference.
   */
  uint32_t forward_only;
  /**
   * The rank of each stage: num_directions rows of num_stages, below num_ranks. A rank may have any stages, or none.
   */
  const uint32_t *rank_of;
  /**
   * The order of each rank, num_ranks of them. Of an op its kind and the passes of that kind are read: forward of F,
   * backward of B, I and W, both of FB; of a pass all but copy, which the placement says.
   */
  const struct dualpipe_order *orders;
  /**
   * What errors and pictures call it: UTF-8, NUL-terminated, of which at most 255 bytes count, without control
   * characters; NULL or empty: "custom".
   */
  const char *name;
} dualpipe_schedule_orders;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates a schedule from its parts, of kind DUALPIPE_KIND_CUSTOM. What dualpipe_schedule_order gives may go in.
 *
 * It need not be one that can run: passes that are missing, doubled, misplaced, or none of the placement's are found
 * by dualpipe_schedule_check, and by whatever is made from the schedule.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with rank and position of an op of another kind, or of a pass whose
 * direction is not 0 or 1, whose stage is above 8191 or whose micro-batch above 1048575. Time and memory: proportional
 * to the ops.
 */
dualpipe_status dualpipe_schedule_create_from_orders(const struct dualpipe_schedule_orders *orders,
                                                     dualpipe_schedule_t *schedule);

/**
 * Creates a schedule, of kind DUALPIPE_KIND_CUSTOM, from a text such as dualpipe_schedule_to_text writes: of num_bytes
 * bytes, which needs no NUL. Ranks, stages and micro-batches are as many as the text has, a stage is on the rank that
 * has its ops, and without any backward the schedule is forward only. Blanks and empty lines do not matter. `name` as
 * of dualpipe_schedule_orders.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with line and column: what is no rank or op, ranks out of order, a stage
 * on two ranks or without any op; directions with other numbers of stages, or whose micro-batches are not as many, but
 * for one more in direction 0. Whether the schedule can run is dualpipe_schedule_check's to say.
 */
dualpipe_status dualpipe_schedule_create_from_text(const char *text,
                                                   size_t num_bytes,
                                                   const char *name,
                                                   dualpipe_schedule_t *schedule);

/**
 * The name of a schedule: of a published one such as "dualpipe_v", otherwise as it was created. A NUL ends it; the
 * length is without the NUL.
 */
dualpipe_status dualpipe_schedule_name(dualpipe_schedule_t schedule,
                                       char *name,
                                       size_t capacity,
                                       size_t *length);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_schedule_orders: `dualpipe_schedule_orders x = DUALPIPE_SCHEDULE_ORDERS_INIT;` */
#define DUALPIPE_SCHEDULE_ORDERS_INIT { sizeof(dualpipe_schedule_orders), 0, 0, 0, 0, 0, NULL, NULL, NULL }

#endif /* DUALPIPE_SCHEDULE_ORDERS_H */
