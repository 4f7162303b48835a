// A rank that computes on a CUDA device. All ranks share one device; each has two streams of its own, which the
// executor borrows: tasks only enqueue there.
#pragma once

#include <dualpipe.hpp>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../data.hpp"
#include "../optimizer.hpp"
#include "../options.hpp"
#include "../rank.hpp"
#include "cuda_stage.hpp"

namespace trainer::cuda {

// What the ranks of the process share.
struct Shared {
  explicit Shared(const Options &options) : device(options.device_index, options.kernels) {}

  CublasLibrary cublas; // the first: without it nothing else is begun
  Device device;

  // A stage copy's gradients, and the stream that they are made on: for the rank that has the other copy.
  struct Copy {
    const Memory *grads;
    const Stream *stream;
  };
  std::map<std::pair<uint32_t, uint32_t>, Copy> copies; // by direction and stage
};

class CudaRank : public Rank {
public:
  // The device's context is current.
  CudaRank(const dualpipe::Schedule &schedule, uint32_t rank, const Options &options, const Shape &shape,
           const Data &data, std::shared_ptr<Shared> shared)
      : shared_(std::move(shared)), info_(schedule.describe()), options_(options), shape_(shape), data_(data),
        places_(places(schedule, rank)), own_(std::make_unique<Own>(*shared_, options)) {
    for (const Place &place : places_) {
      own_->copies.push_back(std::make_unique<Copy>(shared_->device, shape, place, num_microbatches()));
      const CudaStage &stage = own_->copies.back()->stage;
      const std::vector<float> parameters = initial_parameters(stage.layout(), place.stage, options.seed);
      stage.parameters().upload(parameters, own_->compute);
      stage.loads().clear(own_->compute);
      for (const Memory *moments : {&own_->copies.back()->first, &own_->copies.back()->second}) {
        moments->clear(own_->compute);
      }
      own_->compute.wait(timeout());
      shared_->copies[{place.direction, place.stage}] = {&stage.grads(), &own_->compute};
    }
  }

  ~CudaRank() override {
    try {
      const Current current(shared_->device);
      own_.reset();
    } catch (const std::exception &) {
      own_.release(); // the device does not answer: what is left there goes with the process
    }
  }

  void begin_step(uint64_t step) override {
    const Current current(shared_->device);
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      if (copy->peer != dualpipe::none) twin(*copy).stream->wait(timeout()); // the other copy read these gradients
      copy->peer = dualpipe::none;
      copy->stage.grads().clear(own_->compute);
      copy->losses.clear(own_->compute);
      if (copy->stage.layout().is_first || copy->stage.layout().is_last) upload_batches(*copy, step);
    }
  }

  void run(const dualpipe::Task &task) override {
    const Current current(shared_->device);
    const Queue q(shared_->device, own_->cublas, task.compute_stream());
    switch (task.kind()) {
    case dualpipe::OpKind::F: return forward(q, *task.forward());
    case dualpipe::OpKind::I: return backward_input(q, *task.backward());
    case dualpipe::OpKind::W: return backward_weight(q, *task.backward());
    case dualpipe::OpKind::B:
      backward_input(q, *task.backward());
      return backward_weight(q, *task.backward());
    case dualpipe::OpKind::FB:
      if (options_.overlaps) return overlapped(q, task);
      forward(q, *task.forward());
      backward_input(q, *task.backward());
      return backward_weight(q, *task.backward());
    case dualpipe::OpKind::reduce_grads: // summed after the step: a task must not wait for another rank's
      copy_of(task.op().backward).peer = task.reduce_peer();
      return;
    }
    throw std::logic_error("a task of a kind that this trainer does not know");
  }

  // All ranks' steps are done when this is called.
  void finish_step() override {
    const Current current(shared_->device);
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      if (copy->peer == dualpipe::none) continue;
      const Shared::Copy other = twin(*copy);
      other.stream->wait(timeout());
      const Address own = copy->stage.grads().at();
      const Address first = copy->place.direction == 0 ? own : other.grads->at();
      const Address second = copy->place.direction == 0 ? other.grads->at() : own;
      queue().add(first, second, copy->sums.at(), copy->stage.layout().size);
    }
    own_->compute.wait(timeout());
  }

  void update() override {
    const Current current(shared_->device);
    const AdamFactors factors(options_.rate, ++num_updates_);
    const float scale = 1.0f / static_cast<float>(info_.num_microbatches);
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      const uint64_t size = copy->stage.layout().size;
      queue().launch("adam", size, copy->stage.parameters().at(), final_grads(*copy).at(), copy->first.at(),
                     copy->second.at(), scale, factors.rate, factors.second_scale, AdamFactors::beta_1,
                     AdamFactors::beta_2, AdamFactors::epsilon, size);
    }
  }

  const std::vector<Place> &copies() const override { return places_; }

  std::vector<float> parameters(size_t copy) override {
    const CudaStage &stage = own_->copies[copy]->stage;
    return download<float>(stage.parameters(), stage.layout().size);
  }

  std::vector<float> grads(size_t copy) override {
    return download<float>(final_grads(*own_->copies[copy]), own_->copies[copy]->stage.layout().size);
  }

  std::vector<double> losses() override {
    std::vector<double> losses(info_.num_microbatches);
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      if (!copy->stage.layout().is_last) continue;
      const std::vector<double> own = download<double>(copy->losses, num_microbatches());
      for (uint32_t i = 0; i < own.size(); i++) losses[global_microbatch(info_, copy->place.direction, i)] = own[i];
    }
    return losses;
  }

  std::vector<float> loads() override {
    std::vector<float> loads(size_t{shape_.num_layers()} * shape_.num_experts);
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      const size_t count = size_t{shape_.num_blocks} * shape_.num_experts;
      const std::vector<uint64_t> own = download<uint64_t>(copy->stage.loads(), count);
      for (size_t i = 0; i < count; i++) loads[copy->place.stage * count + i] += static_cast<float>(own[i]);
    }
    return loads;
  }

  std::optional<dualpipe::CudaOptions> cuda() const override {
    dualpipe::CudaOptions cuda;
    cuda.device = options_.device_index;
    cuda.compute_stream = own_->compute.get();
    cuda.comm_stream = own_->comm.get();
    cuda.is_timed = 1;
    return cuda;
  }

