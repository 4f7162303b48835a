/// The words of schedules, programs and timelines.
#ifndef DUALPIPE_OP_HPP
#define DUALPIPE_OP_HPP

#include <dualpipe/op.h>

#include <cstdint>

namespace dualpipe {

/// Stands for "there is none" in a field that is a number.
inline constexpr std::uint32_t none = DUALPIPE_NONE;

/// What an op does.
enum class OpKind : std::uint32_t {
  F = DUALPIPE_OP_F,   ///< Forward.
  B = DUALPIPE_OP_B,   ///< Full backward: for the input and for the weights.
  I = DUALPIPE_OP_I,   ///< Backward for the input.
  W = DUALPIPE_OP_W,   ///< Backward for the weights.
  FB = DUALPIPE_OP_FB, ///< F of one micro-batch and B of another, run as an overlapped pair.
  /// Every weight gradient of a parameter copy is final on this rank: sum it with those of the other copies of its
  /// stage. Not part of a schedule's order; programs and timelines have it.
  reduce_grads = DUALPIPE_OP_REDUCE_GRADS,
};

/// What a message carries.
enum class MessageKind : std::uint32_t {
  activation = DUALPIPE_MESSAGE_ACTIVATION, ///< The output of a forward, for the next stage.
  gradient = DUALPIPE_MESSAGE_GRADIENT,     ///< The gradient for an input, for the previous stage.
};

/// One micro-batch at one stage: direction, stage, microbatch, copy; `none` in all where there is no pass.
using Pass = dualpipe_pass;

/// One compute step of one rank: what goes forward (of F and FB), and what goes backward (of B, I, W and FB; of
/// reduce_grads the copy that it is about).
struct Op : dualpipe_op {
  Op() : dualpipe_op() {}
  Op(const dualpipe_op &op) : dualpipe_op(op) {}
  /// An op of one pass.
  Op(OpKind what, const Pass &pass)
      : Op(what, what == OpKind::F ? pass : no_pass(), what == OpKind::F ? no_pass() : pass) {}
  /// The overlapped pair of a forward and a backward.
  Op(const Pass &of_forward, const Pass &of_backward) : Op(OpKind::FB, of_forward, of_backward) {}

  OpKind kind() const noexcept { return static_cast<OpKind>(dualpipe_op::kind); }

private:
  Op(OpKind what, const Pass &of_forward, const Pass &of_backward)
      : dualpipe_op{static_cast<std::uint32_t>(what), of_forward, of_backward} {}
  static constexpr Pass no_pass() noexcept { return {none, none, none, none}; }
};

/// What one stage hands to its neighbour: the stage that it goes to, and the pass that made it.
struct Message : dualpipe_message {
  Message() : dualpipe_message() {}
  Message(const dualpipe_message &message) : dualpipe_message(message) {}

  MessageKind kind() const noexcept { return static_cast<MessageKind>(dualpipe_message::kind); }
};

// C fills rows of them.
static_assert(sizeof(Op) == sizeof(dualpipe_op) && sizeof(Message) == sizeof(dualpipe_message));

} // namespace dualpipe

#endif // DUALPIPE_OP_HPP
