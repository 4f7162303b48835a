/* A model whose every number is known: stage s turns x into x + 1, and a gradient g into 2 g. */
#ifndef MODEL_H
#define MODEL_H

#include <dualpipe.h>

#include "check.h"

enum { NUM_RANKS = 4, NUM_MICROBATCHES = 8, NUM_STAGES = 4 };

typedef struct rank_state {
  dualpipe_executor_t executor;
  /* What to set data of outputs to; NULL if the executor brings the memory. */
  void *(*allocate)(uint64_t num_bytes);
  int tasks, reductions;
  /* The task at which to fail, from 1; 0 never. */
  int fails_at;
  double first_input_grad;
} rank_state;

static float *floats(const dualpipe_tensor *tensor) { return (float *)tensor->dl.data; }

/* Memory for an output, if it is the caller's to bring. */
static void bring(const rank_state *state, dualpipe_tensor *tensor) {
  if (state->allocate != NULL) {
    CHECK(tensor->dl.data == NULL);
    tensor->dl.data = state->allocate(3 * sizeof(float));
    tensor->owner = tensor->dl.data;
  }
}

static void run_forward(const rank_state *state, const dualpipe_task_pass *p) {
  int i;
  CHECK((p->num_inputs == 0) == (p->pass.stage == 0));
  CHECK((p->num_outputs == 0) == (p->pass.stage == NUM_STAGES - 1));
  if (p->num_inputs > 0) {
    CHECK(p->inputs[0].dl.ndim == 1 && p->inputs[0].dl.shape[0] == 3 && p->inputs[0].dl.dtype.bits == 32);
    CHECK(floats(&p->inputs[0])[2] == (float)(100 * p->pass.microbatch + p->pass.stage));
  }
  if (p->num_outputs > 0) {
    bring(state, &p->outputs[0]);
    for (i = 0; i < 3; i++) {
      floats(&p->outputs[0])[i] =
          p->num_inputs > 0 ? floats(&p->inputs[0])[i] + 1 : (float)(100 * p->pass.microbatch + 1);
    }
  }
}

static void run_backward(rank_state *state, const dualpipe_task_pass *p, uint32_t kind) {
  const int has_grad = p->num_output_grads > 0;
  int i;
  CHECK(has_grad == (p->pass.stage != NUM_STAGES - 1));
  /* Odd micro-batches have no gradient before stage 2. */
  if (has_grad && p->pass.stage < 2 && p->pass.microbatch % 2 == 1) {
    CHECK(p->output_grads[0].is_present == 0);
  } else if (has_grad) {
    CHECK(p->output_grads[0].is_present == 1);
    CHECK(floats(&p->output_grads[0])[1] == (float)(1 << (NUM_STAGES - 1 - p->pass.stage)));
  }
  if (kind == DUALPIPE_OP_W) {
    CHECK(p->num_input_grads == 0);
    return;
  }
  if (p->num_input_grads == 0) {
    CHECK(p->pass.stage == 0);
    state->first_input_grad += 1;
    return;
  }
  if (p->pass.stage <= 2 && p->pass.microbatch % 2 == 1) {
    p->input_grads[0].is_present = 0;
    return;
  }
  bring(state, &p->input_grads[0]);
  for (i = 0; i < 3; i++) {
    floats(&p->input_grads[0])[i] = has_grad ? 2 * floats(&p->output_grads[0])[i] : 2;
  }
}

static int32_t run_task(void *user_data, const dualpipe_task *task) {
  rank_state *state = (rank_state *)user_data;
  CHECK(task->size >= sizeof *task);
  state->tasks++;
  if (state->tasks == state->fails_at) {
    CHECK_OK(dualpipe_task_set_error("as planned"));
    return 7;
  }
  if (task->op.kind == DUALPIPE_OP_REDUCE_GRADS) {
    CHECK(task->forward == NULL && task->backward == NULL && task->reduce_peer < NUM_RANKS);
    state->reductions++;
    return 0;
  }
  if (task->forward != NULL) run_forward(state, task->forward);
  if (task->backward != NULL) run_backward(state, task->backward, task->op.kind);
  return 0;
}

static dualpipe_schedule_t create_schedule(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = DUALPIPE_KIND_DUALPIPE;
  options.num_ranks = NUM_RANKS;
  options.num_microbatches = NUM_MICROBATCHES;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  return schedule;
}

/* One tensor of three floats at each boundary. */
static dualpipe_executor_options executor_options(const dualpipe_tensor_spec *spec) {
  dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
  options.num_tensors = 1;
  options.tensors = spec;
  options.timeout_ns = 20000000000u;
  return options;
}

static const dualpipe_tensor_spec three_floats = {{2, 32, 1}, 1, {3, 0, 0, 0, 0, 0, 0, 0}};

static dualpipe_executor_t create_executor(dualpipe_schedule_t schedule, uint32_t rank,
                                           const dualpipe_executor_options *options) {
  dualpipe_program_t program = NULL;
  dualpipe_executor_t executor = NULL;
  CHECK_OK(dualpipe_program_create(schedule, rank, &program));
  CHECK_OK(dualpipe_executor_create(program, options, &executor));
  CHECK_OK(dualpipe_program_free(program));
  return executor;
}

/* Starts a step on every rank and waits for all; the number that failed. */
static int step_all(rank_state states[NUM_RANKS]) {
  int rank, failed = 0;
  for (rank = 0; rank < NUM_RANKS; rank++) {
    states[rank].tasks = 0;
    CHECK_OK(dualpipe_executor_start(states[rank].executor, run_task, &states[rank]));
  }
  for (rank = 0; rank < NUM_RANKS; rank++) {
    failed += dualpipe_executor_wait(states[rank].executor, 60000000000u) != DUALPIPE_OK;
  }
  return failed;
}

#endif
