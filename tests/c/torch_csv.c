/* Schedules as PyTorch's CSV, and back. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { ONLY = DUALPIPE_TORCH_CSV_COMPUTE_ONLY, COMMS = DUALPIPE_TORCH_CSV_COMPUTE_COMMS };

static dualpipe_schedule_t published(uint32_t kind, uint32_t num_ranks, uint32_t num_microbatches) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  options.kind = kind;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  return schedule;
}

static void a_version_has_its_cells(void) {
  const dualpipe_schedule_t schedule = published(DUALPIPE_KIND_1F1B, 2, 2);
  char text[512];
  size_t length = 0;
  CHECK_OK(dualpipe_schedule_to_torch_csv(schedule, 2, 6, ONLY, text, sizeof text, &length));
  CHECK(strcmp(text, "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n") == 0 && length == strlen(text));
  CHECK_OK(dualpipe_schedule_to_torch_csv(schedule, 2, 14, COMMS, text, sizeof text, &length));
  CHECK(strncmp(text, "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,", 48) == 0);
  CHECK(strstr(text, "REDUCE_GRAD") != NULL && strstr(text, "WAIT") == NULL);
  CHECK_OK(dualpipe_schedule_to_torch_csv(schedule, 2, 15, COMMS, text, sizeof text, &length));
  CHECK(strstr(text, "0WAIT_SEND_F1") != NULL && strstr(text, "1WAIT_REDUCE_GRAD") != NULL);
  CHECK(dualpipe_schedule_to_torch_csv(schedule, 2, 15, COMMS, text, length, &length) ==
        DUALPIPE_ERROR_BUFFER_TOO_SMALL);
  CHECK_OK(dualpipe_schedule_free(schedule));
}

/* What is written is read back, in every version and format; without pairs where torch has none. */
static void what_is_written_is_read_back(void) {
  static char csv[1 << 15], text[1 << 14], text_of_read[1 << 14];
  const dualpipe_schedule_t schedule = published(DUALPIPE_KIND_DUALPIPE_V, 4, 9);
  uint32_t minor, format;
  size_t length = 0;
  CHECK_OK(dualpipe_schedule_to_text(schedule, text, sizeof text, &length));
  for (minor = 6; minor <= 15; minor++) {
    for (format = ONLY; format <= COMMS; format++) {
      const int has_pairs = minor >= (format == ONLY ? 9u : 10u);
      dualpipe_schedule_info info = DUALPIPE_SCHEDULE_INFO_INIT;
      dualpipe_schedule_t read = NULL;
      uint32_t peak[4];
      size_t count = 0;
      CHECK_OK(dualpipe_schedule_to_torch_csv(schedule, 2, minor, format, csv, sizeof csv, &length));
      csv[length] = '?'; /* it need not end with a NUL */
      CHECK_OK(dualpipe_schedule_create_from_torch_csv(csv, length, 2, minor, format, "read", &read));
      CHECK_OK(dualpipe_schedule_describe(read, &info));
      CHECK(info.kind == DUALPIPE_KIND_CUSTOM && info.num_ranks == 4 && info.num_stages == 8);
      CHECK(info.num_microbatches == 9 && info.num_directions == 1 && info.forward_only == 0);
      CHECK_OK(dualpipe_schedule_check(read, peak, 4, &count));
      CHECK_OK(dualpipe_schedule_to_text(read, text_of_read, sizeof text_of_read, &length));
      CHECK((strcmp(text, text_of_read) == 0) == has_pairs);
      CHECK((strchr(text_of_read, '&') != NULL) == has_pairs);
      CHECK_OK(dualpipe_schedule_name(read, text_of_read, sizeof text_of_read, &length));
      CHECK(strcmp(text_of_read, "read") == 0);
      CHECK_OK(dualpipe_schedule_free(read));
    }
  }
  CHECK_OK(dualpipe_schedule_free(schedule));
}

static void what_is_not_for_torch_is_refused(void) {
  const dualpipe_schedule_t schedule = published(DUALPIPE_KIND_DUALPIPE, 4, 8);
  dualpipe_schedule_t read = NULL;
  const char *waits = "0UNSHARD,0F0,0B0,0WAIT_SEND_F0";
  size_t length = 0;
  CHECK(dualpipe_schedule_to_torch_csv(schedule, 2, 15, ONLY, NULL, 0, &length) == DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "of two directions") != NULL);
  CHECK(strstr(dualpipe_last_error(), "dualpipe_v") != NULL);
  CHECK_OK(dualpipe_schedule_free(schedule));
  CHECK(dualpipe_schedule_create_from_torch_csv(waits, strlen(waits), 2, 10, COMMS, NULL, &read) ==
        DUALPIPE_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(dualpipe_last_error(), "row 1, column 4 (rank 0) is \"0WAIT_SEND_F0\"") != NULL && read == NULL);
}

int main(void) {
  a_version_has_its_cells();
  what_is_written_is_read_back();
  what_is_not_for_torch_is_refused();
  return 0;
}
