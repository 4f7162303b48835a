/* Plans by the best that can be found: any cluster and goal, a window of steps, few moves, placements from anywhere. */
#include <dualpipe.h>
#include <math.h>
#include <string.h>

#include "check.h"

enum { EXPERTS = 32, GPUS = 8, SLOTS = 48 };

static const dualpipe_cluster no_cluster = DUALPIPE_CLUSTER_INIT;
static const dualpipe_goal no_goal = DUALPIPE_GOAL_INIT;
static const dualpipe_current_placement no_current = DUALPIPE_CURRENT_PLACEMENT_INIT;

static dualpipe_cluster cluster_of(uint32_t gpus, uint32_t slots) {
  dualpipe_cluster cluster = no_cluster;
  cluster.num_gpus = gpus;
  cluster.num_slots = slots;
  return cluster;
}

static dualpipe_goal goal_of(uint32_t experts) {
  dualpipe_goal goal = no_goal;
  goal.num_layers = 1;
  goal.num_experts = experts;
  return goal;
}

static dualpipe_layer_balance balance_of(dualpipe_expert_plan_t plan) {
  dualpipe_layer_balance layer;
  size_t count = 0;
  CHECK_OK(dualpipe_expert_plan_layers(plan, &layer, 1, &count));
  CHECK(count == 1 && layer.imbalance >= layer.lower_bound && layer.lower_bound >= layer.joint_bound);
  return layer;
}

/* Loads that halve every few experts; `shift` rotates them. */
static void fill(float loads[EXPERTS], int shift) {
  int i;
  for (i = 0; i < EXPERTS; i++) loads[(i + shift) % EXPERTS] = (float)(1000 / (i + 3) + i % 5);
}

static dualpipe_move_count moves_of(const dualpipe_cluster *cluster, const int64_t *from, const int64_t *to) {
  dualpipe_move_count moves;
  size_t count = 0;
  CHECK_OK(dualpipe_expert_moves(cluster, EXPERTS, from, to, SLOTS, &moves, 1, &count));
  CHECK(count == 1 && moves.moves == moves.same_node + moves.other_node + moves.lost);
  return moves;
}

/* The example of vLLM-Ascend's FlashLB, both of whose optima are known: 196.67 with an equal split, and the mean,
 * 181.25, with weighted shares. */
static void the_best_of_both_splits_is_found(void) {
  const float loads[8] = {600, 560, 120, 120, 20, 10, 10, 10};
  const double wanted[2] = {590.0 / 3, 181.25};
  const dualpipe_cluster cluster = cluster_of(8, 16);
  uint32_t split;
  for (split = DUALPIPE_SPLIT_EQUAL; split <= DUALPIPE_SPLIT_WEIGHTED; split++) {
    dualpipe_goal goal = goal_of(8);
    dualpipe_expert_plan_info info = DUALPIPE_EXPERT_PLAN_INFO_INIT;
    dualpipe_expert_plan_t plan = NULL;
    double gpus[8], nodes[1], shares[16], of_expert[8] = {0}, heaviest = 0;
    int64_t experts[16];
    size_t count = 0, i;
    goal.split = split;
    CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, 8, NULL, 1, &plan));
    CHECK_OK(dualpipe_expert_plan_describe(plan, &info));
    CHECK(info.num_layers == 1 && info.num_experts == 8 && info.num_slots == 16 && info.num_gpus == 8);
    CHECK(info.num_nodes == 1 && info.num_groups == 1 && info.split == split);
    CHECK_OK(dualpipe_expert_plan_gpu_loads(plan, loads, 8, gpus, 8, &count));
    for (i = 0; i < 8; i++) heaviest = gpus[i] > heaviest ? gpus[i] : heaviest;
    CHECK(count == 8 && fabs(heaviest - wanted[split]) < 0.001);
    CHECK(fabs(balance_of(plan).imbalance * 181.25 - heaviest) < 0.001);
    CHECK_OK(dualpipe_expert_plan_node_loads(plan, loads, 8, nodes, 1, &count));
    CHECK(count == 1 && fabs(nodes[0] - 1450) < 0.001);
    CHECK_OK(dualpipe_expert_plan_shares(plan, shares, 16, &count));
    CHECK_OK(dualpipe_expert_plan_slot_to_expert(plan, experts, 16, &count));
    for (i = 0; i < 16; i++) of_expert[experts[i]] += shares[i];
    for (i = 0; i < 8; i++) CHECK(fabs(of_expert[i] - 1) < 1e-9);
    CHECK_OK(dualpipe_expert_plan_free(plan));
  }
}

