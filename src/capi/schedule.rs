//! Schedules: who computes what in which order.
//!
//! A schedule is created for a kind, a number of ranks and one of micro-batches, or from orders of the caller's
//! (schedule_orders.h); then it never changes. It gives the order of each rank, itself as text, a proof that it can
//! run, and it is what simulations and programs are made from.
//!
//! ```c
//! // Prints the kinds of the ops of a rank, in order. First the count is asked for, then the ops.
//! #include <dualpipe.h>
//! #include <stdio.h>
//! #include <stdlib.h>
//!
//! static dualpipe_status print_order(dualpipe_schedule_t schedule, uint32_t rank) {
//!   size_t count = 0;
//!   dualpipe_status status = dualpipe_schedule_order(schedule, rank, NULL, 0, &count);
//!   if (status != DUALPIPE_OK) return status;
//!   dualpipe_op *ops = calloc(count, sizeof *ops);
//!   if (ops != NULL) status = dualpipe_schedule_order(schedule, rank, ops, count, &count);
//!   for (size_t i = 0; ops != NULL && status == DUALPIPE_OK && i < count; i++) printf("%u\n", ops[i].kind);
//!   free(ops);
//!   return status;
//! }
//! ```

use std::ffi::c_char;
use std::sync::{Arc, OnceLock};

use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::op::dualpipe_op;
use super::options::{self, Growing, OutStruct};
use super::process;
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::ids::{Direction, Rank, Stage};
use crate::op::{StageCopy, Task};
use crate::program::{lower, Program};
use crate::schedule::{
    chimera, dualpipe, dualpipe_v, gpipe, interleaved_1f1b, interleaved_overlapped, interleaved_zero_bubble,
    looped_bfs, one_f_one_b, v_half, v_min, zb_h1, zb_h2, zb_v, Schedule, Work,
};

use dualpipe_schedule_kind::*;

/// What a dualpipe_schedule_t points to: nothing that C could look into.
pub struct dualpipe_schedule(());

/// A schedule: for every rank, the order of its ops. It never changes: any number of threads may use it at once. It
/// stays usable after a fork. Free it with dualpipe_schedule_free.
pub type dualpipe_schedule_t = *mut dualpipe_schedule;

/// The published schedules.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_schedule_kind {
    /// DualPipe (DeepSeek-V3, arXiv 2412.19437): two directions, two copies of the parameters. num_ranks even, 2 to
    /// 4096; num_microbatches counts both directions, even, at least 2 * num_ranks - 2 (2 if forward_only).
    DUALPIPE_KIND_DUALPIPE = 1,
    /// DualPipeV: DualPipe folded into a V, one copy of the parameters, two stages on each rank. num_ranks 1 to 4096;
    /// num_microbatches at least 2 * num_ranks - 1 (1 if forward_only).
    DUALPIPE_KIND_DUALPIPE_V = 2,
    /// 1F1B (PipeDream-Flush, arXiv 2006.09503). num_ranks 1 to 4096; num_microbatches at least 1.
    DUALPIPE_KIND_1F1B = 3,
    /// GPipe (arXiv 1811.06965): all forwards, then all backwards. Sizes as of 1F1B.
    DUALPIPE_KIND_GPIPE = 4,
    /// Interleaved 1F1B (Megatron-LM, arXiv 2104.04473): stages_per_rank stages on each rank, at least 1;
    /// num_microbatches a multiple of num_ranks.
    DUALPIPE_KIND_INTERLEAVED_1F1B = 5,
    /// Interleaved 1F1B with a forward more in the warm-up, so that each forward behind it runs as a pair with a
    /// backward (Megatron-LM's combined 1F1B). Sizes as of interleaved 1F1B.
    DUALPIPE_KIND_INTERLEAVED_OVERLAPPED = 6,
    /// Interleaved 1F1B with backwards in halves (torch's ScheduleInterleavedZeroBubble). stages_per_rank at least 1;
    /// num_microbatches a multiple of num_microbatches / num_ranks, rounded down, if that is not 0.
    DUALPIPE_KIND_INTERLEAVED_ZERO_BUBBLE = 7,
    /// Looped breadth first (arXiv 2211.05953): all micro-batches through a stage before the rank's next.
    /// stages_per_rank at least 1; num_microbatches at least 1.
    DUALPIPE_KIND_LOOPED_BFS = 8,
    /// Chimera (arXiv 2107.06925): two directions, two copies of the parameters, whole backwards. num_ranks even,
    /// num_microbatches even.
    DUALPIPE_KIND_CHIMERA = 9,
    /// ZB-H1 (Zero Bubble, arXiv 2401.10241): backwards in halves, the memory of 1F1B. Sizes as of 1F1B.
    DUALPIPE_KIND_ZB_H1 = 10,
    /// ZB-H2 (the same): no bubble where F = I = W, for more memory. Sizes as of 1F1B.
    DUALPIPE_KIND_ZB_H2 = 11,
    /// ZB-V (the same, and arXiv 2405.15362): two stages on each rank in a V, the memory of 1F1B. num_ranks at least 1;
    /// num_microbatches at least 1.
    DUALPIPE_KIND_ZB_V = 12,
    /// V-Half (arXiv 2405.15362): half the memory of 1F1B. Sizes as of ZB-V.
    DUALPIPE_KIND_V_HALF = 13,
    /// V-Min (arXiv 2405.15362): a third of the memory of 1F1B. Sizes as of ZB-V.
    DUALPIPE_KIND_V_MIN = 14,
    /// None of these: from outside, by dualpipe_schedule_create_from_orders, _from_text or _from_torch_csv.
    /// dualpipe_schedule_create does not take it.
    DUALPIPE_KIND_CUSTOM = 1000,
}

