/// Tasks: what an executor has its caller do.
#ifndef DUALPIPE_TASK_HPP
#define DUALPIPE_TASK_HPP

#include <dualpipe/op.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/task.h>
#include <dualpipe/tensor.hpp>

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace dualpipe {

/// A pass and its tensors, valid until the task returns. At the first stage there are no inputs and no input_grads, at
/// the last no outputs and no output_grads; whatever else a stage keeps from F to W is its own business.
class TaskPass {
public:
  explicit TaskPass(const dualpipe_task_pass &in_c) noexcept : in_c_(&in_c) {}

  /// Direction, stage, micro-batch, and which of the rank's copies.
  const Pass &pass() const noexcept { return in_c_->pass; }
  /// Activations from the previous stage, the same from F to W.
  Tensors inputs() const noexcept { return {in_c_->inputs, in_c_->num_inputs}; }
  /// Activations for the next stage, to be filled by F.
  OutTensors outputs() const noexcept { return {in_c_->outputs, in_c_->num_outputs}; }
  /// Gradients from the next stage.
  Tensors output_grads() const noexcept { return {in_c_->output_grads, in_c_->num_output_grads}; }
  /// Gradients for the previous stage, to be filled by B or I, or said to be absent.
  OutTensors input_grads() const noexcept { return {in_c_->input_grads, in_c_->num_input_grads}; }

private:
  const dualpipe_task_pass *in_c_;
};

/// A task to run now, valid until it returns. F reads inputs and writes outputs; B and I read inputs and output_grads
/// and write input_grads; W reads inputs and output_grads; FB does F and B of two passes, whose work may overlap.
/// reduce_grads has no tensors: every weight gradient of the copy in op().backward is final; sum it with that of the
/// same stage in the other direction, which is on reduce_peer.
class Task {
public:
  explicit Task(const dualpipe_task &in_c) noexcept
      : in_c_(&in_c), forward_(pass(in_c.forward)), backward_(pass(in_c.backward)) {}

  OpKind kind() const noexcept { return op().kind(); }
  Op op() const noexcept { return in_c_->op; }
  /// The pass to run forward: of F and FB. Otherwise nullptr.
  const TaskPass *forward() const noexcept { return forward_ ? &*forward_ : nullptr; }
  /// The pass to run backward: of B, I, W and FB. Otherwise nullptr.
  const TaskPass *backward() const noexcept { return backward_ ? &*backward_ : nullptr; }
  /// For reduce_grads the rank that has the other copy; else `none`.
  std::uint32_t reduce_peer() const noexcept { return in_c_->reduce_peer; }
  /// On a CUDA device, the CUstream to compute on: what the task reads is there in its order, and whoever reads what
  /// the task writes comes after it. nullptr on the host.
  void *compute_stream() const noexcept { return in_c_->compute_stream; }
  /// On a CUDA device, a stream for expert communication, if the executor has one.
  void *comm_stream() const noexcept { return in_c_->comm_stream; }
  /// As C has it.
  const dualpipe_task &in_c() const noexcept { return *in_c_; }

private:
  static std::optional<TaskPass> pass(const dualpipe_task_pass *in_c) noexcept {
    return in_c == nullptr ? std::nullopt : std::optional<TaskPass>(*in_c);
  }

  const dualpipe_task *in_c_;
  std::optional<TaskPass> forward_, backward_;
};

inline namespace DUALPIPE_ERRORS {

/// Says in words why the task that this thread runs is about to fail: the step's error repeats them. An exception does
/// it by itself. At most 4095 bytes are kept; nullptr takes the words back.
inline Result<void> set_task_error(const char *text) { return detail::outcome(dualpipe_task_set_error(text)); }

namespace detail {

/// A callback's answer in C's terms: 0 to go on. It may return nothing, a number as in C, or an Expected<void>.
template <class Answer, class F>
std::int32_t answer(F &&callback) {
  static_assert(!std::is_same_v<Answer, bool>, "does true mean that it failed? return nothing, or a number");
  if constexpr (std::is_void_v<Answer>) {
    callback();
    return 0;
  } else if constexpr (std::is_integral_v<Answer>) {
    return static_cast<std::int32_t>(callback());
  } else {
    const Expected<void> answer = callback();
    if (!answer.has_value()) static_cast<void>(dualpipe_task_set_error(answer.error().what()));
    return answer.has_value() ? 0 : 1;
  }
}

/// The words of what was thrown; "" if nothing was.
inline std::string words(const std::exception_ptr &thrown) {
#ifdef DUALPIPE_NO_EXCEPTIONS
  static_cast<void>(thrown);
  return {};
#else
  if (thrown == nullptr) return {};
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception &why) {
    return why.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
#endif
}

} // namespace detail
} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_TASK_HPP
