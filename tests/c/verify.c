/* Placements one can trust: every finding by its numbers, hashes, memory, GPU loads, heat maps, replays. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { GPUS = 3, SLOTS = 6, EXPERTS = 3 };

static dualpipe_cluster cluster_of(const uint8_t *is_alive) {
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  cluster.num_gpus = GPUS;
  cluster.num_slots = SLOTS;
  cluster.num_nodes = GPUS;
  cluster.is_alive = is_alive;
  return cluster;
}

static dualpipe_goal goal_of(void) {
  dualpipe_goal goal = DUALPIPE_GOAL_INIT;
  goal.num_layers = 1;
  goal.num_experts = EXPERTS;
  return goal;
}

/* The only finding of a placement, if there is one and no other. */
static dualpipe_finding only(const dualpipe_cluster *cluster, const dualpipe_goal *goal,
                             const dualpipe_unverified_placement *placement) {
  dualpipe_verdict verdict;
  dualpipe_finding finding;
  size_t count = 0;
  uint64_t sum = 0, i;
  CHECK_OK(dualpipe_expert_verify(cluster, goal, placement, &verdict, &finding, 1, &count));
  for (i = 0; i < 16; i++) sum += verdict.counts[i];
  CHECK(count == 1 && sum == 1 && verdict.counts[finding.kind] == 1);
  CHECK(verdict.num_errors + verdict.num_warnings == 1);
  CHECK((verdict.num_errors == 1) == (finding.severity == DUALPIPE_SEVERITY_ERROR));
  return finding;
}