private:
  struct Copy {
    Copy(const Device &device, const Shape &shape, Place place, uint32_t num_microbatches)
        : place(place), stage(device, shape, place.stage), sums(device, bytes(stage)), first(device, bytes(stage)),
          second(device, bytes(stage)), contexts(device, size_t{num_microbatches} * shape.num_tokens * shape.context),
          targets(device, size_t{num_microbatches} * shape.num_tokens),
          losses(device, num_microbatches * sizeof(double)) {}

    static size_t bytes(const CudaStage &stage) { return stage.layout().size * sizeof(float); }

    Place place;
    CudaStage stage;
    Memory sums;              // the gradients of both copies of the stage
    Memory first, second;     // Adam's moments
    Memory contexts, targets; // of the step's micro-batches
    Memory losses;            // f64, of each micro-batch
    uint32_t peer = dualpipe::none;
  };

  // What goes while the context is current.
  struct Own {
    Own(const Shared &shared, const Options &options)
        : compute(shared.device), comm(shared.device), event(shared.device), cublas(shared.cublas, compute) {
      if (options.overlaps) overlap = dualpipe::Overlap::create(options.device_index);
    }

    Stream compute, comm;
    Event event;
    Cublas cublas;
    dualpipe::Overlap overlap;
    std::vector<std::unique_ptr<Copy>> copies;
  };

  void forward(const Queue &q, const dualpipe::TaskPass &task) {
    Copy &copy = copy_of(task.pass());
    StageBuffers &s = begin_forward(q, copy, task);
    for (uint32_t i = 0; i < copy.stage.num_blocks(); i++) {
      copy.stage.block(i).dense_f(q, s.blocks[i]);
      copy.stage.block(i).dispatch_f(q, s.blocks[i]);
      copy.stage.block(i).experts_f(q, s.blocks[i]);
      copy.stage.block(i).combine_f(q, s.blocks[i]);
    }
    copy.stage.end_forward(q, s);
  }

  void backward_input(const Queue &q, const dualpipe::TaskPass &task) {
    Copy &copy = copy_of(task.pass());
    StageBuffers &s = begin_backward(q, copy, task);
    for (uint32_t i = copy.stage.num_blocks(); i-- > 0;) {
      copy.stage.block(i).combine_b(q, s.blocks[i]);
      copy.stage.block(i).experts_b(q, s.blocks[i]);
      copy.stage.block(i).dispatch_b(q, s.blocks[i]);
      copy.stage.block(i).dense_b(q, s.blocks[i]);
    }
  }

  void backward_weight(const Queue &q, const dualpipe::TaskPass &task) {
    Copy &copy = copy_of(task.pass());
    const StageBuffers &s = copy.stage.kept(task.pass().microbatch);
    for (uint32_t i = copy.stage.num_blocks(); i-- > 0;) {
      copy.stage.block(i).experts_w(q, s.blocks[i]);
      copy.stage.block(i).dense_w(q, s.blocks[i]);
    }
    copy.stage.end_backward(q, task.pass().microbatch);
  }

  // Both halves, part by part on the task's two streams: the library says when, and puts the waits between them.
  void overlapped(const Queue &q, const dualpipe::Task &task) {
    Copy &to = copy_of(task.forward()->pass()), &from = copy_of(task.backward()->pass());
    StageBuffers &f = begin_forward(q, to, *task.forward());
    StageBuffers &b = begin_backward(q, from, *task.backward());
    const uint32_t num_blocks = shape_.num_blocks;
    own_->event.order(task.compute_stream(), task.comm_stream()); // after what the two lines above have enqueued
    own_->overlap.run(task, num_blocks, num_blocks, [&](dualpipe::Part part, uint32_t block, void *stream) {
      const Queue on = q.on(stream);
      const CudaBlock &forward = to.stage.block(block), &backward = from.stage.block(block);
      switch (part) {
      case dualpipe::Part::attention_F: return forward.dense_f(on, f.blocks[block]);
      case dualpipe::Part::dispatch_F: return forward.dispatch_f(on, f.blocks[block]);
      case dualpipe::Part::mlp_F: return forward.experts_f(on, f.blocks[block]);
      case dualpipe::Part::combine_F: return forward.combine_f(on, f.blocks[block]);
      case dualpipe::Part::combine_B: return backward.combine_b(on, b.blocks[block]);
      case dualpipe::Part::mlp_B: return backward.experts_b(on, b.blocks[block]);
      case dualpipe::Part::mlp_W: return backward.experts_w(on, b.blocks[block]);
      case dualpipe::Part::dispatch_B: return backward.dispatch_b(on, b.blocks[block]);
      case dualpipe::Part::attention_B: return backward.dense_b(on, b.blocks[block]);
      case dualpipe::Part::attention_W: return backward.dense_w(on, b.blocks[block]);
      }
    });
    own_->event.order(task.comm_stream(), task.compute_stream());
    to.stage.end_forward(q, f);
    from.stage.end_backward(q, task.backward()->pass().microbatch);
  }

  StageBuffers &begin_forward(const Queue &q, Copy &copy, const dualpipe::TaskPass &task) {
    const uint32_t microbatch = task.pass().microbatch;
    BatchAddress batch;
    batch.contexts = copy.contexts.at() + size_t{microbatch} * shape_.num_tokens * shape_.context;
    batch.targets = copy.targets.at() + size_t{microbatch} * shape_.num_tokens;
    batch.loss = copy.losses.at() + microbatch * sizeof(double);
    return copy.stage.begin_forward(q, microbatch, batch, first(task.inputs()), first(task.outputs()));
  }

  StageBuffers &begin_backward(const Queue &q, Copy &copy, const dualpipe::TaskPass &task) {
    return copy.stage.begin_backward(q, task.pass().microbatch, first(task.output_grads()), first(task.input_grads()));
  }

  // The one tensor of a boundary; 0 at the model's ends.
  template <class Tensors>
  static Address first(const Tensors &tensors) {
    return tensors.empty() ? 0 : reinterpret_cast<uintptr_t>(tensors[0].data());
  }

  void upload_batches(Copy &copy, uint64_t step) {
    std::vector<uint8_t> contexts, targets;
    for (uint32_t i = 0; i < num_microbatches(); i++) {
      const Batch batch = data_.batch(step, global_microbatch(info_, copy.place.direction, i));
      contexts.insert(contexts.end(), batch.contexts.begin(), batch.contexts.end());
      targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
    }
    copy.contexts.upload(contexts, own_->compute);
    copy.targets.upload(targets, own_->compute);
    own_->compute.wait(timeout());
  }

  template <class Number>
  std::vector<Number> download(const Memory &memory, size_t count) {
    const Current current(shared_->device);
    return memory.download<Number>(count, own_->compute, timeout());
  }

  Copy &copy_of(const dualpipe::Pass &pass) {
    for (const std::unique_ptr<Copy> &copy : own_->copies) {
      if (copy->place.direction == pass.direction && copy->place.stage == pass.stage) return *copy;
    }
    throw std::logic_error("a task for a stage that this rank does not have");
  }

  Shared::Copy twin(const Copy &copy) const {
    return shared_->copies.at({1 - copy.place.direction, copy.place.stage});
  }
  const Memory &final_grads(const Copy &copy) const {
    return copy.peer == dualpipe::none ? copy.stage.grads() : copy.sums;
  }

  Queue queue() const { return Queue(shared_->device, own_->cublas, own_->compute.get()); }
  uint32_t num_microbatches() const { return info_.num_microbatches / info_.num_directions; }
  std::chrono::nanoseconds timeout() const { return std::chrono::seconds(options_.timeout_s); }

  std::shared_ptr<Shared> shared_;
  dualpipe::ScheduleInfo info_;
  Options options_;
  Shape shape_;
  const Data &data_;
  std::vector<Place> places_;
  std::unique_ptr<Own> own_;
  uint64_t num_updates_ = 0;
};

// All ranks, on the device that the options name. `data` outlives them.
inline std::vector<std::unique_ptr<Rank>> create_ranks(const dualpipe::Schedule &schedule, const Options &options,
                                                       const Shape &shape, const Data &data) {
  const dualpipe::CudaInfo info = dualpipe::cuda_available(); // or says what is missing
  if (options.device_index >= info.num_devices) {
    throw UsageError("--device-index " + std::to_string(options.device_index) + ": there are devices 0 to " +
                     std::to_string(info.num_devices - 1));
  }
  if (options.kernels.empty()) throw UsageError("--kernels: needed, the folder with the kernels' PTX");
  const auto shared = std::make_shared<Shared>(options);
  const Current current(shared->device);
  std::vector<std::unique_ptr<Rank>> ranks;
  for (uint32_t rank = 0; rank < options.num_ranks; rank++) {
    ranks.push_back(std::make_unique<CudaRank>(schedule, rank, options, shape, data, shared));
  }
  return ranks;
}

} // namespace trainer::cuda
