// The driver's functions for memory: taking, freeing, copying, setting.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "session.h"
#include "text.h"

using namespace standin;

namespace {

uint64_t address(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

void *pointer(uint64_t address) { return reinterpret_cast<void *>(address); }

std::shared_ptr<Allocation> allocate(Session &session, uint64_t num_bytes, int32_t device) {
  Life &life = session.life;
  const uint64_t ordinal = life.ordinals[session.thread.rank].allocations++;
  const char *const what = device < 0 ? "pinned allocation" : "allocation";
  const auto allocation = life.memory.allocate(num_bytes, device, in_words(session.thread.rank, what, ordinal));
  if (allocation != nullptr) allocation->rank = session.thread.rank;
  return allocation;
}

Status allocate_host(Session &session, void **host, size_t num_bytes) {
  Context *context = nullptr;
  if (host == nullptr || num_bytes == 0) return INVALID_VALUE;
  if (const Status status = session.current_context(context)) return status;
  if (const Status status = session.check_unsafe_call()) return status;
  const auto allocation = allocate(session, num_bytes, -1);
  if (allocation == nullptr) return OUT_OF_MEMORY;
  *host = allocation->data();
  return SUCCESS;
}

// Frees what begins at an address. The real call waits for the device, so that freeing memory in use is no crash; but a
// program that does so waits where it did not mean to.
Status free_memory(Session &session, uint64_t begin, bool is_host) {
  Life &life = session.life;
  if (begin == 0) return SUCCESS;
  if (const Status status = session.check_unsafe_call()) return status;
  const auto allocation = life.memory.at(begin);
  if (allocation == nullptr || (allocation->device < 0) != is_host) {
    return session.refuse(INVALID_VALUE, "not the beginning of an allocation: " + life.memory.describe(begin, begin));
  }
  Status status = SUCCESS;
  if (allocation->num_uses > 0) {
    session.report(allocation->name + " is used by ops that are queued");
    const bool is_alive =
        session.engine.wait_until(session.lock, [&] { return allocation->num_uses == 0; });
    if (!is_alive) return DEINITIALIZED;
  }
  if (!is_host) status = session.check(*life.contexts[static_cast<size_t>(allocation->device)]);
  if (life.memory.at(begin) == allocation) life.memory.free(allocation);
  return status;
}

// One side of a copy, or what is set.
struct Range {
  uint64_t begin = 0;
  bool is_device = false;  // to be checked; host memory is known only if it is pinned
};

// Adds what is known of a side to the accesses; false if it is not where it should be.
bool add_access(Session &session, Work &work, Range range, uint64_t num_bytes, bool is_write) {
  const uint64_t end = range.begin + num_bytes;
  const Memory &memory = session.life.memory;
  const bool is_known = memory.find(range.begin, end) != nullptr;
  if (is_known) work.accesses.push_back({range.begin, end, is_write});
  if (is_known || !range.is_device) return true;
  session.report(std::string(is_write ? "writes " : "reads ") + memory.describe(range.begin, end));
  return false;
}

Status copy(Session &session, const std::shared_ptr<Stream> &stream, const char *label, Range to, Range from,
            uint64_t num_bytes) {
  if (num_bytes == 0) return SUCCESS;
  auto work = make_work(label);
  const bool is_inside =
      add_access(session, *work, from, num_bytes, false) && add_access(session, *work, to, num_bytes, true);
  if (!is_inside) return INVALID_VALUE;
  if (from.begin < to.begin + num_bytes && to.begin < from.begin + num_bytes) session.report("its ranges overlap");
  work->holds_lock = true;
  const bool is_pageable = !from.is_device && session.life.memory.find(from.begin, from.begin + 1) == nullptr;
  if (is_pageable && stream->capture == nullptr) {
    // The driver has read pageable memory before the call returns.
    const auto *bytes = static_cast<const unsigned char *>(pointer(from.begin));
    const auto staged = std::make_shared<std::vector<unsigned char>>(bytes, bytes + num_bytes);
    work->run = [to, staged] { std::memcpy(pointer(to.begin), staged->data(), staged->size()); };
  } else {
    work->run = [to, from, num_bytes] { std::memmove(pointer(to.begin), pointer(from.begin), num_bytes); };
  }
  return session.submit(*stream, work);
}

Status copy_async(Session &session, const char *label, Range to, Range from, uint64_t num_bytes, void *handle) {
  std::shared_ptr<Stream> stream;
  if (const Status status = session.stream(handle, stream)) return status;
  return copy(session, stream, label, to, from, num_bytes);
}

// On the default stream, and waits for it.
Status copy_now(Session &session, const char *label, Range to, Range from, uint64_t num_bytes) {
  std::shared_ptr<Stream> stream;
  if (const Status status = session.stream(nullptr, stream)) return status;
  if (const Status status = session.check_unsafe_call()) return status;
  if (const Status status = copy(session, stream, label, to, from, num_bytes)) return status;
  return session.synchronize(stream->lane);
}

// Whether unified addressing knows this for the device's or for pinned memory.
Range unified(Session &session, uint64_t begin) {
  return {begin, session.life.memory.find(begin, begin + 1) != nullptr};
}

template <typename Value>
Status set(Session &session, const std::shared_ptr<Stream> &stream, const char *label, uint64_t begin, Value value,
           uint64_t count) {
  if (begin % sizeof(Value) != 0) return INVALID_VALUE;
  if (count == 0) return SUCCESS;
  auto work = make_work(label);
  if (!add_access(session, *work, {begin, true}, count * sizeof(Value), true)) return INVALID_VALUE;
  work->holds_lock = true;
  work->run = [=] { std::fill_n(static_cast<Value *>(pointer(begin)), count, value); };
  return session.submit(*stream, work);
}

template <typename Value>
Status set_async(Session &session, const char *label, uint64_t begin, Value value, uint64_t count, void *handle) {
  std::shared_ptr<Stream> stream;
  if (const Status status = session.stream(handle, stream)) return status;
  return set(session, stream, label, begin, value, count);
}

}  // namespace

DRIVER_API Status cuMemAlloc_v2(uint64_t *device_pointer, size_t num_bytes) {
  return call("cuMemAlloc_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (device_pointer == nullptr || num_bytes == 0) return INVALID_VALUE;
    if (const Status status = session.current_context(context)) return status;
    if (const Status status = session.check_unsafe_call()) return status;
    const auto allocation = allocate(session, num_bytes, context->device);
    if (allocation == nullptr) return OUT_OF_MEMORY;
    *device_pointer = allocation->begin;
    return SUCCESS;
  });
}

