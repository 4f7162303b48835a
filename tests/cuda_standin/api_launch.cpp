// The driver's functions for modules, kernels and host functions.
#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>

#include "registry.h"
#include "session.h"
#include "text.h"

using namespace standin;

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, Kernel> kernels;
};

// Made at first use: kernels register themselves while the library is loaded.
Registry &registry() {
  static Registry *const registry = new Registry;
  return *registry;
}

// A launch's own copy of its parameters.
class Params {
 public:
  Params(const Kernel &kernel, void **params) {
    for (size_t i = 0; i < kernel.param_sizes.size(); ++i) {
      const auto *bytes = static_cast<const unsigned char *>(params[i]);
      // As 16-byte blocks, for alignment.
      values_.emplace_back((kernel.param_sizes[i] + sizeof(Block) - 1) / sizeof(Block));
      std::memcpy(values_.back().data(), bytes, kernel.param_sizes[i]);
      pointers_.push_back(values_.back().data());
    }
  }

  Params(const Params &) = delete;
  Params &operator=(const Params &) = delete;

  void **pointers() { return pointers_.data(); }

 private:
  struct alignas(16) Block {
    unsigned char bytes[16];
  };

  std::vector<std::vector<Block>> values_;
  std::vector<void *> pointers_;
};

void add_accesses(Work &work, const Kernel &kernel, const uint32_t *grid, const uint32_t *block, void **params) {
  if (kernel.accesses == nullptr) return;
  std::vector<standin_access> accesses(16);
  const size_t num_accesses = kernel.accesses(grid, block, params, accesses.data(), accesses.size());
  if (num_accesses > accesses.size()) {
    accesses.resize(num_accesses);
    kernel.accesses(grid, block, params, accesses.data(), accesses.size());
  }
  accesses.resize(num_accesses);
  for (const standin_access &access : accesses) {
    if (access.num_bytes == 0) continue;
    work.accesses.push_back({access.address, access.address + access.num_bytes, access.is_write != 0});
  }
}

Status load_module(Session &session, void **module, const void *image) {
  Context *context = nullptr;
  if (module == nullptr || image == nullptr) return INVALID_VALUE;
  if (const Status status = session.current_context(context)) return status;
  if (const Status status = session.check_unsafe_call()) return status;
  *module = session.life.modules.add(std::make_shared<Module>());
  return SUCCESS;
}

// The function of a handle, whose module must be loaded still.
Status find_function(Session &session, void *handle, std::shared_ptr<Function> &function) {
  if (const Status status = session.object(session.life.functions, handle, function)) return status;
  if (!function->module->is_loaded) {
    return session.refuse(INVALID_HANDLE, "the module of " + function->kernel->name + " was unloaded");
  }
  return SUCCESS;
}

}  // namespace

void standin::register_kernel(Kernel kernel) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().kernels[kernel.name] = std::move(kernel);
}

const Kernel *standin::find_kernel(const std::string &name) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().kernels.find(name);
  return found == registry().kernels.end() ? nullptr : &found->second;
}

// Any image will do: what modules hold is registered.
DRIVER_API Status cuModuleLoadData(void **module, const void *image) {
  return call("cuModuleLoadData", [&](Session &session) { return load_module(session, module, image); });
}

DRIVER_API Status cuModuleLoadDataEx(void **module, const void *image, uint32_t num_options, int *options,
                                     void **values) {
  static_cast<void>(num_options), static_cast<void>(options), static_cast<void>(values);
  return call("cuModuleLoadDataEx", [&](Session &session) { return load_module(session, module, image); });
}

DRIVER_API Status cuModuleGetFunction(void **function, void *module, const char *name) {
  return call("cuModuleGetFunction", [&](Session &session) -> Status {
    std::shared_ptr<Module> found;
    if (function == nullptr || name == nullptr) return INVALID_VALUE;
    if (const Status status = session.object(session.life.modules, module, found)) return status;
    const Kernel *const kernel = find_kernel(name);
    if (kernel == nullptr) return NOT_FOUND;
    *function = session.life.functions.add(std::make_shared<Function>(Function{kernel, found}));
    return SUCCESS;
  });
}

DRIVER_API Status cuModuleUnload(void *module) {
  return call("cuModuleUnload", [&](Session &session) -> Status {
    std::shared_ptr<Module> found;
    if (const Status status = session.object(session.life.modules, module, found)) return status;
    found->is_loaded = false;
    session.life.modules.remove(module);
    return SUCCESS;
  });
}

DRIVER_API Status cuFuncSetAttribute(void *handle, int attribute, int value) {
  static_cast<void>(attribute), static_cast<void>(value);
  return call("cuFuncSetAttribute", [&](Session &session) -> Status {
    std::shared_ptr<Function> function;
    return find_function(session, handle, function);
  });
}

DRIVER_API Status cuLaunchKernel(void *handle, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t block_x,
                                 uint32_t block_y, uint32_t block_z, uint32_t shared_bytes, void *stream_handle,
                                 void **params, void **extra) {
  return call("cuLaunchKernel", [&](Session &session) -> Status {
    std::shared_ptr<Function> function;
    std::shared_ptr<Stream> stream;
    if (const Status status = find_function(session, handle, function)) return status;
    if (const Status status = session.stream(stream_handle, stream)) return status;
    const Kernel &kernel = *function->kernel;
    const std::array<uint32_t, 3> grid = {grid_x, grid_y, grid_z};
    const std::array<uint32_t, 3> block = {block_x, block_y, block_z};
    const uint64_t num_blocks = uint64_t{grid_x} * grid_y * grid_z;
    const uint64_t num_threads = uint64_t{block_x} * block_y * block_z;
    if (num_blocks == 0 || num_threads == 0 || num_threads > 1024) {
      return session.refuse(INVALID_VALUE, kernel.name + text(": %llu blocks of %llu threads",
                                                              static_cast<unsigned long long>(num_blocks),
                                                              static_cast<unsigned long long>(num_threads)));
    }
    bool has_params = extra == nullptr && (params != nullptr || kernel.param_sizes.empty());
    for (size_t i = 0; has_params && i < kernel.param_sizes.size(); ++i) has_params = params[i] != nullptr;
    if (!has_params) return session.refuse(INVALID_VALUE, kernel.name + ": parameters are missing");
    auto work = make_work(kernel.name);
    const auto copied = std::make_shared<Params>(kernel, params);
    add_accesses(*work, kernel, grid.data(), block.data(), copied->pointers());
    work->needs_peer_access = true;
    work->run = [run = kernel.run, grid, block, shared_bytes, copied] {
      run(grid.data(), block.data(), shared_bytes, copied->pointers());
    };
    return session.submit(*stream, work);
  });
}

DRIVER_API Status cuLaunchHostFunc(void *stream_handle, void (*function)(void *), void *user) {
  return call("cuLaunchHostFunc", [&](Session &session) -> Status {
    std::shared_ptr<Stream> stream;
    if (function == nullptr) return INVALID_VALUE;
    if (const Status status = session.stream(stream_handle, stream)) return status;
    auto work = make_work("cuLaunchHostFunc");
    work->run = [function, user] { function(user); };
    return session.submit(*stream, work);
  });
}
