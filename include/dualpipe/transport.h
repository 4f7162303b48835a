/*
 * Transports: how messages get from rank to rank. In one process the library's own; across processes the caller's,
 * through a table of functions (MPI, torch.distributed, UCX, anything that sends bytes).
 *
 * In one process: create an inproc for all ranks, put it into each executor's options, free it when they are created.
 *
 * A transport of yours is used by one executor, in this order: send and receive start transfers, which may be many at
 * once; test asks for each until it has ended; wait, between tests, may sleep. If the rank fails, abort tells the
 * others, and withdraw ends what is under way, also when the executor is freed. destroy is the last call. On the host:
 *
 *     MPI           send MPI_Isend, receive MPI_Irecv, test MPI_Test; the tag from message (kind, direction, stage,
 *                   micro-batch) and tensor
 *     a socket      for each peer: send queues the bytes with tag and length, receive looks for the tag among what came
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_TRANSPORT_H
#define DUALPIPE_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "status.h"

/**
 * What a transport's functions return.
 */
enum dualpipe_transport_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done; for test: see done.
   */
  DUALPIPE_TRANSPORT_OK = 0,
  /**
   * send and receive: not now, ask again.
   */
  DUALPIPE_TRANSPORT_AGAIN = 1,
  /**
   * The peer is no longer there.
   */
  DUALPIPE_TRANSPORT_PEER_GONE = 2,
  /**
   * The transport failed, as every other number says; last_error may tell how.
   */
  DUALPIPE_TRANSPORT_FAILED = 3,
  /**
   * test: it has waited for the transfer as long as the executor's timeout_ns.
   */
  DUALPIPE_TRANSPORT_TIMED_OUT = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_transport_code dualpipe_transport_code;
#else
typedef uint32_t dualpipe_transport_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a dualpipe_inproc_t points to: nothing that C could look into.
 */
typedef struct dualpipe_inproc dualpipe_inproc;

/**
 * What the ranks of one process share, so that their executors can exchange messages: a message is one copy. Each rank
 * is for one executor; after a failure create a new one. Any number of threads may use it at once. It is useless in a
 * child of fork. Free it with dualpipe_inproc_free; executors that use it keep what they need.
 */
typedef struct dualpipe_inproc *dualpipe_inproc_t;

/**
 * One tensor of one message, to be sent or received. It grows with later versions: read it by its size.
 */
typedef struct dualpipe_transfer {
  /**
   * sizeof(dualpipe_transfer) in the library.
   */
  uint32_t size;
  /**
   * The other rank.
   */
  uint32_t peer;
  /**
   * Direction and kind of the message, 0 to 3. Two ranks send and receive in the same order, within a channel and
   * over all; a transport may rely on that instead of the tag.
   */
  uint32_t channel;
  /**
   * Which of the message's tensors, from 0.
   */
  uint32_t tensor;
  /**
   * A number of its own for each tensor of each message of each step, below 2^56, the same on both sides: message,
   * tensor and step in one.
   */
  uint64_t tag;
  /**
   * The elements, in ordinary memory or, with a stream, on a CUDA device. It stays in place until the transfer has
   * ended or was withdrawn.
   */
  void *data;
  /**
   * How many bytes to send, or at most to receive. An absent gradient is sent as 0 bytes, and must arrive as such.
   */
  uint64_t num_bytes;
  /**
   * On a CUDA device, the CUstream in whose order the transfer is: send and receive enqueue it there and return, and
   * test is never called. Each peer has a stream for what goes to it and one for what comes from it. NULL on the
   * host.
   */
  void *stream;
  /**
   * On a CUDA device, which one. 0 on the host.
   */
  uint32_t device;
  /**
   * In which step of the executor, modulo 65536.
   */
  uint32_t step;
  /**
   * What the tensor is part of.
   */
  dualpipe_message message;
} dualpipe_transfer;

/**
 * send and receive: a dualpipe_transport_code.
 */
typedef uint32_t (*dualpipe_transport_post_fn)(void *user_data,
                                               const struct dualpipe_transfer *transfer,
                                               uint64_t *request);

