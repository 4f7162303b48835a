/* One rank of the pipeline: its copies of stages, and what it does when a task is due. */
#ifndef RANK_H
#define RANK_H

#include <dualpipe.h>
#include <mpi.h>

#include "data.h"
#include "options.h"
#include "peers.h"

/* A stage's parameters on this rank. */
typedef struct rank_copy {
  uint32_t direction;
  stage *stage;
  /* While its gradients are being summed with those of the copy on rank `twin`: what comes from there. */
  int is_reducing, twin;
  float *twin_grads;
  MPI_Request requests[2];
} rank_copy;

typedef struct rank {
  const options *options;
  peers *peers;
  /* Of gradients between two copies, and of sums over all ranks. */
  MPI_Comm comm;
  uint32_t num_directions;
  rank_copy copies[2];
  int num_copies;
  batch batch;
  double *losses; /* [num_microbatches] */
  double *loads;  /* [num_stages, num_experts] */
  int num_tasks;
} rank;

/* `shape` has the schedule's number of stages. 0, or -1 and why not in `error`. */
int rank_create(rank *self, const options *options, const model_shape *shape, dualpipe_schedule_t schedule,
                peers *peers, MPI_Comm comm, char *error, size_t capacity);
void rank_free(rank *self);

/* A dualpipe_task_fn; user_data is the rank. */
int32_t rank_run(void *user_data, const dualpipe_task *task);

/*
 * After the executor's step: waits until the gradients of twins have been summed; writes the loss of all ranks. 0, or
 * -1 and why not in `error`; then other ranks have been told.
 */
int rank_finish_step(rank *self, double *loss, char *error, size_t capacity);

/* Sums the loads of all ranks into `loads`. As rank_finish_step. */
int rank_sum_loads(rank *self, char *error, size_t capacity);

/* `values` become the sum, or what `op` says, of those of all ranks. `what` they are is said in the error. */
int rank_all_reduce(rank *self, double *values, int count, MPI_Op op, const char *what, char *error, size_t capacity);

#endif
