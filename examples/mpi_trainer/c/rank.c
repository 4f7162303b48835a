#define _POSIX_C_SOURCE 200809L
#include "rank.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int rank_create(rank *self, const options *options, const model_shape *shape, dualpipe_schedule_t schedule,
                peers *peers, MPI_Comm comm, char *error, size_t capacity) {
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  const size_t num_loads = (size_t)(shape->num_stages * shape->num_experts);
  uint32_t direction, index, holder = 0;
  int is_complete;
  memset(self, 0, sizeof *self);
  self->options = options;
  self->peers = peers;
  self->comm = comm;
  self->losses = calloc((size_t)options->num_microbatches, sizeof(double));
  self->loads = calloc(num_loads, sizeof(double));
  is_complete = self->losses != NULL && self->loads != NULL;
  is_complete &= batch_create(&self->batch, shape, options->num_microbatches) == 0;
  if (dualpipe_schedule_describe(schedule, &info) != DUALPIPE_OK) {
    snprintf(error, capacity, "%s", dualpipe_last_error());
    return -1;
  }
  self->num_directions = info.num_directions;
  /* In this order a pass's `copy` is an index into the rank's copies. */
  for (direction = 0; direction < info.num_directions; direction++) {
    for (index = 0; index < info.num_stages; index++) {
      if (dualpipe_schedule_rank_of(schedule, direction, index, &holder) == DUALPIPE_OK &&
          holder == (uint32_t)peers->rank) {
        rank_copy *copy = &self->copies[self->num_copies++];
        copy->direction = direction;
        copy->stage = stage_create(shape, (int)index, options->num_microbatches, options->seed);
        if (copy->stage != NULL) copy->twin_grads = calloc(copy->stage->num_parameters, sizeof(float));
        is_complete &= copy->twin_grads != NULL;
      }
    }
  }
  if (!is_complete) snprintf(error, capacity, "no memory for the model");
  return is_complete ? 0 : -1;
}

void rank_free(rank *self) {
  int i;
  for (i = 0; i < self->num_copies; i++) {
    stage_free(self->copies[i].stage);
    free(self->copies[i].twin_grads);
  }
  batch_free(&self->batch);
  free(self->losses);
  free(self->loads);
}

static float *values(const dualpipe_tensor *tensors) {
  return tensors != NULL ? (float *)(void *)((char *)tensors[0].dl.data + tensors[0].dl.byte_offset) : NULL;
}

static void forward(rank *self, const dualpipe_task_pass *p) {
  const int per_direction = self->options->num_microbatches / (int)self->num_directions;
  const int index = (int)p->pass.direction * per_direction + (int)p->pass.microbatch;
  const float *input = p->num_inputs > 0 ? values(p->inputs) : NULL;
  float *output = p->num_outputs > 0 ? values(p->outputs) : NULL;
  stage *stage = self->copies[p->pass.copy].stage;
  self->losses[index] += stage_forward(stage, (int)p->pass.microbatch, batch_at(&self->batch, index), input, output);
}

static void backward(rank *self, const dualpipe_task_pass *p, uint32_t kind) {
  const int microbatch = (int)p->pass.microbatch;
  stage *stage = self->copies[p->pass.copy].stage;
  if (kind != DUALPIPE_OP_W) {
    const float *output_grad = p->num_output_grads > 0 ? values(p->output_grads) : NULL;
    stage_backward_input(stage, microbatch, output_grad, p->num_input_grads > 0 ? values(p->input_grads) : NULL);
  }
  if (kind != DUALPIPE_OP_I) stage_backward_weight(stage, microbatch);
}

/* The forward half of a pair, for a thread of its own. It touches nothing that the backward half does. */
typedef struct half {
  rank *rank;
  const dualpipe_task_pass *pass;
} half;

static void *run_half(void *user_data) {
  const half *half = user_data;
  forward(half->rank, half->pass);
  return NULL;
}

static int32_t run_overlapped(rank *self, const dualpipe_task *task) {
  half half = {self, task->forward};
  pthread_t thread;
  if (pthread_create(&thread, NULL, run_half, &half) != 0) {
    dualpipe_task_set_error("no thread for the forward of a pair: --no-overlap does without");
    return 1;
  }
  backward(self, task->backward, task->op.kind);
  pthread_join(thread, NULL);
  return 0;
}