/* A GPU dies: its slots keep their numbers and are empty, every expert is on two live GPUs, and what was not on the
 * dead GPU hardly moves. */
static void experts_survive_a_dead_gpu(void) {
  dualpipe_cluster cluster = cluster_of(GPUS, SLOTS);
  dualpipe_goal goal = goal_of(16);
  dualpipe_current_placement current = no_current;
  dualpipe_expert_plan_t before = NULL, after = NULL;
  uint8_t is_alive[GPUS] = {1, 1, 1, 0, 1, 1, 1, 1};
  int64_t was[SLOTS], is[SLOTS];
  float loads[EXPERTS];
  dualpipe_move_count moves;
  size_t count = 0;
  int slot, expert;
  fill(loads, 0);
  cluster.num_nodes = 4;
  goal.min_gpus = goal.min_nodes = 2;
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, 16, NULL, 1, &before));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(before, was, SLOTS, &count));

  cluster.is_alive = is_alive;
  current.slot_to_expert = was;
  current.num_slots = SLOTS;
  current.budget = DUALPIPE_BUDGET_MOVES;
  current.max_moves = 4;
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, 16, &current, 1, &after));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(after, is, SLOTS, &count));
  for (slot = 0; slot < SLOTS; slot++) CHECK((is[slot] == -1) == (slot / 6 == 3));
  for (expert = 0; expert < 16; expert++) {
    int gpus = 0, nodes = 0, gpu, is_on[GPUS] = {0};
    for (slot = 0; slot < SLOTS; slot++) is_on[slot / 6] |= is[slot] == expert;
    for (gpu = 0; gpu < GPUS; gpu++) gpus += is_on[gpu];
    for (gpu = 0; gpu < GPUS; gpu += 2) nodes += is_on[gpu] || is_on[gpu + 1];
    CHECK(gpus >= 2 && nodes >= 2);
  }
  moves = moves_of(&cluster, was, is);
  CHECK(moves.moves > 0 && moves.moves <= 10 && moves.lost == 0);
  CHECK_OK(dualpipe_expert_plan_free(before));
  CHECK_OK(dualpipe_expert_plan_free(after));

  /* 5 live GPUs are too few slots for 16 experts on 2 GPUs each. */
  memset(is_alive, 0, 3);
  before = NULL;
  CHECK(dualpipe_expert_plan_balance(&cluster, &goal, loads, 16, NULL, 1, &before) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(before == NULL && strstr(dualpipe_last_error(), "the number of live slots is 24, must be at least 32"));
}

/* The heaviest experts change: what 6 moves gain, what a target takes, and the curve that has both. */
static void few_moves_gain_much(void) {
  const dualpipe_cluster cluster = cluster_of(GPUS, SLOTS);
  const dualpipe_goal goal = goal_of(EXPERTS);
  dualpipe_current_placement current = no_current;
  dualpipe_expert_plan_t plan = NULL, stale = NULL, next = NULL;
  dualpipe_move_point points[256];
  dualpipe_move_count moves;
  int64_t was[SLOTS], is[SLOTS];
  float loads[EXPERTS];
  double imbalance;
  size_t count = 0, i;
  fill(loads, 0);
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, EXPERTS, NULL, 0, &plan));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(plan, was, SLOTS, &count));
  moves = moves_of(&cluster, was, was);
  CHECK(moves.moves == 0 && moves.same_gpu == 0);

  fill(loads, 1);
  CHECK_OK(dualpipe_expert_plan_create_from_slots(&cluster, &goal, was, SLOTS, NULL, 0, loads, EXPERTS, &stale));
  imbalance = balance_of(stale).imbalance;
  current.slot_to_expert = was;
  current.num_slots = SLOTS;
  current.budget = DUALPIPE_BUDGET_MOVES;
  current.max_moves = 6;
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, EXPERTS, &current, 1, &next));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(next, is, SLOTS, &count));
  CHECK(moves_of(&cluster, was, is).moves <= 6 && balance_of(next).imbalance < imbalance);

  CHECK_OK(dualpipe_expert_move_curve(&cluster, &goal, loads, EXPERTS, was, SLOTS, 100, points, 256, &count));
  CHECK(count > 2 && points[0].moves == 0 && fabs(points[0].imbalance - imbalance) < 1e-9);
  for (i = 1; i < count; i++) {
    CHECK(points[i].layer == 0 && points[i].moves > points[i - 1].moves);
    CHECK(points[i].imbalance < points[i - 1].imbalance);
  }
  CHECK_OK(dualpipe_expert_plan_free(next));

  current.budget = DUALPIPE_BUDGET_REACH;
  current.max_moves = 0;
  current.imbalance = points[count / 2].imbalance;
  current.same_node_price = current.other_node_price = 1;
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, EXPERTS, &current, 1, &next));
  CHECK_OK(dualpipe_expert_plan_slot_to_expert(next, is, SLOTS, &count));
  CHECK(balance_of(next).imbalance <= current.imbalance + 1e-9 && moves_of(&cluster, was, is).moves > 0);
  CHECK_OK(dualpipe_expert_plan_free(next));
  CHECK_OK(dualpipe_expert_plan_free(stale));
  CHECK_OK(dualpipe_expert_plan_free(plan));
}

