/*
 * CUDA devices: executors whose tensors are in device memory and whose tasks are enqueued on streams. The driver and
 * NCCL are looked up when they are asked for; the library does not need them to be there.
 *
 * A task on a device is called like any other, but enqueues its work on task->compute_stream and returns: it never
 * waits for the device. What it reads is there in the order of that stream. The library makes no context current for
 * longer than a call, and needs no CUDA header: streams are void pointers, a CUstream or a cudaStream_t.
 *
 *     // An executor on a device, of ranks in processes joined by NCCL. id is what dualpipe_nccl_unique_id gave.
 *     #include <dualpipe.h>
 *
 *     static dualpipe_status on_device(dualpipe_program_t program, uint32_t device, const uint8_t *id,
 *                                      size_t id_length, const dualpipe_tensor_spec *tensors, uint32_t num_tensors,
 *                                      dualpipe_executor_t *executor) {
 *       dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
 *       dualpipe_cuda_options cuda = DUALPIPE_CUDA_OPTIONS_INIT;
 *       dualpipe_nccl_options nccl = DUALPIPE_NCCL_OPTIONS_INIT;
 *       cuda.device = device;
 *       nccl.unique_id = id;
 *       nccl.unique_id_length = id_length;
 *       options.tensors = tensors;
 *       options.num_tensors = num_tensors;
 *       options.cuda = &cuda;
 *       options.nccl = &nccl;
 *       return dualpipe_executor_create(program, &options, executor);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_CUDA_H
#define DUALPIPE_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include "schedule.h"
#include "status.h"

/**
 * How far an executor is from launching whole steps.
 */
enum dualpipe_graph_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Graphs were not asked for.
   */
  DUALPIPE_GRAPH_OFF = 0,
  /**
   * The next step runs as usual.
   */
  DUALPIPE_GRAPH_COLD = 1,
  /**
   * The next step is captured.
   */
  DUALPIPE_GRAPH_WARM = 2,
  /**
   * Steps are launched.
   */
  DUALPIPE_GRAPH_CAPTURED = 3,
  /**
   * A step could not be captured: steps run as usual.
   */
  DUALPIPE_GRAPH_FELL_BACK = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_graph_state dualpipe_graph_state;
#else
typedef uint32_t dualpipe_graph_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What CUDA there is. Start from DUALPIPE_CUDA_INFO_INIT.
 */
typedef struct dualpipe_cuda_info {
  /**
   * sizeof(dualpipe_cuda_info).
   */
  uint32_t size;
  /**
   * Devices, at least 1.
   */
  uint32_t num_devices;
  /**
   * The newest CUDA that the driver knows: 1000 * major + 10 * minor.
   */
  uint32_t driver_version;
  /**
   * 0.
   */
  uint32_t reserved;
} dualpipe_cuda_info;

/**
 * How an executor uses a CUDA device. Start from DUALPIPE_CUDA_OPTIONS_INIT: device 0, streams of the executor's own,
 * nothing recorded, steps that are done when they return.
 */
typedef struct dualpipe_cuda_options {
  /**
   * sizeof(dualpipe_cuda_options).
   */
  uint32_t size;
  /**
   * Which device, from 0. Its primary context is used, as by the CUDA runtime and PyTorch; it is borrowed.
   */
  uint32_t device;
  /**
   * The stream to compute on: a CUstream or cudaStream_t of the device, borrowed until the executor is freed.
   * NULL: one of the executor's own. (void *)1 is the legacy default stream, which cannot be captured.
   */
  void *compute_stream;
  /**
   * The stream that tasks get for expert communication, likewise. NULL: see has_comm_stream.
   */
  void *comm_stream;
  /**
   * 1: without a comm_stream, tasks get one of the executor's own, of the highest priority. 0: they get none.
   */
  uint32_t has_comm_stream;
  /**
   * 1: the start and end of each task and message are recorded by events, for dualpipe_executor_timeline.
   */
  uint32_t is_timed;
  /**
   * 1: a step returns when all of it is enqueued, and dualpipe_executor_synchronize waits for it; what is enqueued
   * on compute_stream afterwards comes after the step. 0: a step returns when the device is done with it.
   */
  uint32_t is_stream_ordered;
  /**
   * 1: the second step is captured as a CUDA graph, which later steps launch without calling the tasks. Every rank
   * must say the same. A task must be capturable, and must not wait for another rank's; if it is not, steps go on
   * as usual, and dualpipe_executor_graph says why. Not with exchanges_shapes or the caller's memory.
   */
  uint32_t uses_graph;
  /**
   * 1: the shapes of tensors travel with them, so that a task may write smaller ones than agreed into the shape of
   * its outputs and input_grads. With NCCL the host then waits for each message's header, and gradients may be
   * absent, which otherwise NCCL cannot tell. Every rank must say the same.
   */
  uint32_t exchanges_shapes;
  /**
   * 0.
   */
  uint32_t reserved;
} dualpipe_cuda_options;

