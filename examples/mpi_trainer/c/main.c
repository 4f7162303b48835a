/* Trains a small model with a schedule of libdualpipe, each rank a process, over MPI. In plain C99. */
#define _POSIX_C_SOURCE 200809L
#include <dualpipe.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mpi_transport.h"
#include "options.h"
#include "report.h"

enum { ERROR_MAX = 2048, START_TIMEOUT_S = 60 };

/* All that a process has. */
typedef struct job {
  options options;
  peers peers;
  MPI_Comm messages, sums;
  data data;
  model_shape shape;
  dualpipe_schedule_t schedule;
  dualpipe_executor_t executor;
  rank rank;
  sequential reference;
  comparison comparison;
  char error[ERROR_MAX];
} job;

static int failed(job *job, dualpipe_status status) {
  if (status == DUALPIPE_OK) return 0;
  snprintf(job->error, sizeof job->error, "%s: %s", dualpipe_status_name(status), dualpipe_last_error());
  return 1;
}

static int create_schedule(job *job) {
  const char *const names[] = {"dualpipe", "dualpipe_v", "1f1b"};
  const uint32_t kinds[] = {DUALPIPE_KIND_DUALPIPE, DUALPIPE_KIND_DUALPIPE_V, DUALPIPE_KIND_1F1B};
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  int i;
  for (i = 0; i < 3; i++) {
    if (strcmp(job->options.schedule, names[i]) == 0) options.kind = kinds[i];
  }
  if (options.kind == 0) {
    snprintf(job->error, sizeof job->error, "--schedule %s: must be dualpipe, dualpipe_v or 1f1b",
             job->options.schedule);
    return -1;
  }
  options.num_ranks = (uint32_t)job->options.num_ranks;
  options.num_microbatches = (uint32_t)job->options.num_microbatches;
  if (failed(job, dualpipe_schedule_create(&options, &job->schedule)) ||
      failed(job, dualpipe_schedule_describe(job->schedule, &info))) {
    return -1;
  }
  job->shape = job->options.shape;
  job->shape.num_stages = (int)info.num_stages;
  return 0;
}

static int create_executor(job *job) {
  dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
  dualpipe_transport transport = DUALPIPE_TRANSPORT_INIT;
  dualpipe_tensor_spec rows = {{2, 32, 1}, 2, {0, 0, 0, 0, 0, 0, 0, 0}};
  dualpipe_program_t program = NULL;
  int code;
  rows.shape[0] = job->shape.num_rows;
  rows.shape[1] = job->shape.width;
  options.num_tensors = 1;
  options.tensors = &rows;
  options.timeout_ns = (uint64_t)job->options.timeout_s * 1000000000u;
  options.transport = &transport;
  if (failed(job, dualpipe_program_create(job->schedule, (uint32_t)job->peers.rank, &program))) return -1;
  code = mpi_transport_create(job->messages, &job->peers, job->schedule, options.num_tensors, &transport, job->error,
                              sizeof job->error);
  if (code == 0 && failed(job, dualpipe_executor_create(program, &options, &job->executor))) {
    transport.destroy(transport.user_data);
    code = -1;
  }
  dualpipe_program_free(program);
  return code;
}

/* Everything that can be refused before the ranks depend on one another. */
static int create(job *job, int argc, char **argv, int num_processes) {
  options *options = &job->options;
  if (options_parse(options, argc, argv, num_processes, job->error, sizeof job->error) != 0) return -1;
  if (options->asks_for_help) return 0;
  if (data_read(options->data, options->shape.context, &job->data, job->error, sizeof job->error) != 0) return -1;
  if (create_schedule(job) != 0) return -1;
  if (MPI_Comm_dup(MPI_COMM_WORLD, &job->messages) != MPI_SUCCESS ||
      MPI_Comm_dup(MPI_COMM_WORLD, &job->sums) != MPI_SUCCESS ||
      peers_create(&job->peers, MPI_COMM_WORLD, options->timeout_s) != MPI_SUCCESS) {
    snprintf(job->error, sizeof job->error, "MPI has no more communicators");
    return -1;
  }
  if (create_executor(job) != 0) return -1;
  if (rank_create(&job->rank, options, &job->shape, job->schedule, &job->peers, job->sums, job->error,
                  sizeof job->error) != 0) {
    return -1;
  }
  if (options->checks && sequential_create(&job->reference, &job->shape, (int)job->rank.num_directions,
                                           options->num_microbatches, options->seed) != 0) {
    snprintf(job->error, sizeof job->error, "no memory for the sequential run");
    return -1;
  }
  return 0;
}

