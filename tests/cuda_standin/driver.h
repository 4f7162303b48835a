// The codes of the CUDA driver API that the stand-in returns, and how its functions are exported.
#pragma once

#include <cstdint>

#define DRIVER_API extern "C" __attribute__((visibility("default")))

namespace standin {

// A CUresult.
using Status = int32_t;

constexpr Status SUCCESS = 0;
constexpr Status INVALID_VALUE = 1;
constexpr Status OUT_OF_MEMORY = 2;
constexpr Status NOT_INITIALIZED = 3;
constexpr Status DEINITIALIZED = 4;
constexpr Status NO_DEVICE = 100;
constexpr Status INVALID_DEVICE = 101;
constexpr Status INVALID_CONTEXT = 201;
constexpr Status PEER_ACCESS_UNSUPPORTED = 217;
constexpr Status INVALID_HANDLE = 400;
constexpr Status ILLEGAL_STATE = 401;
constexpr Status NOT_FOUND = 500;
constexpr Status NOT_READY = 600;
constexpr Status ILLEGAL_ADDRESS = 700;
constexpr Status PEER_ACCESS_ALREADY_ENABLED = 704;
constexpr Status CONTEXT_IS_DESTROYED = 709;
constexpr Status NOT_PERMITTED = 800;
constexpr Status CAPTURE_UNSUPPORTED = 900;
constexpr Status CAPTURE_INVALIDATED = 901;
constexpr Status CAPTURE_MERGE = 902;
constexpr Status CAPTURE_UNMATCHED = 903;
constexpr Status CAPTURE_UNJOINED = 904;
constexpr Status CAPTURE_ISOLATION = 905;
constexpr Status CAPTURED_EVENT = 907;
constexpr Status CAPTURE_WRONG_THREAD = 908;

}  // namespace standin