/* The gradients of a copy are final: they set out to its twin, and the twin's come here. */
static int32_t start_reduction(rank *self, const dualpipe_task *task) {
  rank_copy *copy = &self->copies[task->op.backward.copy];
  const int count = (int)copy->stage->num_parameters, tag = copy->stage->index;
  copy->is_reducing = 1;
  copy->twin = (int)task->reduce_peer;
  if (MPI_Irecv(copy->twin_grads, count, MPI_FLOAT, copy->twin, tag, self->comm, &copy->requests[0]) == MPI_SUCCESS &&
      MPI_Isend(copy->stage->grads, count, MPI_FLOAT, copy->twin, tag, self->comm, &copy->requests[1]) == MPI_SUCCESS) {
    return 0;
  }
  dualpipe_task_set_error("MPI could not start to exchange the gradients");
  return 1;
}

static int is_at(planned planned, int rank, int task) { return planned.rank == rank && planned.task == task; }

int32_t rank_run(void *user_data, const dualpipe_task *task) {
  rank *self = user_data;
  const int number = self->num_tasks++;
  if (is_at(self->options->dies, self->peers->rank, number)) raise(SIGKILL);
  if (is_at(self->options->fails, self->peers->rank, number)) {
    dualpipe_task_set_error("as --fail asks");
    return 1;
  }
  if (task->op.kind == DUALPIPE_OP_REDUCE_GRADS) return start_reduction(self, task);
  if (task->op.kind == DUALPIPE_OP_FB && self->options->overlaps) return run_overlapped(self, task);
  if (task->forward != NULL) forward(self, task->forward);
  if (task->backward != NULL) backward(self, task->backward, task->op.kind);
  return 0;
}

static int finish_reduction(rank *self, rank_copy *copy, char *error, size_t capacity) {
  float *grads = copy->stage->grads;
  char what[128];
  size_t i;
  snprintf(what, sizeof what, "rank %d: the gradients of stage %d, from rank %d", self->peers->rank,
           copy->stage->index, copy->twin);
  if (peers_wait(self->peers, 2, copy->requests, what, error, capacity) != 0) return -1;
  /* Direction 0's first, as the sequential run has it; both copies get the same bits, as a + b = b + a. */
  for (i = 0; i < copy->stage->num_parameters; i++) grads[i] += copy->twin_grads[i];
  copy->is_reducing = 0;
  return 0;
}

int rank_all_reduce(rank *self, double *values, int count, MPI_Op op, const char *what, char *error, size_t capacity) {
  MPI_Request request = MPI_REQUEST_NULL;
  char whole[128];
  snprintf(whole, sizeof whole, "rank %d: %s of all ranks", self->peers->rank, what);
  if (MPI_Iallreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, op, self->comm, &request) != MPI_SUCCESS) {
    snprintf(error, capacity, "%s: MPI could not start to reduce them", whole);
    peers_abort(self->peers, (uint32_t)self->peers->rank, error);
    return -1;
  }
  return peers_wait(self->peers, 1, &request, whole, error, capacity);
}

int rank_finish_step(rank *self, double *loss, char *error, size_t capacity) {
  const int num_microbatches = self->options->num_microbatches;
  int i, code = 0;
  for (i = 0; i < self->num_copies && code == 0; i++) {
    if (self->copies[i].is_reducing) code = finish_reduction(self, &self->copies[i], error, capacity);
  }
  /* Each is 0 but on the rank that has it, so that the sums are exact. */
  if (code == 0) code = rank_all_reduce(self, self->losses, num_microbatches, MPI_SUM, "the losses", error, capacity);
  if (code != 0) return code;
  *loss = 0;
  for (i = 0; i < num_microbatches; i++) *loss += self->losses[i];
  *loss /= num_microbatches;
  memset(self->losses, 0, sizeof(double) * (size_t)num_microbatches);
  return 0;
}

int rank_sum_loads(rank *self, char *error, size_t capacity) {
  const int num_experts = self->batch.shape.num_experts, num_loads = self->batch.shape.num_stages * num_experts;
  int i, e;
  for (i = 0; i < self->num_copies; i++) {
    const stage *stage = self->copies[i].stage;
    for (e = 0; e < num_experts; e++) self->loads[stage->index * num_experts + e] += stage->loads[e];
  }
  return rank_all_reduce(self, self->loads, num_loads, MPI_SUM, "the loads", error, capacity);
}
