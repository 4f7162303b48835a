/* Control of the stand-in libcuda.so.1: how tests steer it, break it and read what it found. Resolved by dlsym.
 *
 * The stand-in keeps CUDA's order and no more: each stream is a FIFO, and among the streams whose head can run a
 * seeded choice is made. Every op declares what memory it touches, and two conflicting accesses that the program has
 * not ordered are reported as a race in every run, whatever the seed made of them.
 *
 * What orders: a stream's own ops, an event waited for, a graph's edges, NCCL's data (standin_clock_*), and a host
 * thread that synchronised (or saw a query succeed) before it enqueued. What one host thread learnt another does not
 * know: a thread that relies on another's synchronising must synchronise itself, or the test says
 * standin_host_barrier.
 *
 * A status is a CUresult. All functions may be called from any thread; inside an op only those that say so. */
#ifndef DUALPIPE_CUDA_STANDIN_H
#define DUALPIPE_CUDA_STANDIN_H

#include <stddef.h>
#include <stdint.h>

#define STANDIN_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that an op reads or writes: device memory or pinned host memory. */
typedef struct {
  uint64_t address;
  uint64_t num_bytes;
  uint32_t is_write;
  uint32_t reserved; /* 0 */
} standin_access;

enum {
  STANDIN_EAGER = 0, /* a thread runs ops as soon as it can */
  STANDIN_LAZY = 1   /* nothing runs before standin_run or a blocking call: the order is a function of the seed */
};

/* Ranks must be safe by their own waits alone: what the streams of rank A did is not learnt back by A through another
 * rank's event, token or host thread; and what a stream of rank B did to memory that A allocated, A learns only from
 * that stream itself. */
enum { STANDIN_RANK_LOCAL = 1 };

/* A new life: waits for the op that is running, then forgets queues, handles, faults, problems and counters, and frees
 * all memory. Calls that block return CUDA_ERROR_DEINITIALIZED. Without any reset a process has an eager life with
 * seed 0 and one device. */
STANDIN_API void standin_reset(uint64_t seed, uint32_t mode, uint32_t num_devices, uint32_t flags);

/* Runs all that can run (eager: waits for it); the number of ops still queued, 0 if all is done. */
STANDIN_API uint64_t standin_run(void);

/* Every host thread knows of all that has run until now: for a test that has just joined its threads, or is about to
 * start them after it filled the memory. */
STANDIN_API void standin_host_barrier(void);

/* The rank of the streams that this thread creates from now on; -1 (none) at first. Default streams have none. */
STANDIN_API void standin_set_rank(int32_t rank);

/* A "kernel": runs fn(user) in stream order. It may be captured, and then runs in every replay. */
STANDIN_API int32_t standin_launch(void *stream, const char *label, void (*fn)(void *), void *user,
                                   const standin_access *accesses, size_t num_accesses);

/* An op of a communication library: it can run once ready(user) is not 0. `ready` is called under the engine's lock: it
 * reads atomics and calls nothing. `run` and `drop` are called without that lock, `drop` once: when the op is over or
 * was discarded, or, if it was captured, when the graph and its executables are gone; in a replay `ready` and `run`
 * are called anew. All three may be NULL. If the call fails, `drop` is not called. Peer access is not asked for. */
STANDIN_API int32_t standin_enqueue(void *stream, const char *label, int (*ready)(void *), void (*run)(void *),
                                    void (*drop)(void *), void *user, const standin_access *accesses,
                                    size_t num_accesses);

/* Something that a `ready` looks at has changed. Takes no lock, so that it may be called anywhere. */
STANDIN_API void standin_wake(void);

/* Inside an op: publishes the clock of this op, its own accesses included, under a fresh token. */
STANDIN_API void standin_clock_release(uint64_t *token);

/* Inside an op: this op comes after the one that released the token (0: nothing happens). The accesses of an op are
 * checked when it has run, so that what it acquired counts for all of them; later ops of its stream come after too. */
STANDIN_API void standin_clock_acquire(uint64_t token);

/* Calls of cuStreamWaitEvent on streams of a rank since the reset. */
STANDIN_API uint64_t standin_num_waits(int32_t rank);

/* That call (from 0, since the reset) is accepted and orders nothing; UINT64_MAX: none. One per rank. */
STANDIN_API void standin_skip_wait(int32_t rank, uint64_t ordinal);

/* Device work enqueued on streams of a rank since the reset: copies, sets, kernels, host functions, ops of libraries
 * and each node of a launched graph. Event records and waits do not count, nor does what is only captured. */
STANDIN_API uint64_t standin_num_ops(int32_t rank);

/* That op (from 0, since the reset) does nothing and leaves its context failed with this code. To be set before it is
 * enqueued. What is queued in the context is dropped; other contexts that wait for its events wait forever. */
STANDIN_API void standin_fail_op(int32_t rank, uint64_t ordinal, int32_t code);

/* That op never runs until standin_release. To be set before it is enqueued. */
STANDIN_API void standin_hang_op(int32_t rank, uint64_t ordinal);

/* Lets go of everything that hangs: ops that were told to, and waits for events of failed contexts. */
STANDIN_API void standin_release(void);

/* The ordinal-th call from now (0: the next) of a driver function returns a code and does nothing else. Here and below
 * a name is good with and without its "_v2". */
STANDIN_API void standin_fail_call(const char *function, uint64_t ordinal, int32_t code);

/* Calls of a driver function since the reset; NULL: of all, save cuGetErrorName and cuGetErrorString. */
STANDIN_API uint64_t standin_num_calls(const char *function);

/* What lives: "streams", "events", "allocations", "host_allocations", "graphs", "graph_execs", "modules", "contexts"
 * (how often primary contexts are retained). UINT64_MAX for any other word. */
STANDIN_API uint64_t standin_live(const char *kind);

/* Checks all guard zones, then writes the problems found since the reset, a line each, as a C string cut to the
 * capacity; its whole length. */
STANDIN_API size_t standin_report(char *text, size_t capacity);

/* Until the next reset: what cuDriverGetVersion says (13000), and what cuDeviceCanAccessPeer does (1). */
STANDIN_API void standin_set_driver_version(int32_t version);
STANDIN_API void standin_set_peer_access(int32_t is_possible);

/* A kernel that cuModuleGetFunction finds in every module, for the life of the process. cuLaunchKernel copies its
 * parameters by these sizes. `accesses` writes up to `capacity` accesses and returns how many there are; NULL: the
 * kernel goes unchecked. It is called under the engine's lock, when the kernel is launched. */
STANDIN_API void standin_register_kernel(
    const char *name,
    void (*fn)(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **params),
    size_t (*accesses)(const uint32_t grid[3], const uint32_t block[3], void **params, standin_access *out,
                       size_t capacity),
    const size_t *param_sizes, size_t num_params);

#ifdef __cplusplus
}
#endif

#endif