/// What schedule to create. Start from DUALPIPE_SCHEDULE_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_schedule_options {
    /// sizeof(dualpipe_schedule_options).
    pub size: u32,
    /// A dualpipe_schedule_kind, which also says what the other fields may be.
    pub kind: u32,
    /// The ranks of the pipeline, P.
    pub num_ranks: u32,
    /// The micro-batches of a step, both directions together, at most 1048576 and 4194304 / (stages of a direction).
    pub num_microbatches: u32,
    /// 0: every micro-batch goes forward and backward. 1: only forward, for inference.
    pub forward_only: u32,
    /// For the interleaved kinds and looped breadth first: stages on each rank, num_ranks times as many at most 8192 in
    /// all. Otherwise 0.
    pub stages_per_rank: u32,
}

// SAFETY: repr(C), six u32.
unsafe impl Growing for dualpipe_schedule_options {
    const SIZE_V1: usize = 20;
}

/// What a schedule is. Start from DUALPIPE_SCHEDULE_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_schedule_info {
    /// sizeof(dualpipe_schedule_info).
    pub size: u32,
    /// A dualpipe_schedule_kind.
    pub kind: u32,
    /// Ranks of the pipeline.
    pub num_ranks: u32,
    /// Stages of the model.
    pub num_stages: u32,
    /// 1, or 2: then each stage has two parameter copies.
    pub num_directions: u32,
    /// Micro-batches of a step, both directions together; of two directions each has half.
    pub num_microbatches: u32,
    /// Whether micro-batches only go forward: 0 or 1.
    pub forward_only: u32,
}

// SAFETY: repr(C), seven u32.
unsafe impl Growing for dualpipe_schedule_info {
    const SIZE_V1: usize = 28;
}

/// Creates a published schedule.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if the options are outside the range that their kind has. Time and memory:
/// proportional to the ops of all ranks.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_create(
    options: *const dualpipe_schedule_options,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_schedule_create", || {
        // SAFETY: both are the caller's.
        let (options, out) = unsafe { (options::read("options", options)?, Out::new("schedule", schedule)?) };
        let work = work_of("options->forward_only", options.forward_only)?;
        let kind = dualpipe_schedule_kind::from_c(options.kind)?;
        let schedule = kind.create(&options, work)?;
        out.write(handle::insert(ScheduleObject::new(kind, schedule))?);
        Ok(())
    })
}

/// Frees a schedule. NULL is fine. What was made from it stays.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_free(schedule: dualpipe_schedule_t) -> dualpipe_status {
    call("dualpipe_schedule_free", || handle::free::<ScheduleObject>("schedule", schedule))
}

/// What a schedule is: its kind and sizes.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_describe(
    schedule: dualpipe_schedule_t,
    info: *mut dualpipe_schedule_info,
) -> dualpipe_status {
    call("dualpipe_schedule_describe", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (schedule, placement) = (&object.schedule, object.schedule.placement());
        out.write(dualpipe_schedule_info {
            size: 0,
            kind: object.kind as u32,
            num_ranks: placement.num_ranks() as u32,
            num_stages: placement.num_stages() as u32,
            num_directions: placement.num_directions() as u32,
            num_microbatches: schedule.num_microbatches() as u32,
            forward_only: (schedule.work() == Work::ForwardOnly).into(),
        });
        Ok(())
    })
}

