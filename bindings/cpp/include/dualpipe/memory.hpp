/// The caller's own memory for tensors, so that nothing is copied in or out of the executor.
#ifndef DUALPIPE_MEMORY_HPP
#define DUALPIPE_MEMORY_HPP

#include <dualpipe/memory.h>

#include <cstdint>

namespace dualpipe {

/// Memory for a tensor, and a word that comes back with it.
struct Allocation {
  void *data = nullptr;
  void *owner = nullptr;
};

/// The caller's memory for tensors: derive from it. What is received goes into memory that allocate gives, and an
/// output is wherever the task places it. Called on the thread that runs the executor's step, release also when the
/// executor goes. What they throw comes out of the step.
class Memory {
public:
  Memory() = default;
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  virtual ~Memory() = default;

  /// Memory for a tensor of num_bytes bytes that is to be received, aligned for its elements. No data: there is none,
  /// and the step fails.
  virtual Allocation allocate(std::uint64_t num_bytes) = 0;
  /// The executor does not use the memory any more: what allocate gave, or where a task placed an output. Once for
  /// each.
  virtual void release(void *data, void *owner) = 0;
};

} // namespace dualpipe

#endif // DUALPIPE_MEMORY_HPP
