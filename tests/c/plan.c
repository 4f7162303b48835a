/* Plans, with and without a spread: what is found, what is said of it, and how progress stops it. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { RANKS = 4 };

static const dualpipe_stage_costs UNIT = {1000, 1000, 1000, 3000, 0, 100, 1000};
/* Where pairs gain so much, the search goes on as long as it may. */
static const dualpipe_stage_costs UNEVEN = {1000, 1300, 700, 2100, 0, 100, 1000};
static const dualpipe_stage_costs *stage = &UNIT;

static dualpipe_costs costs_of_all(void) {
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  costs.stages = stage;
  costs.num_stages = 1;
  return costs;
}

static dualpipe_plan_options options_of(uint32_t placement, uint32_t num_ranks, uint32_t num_microbatches) {
  dualpipe_plan_options options = DUALPIPE_PLAN_OPTIONS_INIT;
  options.placement = placement;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  options.iterations = 500;
  return options;
}

static dualpipe_plan_t created(const dualpipe_plan_options *options) {
  const dualpipe_costs costs = costs_of_all();
  dualpipe_plan_t plan = NULL;
  CHECK_OK(dualpipe_plan_create(options, &costs, &plan));
  return plan;
}

static dualpipe_plan_info info_of(dualpipe_plan_t plan) {
  dualpipe_plan_info info = DUALPIPE_PLAN_INFO_INIT;
  CHECK_OK(dualpipe_plan_describe(plan, &info));
  return info;
}

static size_t text_of(dualpipe_plan_t plan, char *text, size_t capacity) {
  dualpipe_schedule_t schedule = NULL;
  size_t length = 0;
  CHECK_OK(dualpipe_plan_schedule(plan, &schedule));
  CHECK_OK(dualpipe_schedule_to_text(schedule, text, capacity, &length));
  CHECK_OK(dualpipe_schedule_free(schedule));
  return length;
}

/* Is what it says of its schedule what the library says of it? The schedule outlives its plan. */
static void check_plan(dualpipe_plan_t plan, uint64_t cap) {
  const dualpipe_plan_info info = info_of(plan);
  const dualpipe_costs costs = costs_of_all();
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  dualpipe_schedule_t schedule = NULL;
  dualpipe_timeline_t timeline = NULL;
  dualpipe_timeline_rank ranks[RANKS];
  dualpipe_plan_peak peaks[RANKS];
  uint32_t live[RANKS], i;
  size_t count = 0;
  CHECK_OK(dualpipe_plan_peaks(plan, NULL, 0, &count));
  CHECK(count == info.num_ranks && count <= RANKS);
  CHECK_OK(dualpipe_plan_peaks(plan, peaks, RANKS, &count));
  CHECK_OK(dualpipe_plan_schedule(plan, &schedule));
  CHECK_OK(dualpipe_plan_free(plan));
  CHECK_OK(dualpipe_schedule_check(schedule, live, RANKS, &count));
  CHECK_OK(dualpipe_simulate(schedule, &costs, &timeline));
  CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
  CHECK_OK(dualpipe_timeline_ranks(timeline, ranks, RANKS, &count));
  for (i = 0; i < info.num_ranks; i++) {
    CHECK(peaks[i].live == live[i] && peaks[i].live <= cap);
    CHECK(peaks[i].memory_bytes == ranks[i].peak_memory_bytes);
  }
  CHECK(summary.makespan_ns == info.makespan_ns);
  CHECK(info.lower_bound_ns <= info.makespan_ns && info.makespan_ns <= info.start_makespan_ns);
  CHECK_OK(dualpipe_timeline_free(timeline));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void a_plan_is_what_it_says(void) {
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_BIDIRECTIONAL, 4, 10);
  const uint64_t cap = 5;
  dualpipe_plan_t plan;
  char name[32];
  size_t length = 0;
  options.cap_activations = &cap;
  options.num_cap_activations = 1;
  plan = created(&options);
  CHECK(info_of(plan).objective == 0 && info_of(plan).start_makespan_ns == 32000);
  CHECK_OK(dualpipe_plan_started_from(plan, name, sizeof name, &length));
  CHECK(strcmp(name, "dualpipe") == 0 && length == 8);
  check_plan(plan, cap);
}

