// The two ends of a language model: bytes to rows, and rows of logits to a loss.
#include "prelude.h"

// A thread for each token and column: the row of the token's byte plus that of its position.
extern "C" __global__ void embedding(const u8 *bytes, const float *by_byte, const float *by_position, float *out,
                                     u32 tokens, u32 sequence, u32 width) {
  const u64 index = element();
  if (index >= static_cast<u64>(tokens) * width) return;
  const u64 token = index / width;
  const u64 column = index % width;
  out[index] = row_of(by_byte, bytes[token], width)[column] + row_of(by_position, token % sequence, width)[column];
}

// A thread for each of `vocabulary` bytes and column: adds the gradients of the tokens that are this byte.
extern "C" __global__ void embedding_byte_grad(const u8 *bytes, const float *out_grad, float *byte_grad, u32 tokens,
                                               u32 vocabulary, u32 width) {
  const u64 index = element();
  if (index >= static_cast<u64>(vocabulary) * width) return;
  const u64 byte = index / width;
  float sum = 0.0f;
  for (u32 token = 0; token < tokens; ++token) {
    if (bytes[token] == byte) sum += row_of(out_grad, token, width)[index % width];
  }
  byte_grad[index] += sum;
}

// A thread for each position and column: adds the gradients of the tokens there.
extern "C" __global__ void embedding_position_grad(const float *out_grad, float *position_grad, u32 tokens,
                                                   u32 sequence, u32 width) {
  const u64 index = element();
  if (index >= static_cast<u64>(sequence) * width) return;
  float sum = 0.0f;
  for (u64 token = index / width; token < tokens; token += sequence) {
    sum += row_of(out_grad, token, width)[index % width];
  }
  position_grad[index] += sum;
}

// A thread for each token: its cross-entropy, and in `logits` the gradient of the mean over tokens.
extern "C" __global__ void cross_entropy(float *logits, const u8 *targets, float *losses, u32 tokens,
                                         u32 vocabulary) {
  const u64 token = element();
  if (token >= tokens) return;
  float *row = row_of(logits, token, vocabulary);
  const u32 target = targets[token];
  softmax(row, row, vocabulary);
  // A probability that underflows to zero still has a finite loss.
  losses[token] = -logf(fmaxf(row[target], 1.17549435e-38f));
  row[target] -= 1.0f;
  for (u32 i = 0; i < vocabulary; ++i) row[i] /= tokens;
}

// One thread: adds the mean of `losses` to `sum`.
extern "C" __global__ void add_mean(const float *losses, double *sum, u32 count) {
  if (element() != 0) return;
  double total = 0.0;
  for (u32 i = 0; i < count; ++i) total += losses[i];
  *sum += total / count;
}
