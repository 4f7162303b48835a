// CUDA's driver: the few functions that the trainer calls, declared by hand, and what owns what they give.
#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "library.hpp"

namespace trainer::cuda {

using Address = unsigned long long; // CUdeviceptr
using Status = int;                 // CUresult

struct Driver {
  Driver() : library({"libcuda.so.1"}, "install an NVIDIA driver") {
    library.find("cuInit", init);
    library.find("cuDeviceGet", device_get);
    library.find("cuDevicePrimaryCtxRetain", context_retain);
    library.find("cuDevicePrimaryCtxRelease_v2", context_release);
    library.find("cuCtxPushCurrent_v2", context_push);
    library.find("cuCtxPopCurrent_v2", context_pop);
    library.find("cuStreamCreate", stream_create);
    library.find("cuStreamDestroy_v2", stream_destroy);
    library.find("cuStreamQuery", stream_query);
    library.find("cuStreamWaitEvent", stream_wait);
    library.find("cuEventCreate", event_create);
    library.find("cuEventRecord", event_record);
    library.find("cuEventDestroy_v2", event_destroy);
    library.find("cuMemAlloc_v2", allocate);
    library.find("cuMemFree_v2", release);
    library.find("cuMemcpyHtoDAsync_v2", upload);
    library.find("cuMemcpyDtoHAsync_v2", download);
    library.find("cuMemsetD8Async", set);
    library.find("cuModuleLoadData", module_load);
    library.find("cuModuleUnload", module_unload);
    library.find("cuModuleGetFunction", module_function);
    library.find("cuLaunchKernel", launch);
    library.find("cuGetErrorName", error_name);
    library.find("cuGetErrorString", error_text);
  }

  // Throws what a call failed with, in the driver's words.
  void check(Status status, const char *call) const {
    if (status == 0) return;
    const char *name = nullptr, *text = nullptr;
    if (error_name(status, &name) != 0 || error_text(status, &text) != 0) name = text = "?";
    throw std::runtime_error(std::string(call) + ": " + name + " (" + std::to_string(status) + "), " + text);
  }

  static constexpr Status not_ready = 600;          // CUDA_ERROR_NOT_READY
  static constexpr unsigned non_blocking = 1;       // CU_STREAM_NON_BLOCKING
  static constexpr unsigned without_times = 2;      // CU_EVENT_DISABLE_TIMING

  Library library;
  Status (*init)(unsigned flags);
  Status (*device_get)(int *device, int ordinal);
  Status (*context_retain)(void **context, int device);
  Status (*context_release)(int device);
  Status (*context_push)(void *context);
  Status (*context_pop)(void **context);
  Status (*stream_create)(void **stream, unsigned flags);
  Status (*stream_destroy)(void *stream);
  Status (*stream_query)(void *stream);
  Status (*stream_wait)(void *stream, void *event, unsigned flags);
  Status (*event_create)(void **event, unsigned flags);
  Status (*event_record)(void *event, void *stream);
  Status (*event_destroy)(void *event);
  Status (*allocate)(Address *address, size_t num_bytes);
  Status (*release)(Address address);
  Status (*upload)(Address to, const void *from, size_t num_bytes, void *stream);
  Status (*download)(void *to, Address from, size_t num_bytes, void *stream);
  Status (*set)(Address to, unsigned char value, size_t num_bytes, void *stream);
  Status (*module_load)(void **module, const void *image);
  Status (*module_unload)(void *module);
  Status (*module_function)(void **function, void *module, const char *name);
  Status (*launch)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **parameters,
                   void **extra);
  Status (*error_name)(Status status, const char **name);
  Status (*error_text)(Status status, const char **text);
};

