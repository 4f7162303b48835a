/* Memory against time, and schedules on several placements. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { MS = 1000000 };

static const dualpipe_stage_costs STAGE = {MS, MS, MS, 5 * MS / 2, 1 << 20, 1 << 20, 1 << 22};

static dualpipe_costs costs(void) {
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  costs.stages = &STAGE;
  costs.num_stages = 1;
  return costs;
}

/* 4 ranks in two directions, 8 micro-batches; a search that takes moments, the same on every machine. */
static dualpipe_plan_options options(void) {
  dualpipe_plan_options options = DUALPIPE_PLAN_OPTIONS_INIT;
  options.placement = DUALPIPE_PLACEMENT_BIDIRECTIONAL;
  options.num_ranks = 4;
  options.num_microbatches = 8;
  options.iterations = 300;
  options.num_threads = 1;
  return options;
}

/* A point's schedule keeps to its cap and takes as long as is said. */
static void check_point(dualpipe_front_t front, uint32_t i, const dualpipe_front_point *point) {
  const dualpipe_costs given = costs();
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  dualpipe_schedule_t schedule = NULL;
  dualpipe_timeline_t timeline = NULL;
  uint32_t live[4], most = 0;
  size_t count = 0, rank;
  CHECK_OK(dualpipe_front_schedule(front, i, &schedule));
  CHECK_OK(dualpipe_schedule_check(schedule, live, 4, &count));
  for (rank = 0; rank < count; rank++) most = live[rank] > most ? live[rank] : most;
  CHECK(count == 4 && most == point->peak && point->peak <= point->cap);
  CHECK_OK(dualpipe_simulate(schedule, &given, &timeline));
  CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
  CHECK(summary.makespan_ns == point->makespan_ns && point->lower_bound_ns <= point->makespan_ns);
  CHECK_OK(dualpipe_timeline_free(timeline));
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void more_memory_is_never_slower(void) {
  const dualpipe_plan_options given = options();
  const dualpipe_costs of_stages = costs();
  const uint64_t caps[] = {2, 3, 5};
  dualpipe_front_info info = DUALPIPE_FRONT_INFO_INIT;
  dualpipe_front_point before = DUALPIPE_FRONT_POINT_INIT, point = DUALPIPE_FRONT_POINT_INIT;
  dualpipe_front_published published[8];
  dualpipe_front_t front = NULL;
  static char text[1 << 16];
  size_t length = 0, count = 0;
  uint32_t i;
  CHECK_OK(dualpipe_front_create(&given, &of_stages, DUALPIPE_MEMORY_ACTIVATIONS, caps, 3, &front));
  CHECK_OK(dualpipe_front_describe(front, &info));
  CHECK(info.unit == DUALPIPE_MEMORY_ACTIVATIONS && info.num_points == 3 && info.is_stopped == 0);
  for (i = 0; i < 3; i++, before = point) {
    CHECK_OK(dualpipe_front_describe_point(front, i, &point));
    CHECK(point.cap == caps[i]);
    CHECK(i == 0 || (point.makespan_ns <= before.makespan_ns && point.lower_bound_ns <= before.lower_bound_ns));
    check_point(front, i, &point);
    CHECK_OK(dualpipe_front_started_from(front, i, text, sizeof text, &length));
    CHECK(length > 0 && length == strlen(text));
  }
  CHECK_OK(dualpipe_front_published_schedules(front, published, 8, &count));
  CHECK(count == info.num_published && count == 2);
  for (i = 0; i < count; i++) {
    CHECK_OK(dualpipe_front_published_name(front, i, text, sizeof text, &length));
    CHECK(strcmp(text, i == 0 ? "chimera" : "dualpipe") == 0);
    /* With as much memory, a plan is at least as good. */
    CHECK(published[i].peak > caps[2] || published[i].makespan_ns >= point.makespan_ns);
  }
  CHECK_OK(dualpipe_front_draw(front, DUALPIPE_FRONT_TEXT, text, sizeof text, &length));
  CHECK(strncmp(text, "4 ranks, 8 micro-batches: memory cap on each rank in activations", 63) == 0);
  CHECK_OK(dualpipe_front_draw(front, DUALPIPE_FRONT_SVG, text, sizeof text, &length));
  CHECK(strncmp(text, "<svg ", 5) == 0 && strstr(text, "chimera") != NULL);
  CHECK_OK(dualpipe_front_free(front));
  CHECK(dualpipe_front_describe(front, &info) == DUALPIPE_ERROR_INVALID_HANDLE);
}

static void all_caps_reach_from_the_least_to_where_more_gains_nothing(void) {
  const dualpipe_plan_options given = options();
  const dualpipe_costs of_stages = costs();
  dualpipe_front_info info = DUALPIPE_FRONT_INFO_INIT;
  dualpipe_front_point point = DUALPIPE_FRONT_POINT_INIT;
  dualpipe_front_t front = NULL;
  CHECK_OK(dualpipe_front_create(&given, &of_stages, DUALPIPE_MEMORY_BYTES, NULL, 0, &front));
  CHECK_OK(dualpipe_front_describe(front, &info));
  CHECK(info.unit == DUALPIPE_MEMORY_BYTES && info.num_points > 1 && info.num_points <= 24);
  CHECK_OK(dualpipe_front_describe_point(front, 0, &point));
  CHECK(point.cap == 2 * (UINT64_C(1) << 22) + 2 * (UINT64_C(1) << 20)); /* two stages, a micro-batch on each */
  CHECK_OK(dualpipe_front_free(front));
}

static int32_t stop(void *user_data, uint64_t done, uint64_t total) {
  uint32_t *calls = (uint32_t *)user_data;
  CHECK(done <= total);
  *calls += 1;
  return 1;
}

/* What is stopped succeeds: with what was there until then. */
static void a_stopped_front_and_a_stopped_comparison_have_what_was_found(void) {
  dualpipe_plan_options given = options();
  const dualpipe_costs of_stages = costs();
  const uint64_t caps[] = {3, 5};
  dualpipe_comparison_options compared = DUALPIPE_COMPARISON_OPTIONS_INIT;
  dualpipe_front_info info = DUALPIPE_FRONT_INFO_INIT;
  dualpipe_candidate candidate = DUALPIPE_CANDIDATE_INIT;
  dualpipe_front_t front = NULL;
  dualpipe_comparison_t comparison = NULL;
  uint32_t calls = 0, count = 0, not_made = 0, i;
  char text[256];
  size_t length = 0;
  given.placement = DUALPIPE_PLACEMENT_LINEAR; /* where nothing is proven to be the best at once */
  CHECK_OK(dualpipe_set_progress(stop, &calls));
  CHECK_OK(dualpipe_front_create(&given, &of_stages, DUALPIPE_MEMORY_ACTIVATIONS, caps, 2, &front));
  CHECK_OK(dualpipe_front_describe(front, &info));
  CHECK(calls == 1 && info.is_stopped == 1 && info.num_points == 2);
  compared.num_ranks = 4;
  compared.num_microbatches = 8;
  compared.time_limit_ns = UINT64_C(60000000000);
  CHECK_OK(dualpipe_comparison_create(&compared, &of_stages, &comparison));
  CHECK_OK(dualpipe_set_progress(NULL, NULL));
  CHECK_OK(dualpipe_comparison_count(comparison, &count));
  for (i = 0; i < count; i++) {
    CHECK_OK(dualpipe_comparison_candidate(comparison, i, &candidate));
    CHECK_OK(dualpipe_comparison_reason(comparison, i, text, sizeof text, &length));
    CHECK((length == 0) == (candidate.is_possible == 1));
    not_made += candidate.is_planned && strstr(text, "not made") != NULL;
  }
  CHECK(calls == 2 && not_made == 5); /* of 6 plans the first was begun */
  CHECK_OK(dualpipe_front_free(front));
  CHECK_OK(dualpipe_comparison_free(comparison));
}

static void candidates_are_ranked_and_as_they_say(void) {
  const dualpipe_costs of_stages = costs();
  const uint64_t cap = 4;
  dualpipe_comparison_options given = DUALPIPE_COMPARISON_OPTIONS_INIT;
  dualpipe_comparison_t comparison = NULL;
  dualpipe_candidate before = DUALPIPE_CANDIDATE_INIT, one = DUALPIPE_CANDIDATE_INIT;
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  dualpipe_schedule_t schedule = NULL;
  dualpipe_timeline_t timeline = NULL;
  static char text[1 << 14], name[64];
  size_t length = 0;
  uint32_t count = 0, planned = 0, i;
  given.num_ranks = 4;
  given.num_microbatches = 8;
  given.cap_activations = &cap;
  given.num_cap_activations = 1;
  given.iterations = 50;
  CHECK_OK(dualpipe_comparison_create(&given, &of_stages, &comparison));
  CHECK_OK(dualpipe_comparison_count(comparison, &count));
  CHECK(count == 28);
  for (i = 0; i < count; i++, before = one) {
    CHECK_OK(dualpipe_comparison_candidate(comparison, i, &one));
    CHECK(i == 0 || before.fits > one.fits || before.is_possible > one.is_possible ||
          before.makespan_ns <= one.makespan_ns);
    CHECK_OK(dualpipe_comparison_name(comparison, i, name, sizeof name, &length));
    CHECK((strcmp(name, "planned") == 0) == (one.is_planned == 1));
    planned += one.is_planned;
    if (!one.is_possible) continue;
    CHECK(one.parameter_copies == (one.placement == DUALPIPE_PLACEMENT_BIDIRECTIONAL ? 2u : 1u));
    CHECK(one.parameter_bytes == (UINT64_C(1) << 22) * one.parameter_copies && one.sent_messages > 0);
    CHECK(one.lower_bound_ns <= one.makespan_ns && one.bubble_share >= 0 && one.bubble_share < 1);
    CHECK((one.peak_activations <= 4) == (one.fits == 1) && (one.excess_activations > 0) == (one.fits == 0));
    CHECK(one.stages_per_rank >= 1 && one.stages_per_rank <= 4 && one.excess_bytes == 0);
    CHECK_OK(dualpipe_comparison_schedule(comparison, i, &schedule));
    CHECK_OK(dualpipe_schedule_name(schedule, text, sizeof text, &length));
    CHECK(one.is_planned || strcmp(text, name) == 0);
    CHECK_OK(dualpipe_schedule_free(schedule));
    CHECK_OK(dualpipe_comparison_timeline(comparison, i, &timeline));
    CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
    CHECK(summary.makespan_ns == one.makespan_ns && summary.bubble_share == one.bubble_share);
    CHECK_OK(dualpipe_timeline_free(timeline));
  }
  CHECK(planned == 6);
  CHECK_OK(dualpipe_comparison_text(comparison, text, sizeof text, &length));
  CHECK(strncmp(text, "4 ranks, 8 micro-batches, at most 4 on each rank (activations)\n", 63) == 0);
  CHECK_OK(dualpipe_comparison_free(comparison));
}

int main(void) {
  more_memory_is_never_slower();
  all_caps_reach_from_the_least_to_where_more_gains_nothing();
  a_stopped_front_and_a_stopped_comparison_have_what_was_found();
  candidates_are_ranked_and_as_they_say();
  return 0;
}
