/*
 * Executors: run one rank's program, step after step.
 *
 * Life. An executor is created from a program; its rank in the inproc, or its transport, is then its own. It runs
 * steps, by dualpipe_executor_step on the caller's thread or by dualpipe_executor_start on its own. Between steps
 * boundaries may change, and the last step's timeline may be taken. Once a step has failed, on any rank, all ranks'
 * executors tell why (the step's words, dualpipe_executor_fault), and can only be freed.
 *
 * Every rank must be there: a step returns when the rank's tasks are done, which takes the other ranks' tasks. No wait
 * is longer than timeout_ns, so a rank that never comes is an error and no hang.
 *
 *     // A step of all ranks of this process from one thread; contexts[r] is what the tasks of rank r get.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status step_all(const dualpipe_executor_t *executors, uint32_t num_ranks, dualpipe_task_fn task,
 *                                     void **contexts) {
 *       dualpipe_status first = DUALPIPE_OK;
 *       uint32_t started = 0;
 *       while (first == DUALPIPE_OK && started < num_ranks) {
 *         first = dualpipe_executor_start(executors[started], task, contexts[started]);
 *         started += first == DUALPIPE_OK;
 *       }
 *       for (uint32_t r = 0; r < started; r++) {
 *         dualpipe_status status = dualpipe_executor_wait(executors[r], UINT64_MAX); // its deadlines bound the step
 *         if (first == DUALPIPE_OK) first = status;
 *       }
 *       return first;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_EXECUTOR_H
#define DUALPIPE_EXECUTOR_H

#include <stddef.h>
#include <stdint.h>
#include "cuda.h"
#include "memory.h"
#include "op.h"
#include "program.h"
#include "status.h"
#include "task.h"
#include "tensor.h"
#include "timeline.h"
#include "transport.h"

/**
 * What a dualpipe_executor_t points to: nothing that C could look into.
 */
typedef struct dualpipe_executor dualpipe_executor;

/**
 * One tensor that crosses a boundary between stages: dense, row-major.
 */
typedef struct dualpipe_tensor_spec {
  /**
   * Its elements: of 4, 6, 8, 16, 32, 64 or 128 bits.
   */
  DLDataType dtype;
  /**
   * The number of dimensions, 0 to 8.
   */
  uint32_t ndim;
  /**
   * The size of each dimension, at least 0; those from ndim on are not read. A tensor has at most 2^40 bytes.
   */
  int64_t shape[8];
} dualpipe_tensor_spec;

/**
 * How an executor is to run. Start from DUALPIPE_EXECUTOR_OPTIONS_INIT.
 */
typedef struct dualpipe_executor_options {
  /**
   * sizeof(dualpipe_executor_options).
   */
  uint32_t size;
  /**
   * How many tensors cross each boundary, 0 to 32.
   */
  uint32_t num_tensors;
  /**
   * What they are, num_tensors of them. A gradient has the dtype and shape of its activation. All ranks must say the
   * same.
   */
  const struct dualpipe_tensor_spec *tensors;
  /**
   * No single wait for a peer lasts longer, in nanoseconds: more than the longest task of any rank, at most a day. 0
   * is a minute.
   */
  uint64_t timeout_ns;
  /**
   * Joins the ranks of one process. Exactly one of inproc, transport and nccl is not NULL.
   */
  dualpipe_inproc_t inproc;
  /**
   * The caller's own transport, copied.
   */
  const dualpipe_transport *transport;
  /**
   * The caller's own memory for tensors, copied. NULL: the executor has its own, reused from step to step. With
   * cuda it is memory of the device, used and given back in the order of the compute stream: what allocate gives
   * may still be in use by what was enqueued there before, what release gets may be used again by what is enqueued
   * there afterwards.
   */
  const dualpipe_memory *memory;
  /**
   * The CUDA device to run on, copied. NULL: the host.
   */
  const dualpipe_cuda_options *cuda;
  /**
   * NCCL joins the ranks, each in a process of its own. Only with cuda.
   */
  const dualpipe_nccl_options *nccl;
} dualpipe_executor_options;

/**
 * Runs one rank's program. One thread at a time: another gets DUALPIPE_ERROR_BUSY, and so does a callback of its own.
 * After a failed step it can only be asked for its fault and its timeline, and freed. It is useless in a child of
 * fork. Free it with dualpipe_executor_free.
 */
typedef struct dualpipe_executor *dualpipe_executor_t;

/**
 * Why an executor failed. Start from DUALPIPE_FAULT_INIT.
 */
typedef struct dualpipe_fault {
  /**
   * sizeof(dualpipe_fault).
   */
  uint32_t size;
  /**
   * 1 if it has failed, 0 if not; then the rest is not to be read.
   */
  uint32_t has_failed;
  /**
   * The rank that stopped: the executor's.
   */
  uint32_t rank;
  /**
   * The other rank that it is about, or DUALPIPE_NONE.
   */
  uint32_t peer;
  /**
   * At which instruction of the program.
   */
  uint64_t instruction;
  /**
   * The dualpipe_status of the step.
   */
  uint32_t status;
  /**
   * 0.
   */
  uint32_t reserved;
} dualpipe_fault;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates an executor for `program`. It takes its rank's place in the inproc, or the transport; its buffers are
 * allocated now, with cuda on the device, with its streams and events. With nccl it waits, at most timeout_ns, until
 * all ranks that it has messages with have come. The program may be freed.
 *
 * Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the rank's place is taken; DUALPIPE_ERROR_POISONED if a rank of the
 * inproc has failed; with cuda DUALPIPE_ERROR_UNAVAILABLE and DUALPIPE_ERROR_DEVICE, with nccl
 * DUALPIPE_ERROR_TIMEOUT and DUALPIPE_ERROR_TRANSPORT.
 */