/**
 * How NCCL joins the ranks of a pipeline. Start from DUALPIPE_NCCL_OPTIONS_INIT.
 */
typedef struct dualpipe_nccl_options {
  /**
   * sizeof(dualpipe_nccl_options).
   */
  uint32_t size;
  /**
   * Multiprocessors (CTAs) that each communicator uses at most, 1 to 64; 0 is 2.
   */
  uint32_t max_ctas;
  /**
   * What dualpipe_nccl_unique_id gave on one rank, the same on all, for one executor on each.
   */
  const uint8_t *unique_id;
  /**
   * Its length in bytes.
   */
  uint64_t unique_id_length;
  /**
   * 1: messages are put by copy engines where NCCL can, which take no multiprocessor: NCCL 2.29 or newer, with
   * uses_graph 2.30, not with exchanges_shapes. After a fault its streams may wait for ever, and another process
   * should take over. 0: messages are sent and received. Every rank must say the same.
   */
  uint32_t zero_cta;
  /**
   * 0.
   */
  uint32_t reserved;
} dualpipe_nccl_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What CUDA there is on this machine.
 *
 * Errors: DUALPIPE_ERROR_UNAVAILABLE, whose text says what is missing: the driver, a function of it, or a device.
 */
dualpipe_status dualpipe_cuda_available(struct dualpipe_cuda_info *info);

/**
 * The version of NCCL that is found, 10000 * major + 100 * minor + patch: that of the library which the environment
 * variable DUALPIPE_NCCL_LIB names; else libnccl.so.2, of which the copy that the process has, for example PyTorch's,
 * is taken; else libnccl.so.
 *
 * Errors: DUALPIPE_ERROR_UNAVAILABLE, whose text says what is missing.
 */
dualpipe_status dualpipe_nccl_version(uint32_t *version);

/**
 * New ids for the communicators of a pipeline that follows schedule, one for each pair of ranks that exchange messages
 * and way between them: 128 bytes each. One rank asks for them and hands them to all others by whatever it has (MPI, a
 * store, a file); each set is for one executor on each rank. That rank's process must live while the others join.
 *
 * bytes: NULL with capacity 0 asks for the count alone, which needs no NCCL.
 *
 * Errors: DUALPIPE_ERROR_BUFFER_TOO_SMALL; DUALPIPE_ERROR_UNAVAILABLE without NCCL; DUALPIPE_ERROR_TRANSPORT with
 * NCCL's own words.
 */
dualpipe_status dualpipe_nccl_unique_id(dualpipe_schedule_t schedule,
                                        uint8_t *bytes,
                                        size_t capacity,
                                        size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_cuda_options: `dualpipe_cuda_options x = DUALPIPE_CUDA_OPTIONS_INIT;` */
#define DUALPIPE_CUDA_OPTIONS_INIT { sizeof(dualpipe_cuda_options), 0, NULL, NULL, 0, 0, 0, 0, 0, 0 }

/** Initializes a dualpipe_nccl_options: `dualpipe_nccl_options x = DUALPIPE_NCCL_OPTIONS_INIT;` */
#define DUALPIPE_NCCL_OPTIONS_INIT { sizeof(dualpipe_nccl_options), 0, NULL, 0, 0, 0 }

/** Initializes a dualpipe_cuda_info: `dualpipe_cuda_info x = DUALPIPE_CUDA_INFO_INIT;` */
#define DUALPIPE_CUDA_INFO_INIT { sizeof(dualpipe_cuda_info), 0, 0, 0 }

#endif /* DUALPIPE_CUDA_H */
