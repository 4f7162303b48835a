/// Schedules: who computes what in which order.
#ifndef DUALPIPE_SCHEDULE_HPP
#define DUALPIPE_SCHEDULE_HPP

#include <dualpipe/op.hpp>
#include <dualpipe/schedule.h>
#include <dualpipe/status.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace dualpipe {

/// The published schedules.
enum class ScheduleKind : std::uint32_t {
  /// DualPipe (DeepSeek-V3, arXiv 2412.19437): two directions, two copies of the parameters. num_ranks even, 2 to
  /// 4096; num_microbatches counts both directions, even, at least 2 * num_ranks - 2 (2 if forward_only).
  dualpipe = DUALPIPE_KIND_DUALPIPE,
  /// DualPipeV: DualPipe folded into a V, one copy of the parameters, two stages on each rank. num_ranks 1 to 4096;
  /// num_microbatches at least 2 * num_ranks - 1 (1 if forward_only).
  dualpipe_v = DUALPIPE_KIND_DUALPIPE_V,
  /// 1F1B (PipeDream-Flush, arXiv 2006.09503). num_ranks 1 to 4096; num_microbatches at least 1.
  one_f_one_b = DUALPIPE_KIND_1F1B,
  /// GPipe (arXiv 1811.06965): all forwards, then all backwards. Sizes as of 1F1B.
  gpipe = DUALPIPE_KIND_GPIPE,
  /// Interleaved 1F1B (Megatron-LM, arXiv 2104.04473): stages_per_rank at least 1, num_microbatches a multiple of
  /// num_ranks.
  interleaved_1f1b = DUALPIPE_KIND_INTERLEAVED_1F1B,
  /// With a forward more in the warm-up, and pairs behind it (Megatron-LM's combined 1F1B). Sizes as of interleaved.
  interleaved_overlapped = DUALPIPE_KIND_INTERLEAVED_OVERLAPPED,
  /// With backwards in halves (torch's ScheduleInterleavedZeroBubble). num_microbatches a multiple of
  /// num_microbatches / num_ranks, rounded down, if that is not 0.
  interleaved_zero_bubble = DUALPIPE_KIND_INTERLEAVED_ZERO_BUBBLE,
  /// Looped breadth first (arXiv 2211.05953): stages_per_rank at least 1.
  looped_bfs = DUALPIPE_KIND_LOOPED_BFS,
  /// Chimera (arXiv 2107.06925): two directions, whole backwards. num_ranks and num_microbatches even.
  chimera = DUALPIPE_KIND_CHIMERA,
  /// ZB-H1 (Zero Bubble, arXiv 2401.10241): the memory of 1F1B. Sizes as of 1F1B.
  zb_h1 = DUALPIPE_KIND_ZB_H1,
  /// ZB-H2 (the same): no bubble where F = I = W, for more memory. Sizes as of 1F1B.
  zb_h2 = DUALPIPE_KIND_ZB_H2,
  /// ZB-V (the same, and arXiv 2405.15362): two stages on each rank in a V.
  zb_v = DUALPIPE_KIND_ZB_V,
  /// V-Half (arXiv 2405.15362): half the memory of 1F1B.
  v_half = DUALPIPE_KIND_V_HALF,
  /// V-Min (arXiv 2405.15362): a third of the memory of 1F1B.
  v_min = DUALPIPE_KIND_V_MIN,
};

/// What schedule to create. stages_per_rank is 0 unless the kind wants it.
struct ScheduleOptions : dualpipe_schedule_options {
  /// Its ranks, its micro-batches of a step, both directions together, and whether they only go forward, for inference.
  ScheduleOptions(ScheduleKind which, std::uint32_t ranks, std::uint32_t microbatches, bool is_forward_only = false)
      : dualpipe_schedule_options DUALPIPE_SCHEDULE_OPTIONS_INIT {
    kind = static_cast<std::uint32_t>(which);
    num_ranks = ranks;
    num_microbatches = microbatches;
    forward_only = is_forward_only;
  }
};

/// What a schedule is: num_ranks, num_stages, num_directions, num_microbatches, forward_only.
struct ScheduleInfo : dualpipe_schedule_info {
  ScheduleInfo() : dualpipe_schedule_info DUALPIPE_SCHEDULE_INFO_INIT {}

  ScheduleKind kind() const noexcept { return static_cast<ScheduleKind>(dualpipe_schedule_info::kind); }
};

inline namespace DUALPIPE_ERRORS {

/// For every rank, the order of its ops. It never changes: any number of threads may use it at once. It stays usable
/// after a fork.
class Schedule : public detail::Handle<dualpipe_schedule_t, dualpipe_schedule_free> {
public:
  using Handle::Handle;

  /// A published schedule.
  ///
  /// Errors: Status::invalid_argument if the options are outside the range that their kind has. Time and memory:
  /// proportional to the ops of all ranks.
  static Result<Schedule> create(const ScheduleOptions &options) {
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_schedule_create(&options, &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// The same.
  static Result<Schedule> create(ScheduleKind kind, std::uint32_t num_ranks, std::uint32_t num_microbatches,
                                 bool forward_only = false) {
    return create(ScheduleOptions(kind, num_ranks, num_microbatches, forward_only));
  }

  /// Its kind and sizes.
  Result<ScheduleInfo> describe() const {
    ScheduleInfo info;
    const dualpipe_status status = dualpipe_schedule_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The ops of `rank`, 0 to num_ranks - 1, in order.
  Result<std::vector<Op>> order(std::uint32_t rank) const {
    return detail::values<Op>([&](Op *ops, std::size_t capacity, std::size_t *count) {
      return dualpipe_schedule_order(get(), rank, ops, capacity, count);
    });
  }

  /// The rank that holds the parameters of `stage`, 0 to num_stages - 1, in `direction`, 0 to num_directions - 1.
  Result<std::uint32_t> rank_of(std::uint32_t direction, std::uint32_t stage) const {
    std::uint32_t rank = 0;
    const dualpipe_status status = dualpipe_schedule_rank_of(get(), direction, stage, &rank);
    return detail::outcome(status, [&] { return rank; });
  }

  /// Proves that it can run: every (direction, stage, micro-batch) has its F and then its B, or its I and then its W,
  /// exactly once and on the right rank; every message has its pair; no rank waits for ever, neither with asynchronous
  /// sends nor with blocking grouped exchanges. Gives for each rank the most micro-batch activations alive at once.
  ///
  /// Errors: Status::invalid_schedule, with rank, position, op and reason. Time: proportional to the ops.
  Result<std::vector<std::uint32_t>> check() const {
    return detail::values<std::uint32_t>([&](std::uint32_t *peak_live, std::size_t capacity, std::size_t *count) {
      return dualpipe_schedule_check(get(), peak_live, capacity, count);
    });
  }

  /// A line for each rank, such as "1| 1F0 2f0 1F1 ...". A token is stage, kind, micro-batch; the kind is a small
  /// letter in direction 1; a pair is "2F3&5b1".
  Result<std::string> to_text() const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_schedule_to_text(get(), text, capacity, length);
    });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_SCHEDULE_HPP