static void every_placement_has_plans(void) {
  const uint32_t ranks[] = {0, 1, 1, 0, 0, 1}; /* of no published placement */
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_LINEAR, 2, 3);
  check_plan(created(&options), 3);
  options.placement = DUALPIPE_PLACEMENT_V;
  check_plan(created(&options), 6);
  options.placement = DUALPIPE_PLACEMENT_INTERLEAVED;
  options.stages_per_rank = 3;
  check_plan(created(&options), 9);
  options = options_of(DUALPIPE_PLACEMENT_CUSTOM, 2, 3);
  options.num_stages = 3;
  options.num_directions = 2; /* the second row is the second direction's */
  options.rank_of = ranks;
  check_plan(created(&options), 9);
}

/* Where nothing is left to find, it is the published one, and so is its kind. */
static void an_optimal_start_stays_what_it_is(void) {
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_LINEAR, 1, 3);
  dualpipe_schedule_info schedule_info = DUALPIPE_SCHEDULE_INFO_INIT;
  dualpipe_schedule_t schedule = NULL;
  dualpipe_plan_t plan = created(&options);
  const dualpipe_plan_info info = info_of(plan);
  CHECK(info.stop == DUALPIPE_STOP_OPTIMAL && info.gap == 0 && info.makespan_ns == 9000);
  CHECK_OK(dualpipe_plan_schedule(plan, &schedule));
  CHECK_OK(dualpipe_schedule_describe(schedule, &schedule_info));
  CHECK(schedule_info.kind != DUALPIPE_KIND_CUSTOM && schedule_info.num_microbatches == 3);
  CHECK_OK(dualpipe_schedule_free(schedule));
  CHECK_OK(dualpipe_plan_free(plan));
}

static void the_same_options_give_the_same_plan_on_any_number_of_threads(void) {
  static char texts[2][1 << 14];
  uint32_t i;
  for (i = 0; i < 2; i++) {
    dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_BIDIRECTIONAL, 4, 7);
    dualpipe_plan_t plan;
    options.num_threads = 1 + 2 * i;
    options.seed = 5;
    plan = created(&options);
    text_of(plan, texts[i], sizeof texts[i]);
    CHECK_OK(dualpipe_plan_free(plan));
  }
  CHECK(strcmp(texts[0], texts[1]) == 0);
}

static void what_needs_more_memory_than_there_is_is_refused(void) {
  const dualpipe_costs costs = costs_of_all();
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_V, 2, 4);
  uint64_t bytes[2] = {2 * 1000 + 3 * 100, 2 * 1000 + 4 * 100};
  dualpipe_plan_t plan = NULL;
  options.cap_bytes = bytes;
  options.num_cap_bytes = 2;
  plan = created(&options);
  check_plan(plan, 4);
  plan = NULL;
  bytes[1] = 2 * 1000;
  CHECK(dualpipe_plan_create(&options, &costs, &plan) == DUALPIPE_ERROR_INVALID_ARGUMENT && plan == NULL);
  CHECK(strstr(dualpipe_last_error(), "the memory cap of rank 1 is 2000, must be at least 2200") != NULL);
}

typedef struct told {
  uint64_t calls, total, last;
  uint64_t stop_at;
} told;

static int32_t tell(void *user_data, uint64_t done, uint64_t total) {
  told *told = user_data;
  CHECK(done >= told->last && done <= total);
  told->calls++;
  told->last = done;
  told->total = total;
  return told->calls == told->stop_at;
}

