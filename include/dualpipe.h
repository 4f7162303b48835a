/*
 * Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.
 *
 * This header and those that it includes are the manual. Include only this one, link with -ldualpipe.
 *
 *
 * #include <dualpipe.h>
 * #include <stdio.h>
 *
 * static int failed(dualpipe_status status) {
 *   if (status != DUALPIPE_OK)
 *     fprintf(stderr, "%s: %s\n", dualpipe_status_name(status), dualpipe_last_error());
 *   return status != DUALPIPE_OK;
 * }
 *
 * int main(void) {
 *   dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
 *   dualpipe_schedule_t schedule = NULL;
 *   dualpipe_stage_costs stage = {1000, 1000, 1000, 2500, 1 << 20, 1 << 24, 1 << 28};
 *   dualpipe_costs costs = DUALPIPE_COSTS_INIT;
 *   dualpipe_timeline_t timeline = NULL;
 *   dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
 *   static char picture[1 << 16];
 *   size_t length = 0;
 *
 *   options.kind = DUALPIPE_KIND_DUALPIPE;
 *   options.num_ranks = 4;
 *   options.num_microbatches = 8;
 *   costs.stages = &stage;
 *   costs.num_stages = 1; // one entry: all stages cost the same
 *   if (failed(dualpipe_schedule_create(&options, &schedule)) ||
 *       failed(dualpipe_simulate(schedule, &costs, &timeline)) ||
 *       failed(dualpipe_timeline_summarize(timeline, &summary)) ||
 *       failed(dualpipe_timeline_draw(timeline, DUALPIPE_DRAW_TEXT, picture, sizeof picture, &length)))
 *     return 1;
 *   printf("%s\n%.1f us, bubble %.1f %%\n", picture, summary.makespan_ns / 1e3, 100 * summary.bubble_share);
 *   dualpipe_timeline_free(timeline);
 *   dualpipe_schedule_free(schedule);
 *   return 0;
 * }
 *
 *
 * Words. A model has stages 0 to S-1 on the ranks 0 to P-1 of a pipeline. A step sends micro-batches through it. In
 * direction 0 they enter at rank 0; a schedule with two directions has a second copy of every stage's parameters, and
 * in direction 1 they enter at rank P-1. F is a forward; B a full backward; I a backward for the input, W one for the
 * weights (B = I + W); FB an F and a B of two micro-batches, run as an overlapped pair.
 *
 * Errors. A function that can fail returns a dualpipe_status; dualpipe_last_error() tells what was wrong: the
 * function, the argument, its value and its range. Outputs are written on success only. The library prints nothing,
 * installs no signal handlers, and never aborts because of an argument.
 *
 * Objects. A create function writes a handle, a free function takes it; free(NULL) is fine. A handle that was freed,
 * or never was one, is refused with DUALPIPE_ERROR_INVALID_HANDLE; freeing an object while another thread uses it is
 * safe, and it goes when that call ends. What one object was made from may be freed before it.
 *
 * Threads. Every function may be called from any thread. Each type says what several threads may do with one object;
 * schedules, programs and timelines never change, so anything goes.
 *
 * Pointers. Each points to as much as its function says, aligned, valid until the function returns, and no output
 * overlaps another argument. NULL, misaligned pointers and impossible sizes are refused.
 *
 * Structs that begin with size may grow in later versions: start from their INIT macro. Fields that a library does
 * not know must be 0. Structs without size never change while the SONAME stays.
 *
 * Enums are passed as uint32_t; a number that is not one of them is refused.
 *
 * Buffers. Where a function writes a number of values that the caller cannot know, it takes the buffer, its capacity
 * and a count: (values, capacity, &count). NULL with capacity 0 only asks for the count. If the buffer is too small,
 * the function returns DUALPIPE_ERROR_BUFFER_TOO_SMALL, writes the count that is needed, and nothing else. Of a text
 * the capacity must have room for the NUL, and the length does not count it.
 *
 * Callbacks are called on the threads that their types name. They return to the library: an exception or a longjmp
 * through it ends the process.
 *
 * Fork. Objects without threads stay usable in the child; those that own threads return DUALPIPE_ERROR_FORKED there.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_H
#define DUALPIPE_H

#include "dualpipe/balance.h"
#include "dualpipe/cost.h"
#include "dualpipe/cuda.h"
#include "dualpipe/executor.h"
#include "dualpipe/log.h"
#include "dualpipe/memory.h"
#include "dualpipe/op.h"
#include "dualpipe/overlap.h"
#include "dualpipe/program.h"
#include "dualpipe/schedule.h"
#include "dualpipe/status.h"
#include "dualpipe/task.h"
#include "dualpipe/tensor.h"
#include "dualpipe/timeline.h"
#include "dualpipe/transport.h"
#include "dualpipe/version.h"

#endif /* DUALPIPE_H */
