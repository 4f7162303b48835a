/// Programs: one rank's part of a schedule, with receives, sends and frees.
#ifndef DUALPIPE_PROGRAM_HPP
#define DUALPIPE_PROGRAM_HPP

#include <dualpipe/op.hpp>
#include <dualpipe/program.h>
#include <dualpipe/schedule.hpp>
#include <dualpipe/status.hpp>

#include <cstdint>
#include <vector>

namespace dualpipe {

/// What an instruction does.
enum class InstructionKind : std::uint32_t {
  receive = DUALPIPE_INSTRUCTION_RECEIVE, ///< Post the receive of a message into a buffer. It does not wait.
  run = DUALPIPE_INSTRUCTION_RUN,         ///< Wait until what the op reads has been received, then run it.
  send = DUALPIPE_INSTRUCTION_SEND,       ///< Start to send a message from a buffer. It does not wait.
  /// The buffer is not needed any more; if it is being sent, wait until it has been.
  free = DUALPIPE_INSTRUCTION_FREE,
};

/// One instruction: its peer (of receive and send) and its buffer (of receive, send and free), where there are any.
struct Instruction : dualpipe_instruction {
  InstructionKind kind() const noexcept { return static_cast<InstructionKind>(dualpipe_instruction::kind); }
  /// What travels, of receive and send.
  Message message() const noexcept { return dualpipe_instruction::message; }
  /// What runs, of run.
  Op op() const noexcept { return dualpipe_instruction::op; }
};

/// A place for what one message carries, used again and again: its direction and stage.
struct ProgramBuffer : dualpipe_program_buffer {
  MessageKind kind() const noexcept { return static_cast<MessageKind>(dualpipe_program_buffer::kind); }
};

// C fills rows of them.
static_assert(sizeof(Instruction) == sizeof(dualpipe_instruction));
static_assert(sizeof(ProgramBuffer) == sizeof(dualpipe_program_buffer));

/// Where the ops of a pass find what they read and write: indices into the program's buffers, `none` at the ends of the
/// model.
using PassBuffers = dualpipe_pass_buffers;

inline namespace DUALPIPE_ERRORS {

/// What one rank does in a step, in order. It never changes: any number of threads may use it at once. It stays usable
/// after a fork.
class Program : public detail::Handle<dualpipe_program_t, dualpipe_program_free> {
public:
  using Handle::Handle;

  /// The program of `rank`, 0 to num_ranks - 1. All ranks' programs are made and checked together, the first time that
  /// one is asked for.
  ///
  /// Errors: Status::invalid_schedule. Time: proportional to the ops of all ranks, the first time.
  static Result<Program> create(const Schedule &schedule, std::uint32_t rank) {
    dualpipe_program_t program = nullptr;
    const dualpipe_status status = dualpipe_program_create(schedule.get(), rank, &program);
    return detail::outcome(status, [&] { return Program(program); });
  }

  /// Its instructions, in order.
  Result<std::vector<Instruction>> instructions() const {
    return detail::values<Instruction>([&](Instruction *instructions, std::size_t capacity, std::size_t *count) {
      return dualpipe_program_instructions(get(), instructions, capacity, count);
    });
  }

  /// The message buffers that it needs, by their index.
  Result<std::vector<ProgramBuffer>> buffers() const {
    return detail::values<ProgramBuffer>([&](ProgramBuffer *buffers, std::size_t capacity, std::size_t *count) {
      return dualpipe_program_buffers(get(), buffers, capacity, count);
    });
  }

  /// The buffers of one pass of its rank. `microbatch` counts within its direction.
  ///
  /// Errors: Status::invalid_argument if the rank does not hold this stage in this direction.
  Result<PassBuffers> pass_buffers(std::uint32_t direction, std::uint32_t stage, std::uint32_t microbatch) const {
    PassBuffers buffers{};
    const dualpipe_status status =
        dualpipe_program_pass_buffers(get(), direction, stage, microbatch, &buffers);
    return detail::outcome(status, [&] { return buffers; });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_PROGRAM_HPP