/* Two steps with other experts in demand: the plan is good in both, and its imbalance is that of the steps, not that of
 * their sum. */
static void a_window_is_planned_for_each_of_its_steps(void) {
  const dualpipe_cluster cluster = cluster_of(GPUS, SLOTS);
  const dualpipe_goal goal = goal_of(EXPERTS);
  dualpipe_expert_plan_t plan = NULL;
  float loads[2 * EXPERTS];
  double heaviest = 0, total = 0;
  size_t step, i, count = 0;
  fill(loads, 0);
  fill(loads + EXPERTS, 16);
  CHECK_OK(dualpipe_expert_plan_balance(&cluster, &goal, loads, 2 * EXPERTS, NULL, 1, &plan));
  for (step = 0; step < 2; step++) {
    double gpus[GPUS], most = 0;
    CHECK_OK(dualpipe_expert_plan_gpu_loads(plan, loads + step * EXPERTS, EXPERTS, gpus, GPUS, &count));
    for (i = 0; i < GPUS; i++) {
      most = gpus[i] > most ? gpus[i] : most;
      total += gpus[i];
    }
    heaviest += most;
  }
  CHECK(fabs(balance_of(plan).imbalance - heaviest * GPUS / total) < 1e-6);
  CHECK(balance_of(plan).imbalance < 1.15);
  CHECK_OK(dualpipe_expert_plan_free(plan));
}

/* A placement that somebody else made, with shares of its own; and one that loses an expert. */
static void placements_come_from_anywhere(void) {
  const dualpipe_cluster cluster = cluster_of(2, 4);
  dualpipe_goal goal = goal_of(3);
  const int64_t experts[4] = {0, 1, 2, 0}, without_1[4] = {0, 2, 2, 0};
  const double shares[4] = {0.25, 1, 1, 0.75};
  const float loads[3] = {100, 50, 10};
  double gpus[2];
  dualpipe_expert_plan_t plan = NULL;
  size_t count = 0;
  goal.split = DUALPIPE_SPLIT_WEIGHTED;
  CHECK_OK(dualpipe_expert_plan_create_from_slots(&cluster, &goal, experts, 4, shares, 4, loads, 3, &plan));
  CHECK_OK(dualpipe_expert_plan_gpu_loads(plan, loads, 3, gpus, 2, &count));
  CHECK(fabs(gpus[0] - 75) < 1e-9 && fabs(gpus[1] - 85) < 1e-9);
  CHECK(fabs(balance_of(plan).imbalance - 85.0 / 80) < 1e-9);
  CHECK_OK(dualpipe_expert_plan_free(plan));
  goal.split = DUALPIPE_SPLIT_EQUAL;
  plan = NULL;
  CHECK(dualpipe_expert_plan_create_from_slots(&cluster, &goal, without_1, 4, NULL, 0, NULL, 0, &plan) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(plan == NULL && strstr(dualpipe_last_error(), "layer 0: expert 1 is on no live GPU"));
}

int main(void) {
  the_best_of_both_splits_is_found();
  experts_survive_a_dead_gpu();
  few_moves_gain_much();
  a_window_is_planned_for_each_of_its_steps();
  placements_come_from_anywhere();
  return 0;
}
