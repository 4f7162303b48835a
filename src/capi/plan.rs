//! Plans: the best schedule that can be found for given costs and memory, beside what no schedule can beat.
//!
//! The search starts from the best published schedule that is possible on the placement and keeps to the memory cap, so
//! that a plan is never slower. docs/planning.md says how it searches, and how good plans are.
//!
//! ```c
//! // For 8 ranks in two directions, 20 micro-batches, at most 9 activations on each rank: 2 seconds of search.
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static dualpipe_status plan(const dualpipe_costs *costs, dualpipe_schedule_t *schedule) {
//!   const uint64_t cap = 9;
//!   dualpipe_plan_options options = DUALPIPE_PLAN_OPTIONS_INIT;
//!   dualpipe_plan_info info = DUALPIPE_PLAN_INFO_INIT;
//!   dualpipe_plan_t made = NULL;
//!   options.placement = DUALPIPE_PLACEMENT_BIDIRECTIONAL;
//!   options.num_ranks = 8;
//!   options.num_microbatches = 20;
//!   options.cap_activations = &cap;
//!   options.num_cap_activations = 1; // one entry: every rank's
//!   dualpipe_status status = dualpipe_plan_create(&options, costs, &made);
//!   if (status != DUALPIPE_OK) return status;
//!   status = dualpipe_plan_describe(made, &info);
//!   if (status == DUALPIPE_OK) {
//!     printf("%llu ns, gap %.2f %%\n", (unsigned long long)info.makespan_ns, 100 * info.gap);
//!     status = dualpipe_plan_schedule(made, schedule); // an object of its own
//!   }
//!   dualpipe_plan_free(made);
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{Buffer, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle;
use super::options::{self, Growing, OutStruct};
use super::plan_object::{objective_to_c, PlanObject};
use super::planner::{read_problem, Search};
use super::schedule::{dualpipe_schedule_kind, dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::Outcome;
use crate::schedule::Schedule;
use crate::search::{plan, Stop};

use dualpipe_plan_stop::*;

/// What a dualpipe_plan_t points to: nothing that C could look into.
pub struct dualpipe_plan(());

/// A schedule that was planned, and how good it is. It never changes: any number of threads may use it at once. It
/// stays usable after a fork. Free it with dualpipe_plan_free.
pub type dualpipe_plan_t = *mut dualpipe_plan;

/// Which rank holds which stages. P is the number of ranks.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_placement_kind {
    /// Stage r on rank r.
    DUALPIPE_PLACEMENT_LINEAR = 1,
    /// Stages r and 2P-1-r on rank r: down the ranks and back up.
    DUALPIPE_PLACEMENT_V = 2,
    /// Stages r, r+P, r+2P ... on rank r: stages_per_rank of them.
    DUALPIPE_PLACEMENT_INTERLEAVED = 3,
    /// Stage r of direction 0 and stage P-1-r of direction 1 on rank r: two copies of the parameters.
    DUALPIPE_PLACEMENT_BIDIRECTIONAL = 4,
    /// As rank_of says.
    DUALPIPE_PLACEMENT_CUSTOM = 5,
}

/// What to plan for: a training step. Start from DUALPIPE_PLAN_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_plan_options {
    /// sizeof(dualpipe_plan_options).
    pub size: u32,
    /// A dualpipe_placement_kind.
    pub placement: u32,
    /// The ranks of the pipeline, 1 to 4096.
    pub num_ranks: u32,
    /// The micro-batches of a step, both directions together: any number from 1 on, odd too; at most as of
    /// dualpipe_schedule_options.
    pub num_microbatches: u32,
    /// Of DUALPIPE_PLACEMENT_INTERLEAVED: stages on each rank, at least 1. Otherwise 0.
    pub stages_per_rank: u32,
    /// Of DUALPIPE_PLACEMENT_CUSTOM: stages of the model, 1 to 8192. Otherwise 0.
    pub num_stages: u32,
    /// Of DUALPIPE_PLACEMENT_CUSTOM: 1, or 2 for two copies of each stage. Otherwise 0.
    pub num_directions: u32,
    /// Threads, at most 4096; 0 is as many as there are cores. With a limit of iterations the plan is the same. In a
    /// child of fork it is always 1.
    pub num_threads: u32,
    /// Of DUALPIPE_PLACEMENT_CUSTOM: the rank of each stage, num_directions rows of num_stages. Otherwise NULL.
    pub rank_of: *const u32,
    /// NULL, or how many micro-batch activations may be alive at once, at least 1: on each rank, or one entry for all.
    pub cap_activations: *const u64,
    /// How many there are: 1, or the number of ranks; 0 without.
    pub num_cap_activations: usize,
    /// NULL, or how many bytes each rank may keep, parameters included, at most 2^50; likewise. Only one of the caps
    /// may be there.
    pub cap_bytes: *const u64,
    /// How many there are; 0 without.
    pub num_cap_bytes: usize,
    /// Changes to try. With iterations and without a time limit, the same options give the same plan on every machine.
    /// 0: as many as there is time for.
    pub iterations: u64,
    /// How long the search may take, at most a day; 0: as long as the iterations take. It looks at the clock every few
    /// milliseconds; the first schedules and the lower bound come before, and are not cut short. Both 0: 2 seconds.
    pub time_limit_ns: u64,
    /// Another seed searches another way.
    pub seed: u64,
}

// SAFETY: repr(C), eight u32 and eight times 8 bytes, of which the pointers may be anything until they are checked.
unsafe impl Growing for dualpipe_plan_options {
    const SIZE_V1: usize = 96;
}

/// Why a search ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_plan_stop {
    /// It found what no schedule can beat.
    DUALPIPE_STOP_OPTIMAL = 1,
    /// All iterations were made.
    DUALPIPE_STOP_ITERATIONS = 2,
    /// The time was up.
    DUALPIPE_STOP_TIME = 3,
    /// The progress callback asked for it.
    DUALPIPE_STOP_CANCELLED = 4,
}

