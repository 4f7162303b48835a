/*
 * The model: predicts a number from a row of numbers, through stages of a mixture of small MLPs.
 *
 *   stage 0        h = x embedding                      x [num_rows, context], h [num_rows, width]
 *   every stage    p = softmax(h gate)                  [num_rows, num_experts]
 *                  h + sum of p_e tanh(h up_e) down_e   over the num_chosen experts of largest p
 *   last stage     y = h head + bias                    loss: mean of (y - target)^2
 *
 * A stage keeps what F makes of each micro-batch until W is done. I leaves what W needs: the gradients of the outputs
 * of its matrix products.
 */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct model_shape {
  int num_rows, context, width, hidden, num_experts, num_chosen, num_stages;
} model_shape;

/* A micro-batch's data. */
typedef struct microbatch_data {
  const float *inputs;  /* [num_rows, context] */
  const float *targets; /* [num_rows] */
} microbatch_data;

/* What a stage keeps of one micro-batch, row by row; k is num_chosen. */
typedef struct pass_memory {
  microbatch_data data;
  int *chosen;          /* [k] */
  float *h;             /* [width] */
  float *p;             /* [num_experts] */
  float *z, *y;         /* tanh(h up) [k, hidden]; z down [k, width] */
  float *out;           /* [width] */
  float *error;         /* y - target [1] */
  float *out_grad;      /* [width] */
  float *hidden_grad;   /* before tanh [k, hidden] */
  float *logit_grad;    /* [num_experts] */
  float *h_grad;        /* [width] */
} pass_memory;

typedef struct stage {
  model_shape shape;
  int index, num_microbatches;
  size_t num_parameters;
  float *parameters;    /* [num_parameters] */
  float *grads;         /* [num_parameters], added up over micro-batches */
  float *moments[2];    /* of the optimizer */
  float *loads;         /* [num_experts], rows sent to each since the start */
  pass_memory *passes;  /* [num_microbatches] */
  int keeps_experts;    /* whether F sends rows where it sent them last: the loss is smooth then */
} stage;

/* Where a stage's matrices lie in its parameters, and in its gradients alike. */
typedef struct matrices {
  float *embedding; /* [context, width], first stage */
  float *gate;      /* [width, num_experts] */
  float *up, *down; /* [num_experts, width, hidden], [num_experts, hidden, width] */
  float *head;      /* [width], and the bias; last stage */
} matrices;

/* In `values`, a stage's parameters or gradients. */
matrices matrices_of(const stage *stage, float *values);

int is_first(const stage *stage);
int is_last(const stage *stage);

/* The parameters depend on the seed and on which stage it is, on nothing else. NULL: no memory. */
stage *stage_create(const model_shape *shape, int index, int num_microbatches, uint64_t seed);
void stage_free(stage *stage);

/* F. `input` is not read at the first stage, `output` not written at the last: it returns the loss there, else 0. */
double stage_forward(stage *stage, int microbatch, microbatch_data data, const float *input, float *output);
/* I. `output_grad` is not read at the last stage, `input_grad` not written at the first. */
void stage_backward_input(stage *stage, int microbatch, const float *output_grad, float *input_grad);
/* W: adds to the gradients. */
void stage_backward_weight(stage *stage, int microbatch);

/* Adam, with the gradients times `scale`, in step `step` from 0; the gradients are 0 afterwards. */
void stage_update(stage *stage, int step, float scale);

#endif
