// A window, as the program's handle of what was registered.
#pragma once

#include "state.h"

/// What a program holds of a window.
struct ncclWindow_vidmem {
  std::shared_ptr<nccl_standin::End> end;
  std::shared_ptr<nccl_standin::Registration> registration;
};

namespace nccl_standin {

/// What this end knows as `window`; nothing if it is none of its own. With the lock held.
std::shared_ptr<Registration> find_window(ncclWindow_t window, const End &end);

}  // namespace nccl_standin
