// Trains the model of examples/cpp_trainer with a schedule of libdualpipe, each rank a process, over MPI.
#include "mpi_reduction.hpp"
#include "mpi_transport.hpp"
#include "peers.hpp"

#include <dualpipe.hpp>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <unistd.h>

#include "data.hpp"
#include "host_rank.hpp"
#include "options.hpp"
#include "report.hpp"
#include "sequential.hpp"

namespace trainer {
namespace {

// MPI_Init and MPI_Finalize have no deadline of their own: after so long a signal ends the process.
constexpr unsigned start_timeout_s = 60;

// A task of a rank, counted from 0 over all steps.
struct Planned {
  int rank = -1, task = -1;

  static Planned parse(const std::string &option, const std::string &text) {
    Planned planned;
    char left = 0;
    if (std::sscanf(text.c_str(), "%d:%d%c", &planned.rank, &planned.task, &left) == 2 && planned.rank >= 0 &&
        planned.task >= 0) {
      return planned;
    }
    throw UsageError(option + " " + text + ": must be RANK:TASK, two numbers from 0");
  }

  bool is_at(uint32_t rank_now, int task_now) const { return rank == static_cast<int>(rank_now) && task == task_now; }
};

// The options of examples/cpp_trainer, and two more.
struct MpiOptions {
  Options trainer;
  Planned fails, dies;

  static MpiOptions parse(std::vector<std::string> arguments, int num_processes) {
    MpiOptions o;
    for (const auto &[option, planned] : {std::pair("--fail", &o.fails), std::pair("--die", &o.dies)}) {
      const auto found = std::find(arguments.begin(), arguments.end(), option);
      if (found == arguments.end()) continue;
      if (found + 1 == arguments.end()) throw UsageError(std::string(option) + ": needs a value");
      *planned = Planned::parse(option, found[1]);
      arguments.erase(found, found + 2);
    }
    arguments.insert(arguments.begin(), {"--ranks", std::to_string(num_processes)});
    o.trainer = Options::parse(arguments);
    if (o.trainer.num_ranks != static_cast<uint32_t>(num_processes)) {
      throw UsageError("--ranks " + std::to_string(o.trainer.num_ranks) + ": there are " +
                       std::to_string(num_processes) + " processes, one is needed for each rank: mpirun -n " +
                       std::to_string(o.trainer.num_ranks));
    }
    if (o.trainer.device != "cpu") throw UsageError("--device " + o.trainer.device + ": here only cpu");
    return o;
  }
};

// All that a process has. After a failure it is not destroyed: MPI may still have some of its memory.
class Job {
public:
  explicit Job(const MpiOptions &options)
      : options_(options), schedule_(create_schedule(options.trainer)), shape_(shape_of(options, schedule_)),
        data_(options.trainer.data, shape_, options.trainer.seed),
        peers_(MPI_COMM_WORLD, std::chrono::seconds(options.trainer.timeout_s)), reduction_(peers_),
        rank_(schedule_, peers_.rank(), options.trainer, shape_, data_, reduction_), executor_(create_executor()) {}

  void train() {
    print_header();
    const uint32_t num_steps = options_.trainer.num_steps;
    for (uint32_t step = 0; step < num_steps; step++) {
      const double loss = run_step(step);
      rank_.update();
      if (is_first() && (step % std::max(num_steps / 8, 1u) == 0 || step + 1 == num_steps)) {
        std::printf("  step %4u   loss %.6f\n", step, loss);
        std::fflush(stdout);
      }
    }
    const std::vector<float> loads = reduction_.over_all(rank_.loads(), "the loads");
    if (is_first()) print_placement(loads, shape_, options_.trainer.num_gpus);
  }

  // One more step against a sequential run with the same parameters. Whether all gradients are the same bits.
  bool check() {
    const Options &o = options_.trainer;
    Sequential sequential(shape_, data_, o.seed);
    for (uint32_t stage = 0; stage < shape_.num_stages; stage++) {
      std::vector<float> &parameters = sequential.stage(stage).parameters();
      for (size_t copy = 0; copy < rank_.copies().size(); copy++) {
        if (rank_.copies()[copy].stage == stage) parameters = rank_.parameters(copy);
      }
      parameters = reduction_.from_one(parameters, schedule_.rank_of(0, stage), "the parameters");
    }
    const double loss = run_step(o.num_steps);
    const double reference = sequential.step(o.num_steps, o.num_microbatches, schedule_.describe().num_directions);
    std::vector<double> found = {0, 0}; // gradients, and those that are equal
    for (size_t copy = 0; copy < rank_.copies().size(); copy++) {
      const std::vector<float> &expected = sequential.stage(rank_.copies()[copy].stage).grads();
      const std::vector<float> grads = rank_.grads(copy);
      for (size_t i = 0; i < expected.size(); i++) {
        found[0] += 1;
        found[1] += grads.at(i) == expected[i];
      }
    }
    found = reduction_.over_all(found, "the comparisons");
    const bool agrees = found[0] == found[1] && loss == reference;
    if (is_first()) {
      std::printf("\nA step against a sequential run: loss %.9f, sequentially %.9f;\n"
                  "  %.0f of %.0f gradients of all ranks are equal to the bit: %s\n",
                  loss, reference, found[1], found[0], agrees ? "they agree" : "THEY DIFFER");
    }
    return agrees;
  }

