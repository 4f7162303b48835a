/* A plugin: compiled twice, linked once with libdualpipe.so and once with libdualpipe.a. */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "../work.h"
#include "plugin.h"

void plugin_run(void) {
  dualpipe_schedule_t schedule = create_schedule();
  run_steps(schedule);
  place_experts();
  CHECK_OK(dualpipe_schedule_free(schedule));
  CHECK(dualpipe_schedule_free(schedule) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(strstr(dualpipe_last_error(), "freed") != NULL);
}

const char *plugin_library(void) {
  Dl_info info;
  uint32_t (*function)(void) = dualpipe_version;
  void *address = NULL;
  memcpy(&address, &function, sizeof address);
  CHECK(dladdr(address, &info) != 0);
  return info.dli_fname;
}
