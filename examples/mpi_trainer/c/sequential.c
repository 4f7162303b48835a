#include "sequential.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Some of a stage's parameters: a matrix, or that of all its experts. */
typedef struct part {
  int stage;
  size_t first, count;
} part;

int sequential_create(sequential *run, const model_shape *shape, int num_directions, int num_microbatches,
                      uint64_t seed) {
  const size_t num_stages = (size_t)shape->num_stages, size = (size_t)shape->num_rows * (size_t)shape->width;
  int s;
  memset(run, 0, sizeof *run);
  run->shape = *shape;
  run->num_directions = num_directions;
  run->num_microbatches = num_microbatches;
  run->stages = calloc(num_stages, sizeof *run->stages);
  run->first = calloc(num_stages, sizeof *run->first);
  run->boundaries = calloc(num_stages * size, sizeof(float));
  run->grads = calloc(2 * size, sizeof(float));
  if (run->stages == NULL || run->first == NULL || run->boundaries == NULL || run->grads == NULL) return -1;
  for (s = 0; s < shape->num_stages; s++) {
    run->stages[s] = stage_create(shape, s, num_microbatches, seed);
    if (run->stages[s] == NULL) return -1;
    run->first[s] = calloc(run->stages[s]->num_parameters, sizeof(float));
    if (run->first[s] == NULL) return -1;
  }
  return 0;
}

void sequential_free(sequential *run) {
  int s;
  for (s = 0; run->stages != NULL && run->first != NULL && s < run->shape.num_stages; s++) {
    stage_free(run->stages[s]);
    free(run->first[s]);
  }
  free(run->stages);
  free(run->first);
  free(run->boundaries);
  free(run->grads);
}

static double forward(sequential *run, const batch *batch, int i) {
  const int size = run->shape.num_rows * run->shape.width;
  double loss = 0;
  int s;
  for (s = 0; s < run->shape.num_stages; s++) {
    const float *input = s > 0 ? run->boundaries + (s - 1) * size : NULL;
    loss += stage_forward(run->stages[s], i, batch_at(batch, i), input, run->boundaries + s * size);
  }
  return loss;
}

static void backward(sequential *run, int i) {
  const int size = run->shape.num_rows * run->shape.width;
  int s;
  for (s = run->shape.num_stages - 1; s >= 0; s--) {
    stage_backward_input(run->stages[s], i, run->grads + (s + 1) % 2 * size, run->grads + s % 2 * size);
    stage_backward_weight(run->stages[s], i);
  }
}

double sequential_step(sequential *run, const batch *batch) {
  const int per_direction = run->num_microbatches / run->num_directions;
  double loss = 0;
  int i, s;
  size_t j;
  for (i = 0; i < run->num_microbatches; i++) {
    if (i > 0 && i % per_direction == 0) {
      for (s = 0; s < run->shape.num_stages; s++) {
        const size_t num_bytes = run->stages[s]->num_parameters * sizeof(float);
        memcpy(run->first[s], run->stages[s]->grads, num_bytes);
        memset(run->stages[s]->grads, 0, num_bytes);
      }
    }
    loss += forward(run, batch, i);
    backward(run, i);
  }
  for (s = 0; run->num_directions > 1 && s < run->shape.num_stages; s++) {
    stage *stage = run->stages[s];
    for (j = 0; j < stage->num_parameters; j++) stage->grads[j] = run->first[s][j] + stage->grads[j];
  }
  return loss / run->num_microbatches;
}

void sequential_update(sequential *run, int step) {
  int s;
  for (s = 0; s < run->shape.num_stages; s++) stage_update(run->stages[s], step, 1 / (float)run->num_microbatches);
}

/* The loss with a part of a stage's parameters moved by `scale` times its gradients, each row to the same experts. */
static double loss_at(sequential *run, const batch *batch, part part, double scale) {
  stage *moved = run->stages[part.stage];
  const size_t num_bytes = part.count * sizeof(float);
  float *parameters = moved->parameters + part.first;
  double loss = 0;
  int i;
  size_t j;
  memcpy(run->first[part.stage], parameters, num_bytes);
  for (j = 0; j < part.count; j++) parameters[j] += (float)(scale * moved->grads[part.first + j]);
  for (i = 0; i < run->num_microbatches; i++) loss += forward(run, batch, i);
  memcpy(parameters, run->first[part.stage], num_bytes);
  return loss / run->num_microbatches;
}

/* How far the measured slope of the loss along a part's gradients is from what they say, as a share of that. */
static double slope_off(sequential *run, const batch *batch, part part) {
  const double distance = 1e-2;
  const float *grads = run->stages[part.stage]->grads + part.first;
  double length = 0, slope;
  size_t i;
  for (i = 0; i < part.count; i++) length += (double)grads[i] * grads[i];
  if (length == 0) return 0;
  length = sqrt(length);
  slope = loss_at(run, batch, part, distance / length) - loss_at(run, batch, part, -distance / length);
  slope /= 2 * distance;
  /* The gradients are sums over micro-batches, the loss is their mean. */
  length /= run->num_microbatches;
  return fabs(slope - length) / length;
}

double sequential_slopes_off(sequential *run, const batch *batch) {
  double worst = 0;
  int s, i;
  for (s = 0; s < run->shape.num_stages; s++) run->stages[s]->keeps_experts = 1;
  for (s = 0; s < run->shape.num_stages; s++) {
    const stage *stage = run->stages[s];
    const matrices m = matrices_of(stage, stage->parameters);
    const float *const end = stage->parameters + stage->num_parameters;
    const float *const starts[] = {m.embedding, m.gate, m.up, m.down, m.head, end};
    for (i = 0; i < 5; i++) {
      const part part = {s, (size_t)(starts[i] - stage->parameters), (size_t)(starts[i + 1] - starts[i])};
      worst = fmax(worst, slope_off(run, batch, part));
    }
  }
  for (s = 0; s < run->shape.num_stages; s++) run->stages[s]->keeps_experts = 0;
  return worst;
}
