/// Overlap: the halves of an F&B pair under one another on a CUDA device.
#ifndef DUALPIPE_OVERLAP_HPP
#define DUALPIPE_OVERLAP_HPP

#include <dualpipe/overlap.h>
#include <dualpipe/status.hpp>
#include <dualpipe/task.hpp>

#include <cstdint>
#include <type_traits>

namespace dualpipe {

/// A part of a block of attention and experts (MLP). Dispatch and combine communicate, the others compute.
enum class Part : std::uint32_t {
  attention_F = DUALPIPE_PART_ATTENTION_F, ///< Forward through the attention.
  dispatch_F = DUALPIPE_PART_DISPATCH_F,   ///< Tokens to their experts.
  mlp_F = DUALPIPE_PART_MLP_F,             ///< Forward through the experts.
  combine_F = DUALPIPE_PART_COMBINE_F,     ///< Tokens back from their experts.
  combine_B = DUALPIPE_PART_COMBINE_B,     ///< Gradients to the experts: backward through combine.
  mlp_B = DUALPIPE_PART_MLP_B,             ///< Backward for the input through the experts.
  mlp_W = DUALPIPE_PART_MLP_W,             ///< Backward for the experts' weights.
  dispatch_B = DUALPIPE_PART_DISPATCH_B,   ///< Gradients back from the experts: backward through dispatch.
  attention_B = DUALPIPE_PART_ATTENTION_B, ///< Backward for the input through the attention.
  attention_W = DUALPIPE_PART_ATTENTION_W, ///< Backward for the attention's weights.
};

inline namespace DUALPIPE_ERRORS {

/// Enqueues tasks part by part on two streams, with the waits that the parts need between them. One thread at a time:
/// another gets Status::busy. It is useless in a child of fork.
class Overlap : public detail::Handle<dualpipe_overlap_t, dualpipe_overlap_free> {
public:
  using Handle::Handle;

  /// What is needed to overlap tasks on CUDA device `device`, from 0.
  ///
  /// Errors: Status::invalid_argument; Status::unavailable without a driver or a device; Status::device.
  static Result<Overlap> create(std::uint32_t device) {
    dualpipe_overlap_t overlap = nullptr;
    const dualpipe_status status = dualpipe_overlap_create(device, &overlap);
    return detail::outcome(status, [&] { return Overlap(overlap); });
  }

  /// Has `enqueue` enqueue every part of num_forward forward blocks and num_backward backward blocks (each 0 to 4096),
  /// from within a task, on the task's two streams, in the order of DeepSeek's published trace, which
  /// dualpipe/overlap.h describes. enqueue(Part part, uint32_t block, void *stream) returns nothing, 0 to go on, or an
  /// Expected<void>; what it throws comes out of run.
  ///
  /// Errors: Status::callback_failed if enqueue failed; Status::device.
  template <class F>
  Result<void> run(const Task &task, std::uint32_t num_forward, std::uint32_t num_backward, F &&enqueue) const {
    using Answer = std::invoke_result_t<F &, Part, std::uint32_t, void *>;
    const dualpipe_part_fn in_c = [](void *callback, std::uint32_t part, std::uint32_t block,
                                     void *stream) noexcept -> std::int32_t {
      auto &its = *static_cast<std::remove_reference_t<F> *>(callback);
      std::int32_t answer = 1;
      detail::runs_here([&] {
        answer = detail::answer<Answer>([&] { return its(static_cast<Part>(part), block, stream); });
      });
      return answer;
    };
    const dualpipe_status status =
        dualpipe_overlap_run(get(), task.compute_stream(), task.comm_stream(), num_forward, num_backward, in_c,
                             const_cast<void *>(static_cast<const void *>(&enqueue)));
    return detail::outcome(status);
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_OVERLAP_HPP
