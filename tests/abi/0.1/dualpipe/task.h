/*
 * Tasks: what an executor's callback is handed.
 *
 *     kind           forward     backward    reads                  writes
 *     F              a pass      NULL        inputs                 outputs
 *     B, I           NULL        a pass      inputs, output_grads   input_grads
 *     W              NULL        a pass      inputs, output_grads
 *     FB             a pass      a pass      as F and as B          as F and as B
 *     REDUCE_GRADS   NULL        NULL        (op.backward says of which copy, reduce_peer with whom to sum)
 *
 * B, FB and W add to the gradients of the stage's weights, which are yours, as all that is not in the table:
 * parameters, data at the first stage, labels at the last. Of the last stage no gradient comes in: its loss is where
 * it begins. A stage has two copies in a schedule of two directions, on two ranks: pass.copy tells the rank's own
 * apart.
 *
 * On failure say why with dualpipe_task_set_error and return non-zero: the step ends with these words on all ranks.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_TASK_H
#define DUALPIPE_TASK_H

#include <stddef.h>
#include <stdint.h>
#include "op.h"
#include "status.h"
#include "tensor.h"

/**
 * A tensor of a message: dense, row-major, in ordinary memory or, as dl.device says, in that of a CUDA device.
 */
typedef struct dualpipe_tensor {
  /**
   * The tensor. Its shape and strides are the executor's, until the task returns. Where shapes are exchanged the
   * task may make the numbers in the shape of what it writes smaller; the strides then follow.
   */
  DLTensor dl;
  /**
   * With the caller's memory (dualpipe_memory): the word that release gets with data. Otherwise NULL.
   */
  void *owner;
  /**
   * 1; 0 for a gradient that does not exist: in output_grads, the next stage made none; in input_grads, the task
   * sets it if it has none. Activations are always there.
   */
  uint32_t is_present;
  /**
   * 0.
   */
  uint32_t reserved;
} dualpipe_tensor;

/**
 * A pass and its tensors. At the first stage there are no inputs and no input_grads, at the last no outputs and no
 * output_grads; whatever else a stage keeps from F to W is its own business.
 */
typedef struct dualpipe_task_pass {
  /**
   * Direction, stage, micro-batch, and which of the rank's copies.
   */
  dualpipe_pass pass;
  /**
   * Length of inputs.
   */
  uint32_t num_inputs;
  /**
   * Length of outputs.
   */
  uint32_t num_outputs;
  /**
   * Length of output_grads.
   */
  uint32_t num_output_grads;
  /**
   * Length of input_grads.
   */
  uint32_t num_input_grads;
  /**
   * Activations from the previous stage, the same from F to W. To be read.
   */
  const struct dualpipe_tensor *inputs;
  /**
   * Activations for the next stage, to be filled by F. With the caller's memory data is NULL: the task sets dl, or
   * only its data, and owner; the dtype and shape stay as they are, row-major.
   */
  struct dualpipe_tensor *outputs;
  /**
   * Gradients from the next stage. To be read.
   */
  const struct dualpipe_tensor *output_grads;
  /**
   * Gradients for the previous stage, to be filled by B or I, or said to be absent. Memory as for outputs.
   */
  struct dualpipe_tensor *input_grads;
} dualpipe_task_pass;

/**
 * A task to run now. F reads inputs and writes outputs; B and I read inputs and output_grads and write input_grads; W
 * reads inputs and output_grads; FB does F and B of two passes, whose work may overlap. REDUCE_GRADS has no tensors:
 * every weight gradient of the copy in op.backward is final; sum it with that of the same stage in the other
 * direction, which is on reduce_peer. It grows with later versions: read it by its size.
 */
typedef struct dualpipe_task {
  /**
   * sizeof(dualpipe_task) in the library.
   */
  uint32_t size;
  /**
   * For REDUCE_GRADS the rank that has the other copy; else DUALPIPE_NONE.
   */
  uint32_t reduce_peer;
  /**
   * What to do: its kind is a dualpipe_op_kind.
   */
  dualpipe_op op;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * The pass to run forward; NULL if there is none.
   */
  const struct dualpipe_task_pass *forward;
  /**
   * The pass to run backward; NULL if there is none.
   */
  const struct dualpipe_task_pass *backward;
  /**
   * On a CUDA device, the CUstream to compute on: what the task reads is there in its order, and whoever reads
   * what the task writes comes after it. NULL on the host.
   */
  void *compute_stream;
  /**
   * On a CUDA device, a stream for expert communication, if the executor has one. The task's work on it comes
   * after all earlier tasks, and before all later ones. NULL if there is none.
   */
  void *comm_stream;
} dualpipe_task;

/**
 * Runs one task on the thread that runs the step, and returns 0; on a CUDA device enqueues it, and waits for nothing.
 * Anything else ends the step on all ranks. The task and all that it points to is valid until it returns. It may call
 * any function of the library but those on its own executor, which return DUALPIPE_ERROR_BUSY.
 */
typedef int32_t (*dualpipe_task_fn)(void *user_data, const struct dualpipe_task *task);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Says in words why the task that this thread runs is about to return non-zero: the step's error repeats them.
 *
 * text: NUL-terminated, at most 4095 bytes are kept; NULL takes the words back.
 */
dualpipe_status dualpipe_task_set_error(const char *text);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_TASK_H */
