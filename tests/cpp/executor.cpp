// A trainer in C++: ranks on std::thread, an object per rank, exceptions turned into failures of the step.
#include <dualpipe.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../c/check.h"

namespace {

const uint32_t num_ranks = 3;
const uint32_t num_microbatches = 7;

// Stage s adds s + 1 to what it gets; the last sums up.
class Rank {
public:
  explicit Rank(bool fails) : fails_(fails) {}

  static int32_t run(void *self, const dualpipe_task *task) noexcept {
    try {
      static_cast<Rank *>(self)->run(*task);
      return 0;
    } catch (const std::exception &error) {
      dualpipe_task_set_error(error.what());
      return 1;
    }
  }

  float sum = 0;

private:
  void run(const dualpipe_task &task) {
    if (fails_ && task.backward != nullptr) throw std::runtime_error("no more memory, as planned");
    if (task.forward != nullptr) forward(*task.forward);
    if (task.backward != nullptr && task.backward->num_input_grads > 0) {
      *data(task.backward->input_grads[0]) = 1;
    }
  }

  void forward(const dualpipe_task_pass &pass) {
    const float input = pass.num_inputs > 0 ? *data(pass.inputs[0]) : static_cast<float>(pass.pass.microbatch);
    const float output = input + static_cast<float>(pass.pass.stage + 1);
    if (pass.num_outputs > 0) {
      *data(pass.outputs[0]) = output;
    } else {
      sum += output;
    }
  }

  static float *data(const dualpipe_tensor &tensor) { return static_cast<float *>(tensor.dl.data); }

  bool fails_;
};

// One step of DualPipeV on all ranks; what each returned, in words if it failed.
std::vector<std::string> step(std::vector<Rank> &ranks) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  options.kind = DUALPIPE_KIND_DUALPIPE_V;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  dualpipe_schedule_t schedule = nullptr;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  const dualpipe_tensor_spec one_float = {{2, 32, 1}, 0, {0, 0, 0, 0, 0, 0, 0, 0}};
  dualpipe_executor_options how = DUALPIPE_EXECUTOR_OPTIONS_INIT;
  how.num_tensors = 1;
  how.tensors = &one_float;
  CHECK_OK(dualpipe_inproc_create(num_ranks, &how.inproc));

  std::vector<std::string> said(num_ranks);
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < num_ranks; rank++) {
    threads.emplace_back([&, rank] {
      dualpipe_program_t program = nullptr;
      dualpipe_executor_t executor = nullptr;
      CHECK_OK(dualpipe_program_create(schedule, rank, &program));
      CHECK_OK(dualpipe_executor_create(program, &how, &executor));
      if (dualpipe_executor_step(executor, Rank::run, &ranks[rank]) != DUALPIPE_OK) said[rank] = dualpipe_last_error();
      CHECK_OK(dualpipe_executor_free(executor));
      CHECK_OK(dualpipe_program_free(program));
    });
  }
  for (std::thread &thread : threads) thread.join();
  CHECK_OK(dualpipe_inproc_free(how.inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
  return said;
}

} // namespace

int main() {
  std::vector<Rank> ranks(num_ranks, Rank(false));
  for (const std::string &text : step(ranks)) CHECK(text.empty());
  // The last of the 6 stages is on rank 0: micro-batches 0 to 6, and 1 + 2 + ... + 6 for each.
  CHECK(ranks[0].sum == 21 + 7 * 21 && ranks[1].sum == 0);

  std::vector<Rank> failing = {Rank(false), Rank(true), Rank(false)};
  for (const std::string &text : step(failing)) {
    CHECK(text.find("rank 1, instruction ") != std::string::npos);
    CHECK(text.find("no more memory, as planned") != std::string::npos);
  }
  return 0;
}