/// The ops of `rank`, 0 to num_ranks - 1, in order. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_order(
    schedule: dualpipe_schedule_t,
    rank: u32,
    ops: *mut dualpipe_op,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_schedule_order", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        let rank = object.rank(rank)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("ops", ops, capacity, "count", count) }?;
        let (placement, order) = (object.schedule.placement(), object.schedule.order(rank));
        out.fill(order.len(), order.iter().map(|&op| dualpipe_op::new(placement, Task::Op(op))))
    })
}

/// The rank that holds the parameters of `stage`, 0 to num_stages - 1, in `direction`, 0 to num_directions - 1.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_rank_of(
    schedule: dualpipe_schedule_t,
    direction: u32,
    stage: u32,
    rank: *mut u32,
) -> dualpipe_status {
    call("dualpipe_schedule_rank_of", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        let copy = object.copy(direction, stage)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("rank", rank) }?;
        let holder = object.schedule.placement().rank_of(copy);
        out.write(holder.ok_or_else(|| Failure::argument("stage", "has no rank"))?.0);
        Ok(())
    })
}

/// Proves that a schedule can run: every (direction, stage, micro-batch) has its F and then its B, or its I and then
/// its W, exactly once and on the right rank; every message has its pair; and no rank waits for ever, neither with
/// asynchronous sends nor with blocking grouped exchanges.
///
/// Writes for each rank the most micro-batch activations alive at once: from the start of an F to the end of its B or
/// W (forward only: of the F). Buffers are filled as dualpipe.h says under "Buffers"; the count is num_ranks.
///
/// Errors: DUALPIPE_ERROR_INVALID_SCHEDULE, with rank, position, op and reason. Time: proportional to the ops.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_check(
    schedule: dualpipe_schedule_t,
    peak_live: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_schedule_check", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("peak_live", peak_live, capacity, "count", count) }?;
        // Lowering proves it all.
        object.programs()?;
        let peaks = object.schedule.peak_live();
        out.fill(peaks.len(), peaks.iter().map(|&peak| peak as u32))
    })
}

/// A schedule as text: a line for each rank, such as "1| 1F0 2f0 1F1 ...". A token is stage, kind, micro-batch; the
/// kind is a small letter in direction 1; a pair is "2F3&5b1". A NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_to_text(
    schedule: dualpipe_schedule_t,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_schedule_to_text", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&object.schedule.to_text())
    })
}

/// What a step consists of, as C says it.
pub(crate) fn work_of(name: &str, forward_only: u32) -> Outcome<Work> {
    Ok(if args::flag(name, forward_only)? { Work::ForwardOnly } else { Work::Training })
}

impl dualpipe_schedule_kind {
    /// The published ones.
    const ALL: [dualpipe_schedule_kind; 14] = [
        DUALPIPE_KIND_DUALPIPE,
        DUALPIPE_KIND_DUALPIPE_V,
        DUALPIPE_KIND_1F1B,
        DUALPIPE_KIND_GPIPE,
        DUALPIPE_KIND_INTERLEAVED_1F1B,
        DUALPIPE_KIND_INTERLEAVED_OVERLAPPED,
        DUALPIPE_KIND_INTERLEAVED_ZERO_BUBBLE,
        DUALPIPE_KIND_LOOPED_BFS,
        DUALPIPE_KIND_CHIMERA,
        DUALPIPE_KIND_ZB_H1,
        DUALPIPE_KIND_ZB_H2,
        DUALPIPE_KIND_ZB_V,
        DUALPIPE_KIND_V_HALF,
        DUALPIPE_KIND_V_MIN,
    ];

    fn from_c(kind: u32) -> Outcome<dualpipe_schedule_kind> {
        args::one_of("options->kind", kind, Self::ALL.map(|kind| (kind as u32, kind)))
    }

    /// The kind that is called so, such as "dualpipe_v"; CUSTOM if there is none.
    pub(crate) fn of_name(name: &str) -> dualpipe_schedule_kind {
        let is_called = |kind: &dualpipe_schedule_kind| {
            let in_c = format!("{kind:?}");
            in_c.strip_prefix("DUALPIPE_KIND_").is_some_and(|rest| rest.eq_ignore_ascii_case(name))
        };
        Self::ALL.into_iter().find(is_called).unwrap_or(DUALPIPE_KIND_CUSTOM)
    }

