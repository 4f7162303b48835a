/* A program of a release: compiled with that release's header, it runs with the library of today. */
#include <dualpipe.h>

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, dualpipe_last_error()); \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

#define CHECK_OK(call) CHECK((call) == DUALPIPE_OK)

enum { NUM_MICROBATCHES = 3 };

/* Of each kind, how many tasks there were. */
typedef struct counts {
  int of_kind[DUALPIPE_OP_REDUCE_GRADS + 1];
} counts;

static int32_t count(void *user_data, const dualpipe_task *task) {
  counts *seen = user_data;
  CHECK(task->size >= sizeof *task && task->op.kind <= DUALPIPE_OP_REDUCE_GRADS);
  CHECK(task->forward == NULL || task->forward->num_inputs + task->forward->num_outputs == 1);
  CHECK(task->compute_stream == NULL && task->reduce_peer == DUALPIPE_NONE);
  seen->of_kind[task->op.kind]++;
  return 0;
}

static dualpipe_schedule_t create_schedule(uint32_t kind, uint32_t num_ranks, uint32_t num_microbatches) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = kind;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK_OK(dualpipe_schedule_describe(schedule, &info));
  CHECK(info.kind == kind && info.num_ranks == num_ranks && info.num_microbatches == num_microbatches);
  return schedule;
}

static void simulate(void) {
  dualpipe_schedule_t schedule = create_schedule(DUALPIPE_KIND_DUALPIPE, 4, 8);
  const dualpipe_stage_costs stage = {1000, 1000, 1000, 2500, 1, 1, 1};
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  dualpipe_timeline_t timeline = NULL;
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  costs.stages = &stage;
  costs.num_stages = 1;
  CHECK_OK(dualpipe_simulate(schedule, &costs, &timeline));
  CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
  CHECK(summary.size == sizeof summary && summary.source == DUALPIPE_TIMELINE_SIMULATED);
  CHECK(summary.num_ranks == 4 && summary.makespan_ns >= summary.lower_bound_ns && summary.lower_bound_ns > 0);
  CHECK_OK(dualpipe_timeline_free(timeline));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

/* DualPipeV on one rank: two stages, whose messages the rank sends to itself. */
static void run_a_step(void) {
  dualpipe_schedule_t schedule = create_schedule(DUALPIPE_KIND_DUALPIPE_V, 1, NUM_MICROBATCHES);
  dualpipe_tensor_spec spec = {{2, 32, 1}, 1, {4, 0, 0, 0, 0, 0, 0, 0}};
  dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
  dualpipe_program_t program = NULL;
  dualpipe_executor_t executor = NULL;
  dualpipe_fault fault = DUALPIPE_FAULT_INIT;
  counts seen = {{0}};
  const int *of = seen.of_kind;
  options.num_tensors = 1;
  options.tensors = &spec;
  options.timeout_ns = 20000000000u;
  CHECK_OK(dualpipe_inproc_create(1, &options.inproc));
  CHECK_OK(dualpipe_program_create(schedule, 0, &program));
  CHECK_OK(dualpipe_executor_create(program, &options, &executor));
  CHECK_OK(dualpipe_executor_step(executor, count, &seen));
  CHECK(of[DUALPIPE_OP_F] + of[DUALPIPE_OP_FB] == 2 * NUM_MICROBATCHES);
  CHECK(of[DUALPIPE_OP_B] + of[DUALPIPE_OP_I] + of[DUALPIPE_OP_FB] == 2 * NUM_MICROBATCHES);
  CHECK(of[DUALPIPE_OP_I] == of[DUALPIPE_OP_W] && of[DUALPIPE_OP_REDUCE_GRADS] == 0);
  CHECK_OK(dualpipe_executor_fault(executor, &fault));
  CHECK(fault.has_failed == 0);
  CHECK_OK(dualpipe_executor_free(executor));
  CHECK_OK(dualpipe_program_free(program));
  CHECK_OK(dualpipe_inproc_free(options.inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

int main(void) {
  simulate();
  run_a_step();
  return 0;
}
