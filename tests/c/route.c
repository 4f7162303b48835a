/* Routers: the heaviest GPU is as light as can be, and ranks find the same slots each for itself. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { GPUS = 2, EXPERTS = 3, SLOTS = 4 };

/* GPU 0 has experts 0 and 1, GPU 1 has 1 and 2. */
static const int64_t slots[SLOTS] = {0, 1, 1, 2};

static dualpipe_router_t create(void) {
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  dualpipe_router_t router = NULL;
  cluster.num_gpus = GPUS;
  cluster.num_slots = SLOTS;
  CHECK_OK(dualpipe_router_create_from_slots(&cluster, EXPERTS, slots, SLOTS, &router));
  return router;
}

/* 30 + 40 + 10 tokens: 40 on each GPU, so that expert 1 has 10 on GPU 0 and 30 on GPU 1. */
static void totals_are_levelled(dualpipe_router_t router) {
  const uint32_t counts[EXPERTS] = {30, 40, 10}, wanted[SLOTS] = {30, 10, 30, 10};
  dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
  dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
  uint32_t quotas[SLOTS] = {0}, gpus[GPUS];
  uint64_t loads[GPUS];
  size_t count = 0;
  CHECK(dualpipe_router_gpu_loads(router, 0, loads, GPUS, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK_OK(dualpipe_router_route(router, 0, &options, counts, EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK(count == SLOTS && memcmp(quotas, wanted, sizeof wanted) == 0);
  CHECK(routing.heaviest == 40 && routing.bound > 39.999 && routing.bound < 40.001);
  CHECK_OK(dualpipe_router_gpu_loads(router, 0, loads, GPUS, &count));
  CHECK(count == GPUS && loads[0] == 40 && loads[1] == 40);
  CHECK_OK(dualpipe_router_bottleneck(router, 0, gpus, GPUS, &count));
  CHECK(count == routing.num_bottleneck_gpus && routing.bottleneck_load == 80 && count == 2);
  /* Nobody knows the senders. */
  CHECK(dualpipe_router_source_quotas(router, 0, 0, GPUS, quotas, SLOTS, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);

  /* Expert 0 alone: its 50 tokens cannot leave GPU 0, which is the bottleneck. */
  {
    const uint32_t heavy[EXPERTS] = {50, 20, 10};
    CHECK_OK(dualpipe_router_route(router, 0, &options, heavy, EXPERTS, quotas, SLOTS, &count, &routing));
    CHECK(quotas[0] == 50 && quotas[1] == 0 && quotas[2] == 20 && routing.heaviest == 50);
    CHECK_OK(dualpipe_router_bottleneck(router, 0, gpus, GPUS, &count));
    CHECK(count == 1 && gpus[0] == 0 && routing.bottleneck_load == 50);
  }

  /* In tiles of 16: 2 + 3 + 1 tiles, 3 on each GPU. */
  options.tile = 16;
  CHECK_OK(dualpipe_router_route(router, 0, &options, counts, EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK(routing.heaviest == 48 && quotas[1] + quotas[2] == 40 && (quotas[1] == 16 || quotas[2] == 32));
}

/* Each GPU sends 40 tokens; those for expert 1 stay where they are as far as the loads allow. */
static void senders_keep_their_tokens(dualpipe_router_t router) {
  const uint32_t counts[GPUS * EXPERTS] = {20, 15, 5, 10, 25, 5};
  dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
  dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
  uint32_t quotas[SLOTS], of[GPUS * SLOTS], row[SLOTS];
  size_t count = 0, gpu, i;
  CHECK_OK(dualpipe_router_route_from(router, 0, &options, counts, GPUS * EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK(routing.heaviest == 40 && quotas[1] == 10 && quotas[2] == 30);
  CHECK_OK(dualpipe_router_source_quotas(router, 0, 0, GPUS, of, GPUS * SLOTS, &count));
  CHECK(count == GPUS * SLOTS);
  for (i = 0; i < SLOTS; i++) CHECK(of[i] + of[SLOTS + i] == quotas[i]);
  for (gpu = 0; gpu < GPUS; gpu++) {
    CHECK(of[gpu * SLOTS + 1] + of[gpu * SLOTS + 2] == counts[gpu * EXPERTS + 1]);
    CHECK_OK(dualpipe_router_source_quotas(router, 0, (uint32_t)gpu, 1, row, SLOTS, &count));
    CHECK(count == SLOTS && memcmp(row, &of[gpu * SLOTS], sizeof row) == 0);
  }
  /* 20 and 10 of GPU 0's to slots 0 and 1; 25 and 5 of GPU 1's to slots 2 and 3. One node has them all. */
  CHECK(routing.tokens_on_gpu == 60 && routing.tokens_on_node == 80);
  CHECK(dualpipe_router_source_quotas(router, 0, 1, 2, of, GPUS * SLOTS, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
}

/* Two ranks with 50 and 30 tokens; each has a router of its own, and one has narrow ids, the other wide ones. */
static void ranks_find_the_same_slots(dualpipe_router_t one, dualpipe_router_t other) {
  const uint32_t counts[EXPERTS] = {30, 40, 10}, lower[EXPERTS] = {20, 25, 5};
  dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
  dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
  uint32_t quotas[SLOTS], sent[SLOTS] = {0}, e, i;
  int32_t narrow[51], found[51], again[51];
  int64_t wide[51], second[31];
  size_t count = 0, n = 0;
  for (e = 0; e < EXPERTS; e++)
    for (i = 0; i < lower[e]; i++, n++) wide[n] = narrow[n] = (int32_t)e;
  wide[n] = narrow[n] = -1; /* no expert */
  CHECK_OK(dualpipe_router_route(one, 0, &options, counts, EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK_OK(dualpipe_router_slots_by_quotas(one, 0, quotas, SLOTS, NULL, 0, narrow, sizeof *narrow, n + 1, found, 51,
                                           &count));
  CHECK(count == 51 && found[50] == -1);
  CHECK_OK(dualpipe_router_slots_by_quotas(other, 0, quotas, SLOTS, NULL, 0, wide, sizeof *wide, n + 1, again, 51,
                                           &count));
  CHECK(memcmp(found, again, sizeof found) == 0);
  for (i = 0; i < 50; i++) CHECK(slots[found[i]] == narrow[i] && ++sent[found[i]] > 0);
  for (e = 0, n = 0; e < EXPERTS; e++)
    for (i = lower[e]; i < counts[e]; i++) second[n++] = e;
  CHECK(n == 30);
  CHECK_OK(dualpipe_router_slots_by_quotas(other, 0, quotas, SLOTS, lower, EXPERTS, second, sizeof *second, n, found,
                                           51, &count));
  for (i = 0; i < 30; i++) CHECK(slots[found[i]] == second[i] && ++sent[found[i]] > 0);
  CHECK(memcmp(sent, quotas, sizeof sent) == 0);
  /* One token too many for expert 0: nothing is written. */
  second[0] = 0, again[0] = 77;
  for (i = 1; i < 12; i++) second[i] = 0;
  CHECK(dualpipe_router_slots_by_quotas(other, 0, quotas, SLOTS, lower, EXPERTS, second, sizeof *second, 12, again, 51,
                                        &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(again[0] == 77);
}

/* 2 : 1 on slots 1 and 2, then by what the loads ask for, then equally. */
static void shares_need_no_counts(dualpipe_router_t router) {
  const double given[SLOTS] = {1, 2, 1, 1};
  const float loads[EXPERTS] = {30, 40, 10};
  double shares[SLOTS], heaviest = 0;
  int32_t ids[300], found[300], on_first;
  size_t count = 0, i;
  for (i = 0; i < 300; i++) ids[i] = 1;
  CHECK_OK(dualpipe_router_slots_by_shares(router, 0, given, SLOTS, 5, ids, sizeof *ids, 300, found, 300, &count));
  for (i = 0, on_first = 0; i < 300; i++) on_first += found[i] == 1;
  CHECK(count == 300 && on_first > 195 && on_first < 205);
  CHECK_OK(dualpipe_router_shares(router, 0, loads, EXPERTS, shares, SLOTS, &count, &heaviest));
  CHECK(count == SLOTS && heaviest > 39.999 && heaviest < 40.001 && shares[0] == 1 && shares[3] == 1);
  CHECK(shares[1] > 0.2499 && shares[1] < 0.2501 && shares[1] + shares[2] > 0.9999);
  CHECK_OK(dualpipe_router_slots_by_shares(router, 0, NULL, 0, 5, ids, sizeof *ids, 300, found, 300, &count));
  for (i = 0, on_first = 0; i < 300; i++) on_first += found[i] == 1;
  CHECK(on_first > 145 && on_first < 155);
}

static void a_plan_has_a_router_for_all_layers(void) {
  const float loads[2 * EXPERTS] = {4, 1, 1, 1, 1, 4};
  const uint32_t counts[EXPERTS] = {40, 10, 10};
  dualpipe_balance_options balance = DUALPIPE_BALANCE_OPTIONS_INIT;
  dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
  dualpipe_router_info info = DUALPIPE_ROUTER_INFO_INIT;
  dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
  dualpipe_expert_plan_t plan = NULL;
  dualpipe_router_t router = NULL;
  uint32_t quotas[SLOTS];
  size_t count = 0;
  balance.num_layers = balance.num_gpus = 2;
  balance.num_groups = balance.num_nodes = balance.num_threads = 1;
  balance.num_experts = EXPERTS;
  balance.num_slots = SLOTS;
  CHECK_OK(dualpipe_expert_plan_create(&balance, loads, 2 * EXPERTS, &plan));
  CHECK_OK(dualpipe_router_create(plan, &router));
  CHECK_OK(dualpipe_expert_plan_free(plan));
  CHECK_OK(dualpipe_router_describe(router, &info));
  CHECK(info.num_layers == 2 && info.num_experts == EXPERTS && info.num_slots == SLOTS && info.num_gpus == 2);
  CHECK(info.num_nodes == 1);
  CHECK_OK(dualpipe_router_route(router, 0, &options, counts, EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK(routing.heaviest == 30); /* expert 0 has two replicas there */
  CHECK_OK(dualpipe_router_route(router, 1, &options, counts, EXPERTS, quotas, SLOTS, &count, &routing));
  CHECK(routing.heaviest == 40); /* and one here */
  CHECK_OK(dualpipe_router_free(router));
  CHECK(dualpipe_router_describe(router, &info) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(dualpipe_router_free(router) == DUALPIPE_ERROR_INVALID_HANDLE && dualpipe_router_free(NULL) == DUALPIPE_OK);
}

int main(void) {
  dualpipe_router_t router = create(), other = create();
  totals_are_levelled(router);
  senders_keep_their_tokens(router);
  ranks_find_the_same_slots(router, other);
  shares_need_no_counts(router);
  CHECK_OK(dualpipe_router_free(router));
  CHECK_OK(dualpipe_router_free(other));
  a_plan_has_a_router_for_all_layers();
  return 0;
}
