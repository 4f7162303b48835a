// The model's sizes, and where the matrices of a stage lie in its one vector of parameters.
//
//   the last `context` bytes -> embedding -> stage 0 -> ... -> stage S-1 -> RMSNorm -> head -> the next byte
//
// A stage is `num_blocks` blocks. A block normalizes, asks a shared expert and the two of `num_experts` experts that
// its router scores highest, and adds their answers to what came in (DeepSeekMoE, arXiv 2401.06066, without attention).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trainer {

constexpr uint32_t vocabulary = 256;     // bytes
constexpr uint32_t visits_per_token = 2; // experts that a token goes to; visits 2 t and 2 t + 1 are token t's

struct Shape {
  uint32_t num_tokens = 64; // of a micro-batch
  uint32_t context = 8;     // bytes that the next one is guessed from; divides width
  uint32_t width = 64;
  uint32_t hidden = 64; // width of an expert's hidden layer
  uint32_t num_experts = 8;
  uint32_t num_blocks = 1; // of a stage
  uint32_t num_stages = 1;

  size_t num_values() const { return size_t{num_tokens} * width; }
  uint32_t num_visits() const { return num_tokens * visits_per_token; }
  uint32_t num_layers() const { return num_stages * num_blocks; }
};

// A matrix among a stage's parameters, [fan_in, size / fan_in].
struct Piece {
  std::string name;
  size_t offset;
  size_t size;
  size_t fan_in; // 0: a gain, which begins as ones
};

struct BlockLayout {
  size_t gain;                   // [width]
  size_t router;                 // [width, num_experts]
  size_t shared_up, shared_down; // [width, hidden], [hidden, width]
  size_t up, down;               // the same for each expert
};

class Layout {
public:
  Layout(const Shape &shape, uint32_t stage)
      : is_first(stage == 0), is_last(stage + 1 == shape.num_stages) {
    const size_t width = shape.width, hidden = shape.hidden, experts = shape.num_experts;
    const size_t columns = width / shape.context;
    if (is_first) {
      by_byte = add("embedding of bytes", vocabulary * columns, 1);
      by_position = add("embedding of positions", width, 1);
    }
    for (uint32_t block = 0; block < shape.num_blocks; block++) {
      BlockLayout layout;
      layout.gain = add("gain", width, 0);
      layout.router = add("router", width * experts, width);
      layout.shared_up = add("shared expert, up", width * hidden, width);
      layout.shared_down = add("shared expert, down", hidden * width, hidden);
      layout.up = add("experts, up", experts * width * hidden, width);
      layout.down = add("experts, down", experts * hidden * width, hidden);
      blocks.push_back(layout);
    }
    if (is_last) {
      final_gain = add("last gain", width, 0);
      head = add("head", width * vocabulary, width);
    }
  }

  bool is_first, is_last;
  size_t by_byte = 0, by_position = 0; // [vocabulary, width / context], [context, width / context]; first stage
  std::vector<BlockLayout> blocks;
  size_t final_gain = 0, head = 0; // [width], [width, vocabulary]; last stage
  std::vector<Piece> pieces;
  size_t size = 0;

private:
  size_t add(const char *name, size_t count, size_t fan_in) {
    pieces.push_back({name, size, count, fan_in});
    size += count;
    return size - count;
  }
};

} // namespace trainer
