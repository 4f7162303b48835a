#include "model.h"

#include <math.h>
#include <string.h>


/* y [n] += x [m] a, a [m, n]. */
static void add_product(float *y, const float *x, const float *a, int m, int n) {
  int i, j;
  for (i = 0; i < m; i++) {
    for (j = 0; j < n; j++) y[j] += x[i] * a[i * n + j];
  }
}

/* x_grad [m] += y_grad [n] a^T. */
static void add_product_transposed(float *x_grad, const float *y_grad, const float *a, int m, int n) {
  int i, j;
  for (i = 0; i < m; i++) {
    float sum = 0;
    for (j = 0; j < n; j++) sum += y_grad[j] * a[i * n + j];
    x_grad[i] += sum;
  }
}

/* a_grad [m, n] += scale x^T y_grad. */
static void add_outer(float *a_grad, float scale, const float *x, const float *y_grad, int m, int n) {
  int i, j;
  for (i = 0; i < m; i++) {
    for (j = 0; j < n; j++) a_grad[i * n + j] += scale * x[i] * y_grad[j];
  }
}

static void softmax(float *values, int n) {
  float largest = values[0], sum = 0;
  int i;
  for (i = 1; i < n; i++) largest = fmaxf(largest, values[i]);
  for (i = 0; i < n; i++) sum += values[i] = expf(values[i] - largest);
  for (i = 0; i < n; i++) values[i] /= sum;
}

/* The k experts of largest p; of equal ones the first. */
static void choose(const float *p, int num_experts, int k, int *chosen) {
  int i, j, e;
  for (i = 0; i < k; i++) {
    chosen[i] = -1;
    for (e = 0; e < num_experts; e++) {
      int is_taken = 0;
      for (j = 0; j < i; j++) is_taken |= chosen[j] == e;
      if (!is_taken && (chosen[i] < 0 || p[e] > p[chosen[i]])) chosen[i] = e;
    }
  }
}

double stage_forward(stage *stage, int microbatch, microbatch_data data, const float *input, float *output) {
  const model_shape *s = &stage->shape;
  const int width = s->width, hidden = s->hidden, k = s->num_chosen;
  const matrices m = matrices_of(stage, stage->parameters);
  pass_memory *pass = &stage->passes[microbatch];
  double loss = 0;
  int row, i, j;
  pass->data = data;
  memset(pass->h, 0, sizeof(float) * (size_t)(s->num_rows * width));
  memset(pass->p, 0, sizeof(float) * (size_t)(s->num_rows * s->num_experts));
  memset(pass->z, 0, sizeof(float) * (size_t)(s->num_rows * k * hidden));
  memset(pass->y, 0, sizeof(float) * (size_t)(s->num_rows * k * width));
  for (row = 0; row < s->num_rows; row++) {
    float *h = pass->h + row * width, *p = pass->p + row * s->num_experts, *out = pass->out + row * width;
    int *chosen = pass->chosen + row * k;
    if (is_first(stage)) {
      add_product(h, data.inputs + row * s->context, m.embedding, s->context, width);
    } else {
      memcpy(h, input + row * width, sizeof(float) * (size_t)width);
    }
    add_product(p, h, m.gate, width, s->num_experts);
    softmax(p, s->num_experts);
    if (!stage->keeps_experts) choose(p, s->num_experts, k, chosen);
    memcpy(out, h, sizeof(float) * (size_t)width);
    for (i = 0; i < k; i++) {
      const int e = chosen[i];
      float *z = pass->z + (row * k + i) * hidden, *y = pass->y + (row * k + i) * width;
      stage->loads[e] += 1;
      add_product(z, h, m.up + e * width * hidden, width, hidden);
      for (j = 0; j < hidden; j++) z[j] = tanhf(z[j]);
      add_product(y, z, m.down + e * hidden * width, hidden, width);
      for (j = 0; j < width; j++) out[j] += p[e] * y[j];
    }
    if (is_last(stage)) {
      float prediction = m.head[width];
      add_product(&prediction, out, m.head, width, 1);
      pass->error[row] = prediction - data.targets[row];
      loss += (double)pass->error[row] * pass->error[row] / s->num_rows;
    }
  }
  if (!is_last(stage)) memcpy(output, pass->out, sizeof(float) * (size_t)(s->num_rows * width));
  return loss;
}

