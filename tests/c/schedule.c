/* Schedules: create, describe, read, check, print; and what is refused. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

static dualpipe_schedule_t create(uint32_t kind, uint32_t num_ranks, uint32_t num_microbatches) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = kind;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK(schedule != NULL);
  return schedule;
}

static void the_version_is_the_headers(void) {
  CHECK(dualpipe_version() == DUALPIPE_VERSION);
  CHECK(strlen(dualpipe_version_string()) >= strlen("0.0.0"));
  CHECK(strcmp(dualpipe_status_name(DUALPIPE_ERROR_BUSY), "DUALPIPE_ERROR_BUSY") == 0);
  CHECK(strcmp(dualpipe_status_name(12345), "unknown status") == 0);
  CHECK(strcmp(dualpipe_last_error(), "") == 0);
}

static void a_schedule_is_described(void) {
  dualpipe_schedule_t schedule = create(DUALPIPE_KIND_DUALPIPE, 4, 8);
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  uint32_t rank = 99;
  CHECK_OK(dualpipe_schedule_describe(schedule, &info));
  CHECK(info.size == sizeof info);
  CHECK(info.kind == DUALPIPE_KIND_DUALPIPE);
  CHECK(info.num_ranks == 4 && info.num_stages == 4 && info.num_directions == 2);
  CHECK(info.num_microbatches == 8 && info.forward_only == 0);
  CHECK_OK(dualpipe_schedule_rank_of(schedule, 0, 1, &rank));
  CHECK(rank == 1);
  CHECK_OK(dualpipe_schedule_rank_of(schedule, 1, 1, &rank));
  CHECK(rank == 2);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void every_rank_has_each_of_its_passes_once(void) {
  dualpipe_schedule_t schedule = create(DUALPIPE_KIND_DUALPIPE, 4, 8);
  uint32_t rank, peak_live[4];
  size_t count = 0, i;
  CHECK_OK(dualpipe_schedule_check(schedule, peak_live, 4, &count));
  CHECK(count == 4);
  for (rank = 0; rank < 4; rank++) {
    dualpipe_op ops[64];
    int forwards = 0, backwards = 0, weights = 0;
    CHECK(peak_live[rank] == 5);
    CHECK_OK(dualpipe_schedule_order(schedule, rank, NULL, 0, &count));
    CHECK(count > 0 && count <= 64);
    CHECK_OK(dualpipe_schedule_order(schedule, rank, ops, 64, &count));
    for (i = 0; i < count; i++) {
      uint32_t kind = ops[i].kind;
      forwards += kind == DUALPIPE_OP_F || kind == DUALPIPE_OP_FB;
      backwards += kind == DUALPIPE_OP_B || kind == DUALPIPE_OP_I || kind == DUALPIPE_OP_FB;
      weights += kind == DUALPIPE_OP_B || kind == DUALPIPE_OP_W || kind == DUALPIPE_OP_FB;
      if (kind == DUALPIPE_OP_F) CHECK(ops[i].backward.stage == DUALPIPE_NONE);
      if (kind == DUALPIPE_OP_F || kind == DUALPIPE_OP_FB) {
        uint32_t stage = ops[i].forward.direction == 0 ? rank : 3 - rank;
        CHECK(ops[i].forward.stage == stage);
        CHECK(ops[i].forward.copy == ops[i].forward.direction);
        CHECK(ops[i].forward.microbatch < 4);
      }
    }
    CHECK(forwards == 8 && backwards == 8 && weights == 8);
  }
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void a_schedule_is_printed(void) {
  dualpipe_schedule_t schedule = create(DUALPIPE_KIND_1F1B, 2, 2);
  const char *want = "0| 0F0 0F1 0B0 0B1\n1| 1F0 1B0 1F1 1B1\n";
  char text[64];
  size_t length = 0;
  CHECK_OK(dualpipe_schedule_to_text(schedule, NULL, 0, &length));
  CHECK(length == strlen(want));
  CHECK(dualpipe_schedule_to_text(schedule, text, length, &length) == DUALPIPE_ERROR_BUFFER_TOO_SMALL);
  CHECK_OK(dualpipe_schedule_to_text(schedule, text, length + 1, &length));
  CHECK(strcmp(text, want) == 0);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void a_rank_may_have_many_stages(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
  dualpipe_schedule_t schedule = NULL;
  uint32_t rank = 0, peak_live[4];
  size_t count = 0;
  options.kind = DUALPIPE_KIND_INTERLEAVED_1F1B;
  options.num_ranks = 4;
  options.num_microbatches = 8;
  CHECK(dualpipe_schedule_create(&options, &schedule) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  options.stages_per_rank = 3;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK_OK(dualpipe_schedule_describe(schedule, &info));
  CHECK(info.kind == DUALPIPE_KIND_INTERLEAVED_1F1B && info.num_stages == 12 && info.num_directions == 1);
  CHECK_OK(dualpipe_schedule_rank_of(schedule, 0, 9, &rank));
  CHECK(rank == 1);
  CHECK_OK(dualpipe_schedule_check(schedule, peak_live, 4, &count));
  CHECK(peak_live[0] == 15 && peak_live[3] == 9);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void what_is_wrong_is_said(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = DUALPIPE_KIND_DUALPIPE;
  options.num_ranks = 3;
  options.num_microbatches = 8;
  CHECK(dualpipe_schedule_create(&options, &schedule) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(schedule == NULL);
  CHECK(strcmp(dualpipe_last_error(),
               "dualpipe_schedule_create: dualpipe: num_ranks is 3, must be even and at least 2") == 0);
  options.num_ranks = 4;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK_OK(dualpipe_schedule_free(schedule));
  CHECK(dualpipe_schedule_free(schedule) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(strcmp(dualpipe_last_error(), "dualpipe_schedule_free: schedule has been freed") == 0);
  CHECK_OK(dualpipe_schedule_free(NULL));
}

int main(void) {
  the_version_is_the_headers();
  a_schedule_is_described();
  every_rank_has_each_of_its_passes_once();
  a_schedule_is_printed();
  a_rank_may_have_many_stages();
  what_is_wrong_is_said();
  return 0;
}