/// How good a plan is. Start from DUALPIPE_PLAN_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_plan_info {
    /// sizeof(dualpipe_plan_info).
    pub size: u32,
    /// Ranks of the pipeline.
    pub num_ranks: u32,
    /// A dualpipe_plan_stop.
    pub stop: u32,
    /// A dualpipe_plan_objective (robust_plan.h); 0 if it was planned without a spread.
    pub objective: u32,
    /// How long a step takes, as dualpipe_simulate says.
    pub makespan_ns: u64,
    /// No schedule on this placement that keeps to the cap takes less; of a plan with a spread, none has a lower
    /// objective on the samples.
    pub lower_bound_ns: u64,
    /// How long the schedule of dualpipe_plan_started_from takes.
    pub start_makespan_ns: u64,
    /// Changes that were tried; with a spread each counts for every sample.
    pub iterations: u64,
    /// The makespan, or with a spread the objective on the samples, divided by the lower bound, less 1. 0: proven to be
    /// the best; infinite if only the lower bound is 0.
    pub gap: f64,
}

// SAFETY: repr(C), four u32 and five times 8 bytes.
unsafe impl Growing for dualpipe_plan_info {
    const SIZE_V1: usize = 56;
}

/// The most that a rank keeps at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_plan_peak {
    /// Micro-batch activations, as dualpipe_schedule_check counts them.
    pub live: u64,
    /// Bytes, parameters included.
    pub memory_bytes: u64,
}