DRIVER_API Status cuMemFree_v2(uint64_t device_pointer) {
  return call("cuMemFree_v2", [&](Session &session) { return free_memory(session, device_pointer, false); });
}

DRIVER_API Status cuMemAllocHost_v2(void **host, size_t num_bytes) {
  return call("cuMemAllocHost_v2", [&](Session &session) { return allocate_host(session, host, num_bytes); });
}

DRIVER_API Status cuMemHostAlloc(void **host, size_t num_bytes, uint32_t flags) {
  static_cast<void>(flags);
  return call("cuMemHostAlloc", [&](Session &session) { return allocate_host(session, host, num_bytes); });
}

DRIVER_API Status cuMemFreeHost(void *host) {
  return call("cuMemFreeHost", [&](Session &session) { return free_memory(session, address(host), true); });
}

DRIVER_API Status cuMemGetInfo_v2(size_t *num_free, size_t *num_total) {
  return call("cuMemGetInfo_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.current_context(context)) return status;
    *num_free = session.life.memory.num_free_bytes(context->device);
    *num_total = DEVICE_BYTES;
    return SUCCESS;
  });
}

DRIVER_API Status cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t num_bytes) {
  return call("cuMemcpyHtoD_v2", [&](Session &session) {
    return copy_now(session, "cuMemcpyHtoD", {to, true}, {address(from), false}, num_bytes);
  });
}

DRIVER_API Status cuMemcpyDtoH_v2(void *to, uint64_t from, size_t num_bytes) {
  return call("cuMemcpyDtoH_v2", [&](Session &session) {
    return copy_now(session, "cuMemcpyDtoH", {address(to), false}, {from, true}, num_bytes);
  });
}

