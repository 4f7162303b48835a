// A shared library that is looked for when it is needed, so that the trainer runs without it.
#pragma once

#include <dlfcn.h>

#include <string>
#include <vector>

#include "../data.hpp"

namespace trainer::cuda {

class Library {
public:
  // The first of these that there is. `hint` says in the error what to do.
  Library(const std::vector<std::string> &names, const std::string &hint) {
    std::string tried, why;
    for (const std::string &name : names) {
      handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) {
        name_ = name;
        return;
      }
      tried += (tried.empty() ? "" : ", ") + name;
      if (why.empty()) why = dlerror();
    }
    throw UsageError("--device cuda: cannot load " + tried + " (" + why + "); " + hint);
  }
  Library(const Library &) = delete;
  Library &operator=(const Library &) = delete;
  // It stays loaded: NVIDIA's libraries have threads of their own.

  // Sets a pointer to the function of this name.
  template <class Function>
  void find(const char *name, Function *&function) const {
    function = reinterpret_cast<Function *>(dlsym(handle_, name));
    if (function == nullptr) throw UsageError("--device cuda: " + name_ + " has no " + name + ": it is too old");
  }

private:
  void *handle_ = nullptr;
  std::string name_;
};

} // namespace trainer::cuda
