/* What tests tell the stand-in NCCL, and ask it. The functions that a program calls are NCCL's own, as in its nccl.h.
 *
 * A communicator of a pipeline has two ends, numbered 0 and 1. To speak of ends all the same, a thread says with
 * nccl_standin_set_rank which rank of the pipeline it is, and the ends that it initialises keep that as their label.
 * Without it, the label is the rank in the communicator. "The n-th" counts from 0, since the last reset. */
#ifndef DUALPIPE_TESTS_NCCL_STANDIN_H
#define DUALPIPE_TESTS_NCCL_STANDIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets all rules, counts and problems, and aborts what is left of earlier tests; whoever waits inside returns.
 * `seed` decides when a communicator that does not block says "in progress"; `version` is NCCL's, such as 22809;
 * 0 stands for that one. */
void nccl_standin_reset(uint64_t seed, int32_t version);
/* The calling thread is this rank of the pipeline; -1: none. A reset leaves it alone. */
void nccl_standin_set_rank(int32_t rank);

/* The n-th ncclSend or ncclPutSignal from the ends `from` to the ends `to`, over all communicators, in order of calls,
 * never arrives: the sender goes on, the receive that it met never ends, the signal never comes. */
void nccl_standin_drop(int32_t from, int32_t to, uint64_t ordinal);
/* The n-th ncclSend takes so much longer. Only for a driver that works on its own: nothing waits for it in a lazy
 * one. */
void nccl_standin_delay(int32_t from, int32_t to, uint64_t ordinal, uint32_t milliseconds);
/* The n-th ncclSend, ncclRecv, ncclPutSignal or ncclWaitSignal of the ends `label`, in order of calls, gives its
 * communicator this asynchronous error when its stream gets there, and never ends. The peer hears nothing of it. */
void nccl_standin_async_error(int32_t label, uint64_t ordinal, int32_t code);
/* The n-th call of a function, such as "ncclSend", does nothing and returns `code`. */
void nccl_standin_fail_call(const char *function, uint64_t ordinal, int32_t code);
/* The same, of the calls by one rank of the pipeline. */
void nccl_standin_fail_call_of(int32_t label, const char *function, uint64_t ordinal, int32_t code);
/* While on, no communicator gets initialised: calls of those that block do not return. */
void nccl_standin_hang_init(int on);
/* While on, ncclCommAbort neither does anything nor returns. */
void nccl_standin_hang_abort(int on);
/* While on, two ranks of a communicator on one device are refused, as NCCL does; a version from 23003 on accepts them
 * if NCCL_MULTI_RANK_GPU_ENABLE=1. Off after a reset. */
void nccl_standin_forbid_same_device(int on);
/* While on, the first message between two ends lets its sender and its receiver connect, as in NCCL: neither call is
 * done on the host before the other side has made its own. On after a reset. */
void nccl_standin_connect_at_first_use(int on);

/* While off, windows are not to be had, which NCCL calls a success. On after a reset. */
void nccl_standin_offer_windows(int on);

/* Until the next reset no stream waits for signals any more: for tests that want their memory back after a fault, as
 * the end of the process would give it. */
void nccl_standin_release_waits(void);

/* Ends that have been initialised, or begun to be, and neither aborted nor destroyed. */
uint64_t nccl_standin_live_comms(void);
/* Calls of ncclSend and ncclPutSignal from the ends `from` to the ends `to`; -1: any. */
uint64_t nccl_standin_num_sends(int32_t from, int32_t to);
/* What programs did wrong, a line each. Returns its length without the NUL; as much as fits is written. */
size_t nccl_standin_report(char *text, size_t capacity);
/* What is on its way now: messages without a partner, calls that wait. To be printed when a test hangs. */
size_t nccl_standin_waiting(char *text, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
