// Handles and what they stand for. A value is never used twice, not even by a later life, so that a stale one is known.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "text.h"

namespace standin {

// Bits of a handle: kind, life, ordinal.
constexpr int KIND_SHIFT = 42;
constexpr int LIFE_SHIFT = 22;

inline void *make_handle(uint64_t kind, uint64_t life, uint64_t ordinal) {
  return reinterpret_cast<void *>(kind << KIND_SHIFT | life << LIFE_SHIFT | ordinal);
}

template <typename Object>
class Handles {
 public:
  Handles(const char *name, uint64_t kind, uint64_t life) : name_(name), kind_(kind), life_(life) {}

  void *add(std::shared_ptr<Object> object) {
    void *handle = make_handle(kind_, life_, ++last_);
    objects_[handle] = std::move(object);
    return handle;
  }

  std::shared_ptr<Object> find(void *handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }

  void remove(void *handle) { objects_.erase(handle); }

  // Why `find` found nothing.
  std::string why_none(void *handle) const {
    const uint64_t value = reinterpret_cast<uint64_t>(handle);
    const uint64_t ordinal = value & ((uint64_t{1} << LIFE_SHIFT) - 1);
    const uint64_t life = (value >> LIFE_SHIFT) & ((uint64_t{1} << (KIND_SHIFT - LIFE_SHIFT)) - 1);
    if (value >> KIND_SHIFT != kind_) return text("%#llx is no %s", static_cast<unsigned long long>(value), name_);
    return text("%s %llu was destroyed%s", name_, static_cast<unsigned long long>(ordinal),
                life == life_ ? "" : " in an earlier life");
  }

  uint64_t size() const { return objects_.size(); }
  const std::map<void *, std::shared_ptr<Object>> &all() const { return objects_; }

 private:
  const char *name_;
  uint64_t kind_;
  uint64_t life_;
  uint64_t last_ = 0;
  std::map<void *, std::shared_ptr<Object>> objects_;
};

}  // namespace standin
