//! Timelines: who did what when, simulated or recorded; and their pictures.
//!
//! A timeline comes from dualpipe_simulate, or from an executor after a step (dualpipe_executor_timeline: its own
//! rank's part). Those of all ranks are merged to one of the step. It never changes, gives its spans and messages, and
//! is drawn as text, SVG or Chrome trace. Simulated and recorded ones are of one type, so that they can be laid side by
//! side.
//!
//! ```c
//! // The picture of a step as it was simulated and as it was recorded, rank by rank, in a buffer of the caller's.
//! #include <dualpipe.h>
//!
//! static dualpipe_status draw_both(dualpipe_timeline_t simulated, const dualpipe_timeline_t *ranks,
//!                                  size_t num_ranks, char *svg, size_t capacity, size_t *length) {
//!   dualpipe_timeline_t both[2] = {simulated, NULL};
//!   dualpipe_status status = dualpipe_timeline_merge(ranks, num_ranks, &both[1]);
//!   if (status == DUALPIPE_OK) status = dualpipe_timeline_compare(both, 2, svg, capacity, length);
//!   dualpipe_timeline_free(both[1]);
//!   return status;
//! }
//! ```

use std::ffi::c_char;
use std::sync::Arc;

use super::args::{self, Buffer, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::op::{dualpipe_message, dualpipe_op};
use super::options::{Growing, OutStruct};
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::Outcome;
use crate::ids::Rank;
use crate::placement::RANKS_MAX;
use crate::sim::{simulate, Simulation};
use crate::timeline::{svg, Source, Timeline};

use dualpipe_draw_format::*;
use dualpipe_timeline_source::*;

/// What a dualpipe_timeline_t points to: nothing that C could look into.
pub struct dualpipe_timeline(());

/// A timeline: who did what when, in one step. It never changes: any number of threads may use it at once. It stays
/// usable after a fork. Free it with dualpipe_timeline_free.
pub type dualpipe_timeline_t = *mut dualpipe_timeline;

/// Where a timeline comes from.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_timeline_source {
    /// Computed from costs.
    DUALPIPE_TIMELINE_SIMULATED = 1,
    /// Measured while a program ran.
    DUALPIPE_TIMELINE_RECORDED = 2,
}

/// What a timeline can be drawn as.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_draw_format {
    /// Text for a terminal: one line per rank.
    DUALPIPE_DRAW_TEXT = 1,
    /// A self-contained SVG.
    DUALPIPE_DRAW_SVG = 2,
    /// A Chrome trace (JSON), for ui.perfetto.dev.
    DUALPIPE_DRAW_TRACE = 3,
}

/// A timeline as a whole. Start from DUALPIPE_TIMELINE_SUMMARY_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_timeline_summary {
    /// sizeof(dualpipe_timeline_summary).
    pub size: u32,
    /// A dualpipe_timeline_source.
    pub source: u32,
    /// Its ranks.
    pub num_ranks: u64,
    /// Its spans, over all ranks.
    pub num_spans: u64,
    /// Its messages between different ranks.
    pub num_messages: u64,
    /// When the last task ends, in nanoseconds from the start of the step.
    pub makespan_ns: u64,
    /// No schedule of these micro-batches on this placement has a shorter makespan; 0 if that is not known, as of a
    /// recorded one. makespan_ns / lower_bound_ns - 1 is the gap.
    pub lower_bound_ns: u64,
    /// The bubble's share of the step, mean over ranks, 0 to 1.
    pub bubble_share: f64,
}

// SAFETY: repr(C), two u32, five u64 and an f64.
unsafe impl Growing for dualpipe_timeline_summary {
    const SIZE_V1: usize = 56;
}

/// One rank's part of a timeline.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_timeline_rank {
    /// Time that it spends on tasks.
    pub busy_ns: u64,
    /// Its bubble: time of the step in which it does nothing.
    pub idle_ns: u64,
    /// The parameters of its copies and the most activations alive at once; 0 if that is not known, as of a recorded
    /// timeline.
    pub peak_memory_bytes: u64,
    /// The number of its spans.
    pub num_spans: u64,
}

/// A task and when it ran, in nanoseconds from the start of the step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_span {
    /// Who ran it.
    pub rank: u32,
    /// What ran.
    pub op: dualpipe_op,
    /// When it started.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// A message between two ranks and when it travelled, in nanoseconds from the start of the step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_message_span {
    /// What travelled.
    pub message: dualpipe_message,
    /// The rank that sent it.
    pub from: u32,
    /// The rank that received it.
    pub to: u32,
    /// When it left.
    pub start_ns: u64,
    /// When it had arrived.
    pub end_ns: u64,
}

