#include "report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void compare_step(comparison *comparison, sequential *run, const rank *rank, double loss, int step) {
  const double expected = sequential_step(run, &rank->batch);
  int i;
  size_t j;
  comparison->num_losses += 1;
  comparison->num_equal_losses += loss == expected;
  for (i = 0; i < rank->num_copies; i++) {
    const stage *stage = rank->copies[i].stage, *reference = run->stages[stage->index];
    for (j = 0; j < stage->num_parameters; j++) {
      const double difference = fabs((double)stage->grads[j] - reference->grads[j]);
      comparison->num_gradients += 1;
      comparison->num_equal += stage->grads[j] == reference->grads[j];
      if (!(difference <= comparison->largest)) comparison->largest = difference;
    }
  }
  /* The same on every rank: one is enough. */
  if (step == 0 && rank->peers->rank == 0) comparison->slopes_off = sequential_slopes_off(run, &rank->batch);
}

int compare_ranks(const comparison *own, rank *rank, char *error, size_t capacity) {
  const double slopes_off_max = 5e-3;
  double sums[4], largest[2];
  int agree;
  sums[0] = own->num_gradients, sums[1] = own->num_equal, sums[2] = own->num_losses, sums[3] = own->num_equal_losses;
  largest[0] = own->largest, largest[1] = own->slopes_off;
  if (rank_all_reduce(rank, sums, 4, MPI_SUM, "the comparisons", error, capacity) != 0 ||
      rank_all_reduce(rank, largest, 2, MPI_MAX, "the comparisons", error, capacity) != 0) {
    return -1;
  }
  agree = sums[0] > 0 && sums[0] == sums[1] && sums[2] == sums[3] && largest[1] <= slopes_off_max;
  if (rank->peers->rank == 0) {
    printf("\nEvery step on every rank, against a sequential run\n");
    printf("  %.0f of %.0f gradients and %.0f of %.0f losses are equal to the bit; the largest difference is %g\n",
           sums[1], sums[0], sums[3], sums[2], largest[0]);
    printf("  its gradients are the slopes of its loss within %.3f %%, matrix by matrix; %g %% is allowed\n",
           100 * largest[1], 100 * slopes_off_max);
    printf("  %s\n", agree ? "they agree" : "THEY DIFFER");
  }
  return agree;
}

/* The heaviest GPU's load / the mean, if each has as many experts, in order. */
static double imbalance_in_order(const float *loads, int num_experts, int num_gpus) {
  double heaviest = 0, all = 0;
  int gpu, i;
  for (gpu = 0; gpu < num_gpus; gpu++) {
    double load = 0;
    for (i = 0; i < num_experts / num_gpus; i++) load += loads[gpu * (num_experts / num_gpus) + i];
    heaviest = fmax(heaviest, load);
    all += load;
  }
  return heaviest * num_gpus / all;
}

static void print_layer(const options *options, const int64_t *experts, int num_slots) {
  int slot;
  for (slot = 0; slot < num_slots; slot++) {
    printf("%s%d", slot == 0 ? "" : slot % (num_slots / options->num_gpus) == 0 ? " | " : " ", (int)experts[slot]);
  }
  printf("\n");
}

int print_placement(const options *options, const model_shape *shape, const double *measured, char *error,
                    size_t capacity) {
  dualpipe_balance_options balance = DUALPIPE_BALANCE_OPTIONS_INIT;
  const size_t num_stages = (size_t)shape->num_stages;
  const size_t num_slots = (size_t)(shape->num_experts + options->num_gpus), num_places = num_stages * num_slots;
  dualpipe_layer_balance *layers = calloc(num_stages, sizeof *layers);
  int64_t *experts = calloc(num_places, sizeof *experts);
  const size_t num_loads = num_stages * (size_t)shape->num_experts;
  float *loads = calloc(num_loads, sizeof *loads);
  dualpipe_expert_plan_t plan = NULL;
  size_t s, i, count = 0;
  int code = -1;
  for (i = 0; loads != NULL && i < num_loads; i++) loads[i] = (float)measured[i];
  balance.num_layers = (uint32_t)num_stages;
  balance.num_experts = (uint32_t)shape->num_experts;
  balance.num_slots = (uint32_t)num_slots;
  balance.num_groups = balance.num_nodes = 1;
  balance.num_gpus = (uint32_t)options->num_gpus;
  balance.num_threads = 1;
  if (layers == NULL || experts == NULL || loads == NULL) {
    snprintf(error, capacity, "no memory for a placement");
  } else if (dualpipe_expert_plan_create(&balance, loads, num_loads, &plan) != DUALPIPE_OK ||
             dualpipe_expert_plan_layers(plan, layers, num_stages, &count) != DUALPIPE_OK ||
             dualpipe_expert_plan_slot_to_expert(plan, experts, num_places, &count) != DUALPIPE_OK) {
    snprintf(error, capacity, "%s", dualpipe_last_error());
  } else {
    printf("\nExperts on %d GPUs, by rows since the first step: the fullest GPU / mean\n", options->num_gpus);
    printf("            in order   balanced   lower bound   experts, GPU by GPU\n");
    for (s = 0; s < num_stages; s++) {
      const float *row = loads + s * (size_t)shape->num_experts;
      printf("  stage %zu   %8.3f   %8.3f   %11.3f   ", s, imbalance_in_order(row, shape->num_experts, options->num_gpus),
             layers[s].imbalance, layers[s].lower_bound);
      print_layer(options, experts + s * num_slots, (int)num_slots);
    }
    code = 0;
  }
  dualpipe_expert_plan_free(plan);
  free(layers);
  free(experts);
  free(loads);
  return code;
}
