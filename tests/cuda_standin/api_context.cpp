// The driver's functions for devices, contexts and threads' current contexts.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "session.h"

using namespace standin;

namespace {

// CUdevice_attribute, as far as anybody asks.
int attribute_value(int attribute) {
  switch (attribute) {
    case 1: return 1024;   // threads per block
    case 2: case 3: return 1024;  // block dimensions
    case 4: return 64;
    case 5: return 2147483647;  // grid dimensions
    case 6: case 7: return 65535;
    case 8: return 49152;   // shared bytes per block
    case 10: return 32;     // threads per warp
    case 16: return 132;    // multiprocessors
    case 41: return 1;      // unified addressing
    case 75: return 9;      // compute capability
    case 76: return 0;
    case 78: return 1;      // stream priorities
    case 97: return 232448; // shared bytes per block, opt-in
    default: return 0;      // memory pools (115) among them
  }
}

}  // namespace

DRIVER_API Status cuInit(uint32_t flags) {
  return call("cuInit", [&](Session &session) -> Status {
    if (flags != 0) return INVALID_VALUE;
    if (session.life.contexts.empty()) return NO_DEVICE;
    session.engine.is_initialized = true;
    return SUCCESS;
  });
}

DRIVER_API Status cuDriverGetVersion(int *version) {
  return call("cuDriverGetVersion", [&](Session &session) -> Status {
    if (version == nullptr) return INVALID_VALUE;
    *version = session.life.driver_version;
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGet(int32_t *device, int ordinal) {
  return call("cuDeviceGet", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(ordinal, context)) return status;
    *device = ordinal;
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGetCount(int *count) {
  return call("cuDeviceGetCount", [&](Session &session) -> Status {
    *count = static_cast<int>(session.life.contexts.size());
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGetAttribute(int *value, int attribute, int32_t device) {
  return call("cuDeviceGetAttribute", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    *value = attribute_value(attribute);
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGetName(char *name, int capacity, int32_t device) {
  return call("cuDeviceGetName", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    if (capacity <= 0) return INVALID_VALUE;
    std::snprintf(name, static_cast<size_t>(capacity), "stand-in");
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceTotalMem_v2(size_t *num_bytes, int32_t device) {
  return call("cuDeviceTotalMem_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    *num_bytes = DEVICE_BYTES;
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGetUuid_v2(unsigned char *uuid, int32_t device) {
  return call("cuDeviceGetUuid_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    std::memset(uuid, 0, 16);
    uuid[15] = static_cast<unsigned char>(device + 1);
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceGetPCIBusId(char *id, int capacity, int32_t device) {
  return call("cuDeviceGetPCIBusId", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    if (capacity < 13) return INVALID_VALUE;
    std::snprintf(id, static_cast<size_t>(capacity), "0000:%02x:00.0", static_cast<unsigned>(device + 1) & 0xff);
    return SUCCESS;
  });
}

DRIVER_API Status cuDevicePrimaryCtxRetain(void **handle, int32_t device) {
  return call("cuDevicePrimaryCtxRetain", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    context->num_retains += 1;
    *handle = context->handle;
    return SUCCESS;
  });
}

DRIVER_API Status cuDevicePrimaryCtxRelease_v2(int32_t device) {
  return call("cuDevicePrimaryCtxRelease_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    if (context->num_retains == 0) return session.refuse(INVALID_CONTEXT, "released more often than retained");
    context->num_retains -= 1;
    return SUCCESS;
  });
}

DRIVER_API Status cuDevicePrimaryCtxGetState(int32_t device, uint32_t *flags, int *is_active) {
  return call("cuDevicePrimaryCtxGetState", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    *flags = 0;
    *is_active = context->num_retains > 0;
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxGetCurrent(void **handle) {
  return call("cuCtxGetCurrent", [&](Session &session) -> Status {
    *handle = session.thread.contexts.empty() ? nullptr : session.thread.contexts.back();
    return SUCCESS;
  });
}

// Binding a failed context is allowed: it is a matter of the thread alone.
DRIVER_API Status cuCtxSetCurrent(void *handle) {
  return call("cuCtxSetCurrent", [&](Session &session) -> Status {
    Context *context = nullptr;
    auto &contexts = session.thread.contexts;
    if (handle != nullptr) {
      if (const Status status = session.context(handle, context)) return status;
    }
    if (!contexts.empty()) contexts.pop_back();
    if (handle != nullptr) contexts.push_back(handle);
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxPushCurrent_v2(void *handle) {
  return call("cuCtxPushCurrent_v2", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.context(handle, context)) return status;
    session.thread.contexts.push_back(handle);
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxPopCurrent_v2(void **handle) {
  return call("cuCtxPopCurrent_v2", [&](Session &session) -> Status {
    auto &contexts = session.thread.contexts;
    if (contexts.empty()) return INVALID_CONTEXT;
    if (handle != nullptr) *handle = contexts.back();
    contexts.pop_back();
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxGetDevice(int32_t *device) {
  return call("cuCtxGetDevice", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.current_context(context)) return status;
    *device = context->device;
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  return call("cuCtxGetStreamPriorityRange", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.current_context(context)) return status;
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxSynchronize() {
  return call("cuCtxSynchronize", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.current_context(context)) return status;
    if (const Status status = session.check_unsafe_call()) return status;
    std::vector<std::pair<std::shared_ptr<Lane>, uint64_t>> ends;
    for (const auto &lane : session.life.lanes) {
      if (lane->context == context) ends.emplace_back(lane, lane->num_enqueued);
    }
    const Status status = session.wait(*context, [&] {
      return std::all_of(ends.begin(), ends.end(), [](const auto &end) {
        return end.first->num_finished >= end.second;
      });
    });
    if (status != SUCCESS) return status;
    for (const auto &end : ends) session.learn(*end.first);
    session.thread.learn(session.life.components, context->retired);
    return SUCCESS;
  });
}

DRIVER_API Status cuDeviceCanAccessPeer(int *is_possible, int32_t device, int32_t peer) {
  return call("cuDeviceCanAccessPeer", [&](Session &session) -> Status {
    Context *context = nullptr;
    if (const Status status = session.device(device, context)) return status;
    if (const Status status = session.device(peer, context)) return status;
    *is_possible = session.life.is_peer_access_possible && device != peer;
    return SUCCESS;
  });
}

DRIVER_API Status cuCtxEnablePeerAccess(void *handle, uint32_t flags) {
  return call("cuCtxEnablePeerAccess", [&](Session &session) -> Status {
    Context *context = nullptr;
    Context *peer = nullptr;
    if (flags != 0) return INVALID_VALUE;
    if (const Status status = session.current_context(context)) return status;
    if (const Status status = session.context(handle, peer)) return status;
    if (context == peer) return INVALID_DEVICE;
    if (!session.life.is_peer_access_possible) return PEER_ACCESS_UNSUPPORTED;
    return context->peers.insert(peer->device).second ? SUCCESS : PEER_ACCESS_ALREADY_ENABLED;
  });
}
