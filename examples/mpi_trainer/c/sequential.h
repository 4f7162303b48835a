/* The reference: all stages in this process, one micro-batch after the other, without the library. */
#ifndef SEQUENTIAL_H
#define SEQUENTIAL_H

#include "data.h"
#include "model.h"

typedef struct sequential {
  model_shape shape;
  int num_directions, num_microbatches;
  stage **stages;     /* [num_stages] */
  float **first;      /* [num_stages], each the gradients of direction 0, or parameters put aside */
  float *boundaries;  /* [num_stages, num_rows, width] */
  float *grads;       /* [2, num_rows, width] */
} sequential;

/* Micro-batches of two directions are added up as two copies of the stages do it: first those of each direction. */
int sequential_create(sequential *run, const model_shape *shape, int num_directions, int num_microbatches,
                      uint64_t seed);
void sequential_free(sequential *run);

/* A step without its update; the loss, as the mean of the micro-batches'. */
double sequential_step(sequential *run, const batch *batch);
void sequential_update(sequential *run, int step);

/*
 * Moves the parameters along the last step's gradients and back, matrix by matrix: how far the loss's slope is from
 * what the gradients say, at most, as a share of that. A wrong derivative shows here; with it both runs would agree.
 */
double sequential_slopes_off(sequential *run, const batch *batch);

#endif
