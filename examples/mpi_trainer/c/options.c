#include "options.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TRAINER_DATA
#define TRAINER_DATA NULL
#endif

const char *const options_usage =
    "mpirun -n RANKS trainer_c [OPTIONS]\n"
    "  --schedule NAME    dualpipe (default), dualpipe_v or 1f1b\n"
    "  --ranks N          must be the number of processes, if given\n"
    "  --microbatches N   of a step, both directions together (3 for each rank)\n"
    "  --steps N          (40)\n"
    "  --seed N           of parameters and data (1)\n"
    "  --data FILE        the bytes to learn\n"
    "  --no-overlap       an F&B pair is a forward, then a backward; else on two threads\n"
    "  --check            every step against a sequential run\n"
    "  --experts N        of each stage (8)\n"
    "  --top N            experts for each row (1)\n"
    "  --gpus N           that the experts are placed on (4)\n"
    "  --timeout N        seconds that a rank waits for another at most (10)\n"
    "  --fail RANK:TASK   this task of this rank fails; they are counted from 0 over all steps\n"
    "  --die RANK:TASK    here the rank is killed, without a word\n";

/* What an option's value is, and with it the type that it is written to. */
typedef enum value_kind { FLAG, NUMBER, SEED, TEXT, PLANNED } value_kind;

typedef struct option {
  const char *name;
  value_kind kind;
  void *value;
  uint64_t least, most; /* of a NUMBER and a SEED; of a FLAG, what it becomes */
} option;

static int parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value) {
  char *end = NULL;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return errno == 0 && *text >= '0' && *text <= '9' && *end == 0 && *value >= least && *value <= most;
}

static int parse_planned(const char *text, planned *value) {
  char left = 0;
  return sscanf(text, "%d:%d%c", &value->rank, &value->task, &left) == 2 && value->rank >= 0 && value->task >= 0;
}

/* One option's value: 0, or -1 and what is wrong. */
static int parse_value(const option *option, const char *text, char *error, size_t capacity) {
  uint64_t value = 0;
  if (text == NULL) {
    snprintf(error, capacity, "%s: needs a value", option->name);
    return -1;
  }
  switch (option->kind) {
  case NUMBER:
  case SEED:
    if (!parse_number(text, option->least, option->most, &value)) {
      snprintf(error, capacity, "%s %s: must be a number from %llu to %llu", option->name, text,
               (unsigned long long)option->least, (unsigned long long)option->most);
      return -1;
    }
    if (option->kind == SEED) *(uint64_t *)option->value = value;
    if (option->kind == NUMBER) *(int *)option->value = (int)value;
    return 0;
  case PLANNED:
    if (parse_planned(text, option->value)) return 0;
    snprintf(error, capacity, "%s %s: must be RANK:TASK, two numbers from 0", option->name, text);
    return -1;
  default:
    *(const char **)option->value = text;
    return 0;
  }
}

/* What no single option can say. */
static int check(const options *options, int num_processes, char *error, size_t capacity) {
  const model_shape *shape = &options->shape;
  if (options->num_ranks != num_processes) {
    snprintf(error, capacity, "--ranks %d: there are %d processes, one is needed for each rank: mpirun -n %d",
             options->num_ranks, num_processes, options->num_ranks);
  } else if (shape->num_chosen > shape->num_experts) {
    snprintf(error, capacity, "--top %d: at most --experts, %d", shape->num_chosen, shape->num_experts);
  } else if (shape->num_experts % options->num_gpus != 0) {
    snprintf(error, capacity, "--gpus %d: must divide --experts, %d", options->num_gpus, shape->num_experts);
  } else if (options->data == NULL) {
    snprintf(error, capacity, "--data: needed, a file with the bytes to learn");
  } else {
    return 0;
  }
  return -1;
}

int options_parse(options *options, int argc, char **argv, int num_processes, char *error, size_t capacity) {
  const option known[] = {{"--schedule", TEXT, &options->schedule, 0, 0},
                          {"--ranks", NUMBER, &options->num_ranks, 1, 4096},
                          {"--microbatches", NUMBER, &options->num_microbatches, 1, 1 << 20},
                          {"--steps", NUMBER, &options->num_steps, 1, INT_MAX},
                          {"--seed", SEED, &options->seed, 0, UINT64_MAX},
                          {"--data", TEXT, &options->data, 0, 0},
                          {"--no-overlap", FLAG, &options->overlaps, 0, 0},
                          {"--check", FLAG, &options->checks, 0, 1},
                          {"--experts", NUMBER, &options->shape.num_experts, 1, 1024},
                          {"--top", NUMBER, &options->shape.num_chosen, 1, 2},
                          {"--gpus", NUMBER, &options->num_gpus, 1, 1024},
                          {"--timeout", NUMBER, &options->timeout_s, 1, 3600},
                          {"--fail", PLANNED, &options->fails, 0, 0},
                          {"--die", PLANNED, &options->dies, 0, 0},
                          {"--help", FLAG, &options->asks_for_help, 0, 1}};
  const size_t num_known = sizeof known / sizeof known[0];
  const model_shape shape = {32, 16, 32, 32, 8, 1, 0};
  int i;
  size_t which;
  memset(options, 0, sizeof *options);
  options->schedule = "dualpipe";
  options->data = TRAINER_DATA;
  options->num_ranks = num_processes;
  options->num_microbatches = 3 * num_processes;
  options->num_steps = 40;
  options->num_gpus = 4;
  options->timeout_s = 10;
  options->seed = 1;
  options->overlaps = 1;
  options->fails.rank = options->dies.rank = -1;
  options->shape = shape;
  for (i = 1; i < argc; i++) {
    for (which = 0; which < num_known && strcmp(argv[i], known[which].name) != 0; which++) continue;
    if (which == num_known) {
      snprintf(error, capacity, "%s: no such option; --help lists them", argv[i]);
      return -1;
    }
    if (known[which].kind == FLAG) {
      *(int *)known[which].value = (int)known[which].most;
    } else if (parse_value(&known[which], argv[++i], error, capacity) != 0) {
      return -1;
    }
  }
  return options->asks_for_help ? 0 : check(options, num_processes, error, capacity);
}
