/* The command line. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

/* A task of a rank, counted from 0 over all steps; rank -1: none. */
typedef struct planned {
  int rank, task;
} planned;

typedef struct options {
  const char *schedule, *data;
  int num_ranks; /* 0: as many as there are processes */
  int num_microbatches, num_steps, num_gpus, timeout_s;
  uint64_t seed;
  int overlaps, checks, asks_for_help;
  planned fails, dies;
  model_shape shape; /* num_stages is the schedule's to say */
} options;

extern const char *const options_usage;

/* 0, or -1 and what is wrong in `error`. Strings stay where they are in argv. */
int options_parse(options *options, int argc, char **argv, int num_processes, char *error, size_t capacity);

#endif