    fn create(self, options: &dualpipe_schedule_options, work: Work) -> Outcome<Schedule> {
        let (num_ranks, num_microbatches) = (options.num_ranks as usize, options.num_microbatches as usize);
        let stages_per_rank = options.stages_per_rank as usize;
        let create = match self {
            DUALPIPE_KIND_DUALPIPE => Create::Plain(dualpipe),
            DUALPIPE_KIND_DUALPIPE_V => Create::Plain(dualpipe_v),
            DUALPIPE_KIND_1F1B => Create::Plain(one_f_one_b),
            DUALPIPE_KIND_GPIPE => Create::Plain(gpipe),
            DUALPIPE_KIND_INTERLEAVED_1F1B => Create::Looped(interleaved_1f1b),
            DUALPIPE_KIND_INTERLEAVED_OVERLAPPED => Create::Looped(interleaved_overlapped),
            DUALPIPE_KIND_INTERLEAVED_ZERO_BUBBLE => Create::Looped(interleaved_zero_bubble),
            DUALPIPE_KIND_LOOPED_BFS => Create::Looped(looped_bfs),
            DUALPIPE_KIND_CHIMERA => Create::Plain(chimera),
            DUALPIPE_KIND_ZB_H1 => Create::Plain(zb_h1),
            DUALPIPE_KIND_ZB_H2 => Create::Plain(zb_h2),
            DUALPIPE_KIND_ZB_V => Create::Plain(zb_v),
            DUALPIPE_KIND_V_HALF => Create::Plain(v_half),
            DUALPIPE_KIND_V_MIN => Create::Plain(v_min),
            DUALPIPE_KIND_CUSTOM => return Err(Failure::argument("options->kind", "is not a published one")),
        };
        match create {
            Create::Looped(create) => Ok(create(num_ranks, stages_per_rank, num_microbatches, work)?),
            Create::Plain(create) if stages_per_rank == 0 => Ok(create(num_ranks, num_microbatches, work)?),
            Create::Plain(_) => {
                let how = format!("is {stages_per_rank}, must be 0 for {self:?}");
                Err(Failure::argument("options->stages_per_rank", how))
            }
        }
    }
}

/// What makes a schedule, of ranks, perhaps stages on each, and micro-batches.
enum Create {
    Plain(fn(usize, usize, Work) -> crate::error::Result<Schedule>),
    Looped(fn(usize, usize, usize, Work) -> crate::error::Result<Schedule>),
}

/// A schedule that C has a handle of.
pub(crate) struct ScheduleObject {
    pub(crate) kind: dualpipe_schedule_kind,
    pub(crate) schedule: Schedule,
    /// Lowered when the first program is asked for.
    programs: OnceLock<Arc<[Arc<Program>]>>,
}

impl Object for ScheduleObject {
    type Opaque = dualpipe_schedule;
    const KIND: Kind = Kind::Schedule;
}

impl ScheduleObject {
    pub(crate) fn new(kind: dualpipe_schedule_kind, schedule: Schedule) -> ScheduleObject {
        ScheduleObject { kind, schedule, programs: OnceLock::new() }
    }

    /// Of a schedule from outside.
    pub(crate) fn custom(schedule: Schedule) -> ScheduleObject {
        ScheduleObject::new(DUALPIPE_KIND_CUSTOM, schedule)
    }

    /// The rank that C calls `rank`.
    pub(crate) fn rank(&self, rank: u32) -> Outcome<Rank> {
        Ok(Rank(args::index("rank", rank, self.schedule.num_ranks())? as u32))
    }

    /// The parameter copy that C calls `direction`, `stage`.
    pub(crate) fn copy(&self, direction: u32, stage: u32) -> Outcome<StageCopy> {
        let placement = self.schedule.placement();
        let direction = args::index("direction", direction, placement.num_directions())?;
        let stage = args::index("stage", stage, placement.num_stages())?;
        Ok(StageCopy { direction: Direction::ALL[direction], stage: Stage(stage as u16) })
    }

    /// The program of every rank.
    pub(crate) fn programs(&self) -> Outcome<Arc<[Arc<Program>]>> {
        if let Some(programs) = self.programs.get() {
            return Ok(programs.clone());
        }
        let programs: Arc<[Arc<Program>]> = lower(&self.schedule)?.into_iter().map(Arc::new).collect();
        // A fork in the middle of this would leave the cell locked in the child.
        process::without_fork(|| drop(self.programs.set(programs.clone())));
        Ok(programs)
    }
}
