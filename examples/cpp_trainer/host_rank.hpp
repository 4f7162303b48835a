// A rank that computes on the CPU.
#pragma once

#include <dualpipe.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "data.hpp"
#include "optimizer.hpp"
#include "options.hpp"
#include "overlap.hpp"
#include "rank.hpp"
#include "reduce.hpp"
#include "stage.hpp"

namespace trainer {

class HostRank : public Rank {
public:
  // `data` and `reduction` outlive it.
  HostRank(const dualpipe::Schedule &schedule, uint32_t rank, const Options &options, const Shape &shape,
           const Data &data, Reduction &reduction)
      : info_(schedule.describe()), shape_(shape), data_(data), reduction_(reduction), places_(places(schedule, rank)),
        losses_(info_.num_microbatches) {
    for (const Place &place : places_) {
      auto stage = std::make_unique<Stage>(shape, place.stage, options.seed);
      Adam optimizer(stage->layout().size, options.rate);
      copies_.push_back({place, std::move(stage), std::move(optimizer), {}, dualpipe::none});
    }
    if (options.overlaps) helper_ = std::make_unique<Helper>(std::chrono::seconds(options.timeout_s));
  }

  void begin_step(uint64_t step) override {
    const uint32_t num_microbatches = info_.num_microbatches / info_.num_directions;
    for (Copy &copy : copies_) {
      const Layout &layout = copy.stage->layout();
      std::fill(copy.stage->grads().begin(), copy.stage->grads().end(), 0.0f);
      copy.batches.clear();
      copy.peer = dualpipe::none;
      for (uint32_t i = 0; i < num_microbatches && (layout.is_first || layout.is_last); i++) {
        copy.batches.push_back(data_.batch(step, global_microbatch(info_, copy.place.direction, i)));
      }
    }
  }

  void run(const dualpipe::Task &task) override {
    switch (task.kind()) {
    case dualpipe::OpKind::F: return forward(*task.forward());
    case dualpipe::OpKind::I: return backward_input(*task.backward());
    case dualpipe::OpKind::W: return backward_weight(*task.backward());
    case dualpipe::OpKind::B:
      backward_input(*task.backward());
      return backward_weight(*task.backward());
    case dualpipe::OpKind::FB: return pair(*task.forward(), *task.backward());
    case dualpipe::OpKind::reduce_grads: {
      Copy &copy = copy_of(task.op().backward);
      copy.peer = task.reduce_peer();
      return reduction_.begin(copy.place.direction, copy.place.stage, copy.peer, copy.stage->grads());
    }
    }
    throw std::logic_error("a task of a kind that this trainer does not know");
  }

  void finish_step() override {
    for (Copy &copy : copies_) {
      if (copy.peer == dualpipe::none) continue;
      reduction_.finish(copy.place.direction, copy.place.stage, copy.peer, copy.stage->grads());
    }
  }

  void update() override {
    const float scale = 1.0f / static_cast<float>(info_.num_microbatches);
    for (Copy &copy : copies_) copy.optimizer.apply(copy.stage->parameters(), copy.stage->grads(), scale);
  }

  const std::vector<Place> &copies() const override { return places_; }
  std::vector<float> parameters(size_t copy) override { return copies_[copy].stage->parameters(); }
  std::vector<float> grads(size_t copy) override { return copies_[copy].stage->grads(); }
  std::vector<double> losses() override { return losses_; }

  std::vector<float> loads() override {
    std::vector<float> loads(size_t{shape_.num_layers()} * shape_.num_experts);
    for (const Copy &copy : copies_) {
      const std::vector<float> &own = copy.stage->loads();
      for (size_t i = 0; i < own.size(); i++) loads[copy.place.stage * own.size() + i] += own[i];
    }
    return loads;
  }

private:
  struct Copy {
    Place place;
    std::unique_ptr<Stage> stage;
    Adam optimizer;
    std::vector<Batch> batches; // of the step, at the model's ends
    uint32_t peer;              // has the stage's other copy, if its gradients are to be summed with this one's
  };

  void forward(const dualpipe::TaskPass &task) {
    Copy &copy = copy_of(task.pass());
    copy.stage->forward(task.pass().microbatch, batch(copy, task), input(task), output(task));
    note_loss(copy, task);
  }

  void backward_input(const dualpipe::TaskPass &task) {
    copy_of(task.pass()).stage->backward_input(task.pass().microbatch, output_grad(task), input_grad(task));
  }

  void backward_weight(const dualpipe::TaskPass &task) {
    copy_of(task.pass()).stage->backward_weight(task.pass().microbatch);
  }

  void pair(const dualpipe::TaskPass &f, const dualpipe::TaskPass &b) {
    if (helper_ == nullptr) {
      forward(f);
      backward_input(b);
      return backward_weight(b);
    }
    Copy &to = copy_of(f.pass()), &from = copy_of(b.pass());
    StageState &state_f = to.stage->begin_forward(f.pass().microbatch, batch(to, f), input(f), output(f));
    StageState &state_b = from.stage->begin_backward(b.pass().microbatch, output_grad(b), input_grad(b));
    run_overlapped(*to.stage, state_f, *from.stage, state_b, *helper_);
    to.stage->end_forward(state_f);
    from.stage->end_backward(b.pass().microbatch);
    note_loss(to, f);
  }

  Copy &copy_of(const dualpipe::Pass &pass) {
    for (Copy &copy : copies_) {
      if (copy.place.direction == pass.direction && copy.place.stage == pass.stage) return copy;
    }
    throw std::logic_error("a task for a stage that this rank does not have");
  }

  static const Batch *batch(const Copy &copy, const dualpipe::TaskPass &task) {
    return copy.batches.empty() ? nullptr : &copy.batches.at(task.pass().microbatch);
  }

  void note_loss(Copy &copy, const dualpipe::TaskPass &task) {
    if (!copy.stage->layout().is_last) return;
    const uint32_t microbatch = task.pass().microbatch;
    losses_[global_microbatch(info_, copy.place.direction, microbatch)] = copy.stage->loss(microbatch);
  }

  // The one tensor of a boundary, or nullptr at the model's ends.
  static const float *input(const dualpipe::TaskPass &task) { return first(task.inputs()); }
  static const float *output_grad(const dualpipe::TaskPass &task) { return first(task.output_grads()); }
  static float *output(const dualpipe::TaskPass &task) { return first_to_fill(task.outputs()); }
  static float *input_grad(const dualpipe::TaskPass &task) { return first_to_fill(task.input_grads()); }

  static const float *first(const dualpipe::Tensors &tensors) {
    return tensors.empty() ? nullptr : tensors[0].values<float>().data();
  }
  static float *first_to_fill(const dualpipe::OutTensors &tensors) {
    return tensors.empty() ? nullptr : tensors[0].values<float>().data();
  }

  dualpipe::ScheduleInfo info_;
  Shape shape_;
  const Data &data_;
  Reduction &reduction_;
  std::vector<Place> places_;
  std::vector<Copy> copies_;
  std::vector<double> losses_;
  std::unique_ptr<Helper> helper_; // none: pairs are not overlapped
};

} // namespace trainer