DRIVER_API Status cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t num_bytes) {
  return call("cuMemcpyDtoD_v2", [&](Session &session) {
    return copy_now(session, "cuMemcpyDtoD", {to, true}, {from, true}, num_bytes);
  });
}

DRIVER_API Status cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t num_bytes, void *stream) {
  return call("cuMemcpyHtoDAsync_v2", [&](Session &session) {
    return copy_async(session, "cuMemcpyHtoDAsync", {to, true}, {address(from), false}, num_bytes, stream);
  });
}

DRIVER_API Status cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t num_bytes, void *stream) {
  return call("cuMemcpyDtoHAsync_v2", [&](Session &session) {
    return copy_async(session, "cuMemcpyDtoHAsync", {address(to), false}, {from, true}, num_bytes, stream);
  });
}

DRIVER_API Status cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t num_bytes, void *stream) {
  return call("cuMemcpyDtoDAsync_v2", [&](Session &session) {
    return copy_async(session, "cuMemcpyDtoDAsync", {to, true}, {from, true}, num_bytes, stream);
  });
}

DRIVER_API Status cuMemcpyAsync(uint64_t to, uint64_t from, size_t num_bytes, void *stream) {
  return call("cuMemcpyAsync", [&](Session &session) {
    return copy_async(session, "cuMemcpyAsync", unified(session, to), unified(session, from), num_bytes, stream);
  });
}

DRIVER_API Status cuMemcpyPeerAsync(uint64_t to, void *to_context, uint64_t from, void *from_context,
                                    size_t num_bytes, void *stream) {
  return call("cuMemcpyPeerAsync", [&](Session &session) -> Status {
    Context *contexts[2] = {nullptr, nullptr};
    if (const Status status = session.context(to_context, contexts[0])) return status;
    if (const Status status = session.context(from_context, contexts[1])) return status;
    const uint64_t begins[2] = {to, from};
    for (size_t side = 0; side < 2; ++side) {
      const auto allocation = session.life.memory.find(begins[side], begins[side] + 1);
      if (allocation == nullptr || allocation->device == contexts[side]->device) continue;
      return session.refuse(INVALID_VALUE, allocation->name + text(" is on device %d, not %d", allocation->device,
                                                                   contexts[side]->device));
    }
    return copy_async(session, "cuMemcpyPeerAsync", {to, true}, {from, true}, num_bytes, stream);
  });
}

DRIVER_API Status cuMemsetD8_v2(uint64_t begin, unsigned char value, size_t count) {
  return call("cuMemsetD8_v2", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (const Status status = session.stream(nullptr, stream)) return status;
    if (const Status status = session.check_unsafe_call()) return status;
    if (const Status status = set(session, stream, "cuMemsetD8", begin, value, count)) return status;
    return session.synchronize(stream->lane);
  });
}

DRIVER_API Status cuMemsetD8Async(uint64_t begin, unsigned char value, size_t count, void *stream) {
  return call("cuMemsetD8Async", [&](Session &session) {
    return set_async(session, "cuMemsetD8Async", begin, value, count, stream);
  });
}

DRIVER_API Status cuMemsetD32Async(uint64_t begin, uint32_t value, size_t count, void *stream) {
  return call("cuMemsetD32Async", [&](Session &session) {
    return set_async(session, "cuMemsetD32Async", begin, value, count, stream);
  });
}

// CUpointer_attribute: the context, the memory's type (1 host, 2 device), the pointers, the device's ordinal.
DRIVER_API Status cuPointerGetAttribute(void *value, int attribute, uint64_t where) {
  return call("cuPointerGetAttribute", [&](Session &session) -> Status {
    const auto allocation = session.life.memory.find(where, where + 1);
    if (value == nullptr || allocation == nullptr) return INVALID_VALUE;
    const int32_t device = std::max(allocation->device, 0);
    switch (attribute) {
      case 1: *static_cast<void **>(value) = session.life.contexts[static_cast<size_t>(device)]->handle; break;
      case 2: *static_cast<uint32_t *>(value) = allocation->device < 0 ? 1 : 2; break;
      case 3: case 4: *static_cast<uint64_t *>(value) = where; break;
      case 9: *static_cast<int32_t *>(value) = device; break;
      default: return INVALID_VALUE;
    }
    return SUCCESS;
  });
}