/// Plays a schedule against costs: every op starts as soon as its rank is free and its messages are there. The
/// timeline knows its lower bound and each rank's peak memory.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if a cost is outside its range, or the costs are of another number of
/// stages than the schedule's (or 1); DUALPIPE_ERROR_INVALID_SCHEDULE. Time: proportional to the ops.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_simulate(
    schedule: dualpipe_schedule_t,
    costs: *const dualpipe_costs,
    timeline: *mut dualpipe_timeline_t,
) -> dualpipe_status {
    call("dualpipe_simulate", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: both are the caller's.
        let (costs, out) = unsafe { (cost::read("costs", costs)?, Out::new("timeline", timeline)?) };
        out.write(handle::insert(TimelineObject::simulated(simulate(&object.schedule, &costs)?))?);
        Ok(())
    })
}

/// One timeline of `count` (1 to 4096) that each recorded some ranks of the same step on a common clock. They stay the
/// caller's.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT unless all have the same ranks and stages and no rank is in two of them.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_merge(
    timelines: *const dualpipe_timeline_t,
    count: usize,
    timeline: *mut dualpipe_timeline_t,
) -> dualpipe_status {
    call("dualpipe_timeline_merge", || {
        // SAFETY: both are the caller's.
        let (objects, out) =
            unsafe { (read_list(timelines, count, RANKS_MAX as usize)?, Out::new("timeline", timeline)?) };
        let parts: Vec<Timeline> = objects.iter().map(|object| object.timeline.clone()).collect();
        out.write(handle::insert(TimelineObject::recorded(Timeline::merge(&parts)?))?);
        Ok(())
    })
}

/// Frees a timeline. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_free(timeline: dualpipe_timeline_t) -> dualpipe_status {
    call("dualpipe_timeline_free", || handle::free::<TimelineObject>("timeline", timeline))
}

/// A timeline as a whole: its sizes, its makespan, its bubble and its lower bound.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_summarize(
    timeline: dualpipe_timeline_t,
    summary: *mut dualpipe_timeline_summary,
) -> dualpipe_status {
    call("dualpipe_timeline_summarize", || {
        let object = handle::get::<TimelineObject>("timeline", timeline)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("summary", summary) }?;
        let timeline = &object.timeline;
        out.write(dualpipe_timeline_summary {
            size: 0,
            source: match timeline.source {
                Source::Simulated => DUALPIPE_TIMELINE_SIMULATED,
                Source::Recorded => DUALPIPE_TIMELINE_RECORDED,
            } as u32,
            num_ranks: timeline.spans.len() as u64,
            num_spans: object.num_spans() as u64,
            num_messages: timeline.messages.len() as u64,
            makespan_ns: timeline.makespan_ns(),
            lower_bound_ns: object.lower_bound_ns,
            bubble_share: timeline.bubble_share(),
        });
        Ok(())
    })
}

/// Each rank's part of a timeline, in order of ranks. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_ranks(
    timeline: dualpipe_timeline_t,
    ranks: *mut dualpipe_timeline_rank,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_timeline_ranks", || {
        let object = handle::get::<TimelineObject>("timeline", timeline)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("ranks", ranks, capacity, "count", count) }?;
        out.fill(object.timeline.spans.len(), (0..object.timeline.spans.len()).map(|rank| object.rank(rank)))
    })
}

/// The spans of a timeline, rank by rank, each rank's in the order in which they ran. Buffers are filled as dualpipe.h
/// says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_spans(
    timeline: dualpipe_timeline_t,
    spans: *mut dualpipe_span,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_timeline_spans", || {
        let object = handle::get::<TimelineObject>("timeline", timeline)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("spans", spans, capacity, "count", count) }?;
        let timeline = &object.timeline;
        let spans = timeline.spans.iter().enumerate().flat_map(|(rank, spans)| {
            spans.iter().map(move |span| dualpipe_span {
                rank: rank as u32,
                op: dualpipe_op::new(&timeline.placement, span.task),
                start_ns: span.start_ns,
                end_ns: span.end_ns,
            })
        });
        out.fill(object.num_spans(), spans)
    })
}