static void findings(void) {
  static const int64_t good[SLOTS] = {0, 1, 2, 0, 1, 2}, counts[EXPERTS] = {2, 2, (int64_t)2 << 32};
  static const int64_t table[EXPERTS * 2] = {3, 0, 1, 4, 2, 5};
  static const double shares[SLOTS] = {0.25, 1, 1, 0.5, 0, 0};
  static const float loads[EXPERTS] = {1, 1, 2};
  const dualpipe_cluster cluster = cluster_of(NULL);
  const dualpipe_goal goal = goal_of();
  dualpipe_unverified_placement placement = DUALPIPE_UNVERIFIED_PLACEMENT_INIT;
  dualpipe_verdict verdict;
  dualpipe_finding finding;
  int64_t slots[SLOTS];
  char text[256];
  size_t count = 9;

  placement.slot_to_expert = good;
  placement.num_slots = SLOTS;
  placement.expert_to_slots = table;
  placement.num_expert_to_slots = EXPERTS * 2;
  CHECK_OK(dualpipe_expert_verify(&cluster, &goal, &placement, &verdict, NULL, 0, &count));
  CHECK(count == 0 && verdict.num_errors == 0 && verdict.num_warnings == 0);
  CHECK_OK(dualpipe_expert_verify_text(&cluster, &goal, &placement, text, sizeof text, &count));
  CHECK(count == 0 && text[0] == '\0');

  placement.replica_counts = counts;
  placement.num_experts = EXPERTS;
  finding = only(&cluster, &goal, &placement);
  CHECK(finding.kind == DUALPIPE_FINDING_REPLICA_COUNT && finding.expert == 2);
  CHECK(finding.value == counts[2] && finding.wanted == 2 && finding.slot == DUALPIPE_NONE);
  placement.replica_counts = NULL;

  placement.shares = shares;
  finding = only(&cluster, &goal, &placement);
  CHECK(finding.kind == DUALPIPE_FINDING_SHARE_SUM && finding.expert == 0);
  CHECK(finding.amount == 0.75 && finding.limit == 1);
  placement.shares = NULL;

  placement.loads = loads;
  placement.imbalance_max = 1.2;
  CHECK_OK(dualpipe_expert_verify(&cluster, &goal, &placement, &verdict, NULL, 0, &count));
  CHECK(count == 0);
  placement.imbalance_max = 1.1; /* of 4 / 3 */
  CHECK_OK(dualpipe_expert_verify(&cluster, &goal, &placement, &verdict, NULL, 0, &count));
  CHECK(verdict.counts[DUALPIPE_FINDING_OVERLOADED] == 2 && verdict.num_warnings == 2);
  placement.loads = NULL;
  CHECK(dualpipe_expert_verify(&cluster, &goal, &placement, &verdict, NULL, 0, &count) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  placement.imbalance_max = 0;
  placement.num_experts = 0;

  memcpy(slots, good, sizeof slots);
  placement.slot_to_expert = slots;
  placement.expert_to_slots = NULL;
  placement.num_expert_to_slots = 0;
  slots[5] = ((int64_t)1 << 32) + 2; /* cut to 32 bits it would be right */
  finding = only(&cluster, &goal, &placement);
  CHECK(finding.kind == DUALPIPE_FINDING_NOT_AN_EXPERT && finding.slot == 5 && finding.value == slots[5]);
  CHECK_OK(dualpipe_expert_verify_text(&cluster, &goal, &placement, text, sizeof text, &count));
  CHECK(strcmp(text, "error: layer 0: slot 5 holds 4294967298, but experts are 0 to 2\n") == 0);
  CHECK(count == strlen(text));
  slots[5] = 1;
  finding = only(&cluster, &goal, &placement);
  CHECK(finding.kind == DUALPIPE_FINDING_TWICE && finding.gpu == 2 && finding.expert == 1);
  CHECK(finding.value == 2 && finding.is_avoidable == 1 && finding.severity == DUALPIPE_SEVERITY_WARNING);
}

static void hashes_and_memory(void) {
  static const int64_t slots[4] = {0, 1, 2, 0};
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  dualpipe_expert_traffic traffic = DUALPIPE_EXPERT_TRAFFIC_INIT;
  dualpipe_expert_memory memory = DUALPIPE_EXPERT_MEMORY_INIT;
  uint64_t hashes[4], most = 0;
  uint32_t ranks[4];
  size_t count = 0;
  cluster.num_gpus = 2;
  cluster.num_slots = 4;
  CHECK_OK(dualpipe_expert_hash(&cluster, slots, NULL, 4, &hashes[0]));
  CHECK(hashes[0] == 0xc749d0bc92281331u);
  hashes[1] = hashes[3] = hashes[0];
  hashes[2] = 7;
  CHECK_OK(dualpipe_expert_hash_agree(hashes, 4, &most, ranks, 4, &count));
  CHECK(most == hashes[0] && count == 1 && ranks[0] == 2);

  cluster.num_gpus = 32;
  cluster.num_slots = 288;
  traffic.num_layers = 58;
  traffic.num_experts = 256;
  traffic.top_k = 8;
  traffic.hidden = 7168;
  traffic.tokens_per_rank = 128;
  traffic.expert_bytes = 3 * 7168 * 2048;
  CHECK_OK(dualpipe_expert_buffers(&cluster, &traffic, &memory));
  CHECK(memory.slots_max == 9 && memory.rows_max == 32768 && memory.weight_bytes >> 20 == 21924);
  CHECK(memory.low_latency_bytes >> 20 == 2017 && memory.low_latency_bytes_without_redundancy >> 20 == 1793);
}

static void loads_and_pictures(void) {
  static const int64_t slots[SLOTS] = {0, 1, -1, -1, 2, 0};
  static const double shares[SLOTS] = {0.25, 1, 0, 0, 1, 0.75};
  static const uint8_t is_alive[GPUS] = {1, 0, 1};
  static const float loads[EXPERTS] = {8, 1, 3};
  const dualpipe_cluster cluster = cluster_of(is_alive);
  dualpipe_heat_map_panel panels[2];
  double gpus[2][GPUS], nodes[GPUS];
  static char text[1 << 15];
  size_t count = 0;
  CHECK_OK(dualpipe_expert_gpu_loads(&cluster, EXPERTS, slots, NULL, SLOTS, loads, EXPERTS, gpus[0], GPUS, &count));
  CHECK(count == GPUS && gpus[0][0] == 5 && gpus[0][1] == 0 && gpus[0][2] == 7);
  CHECK_OK(dualpipe_expert_gpu_loads(&cluster, EXPERTS, slots, shares, SLOTS, loads, EXPERTS, gpus[1], GPUS, &count));
  CHECK(gpus[1][0] == 3 && gpus[1][2] == 9);
  CHECK_OK(dualpipe_expert_node_loads(&cluster, gpus[1], GPUS, nodes, GPUS, &count));
  CHECK(count == GPUS && nodes[0] == 3 && nodes[1] == 0 && nodes[2] == 9);

  panels[0].title = "equal", panels[1].title = "weighted & worse";
  panels[0].cluster = panels[1].cluster = &cluster;
  panels[0].num_loads = panels[1].num_loads = GPUS;
  panels[0].loads = gpus[0], panels[1].loads = gpus[1];
  CHECK_OK(dualpipe_heat_map(panels, 2, DUALPIPE_HEAT_MAP_SVG, text, sizeof text, &count));
  CHECK(strncmp(text, "<svg", 4) == 0 && count == strlen(text));
  CHECK(strstr(text, "weighted &amp; worse") != NULL && strstr(text, "mean imbalance 1.500") != NULL);
  CHECK_OK(dualpipe_heat_map(panels, 2, DUALPIPE_HEAT_MAP_TEXT, text, sizeof text, &count));
  CHECK(strncmp(text, "equal\n", 6) == 0 && strstr(text, "weighted & worse\n") != NULL);
}

/* Takes what is past and puts the experts that user_data says into place, but at step 3 keeps what there is. */
static int32_t put(void *user_data, const dualpipe_policy_past *past, int64_t *slot_to_expert, double *shares) {
  CHECK(past->num_slots == 4 && past->num_layers == 1 && past->num_experts == 2 && past->window == 1);
  CHECK(past->loads[2 * (past->num_steps - 1)] == (float)past->num_steps);
  CHECK(memcmp(slot_to_expert, past->slot_to_expert, 4 * sizeof *slot_to_expert) == 0 && shares[0] == 0);
  CHECK((past->shares != NULL) == (past->num_steps > 1));
  if (past->num_steps == 3) return DUALPIPE_POLICY_KEEP;
  memcpy(slot_to_expert, user_data, 4 * sizeof *slot_to_expert);
  shares[0] = 0.5, shares[1] = 0.5, shares[2] = 1, shares[3] = 0;
  return DUALPIPE_POLICY_PLACED_WITH_SHARES;
}

static int32_t fails(void *user_data, const dualpipe_policy_past *past, int64_t *slot_to_expert, double *shares) {
  (void)past, (void)slot_to_expert, (void)shares;
  return *(const int32_t *)user_data;
}

static int32_t stop(void *calls, uint64_t done, uint64_t total) {
  CHECK(total == 4 && done <= total);
  return ++*(int *)calls == 2;
}

static void replays(void) {
  /* Steps 0 to 4: expert 0 has one more than the step, expert 1 has twice that. */
  static const float loads[10] = {1, 2, 2, 4, 3, 6, 4, 8, 5, 10};
  static int64_t both[4] = {0, 0, 1, 1};
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  dualpipe_goal goal = goal_of();
  dualpipe_replay_options options = DUALPIPE_REPLAY_OPTIONS_INIT;
  dualpipe_policy policies[3] = {{0}};
  dualpipe_replay_t replay = NULL;
  dualpipe_replay_run runs[3];
  dualpipe_replay_window windows[4];
  dualpipe_replay_layer layer;
  double gpus[2];
  char text[1024];
  size_t count = 0;
  int32_t answer = 3;
  int calls = 0;
  cluster.num_gpus = 2;
  cluster.num_slots = 4;
  goal.num_experts = 2;
  options.window = options.every = 1;
  options.with_bounds = 1;
  options.num_threads = 1;
  options.expert_bytes = 100;
  policies[1].kind = DUALPIPE_POLICY_REFINED;
  policies[1].name = "ours";
  policies[2].kind = DUALPIPE_POLICY_CALLBACK;
  policies[2].plan = put;
  policies[2].user_data = both;
  CHECK_OK(dualpipe_replay_create(&cluster, &goal, loads, 10, &options, policies, 3, &replay));
  CHECK_OK(dualpipe_replay_runs(replay, runs, 3, &count));
  CHECK(count == 3 && runs[0].imbalance == 1 && runs[0].num_windows == 4 && runs[0].num_new == 0);
  CHECK(runs[1].imbalance < 1 + 1e-9 && runs[1].num_new == 4);
  /* Expert 1 alone on GPU 1: 2 / 1.5. */
  CHECK(runs[2].imbalance > 1.333333 && runs[2].imbalance < 1.333334 && runs[2].worst_imbalance == runs[2].imbalance);
  CHECK(runs[2].num_new == 3 && runs[2].moves.same_gpu == 2 && runs[2].moves.same_node + runs[2].moves.other_node == 0);
  CHECK(runs[2].lower_bound > 1 - 1e-9 && runs[2].lower_bound <= 1 + 1e-9);
  CHECK_OK(dualpipe_replay_windows(replay, 2, windows, 4, &count));
  CHECK(count == 4 && windows[0].step == 1 && windows[3].step == 4 && windows[3].num_steps == 1);
  CHECK(windows[0].is_new && windows[1].is_new && !windows[2].is_new && windows[3].is_new);
  CHECK_OK(dualpipe_replay_layers(replay, 2, DUALPIPE_NONE, &layer, 1, &count));
  CHECK(count == 1 && layer.imbalance == runs[2].imbalance);
  CHECK_OK(dualpipe_replay_layers(replay, 2, 3, &layer, 1, &count));
  CHECK(layer.imbalance == windows[3].imbalance);
  CHECK(dualpipe_replay_layers(replay, 2, 4, &layer, 1, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(dualpipe_replay_windows(replay, 3, windows, 4, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK_OK(dualpipe_replay_gpu_loads(replay, 2, gpus, 2, &count));
  CHECK(count == 2 && gpus[0] == 5 && gpus[1] == 10);
  CHECK_OK(dualpipe_replay_text(replay, text, sizeof text, &count));
  CHECK(strstr(text, "\nours ") != NULL && strstr(text, "\ncallback ") != NULL);
  CHECK_OK(dualpipe_replay_free(replay));

  policies[2].plan = fails;
  policies[2].user_data = &answer;
  CHECK(dualpipe_replay_create(&cluster, &goal, loads, 10, &options, &policies[2], 1, &replay) ==
        DUALPIPE_ERROR_CALLBACK_FAILED);
  CHECK(strstr(dualpipe_last_error(), "policy `callback` at step 1 returned 3") != NULL);
  answer = -1;
  CHECK(dualpipe_replay_create(&cluster, &goal, loads, 10, &options, &policies[2], 1, &replay) ==
        DUALPIPE_ERROR_CALLBACK_FAILED);
  CHECK_OK(dualpipe_set_progress(stop, &calls));
  CHECK(dualpipe_replay_create(&cluster, &goal, loads, 10, &options, policies, 1, &replay) == DUALPIPE_ERROR_CANCELLED);
  CHECK(calls == 2);
  CHECK_OK(dualpipe_set_progress(NULL, NULL));
}

int main(void) {
  findings();
  hashes_and_memory();
  loads_and_pictures();
  replays();
  return 0;
}