static void progress_is_told_and_stops_with_the_best_so_far(void) {
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_BIDIRECTIONAL, 4, 7);
  dualpipe_costs costs;
  dualpipe_spread spread = DUALPIPE_SPREAD_INIT;
  told of_iterations = {0, 0, 0, 0}, of_time = {0, 0, 0, 0}, stopping = {0, 0, 0, 3}, robust = {0, 0, 0, 1};
  dualpipe_plan_t plan = NULL;
  stage = &UNEVEN;
  costs = costs_of_all();
  CHECK_OK(dualpipe_set_progress(tell, &of_iterations));
  plan = created(&options);
  CHECK(of_iterations.calls > 0 && of_iterations.total == 500 && of_iterations.last <= 500);
  CHECK(info_of(plan).stop == DUALPIPE_STOP_ITERATIONS && info_of(plan).iterations == 500);
  check_plan(plan, 8);
  options.iterations = 0;
  options.time_limit_ns = 20000000;
  CHECK_OK(dualpipe_set_progress(tell, &of_time));
  plan = created(&options);
  CHECK(of_time.calls > 0 && of_time.total == 20000000);
  CHECK(info_of(plan).stop == DUALPIPE_STOP_TIME);
  check_plan(plan, 8);
  options.iterations = UINT64_MAX;
  options.time_limit_ns = 0;
  CHECK_OK(dualpipe_set_progress(tell, &stopping));
  plan = created(&options);
  CHECK(stopping.calls == 3 && stopping.total == UINT64_MAX);
  CHECK(info_of(plan).stop == DUALPIPE_STOP_CANCELLED);
  check_plan(plan, 8);
  spread.samples = 4;
  CHECK_OK(dualpipe_set_progress(tell, &robust));
  CHECK_OK(dualpipe_plan_create_robust(&options, &costs, &spread, DUALPIPE_OBJECTIVE_MEAN, &plan));
  CHECK_OK(dualpipe_set_progress(NULL, NULL));
  CHECK(robust.calls == 1 && info_of(plan).stop == DUALPIPE_STOP_CANCELLED);
  check_plan(plan, 8);
  stage = &UNIT;
}

static void a_robust_plan_is_no_worse_on_its_samples(void) {
  dualpipe_plan_options options = options_of(DUALPIPE_PLACEMENT_BIDIRECTIONAL, 4, 8);
  const dualpipe_costs costs = costs_of_all();
  dualpipe_spread spread = DUALPIPE_SPREAD_INIT;
  dualpipe_sampled sampled[3];
  dualpipe_plan_t plan = NULL;
  dualpipe_plan_info info;
  uint32_t which;
  spread.samples = 9;
  spread.op_jitter = 0.05;
  spread.expert_imbalance = 0.2;
  spread.seed = 3;
  CHECK_OK(dualpipe_plan_create_robust(&options, &costs, &spread, DUALPIPE_OBJECTIVE_P95, &plan));
  info = info_of(plan);
  CHECK(info.objective == DUALPIPE_OBJECTIVE_P95);
  for (which = 0; which < 3; which++) {
    const dualpipe_sampled empty = DUALPIPE_SAMPLED_INIT;
    sampled[which] = empty;
    CHECK_OK(dualpipe_plan_sampled(plan, which + 1, &sampled[which]));
    CHECK(sampled[which].min_ns <= sampled[which].mean_ns && sampled[which].mean_ns <= sampled[which].max_ns);
    CHECK(sampled[which].p95_ns == sampled[which].max_ns); /* of 9 */
    CHECK(sampled[which].held_out_min_ns <= sampled[which].held_out_mean_ns);
    CHECK(sampled[which].held_out_mean_ns <= sampled[which].held_out_max_ns);
    CHECK(sampled[which].held_out_p95_ns == sampled[which].held_out_max_ns);
    CHECK(sampled[which].mean_ns != sampled[which].held_out_mean_ns);
    CHECK(sampled[DUALPIPE_SAMPLED_PLAN - 1].p95_ns <= sampled[which].p95_ns);
  }
  CHECK(info.makespan_ns == sampled[DUALPIPE_SAMPLED_PLAN - 1].nominal_ns);
  CHECK(info.start_makespan_ns == sampled[DUALPIPE_SAMPLED_PUBLISHED - 1].nominal_ns);
  CHECK(info.lower_bound_ns <= sampled[0].p95_ns);
  CHECK(info.gap >= 0 && info.gap < 1);
  CHECK_OK(dualpipe_plan_free(plan));
}

int main(void) {
  a_plan_is_what_it_says();
  every_placement_has_plans();
  an_optimal_start_stays_what_it_is();
  the_same_options_give_the_same_plan_on_any_number_of_threads();
  what_needs_more_memory_than_there_is_is_refused();
  progress_is_told_and_stops_with_the_best_so_far();
  a_robust_plan_is_no_worse_on_its_samples();
  return 0;
}
