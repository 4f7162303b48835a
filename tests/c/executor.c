/* Executors of one process: what they compute, what they record, how they fail. */
#include <string.h>

#include "model.h"

static void create_all(rank_state states[NUM_RANKS]) {
  dualpipe_executor_options options = executor_options(&three_floats);
  dualpipe_schedule_t schedule = create_schedule();
  int rank;
  memset(states, 0, NUM_RANKS * sizeof *states);
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &options.inproc));
  for (rank = 0; rank < NUM_RANKS; rank++) {
    states[rank].executor = create_executor(schedule, (uint32_t)rank, &options);
  }
  CHECK_OK(dualpipe_inproc_free(options.inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void free_all(rank_state states[NUM_RANKS]) {
  int rank;
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK_OK(dualpipe_executor_free(states[rank].executor));
}

static void steps_compute_and_are_recorded(void) {
  rank_state states[NUM_RANKS];
  dualpipe_timeline_t parts[NUM_RANKS], whole = NULL;
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  int rank, step, first_input_grads = 0;
  create_all(states);
  for (step = 0; step < 3; step++) CHECK(step_all(states) == 0);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    dualpipe_fault fault = DUALPIPE_FAULT_INIT;
    CHECK(states[rank].reductions == 2 * 3);
    first_input_grads += (int)states[rank].first_input_grad;
    CHECK_OK(dualpipe_executor_fault(states[rank].executor, &fault));
    CHECK(fault.has_failed == 0);
    CHECK_OK(dualpipe_executor_timeline(states[rank].executor, &parts[rank]));
  }
  CHECK(first_input_grads == 3 * NUM_MICROBATCHES);
  CHECK_OK(dualpipe_timeline_merge(parts, NUM_RANKS, &whole));
  CHECK_OK(dualpipe_timeline_summarize(whole, &summary));
  CHECK(summary.source == DUALPIPE_TIMELINE_RECORDED && summary.num_ranks == NUM_RANKS);
  CHECK(summary.num_messages == 2 * (NUM_RANKS - 1) * NUM_MICROBATCHES && summary.makespan_ns > 0);
  CHECK_OK(dualpipe_timeline_free(whole));
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK_OK(dualpipe_timeline_free(parts[rank]));
  free_all(states);
}

/* Shapes may change from step to step, also for one micro-batch. */
static void shapes_change(void) {
  rank_state states[NUM_RANKS];
  dualpipe_tensor_spec five_rows = {{2, 32, 1}, 2, {5, 3, 0, 0, 0, 0, 0, 0}};
  int rank;
  create_all(states);
  for (rank = 0; rank < NUM_RANKS; rank++) {
    states[rank].fails_at = 0;
    CHECK_OK(dualpipe_executor_set_boundary(states[rank].executor, 0, 1, &five_rows, 1));
    CHECK_OK(dualpipe_executor_set_microbatch(states[rank].executor, 1, 2, &five_rows, 1));
    CHECK_OK(dualpipe_executor_set_boundary(states[rank].executor, 0, 1, &three_floats, 1));
    CHECK_OK(dualpipe_executor_set_microbatch(states[rank].executor, 1, 2, &three_floats, 1));
  }
  CHECK(step_all(states) == 0);
  free_all(states);
}

static void a_failure_is_told_by_all_ranks(void) {
  rank_state states[NUM_RANKS];
  int rank;
  create_all(states);
  states[2].fails_at = 5;
  for (rank = 0; rank < NUM_RANKS; rank++) {
    CHECK_OK(dualpipe_executor_start(states[rank].executor, run_task, &states[rank]));
  }
  for (rank = 0; rank < NUM_RANKS; rank++) {
    dualpipe_fault fault = DUALPIPE_FAULT_INIT;
    dualpipe_status status = dualpipe_executor_wait(states[rank].executor, 60000000000u);
    CHECK(status == (rank == 2 ? DUALPIPE_ERROR_CALLBACK_FAILED : DUALPIPE_ERROR_PEER_FAILED));
    CHECK(strstr(dualpipe_last_error(), "rank 2, instruction ") != NULL);
    CHECK(strstr(dualpipe_last_error(), "as planned") != NULL);
    CHECK_OK(dualpipe_executor_fault(states[rank].executor, &fault));
    CHECK(fault.has_failed == 1 && fault.rank == (uint32_t)rank && fault.status == (uint32_t)status);
    CHECK(fault.peer == (rank == 2 ? DUALPIPE_NONE : 2u));
    CHECK(dualpipe_executor_step(states[rank].executor, run_task, &states[rank]) == DUALPIPE_ERROR_POISONED);
  }
  free_all(states);
}

static void a_rank_that_never_comes_is_a_timeout(void) {
  dualpipe_executor_options options = executor_options(&three_floats);
  dualpipe_schedule_t schedule = create_schedule();
  rank_state state = {NULL, NULL, 0, 0, 0, 0};
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &options.inproc));
  options.timeout_ns = 50000000;
  state.executor = create_executor(schedule, 1, &options);
  CHECK(dualpipe_executor_step(state.executor, run_task, &state) == DUALPIPE_ERROR_TIMEOUT);
  CHECK(strstr(dualpipe_last_error(), "rank 1, instruction ") != NULL);
  CHECK(strstr(dualpipe_last_error(), "from rank 0") != NULL);
  CHECK_OK(dualpipe_executor_free(state.executor));
  CHECK_OK(dualpipe_inproc_free(options.inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

int main(void) {
  steps_compute_and_are_recorded();
  shapes_change();
  a_failure_is_told_by_all_ranks();
  a_rank_that_never_comes_is_a_timeout();
  steps_compute_and_are_recorded();
  return 0;
}