/// The messages of a timeline between different ranks, in an order that is always the same. Buffers are filled as
/// dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_messages(
    timeline: dualpipe_timeline_t,
    messages: *mut dualpipe_message_span,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_timeline_messages", || {
        let object = handle::get::<TimelineObject>("timeline", timeline)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("messages", messages, capacity, "count", count) }?;
        let timeline = &object.timeline;
        let messages = timeline.messages.iter().map(|span| dualpipe_message_span {
            message: dualpipe_message::new(&timeline.placement, span.message),
            from: span.from.0,
            to: span.to.0,
            start_ns: span.start_ns,
            end_ns: span.end_ns,
        });
        out.fill(timeline.messages.len(), messages)
    })
}

/// Draws a timeline in `format`, a dualpipe_draw_format. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_draw(
    timeline: dualpipe_timeline_t,
    format: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_timeline_draw", || {
        let object = handle::get::<TimelineObject>("timeline", timeline)?;
        let formats = [DUALPIPE_DRAW_TEXT, DUALPIPE_DRAW_SVG, DUALPIPE_DRAW_TRACE];
        let format = args::one_of("format", format, formats.map(|format| (format as u32, format)))?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&match format {
            DUALPIPE_DRAW_TEXT => object.timeline.to_text(),
            DUALPIPE_DRAW_SVG => object.timeline.to_svg(),
            DUALPIPE_DRAW_TRACE => object.timeline.to_trace(),
        })
    })
}

/// Draws `count` timelines (1 to 64) as one SVG, one above the other on one scale of time: say, a step simulated and
/// recorded. UTF-8; a NUL ends it; the length is without the NUL. The timelines stay the caller's.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_timeline_compare(
    timelines: *const dualpipe_timeline_t,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_timeline_compare", || {
        // SAFETY: both are the caller's.
        let (objects, out) = unsafe {
            (
                read_list(timelines, count, COMPARED_MAX)?,
                Buffer::new("text", text, capacity, "length", length)?,
            )
        };
        let timelines: Vec<&Timeline> = objects.iter().map(|object| &object.timeline).collect();
        out.fill_text(&svg::compare(&timelines))
    })
}

/// Most timelines in one picture.
const COMPARED_MAX: usize = 64;

/// # Safety
/// The pointer, if its bits pass, is one to `count` handles.
unsafe fn read_list(
    timelines: *const dualpipe_timeline_t,
    count: usize,
    count_max: usize,
) -> Outcome<Vec<Arc<TimelineObject>>> {
    args::in_range("count", count, 1..=count_max)?;
    // SAFETY: the caller's promise.
    let handles = unsafe { args::slice("timelines", timelines, "count", count) }?;
    let object = |(i, &timeline)| handle::get::<TimelineObject>(&format!("timelines[{i}]"), timeline);
    handles.iter().enumerate().map(object).collect()
}

/// A timeline that C has a handle of.
pub(crate) struct TimelineObject {
    pub(crate) timeline: Timeline,
    /// 0 if it is not known.
    lower_bound_ns: u64,
    /// `[rank]`; empty if it is not known.
    peak_memory_bytes: Vec<u64>,
}

impl Object for TimelineObject {
    type Opaque = dualpipe_timeline;
    const KIND: Kind = Kind::Timeline;
}

impl TimelineObject {
    pub(crate) fn simulated(simulation: Simulation) -> TimelineObject {
        TimelineObject {
            timeline: simulation.timeline,
            lower_bound_ns: simulation.lower_bound_ns,
            peak_memory_bytes: simulation.peak_memory_bytes,
        }
    }

    /// One of which no bound and no memory is known.
    pub(crate) fn recorded(timeline: Timeline) -> TimelineObject {
        TimelineObject { timeline, lower_bound_ns: 0, peak_memory_bytes: Vec::new() }
    }

    fn num_spans(&self) -> usize {
        self.timeline.spans.iter().map(Vec::len).sum()
    }

    fn rank(&self, rank: usize) -> dualpipe_timeline_rank {
        let makespan_ns = self.timeline.makespan_ns();
        let busy_ns = self.timeline.busy_ns(Rank(rank as u32));
        dualpipe_timeline_rank {
            busy_ns,
            idle_ns: makespan_ns.saturating_sub(busy_ns),
            peak_memory_bytes: self.peak_memory_bytes.get(rank).copied().unwrap_or(0),
            num_spans: self.timeline.spans[rank].len() as u64,
        }
    }
}