  Peers &peers() { return peers_; }

private:
  bool is_first() const { return peers_.rank() == 0; }

  static Shape shape_of(const MpiOptions &options, const dualpipe::Schedule &schedule) {
    Shape shape = options.trainer.shape;
    shape.num_stages = schedule.describe().num_stages;
    return shape;
  }

  dualpipe::Executor create_executor() {
    const dualpipe::Program program = dualpipe::Program::create(schedule_, peers_.rank());
    dualpipe::ExecutorOptions how;
    how.tensors = {dualpipe::TensorSpec(dualpipe::DType::f32, {shape_.num_tokens, shape_.width})};
    how.timeout = std::chrono::seconds(options_.trainer.timeout_s);
    how.transport = std::make_shared<MpiTransport>(peers_, schedule_, 1);
    return dualpipe::Executor::create(program, how);
  }

  // All of a step but the update; its loss, the mean over micro-batches.
  double run_step(uint64_t step) {
    rank_.begin_step(step);
    executor_.step([this](const dualpipe::Task &task) { run(task); });
    rank_.finish_step();
    const std::vector<double> losses = reduction_.over_all(rank_.losses(), "the losses");
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  }

  void run(const dualpipe::Task &task) {
    const int number = num_tasks_++;
    if (options_.dies.is_at(peers_.rank(), number)) std::raise(SIGKILL);
    if (options_.fails.is_at(peers_.rank(), number)) {
      throw std::runtime_error("rank " + std::to_string(peers_.rank()) + " fails as --fail asks");
    }
    rank_.run(task);
  }

  void print_header() const {
    const Options &o = options_.trainer;
    if (!is_first()) return;
    std::printf("A language model of bytes, %u stages, %u experts in each block\n", shape_.num_stages,
                shape_.num_experts);
    std::printf("  text       %zu bytes\n", data_.size());
    std::printf("  step       %u micro-batches of %u tokens\n", o.num_microbatches, shape_.num_tokens);
    std::printf("  schedule   %s, %u ranks, each a process%s\n\n", o.schedule.c_str(), o.num_ranks,
                o.overlaps ? "" : ", F&B pairs one half after the other");
  }

  MpiOptions options_;
  dualpipe::Schedule schedule_;
  Shape shape_;
  Data data_;
  Peers peers_;
  MpiReduction reduction_;
  HostRank rank_;
  dualpipe::Executor executor_;
  int num_tasks_ = 0;
};

// All processes are refused for the same reason: the first says it.
int refuse(int rank, const std::exception &error) {
  if (rank == 0) std::fprintf(stderr, "mpi_trainer: %s\n", error.what());
  return 2;
}

int run(const std::vector<std::string> &arguments) {
  int rank = 0, num_processes = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &num_processes);
  std::unique_ptr<Job> job;
  bool checks = false;
  try {
    const MpiOptions options = MpiOptions::parse(arguments, num_processes);
    checks = options.trainer.checks;
    if (options.trainer.asks_for_help) {
      if (rank == 0) {
        std::printf("mpirun -n RANKS trainer [options]\n%s"
                    "  --fail RANK:TASK    this task of this rank fails; they are counted from 0 over all steps\n"
                    "  --die RANK:TASK     here the rank is killed, without a word\n",
                    Options::usage());
      }
      return 0;
    }
    job = std::make_unique<Job>(options);
  } catch (const std::exception &error) {
    return refuse(rank, error);
  }
  try {
    job->train();
    return !checks || job->check() ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "mpi_trainer: %s\n", error.what());
    std::fflush(nullptr);
    job->peers().leave();
    _exit(1); // others may be gone, which MPI_Finalize does not survive
  }
}

} // namespace
} // namespace trainer

int main(int argc, char **argv) {
  int provided = 0;
  alarm(trainer::start_timeout_s);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  alarm(0);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  const int code = trainer::run({argv + 1, argv + argc});
  alarm(trainer::start_timeout_s);
  MPI_Finalize();
  return code;
}