dualpipe_status dualpipe_executor_create(dualpipe_program_t program,
                                         const struct dualpipe_executor_options *options,
                                         dualpipe_executor_t *executor);

/**
 * Frees an executor. NULL is fine. A step that was started is waited for, which its deadlines bound; other ranks that
 * are in the middle of a step are told that this one is gone.
 */
dualpipe_status dualpipe_executor_free(dualpipe_executor_t executor);

/**
 * Other tensors at the boundary after `stage` of `direction`, for every micro-batch, from the next step on. Every rank
 * must be told the same. Allocates if they are larger than any before.
 */
dualpipe_status dualpipe_executor_set_boundary(dualpipe_executor_t executor,
                                               uint32_t direction,
                                               uint32_t stage,
                                               const struct dualpipe_tensor_spec *tensors,
                                               uint32_t num_tensors);

/**
 * Other tensors for one micro-batch, counted within its direction, at every boundary, from the next step on: for
 * example another sequence length. It overrides dualpipe_executor_set_boundary. Every rank must be told the same.
 * Allocates if they are larger than any before.
 */
dualpipe_status dualpipe_executor_set_microbatch(dualpipe_executor_t executor,
                                                 uint32_t direction,
                                                 uint32_t microbatch,
                                                 const struct dualpipe_tensor_spec *tensors,
                                                 uint32_t num_tensors);

/**
 * Runs one step on this thread: calls task for every task of the program, in order, each when what it reads is there.
 * Returns when all are done and all that was sent has been taken. It does not allocate once the first step has run.
 *
 * On a CUDA device a task only enqueues, on the streams that it is handed; no task waits for another. The step returns
 * when the device is done, or with is_stream_ordered when all of it is enqueued; it then first waits for the end of
 * the step before.
 *
 * Errors, each with rank, instruction and peer: DUALPIPE_ERROR_TIMEOUT, DUALPIPE_ERROR_CALLBACK_FAILED,
 * DUALPIPE_ERROR_PEER_FAILED, DUALPIPE_ERROR_TRANSPORT, DUALPIPE_ERROR_DEVICE; DUALPIPE_ERROR_POISONED after any of
 * them. All other ranks end with an error too.
 */
dualpipe_status dualpipe_executor_step(dualpipe_executor_t executor,
                                       dualpipe_task_fn task,
                                       void *user_data);

/**
 * Runs one step like dualpipe_executor_step, but on a thread of the executor's own, and returns at once. task is
 * called on that thread. dualpipe_executor_wait ends it.
 */
dualpipe_status dualpipe_executor_start(dualpipe_executor_t executor,
                                        dualpipe_task_fn task,
                                        void *user_data);

/**
 * Waits for the step that dualpipe_executor_start began, at most timeout_ns; returns what dualpipe_executor_step would
 * have returned.
 *
 * Errors: DUALPIPE_ERROR_TIMEOUT with the text "still running" if it goes on, then wait again;
 * DUALPIPE_ERROR_INVALID_ARGUMENT if no step was started.
 */
dualpipe_status dualpipe_executor_wait(dualpipe_executor_t executor,
                                       uint64_t timeout_ns);

/**
 * Waits, at most timeout_ns, until the device is done with the last step. On the host it always is.
 *
 * Errors: DUALPIPE_ERROR_TIMEOUT with the text "still running" if it is not, then wait again; those of
 * dualpipe_executor_step if the step failed on the device.
 */
dualpipe_status dualpipe_executor_synchronize(dualpipe_executor_t executor,
                                              uint64_t timeout_ns);

/**
 * How far the executor is from launching whole steps as CUDA graphs: writes a dualpipe_graph_state, and why a step
 * could not be captured, as a text, which is "" if none was tried or it could.
 */
dualpipe_status dualpipe_executor_graph(dualpipe_executor_t executor,
                                        uint32_t *state,
                                        char *text,
                                        size_t capacity,
                                        size_t *length);

/**
 * The timeline of this rank in its last step, which may have failed. dualpipe_timeline_merge joins the ranks'. On a
 * CUDA device it is there if the executor is_timed and the step is known to be done.
 */
dualpipe_status dualpipe_executor_timeline(dualpipe_executor_t executor,
                                           dualpipe_timeline_t *timeline);

/**
 * Whether and why an executor failed. The words are the step's dualpipe_last_error.
 */
dualpipe_status dualpipe_executor_fault(dualpipe_executor_t executor, struct dualpipe_fault *fault);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_executor_options: `dualpipe_executor_options x = DUALPIPE_EXECUTOR_OPTIONS_INIT;` */
#define DUALPIPE_EXECUTOR_OPTIONS_INIT { sizeof(dualpipe_executor_options), 0, NULL, 0, NULL, NULL, NULL, NULL, NULL }

/** Initializes a dualpipe_fault: `dualpipe_fault x = DUALPIPE_FAULT_INIT;` */
#define DUALPIPE_FAULT_INIT { sizeof(dualpipe_fault), 0, 0, 0, 0, 0, 0 }

#endif /* DUALPIPE_EXECUTOR_H */
