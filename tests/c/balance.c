/* Expert plans: DeepSeek's own example (the README of deepseek-ai/EPLB). */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { LAYERS = 2, EXPERTS = 12, SLOTS = 16 };

static const float loads[LAYERS * EXPERTS] = {90, 132, 40, 61,  104, 165, 39,  4,   73,  56, 183, 86,
                                              20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
static const int64_t wanted[LAYERS * SLOTS] = {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                               7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1};

static int32_t stop(void *calls, uint64_t done, uint64_t total) {
  CHECK(done <= total && total == LAYERS);
  ++*(int *)calls;
  return 1;
}

int main(void) {
  dualpipe_balance_options options = DUALPIPE_BALANCE_OPTIONS_INIT;
  dualpipe_expert_plan_t plan = NULL;
  dualpipe_layer_balance layers[LAYERS];
  int64_t experts[LAYERS * SLOTS], counts[LAYERS * EXPERTS], slots[LAYERS * EXPERTS * 4];
  size_t count = 0, i, replicas = 0;
  int calls = 0;
  options.num_layers = LAYERS;
  options.num_experts = EXPERTS;
  options.num_slots = SLOTS;
  options.num_groups = 4;
  options.num_nodes = 2;
  options.num_gpus = 8;
  options.num_threads = 1;
  CHECK_OK(dualpipe_expert_plan_create(&options, loads, LAYERS * EXPERTS, &plan));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(plan, experts, LAYERS * SLOTS, &count));
  CHECK(count == LAYERS * SLOTS && memcmp(experts, wanted, sizeof wanted) == 0);
  CHECK_OK(dualpipe_expert_plan_replica_counts(plan, counts, LAYERS * EXPERTS, &count));
  CHECK_OK(dualpipe_expert_plan_expert_to_slots(plan, slots, LAYERS * EXPERTS * 4, &count));
  CHECK(count == LAYERS * EXPERTS * 2);
  for (i = 0; i < LAYERS * EXPERTS; i++) {
    replicas += (size_t)counts[i];
    CHECK(experts[(i / EXPERTS) * SLOTS + (size_t)slots[2 * i]] == (int64_t)(i % EXPERTS));
    CHECK((slots[2 * i + 1] == -1) == (counts[i] == 1));
  }
  CHECK(replicas == LAYERS * SLOTS);
  CHECK_OK(dualpipe_expert_plan_layers(plan, layers, LAYERS, &count));
  for (i = 0; i < LAYERS; i++) CHECK(layers[i].imbalance >= layers[i].lower_bound && layers[i].lower_bound >= 1);
  CHECK_OK(dualpipe_expert_plan_free(plan));

  plan = NULL;
  CHECK_OK(dualpipe_set_progress(stop, &calls));
  CHECK(dualpipe_expert_plan_create(&options, loads, LAYERS * EXPERTS, &plan) == DUALPIPE_ERROR_CANCELLED);
  CHECK(plan == NULL && calls == 1);
  CHECK_OK(dualpipe_set_progress(NULL, NULL));
  return 0;
}
