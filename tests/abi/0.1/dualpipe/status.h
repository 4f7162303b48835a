/*
 * Status codes, and the text of the last failure of each thread.
 *
 * What can be done about a status:
 *
 *     INVALID_ARGUMENT, INVALID_HANDLE, BUFFER_TOO_SMALL, BUSY, FORKED
 *         The call is at fault, and nothing was changed: correct it.
 *     INVALID_SCHEDULE
 *         The schedule cannot run; the text says which op of which rank is why.
 *     TIMEOUT, CALLBACK_FAILED, PEER_FAILED, TRANSPORT, DEVICE
 *         A step has failed, on all ranks: read the text, free all executors and their inproc, create new ones.
 *         TIMEOUT of dualpipe_executor_wait and dualpipe_executor_synchronize only says "still running": wait again.
 *     POISONED
 *         The object, or one that it depends on, has failed before: free it.
 *     CANCELLED
 *         Your progress callback asked for it.
 *     UNAVAILABLE
 *         Install what the text names, or do without CUDA or NCCL.
 *     PANIC, INTERNAL
 *         A defect or a limit of the library: please report the text.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_STATUS_H
#define DUALPIPE_STATUS_H

#include <stddef.h>
#include <stdint.h>

/**
 * What every function returns that can fail. The numbers are part of the ABI: never changed, never used again.
 */
enum dualpipe_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * It worked.
   */
  DUALPIPE_OK = 0,
  /**
   * An argument is NULL, misaligned or out of its range; nothing was changed.
   */
  DUALPIPE_ERROR_INVALID_ARGUMENT = 1,
  /**
   * A handle is NULL, freed, of another type, or none of this library's.
   */
  DUALPIPE_ERROR_INVALID_HANDLE = 2,
  /**
   * A schedule or program cannot run: an op is missing, doubled, misplaced or waits for ever.
   */
  DUALPIPE_ERROR_INVALID_SCHEDULE = 3,
  /**
   * An output buffer is too small. The count it would have to have was written.
   */
  DUALPIPE_ERROR_BUFFER_TOO_SMALL = 4,
  /**
   * A wait outlived its deadline.
   */
  DUALPIPE_ERROR_TIMEOUT = 5,
  /**
   * Another rank failed and stopped the step.
   */
  DUALPIPE_ERROR_PEER_FAILED = 6,
  /**
   * A callback of the caller's reported a failure.
   */
  DUALPIPE_ERROR_CALLBACK_FAILED = 7,
  /**
   * The transport failed.
   */
  DUALPIPE_ERROR_TRANSPORT = 8,
  /**
   * An earlier failure left the object unusable; it can only be freed.
   */
  DUALPIPE_ERROR_POISONED = 9,
  /**
   * The object is in use: by another thread, or by the caller of this very callback.
   */
  DUALPIPE_ERROR_BUSY = 10,
  /**
   * The object owns threads and was created before a fork: they are not in this process. It can only be freed.
   */
  DUALPIPE_ERROR_FORKED = 11,
  /**
   * A progress callback asked to stop.
   */
  DUALPIPE_ERROR_CANCELLED = 12,
  /**
   * A defect of this library: it panicked. The object that it was working on may be unusable.
   */
  DUALPIPE_ERROR_PANIC = 13,
  /**
   * A defect of this library, or a limit of it.
   */
  DUALPIPE_ERROR_INTERNAL = 14,
  /**
   * The driver or the device failed.
   */
  DUALPIPE_ERROR_DEVICE = 15,
  /**
   * A driver, a library or a device that was asked for is not there; the text says what is missing.
   */
  DUALPIPE_ERROR_UNAVAILABLE = 16,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_status dualpipe_status;
#else
typedef uint32_t dualpipe_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The name of a status, such as "DUALPIPE_ERROR_BUSY"; "unknown status" for a number that is none. Static; never
 * NULL. Any thread.
 */
const char *dualpipe_status_name(uint32_t status);

/**
 * Why this thread's last failing call failed: the function, the argument, its value and its range. "" if none has
 * failed yet; a call that works leaves it as it is. UTF-8; never NULL; valid until the thread's next failing call,
 * so copy it to keep it. Each thread has its own.
 */
const char *dualpipe_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_STATUS_H */
