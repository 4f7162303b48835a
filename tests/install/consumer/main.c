/* A user's program, main shared|static: is the library the header's, and linked as it was asked for? */
#include <dualpipe.h>
#include <string.h>

#include "../../c/check.h"

/* Whether this process has a libdualpipe.so mapped. */
static int has_shared_library(void) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[4096];
  int found = 0;
  CHECK(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL) found |= strstr(line, "libdualpipe.so") != NULL;
  fclose(maps);
  return found;
}

int main(int argc, char **argv) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  uint32_t peak_live[8];
  size_t count = 0;
  CHECK(argc == 2 && (strcmp(argv[1], "shared") == 0 || strcmp(argv[1], "static") == 0));
  CHECK(has_shared_library() == (argv[1][1] == 'h'));
  CHECK(dualpipe_version() == DUALPIPE_VERSION);
  options.kind = DUALPIPE_KIND_DUALPIPE;
  options.num_ranks = 8;
  options.num_microbatches = 20;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK_OK(dualpipe_schedule_check(schedule, peak_live, 8, &count));
  CHECK(count == 8 && peak_live[0] == 9);
  CHECK_OK(dualpipe_schedule_free(schedule));
  printf("libdualpipe %s, %s\n", dualpipe_version_string(), argv[1]);
  return 0;
}
