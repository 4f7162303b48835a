// Device memory and pinned host memory: allocations between guard zones, poisoned when taken and when freed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checker.h"
#include "problems.h"

namespace standin {

struct Access {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool is_write = false;
};

struct Allocation {
  uint64_t begin = 0;
  uint64_t num_bytes = 0;
  int32_t device = 0;  // -1: pinned host memory
  int32_t rank = -1;   // of the thread that allocated it
  std::string name;
  uint64_t num_uses = 0;  // by ops that are queued or running
  History history;
  std::unique_ptr<unsigned char[]> block;  // with both guard zones

  unsigned char *data() const { return reinterpret_cast<unsigned char *>(begin); }
};

class Memory {
 public:
  explicit Memory(Problems &problems) : problems_(problems) {}

  // Null if there is no such memory.
  std::shared_ptr<Allocation> allocate(uint64_t num_bytes, int32_t device, const std::string &name);

  // The live allocation that begins at an address, or null.
  std::shared_ptr<Allocation> at(uint64_t begin) const;

  // The live allocation that all of these bytes lie in, or null.
  std::shared_ptr<Allocation> find(uint64_t begin, uint64_t end) const;

  void free(const std::shared_ptr<Allocation> &allocation);

  bool are_guards_whole(const Allocation &allocation) const;

  // Reports bytes written outside an allocation, and mends them so that the next such write is found too.
  void mend_guards(Allocation &allocation, const std::string &when);

  // The same for all memory, live or freed lately.
  void check_all();

  // What lies at an address, in words.
  std::string describe(uint64_t begin, uint64_t end) const;

  uint64_t count(bool is_host) const;
  uint64_t num_free_bytes(int32_t device) const;

 private:
  void check_poison(Allocation &allocation);

  Problems &problems_;
  std::map<uint64_t, std::shared_ptr<Allocation>> live_;
  std::deque<std::shared_ptr<Allocation>> freed_;
  uint64_t num_freed_bytes_ = 0;
};

// What a device says it has.
constexpr uint64_t DEVICE_BYTES = uint64_t{80} << 30;

}  // namespace standin
