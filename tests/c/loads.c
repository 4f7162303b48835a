/* Load monitors, load histories, expert maps, and the question whether to rebalance. */
#include <dualpipe.h>
#include <math.h>
#include <string.h>

#include "check.h"

enum { LAYERS = 2, EXPERTS = 3, LOADS = LAYERS * EXPERTS, SLOTS = 4, RANKS = 2 };

static dualpipe_load_monitor_t create(uint32_t num_ranks) {
  dualpipe_load_monitor_options options = DUALPIPE_LOAD_MONITOR_OPTIONS_INIT;
  dualpipe_load_monitor_t monitor = NULL;
  options.num_layers = LAYERS;
  options.num_experts = EXPERTS;
  options.window = 8;
  options.num_ranks = num_ranks;
  options.half_life = 1;
  CHECK_OK(dualpipe_load_monitor_create(&options, &monitor));
  return monitor;
}

static void loads_are(dualpipe_load_monitor_t monitor, uint32_t kind, const float *wanted, size_t num_steps) {
  float loads[3 * LOADS];
  size_t count = 0;
  CHECK_OK(dualpipe_load_monitor_loads(monitor, DUALPIPE_REPORTED_BY_ALL_RANKS, kind, loads, 3 * LOADS, &count));
  CHECK(count == num_steps * LOADS && memcmp(loads, wanted, count * sizeof *loads) == 0);
}

static void defaults_stand_for_zero(void) {
  dualpipe_load_monitor_options options = DUALPIPE_LOAD_MONITOR_OPTIONS_INIT;
  dualpipe_load_monitor_info info = DUALPIPE_LOAD_MONITOR_INFO_INIT;
  dualpipe_load_monitor_t monitor = NULL;
  options.num_layers = 58;
  options.num_experts = 256;
  CHECK_OK(dualpipe_load_monitor_create(&options, &monitor));
  CHECK_OK(dualpipe_load_monitor_describe(monitor, &info));
  CHECK(info.num_layers == 58 && info.num_experts == 256 && info.window == 1000 && info.num_ranks == 1);
  CHECK(info.half_life == 250 && info.num_steps == 0 && info.newest_step == 0 && info.num_counters == 0);
  CHECK_OK(dualpipe_load_monitor_free(monitor));
}

