// The text, and the micro-batches drawn from it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "random.hpp"
#include "shape.hpp"

namespace trainer {

// What the user asked for cannot be done: said before anything is run.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Consecutive bytes of the text to guess, each from those before it.
struct Batch {
  std::vector<uint8_t> contexts; // [num_tokens, context]
  std::vector<uint8_t> targets;  // [num_tokens]
};

class Data {
public:
  Data(const std::string &path, const Shape &shape, uint64_t seed) : shape_(shape), seed_(seed) {
    if (std::filesystem::is_directory(path)) throw UsageError("--data " + path + ": is a directory, not a file");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw UsageError("--data " + path + ": " + std::strerror(errno));
    std::ostringstream text;
    text << file.rdbuf();
    if (text.bad()) throw UsageError("--data " + path + ": cannot be read");
    text_ = text.str();
    const size_t least = size_t{shape.context} + shape.num_tokens;
    if (text_.size() < least) {
      throw UsageError("--data " + path + ": " + std::to_string(text_.size()) + " bytes, a micro-batch needs at least " +
                       std::to_string(least) + " (--context " + std::to_string(shape.context) + ", --tokens " +
                       std::to_string(shape.num_tokens) + ")");
    }
  }

  size_t size() const { return text_.size(); }

  // Micro-batch `index` of a step, counted over both directions. It depends on the seed, the step and the index only.
  Batch batch(uint64_t step, uint32_t index) const {
    const size_t context = shape_.context;
    const size_t num_starts = text_.size() - context - shape_.num_tokens + 1;
    const size_t start = context + Random({seed_, step, index}).next() % num_starts;
    Batch batch;
    for (size_t at = start; at < start + shape_.num_tokens; at++) {
      const char *const byte = text_.data() + at;
      batch.contexts.insert(batch.contexts.end(), byte - context, byte);
      batch.targets.push_back(static_cast<uint8_t>(*byte));
    }
    return batch;
  }

private:
  Shape shape_;
  uint64_t seed_;
  std::string text_;
};

} // namespace trainer
