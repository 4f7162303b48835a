// A trainer in C++ on CUDA: a stream that an object owns, tasks that only enqueue, exceptions turned into failures.
// With an argument there must be a driver.
#include <dlfcn.h>
#include <dualpipe.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../c/check.h"

namespace {

using Address = unsigned long long;

// A function of the driver, by its name and type, which throws when it fails.
template <typename... Arguments> class Call {
public:
  explicit Call(const char *name) : name_(name) {
    void *const symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL), name);
    std::memcpy(&function_, &symbol, sizeof symbol);
  }
  void operator()(Arguments... arguments) const {
    if (function_ == nullptr || function_(arguments...) != 0) throw std::runtime_error(name_);
  }

private:
  std::string name_;
  int (*function_)(Arguments...);
};

const uint32_t num_ranks = 2;

// A rank: stage s adds nothing to what it gets but its mark; the last one keeps it.
class Rank {
public:
  explicit Rank(bool fails) : fails_(fails), kept_(num_ranks * 4) {
    Call<void **, int>("cuDevicePrimaryCtxRetain")(&context_, 0);
    Call<void *>("cuCtxSetCurrent")(context_);
    Call<void **, unsigned>("cuStreamCreate")(&stream_, 1);
    Call<Address *, size_t>("cuMemAlloc_v2")(&memory_, kept_.size());
  }
  Rank(const Rank &) = delete;
  Rank &operator=(const Rank &) = delete;
  ~Rank() {
    Call<Address>("cuMemFree_v2")(memory_);
    Call<void *>("cuStreamDestroy_v2")(stream_);
    Call<int>("cuDevicePrimaryCtxRelease_v2")(0);
  }

  void *stream() const { return stream_; }

  const std::vector<unsigned char> &kept() {
    Call<void *, Address, size_t>("cuMemcpyDtoH_v2")(kept_.data(), memory_, kept_.size());
    return kept_;
  }

  static int32_t run(void *self, const dualpipe_task *task) noexcept {
    try {
      static_cast<Rank *>(self)->run(*task);
      return 0;
    } catch (const std::exception &error) {
      dualpipe_task_set_error(error.what());
      return 1;
    }
  }

private:
  void run(const dualpipe_task &task) {
    if (fails_ && task.backward != nullptr) throw std::runtime_error("no more memory, as planned");
    if (task.forward == nullptr) return;
    const dualpipe_task_pass &pass = *task.forward;
    const Address to = pass.num_outputs > 0 ? data(pass.outputs[0]) : memory_ + 4 * pass.pass.microbatch;
    if (pass.num_inputs > 0) {
      copy_(to, data(pass.inputs[0]), 4, task.compute_stream);
    } else {
      set_(to, 0, 4, task.compute_stream);
    }
    set_(to + pass.pass.stage, static_cast<unsigned char>(10 * pass.pass.microbatch + pass.pass.stage + 1), 1,
         task.compute_stream);
  }

  static Address data(const dualpipe_tensor &tensor) {
    CHECK(tensor.dl.device.device_type == 2 && tensor.dl.shape[0] == 4);
    return reinterpret_cast<Address>(tensor.dl.data);
  }

  bool fails_;
  std::vector<unsigned char> kept_;
  void *context_ = nullptr, *stream_ = nullptr;
  Address memory_ = 0;
  Call<Address, Address, size_t, void *> copy_{"cuMemcpyAsync"};
  Call<Address, unsigned char, size_t, void *> set_{"cuMemsetD8Async"};
};

// One step on all ranks; what each said, and what the last stage kept.
std::vector<std::string> step(bool fails, std::vector<unsigned char> &kept) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  options.kind = DUALPIPE_KIND_1F1B;
  options.num_ranks = num_ranks;
  options.num_microbatches = 2;
  dualpipe_schedule_t schedule = nullptr;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  dualpipe_inproc_t inproc = nullptr;
  CHECK_OK(dualpipe_inproc_create(num_ranks, &inproc));
  std::vector<std::string> said(num_ranks);
  std::vector<std::thread> threads;
  for (uint32_t number = 0; number < num_ranks; number++) {
    threads.emplace_back([&, number] {
      Rank rank(fails && number == 0);
      const dualpipe_tensor_spec four_bytes = {{1, 8, 1}, 1, {4, 0, 0, 0, 0, 0, 0, 0}};
      dualpipe_cuda_options cuda = DUALPIPE_CUDA_OPTIONS_INIT;
      cuda.compute_stream = rank.stream();
      dualpipe_executor_options how = DUALPIPE_EXECUTOR_OPTIONS_INIT;
      how.num_tensors = 1;
      how.tensors = &four_bytes;
      how.inproc = inproc;
      how.cuda = &cuda;
      dualpipe_program_t program = nullptr;
      dualpipe_executor_t executor = nullptr;
      CHECK_OK(dualpipe_program_create(schedule, number, &program));
      CHECK_OK(dualpipe_executor_create(program, &how, &executor));
      if (dualpipe_executor_step(executor, Rank::run, &rank) != DUALPIPE_OK) said[number] = dualpipe_last_error();
      CHECK_OK(dualpipe_executor_free(executor));
      CHECK_OK(dualpipe_program_free(program));
      if (number == num_ranks - 1) kept = rank.kept();
    });
  }
  for (std::thread &thread : threads) thread.join();
  CHECK_OK(dualpipe_inproc_free(inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
  return said;
}

} // namespace

int main(int argc, char **) {
  dualpipe_cuda_info info = DUALPIPE_CUDA_INFO_INIT;
  if (dualpipe_cuda_available(&info) != DUALPIPE_OK) {
    CHECK(argc == 1 && std::string(dualpipe_last_error()).find("cuda: ") != std::string::npos);
    return 0;
  }
  std::vector<unsigned char> kept;
  for (const std::string &text : step(false, kept)) CHECK(text.empty());
  CHECK((kept == std::vector<unsigned char>{1, 2, 0, 0, 11, 12, 0, 0}));
  for (const std::string &text : step(true, kept)) {
    CHECK(text.find("rank 0, instruction ") != std::string::npos);
    CHECK(text.find("no more memory, as planned") != std::string::npos);
  }
  return 0;
}
