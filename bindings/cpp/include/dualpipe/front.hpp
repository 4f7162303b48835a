/// Memory against time: the best schedule within each of several memory caps, beside what no schedule can beat.
#ifndef DUALPIPE_FRONT_HPP
#define DUALPIPE_FRONT_HPP

#include <dualpipe/cost.hpp>
#include <dualpipe/front.h>
#include <dualpipe/plan.hpp>
#include <dualpipe/schedule.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dualpipe {

/// What memory is counted in.
enum class MemoryUnit : std::uint32_t {
  activations = DUALPIPE_MEMORY_ACTIVATIONS, ///< Micro-batch activations alive at once, as Schedule::check counts them.
  bytes = DUALPIPE_MEMORY_BYTES,             ///< Bytes, parameters included, as Timeline::ranks counts them.
};

/// What a front can be drawn as.
enum class FrontFormat : std::uint32_t {
  text = DUALPIPE_FRONT_TEXT, ///< A table for a terminal, with a bar from bound to makespan.
  svg = DUALPIPE_FRONT_SVG,   ///< A self-contained SVG.
};

/// What a front is: num_points, num_published, is_stopped.
struct FrontInfo : dualpipe_front_info {
  FrontInfo() : dualpipe_front_info DUALPIPE_FRONT_INFO_INIT {}

  MemoryUnit unit() const noexcept { return static_cast<MemoryUnit>(dualpipe_front_info::unit); }
};

/// The best schedule within a cap: cap, peak (in the front's unit), makespan_ns, lower_bound_ns.
struct FrontPoint : dualpipe_front_point {
  FrontPoint() : dualpipe_front_point DUALPIPE_FRONT_POINT_INIT {}
};

/// A published schedule beside a front: peak (in the front's unit), makespan_ns.
using FrontPublished = dualpipe_front_published;

inline namespace DUALPIPE_ERRORS {

/// Plans within several memory caps. It never changes: any number of threads may use it at once. It stays usable after
/// a fork.
class Front : public detail::Handle<dualpipe_front_t, dualpipe_front_free> {
public:
  using Handle::Handle;

  /// One plan for each cap, 1 to 256 of them, rising, each the same for all ranks. None for all: at most 24, evenly,
  /// from one micro-batch of each direction at a time to where more gains nothing. The options are those of
  /// Plan::create, without caps of their own; iterations and time are those of each plan. If the progress callback
  /// asks to stop, each point has the best that was found until then.
  ///
  /// Errors: Status::invalid_argument, also for a cap that no schedule keeps to.
  static Result<Front> create(const dualpipe_plan_options &options, const Costs &costs, MemoryUnit unit,
                              Span<const std::uint64_t> caps = {}) {
    const dualpipe_costs in_c = costs.in_c();
    dualpipe_front_t front = nullptr;
    const std::uint64_t *const values = caps.empty() ? nullptr : caps.data();
    const dualpipe_status status = dualpipe_front_create(&options, &in_c, static_cast<std::uint32_t>(unit), values,
                                                         caps.size(), &front);
    return detail::outcome(status, [&] { return Front(front); });
  }

  /// Its unit and how much it has.
  Result<FrontInfo> describe() const {
    FrontInfo info;
    const dualpipe_status status = dualpipe_front_describe(get(), &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// A point, 0 to num_points - 1, the smallest cap first.
  Result<FrontPoint> point(std::uint32_t point) const {
    FrontPoint info;
    const dualpipe_status status = dualpipe_front_describe_point(get(), point, &info);
    return detail::outcome(status, [&] { return info; });
  }

  /// The name of what the search that found a point's schedule began with.
  Result<std::string> started_from(std::uint32_t point) const {
    return detail::text([&](char *name, std::size_t capacity, std::size_t *length) {
      return dualpipe_front_started_from(get(), point, name, capacity, length);
    });
  }

  /// A point's schedule.
  Result<Schedule> schedule(std::uint32_t point) const {
    dualpipe_schedule_t schedule = nullptr;
    const dualpipe_status status = dualpipe_front_schedule(get(), point, &schedule);
    return detail::outcome(status, [&] { return Schedule(schedule); });
  }

  /// The published schedules that are possible, whether they fit a cap or not, by memory.
  Result<std::vector<FrontPublished>> published() const {
    return detail::values<FrontPublished>([&](FrontPublished *published, std::size_t capacity, std::size_t *count) {
      return dualpipe_front_published_schedules(get(), published, capacity, count);
    });
  }

  /// The name of one of them, 0 to num_published - 1.
  Result<std::string> published_name(std::uint32_t published) const {
    return detail::text([&](char *name, std::size_t capacity, std::size_t *length) {
      return dualpipe_front_published_name(get(), published, name, capacity, length);
    });
  }

  /// As text or as a picture.
  Result<std::string> draw(FrontFormat format) const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_front_draw(get(), static_cast<std::uint32_t>(format), text, capacity, length);
    });
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_FRONT_HPP