/// Plans: finds the best schedule for training that it can within the limits of `options`. It is never slower than the
/// best published one that is possible on the placement and keeps to the cap.
///
/// Calls the progress callback about every few milliseconds, with iterations of iterations, or nanoseconds of the time
/// limit where only that is given. If the callback asks to stop, the call succeeds with the best so far, and the plan's
/// `stop` says so.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for costs of another number of stages, and for a cap that not even one
/// micro-batch after the other keeps to. Memory: proportional to the ops times the threads of the search.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_create(
    options: *const dualpipe_plan_options,
    costs: *const dualpipe_costs,
    plan: *mut dualpipe_plan_t,
) -> dualpipe_status {
    call("dualpipe_plan_create", || {
        // SAFETY: the caller's.
        let (options, costs) = unsafe { (options::read("options", options)?, cost::read("costs", costs)?) };
        // SAFETY: the caller's, as is what the options point to.
        let (problem, out) = unsafe { (read_problem(&options, costs)?, Out::new("plan", plan)?) };
        let search = options.search()?;
        let found = search.run(|effort, progress| self::plan(&problem, effort, progress))?;
        out.write(handle::insert(PlanObject::new(found))?);
        Ok(())
    })
}

/// Frees a plan. NULL is fine. A schedule that was taken from it stays.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_free(plan: dualpipe_plan_t) -> dualpipe_status {
    call("dualpipe_plan_free", || handle::free::<PlanObject>("plan", plan))
}

/// Says how good a plan is.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_describe(
    plan: dualpipe_plan_t,
    info: *mut dualpipe_plan_info,
) -> dualpipe_status {
    call("dualpipe_plan_describe", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (value, bound) = (object.value_ns(), object.lower_bound_ns);
        out.write(dualpipe_plan_info {
            size: 0,
            num_ranks: object.schedule.num_ranks() as u32,
            stop: stop_of(object.stop) as u32,
            objective: object.robust.as_ref().map_or(0, |robust| objective_to_c(robust.objective)),
            makespan_ns: object.makespan_ns,
            lower_bound_ns: bound,
            start_makespan_ns: object.start_makespan_ns,
            iterations: object.iterations,
            gap: if value == bound { 0.0 } else { value as f64 / bound as f64 - 1.0 },
        });
        Ok(())
    })
}

/// The name of the schedule that the search began with: the best published one that is possible and keeps to the cap,
/// such as "dualpipe_v"; "constructed" where there is none, or, of a plan with a spread, "planned" for the one without.
/// A NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_started_from(
    plan: dualpipe_plan_t,
    name: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_plan_started_from", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("name", name, capacity, "length", length) }?;
        out.fill_text(&object.started_from)
    })
}

/// The most that each rank keeps at once; the count is num_ranks. Buffers are filled as dualpipe.h says under
/// "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_peaks(
    plan: dualpipe_plan_t,
    peaks: *mut dualpipe_plan_peak,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_plan_peaks", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("peaks", peaks, capacity, "count", count) }?;
        let peaks = object.peak_live.iter().zip(&object.peak_memory_bytes);
        let peaks =
            peaks.map(|(&live, &memory_bytes)| dualpipe_plan_peak { live: live as u64, memory_bytes });
        out.fill(object.peak_live.len(), peaks)
    })
}

/// The schedule of a plan, as an object of its own: DUALPIPE_KIND_CUSTOM, or of its kind if nothing better was found
/// than a published one. Free it with dualpipe_schedule_free.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_schedule(
    plan: dualpipe_plan_t,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_plan_schedule", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("schedule", schedule) }?;
        out.write(handle::insert(schedule_object(&object.schedule))?);
        Ok(())
    })
}

/// A planned schedule, or the published one that it is, for C.
pub(super) fn schedule_object(schedule: &Schedule) -> ScheduleObject {
    ScheduleObject::new(dualpipe_schedule_kind::of_name(schedule.name()), schedule.clone())
}

impl dualpipe_plan_options {
    pub(super) fn search(&self) -> Outcome<Search> {
        Search::read("options", [self.iterations, self.time_limit_ns, self.seed], self.num_threads)
    }
}

fn stop_of(stop: Stop) -> dualpipe_plan_stop {
    match stop {
        Stop::Optimal => DUALPIPE_STOP_OPTIMAL,
        Stop::Iterations => DUALPIPE_STOP_ITERATIONS,
        Stop::Time => DUALPIPE_STOP_TIME,
        Stop::Cancelled => DUALPIPE_STOP_CANCELLED,
    }
}
