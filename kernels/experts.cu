// The mixture of experts. A router sends each token to two experts; a *visit* is a token at one of them. Visits 2 t
// and 2 t + 1 are token t's, so that there are always as many, whatever the router decides, and nobody has to ask the
// device.
#include "prelude.h"

static const u32 VISITS_PER_TOKEN = 2;

// A thread for each token: the two experts it scores highest (the lower index first among equals), the softmax of
// these two scores, and in `probabilities` that of all.
extern "C" __global__ void route(const float *scores, u32 *choices, float *weights, float *probabilities, u32 tokens,
                                 u32 experts) {
  const u64 token = element();
  if (token >= tokens) return;
  const float *row = row_of(scores, token, experts);
  u32 first = 0;
  for (u32 i = 1; i < experts; ++i) {
    if (row[i] > row[first]) first = i;
  }
  u32 second = first == 0 ? 1 : 0;
  for (u32 i = second + 1; i < experts; ++i) {
    if (i != first && row[i] > row[second]) second = i;
  }
  const float weight = 1.0f / (expf(row[second] - row[first]) + 1.0f);
  choices[VISITS_PER_TOKEN * token] = first;
  choices[VISITS_PER_TOKEN * token + 1] = second;
  weights[VISITS_PER_TOKEN * token] = weight;
  weights[VISITS_PER_TOKEN * token + 1] = 1.0f - weight;
  softmax(row, row_of(probabilities, token, experts), experts);
}

// A thread for each expert: its visits, in order, at queue[offsets[expert]] and on; adds their number to its load.
// `offsets` has one more number, the end of the last queue.
extern "C" __global__ void expert_queues(const u32 *choices, u32 *queue, u32 *offsets, u64 *loads, u32 visits,
                                         u32 experts) {
  const u64 expert = element();
  if (expert >= experts) return;
  u32 first = 0;
  for (u32 visit = 0; visit < visits; ++visit) first += choices[visit] < expert;
  u32 end = first;
  for (u32 visit = 0; visit < visits; ++visit) {
    if (choices[visit] == expert) queue[end++] = visit;
  }
  if (expert == 0) offsets[0] = 0;
  offsets[expert + 1] = end;
  loads[expert] += end - first;
}

// A thread for each visit and column: out = in w, with w the weights of the visit's expert. A row of `in` serves
// `visits_per_row` visits; element (k, column) of expert e is w[e w_expert + k w_row + column w_column].
extern "C" __global__ void expert_product(const float *in, const float *w, const u32 *choices, float *out, u32 visits,
                                          u32 visits_per_row, u32 columns, u32 depth, u32 w_row, u32 w_column,
                                          u64 w_expert) {
  const u64 index = element();
  if (index >= static_cast<u64>(visits) * columns) return;
  const u64 visit = index / columns;
  in = row_of(in, visit / visits_per_row, depth);
  w += choices[visit] * w_expert + index % columns * w_column;
  float sum = 0.0f;
  for (u32 k = 0; k < depth; ++k) sum += in[k] * w[static_cast<u64>(k) * w_row];
  out[index] = sum;
}

// A thread for each expert and element (k, column): adds in^T out_grad over the expert's visits, as a whole.
// Expert e's gradients start at w_grad + e w_expert.
extern "C" __global__ void expert_weight_grad(const float *in, const float *out_grad, const u32 *queue,
                                              const u32 *offsets, float *w_grad, u32 experts, u32 visits_per_row,
                                              u32 columns, u32 depth, u64 w_expert) {
  const u64 index = element();
  const u64 size = static_cast<u64>(depth) * columns;
  if (index >= experts * size) return;
  const u64 expert = index / size;
  const u64 k = index % size / columns;
  const u64 column = index % columns;
  float sum = 0.0f;
  for (u32 i = offsets[expert]; i < offsets[expert + 1]; ++i) {
    const u32 visit = queue[i];
    sum += row_of(in, visit / visits_per_row, depth)[k] * row_of(out_grad, visit, columns)[column];
  }
  w_grad[expert * w_expert + index % size] += sum;
}

// A thread for each token and column: what the two experts made of the token, by their weights.
extern "C" __global__ void combine(const float *answers, const float *weights, float *out, u32 tokens, u32 width) {
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * width) return;
  const u64 visit = VISITS_PER_TOKEN * (index / width);
  const u64 column = index % width;
  out[index] = weights[visit] * row_of(answers, visit, width)[column] +
               weights[visit + 1] * row_of(answers, visit + 1, width)[column];
}

// A thread for each visit: the gradients for its answer and for its weight.
extern "C" __global__ void combine_backward(const float *answers, const float *weights, const float *out_grad,
                                            float *answer_grad, float *weight_grad, u32 visits, u32 width) {
  const u64 visit = element();
  if (visit >= visits) return;
  const float *grad = row_of(out_grad, visit / VISITS_PER_TOKEN, width);
  weight_grad[visit] = dot(grad, row_of(answers, visit, width), width);
  for (u32 i = 0; i < width; ++i) row_of(answer_grad, visit, width)[i] = weights[visit] * grad[i];
}

// A thread for each token and column: the sum over the token's visits.
extern "C" __global__ void sum_visits(const float *by_visit, float *out, u32 tokens, u32 width) {
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * width) return;
  const u64 visit = VISITS_PER_TOKEN * (index / width);
  out[index] = row_of(by_visit, visit, width)[index % width] + row_of(by_visit, visit + 1, width)[index % width];
}

// A thread for each token: the gradients for its scores, from those for its weights and from the balance loss
// (arXiv 2101.03961, section 2.2), which is the sum of balance_scale * load * probability over experts and tokens.
extern "C" __global__ void route_backward(const float *probabilities, const u32 *choices, const float *weights,
                                          const float *weight_grad, const u32 *offsets, float *score_grad,
                                          float balance_scale, u32 tokens, u32 experts) {
  const u64 token = element();
  if (token >= tokens) return;
  const float *row = row_of(probabilities, token, experts);
  float *out = row_of(score_grad, token, experts);
  // Through the softmax: dz = p (dp - sum(p dp)).
  float mean = 0.0f;
  for (u32 i = 0; i < experts; ++i) mean += row[i] * (balance_scale * (offsets[i + 1] - offsets[i]));
  for (u32 i = 0; i < experts; ++i) out[i] = row[i] * (balance_scale * (offsets[i + 1] - offsets[i]) - mean);
  const u64 visit = VISITS_PER_TOKEN * token;
  const float grad = weights[visit] * weights[visit + 1] * (weight_grad[visit] - weight_grad[visit + 1]);
  out[choices[visit]] += grad;
  out[choices[visit + 1]] -= grad;
}
