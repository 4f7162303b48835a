/* What the first rank prints besides losses. */
#ifndef REPORT_H
#define REPORT_H

#include <mpi.h>

#include "options.h"
#include "rank.h"
#include "sequential.h"

/* Every step of a rank against the same step of a sequential run. */
typedef struct comparison {
  double num_gradients, num_equal, num_losses, num_equal_losses;
  double largest;    /* difference of gradients */
  double slopes_off; /* of the sequential run's first step */
} comparison;

/* A step of `run`, whose data and parameters are those of `rank`, before its update. */
void compare_step(comparison *comparison, sequential *run, const rank *rank, double loss, int step);
/* Sums up what the ranks have found, and prints it on the first. 1 if they agree, 0 if not, -1 on an error. */
int compare_ranks(const comparison *comparison, rank *rank, char *error, size_t capacity);

/* Places the experts by their measured loads, of all ranks, and prints how well. 0, or -1 and why not in `error`. */
int print_placement(const options *options, const model_shape *shape, const double *measured, char *error,
                    size_t capacity);

#endif
