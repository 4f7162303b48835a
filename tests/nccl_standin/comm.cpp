// The life of a communicator: its unique id, its initialisation, what can be asked of it, and its end.
#include <climits>
#include <cstdlib>
#include <cstring>

#include "call.h"
#include "driver.h"
#include "op.h"

namespace nccl_standin {
namespace {

/// From here on, several ranks may be on one device, if the environment says so.
const int kMultiRankVersion = 23003;
const unsigned kConfigMagic = 0xcafebeef;

bool is_multi_rank_enabled() {
  const char *value = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  return state().version >= kMultiRankVersion && value != nullptr && strcmp(value, "1") == 0;
}

/// What there is of a configuration, in the order in which NCCL has grown; the rest is as it would be without.
int read_config(const ncclConfig_t *given, bool *is_blocking) {
  ncclConfig_t config = {0, 0, 0, INT_MIN, INT_MIN, INT_MIN, INT_MIN, nullptr, INT_MIN};
  size_t size = given->size < sizeof config ? given->size : sizeof config;
  if (size >= offsetof(ncclConfig_t, blocking)) memcpy(&config, given, size);
  if (config.magic != kConfigMagic) {
    return last_error(ncclInvalidArgument, "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
  }
  if (config.version < 21400) config.blocking = INT_MIN;
  if (config.version < 21700) config.cgaClusterSize = config.minCTAs = config.maxCTAs = INT_MIN;
  if (config.blocking != INT_MIN && config.blocking != 0 && config.blocking != 1) {
    return last_error(ncclInvalidArgument, "Invalid config blocking attribute value %d", config.blocking);
  }
  if (config.cgaClusterSize != INT_MIN && config.cgaClusterSize < 0) {
    return last_error(ncclInvalidArgument, "Invalid config cgaClusterSize attribute value %d", config.cgaClusterSize);
  }
  // A minimum without a maximum is refused as well: the one that is not given is the smallest of all numbers.
  bool is_min_bad = config.minCTAs != INT_MIN && config.minCTAs <= 0;
  bool is_max_bad = config.maxCTAs != INT_MIN && config.maxCTAs <= 0;
  if (is_min_bad || is_max_bad || config.minCTAs > config.maxCTAs) {
    return last_error(ncclInvalidArgument, "Invalid config min/max channels attribute value %d/%d", config.minCTAs,
                      config.maxCTAs);
  }
  if (config.splitShare != INT_MIN && config.splitShare != 0 && config.splitShare != 1) {
    return last_error(ncclInvalidArgument, "Invalid config splitShare attribute value %d", config.splitShare);
  }
  *is_blocking = config.blocking != 0;
  return ncclSuccess;
}

/// All ranks are there: whether their devices will do. With the lock held.
void judge_devices(Clique &clique) {
  if (!state().is_same_device_forbidden || is_multi_rank_enabled()) return;
  for (int i = 0; i < clique.size; ++i) {
    for (int j = 0; j < i; ++j) {
      if (clique.devices[i] != clique.devices[j]) continue;
      clique.failure = ncclInvalidUsage;
      if (state().version >= kMultiRankVersion) {
        last_error(ncclInvalidUsage, "Multiple ranks detected using the same GPU on this node");
      } else {
        last_error(ncclInvalidUsage, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %x", i, j,
                   clique.devices[i]);
      }
      return;
    }
  }
}

/// The communicator that the id stands for, if this rank can join it. With the lock held.
int find_clique(const ncclUniqueId &id, int size, int rank, std::shared_ptr<Clique> *clique) {
  auto found = state().cliques.find(std::string(id.internal, sizeof id.internal));
  if (found == state().cliques.end()) {
    problem("ncclCommInitRank: not an id that ncclGetUniqueId gave");
    return last_error(ncclInvalidArgument, "ncclCommInitRank: unknown unique id");
  }
  if (found->second == nullptr) {
    found->second = std::make_shared<Clique>();
    found->second->size = size;
    found->second->labels.assign(size, -1);
    found->second->devices.assign(size, -1);
    found->second->ends.resize(size);
    found->second->has_signalled.assign(size, false);
  }
  *clique = found->second;
  if ((*clique)->size != size || (*clique)->devices[rank] >= 0) {
    problem("ncclCommInitRank: rank %d of %d joins %d ranks that have it, or are not as many", rank, size,
            (*clique)->size);
    return last_error(ncclInvalidUsage, "ncclCommInitRank: the unique id was used for that already");
  }
  return ncclSuccess;
}

int initialise(const char *function, ncclComm_t *comm, int size, const ncclUniqueId &id, int rank,
               const ncclConfig_t *config) {
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (int code = fail_call(function, thread_label())) return last_error(code, "%s: as asked for", function);
  }
  if (comm == nullptr) return last_error(ncclInvalidArgument, "%s : newcomm argument is NULL", function);
  *comm = nullptr;
  const Driver *found = driver();
  if (found == nullptr) return last_error(ncclUnhandledCudaError, "Cuda failure: there is no stand-in libcuda.so.1");
  if (size < 1 || rank < 0 || rank >= size) {
    return last_error(ncclInvalidArgument, "Invalid rank requested : %d/%d", rank, size);
  }
  std::shared_ptr<End> end = std::make_shared<End>();
  if (config != nullptr) {
    if (int code = read_config(config, &end->is_blocking)) return code;
  }
  int device = found->device();
  std::unique_lock<std::mutex> lock(state().mutex);
  end->generation = state().generation;
  end->rank = rank;
  end->label = thread_label() >= 0 ? thread_label() : rank;
  if (int code = find_clique(id, size, rank, &end->clique)) return code;
  if (device < 0) {
    problem("%s: no context is current for %s: NCCL would take device 0", function, end->name().c_str());
    device = 0;
  }
  Clique &clique = *end->clique;
  clique.labels[rank] = end->label;
  clique.devices[rank] = device;
  clique.ends[rank] = end;
  clique.num_joined += 1;
  if (clique.num_joined == size) judge_devices(clique);
  state().changed.notify_all();
  std::unique_ptr<ncclComm> handle(new ncclComm{state().handles.size()});
  *comm = handle.get();
  state().handles[*comm] = {std::move(handle), end};
  if (!end->is_blocking) end->num_polls = static_cast<int>(roll(*end) % 4);
  if (group().depth > 0) {
    group().initialising.push_back(end);
    return ncclSuccess;
  }
  return end->is_blocking ? wait_until_initialised(*end, lock) : ncclInProgress;
}

/// One more question has been asked; with the lock held, which is let go of while streams are filled.
int poll(const std::shared_ptr<End> &end, std::unique_lock<std::mutex> &lock) {
  const Clique &clique = *end->clique;
  if (end->async_error != ncclSuccess) return end->async_error;
  if (!end->is_initialised) {
    // A communicator that blocks is being waited for elsewhere.
    bool is_waiting = end->is_blocking || clique.num_joined < clique.size || state().is_init_hung;
    if (is_waiting || end->num_polls-- > 0) return ncclInProgress;
    end->async_error = clique.failure;
    end->is_initialised = clique.failure == ncclSuccess;
    return clique.failure;
  }
  if (!end->is_in_progress) return ncclSuccess;
  if (end->is_finalized && end->num_pending > 0) return ncclInProgress;
  if (!end->deferred.empty() && end->caller != std::this_thread::get_id()) return ncclInProgress;
  if (end->registering != nullptr && end->registering->num_registered < clique.size) return ncclInProgress;
  if (!is_connected(*end, end->deferred) || end->num_polls-- > 0) return ncclInProgress;
  if (end->registering != nullptr) finish_registration(end);
  std::vector<std::shared_ptr<Op>> ops = std::move(end->deferred);
  end->deferred.clear();
  // Another thread may ask meanwhile, and shall not hear that all is done.
  end->num_polls = INT_MAX;
  int code = ncclSuccess;
  lock.unlock();
  for (const std::shared_ptr<Op> &op : ops) code = code == ncclSuccess ? enqueue(op) : code;
  lock.lock();
  end->is_in_progress = false;
  if (end->async_error == ncclSuccess) end->async_error = code;  // what was enqueued may have failed already
  return end->async_error;
}

template <typename Answer>
int ask(const char *function, ncclComm_t comm, int *value, Answer answer) {
  Call call(function, comm, Call::kQuestion);
  if (call.code != ncclSuccess) return call.code;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (value == nullptr) return last_error(ncclInvalidArgument, "%s : argument is NULL", function);
  if (int code = ensure_ready(function, *call.end)) return code;
  *value = answer(*call.end);
  return ncclSuccess;
}

}  // namespace
}  // namespace nccl_standin

