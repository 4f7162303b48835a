/// Timelines: who did what when, simulated or recorded; and their pictures.
#ifndef DUALPIPE_TIMELINE_HPP
#define DUALPIPE_TIMELINE_HPP

#include <dualpipe/cost.hpp>
#include <dualpipe/op.hpp>
#include <dualpipe/schedule.hpp>
#include <dualpipe/span.hpp>
#include <dualpipe/status.hpp>
#include <dualpipe/timeline.h>

#include <cstdint>
#include <string>
#include <vector>

namespace dualpipe {

/// Where a timeline comes from.
enum class TimelineSource : std::uint32_t {
  simulated = DUALPIPE_TIMELINE_SIMULATED, ///< Computed from costs.
  recorded = DUALPIPE_TIMELINE_RECORDED,   ///< Measured while a program ran.
};

/// What a timeline can be drawn as.
enum class DrawFormat : std::uint32_t {
  text = DUALPIPE_DRAW_TEXT,   ///< For a terminal: one line per rank.
  svg = DUALPIPE_DRAW_SVG,     ///< A self-contained SVG.
  trace = DUALPIPE_DRAW_TRACE, ///< A Chrome trace (JSON), for ui.perfetto.dev.
};

/// A timeline as a whole: num_ranks, num_spans, num_messages, makespan_ns, lower_bound_ns (0 if it is not known),
/// bubble_share.
struct TimelineSummary : dualpipe_timeline_summary {
  TimelineSummary() : dualpipe_timeline_summary DUALPIPE_TIMELINE_SUMMARY_INIT {}

  TimelineSource source() const noexcept {
    return static_cast<TimelineSource>(dualpipe_timeline_summary::source);
  }
};

/// One rank's part of a timeline: busy_ns, idle_ns, peak_memory_bytes, num_spans.
using TimelineRank = dualpipe_timeline_rank;

/// An op and when it ran, in nanoseconds from the start of the step: rank, start_ns, end_ns.
struct OpSpan : dualpipe_span {
  Op op() const noexcept { return dualpipe_span::op; }
};

/// A message between two ranks and when it travelled: from, to, start_ns, end_ns.
struct MessageSpan : dualpipe_message_span {
  Message message() const noexcept { return dualpipe_message_span::message; }
};

// C fills rows of them.
static_assert(sizeof(OpSpan) == sizeof(dualpipe_span) && sizeof(MessageSpan) == sizeof(dualpipe_message_span));

inline namespace DUALPIPE_ERRORS {

/// Who did what when, in one step. It never changes: any number of threads may use it at once. It stays usable after a
/// fork.
class Timeline : public detail::Handle<dualpipe_timeline_t, dualpipe_timeline_free> {
public:
  using Handle::Handle;

  /// Plays a schedule against costs: every op starts as soon as its rank is free and its messages are there. The
  /// timeline knows its lower bound and each rank's peak memory.
  ///
  /// Errors: Status::invalid_argument if a cost is outside its range, or the costs are of another number of stages than
  /// the schedule's (or 1); Status::invalid_schedule. Time: proportional to the ops.
  static Result<Timeline> simulate(const Schedule &schedule, const Costs &costs) {
    const dualpipe_costs in_c = costs.in_c();
    dualpipe_timeline_t timeline = nullptr;
    const dualpipe_status status = dualpipe_simulate(schedule.get(), &in_c, &timeline);
    return detail::outcome(status, [&] { return Timeline(timeline); });
  }

  /// One of several (1 to 4096) that each recorded some ranks of the same step on a common clock.
  ///
  /// Errors: Status::invalid_argument unless all have the same ranks and stages and no rank is in two of them.
  static Result<Timeline> merge(Span<const Timeline> timelines) {
    const std::vector<dualpipe_timeline_t> in_c = handles(timelines);
    dualpipe_timeline_t timeline = nullptr;
    const dualpipe_status status = dualpipe_timeline_merge(in_c.data(), in_c.size(), &timeline);
    return detail::outcome(status, [&] { return Timeline(timeline); });
  }

  /// Several (1 to 64) as one SVG, one above the other on one scale of time: say, a step simulated and recorded.
  static Result<std::string> compare(Span<const Timeline> timelines) {
    const std::vector<dualpipe_timeline_t> in_c = handles(timelines);
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_timeline_compare(in_c.data(), in_c.size(), text, capacity, length);
    });
  }

  /// Its sizes, its makespan, its bubble and its lower bound.
  Result<TimelineSummary> summarize() const {
    TimelineSummary summary;
    const dualpipe_status status = dualpipe_timeline_summarize(get(), &summary);
    return detail::outcome(status, [&] { return summary; });
  }

  /// Each rank's part, in order of ranks.
  Result<std::vector<TimelineRank>> ranks() const {
    return detail::values<TimelineRank>([&](TimelineRank *ranks, std::size_t capacity, std::size_t *count) {
      return dualpipe_timeline_ranks(get(), ranks, capacity, count);
    });
  }

  /// Its ops, rank by rank, each rank's in the order in which they ran.
  Result<std::vector<OpSpan>> spans() const {
    return detail::values<OpSpan>([&](OpSpan *spans, std::size_t capacity, std::size_t *count) {
      return dualpipe_timeline_spans(get(), spans, capacity, count);
    });
  }

  /// Its messages between different ranks, in an order that is always the same.
  Result<std::vector<MessageSpan>> messages() const {
    return detail::values<MessageSpan>([&](MessageSpan *messages, std::size_t capacity, std::size_t *count) {
      return dualpipe_timeline_messages(get(), messages, capacity, count);
    });
  }

  /// A picture of it, in UTF-8.
  Result<std::string> draw(DrawFormat format) const {
    return detail::text([&](char *text, std::size_t capacity, std::size_t *length) {
      return dualpipe_timeline_draw(get(), static_cast<std::uint32_t>(format), text, capacity, length);
    });
  }

private:
  static std::vector<dualpipe_timeline_t> handles(Span<const Timeline> timelines) {
    std::vector<dualpipe_timeline_t> handles;
    for (const Timeline &timeline : timelines) handles.push_back(timeline.get());
    return handles;
  }
};

} // namespace DUALPIPE_ERRORS
} // namespace dualpipe

#endif // DUALPIPE_TIMELINE_HPP
