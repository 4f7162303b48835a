/* A model on CUDA whose tasks only enqueue copies and sets, and whose every byte is known: a tensor is the trail of the
 * stages that it has come through. A stage copies what it gets, and puts a mark of its own into it. */
#ifndef CUDA_TRAIL_H
#define CUDA_TRAIL_H

#include <pthread.h>

#include "cuda_driver.h"

enum { NUM_RANKS = 4, NUM_STAGES = 4, NUM_MICROBATCHES = 8, PER_DIRECTION = 4 };
/* A trail: a mark of each stage, then of the step, then nothing. Where shapes are exchanged every other is shorter. */
enum { STEP_AT = NUM_STAGES, SHORT_TRAIL = 6, TRAIL = 8 };
/* What a rank keeps of the trails that it sees: at the last stage, inputs on the comm stream, inputs as they are when
 * the gradient is made, gradients at the first stage. */
enum { AT_END, ON_COMM, SAVED, GRADIENTS, NUM_KINDS };
enum { KEPT_BYTES = NUM_KINDS * 2 * PER_DIRECTION * TRAIL };

/* One rank: who it is, what it is told, what it has on the device. */
typedef struct rank_state {
  uint32_t rank;
  dualpipe_schedule_t schedule;
  /* As for all ranks, with streams of the rank's own if it is to bring them. */
  dualpipe_executor_options options;
  dualpipe_cuda_options cuda;
  int brings_streams;
  dualpipe_executor_t executor;
  void *context, *stream, *side;
  /* What is kept, a copy of it, and the byte that says in which step. */
  device_pointer kept, copy, step;
  int tasks, reductions;
  /* The task at which to fail, and that at which to do what cannot be captured, from 1; 0 never. */
  int fails_at, spoils_at;
  /* What the driver said first to the last task, if it may refuse what is enqueued. */
  int may_be_refused, refused;
  dualpipe_status status;
  char text[512];
} rank_state;

static size_t place(int kind, uint32_t direction, uint32_t microbatch) {
  return (((size_t)kind * 2 + direction) * PER_DIRECTION + microbatch) * TRAIL;
}

static unsigned char mark(uint32_t direction, uint32_t microbatch, uint32_t stage, int is_gradient) {
  return (unsigned char)(1 + stage + 4 * microbatch + 16 * direction + (is_gradient ? 32 : 0));
}

static device_pointer data(const dualpipe_tensor *tensor) {
  return (device_pointer)(uintptr_t)tensor->dl.data + tensor->dl.byte_offset;
}

/* How many bytes a tensor has, which are as many as were written into its shape. */
static size_t length(const rank_state *state, const dualpipe_task_pass *p, const dualpipe_tensor *tensor) {
  const int is_short = state->cuda.exchanges_shapes && p->pass.microbatch % 2 == 1;
  CHECK(tensor->dl.device.device_type == 2 && tensor->dl.device.device_id == 0 && tensor->is_present == 1);
  CHECK(tensor->dl.ndim == 1 && tensor->dl.shape[0] == (is_short ? SHORT_TRAIL : TRAIL));
  return (size_t)tensor->dl.shape[0];
}

/* What the driver said to something that a task has enqueued. */
static void enqueued(rank_state *state, int code) {
  CHECK(code == 0 || state->may_be_refused);
  if (state->refused == 0) state->refused = code;
}

/* The trail that goes on: copied, or begun, and marked. */
static void go_on(rank_state *state, const dualpipe_task_pass *p, const dualpipe_tensor *from, device_pointer to,
                  size_t num_bytes, int is_gradient, void *stream) {
  const unsigned char its = mark(p->pass.direction, p->pass.microbatch, p->pass.stage, is_gradient);
  if (from != NULL) {
    enqueued(state, cu.copy(to, data(from), length(state, p, from), stream));
  } else {
    enqueued(state, cu.set(to, 0, num_bytes, stream));
    enqueued(state, cu.copy(to + STEP_AT, state->step, 1, stream));
  }
  enqueued(state, cu.set(to + p->pass.stage, its, 1, stream));
}

/* A tensor to be written, made as long as it is to be. */
static size_t shorten(const rank_state *state, const dualpipe_task_pass *p, dualpipe_tensor *tensor) {
  if (state->cuda.exchanges_shapes && p->pass.microbatch % 2 == 1) tensor->dl.shape[0] = SHORT_TRAIL;
  return length(state, p, tensor);
}

static device_pointer keep(const rank_state *state, const dualpipe_task_pass *p, int kind) {
  return state->kept + place(kind, p->pass.direction, p->pass.microbatch);
}

