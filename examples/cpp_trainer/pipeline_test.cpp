// Tests of what happens when a rank fails: what is told, and that nobody waits for ever.
#include <dualpipe.hpp>

#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline.hpp"
#include "reduce.hpp"

namespace {

using namespace trainer;

int num_failures = 0;

void expect(bool is_so, const std::string &what) {
  if (is_so) return;
  std::printf("FAILED: %s\n", what.c_str());
  num_failures++;
}

// What a call throws, in words; "" if nothing.
template <class Call>
std::string thrown_by(const Call &call) {
  try {
    call();
  } catch (const std::exception &error) {
    return error.what();
  }
  return "";
}

// Computes nothing, and throws in its n-th task.
class FailingRank : public Rank {
public:
  explicit FailingRank(int fails_at) : tasks_left_(fails_at) {}

  void begin_step(uint64_t) override {}
  void run(const dualpipe::Task &) override {
    if (tasks_left_-- == 0) throw std::runtime_error("no more memory, as planned");
  }
  void finish_step() override { was_finished = true; }
  void update() override {}
  const std::vector<Place> &copies() const override { return no_copies_; }
  std::vector<float> parameters(size_t) override { return {}; }
  std::vector<float> grads(size_t) override { return {}; }
  std::vector<double> losses() override { return {1.0}; }
  std::vector<float> loads() override { return {1.0f}; }

  bool was_finished = false;

private:
  int tasks_left_;
  std::vector<Place> no_copies_;
};

constexpr int never = 1 << 30;

void a_rank_s_own_words_come_out(const char *schedule, uint32_t failing, int fails_at) {
  const Options options = Options::parse({"--schedule", schedule, "--data", "unused"});
  std::vector<std::unique_ptr<Rank>> ranks;
  for (uint32_t rank = 0; rank < options.num_ranks; rank++) {
    ranks.push_back(std::make_unique<FailingRank>(rank == failing ? fails_at : never));
  }
  const FailingRank *const other = static_cast<FailingRank *>(ranks[(failing + 1) % options.num_ranks].get());
  Pipeline pipeline(create_schedule(options), options, options.shape, std::move(ranks));
  if (fails_at == never) {
    expect(pipeline.step(0) == 4.0 && other->was_finished, "a step that nobody fails in");
    return;
  }
  const std::string words = thrown_by([&] { pipeline.step(0); });
  expect(words == "no more memory, as planned", std::string(schedule) + ": told was: " + words);
  expect(!other->was_finished, "a failed step is not finished");
}

void a_lost_copy_is_missed() {
  ThreadReduction reduction{std::chrono::milliseconds(20)};
  std::vector<float> zero = {1, 2}, one = {10, 20};
  reduction.begin(0, 3, 1, zero);
  const std::string words = thrown_by([&] { reduction.finish(0, 3, 1, zero); });
  expect(words == "the gradients of stage 3 in direction 1 did not come in time from rank 1", words);
  reduction.begin(1, 3, 0, one);
  reduction.finish(0, 3, 1, zero);
  reduction.finish(1, 3, 0, one);
  expect(zero == one && zero == std::vector<float>({11, 22}), "both have the sum");
}

} // namespace

int main() {
  for (const char *schedule : schedule_names) {
    a_rank_s_own_words_come_out(schedule, 0, never);
    for (uint32_t failing = 0; failing < 4; failing++) {
      for (const int fails_at : {0, 5, 12}) a_rank_s_own_words_come_out(schedule, failing, fails_at);
    }
  }
  a_lost_copy_is_missed();
  std::printf("pipeline_test: %d failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
