/// CUDA devices: what there is, how an executor uses one, and NCCL between them.
#ifndef DUALPIPE_CUDA_HPP
#define DUALPIPE_CUDA_HPP

#include <dualpipe/cuda.h>
#include <dualpipe/schedule.hpp>
#include <dualpipe/status.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe {

/// How far an executor is from launching whole steps.
enum class GraphState : std::uint32_t {
  off = DUALPIPE_GRAPH_OFF,             ///< Graphs were not asked for.
  cold = DUALPIPE_GRAPH_COLD,           ///< The next step runs as usual.
  warm = DUALPIPE_GRAPH_WARM,           ///< The next step is captured.
  captured = DUALPIPE_GRAPH_CAPTURED,   ///< Steps are launched.
  fell_back = DUALPIPE_GRAPH_FELL_BACK, ///< A step could not be captured: steps run as usual.
};

/// How far, and why a step could not be captured, if one could not.
struct GraphStatus {
  GraphState state = GraphState::off;
  std::string why;
};

/// What CUDA there is: num_devices, and driver_version (1000 * major + 10 * minor).
struct CudaInfo : dualpipe_cuda_info {
  CudaInfo() : dualpipe_cuda_info DUALPIPE_CUDA_INFO_INIT {}
};

/// How an executor uses a CUDA device: its fields are those of dualpipe_cuda_options in dualpipe/cuda.h, where each is
/// described. As made: device 0, streams of the executor's own, nothing recorded, steps that are done when they return.
struct CudaOptions : dualpipe_cuda_options {
  CudaOptions() : dualpipe_cuda_options DUALPIPE_CUDA_OPTIONS_INIT {}
};

/// How NCCL joins the ranks of a pipeline, each in a process of its own.
struct NcclOptions {
  explicit NcclOptions(std::vector<std::uint8_t> id) : unique_id(std::move(id)) {}

  /// What nccl_unique_id gave on one rank, the same on all, for one executor on each.
  std::vector<std::uint8_t> unique_id;
  /// Multiprocessors (CTAs) that each communicator uses at most, 1 to 64; 0 is 2.
  std::uint32_t max_ctas = 0;
  /// Messages are put by copy engines where NCCL can, which take no multiprocessor: dualpipe/cuda.h has the conditions.
  bool zero_cta = false;

  /// As C has them, while this lives and stays as it is.
  dualpipe_nccl_options in_c() const noexcept {
    dualpipe_nccl_options options = DUALPIPE_NCCL_OPTIONS_INIT;
    options.max_ctas = max_ctas;
    options.unique_id = unique_id.data();
    options.unique_id_length = unique_id.size();
    options.zero_cta = zero_cta;
    return options;
  }
};

inline namespace DUALPIPE_ERRORS {

/// What CUDA there is on this machine.
///
/// Errors: Status::unavailable, whose text says what is missing: the driver, a function of it, or a device.
inline Result<CudaInfo> cuda_available() {
  CudaInfo info;
  const dualpipe_status status = dualpipe_cuda_available(&info);
  return detail::outcome(status, [&] { return info; });
}

/// The version of NCCL that is found, 10000 * major + 100 * minor + patch.
///
/// Errors: Status::unavailable, whose text says what is missing.
inline Result<std::uint32_t> nccl_version() {
  std::uint32_t version = 0;
  const dualpipe_status status = dualpipe_nccl_version(&version);
  return detail::outcome(status, [&] { return version; });
}

/// New ids for the communicators of a pipeline that follows `schedule`. One rank asks for them and hands them to all
/// others by whatever it has (MPI, a store, a file); each set is for one executor on each rank. That rank's process
/// must live while the others join.
///
/// Errors: Status::unavailable without NCCL; Status::transport with NCCL's own words.
inline Result<std::vector<std::uint8_t>> nccl_unique_id(const Schedule &schedule) {
  return detail::values<std::uint8_t>([&](std::uint8_t *bytes, std::size_t capacity, std::size_t *count) {
    return dualpipe_nccl_unique_id(schedule.get(), bytes, capacity, count);
  });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_CUDA_HPP
