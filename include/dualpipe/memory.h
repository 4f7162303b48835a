/*
 * The caller's own memory for tensors, so that nothing is copied in or out of the executor.
 *
 *     // Memory from malloc. user_data is not needed; the owner is the address itself.
 *     #include <dualpipe.h>
 *     #include <stdlib.h>
 *
 *     static int32_t allocate(void *user_data, uint64_t num_bytes, void **data, void **owner) {
 *       (void)user_data;
 *       *data = *owner = malloc(num_bytes > 0 ? num_bytes : 1);
 *       return *data == NULL;
 *     }
 *     static void release(void *user_data, void *data, void *owner) {
 *       (void)user_data, (void)data;
 *       free(owner);
 *     }
 *     static void use_malloc(dualpipe_memory *memory) { // the executor's options then point to it
 *       memory->allocate = allocate;
 *       memory->release = release;
 *     }
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_MEMORY_H
#define DUALPIPE_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"

/**
 * allocate.
 */
typedef int32_t (*dualpipe_memory_allocate_fn)(void *user_data,
                                               uint64_t num_bytes,
                                               void **data,
                                               void **owner);

/**
 * release.
 */
typedef void (*dualpipe_memory_release_fn)(void *user_data, void *data, void *owner);

/**
 * The caller's memory for tensors. Start from DUALPIPE_MEMORY_INIT. The library copies it.
 *
 * With it the executor has no buffers of its own, and nothing is copied: what is received goes into memory that
 * allocate gives, and an output is wherever the task puts it. Both functions are called on the thread that runs the
 * executor's step, and release by dualpipe_executor_free too.
 */
typedef struct dualpipe_memory {
  /**
   * sizeof(dualpipe_memory).
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
   * Gives memory for a tensor of num_bytes bytes that is to be received, aligned for its elements: writes its
   * address, and a word that release gets back. Non-zero ends the step. Never NULL.
   */
  dualpipe_memory_allocate_fn allocate;
  /**
   * The executor does not use the memory any more: what allocate gave, or what a task put into an output. Called
   * once for each. Never NULL.
   */
  dualpipe_memory_release_fn release;
} dualpipe_memory;

/** Initializes a dualpipe_memory: `dualpipe_memory x = DUALPIPE_MEMORY_INIT;` */
#define DUALPIPE_MEMORY_INIT { sizeof(dualpipe_memory), 0, NULL, NULL, NULL }

#endif /* DUALPIPE_MEMORY_H */