/* Each of two ranks has two slots of each layer; what they record in whatever order comes to the same bytes. */
static void ranks_are_merged_in_any_order(void) {
  const int64_t slots[RANKS][SLOTS] = {{0, 1, 2, -1}, {2, 0, 1, 1}};
  const int32_t counts[RANKS][SLOTS] = {{1, 2, 5, 0}, {3, 4, 7, 8}};
  const uint32_t later[EXPERTS] = {16, 0, 8};
  const float steps[2 * LOADS] = {5, 2, 3, 0, 15, 5, 32, 0, 16, 32, 0, 16};
  const float sum[LOADS] = {37, 2, 19, 32, 15, 21};
  const float average[LOADS] = {(5 / 4.f + 32) / 1.25f, (2 / 4.f) / 1.25f, (3 / 4.f + 16) / 1.25f,
                                32 / 1.25f,            (15 / 4.f) / 1.25f, (5 / 4.f + 16) / 1.25f};
  uint8_t states[2][512];
  size_t lengths[2] = {0, 0}, count = 0;
  for (uint32_t order = 0; order < 2; order++) {
    dualpipe_load_monitor_t of_rank[RANKS];
    for (uint32_t i = 0; i < RANKS; i++) {
      const uint32_t rank = i ^ order;
      uint32_t is_kept = 9;
      of_rank[i] = create(RANKS);
      CHECK_OK(dualpipe_load_monitor_record_physical(of_rank[i], 5, slots[rank], counts[rank], SLOTS, &is_kept));
      CHECK(is_kept == 1);
      for (uint32_t layer = 0; layer < LAYERS; layer++)
        CHECK_OK(dualpipe_load_monitor_record_layer(of_rank[i], 7, layer ^ order, later, EXPERTS, &is_kept));
    }
    CHECK_OK(dualpipe_load_monitor_merge(of_rank[0], of_rank[1]));
    CHECK(dualpipe_load_monitor_merge(of_rank[0], of_rank[1]) == DUALPIPE_ERROR_INVALID_ARGUMENT);
    CHECK(dualpipe_load_monitor_merge(of_rank[0], of_rank[0]) == DUALPIPE_ERROR_INVALID_ARGUMENT);
    loads_are(of_rank[0], DUALPIPE_LOADS_STEPS, steps, 2);
    loads_are(of_rank[0], DUALPIPE_LOADS_SUM, sum, 1);
    loads_are(of_rank[0], DUALPIPE_LOADS_AVERAGE, average, 1);
    CHECK_OK(dualpipe_load_monitor_save(of_rank[0], states[order], sizeof states[order], &lengths[order]));
    for (uint32_t i = 0; i < RANKS; i++) CHECK_OK(dualpipe_load_monitor_free(of_rank[i]));
  }
  CHECK(lengths[0] == lengths[1] && memcmp(states[0], states[1], lengths[0]) == 0);

  {
    dualpipe_load_monitor_t again = NULL;
    uint64_t numbers[3], tokens[LOADS];
    uint32_t reports[LAYERS], is_kept = 9;
    const uint32_t ones[LOADS] = {1, 1, 1, 1, 1, 1};
    CHECK_OK(dualpipe_load_monitor_load(states[0], lengths[0], &again));
    CHECK_OK(dualpipe_load_monitor_record_logical(again, 9, ones, LOADS, &is_kept));
    CHECK_OK(dualpipe_load_monitor_step_numbers(again, DUALPIPE_REPORTED_BY_ALL_RANKS, numbers, 3, &count));
    CHECK(count == 2 && numbers[0] == 5 && numbers[1] == 7);
    CHECK_OK(dualpipe_load_monitor_step_numbers(again, DUALPIPE_REPORTED_BY_ANY, numbers, 3, &count));
    CHECK(count == 3 && numbers[2] == 9);
    CHECK_OK(dualpipe_load_monitor_incomplete_steps(again, numbers, 3, &count));
    CHECK(count == 1 && numbers[0] == 9);
    CHECK_OK(dualpipe_load_monitor_reports(again, 9, reports, LAYERS, &count));
    CHECK(count == LAYERS && reports[0] == 1 && reports[1] == 1);
    CHECK_OK(dualpipe_load_monitor_reports(again, 8, reports, LAYERS, &count));
    CHECK(count == LAYERS && reports[0] == 0);
    CHECK_OK(dualpipe_load_monitor_counts(again, DUALPIPE_REPORTED_BY_ANY, tokens, LOADS, &count));
    CHECK(count == LOADS && tokens[0] == 38 && tokens[5] == 22);
    /* Step 1 is older than the window of 8. */
    CHECK_OK(dualpipe_load_monitor_record_logical(again, 1, ones, LOADS, &is_kept));
    CHECK(is_kept == 0);
    states[0][20] ^= 1;
    CHECK(dualpipe_load_monitor_load(states[0], lengths[0], &again) == DUALPIPE_ERROR_INVALID_ARGUMENT);
    CHECK_OK(dualpipe_load_monitor_free(again));
  }
}

/* DeepEP's counters; a restart in between counts nothing twice. */
static void counters_count_by_what_they_grew(void) {
  const int64_t slots[SLOTS] = {0, 1, 2, 0};
  const int32_t first[SLOTS] = {10, 20, 30, 40}, second[SLOTS] = {11, 22, 33, 44}, anew[SLOTS] = {50, 60, 70, 80};
  const float steps[3 * LOADS] = {10, 20, 0, 40, 0, 30, 1, 2, 0, 4, 0, 3, 50, 60, 0, 80, 0, 70};
  dualpipe_load_monitor_t before = create(1), after = NULL;
  dualpipe_load_monitor_info info = DUALPIPE_LOAD_MONITOR_INFO_INIT;
  uint8_t state[512];
  uint32_t is_kept = 9;
  size_t count = 0;
  CHECK_OK(dualpipe_load_monitor_record_cumulative(before, 0, slots, first, SLOTS, &is_kept));
  CHECK_OK(dualpipe_load_monitor_save(before, state, sizeof state, &count));
  CHECK_OK(dualpipe_load_monitor_load(state, count, &after));
  CHECK_OK(dualpipe_load_monitor_describe(after, &info));
  CHECK(info.num_counters == 2 && info.num_steps == 1 && info.num_complete_steps == 1);
  CHECK_OK(dualpipe_load_monitor_record_cumulative(after, 1, slots, second, SLOTS, &is_kept));
  /* All have outgrown what they were: only who set them to 0 knows. */
  CHECK_OK(dualpipe_load_monitor_set_counters(after, NULL, 0));
  CHECK_OK(dualpipe_load_monitor_record_cumulative(after, 2, slots, anew, SLOTS, &is_kept));
  loads_are(after, DUALPIPE_LOADS_STEPS, steps, 3);
  CHECK_OK(dualpipe_load_monitor_free(before));
  CHECK_OK(dualpipe_load_monitor_free(after));
}

