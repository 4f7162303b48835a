// Causal attention between the projections. qkv is [tokens, 3 width]: queries, keys, values, each of all heads side
// by side. Weights are [tokens, heads, sequence]: how much a token's head looks at each token of its sequence.
#include "prelude.h"

// The sizes, and where a thread is among them.
struct Attention {
  u32 sequence;
  u32 heads;
  u32 head_size;

  __device__ u32 width() const { return heads * head_size; }

  // Part 0 are the queries, 1 the keys, 2 the values.
  template <class Number>
  __device__ Number *part(Number *qkv, u64 token, u32 part) const {
    return qkv + token * 3 * width() + static_cast<u64>(part) * width();
  }

  template <class Number>
  __device__ Number *weights(Number *weights, u64 token, u32 head) const {
    return weights + (token * heads + head) * sequence;
  }
};

// A thread for each token and head: one row of weights, zero beyond the token itself.
extern "C" __global__ void attention_weights(const float *qkv, float *weights, float scale, u32 tokens, u32 sequence,
                                             u32 heads, u32 head_size) {
  const Attention at = {sequence, heads, head_size};
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * heads) return;
  const u64 token = index / heads;
  const u32 head = static_cast<u32>(index % heads);
  const u32 position = static_cast<u32>(token % sequence);
  const u64 first = token - position;
  const float *query = at.part(qkv, token, 0) + head * head_size;
  float *row = at.weights(weights, token, head);
  for (u32 j = 0; j <= position; ++j) {
    row[j] = dot(query, at.part(qkv, first + j, 1) + head * head_size, head_size) * scale;
  }
  softmax(row, row, position + 1);
  for (u32 j = position + 1; j < sequence; ++j) row[j] = 0.0f;
}

// A thread for each token and column: the values, mixed by the weights. `mixed` is [tokens, width].
extern "C" __global__ void attention_mix(const float *qkv, const float *weights, float *mixed, u32 tokens,
                                         u32 sequence, u32 heads, u32 head_size) {
  const Attention at = {sequence, heads, head_size};
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * at.width()) return;
  const u64 token = index / at.width();
  const u32 column = static_cast<u32>(index % at.width());
  const u32 position = static_cast<u32>(token % sequence);
  const u64 first = token - position;
  const float *row = at.weights(weights, token, column / head_size);
  float sum = 0.0f;
  for (u32 j = 0; j <= position; ++j) sum += row[j] * at.part(qkv, first + j, 2)[column];
  mixed[index] = sum;
}

// A thread for each token and head: the gradients for the dot products of queries and keys, in the weights' layout.
extern "C" __global__ void attention_score_grad(const float *qkv, const float *weights, const float *mixed_grad,
                                                float *score_grad, float scale, u32 tokens, u32 sequence, u32 heads,
                                                u32 head_size) {
  const Attention at = {sequence, heads, head_size};
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * heads) return;
  const u64 token = index / heads;
  const u32 head = static_cast<u32>(index % heads);
  const u32 position = static_cast<u32>(token % sequence);
  const u64 first = token - position;
  const float *grad = row_of(mixed_grad, token, at.width()) + head * head_size;
  const float *row = at.weights(weights, token, head);
  float *out = at.weights(score_grad, token, head);
  // Through the softmax: dz = p (dp - sum(p dp)).
  float mean = 0.0f;
  for (u32 j = 0; j <= position; ++j) {
    out[j] = dot(grad, at.part(qkv, first + j, 2) + head * head_size, head_size);
    mean += out[j] * row[j];
  }
  for (u32 j = 0; j <= position; ++j) out[j] = (out[j] - mean) * (row[j] * scale);
  for (u32 j = position + 1; j < sequence; ++j) out[j] = 0.0f;
}

// A thread for each token and column: its gradients as a query, a key and a value.
extern "C" __global__ void attention_qkv_grad(const float *qkv, const float *weights, const float *mixed_grad,
                                              const float *score_grad, float *qkv_grad, u32 tokens, u32 sequence,
                                              u32 heads, u32 head_size) {
  const Attention at = {sequence, heads, head_size};
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * at.width()) return;
  const u64 token = index / at.width();
  const u32 column = static_cast<u32>(index % at.width());
  const u32 head = column / head_size;
  const u32 position = static_cast<u32>(token % sequence);
  const u64 first = token - position;
  const float *own = at.weights(score_grad, token, head);
  float query = 0.0f, key = 0.0f, value = 0.0f;
  for (u32 j = 0; j <= position; ++j) query += own[j] * at.part(qkv, first + j, 1)[column];
  // As a key and a value a token serves itself and those after it.
  for (u32 i = position; i < sequence; ++i) {
    key += at.weights(score_grad, first + i, head)[position] * at.part(qkv, first + i, 0)[column];
    value += at.weights(weights, first + i, head)[position] * row_of(mixed_grad, first + i, at.width())[column];
  }
  at.part(qkv_grad, token, 0)[column] = query;
  at.part(qkv_grad, token, 1)[column] = key;
  at.part(qkv_grad, token, 2)[column] = value;
}