using namespace nccl_standin;

NCCL_FUNCTION int ncclGetUniqueId(ncclUniqueId *id) {
  std::lock_guard<std::mutex> lock(state().mutex);
  if (int code = fail_call("ncclGetUniqueId", thread_label())) return last_error(code, "ncclGetUniqueId: as asked for");
  if (id == nullptr) return last_error(ncclInvalidArgument, "GetUniqueId : out argument is NULL");
  // All bytes count, so that one who passes on too few is found out.
  state().num_ids += 1;
  for (size_t i = 0; i < sizeof id->internal; ++i) {
    id->internal[i] = static_cast<char>(state().num_ids * 0x9e3779b97f4a7c15 >> (i % 8 * 8)) ^ static_cast<char>(i);
  }
  state().cliques[std::string(id->internal, sizeof id->internal)] = nullptr;
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank) {
  return tell_group(initialise("ncclCommInitRank", comm, nranks, id, rank, nullptr));
}

NCCL_FUNCTION int ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank,
                                         ncclConfig_t *config) {
  return tell_group(initialise("ncclCommInitRankConfig", comm, nranks, id, rank, config));
}

NCCL_FUNCTION int ncclCommGetAsyncError(ncclComm_t comm, int *error) {
  Call call("ncclCommGetAsyncError", comm, Call::kQuestion);
  if (call.code != ncclSuccess) return call.code;
  if (error == nullptr) return last_error(ncclInvalidArgument, "ncclGetAsyncError : asyncError argument is NULL");
  std::unique_lock<std::mutex> lock(state().mutex);
  *error = poll(call.end, lock);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommCount(const ncclComm_t comm, int *count) {
  return ask("ncclCommCount", comm, count, [](const End &end) { return end.clique->size; });
}

NCCL_FUNCTION int ncclCommUserRank(const ncclComm_t comm, int *rank) {
  return ask("ncclCommUserRank", comm, rank, [](const End &end) { return end.rank; });
}

NCCL_FUNCTION int ncclCommCuDevice(const ncclComm_t comm, int *device) {
  return ask("ncclCommCuDevice", comm, device, [](const End &end) { return end.clique->devices[end.rank]; });
}

NCCL_FUNCTION int ncclCommFinalize(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  Call call("ncclCommFinalize", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  std::unique_lock<std::mutex> lock(state().mutex);
  End &end = *call.end;
  if (int code = ensure_ready("ncclCommFinalize", end)) return code;
  if (end.is_finalized) {
    problem("ncclCommFinalize: %s has been finalized before", end.name().c_str());
    return last_error(ncclInvalidArgument, "ncclCommFinalize: finalized before");
  }
  end.is_finalized = true;
  if (!end.is_blocking) {
    end.is_in_progress = true;
    end.num_polls = static_cast<int>(roll(end) % 4);
    return ncclInProgress;
  }
  state().changed.wait(lock, [&] { return end.is_gone || end.num_pending == 0; });
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommDestroy(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  Call call("ncclCommDestroy", comm, Call::kAlone);
  if (call.code != ncclSuccess) return call.code;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    // NCCL does nothing either with one that has failed: it has to be aborted.
    if (int code = ensure_ready("ncclCommDestroy", *call.end)) return code;
    if (call.end->num_pending > 0) {
      problem("ncclCommDestroy: %s has %llu operations pending, which may wait for ever", call.end->name().c_str(),
              static_cast<unsigned long long>(call.end->num_pending));
    }
  }
  withdraw(*call.end);
  return ncclSuccess;
}

NCCL_FUNCTION int ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  Call call("ncclCommAbort", comm, Call::kAbort);
  if (call.code != ncclSuccess) return call.code;
  {
    std::unique_lock<std::mutex> lock(state().mutex);
    state().changed.wait(lock, [&] { return !state().is_abort_hung || call.end->is_gone; });
    if (call.end->is_gone) return ncclSuccess;
    if (call.end->num_waits > 0) {
      problem("ncclCommAbort: streams wait for signals of %s, go on to wait, and read memory that is gone",
              call.end->name().c_str());
    }
  }
  withdraw(*call.end);
  return ncclSuccess;
}