static void balancedness_is_what_vllm_logs(void) {
  const uint32_t counts[LOADS] = {4, 6, 2, 0, 1, 3};
  const int64_t slots[LAYERS * SLOTS] = {0, 1, 0, 2, 0, 1, 2, 2};
  const double shares[LAYERS * SLOTS] = {0, 1, 1, 1, 1, 1, 0.5, 0.5}, gpus[4] = {8, 4, 1, 3};
  dualpipe_load_monitor_t monitor = create(1);
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  const uint32_t any = DUALPIPE_REPORTED_BY_ANY;
  double overall = 0, layers[LAYERS];
  uint32_t is_kept = 9;
  size_t count = 0;
  cluster.num_gpus = 2;
  cluster.num_slots = SLOTS;
  CHECK_OK(dualpipe_load_monitor_record_logical(monitor, 0, counts, LOADS, &is_kept));
  CHECK_OK(dualpipe_load_monitor_balancedness(monitor, any, &cluster, slots, NULL, LAYERS * SLOTS, &overall, layers,
                                              LAYERS, &count));
  CHECK(count == LAYERS && overall == 8 / 11.0 && layers[0] == 6 / 8.0 && layers[1] == 2 / 3.0);
  CHECK_OK(dualpipe_load_monitor_balancedness(monitor, any, &cluster, slots, shares, LAYERS * SLOTS, &overall,
                                              layers, LAYERS, &count));
  CHECK(layers[0] == 1 && layers[1] == 2 / 3.0);
  CHECK_OK(dualpipe_expert_balancedness(&cluster, gpus, 4, &overall, layers, LAYERS, &count));
  CHECK(count == LAYERS && overall == 8 / 11.0);
  CHECK_OK(dualpipe_load_monitor_free(monitor));
}