static void run_forward(rank_state *state, const dualpipe_task *task, const dualpipe_task_pass *p) {
  const dualpipe_tensor *input = p->num_inputs > 0 ? &p->inputs[0] : NULL;
  CHECK((input == NULL) == (p->pass.stage == 0) && (p->num_outputs == 0) == (p->pass.stage == NUM_STAGES - 1));
  if (p->num_outputs > 0) {
    const size_t num_bytes = shorten(state, p, &p->outputs[0]);
    go_on(state, p, input, data(&p->outputs[0]), num_bytes, 0, task->compute_stream);
  } else {
    go_on(state, p, input, keep(state, p, AT_END), TRAIL, 0, task->compute_stream);
  }
  if (task->comm_stream != NULL && input != NULL) {
    enqueued(state, cu.copy(keep(state, p, ON_COMM), data(input), length(state, p, input), task->comm_stream));
  }
}

static void run_backward(rank_state *state, const dualpipe_task *task, const dualpipe_task_pass *p) {
  const dualpipe_tensor *grad = p->num_output_grads > 0 ? &p->output_grads[0] : NULL;
  const dualpipe_tensor *input = p->num_inputs > 0 ? &p->inputs[0] : NULL;
  if (input != NULL) {
    enqueued(state, cu.copy(keep(state, p, SAVED), data(input), length(state, p, input), task->compute_stream));
  }
  if (task->op.kind == DUALPIPE_OP_W) return;
  if (p->num_input_grads > 0) {
    const size_t num_bytes = shorten(state, p, &p->input_grads[0]);
    go_on(state, p, grad, data(&p->input_grads[0]), num_bytes, 1, task->compute_stream);
  } else {
    CHECK(p->pass.stage == 0);
    go_on(state, p, grad, keep(state, p, GRADIENTS), TRAIL, 1, task->compute_stream);
  }
}

static int32_t run_task(void *user_data, const dualpipe_task *task) {
  rank_state *state = (rank_state *)user_data;
  CHECK(task->size >= sizeof *task && task->compute_stream != NULL);
  CHECK(!state->brings_streams || (task->compute_stream == state->stream && task->comm_stream == state->side));
  CHECK((task->comm_stream != NULL) == (state->brings_streams || state->cuda.has_comm_stream));
  state->tasks++;
  state->refused = 0;
  if (state->tasks == state->fails_at) {
    CHECK_OK(dualpipe_task_set_error("as planned"));
    return 7;
  }
  /* What a capture does not allow ends it, and every call on its streams fails from then on. */
  if (state->tasks == state->spoils_at) {
    CHECK(cu.stream_synchronize(task->compute_stream) != 0);
    return 1;
  }
  if (task->op.kind == DUALPIPE_OP_REDUCE_GRADS) state->reductions++;
  if (task->forward != NULL) run_forward(state, task, task->forward);
  if (task->backward != NULL) run_backward(state, task, task->backward);
  return state->refused != 0;
}

/* A trail as it must be when it has come through stages, the last of which is `last`. */
static void expect(const rank_state *state, const unsigned char *got, uint32_t direction, uint32_t microbatch, int last,
                   int is_gradient, unsigned char step) {
  unsigned char want[TRAIL] = {0};
  const int is_short = state->cuda.exchanges_shapes && microbatch % 2 == 1;
  int stage = is_gradient ? NUM_STAGES - 1 : 0;
  for (;; stage += is_gradient ? -1 : 1) {
    want[stage] = mark(direction, microbatch, (uint32_t)stage, is_gradient);
    if (stage == last) break;
  }
  want[STEP_AT] = step;
  if (memcmp(got, want, is_short ? SHORT_TRAIL : TRAIL) != 0) {
    fprintf(stderr, "rank %u, direction %u, micro-batch %u, up to stage %d, gradient %d, step %u: got", state->rank,
            direction, microbatch, last, is_gradient, step);
    for (stage = 0; stage < TRAIL; stage++) fprintf(stderr, " %u", got[stage]);
    fprintf(stderr, "\n");
    exit(1);
  }
}

