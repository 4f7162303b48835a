/// Schedules: who computes what in which order.
#ifndef DUALPIPE_SCHEDULE_HPP
#define DUALPIPE_SCHEDULE_HPP

#include <dualpipe/op.hpp>
#include <dualpipe/schedule.h>
#include <dualpipe/schedule_orders.h>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <algorithm>
#include <cstddef>
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
  /// None of these: from outside, by from_orders or from_text; create does not take it.
  custom = DUALPIPE_KIND_CUSTOM,
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

/// A schedule in its parts, for Schedule::from_orders.
struct ScheduleOrders {
  /// The rank of each stage: a row for each direction, one or two, of as many stages. A rank may have any, or none.
  std::vector<std::vector<std::uint32_t>> rank_of;
  /// The ops of each rank, in order; as many rows as ranks. The copy of a pass is not read: rank_of says it.
  std::vector<std::vector<Op>> orders;
  /// The micro-batches of a step, both directions together; of two directions the first has the odd one.
  std::uint32_t num_microbatches = 0;
  /// Whether they only go forward, for inference.
  bool forward_only = false;
  /// What errors and pictures call it; of UTF-8 at most 255 bytes count, without control characters. Empty: "custom".
  std::string name;
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

  /// One from outside, of kind custom: any order, on any placement of stages on ranks. What order() gives may go in.
  ///
  /// It need not be one that can run: passes that are missing, doubled, misplaced, or none of the placement's are found
  /// by check(), and by whatever is made from it.
  ///
  /// Errors: Status::invalid_argument for sizes outside their ranges, and, with rank and position, for an op of another
  /// kind, or of a pass that no schedule may have. Time and memory: proportional to the ops.
  static Result<Schedule> from_orders(const ScheduleOrders &given) {
    std::size_t num_stages = 0;
    for (const auto &row : given.rank_of) num_stages = std::max(num_stages, row.size());
    std::vector<std::uint32_t> rank_of;
    for (const auto &row : given.rank_of) {
      rank_of.insert(rank_of.end(), row.begin(), row.end());
      rank_of.resize(rank_of.size() + num_stages - row.size(), none); // refused: directions have as many stages
    }
    std::vector<dualpipe_order> orders;
    for (const auto &order : given.orders) orders.push_back({order.data(), order.size()});
    dualpipe_schedule_orders in_c = DUALPIPE_SCHEDULE_ORDERS_INIT;
    in_c.num_ranks = number(orders.size());
    in_c.num_stages = number(num_stages);
    in_c.num_directions = number(given.rank_of.size());
    in_c.num_microbatches = given.num_microbatches;
    in_c.forward_only = given.forward_only;
    in_c.rank_of = rank_of.data();
    in_c.orders = orders.data();
    in_c.name = given.name.c_str();
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_schedule_create_from_orders(&in_c, &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// One from a text such as to_text gives, of kind custom. Ranks, stages and micro-batches are as many as the text
  /// has, a stage is on the rank that has its ops, and without any backward it is forward only.
  ///
  /// Errors: Status::invalid_argument, with line and column: what is no rank or op, ranks out of order, a stage on two
  /// ranks or without any op; directions with other numbers of stages or micro-batches, but for one more in the first.
  static Result<Schedule> from_text(Span<const char> text, const std::string &name = {}) {
    dualpipe_schedule_t schedule = nullptr;
    const char *data = text.empty() ? "" : text.data();
    const dualpipe_status status = dualpipe_schedule_create_from_text(data, text.size(), name.c_str(), &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// Of a published one such as "dualpipe_v", otherwise as it was created.
  Result<std::string> name() const {
    return detail::text([&](char *name, std::size_t capacity, std::size_t *length) {
      return dualpipe_schedule_name(get(), name, capacity, length);
    });
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

private:
  /// A size as C takes it; what is too large stays too large.
  static std::uint32_t number(std::size_t size) {
    return static_cast<std::uint32_t>(std::min<std::size_t>(size, none));
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_SCHEDULE_HPP