/* A step of slots and two of experts, written as vLLM has it and read again. */
static void histories_are_recorded_written_and_read(void) {
  const float loads[2 * LOADS] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.5f};
  const int64_t slots[LAYERS * SLOTS] = {0, 1, 2, 0, 2, 1, 0, -1};
  const float of_slots[LAYERS * SLOTS] = {1, 2, 3, 4, 5, 6, 7, 0};
  const char csv[] = "15,1\n8,3\n\n0,0.5\n3,0\n";
  dualpipe_load_history_options options = DUALPIPE_LOAD_HISTORY_OPTIONS_INIT;
  dualpipe_load_history_info info = DUALPIPE_LOAD_HISTORY_INFO_INIT;
  dualpipe_load_history_t history = NULL, again = NULL;
  char text[4096], same[4096], model[64];
  float read[3 * LOADS], read_slots[LAYERS * SLOTS];
  int64_t experts[LAYERS * SLOTS];
  uint64_t numbers[3];
  size_t length = 0, count = 0;
  options.num_layers = LAYERS;
  options.num_experts = EXPERTS;
  options.num_ranks = 2;
  options.model = "a model";
  CHECK_OK(dualpipe_load_history_create(&options, &history));
  CHECK_OK(dualpipe_load_history_append_slots(history, 7, slots, of_slots, LAYERS * SLOTS));
  CHECK_OK(dualpipe_load_history_append(history, 20, loads, 2 * LOADS));
  CHECK(dualpipe_load_history_append(history, 22, loads, LOADS - 1) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK_OK(dualpipe_load_history_write(history, DUALPIPE_LOAD_FORMAT_VLLM, text, sizeof text, &length));
  CHECK_OK(dualpipe_load_history_read(text, length, DUALPIPE_LOAD_FORMAT_VLLM, &again));
  CHECK_OK(dualpipe_load_history_write(again, DUALPIPE_LOAD_FORMAT_VLLM, same, sizeof same, &count));
  CHECK(count == length && strcmp(text, same) == 0);

  CHECK_OK(dualpipe_load_history_describe(again, &info));
  CHECK(info.num_layers == LAYERS && info.num_experts == EXPERTS && info.num_ranks == 2 && info.num_steps == 3);
  CHECK(info.num_groups == 0 && info.num_nodes == 0);
  CHECK_OK(dualpipe_load_history_model(again, model, sizeof model, &count));
  CHECK(count == 7 && strcmp(model, "a model") == 0);
  CHECK_OK(dualpipe_load_history_loads(again, read, 3 * LOADS, &count));
  CHECK(count == 3 * LOADS && read[0] == 5 && read[1] == 2 && read[2] == 3 && read[3] == 7 && read[5] == 5);
  CHECK(memcmp(read + LOADS, loads, sizeof loads) == 0);
  CHECK_OK(dualpipe_load_history_step_numbers(again, numbers, 3, &count));
  CHECK(count == 3 && numbers[0] == 7 && numbers[1] == 20 && numbers[2] == 21);
  CHECK_OK(dualpipe_load_history_slot_to_expert(again, 0, experts, LAYERS * SLOTS, &count));
  CHECK(count == LAYERS * SLOTS && memcmp(experts, slots, sizeof slots) == 0);
  CHECK_OK(dualpipe_load_history_slot_loads(again, 0, read_slots, LAYERS * SLOTS, &count));
  CHECK(count == LAYERS * SLOTS && memcmp(read_slots, of_slots, sizeof of_slots) == 0);
  CHECK_OK(dualpipe_load_history_slot_to_expert(history, 1, experts, LAYERS * SLOTS, &count));
  CHECK(count == 0);
  CHECK(dualpipe_load_history_slot_loads(history, 3, NULL, 0, &count) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK_OK(dualpipe_load_history_free(history));
  CHECK_OK(dualpipe_load_history_free(again));

  CHECK_OK(dualpipe_load_history_read(csv, sizeof csv - 1, DUALPIPE_LOAD_FORMAT_CSV, &history));
  CHECK_OK(dualpipe_load_history_write(history, DUALPIPE_LOAD_FORMAT_CSV, text, sizeof text, &length));
  CHECK(length == sizeof csv - 1 && strcmp(text, csv) == 0);
  CHECK_OK(dualpipe_load_history_write(history, DUALPIPE_LOAD_FORMAT_JSON, text, sizeof text, &length));
  CHECK(strstr(text, "{\"logical_expert_load\":[[15,1],[8,3]]}") != NULL);
  CHECK_OK(dualpipe_load_history_free(history));
  history = NULL;
  CHECK(dualpipe_load_history_read("1,-2", 4, DUALPIPE_LOAD_FORMAT_CSV, &history) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "line 1, column 2 is -2") != NULL && history == NULL);
}

