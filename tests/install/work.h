/* What the programs here have libdualpipe do: with all that it may leave behind, threads and thread-locals. */
#ifndef WORK_H
#define WORK_H

#include <string.h>

#include "../c/model.h"

/* Two steps of a pipeline of its own. */
static void run_steps(dualpipe_schedule_t schedule) {
  rank_state states[NUM_RANKS];
  dualpipe_executor_options options = executor_options(&three_floats);
  int rank, step;
  memset(states, 0, sizeof states);
  CHECK_OK(dualpipe_inproc_create(NUM_RANKS, &options.inproc));
  for (rank = 0; rank < NUM_RANKS; rank++) {
    states[rank].executor = create_executor(schedule, (uint32_t)rank, &options);
  }
  for (step = 0; step < 2; step++) CHECK(step_all(states) == 0);
  for (rank = 0; rank < NUM_RANKS; rank++) CHECK_OK(dualpipe_executor_free(states[rank].executor));
  CHECK_OK(dualpipe_inproc_free(options.inproc));
}

/* On threads that stay until the process ends. */
static void place_experts(void) {
  static const float loads[2 * 8] = {9, 1, 4, 2, 7, 3, 8, 5, 1, 2, 3, 4, 5, 6, 7, 8};
  dualpipe_balance_options options = DUALPIPE_BALANCE_OPTIONS_INIT;
  dualpipe_expert_plan_t plan = NULL;
  dualpipe_layer_balance layers[2];
  size_t count = 0;
  options.num_layers = 2;
  options.num_experts = 8;
  options.num_slots = 12;
  options.num_groups = options.num_nodes = 1;
  options.num_gpus = 4;
  options.num_threads = 2;
  CHECK_OK(dualpipe_expert_plan_create(&options, loads, 16, &plan));
  CHECK_OK(dualpipe_expert_plan_layers(plan, layers, 2, &count));
  CHECK(count == 2 && layers[0].imbalance >= layers[0].lower_bound);
  CHECK_OK(dualpipe_expert_plan_free(plan));
}

#endif
