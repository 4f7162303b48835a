// ncclMemAlloc, and windows: memory that all ranks of a communicator register together, so that others may put into it.
//
// In NCCL memory that has been registered lives on until no other rank can reach it any more. Here it does if another
// rank still has to put something there: a driver that waits for the end of all use would wait for that rank.
#include <algorithm>
#include <set>

#include "call.h"
#include "driver.h"
#include "op.h"
#include "window.h"

namespace nccl_standin {
namespace {

/// Those that programs hold. Under the lock of the state.
std::set<ncclWindow_t> &windows() {
  static std::set<ncclWindow_t> *there = new std::set<ncclWindow_t>;
  return *there;
}

int count_call(const char *function) {
  std::lock_guard<std::mutex> lock(state().mutex);
  int code = fail_call(function, thread_label());
  return code == ncclSuccess ? code : last_error(code, "%s: as asked for", function);
}

/// Whether memory that its rank gives back has to stay. Tells if it is still registered. With the lock held.
bool is_kept(const void *memory) {
  bool is_kept = false;
  for (auto &handle : state().handles) {
    const End &end = *handle.second.second;
    if (end.generation != state().generation) continue;
    for (auto &registration : end.clique->registrations) {
      if (registration->address[end.rank] != memory) continue;
      if (registration->is_live[end.rank]) problem("ncclMemFree: that is a window of %s", end.name().c_str());
      for (auto &entry : end.clique->ends) {
        std::shared_ptr<End> other = entry.lock();
        bool is_busy = other != nullptr && other->rank != end.rank && !other->is_gone && other->num_pending > 0;
        is_kept = is_kept || (registration->is_target[end.rank] && is_busy);
      }
    }
  }
  return is_kept;
}

/// The rank has its part of what all register next; with the lock held.
std::shared_ptr<Registration> join_registration(End &end, void *data, size_t bytes) {
  Clique &clique = *end.clique;
  size_t number = end.num_registrations++;
  if (number == clique.registrations.size()) {
    clique.registrations.push_back(std::make_shared<Registration>(clique.size));
  }
  std::shared_ptr<Registration> registration = clique.registrations[number];
  registration->address[end.rank] = static_cast<char *>(data);
  registration->bytes[end.rank] = bytes;
  registration->is_live[end.rank] = true;
  registration->num_registered += 1;
  return registration;
}

}  // namespace

void finish_registration(const std::shared_ptr<End> &end) {
  if (state().has_windows) {
    *end->window = new ncclWindow_vidmem{end, end->registering};
    windows().insert(*end->window);
  }
  end->registering = nullptr;
}

void forget_windows(End &end) {
  for (auto &registration : end.clique->registrations) registration->is_live[end.rank] = false;
  for (auto window = windows().begin(); window != windows().end();) {
    if ((*window)->end.get() != &end) {
      ++window;
    } else {
      delete *window;
      window = windows().erase(window);
    }
  }
}

std::shared_ptr<Registration> find_window(ncclWindow_t window, const End &end) {
  auto found = windows().find(window);
  return found == windows().end() || window->end.get() != &end ? nullptr : window->registration;
}

}  // namespace nccl_standin

using namespace nccl_standin;

NCCL_FUNCTION int ncclMemAlloc(void **memory, size_t bytes) {
  if (int code = count_call("ncclMemAlloc")) return code;
  if (memory == nullptr) return last_error(ncclInvalidArgument, "ncclMemAlloc : ptr argument is NULL");
  const Driver *found = driver();
  uint64_t address = 0;
  if (found == nullptr || found->allocate == nullptr || found->allocate(&address, bytes) != 0) {
    return last_error(ncclUnhandledCudaError, "ncclMemAlloc: the driver gives no %zu bytes", bytes);
  }
  *memory = reinterpret_cast<void *>(address);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclMemFree(void *memory) {
  if (int code = count_call("ncclMemFree")) return code;
  if (memory == nullptr) return ncclSuccess;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (is_kept(memory)) return ncclSuccess;
  }
  const Driver *found = driver();
  if (found == nullptr || found->free == nullptr || found->free(reinterpret_cast<uint64_t>(memory)) != 0) {
    return last_error(ncclUnhandledCudaError, "ncclMemFree: the driver does not take it back");
  }
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommWindowRegister(ncclComm_t comm, void *data, size_t bytes, ncclWindow_t *window, int flags) {
  Call call("ncclCommWindowRegister", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::unique_lock<std::mutex> lock(state().mutex);
  const std::shared_ptr<End> &end = call.end;
  if (int code = ensure_ready("ncclCommWindowRegister", *end)) return code;
  if (data == nullptr || bytes == 0 || window == nullptr) {
    return last_error(ncclInvalidArgument, "ncclCommWindowRegister : an argument is NULL");
  }
  if (group().depth > 0 || flags != NCCL_WIN_COLL_SYMMETRIC) {
    problem("ncclCommWindowRegister: in a group, or not symmetric, which is not stood in for");
    return last_error(ncclInvalidUsage, "ncclCommWindowRegister: not stood in for");
  }
  *window = nullptr;
  end->window = window;
  end->registering = join_registration(*end, data, bytes);
  state().changed.notify_all();
  if (!end->is_blocking) {
    end->is_in_progress = true;
    end->num_polls = static_cast<int>(roll(*end) % 4);
    return ncclInProgress;
  }
  state().changed.wait(lock, [&] { return end->is_gone || end->registering->num_registered == end->clique->size; });
  if (end->is_gone) return ncclInternalError;
  finish_registration(end);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window) {
  Call call("ncclCommWindowDeregister", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (window == nullptr) return ncclSuccess;
  const End &end = *call.end;
  std::shared_ptr<Registration> registration = find_window(window, end);
  if (registration == nullptr) {
    problem("ncclCommWindowDeregister: that is no window of %s", end.name().c_str());
    return last_error(ncclInvalidArgument, "ncclCommWindowDeregister: no such window");
  }
  if (end.num_pending > 0) {
    problem("ncclCommWindowDeregister: %s has %llu operations pending", end.name().c_str(),
            static_cast<unsigned long long>(end.num_pending));
  }
  registration->is_live[end.rank] = false;
  windows().erase(window);
  delete window;
  return ncclSuccess;
}