/**
 * test: a dualpipe_transport_code.
 */
typedef uint32_t (*dualpipe_transport_test_fn)(void *user_data,
                                               uint64_t request,
                                               uint32_t *done,
                                               uint64_t *num_bytes);

/**
 * wait.
 */
typedef void (*dualpipe_transport_wait_fn)(void *user_data, uint64_t timeout_ns);

/**
 * poll_abort.
 */
typedef uint32_t (*dualpipe_transport_poll_fn)(void *user_data,
                                               uint32_t *rank,
                                               char *text,
                                               size_t capacity);

/**
 * abort.
 */
typedef void (*dualpipe_transport_abort_fn)(void *user_data, uint32_t rank, const char *text);

/**
 * withdraw and destroy.
 */
typedef void (*dualpipe_transport_done_fn)(void *user_data);

/**
 * last_error.
 */
typedef void (*dualpipe_transport_error_fn)(void *user_data, char *text, size_t capacity);

/**
 * A transport of the caller's, one rank's end of it. Start from DUALPIPE_TRANSPORT_INIT. The library copies it.
 *
 * All functions get user_data. They are called on the thread that runs the executor's step, one at a time, and by
 * dualpipe_executor_free. None but wait may wait, and test if there is no way to ask without: for as long as the
 * executor's timeout_ns at most, and it returns at once when another rank fails. They may not call the executor.
 *
 * On a CUDA device abort and poll_abort are also called by the executor's watchdog, on threads of its own, at any
 * time. abort then has to end what has been enqueued and cannot end any more, such as a receive whose sender is
 * gone. Nothing tells an absent gradient there, since sizes are as agreed.
 */
typedef struct dualpipe_transport {
  /**
   * sizeof(dualpipe_transport).
   */
  uint32_t size;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What the functions get.
   */
  void *user_data;
  /**
   * Starts to send; writes a number of the caller's choice by which test asks for it. Never NULL.
   */
  dualpipe_transport_post_fn send;
  /**
   * Posts a receive, likewise. Never NULL.
   */
  dualpipe_transport_post_fn receive;
  /**
   * Whether a transfer has ended: writes 1 to done and how many bytes were transferred, or 0 to done. Never NULL.
   */
  dualpipe_transport_test_fn test;
  /**
   * Returns when something may have changed, or after timeout_ns, or for no reason. NULL: the library tests again
   * every few microseconds, at first at once, at the latest every 200.
   */
  dualpipe_transport_wait_fn wait;
  /**
   * What another rank told by abort, if any did: writes its rank and a text, NUL-terminated, of at most capacity
   * bytes, and returns 1; 0 if none did. NULL: failing ranks are found by the deadline.
   */
  dualpipe_transport_poll_fn poll_abort;
  /**
   * Tells all other ranks that rank failed, as far as possible. NULL: they find out by the deadline.
   */
  dualpipe_transport_abort_fn abort;
  /**
   * Ends all transfers: when it returns, none of their memory is touched any more. Never NULL.
   */
  dualpipe_transport_done_fn withdraw;
  /**
   * Writes in words what went wrong last, NUL-terminated, at most capacity bytes. NULL: no words.
   */
  dualpipe_transport_error_fn last_error;
  /**
   * The executor has been freed: no function is called any more. It comes after a watchdog's abort; one that takes
   * longer than 5 s calls it itself. Not called if the executor could not be created. NULL: nothing to do.
   */
  dualpipe_transport_done_fn destroy;
} dualpipe_transport;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates what num_ranks ranks of this process (1 to 4096) share.
 */
dualpipe_status dualpipe_inproc_create(uint32_t num_ranks, dualpipe_inproc_t *inproc);

/**
 * Frees it. NULL is fine. Executors that use it go on.
 */
dualpipe_status dualpipe_inproc_free(dualpipe_inproc_t inproc);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** Initializes a dualpipe_transport: `dualpipe_transport x = DUALPIPE_TRANSPORT_INIT;` */
#define DUALPIPE_TRANSPORT_INIT \
  { sizeof(dualpipe_transport), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL }

#endif /* DUALPIPE_TRANSPORT_H */
