/// PyTorch's schedule CSV: schedules that torch.distributed.pipelining loads, and those that it dumps.
#ifndef DUALPIPE_TORCH_CSV_HPP
#define DUALPIPE_TORCH_CSV_HPP

#include <dualpipe/schedule.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/torch_csv.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dualpipe {

/// What a CSV of torch's holds: the format of its `_load_csv`.
enum class TorchCsvFormat : std::uint32_t {
  compute_only = DUALPIPE_TORCH_CSV_COMPUTE_ONLY,   ///< F, I, W, B and pairs: torch puts in the communication.
  compute_comms = DUALPIPE_TORCH_CSV_COMPUTE_COMMS, ///< The communication is in the file.
};

/// A version of torch: {2, 15}. What a cell may hold depends on it, and torch does not refuse what another knows.
struct TorchVersion {
  std::uint32_t major = 2;
  std::uint32_t minor = 15;
};

inline namespace DUALPIPE_ERRORS {

/// A schedule as the CSV that this torch loads. Torch has no pairs before 2.9, in compute_comms before 2.10: there they
/// are forward, then backward.
///
/// Errors: Status::invalid_argument for a version before 2.6, of compute_comms after 2.15, and for schedules that torch
/// does not run: of two directions, forward only, with a rank that holds no stage, or whose last stage takes
/// micro-batches out of their order. Status::invalid_schedule if it cannot run at all.
inline Result<std::string> write_torch_csv(const Schedule &schedule, TorchVersion torch = {},
                                           TorchCsvFormat format = TorchCsvFormat::compute_only) {
  return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
    return dualpipe_schedule_to_torch_csv(schedule.get(), torch.major, torch.minor, static_cast<std::uint32_t>(format),
                                          text, capacity, length);
  });
}

/// The schedule, of kind custom, that this torch runs when it loads the text, in UTF-8. The stages are on the ranks
/// whose rows have them; what compute_comms has besides computations must be complete, and is then left out.
///
/// Errors: Status::invalid_argument with row, column, rank and cell. Whether it can run is Schedule::check's to say.
inline Result<Schedule> read_torch_csv(std::string_view text, TorchVersion torch = {},
                                       TorchCsvFormat format = TorchCsvFormat::compute_only,
                                       const std::string &name = {}) {
  dualpipe_schedule_t schedule = nullptr;
  // An empty view may be of nothing.
  const char *const bytes = text.empty() ? "" : text.data();
  const dualpipe_status status = dualpipe_schedule_create_from_torch_csv(
      bytes, text.size(), torch.major, torch.minor, static_cast<std::uint32_t>(format), name.c_str(), &schedule);
  return detail::outcome(status, [&] { return Schedule(schedule); });
}

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_TORCH_CSV_HPP