/* Of a row's prediction. */
static float loss_grad(const pass_memory *pass, const model_shape *s, int row) {
  return 2 * pass->error[row] / (float)s->num_rows;
}

void stage_backward_input(stage *stage, int microbatch, const float *output_grad, float *input_grad) {
  const model_shape *s = &stage->shape;
  const int width = s->width, hidden = s->hidden, k = s->num_chosen;
  const matrices m = matrices_of(stage, stage->parameters);
  pass_memory *pass = &stage->passes[microbatch];
  int row, i, j, e;
  memset(pass->hidden_grad, 0, sizeof(float) * (size_t)(s->num_rows * k * hidden));
  for (row = 0; row < s->num_rows; row++) {
    const float *p = pass->p + row * s->num_experts;
    const int *chosen = pass->chosen + row * k;
    float *out_grad = pass->out_grad + row * width, *h_grad = pass->h_grad + row * width;
    float *logit_grad = pass->logit_grad + row * s->num_experts;
    float mean = 0;
    for (j = 0; j < width; j++) {
      out_grad[j] = is_last(stage) ? loss_grad(pass, s, row) * m.head[j] : output_grad[row * width + j];
    }
    memcpy(h_grad, out_grad, sizeof(float) * (size_t)width);
    memset(logit_grad, 0, sizeof(float) * (size_t)s->num_experts);
    for (i = 0; i < k; i++) {
      const float *z = pass->z + (row * k + i) * hidden, *y = pass->y + (row * k + i) * width;
      float *grad = pass->hidden_grad + (row * k + i) * hidden;
      e = chosen[i];
      add_product_transposed(grad, out_grad, m.down + e * hidden * width, hidden, width);
      for (j = 0; j < hidden; j++) grad[j] *= p[e] * (1 - z[j] * z[j]);
      add_product_transposed(h_grad, grad, m.up + e * width * hidden, width, hidden);
      for (j = 0; j < width; j++) logit_grad[e] += out_grad[j] * y[j];
      mean += p[e] * logit_grad[e];
    }
    /* Through the softmax: of dp comes p (dp - sum(p dp)). */
    for (e = 0; e < s->num_experts; e++) logit_grad[e] = p[e] * (logit_grad[e] - mean);
    add_product_transposed(h_grad, logit_grad, m.gate, width, s->num_experts);
  }
  if (!is_first(stage)) memcpy(input_grad, pass->h_grad, sizeof(float) * (size_t)(s->num_rows * width));
}

void stage_backward_weight(stage *stage, int microbatch) {
  const model_shape *s = &stage->shape;
  const int width = s->width, hidden = s->hidden, k = s->num_chosen;
  const matrices grads = matrices_of(stage, stage->grads);
  const pass_memory *pass = &stage->passes[microbatch];
  int row, i;
  for (row = 0; row < s->num_rows; row++) {
    const float *h = pass->h + row * width, *out_grad = pass->out_grad + row * width;
    const float *p = pass->p + row * s->num_experts;
    add_outer(grads.gate, 1, h, pass->logit_grad + row * s->num_experts, width, s->num_experts);
    for (i = 0; i < k; i++) {
      const int e = pass->chosen[row * k + i];
      const float *z = pass->z + (row * k + i) * hidden, *hidden_grad = pass->hidden_grad + (row * k + i) * hidden;
      add_outer(grads.up + e * width * hidden, 1, h, hidden_grad, width, hidden);
      add_outer(grads.down + e * hidden * width, p[e], z, out_grad, hidden, width);
    }
    if (is_first(stage)) {
      const float *x = pass->data.inputs + row * s->context;
      add_outer(grads.embedding, 1, x, pass->h_grad + row * width, s->context, width);
    }
    if (is_last(stage)) {
      const float y_grad = loss_grad(pass, s, row);
      add_outer(grads.head, 1, pass->out + row * width, &y_grad, width, 1);
      grads.head[width] += y_grad;
    }
  }
}