// A device's primary context, with the kernels loaded.
class Device {
public:
  // `kernels`: the folder with their PTX.
  Device(uint32_t ordinal, const std::string &kernels) {
    driver.check(driver.init(0), "cuInit");
    driver.check(driver.device_get(&device_, static_cast<int>(ordinal)), "cuDeviceGet");
    driver.check(driver.context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
    try {
      for (const char *name : {"elementwise", "ends", "experts", "norm"}) load(kernels + "/" + name + ".ptx");
    } catch (...) {
      unload();
      throw;
    }
  }
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;
  ~Device() { unload(); }

  // A kernel of the modules.
  void *kernel(const std::string &name) {
    const auto known = kernels_.find(name);
    if (known != kernels_.end()) return known->second;
    for (void *module : modules_) {
      void *function = nullptr;
      if (driver.module_function(&function, module, name.c_str()) == 0) return kernels_[name] = function;
    }
    throw std::logic_error("no module has the kernel " + name);
  }

  void *context() const { return context_; }

  const Driver driver;

private:
  void load(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string ptx((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file || ptx.empty()) throw UsageError("--kernels: cannot read " + path);
    void *module = nullptr, *popped = nullptr;
    driver.check(driver.context_push(context_), "cuCtxPushCurrent");
    const Status status = driver.module_load(&module, ptx.c_str());
    driver.context_pop(&popped);
    driver.check(status, ("cuModuleLoadData of " + path).c_str());
    modules_.push_back(module);
  }

  void unload() noexcept {
    void *popped = nullptr;
    driver.context_push(context_);
    for (void *module : modules_) driver.module_unload(module);
    driver.context_pop(&popped);
    driver.context_release(device_);
  }

  int device_ = 0;
  void *context_ = nullptr;
  std::vector<void *> modules_;
  std::map<std::string, void *> kernels_; // found before
};

// The context is this thread's while it lives. Without one no call below works.
class Current {
public:
  explicit Current(const Device &device) : driver_(device.driver) {
    driver_.check(driver_.context_push(device.context()), "cuCtxPushCurrent");
  }
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;
  ~Current() {
    void *popped = nullptr;
    driver_.context_pop(&popped);
  }

private:
  const Driver &driver_;
};

class Stream {
public:
  explicit Stream(const Device &device) : driver_(device.driver) {
    driver_.check(driver_.stream_create(&handle_, Driver::non_blocking), "cuStreamCreate");
  }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  ~Stream() { driver_.stream_destroy(handle_); }

  void *get() const { return handle_; }

  // Until the device has done all that was enqueued here; a deadline, since cuStreamSynchronize has none.
  void wait(std::chrono::nanoseconds timeout) const {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    for (;;) {
      const Status status = driver_.stream_query(handle_);
      if (status != Driver::not_ready) return driver_.check(status, "cuStreamQuery");
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("the device did not answer in time");
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

private:
  const Driver &driver_;
  void *handle_ = nullptr;
};

class Event {
public:
  explicit Event(const Device &device) : driver_(device.driver) {
    driver_.check(driver_.event_create(&handle_, Driver::without_times), "cuEventCreate");
  }
  Event(const Event &) = delete;
  Event &operator=(const Event &) = delete;
  ~Event() { driver_.event_destroy(handle_); }

  // What is enqueued on `later` from now on comes after all that is on `earlier`.
  void order(void *earlier, void *later) const {
    driver_.check(driver_.event_record(handle_, earlier), "cuEventRecord");
    driver_.check(driver_.stream_wait(later, handle_, 0), "cuStreamWaitEvent");
  }

private:
  const Driver &driver_;
  void *handle_ = nullptr;
};

// Memory of the device.
class Memory {
public:
  Memory(const Device &device, size_t num_bytes) : driver_(device.driver), num_bytes_(num_bytes) {
    driver_.check(driver_.allocate(&address_, num_bytes), "cuMemAlloc");
  }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  ~Memory() { driver_.release(address_); }

  Address at(size_t num_floats = 0) const { return address_ + num_floats * sizeof(float); }

  void clear(const Stream &stream) const {
    driver_.check(driver_.set(address_, 0, num_bytes_, stream.get()), "cuMemsetD8Async");
  }

  // `values` stay until the stream was waited for.
  template <class Number>
  void upload(const std::vector<Number> &values, const Stream &stream) const {
    check_fits(values.size() * sizeof(Number));
    driver_.check(driver_.upload(address_, values.data(), values.size() * sizeof(Number), stream.get()),
                  "cuMemcpyHtoDAsync");
  }

  template <class Number>
  std::vector<Number> download(size_t count, const Stream &stream, std::chrono::nanoseconds timeout) const {
    check_fits(count * sizeof(Number));
    std::vector<Number> values(count);
    driver_.check(driver_.download(values.data(), address_, count * sizeof(Number), stream.get()),
                  "cuMemcpyDtoHAsync");
    stream.wait(timeout);
    return values;
  }

private:
  void check_fits(size_t num_bytes) const {
    if (num_bytes > num_bytes_) throw std::logic_error("a copy beyond the end of device memory");
  }

  const Driver &driver_;
  Address address_ = 0;
  size_t num_bytes_;
};

} // namespace trainer::cuda
