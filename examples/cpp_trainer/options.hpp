// The command line.
#pragma once

#include <charconv>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data.hpp"
#include "shape.hpp"

#ifdef TRAINER_ROOT
#define TRAINER_DATA TRAINER_ROOT "/docs/executor.md"
#define TRAINER_KERNELS TRAINER_ROOT "/kernels/ptx"
#else
#define TRAINER_DATA ""
#define TRAINER_KERNELS ""
#endif

namespace trainer {

constexpr const char *schedule_names[] = {"dualpipe", "dualpipe_v", "1f1b"};

struct Options {
  std::string schedule = schedule_names[0];
  std::string data = TRAINER_DATA;
  std::string device = "cpu";
  std::string kernels = TRAINER_KERNELS;
  uint32_t device_index = 0;
  uint32_t num_ranks = 4;
  uint32_t num_microbatches = 0; // 0 on the command line: three for each rank
  uint32_t num_steps = 40;
  uint32_t num_gpus = 4; // that the experts are placed on
  uint32_t timeout_s = 30;
  uint64_t seed = 1;
  float rate = 0.003f;
  bool overlaps = true;
  bool checks = false;
  bool asks_for_help = false;
  Shape shape; // num_stages is the schedule's to say

  static Options parse(const std::vector<std::string> &arguments);
  static const char *usage();
};

namespace detail {

template <class Number>
Number number(const std::string &option, const std::string &text, Number lowest, Number highest) {
  Number value{};
  const char *const end = text.data() + text.size();
  const std::from_chars_result parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end || value < lowest || value > highest) {
    throw UsageError(option + " " + text + ": not a number from " + std::to_string(lowest) + " to " +
                     std::to_string(highest));
  }
  return value;
}

inline std::string one_of(const std::string &option, const std::string &text, const std::vector<std::string> &words) {
  std::string list;
  for (const std::string &word : words) {
    if (word == text) return text;
    list += (list.empty() ? "" : ", ") + word;
  }
  throw UsageError(option + " " + text + ": not one of " + list);
}

inline void must_divide(const char *option, uint32_t value, const char *of, uint32_t whole) {
  if (whole % value == 0) return;
  throw UsageError(std::string(option) + " " + std::to_string(value) + ": does not divide " + of + " " +
                   std::to_string(whole));
}

} // namespace detail

inline const char *Options::usage() {
  return "  --schedule NAME     dualpipe (default), dualpipe_v or 1f1b\n"
         "  --ranks N           ranks of the pipeline, each a thread (4)\n"
         "  --microbatches N    of a step, both directions together (3 for each rank)\n"
         "  --steps N           (40)\n"
         "  --seed N            of parameters and micro-batches (1)\n"
         "  --rate N            Adam's learning rate, in millionths (3000)\n"
         "  --data FILE         the text to learn\n"
         "  --no-overlap        an F&B pair is a forward, then a backward\n"
         "  --check             compares the gradients of a step with a sequential run's\n"
         "  --blocks N          MoE blocks of a stage (1)\n"
         "  --experts N         experts of a block, 2 for each token (8)\n"
         "  --width N, --hidden N, --context N, --tokens N   the model and the micro-batch (64, 64, 8, 64)\n"
         "  --gpus N            GPUs that the experts are placed on (4)\n"
         "  --timeout N         seconds that a rank waits for another at most (30)\n"
         "  --device NAME       cpu (default) or cuda\n"
         "  --device-index N    which CUDA device (0)\n"
         "  --kernels DIR       the kernels' PTX, for cuda\n";
}

inline Options Options::parse(const std::vector<std::string> &arguments) {
  Options o;
  using Setter = std::function<void(const std::string &option, const std::string &value)>;
  const auto whole = [](uint32_t &to, uint32_t lowest, uint32_t highest) -> Setter {
    return [&to, lowest, highest](const std::string &option, const std::string &value) {
      to = detail::number(option, value, lowest, highest);
    };
  };
  const auto text = [](std::string &to) -> Setter {
    return [&to](const std::string &, const std::string &value) { to = value; };
  };
  const auto word = [](std::string &to, std::vector<std::string> words) -> Setter {
    return [&to, words](const std::string &option, const std::string &value) {
      to = detail::one_of(option, value, words);
    };
  };
  uint32_t rate = 3000;
  const std::map<std::string, Setter> setters = {
      {"--schedule", word(o.schedule, {std::begin(schedule_names), std::end(schedule_names)})},
      {"--device", word(o.device, {"cpu", "cuda"})},
      {"--data", text(o.data)},
      {"--kernels", text(o.kernels)},
      {"--ranks", whole(o.num_ranks, 1, 64)},
      {"--microbatches", whole(o.num_microbatches, 1, 4096)},
      {"--steps", whole(o.num_steps, 1, 1000000)},
      {"--rate", whole(rate, 1, 1000000)},
      {"--blocks", whole(o.shape.num_blocks, 1, 64)},
      {"--experts", whole(o.shape.num_experts, 2, 1024)},
      {"--width", whole(o.shape.width, 1, 4096)},
      {"--hidden", whole(o.shape.hidden, 1, 4096)},
      {"--context", whole(o.shape.context, 1, 4096)},
      {"--tokens", whole(o.shape.num_tokens, 1, 65536)},
      {"--gpus", whole(o.num_gpus, 1, 1024)},
      {"--timeout", whole(o.timeout_s, 1, 3600)},
      {"--device-index", whole(o.device_index, 0, 1023)},
      {"--seed", [&o](const std::string &option, const std::string &value) {
         o.seed = detail::number<uint64_t>(option, value, 0, UINT64_MAX);
       }}};
  for (size_t i = 0; i < arguments.size(); i++) {
    const std::string &option = arguments[i];
    if (option == "--help") {
      o.asks_for_help = true;
    } else if (option == "--no-overlap") {
      o.overlaps = false;
    } else if (option == "--check") {
      o.checks = true;
    } else {
      const auto setter = setters.find(option);
      if (setter == setters.end()) throw UsageError(option + ": no such option; --help lists them");
      if (++i == arguments.size()) throw UsageError(option + ": needs a value");
      setter->second(option, arguments[i]);
    }
  }
  o.rate = static_cast<float>(rate) * 1e-6f;
  if (o.num_microbatches == 0) o.num_microbatches = 3 * o.num_ranks;
  detail::must_divide("--context", o.shape.context, "--width", o.shape.width);
  detail::must_divide("--gpus", o.num_gpus, "--experts", o.shape.num_experts);
  if (o.data.empty() && !o.asks_for_help) throw UsageError("--data: needed, a file with the text to learn");
  return o;
}

} // namespace trainer
