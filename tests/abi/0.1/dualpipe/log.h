/*
 * The log callback and the progress callback of the process. Without them the library says nothing.
 *
 *     // Warnings and errors go to stderr, for every thread of the process: dualpipe_set_log(to_stderr, NULL).
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static void to_stderr(void *user_data, uint32_t level, const char *text) {
 *       (void)user_data;
 *       if (level >= DUALPIPE_LOG_WARNING) fprintf(stderr, "dualpipe: %s\n", text);
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_LOG_H
#define DUALPIPE_LOG_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * How much a line of the log matters.
 */
enum dualpipe_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * For those who look for a mistake: also every call that fails.
   */
  DUALPIPE_LOG_DEBUG = 1,
  /**
   * What the library decided.
   */
  DUALPIPE_LOG_INFO = 2,
  /**
   * It works, but not as well as it could.
   */
  DUALPIPE_LOG_WARNING = 3,
  /**
   * A defect of this library.
   */
  DUALPIPE_LOG_ERROR = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dualpipe_log_level dualpipe_log_level;
#else
typedef uint32_t dualpipe_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Is handed a line for the log: a dualpipe_log_level and a text, UTF-8, without a newline, valid during the call.
 *
 * Called on any thread, also on several at once, and on threads of the library's own. It may call the library; what
 * fails inside it is not logged. It must return: no exception, no longjmp.
 */
typedef void (*dualpipe_log_fn)(void *user_data, uint32_t level, const char *text);

/**
 * Is told how far a long call has come: `done` of `total`. It returns 0 to go on; anything else stops the call,
 * which then returns DUALPIPE_ERROR_CANCELLED.
 *
 * Called on the thread that made the long call, now and then. It may call the library, but not with an object that
 * the long call is changing. It must return: no exception, no longjmp.
 */
typedef int32_t (*dualpipe_progress_fn)(void *user_data, uint64_t done, uint64_t total);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Sets the log callback of the process; NULL turns the log off, which is how it starts. `user_data` is handed to it
 * as it is. Any thread. Another thread may still be in the old callback when this returns.
 */
dualpipe_status dualpipe_set_log(dualpipe_log_fn log,
                                 void *user_data);

/**
 * Sets the progress callback of the process; NULL turns it off, which is how it starts. `user_data` is handed to it
 * as it is. Any thread. Another thread may still be in the old callback when this returns.
 */
dualpipe_status dualpipe_set_progress(dualpipe_progress_fn progress,
                                      void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_LOG_H */
