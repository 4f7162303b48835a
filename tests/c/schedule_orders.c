/* Schedules from outside: from orders, from a text; and costs of pairs. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { RANKS = 4, STAGES = 8, OPS = 64 };

static dualpipe_schedule_t published(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = DUALPIPE_KIND_DUALPIPE_V;
  options.num_ranks = RANKS;
  options.num_microbatches = 8;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  return schedule;
}

static uint64_t makespan(dualpipe_schedule_t schedule, const dualpipe_costs *costs) {
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  dualpipe_timeline_t timeline = NULL;
  CHECK_OK(dualpipe_simulate(schedule, costs, &timeline));
  CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
  CHECK_OK(dualpipe_timeline_free(timeline));
  CHECK(summary.makespan_ns >= summary.lower_bound_ns);
  return summary.makespan_ns;
}

static size_t text_of(dualpipe_schedule_t schedule, char *text, size_t capacity) {
  size_t length = 0;
  CHECK_OK(dualpipe_schedule_to_text(schedule, text, capacity, &length));
  return length;
}

/* Is it of kind CUSTOM, of that name, and otherwise like `other`, also in what is made of it? */
static void check_alike(dualpipe_schedule_t schedule, const char *name, dualpipe_schedule_t other) {
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT, of_other = DUALPIPE_SCHEDULE_INFO_INIT;
  dualpipe_stage_costs stage = {1000, 1000, 1000, 2500, 0, 1, 1};
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  dualpipe_program_t program = NULL;
  uint32_t peak[RANKS], peak_of_other[RANKS];
  static char text[1 << 14], text_of_other[1 << 14];
  size_t count = 0;
  CHECK_OK(dualpipe_schedule_describe(schedule, &info));
  CHECK_OK(dualpipe_schedule_describe(other, &of_other));
  CHECK(info.kind == DUALPIPE_KIND_CUSTOM && of_other.kind == DUALPIPE_KIND_DUALPIPE_V);
  CHECK(info.num_ranks == of_other.num_ranks && info.num_stages == of_other.num_stages);
  CHECK(info.num_microbatches == of_other.num_microbatches && info.num_directions == of_other.num_directions);
  CHECK(info.forward_only == of_other.forward_only);
  CHECK_OK(dualpipe_schedule_name(schedule, text, sizeof text, &count));
  CHECK(strcmp(text, name) == 0 && count == strlen(name));
  text_of(schedule, text, sizeof text);
  text_of(other, text_of_other, sizeof text_of_other);
  CHECK(strcmp(text, text_of_other) == 0);
  CHECK_OK(dualpipe_schedule_check(schedule, peak, RANKS, &count));
  CHECK_OK(dualpipe_schedule_check(other, peak_of_other, RANKS, &count));
  CHECK(memcmp(peak, peak_of_other, sizeof peak) == 0);
  CHECK_OK(dualpipe_program_create(schedule, 3, &program));
  CHECK_OK(dualpipe_program_free(program));
  costs.stages = &stage;
  costs.num_stages = 1;
  CHECK(makespan(schedule, &costs) == makespan(other, &costs));
}

static void what_a_schedule_gives_may_go_into_another(void) {
  dualpipe_schedule_t first = published(), second = NULL;
  dualpipe_schedule_orders given = DUALPIPE_SCHEDULE_ORDERS_INIT;
  static dualpipe_op ops[RANKS][OPS];
  dualpipe_order orders[RANKS];
  uint32_t rank_of[STAGES], i;
  for (i = 0; i < STAGES; i++) CHECK_OK(dualpipe_schedule_rank_of(first, 0, i, &rank_of[i]));
  for (i = 0; i < RANKS; i++) {
    CHECK_OK(dualpipe_schedule_order(first, i, ops[i], OPS, &orders[i].num_ops));
    orders[i].ops = ops[i];
  }
  given.num_ranks = RANKS;
  given.num_stages = STAGES;
  given.num_directions = 1;
  given.num_microbatches = 8;
  given.rank_of = rank_of;
  given.orders = orders;
  given.name = "mine";
  CHECK_OK(dualpipe_schedule_create_from_orders(&given, &second));
  memset(ops, 0, sizeof ops); /* it was copied */
  check_alike(second, "mine", first);
  CHECK_OK(dualpipe_schedule_free(first));
  CHECK_OK(dualpipe_schedule_free(second));
}

static void a_text_is_read_back(void) {
  dualpipe_schedule_t first = published(), second = NULL;
  static char text[1 << 14];
  size_t length = text_of(first, text, sizeof text);
  CHECK_OK(dualpipe_schedule_create_from_text(text, length, NULL, &second));
  check_alike(second, "custom", first);
  CHECK_OK(dualpipe_schedule_free(second));
  second = NULL;
  length -= strlen(strrchr(text, ' ')); /* without its last op */
  CHECK_OK(dualpipe_schedule_create_from_text(text, length, "cut", &second));
  CHECK(dualpipe_schedule_check(second, NULL, 0, &length) == DUALPIPE_ERROR_INVALID_SCHEDULE);
  CHECK(strstr(dualpipe_last_error(), "cut: rank 3, position ") != NULL);
  CHECK_OK(dualpipe_schedule_free(second));
  CHECK_OK(dualpipe_schedule_free(first));
  CHECK(dualpipe_schedule_create_from_text("0| 0F0 0B", 9, NULL, &second) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "line 1, column 8 is \"0B\", must be STAGE KIND MICROBATCH") != NULL);
}

static void a_pair_may_have_a_time_of_its_own(void) {
  const char *text = "0| 0F0 1F0 1B0 0F1&0B0 1F1 1B1 0B1\n";
  const dualpipe_stage_costs stage = {1000, 1000, 1000, 3000, 0, 0, 0};
  const dualpipe_pair_costs pairs[] = {{1, 0, 2000}, {0, 0, 2100}, {0, 1, 2000}};
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  dualpipe_schedule_t schedule = NULL;
  CHECK_OK(dualpipe_schedule_create_from_text(text, strlen(text), "pair", &schedule));
  costs.stages = &stage;
  costs.num_stages = 1;
  CHECK(makespan(schedule, &costs) == 12000);
  costs.pairs = pairs;
  costs.num_pairs = 3;
  CHECK(makespan(schedule, &costs) == 11100);
  costs.size = 40; /* as the first version had it: without pairs */
  CHECK(makespan(schedule, &costs) == 12000);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

int main(void) {
  what_a_schedule_gives_may_go_into_another();
  a_text_is_read_back();
  a_pair_may_have_a_time_of_its_own();
  return 0;
}