/* All that a rank must have seen in a step, in what was kept or in the copy of it. */
static void check_kept(const rank_state *state, device_pointer kept, unsigned char step) {
  unsigned char bytes[KEPT_BYTES];
  uint32_t direction, microbatch;
  CHECK_CU(cu.copy_to_host(bytes, kept, sizeof bytes));
  for (direction = 0; direction < 2; direction++) {
    const int stage = (int)(direction == 0 ? state->rank : NUM_RANKS - 1 - state->rank);
    for (microbatch = 0; microbatch < PER_DIRECTION; microbatch++) {
      const unsigned char *at_end = bytes + place(AT_END, direction, microbatch);
      const unsigned char *on_comm = bytes + place(ON_COMM, direction, microbatch);
      const unsigned char *saved = bytes + place(SAVED, direction, microbatch);
      const unsigned char *gradients = bytes + place(GRADIENTS, direction, microbatch);
      if (stage == NUM_STAGES - 1) expect(state, at_end, direction, microbatch, stage, 0, step);
      if (stage > 0) expect(state, saved, direction, microbatch, stage - 1, 0, step);
      if (stage > 0 && (state->brings_streams || state->cuda.has_comm_stream)) {
        expect(state, on_comm, direction, microbatch, stage - 1, 0, step);
      }
      if (stage == 0) expect(state, gradients, direction, microbatch, 0, 1, step);
    }
  }
}

/* What a rank has on the device besides its executor. On the thread that it runs on. */
static void open_device(rank_state *state) {
  if (standin.set_rank != NULL) standin.set_rank((int32_t)state->rank);
  CHECK_CU(cu.retain(&state->context, 0));
  CHECK_CU(cu.set_current(state->context));
  CHECK_CU(cu.stream_create(&state->stream, 1));
  CHECK_CU(cu.stream_create(&state->side, 1));
  CHECK_CU(cu.allocate(&state->kept, KEPT_BYTES));
  CHECK_CU(cu.allocate(&state->copy, KEPT_BYTES));
  CHECK_CU(cu.allocate(&state->step, 1));
  CHECK_CU(cu.set(state->kept, 0, KEPT_BYTES, state->stream));
  CHECK_CU(cu.stream_synchronize(state->stream));
  if (state->brings_streams) {
    state->cuda.compute_stream = state->stream;
    state->cuda.comm_stream = state->side;
  }
}

static void close_device(rank_state *state) {
  CHECK_CU(cu.release_memory(state->step));
  CHECK_CU(cu.release_memory(state->copy));
  CHECK_CU(cu.release_memory(state->kept));
  CHECK_CU(cu.stream_destroy(state->side));
  CHECK_CU(cu.stream_destroy(state->stream));
  CHECK_CU(cu.release(0));
}

/* Says in which step the rank is; on its own stream, so that without waiting it is there only if tasks are on it. */
static void set_step(rank_state *state, unsigned char step) {
  CHECK_CU(cu.set(state->step, step, 1, state->stream));
  if (!state->brings_streams) CHECK_CU(cu.stream_synchronize(state->stream));
}

/* Keeps the words of a call that failed. */
static dualpipe_status note(rank_state *state, dualpipe_status status) {
  state->status = status;
  strncpy(state->text, status == DUALPIPE_OK ? "" : dualpipe_last_error(), sizeof state->text - 1);
  return status;
}

static dualpipe_status create_executor(rank_state *state) {
  dualpipe_program_t program = NULL;
  dualpipe_status status;
  CHECK_OK(dualpipe_program_create(state->schedule, state->rank, &program));
  status = note(state, dualpipe_executor_create(program, &state->options, &state->executor));
  CHECK((status == DUALPIPE_OK) == (state->executor != NULL));
  CHECK_OK(dualpipe_program_free(program));
  return status;
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

static const dualpipe_tensor_spec one_trail = {{1, 8, 1}, 1, {TRAIL, 0, 0, 0, 0, 0, 0, 0}};

static const dualpipe_cuda_options plain_cuda = DUALPIPE_CUDA_OPTIONS_INIT;

static dualpipe_executor_options executor_options(void) {
  dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
  options.num_tensors = 1;
  options.tensors = &one_trail;
  options.timeout_ns = 20000000000u;
  return options;
}

/* Each rank on a thread of its own, with the same options. */
static void on_threads(rank_state states[NUM_RANKS], const dualpipe_executor_options *options,
                       const dualpipe_cuda_options *cuda, void *(*run)(void *)) {
  pthread_t threads[NUM_RANKS];
  dualpipe_schedule_t schedule = create_schedule();
  uint32_t rank;
  for (rank = 0; rank < NUM_RANKS; rank++) {
    states[rank].rank = rank;
    states[rank].schedule = schedule;
    states[rank].options = *options;
    states[rank].cuda = *cuda;
    states[rank].options.cuda = &states[rank].cuda;
    CHECK(pthread_create(&threads[rank], NULL, run, &states[rank]) == 0);
  }
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK(pthread_join(threads[rank], NULL) == 0);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

#endif