static void print_head(const job *job) {
  const options *o = &job->options;
  printf("Training an MLP mixture of experts to predict a byte from the %d before it\n", job->shape.context);
  printf("  data       %zu bytes\n", job->data.num_bytes);
  printf("  model      %d stages of width %d, %d experts each, %d per row\n", job->shape.num_stages, job->shape.width,
         job->shape.num_experts, job->shape.num_chosen);
  printf("  step       %d micro-batches of %d rows\n", o->num_microbatches, job->shape.num_rows);
  printf("  schedule   %s, %d ranks, each a process%s\n\n", o->schedule, o->num_ranks,
         strcmp(o->schedule, "1f1b") == 0 ? "" : o->overlaps ? ", F&B on two threads" : ", F&B on one thread");
}

/* 0, or -1 with the error, which the other ranks know then, too. */
static int train(job *job) {
  const options *o = &job->options;
  double loss = 0;
  int step, i;
  for (step = 0; step < o->num_steps; step++) {
    batch_draw(&job->rank.batch, &job->data, o->seed, step, o->num_microbatches);
    if (failed(job, dualpipe_executor_step(job->executor, rank_run, &job->rank))) return -1;
    if (rank_finish_step(&job->rank, &loss, job->error, sizeof job->error) != 0) return -1;
    if (o->checks) {
      compare_step(&job->comparison, &job->reference, &job->rank, loss, step);
      sequential_update(&job->reference, step);
    }
    for (i = 0; i < job->rank.num_copies; i++) {
      stage_update(job->rank.copies[i].stage, step, 1 / (float)o->num_microbatches);
    }
    if (job->peers.rank == 0 && (step % 10 == 0 || step == o->num_steps - 1)) {
      printf("  step %4d   loss %.6f\n", step, loss);
      fflush(stdout);
    }
  }
  return 0;
}

/* 1 if all is well, 0 if the check fails, -1 with the error. */
static int report(job *job) {
  int agree = 1;
  if (job->options.checks) {
    agree = compare_ranks(&job->comparison, &job->rank, job->error, sizeof job->error);
    if (agree < 0) return -1;
  }
  if (rank_sum_loads(&job->rank, job->error, sizeof job->error) != 0) return -1;
  if (job->peers.rank == 0 && print_placement(&job->options, &job->shape, job->rank.loads, job->error,
                                              sizeof job->error) != 0) {
    return -1;
  }
  return agree;
}

/* Ends a process whose run has failed. The others may be gone, which MPI_Finalize does not survive. */
static void leave(job *job) {
  fprintf(stderr, "%s\n", job->error);
  fflush(NULL);
  dualpipe_executor_free(job->executor);
  peers_leave(&job->peers);
  _exit(1);
}

static void destroy(job *job) {
  dualpipe_executor_free(job->executor);
  dualpipe_schedule_free(job->schedule);
  rank_free(&job->rank);
  if (job->options.checks) sequential_free(&job->reference);
  data_free(&job->data);
  MPI_Comm_free(&job->messages);
  MPI_Comm_free(&job->sums);
  peers_free(&job->peers);
}

int main(int argc, char **argv) {
  static job job;
  int provided = 0, rank = 0, num_processes = 0, agree;
  /* These have no deadline of their own: the signal ends a process that hangs. */
  alarm(START_TIMEOUT_S);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &num_processes);
  /* All processes are refused for the same reason: the first says it. */
  if (create(&job, argc, argv, num_processes) != 0) {
    if (rank == 0) fprintf(stderr, "%s\n", job.error);
    MPI_Finalize();
    return 2;
  }
  if (job.options.asks_for_help) {
    if (rank == 0) fputs(options_usage, stdout);
    MPI_Finalize();
    return 0;
  }
  alarm(0);
  if (rank == 0) print_head(&job);
  if (train(&job) != 0) leave(&job);
  agree = report(&job);
  if (agree < 0) leave(&job);
  alarm(START_TIMEOUT_S);
  destroy(&job);
  MPI_Finalize();
  return agree ? 0 : 1;
}
