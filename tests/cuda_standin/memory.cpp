// Memory with guard zones and poison. Nothing here is CUDA's doing: it finds what a GPU lets pass.
#include "memory.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

#include "text.h"

namespace standin {

namespace {

// Also what cuMemAlloc aligns to.
constexpr uint64_t GUARD_BYTES = 256;
constexpr unsigned char GUARD = 0xa5;
// Large and negative as a float of any width.
constexpr unsigned char POISON = 0xcb;
// Freed memory is kept, and looked after, up to this much.
constexpr uint64_t FREED_BYTES_MAX = uint64_t{16} << 20;

bool is_filled(const unsigned char *bytes, uint64_t num_bytes, unsigned char value) {
  if (num_bytes == 0) return true;
  return bytes[0] == value && std::memcmp(bytes, bytes + 1, num_bytes - 1) == 0;
}

}  // namespace

std::shared_ptr<Allocation> Memory::allocate(uint64_t num_bytes, int32_t device, const std::string &name) {
  if (num_bytes > DEVICE_BYTES || (device >= 0 && num_bytes > num_free_bytes(device))) return nullptr;
  auto allocation = std::make_shared<Allocation>();
  // One guard more than is used, for alignment.
  allocation->block.reset(new (std::nothrow) unsigned char[num_bytes + 3 * GUARD_BYTES]);
  if (!allocation->block) return nullptr;
  const uint64_t block = reinterpret_cast<uint64_t>(allocation->block.get());
  allocation->begin = (block + 2 * GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
  allocation->num_bytes = num_bytes;
  allocation->device = device;
  allocation->name = name;
  std::memset(allocation->data() - GUARD_BYTES, GUARD, GUARD_BYTES);
  std::memset(allocation->data(), POISON, num_bytes);
  std::memset(allocation->data() + num_bytes, GUARD, GUARD_BYTES);
  live_[allocation->begin] = allocation;
  return allocation;
}

std::shared_ptr<Allocation> Memory::at(uint64_t begin) const {
  const auto found = live_.find(begin);
  return found == live_.end() ? nullptr : found->second;
}

std::shared_ptr<Allocation> Memory::find(uint64_t begin, uint64_t end) const {
  auto next = live_.upper_bound(begin);
  if (next == live_.begin()) return nullptr;
  const auto &allocation = std::prev(next)->second;
  const uint64_t allocation_end = allocation->begin + allocation->num_bytes;
  return begin < allocation_end && begin <= end && end <= allocation_end ? allocation : nullptr;
}

void Memory::free(const std::shared_ptr<Allocation> &allocation) {
  mend_guards(*allocation, "before it was freed");
  live_.erase(allocation->begin);
  std::memset(allocation->data(), POISON, allocation->num_bytes);
  allocation->history.clear();
  freed_.push_back(allocation);
  num_freed_bytes_ += allocation->num_bytes;
  while (num_freed_bytes_ > FREED_BYTES_MAX) {
    check_poison(*freed_.front());
    num_freed_bytes_ -= freed_.front()->num_bytes;
    freed_.pop_front();
  }
}

bool Memory::are_guards_whole(const Allocation &allocation) const {
  return is_filled(allocation.data() - GUARD_BYTES, GUARD_BYTES, GUARD) &&
         is_filled(allocation.data() + allocation.num_bytes, GUARD_BYTES, GUARD);
}

void Memory::mend_guards(Allocation &allocation, const std::string &when) {
  unsigned char *front = allocation.data() - GUARD_BYTES;
  unsigned char *back = allocation.data() + allocation.num_bytes;
  for (unsigned char *zone : {front, back}) {
    if (is_filled(zone, GUARD_BYTES, GUARD)) continue;
    problems_.add("memory: bytes " + std::string(zone == front ? "before " : "behind ") + allocation.name +
                  " were overwritten " + when);
    std::memset(zone, GUARD, GUARD_BYTES);
  }
}

void Memory::check_poison(Allocation &allocation) {
  mend_guards(allocation, "after it was freed");
  if (is_filled(allocation.data(), allocation.num_bytes, POISON)) return;
  problems_.add("memory: " + allocation.name + " was written after it was freed");
  std::memset(allocation.data(), POISON, allocation.num_bytes);
}

void Memory::check_all() {
  for (auto &entry : live_) mend_guards(*entry.second, "some time before the report");
  for (auto &allocation : freed_) check_poison(*allocation);
}

std::string Memory::describe(uint64_t begin, uint64_t end) const {
  auto in_words = [&](const Allocation &allocation, const char *state) {
    const auto offset = static_cast<long long>(begin - allocation.begin);
    return text("bytes [%lld, %lld) of ", offset, offset + static_cast<long long>(end - begin)) + allocation.name +
           text(", which %s %llu bytes", state, static_cast<unsigned long long>(allocation.num_bytes));
  };
  auto holds = [&](const Allocation &allocation) {
    return begin >= allocation.begin && begin <= allocation.begin + allocation.num_bytes;
  };
  auto next = live_.upper_bound(begin);
  if (next != live_.begin() && holds(*std::prev(next)->second)) return in_words(*std::prev(next)->second, "has");
  for (auto freed = freed_.rbegin(); freed != freed_.rend(); ++freed) {
    if (holds(**freed)) return in_words(**freed, "was freed and had");
  }
  return text("%llu bytes that were never allocated", static_cast<unsigned long long>(end - begin));
}

uint64_t Memory::count(bool is_host) const {
  return static_cast<uint64_t>(std::count_if(live_.begin(), live_.end(), [&](const auto &entry) {
    return (entry.second->device < 0) == is_host;
  }));
}

uint64_t Memory::num_free_bytes(int32_t device) const {
  uint64_t num_taken = 0;
  for (const auto &entry : live_) {
    if (entry.second->device == device) num_taken += entry.second->num_bytes;
  }
  return DEVICE_BYTES - num_taken;
}

}  // namespace standin
