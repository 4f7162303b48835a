// The kernels that modules have: functions registered by name, for the life of the process.
#pragma once

#include <string>
#include <vector>

#include "standin.h"

namespace standin {

struct Kernel {
  std::string name;
  void (*run)(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **params) = nullptr;
  size_t (*accesses)(const uint32_t grid[3], const uint32_t block[3], void **params, standin_access *out,
                     size_t capacity) = nullptr;
  std::vector<size_t> param_sizes;
};

// Called under the engine's lock or not: the registry has its own.
void register_kernel(Kernel kernel);
const Kernel *find_kernel(const std::string &name);

}  // namespace standin
