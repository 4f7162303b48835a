/* Timelines: simulate, sum up, read spans and messages, draw. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

/* 1F1B on 2 ranks: F 1, B 2, no time between ranks. Rank 0: F0 F1 . . B0 . B1; rank 1: . F0 B0 F1 B1. */
static dualpipe_timeline_t simulate(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  const dualpipe_stage_costs stage = {1, 1, 1, 3, 0, 10, 100};
  dualpipe_schedule_t schedule = NULL;
  dualpipe_timeline_t timeline = NULL;
  options.kind = DUALPIPE_KIND_1F1B;
  options.num_ranks = 2;
  options.num_microbatches = 2;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  costs.stages = &stage;
  costs.num_stages = 1;
  CHECK_OK(dualpipe_simulate(schedule, &costs, &timeline));
  CHECK_OK(dualpipe_schedule_free(schedule)); /* the timeline does not need it */
  return timeline;
}

static void a_timeline_is_summed_up(void) {
  dualpipe_timeline_t timeline = simulate();
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  dualpipe_timeline_rank ranks[2];
  size_t count = 0;
  CHECK_OK(dualpipe_timeline_summarize(timeline, &summary));
  CHECK(summary.source == DUALPIPE_TIMELINE_SIMULATED);
  CHECK(summary.num_ranks == 2 && summary.num_spans == 8 && summary.num_messages == 4);
  CHECK(summary.makespan_ns == 9);
  CHECK(summary.lower_bound_ns >= 6 && summary.lower_bound_ns <= 9);
  CHECK(summary.bubble_share > 0.333 && summary.bubble_share < 0.334);
  CHECK_OK(dualpipe_timeline_ranks(timeline, ranks, 2, &count));
  CHECK(count == 2);
  CHECK(ranks[0].busy_ns == 6 && ranks[0].idle_ns == 3 && ranks[0].num_spans == 4);
  CHECK(ranks[0].peak_memory_bytes == 120 && ranks[1].peak_memory_bytes == 110);
  CHECK_OK(dualpipe_timeline_free(timeline));
}

static void spans_and_messages_are_read(void) {
  dualpipe_timeline_t timeline = simulate();
  dualpipe_span spans[8];
  dualpipe_message_span messages[4];
  size_t count = 0, i, gradients = 0;
  CHECK_OK(dualpipe_timeline_spans(timeline, spans, 8, &count));
  CHECK(count == 8);
  CHECK(spans[0].rank == 0 && spans[0].op.kind == DUALPIPE_OP_F && spans[0].op.forward.microbatch == 0);
  CHECK(spans[3].rank == 0 && spans[3].op.kind == DUALPIPE_OP_B && spans[3].op.backward.microbatch == 1);
  CHECK(spans[3].start_ns == 7 && spans[3].end_ns == 9);
  CHECK(spans[4].rank == 1 && spans[4].start_ns == 1);
  CHECK_OK(dualpipe_timeline_messages(timeline, messages, 4, &count));
  CHECK(count == 4);
  for (i = 0; i < count; i++) {
    gradients += messages[i].message.kind == DUALPIPE_MESSAGE_GRADIENT;
    CHECK(messages[i].from + messages[i].to == 1);
    CHECK(messages[i].message.to_stage == messages[i].to);
    CHECK(messages[i].start_ns == messages[i].end_ns);
  }
  CHECK(gradients == 2);
  CHECK_OK(dualpipe_timeline_free(timeline));
}

static void a_timeline_is_drawn_in_every_format(void) {
  dualpipe_timeline_t timeline = simulate();
  uint32_t format;
  for (format = DUALPIPE_DRAW_TEXT; format <= DUALPIPE_DRAW_TRACE; format++) {
    size_t length = 0;
    char *picture;
    CHECK_OK(dualpipe_timeline_draw(timeline, format, NULL, 0, &length));
    CHECK(length > 0);
    picture = (char *)malloc(length + 1);
    CHECK(picture != NULL);
    CHECK_OK(dualpipe_timeline_draw(timeline, format, picture, length + 1, &length));
    CHECK(strlen(picture) == length);
    free(picture);
  }
  CHECK_OK(dualpipe_timeline_free(timeline));
}

static void a_rank_in_two_timelines_is_refused(void) {
  dualpipe_timeline_t timeline = simulate(), merged = NULL;
  dualpipe_timeline_t twice[2];
  twice[0] = twice[1] = timeline;
  CHECK(dualpipe_timeline_merge(twice, 2, &merged) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(merged == NULL);
  CHECK_OK(dualpipe_timeline_merge(twice, 1, &merged));
  CHECK_OK(dualpipe_timeline_free(merged));
  CHECK_OK(dualpipe_timeline_free(timeline));
}

int main(void) {
  a_timeline_is_summed_up();
  spans_and_messages_are_read();
  a_timeline_is_drawn_in_every_format();
  a_rank_in_two_timelines_is_refused();
  return 0;
}
