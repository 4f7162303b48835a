#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "random.h"

int is_first(const stage *stage) { return stage->index == 0; }
int is_last(const stage *stage) { return stage->index == stage->shape.num_stages - 1; }

static int num_of_experts(const model_shape *s) { return s->num_experts * s->width * s->hidden; }

static size_t num_parameters(const stage *stage) {
  const model_shape *s = &stage->shape;
  const int ends = (is_first(stage) ? s->context * s->width : 0) + (is_last(stage) ? s->width + 1 : 0);
  return (size_t)(ends + s->width * s->num_experts + 2 * num_of_experts(s));
}

matrices matrices_of(const stage *stage, float *values) {
  const model_shape *s = &stage->shape;
  matrices m;
  m.embedding = values;
  m.gate = m.embedding + (is_first(stage) ? s->context * s->width : 0);
  m.up = m.gate + s->width * s->num_experts;
  m.down = m.up + num_of_experts(s);
  m.head = m.down + num_of_experts(s);
  return m;
}

void stage_update(stage *stage, int step, float scale) {
  const float rate = 3e-3f, keep[2] = {0.9f, 0.99f}, epsilon = 1e-8f;
  const float fraction[2] = {1 - powf(keep[0], (float)step + 1), 1 - powf(keep[1], (float)step + 1)};
  float *mean = stage->moments[0], *square = stage->moments[1];
  size_t i;
  for (i = 0; i < stage->num_parameters; i++) {
    const float grad = scale * stage->grads[i];
    mean[i] = keep[0] * mean[i] + (1 - keep[0]) * grad;
    square[i] = keep[1] * square[i] + (1 - keep[1]) * grad * grad;
    stage->parameters[i] -= rate * (mean[i] / fraction[0]) / (sqrtf(square[i] / fraction[1]) + epsilon);
  }
  memset(stage->grads, 0, sizeof(float) * stage->num_parameters);
}

/* n numbers of a uniform distribution with this standard deviation. */
static void draw(uint64_t *state, float *values, int n, double deviation) {
  int i;
  for (i = 0; i < n; i++) values[i] = (float)(deviation * sqrt(12.0) * (random_real(state) - 0.5));
}

static void draw_parameters(stage *stage, uint64_t seed) {
  const model_shape *s = &stage->shape;
  const matrices m = matrices_of(stage, stage->parameters);
  const double narrow = 1 / sqrt((double)s->width), residual = 1 / sqrt((double)s->num_stages);
  uint64_t state = random_seed(seed, (uint64_t)stage->index);
  if (is_first(stage)) draw(&state, m.embedding, s->context * s->width, 1 / sqrt((double)s->context));
  draw(&state, m.gate, s->width * s->num_experts, narrow);
  draw(&state, m.up, num_of_experts(s), narrow);
  draw(&state, m.down, num_of_experts(s), residual / sqrt((double)s->hidden));
  if (is_last(stage)) draw(&state, m.head, s->width, narrow);
}

/* Memory for one micro-batch; 0 if there is none. */
static int pass_create(pass_memory *pass, const model_shape *s) {
  const struct {
    float **values;
    int num_per_row;
  } parts[] = {{&pass->h, s->width},
               {&pass->p, s->num_experts},
               {&pass->z, s->num_chosen * s->hidden},
               {&pass->y, s->num_chosen * s->width},
               {&pass->out, s->width},
               {&pass->error, 1},
               {&pass->out_grad, s->width},
               {&pass->hidden_grad, s->num_chosen * s->hidden},
               {&pass->logit_grad, s->num_experts},
               {&pass->h_grad, s->width}};
  const size_t num_rows = (size_t)s->num_rows;
  size_t i;
  pass->chosen = calloc(num_rows * (size_t)s->num_chosen, sizeof(int));
  if (pass->chosen == NULL) return 0;
  for (i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    *parts[i].values = calloc(num_rows * (size_t)parts[i].num_per_row, sizeof(float));
    if (*parts[i].values == NULL) return 0;
  }
  return 1;
}

static void pass_free(pass_memory *pass) {
  free(pass->chosen);
  free(pass->h);
  free(pass->p);
  free(pass->z);
  free(pass->y);
  free(pass->out);
  free(pass->error);
  free(pass->out_grad);
  free(pass->hidden_grad);
  free(pass->logit_grad);
  free(pass->h_grad);
}

stage *stage_create(const model_shape *shape, int index, int num_microbatches, uint64_t seed) {
  stage *stage = calloc(1, sizeof *stage);
  int i;
  if (stage == NULL) return NULL;
  stage->shape = *shape;
  stage->index = index;
  stage->num_microbatches = num_microbatches;
  stage->num_parameters = num_parameters(stage);
  stage->parameters = calloc(stage->num_parameters, sizeof(float));
  stage->grads = calloc(stage->num_parameters, sizeof(float));
  stage->moments[0] = calloc(stage->num_parameters, sizeof(float));
  stage->moments[1] = calloc(stage->num_parameters, sizeof(float));
  stage->loads = calloc((size_t)shape->num_experts, sizeof(float));
  stage->passes = calloc((size_t)num_microbatches, sizeof(pass_memory));
  int is_complete = stage->parameters && stage->grads && stage->moments[0] && stage->moments[1] && stage->loads &&
                    stage->passes;
  for (i = 0; is_complete && i < num_microbatches; i++) is_complete = pass_create(&stage->passes[i], shape);
  if (!is_complete) {
    stage_free(stage);
    return NULL;
  }
  draw_parameters(stage, seed);
  return stage;
}

void stage_free(stage *stage) {
  int i;
  if (stage == NULL) return;
  for (i = 0; stage->passes != NULL && i < stage->num_microbatches; i++) pass_free(&stage->passes[i]);
  free(stage->passes);
  free(stage->parameters);
  free(stage->grads);
  free(stage->moments[0]);
  free(stage->moments[1]);
  free(stage->loads);
  free(stage);
}