/* vllm-ascend's map of two devices, of two experts and one; and SGLang's counts. */
static void what_other_engines_have_is_read(void) {
  const char map[] = "{\"moe_layer_count\":1,\"layer_list\":[{\"layer_id\":0,\"device_count\":2,\"device_list\":["
                     "{\"device_id\":0,\"device_expert\":[0,1]},{\"device_id\":1,\"device_expert\":[2]}]}]}";
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  const int64_t counts[6] = {1, 2, 3, 10, 20, 30}, experts[3] = {0, 1, 0};
  int64_t slots[3];
  uint32_t slots_per_gpu[2];
  float loads[4];
  char text[512];
  size_t count = 0;
  CHECK_OK(dualpipe_expert_map_read_slots(map, sizeof map - 1, slots, 3, &count));
  CHECK(count == 3 && slots[0] == 0 && slots[1] == 1 && slots[2] == 2);
  CHECK_OK(dualpipe_expert_map_read_gpus(map, sizeof map - 1, slots_per_gpu, 2, &count));
  CHECK(count == 2 && slots_per_gpu[0] == 2 && slots_per_gpu[1] == 1);
  cluster.num_gpus = 2;
  cluster.slots_per_gpu = slots_per_gpu;
  CHECK_OK(dualpipe_expert_map_write(&cluster, slots, 3, text, sizeof text, &count));
  CHECK(count == sizeof map - 1 && strcmp(text, map) == 0);
  CHECK_OK(dualpipe_expert_logical_loads(1, 2, experts, 3, counts, 6, loads, 4, &count));
  CHECK(count == 4 && loads[0] == 4 && loads[1] == 2 && loads[2] == 40 && loads[3] == 20);
}

/* Loads 5, 3, 1, 3 in each of 8 steps: from 8 and 4 to 6 and 6, which saves a quarter of the time. */
static void a_move_is_made_if_it_pays(void) {
  const int64_t current[4] = {0, 1, 2, 3}, planned[4] = {0, 2, 1, 3};
  const double even[4] = {1, 1, 1, 1};
  uint32_t counts[32];
  dualpipe_cluster cluster = DUALPIPE_CLUSTER_INIT;
  dualpipe_rebalance_proposal proposal = DUALPIPE_REBALANCE_PROPOSAL_INIT;
  dualpipe_rebalance_decision decision = DUALPIPE_REBALANCE_DECISION_INIT;
  for (int i = 0; i < 32; i++) counts[i] = i % 4 == 0 ? 5 : i % 4 == 2 ? 1 : 3;
  cluster.num_gpus = 2;
  cluster.num_slots = 4;
  proposal.num_layers = 1;
  proposal.num_experts = 4;
  proposal.counts = counts;
  proposal.num_counts = 32;
  proposal.current = current;
  proposal.planned = planned;
  proposal.num_slots = 4;
  proposal.horizon = 100;
  proposal.expert_seconds = 1;
  proposal.price_seconds = 24;
  CHECK_OK(dualpipe_should_rebalance(&cluster, &proposal, &decision));
  CHECK(decision.rebalance == 1 && decision.reason == DUALPIPE_REBALANCE_WORTHWHILE && decision.reserved == 0);
  CHECK(decision.gain_seconds == 25 && decision.gain_error_seconds == 0 && decision.cost_seconds == 24);
  CHECK(decision.current_imbalance == 8 / 6.0 && decision.planned_imbalance == 1 && decision.noise_floor == 1);
  CHECK(decision.moved_replicas == 2);
  proposal.price_seconds = 26;
  CHECK_OK(dualpipe_should_rebalance(&cluster, &proposal, &decision));
  CHECK(decision.rebalance == 0 && decision.reason == DUALPIPE_REBALANCE_BELOW_COST);
  proposal.price_seconds = 0;
  proposal.bytes_per_expert = 1000;
  proposal.bytes_per_second = 500; /* each GPU receives one */
  proposal.current_shares = proposal.planned_shares = even;
  CHECK_OK(dualpipe_should_rebalance(&cluster, &proposal, &decision));
  CHECK(decision.rebalance == 1 && decision.cost_seconds == 2);
  proposal.num_counts = 12;
  CHECK_OK(dualpipe_should_rebalance(&cluster, &proposal, &decision));
  CHECK(decision.reason == DUALPIPE_REBALANCE_TOO_FEW_STEPS && isinf(decision.gain_error_seconds));
  proposal.planned = current;
  CHECK_OK(dualpipe_should_rebalance(&cluster, &proposal, &decision));
  CHECK(decision.reason == DUALPIPE_REBALANCE_SAME_PLACEMENT);
}

int main(void) {
  defaults_stand_for_zero();
  ranks_are_merged_in_any_order();
  counters_count_by_what_they_grew();
  balancedness_is_what_vllm_logs();
  histories_are_recorded_written_and_read();
  what_other_engines_have_is_read();
  a_move_is_made_if_it_pays();
  return 0;
}
