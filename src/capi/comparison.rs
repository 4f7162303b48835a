//! Which placement: published schedules and planned ones on equal devices, with what each costs.
//!
//! The same model is cut into the stages of each placement: linear, V, bidirectional, and interleaved with 2, 3 and 4
//! stages on a rank. Of each there are the published schedules and a plan (plan.h), ranked by makespan; those that do
//! not fit the memory come behind, then those that these sizes do not admit. What makes them comparable: activations
//! are counted in those of one micro-batch on one num_ranks-th of the model, of which each of a rank's v stages keeps
//! 1/v; parameters in copies of the model, of which a bidirectional placement has two.
//!
//! ```c
//! // The best schedule of all that keep to 9 activations on each rank.
//! #include <dualpipe.h>
//!
//! static dualpipe_status choose(const dualpipe_costs *costs, dualpipe_schedule_t *schedule) {
//!   const uint64_t cap = 9;
//!   dualpipe_comparison_options options = DUALPIPE_COMPARISON_OPTIONS_INIT;
//!   dualpipe_comparison_t comparison = NULL;
//!   dualpipe_status status;
//!   options.num_ranks = 8;
//!   options.num_microbatches = 20;
//!   options.cap_activations = &cap;
//!   options.num_cap_activations = 1;
//!   status = dualpipe_comparison_create(&options, costs, &comparison);
//!   if (status == DUALPIPE_OK) status = dualpipe_comparison_schedule(comparison, 0, schedule); // the best is first
//!   dualpipe_comparison_free(comparison);
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::options::{self, Growing, OutStruct};
use super::plan::{dualpipe_placement_kind, schedule_object};
use super::planner::Search;
use super::schedule::dualpipe_schedule_t;
use super::schedule_verify::read_cap;
use super::status::{dualpipe_status, Failure, Outcome};
use super::timeline::{dualpipe_timeline_t, TimelineObject};
use crate::search::{compare, Candidate, Comparison, Excess, Measured, Setting, Shape, COMPARED_PLANS};

use dualpipe_placement_kind::*;

/// What a dualpipe_comparison_t points to: nothing that C could look into.
pub struct dualpipe_comparison(());

/// Schedules on several placements, ranked. It never changes: any number of threads may use it at once. It stays usable
/// after a fork. Free it with dualpipe_comparison_free.
pub type dualpipe_comparison_t = *mut dualpipe_comparison;

/// A model and the devices to train it on, whatever the placement. Start from DUALPIPE_COMPARISON_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_comparison_options {
    /// sizeof(dualpipe_comparison_options).
    pub size: u32,
    /// The ranks of the pipeline, P, 1 to 4096.
    pub num_ranks: u32,
    /// The micro-batches of a step, any number; times num_ranks at most 262144.
    pub num_microbatches: u32,
    /// Threads of the search: 0 for as many as there are cores, at most 4096. In a child of fork it is always 1.
    pub num_threads: u32,
    /// NULL, or how many activations may be alive at once, at least 1, counted in those of one micro-batch on one
    /// num_ranks-th of the model: on each rank, or one entry for all.
    pub cap_activations: *const u64,
    /// How many there are: 1, or num_ranks; 0 without.
    pub num_cap_activations: usize,
    /// NULL, or how many bytes each rank may keep, parameters included, at most 2^50; likewise. Only one of the caps
    /// may be there.
    pub cap_bytes: *const u64,
    /// How many there are; 0 without.
    pub num_cap_bytes: usize,
    /// Changes that each plan tries. With iterations and without a time limit, the same options give the same schedules
    /// on every machine. 0: as many as there is time for.
    pub iterations: u64,
    /// How long each plan may search, at most a day; 0: as long as the iterations take. Both 0: 2 seconds.
    pub time_limit_ns: u64,
    /// Another seed searches another way.
    pub seed: u64,
}

// SAFETY: repr(C), four u32 and seven times 8 bytes, of which the pointers may be anything until they are checked.
unsafe impl Growing for dualpipe_comparison_options {
    const SIZE_V1: usize = 72;
}

/// A schedule that was compared. Start from DUALPIPE_CANDIDATE_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_candidate {
    /// sizeof(dualpipe_candidate).
    pub size: u32,
    /// How stages are placed: a dualpipe_placement_kind.
    pub placement: u32,
    /// Stages of the model for each rank: 1, of a V 2.
    pub stages_per_rank: u32,
    /// 1 if it was planned, 0 if it is a published one.
    pub is_planned: u32,
    /// 1 if it is possible; 0 if not, as dualpipe_comparison_reason says: then all that follows is 0.
    pub is_possible: u32,
    /// 1 if it keeps to the memory caps, otherwise 0.
    pub fits: u32,
    /// Copies of the model's parameters that there are: 1, or 2.
    pub parameter_copies: u32,
    /// Always 0.
    pub reserved: u32,
    /// How long a step takes.
    pub makespan_ns: u64,
    /// No schedule on this placement is faster; where this one fits, none that fits is.
    pub lower_bound_ns: u64,
    /// The bubble's share of the step, mean over ranks, 0 to 1.
    pub bubble_share: f64,
    /// Bytes of parameters, of the rank that has most.
    pub parameter_bytes: u64,
    /// The most activations alive at once on any rank, counted in those of one micro-batch on one num_ranks-th of the
    /// model.
    pub peak_activations: f64,
    /// The most bytes that activations take on any rank.
    pub peak_activation_bytes: u64,
    /// Messages to other ranks, of the rank that sends most.
    pub sent_messages: u64,
    /// Bytes to other ranks, of the rank that sends most.
    pub sent_bytes: u64,
    /// By how many activations it exceeds their cap, on the rank where that is most; 0 if it fits, or bytes are capped.
    pub excess_activations: f64,
    /// By how many bytes it exceeds their cap, on the rank where that is most; 0 if it fits, or activations are capped.
    pub excess_bytes: u64,
}

// SAFETY: repr(C), eight u32, and ten u64 and f64.
unsafe impl Growing for dualpipe_candidate {
    const SIZE_V1: usize = 112;
}

/// Compares schedules on several placements.
///
/// costs: of the finest stages that the model is to be cut into, a multiple of num_ranks; or one entry, of one
/// num_ranks-th of the model. Stages put together add up, and those that are cut are cut evenly. Pairs say nothing of
/// other stages than their own: only a placement with as many stages can have them. Messages do not slow one another
/// down: what a placement sends is in its makespan only as latency and as its own time on a link.
///
/// Iterations and time are those of each of 6 plans, one for each placement. Calls the progress callback with what is
/// done of all of them. If it asks to stop, the call succeeds: the plan at hand is the best so far, and later ones are
/// listed as not made.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT. What a placement does not admit is no error, but a candidate's reason.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_create(
    options: *const dualpipe_comparison_options,
    costs: *const dualpipe_costs,
    comparison: *mut dualpipe_comparison_t,
) -> dualpipe_status {
    call("dualpipe_comparison_create", || {
        // SAFETY: the caller's, as is what it points to.
        let given = unsafe { options::read("options", options) }?;
        // SAFETY: as above.
        let costs = unsafe { cost::read("costs", costs) }?;
        let activations = (given.cap_activations, given.num_cap_activations);
        // SAFETY: as above.
        let cap = unsafe { read_cap(activations, (given.cap_bytes, given.num_cap_bytes)) }?;
        let [iterations, time, seed] = [given.iterations, given.time_limit_ns, given.seed];
        let search = Search::read("options", [iterations, time, seed], given.num_threads)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("comparison", comparison) }?;
        let (num_ranks, num_microbatches) = (given.num_ranks as usize, given.num_microbatches as usize);
        let setting = Setting { num_ranks, num_microbatches, costs, cap };
        let search = search.of_plans(COMPARED_PLANS);
        let found = search.run(|effort, progress| compare(&setting, effort, progress))?;
        out.write(handle::insert(ComparisonObject(found))?);
        Ok(())
    })
}

/// Frees a comparison. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_free(comparison: dualpipe_comparison_t) -> dualpipe_status {
    call("dualpipe_comparison_free", || handle::free::<ComparisonObject>("comparison", comparison))
}

/// How many candidates there are, at least 1.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_count(
    comparison: dualpipe_comparison_t,
    count: *mut u32,
) -> dualpipe_status {
    call("dualpipe_comparison_count", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("count", count) }?;
        out.write(object.0.candidates.len() as u32);
        Ok(())
    })
}

/// A candidate, the best first: those that fit by makespan, then those that do not by makespan, then those that are not
/// possible. Of two that are equal, a published one comes before a planned one.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_candidate(
    comparison: dualpipe_comparison_t,
    candidate: u32,
    info: *mut dualpipe_candidate,
) -> dualpipe_status {
    call("dualpipe_comparison_candidate", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        let candidate = object.candidate(candidate)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        out.write(candidate_in_c(candidate));
        Ok(())
    })
}

/// A candidate's name: of a published schedule such as "dualpipe_v", or "planned". A NUL ends it; the length is without
/// the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_name(
    comparison: dualpipe_comparison_t,
    candidate: u32,
    name: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_comparison_name", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        let candidate = object.candidate(candidate)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("name", name, capacity, "length", length) }?;
        out.fill_text(&candidate.name)
    })
}

/// Why a candidate is not possible; empty if it is. A NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_reason(
    comparison: dualpipe_comparison_t,
    candidate: u32,
    reason: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_comparison_reason", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        let candidate = object.candidate(candidate)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("reason", reason, capacity, "length", length) }?;
        out.fill_text(&candidate.outcome.as_ref().err().map_or(String::new(), ToString::to_string))
    })
}

/// A schedule of its own from a candidate. It is of its placement's stages: the costs of the comparison are of others.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for one that is not possible, with the reason.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_schedule(
    comparison: dualpipe_comparison_t,
    candidate: u32,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_comparison_schedule", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        let (_, measured) = object.possible(candidate)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("schedule", schedule) }?;
        out.write(handle::insert(schedule_object(&measured.schedule))?);
        Ok(())
    })
}

/// A candidate as dualpipe_simulate plays it, with its placement's stages cut from the comparison's costs.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for one that is not possible, with the reason.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_timeline(
    comparison: dualpipe_comparison_t,
    candidate: u32,
    timeline: *mut dualpipe_timeline_t,
) -> dualpipe_status {
    call("dualpipe_comparison_timeline", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        let (candidate, _) = object.possible(candidate)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("timeline", timeline) }?;
        out.write(handle::insert(TimelineObject::simulated(object.0.simulate(candidate)?))?);
        Ok(())
    })
}

/// The table for people: a line for each candidate, the best first, and below the reasons of those that are not
/// possible. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_comparison_text(
    comparison: dualpipe_comparison_t,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_comparison_text", || {
        let object = handle::get::<ComparisonObject>("comparison", comparison)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&object.0.to_text())
    })
}

fn candidate_in_c(candidate: &Candidate) -> dualpipe_candidate {
    let none = dualpipe_candidate {
        size: 0,
        placement: placement_in_c(candidate.shape) as u32,
        stages_per_rank: candidate.shape.stages_per_rank() as u32,
        is_planned: candidate.is_planned().into(),
        is_possible: 0,
        fits: 0,
        parameter_copies: 0,
        reserved: 0,
        makespan_ns: 0,
        lower_bound_ns: 0,
        bubble_share: 0.0,
        parameter_bytes: 0,
        peak_activations: 0.0,
        peak_activation_bytes: 0,
        sent_messages: 0,
        sent_bytes: 0,
        excess_activations: 0.0,
        excess_bytes: 0,
    };
    let Ok(measured) = &candidate.outcome else { return none };
    let &Measured { makespan_ns, lower_bound_ns, bubble_share, .. } = measured;
    let &Measured { parameter_bytes, peak_activations, peak_activation_bytes, sent_bytes, .. } = measured;
    let (excess_activations, excess_bytes) = match measured.excess {
        None => (0.0, 0),
        Some(Excess::Activations(over)) => (over, 0),
        Some(Excess::Bytes(over)) => (0.0, over),
    };
    dualpipe_candidate {
        is_possible: 1,
        fits: measured.excess.is_none().into(),
        parameter_copies: measured.parameter_copies as u32,
        makespan_ns,
        lower_bound_ns,
        bubble_share,
        parameter_bytes,
        peak_activations,
        peak_activation_bytes,
        sent_messages: measured.sent_messages as u64,
        sent_bytes,
        excess_activations,
        excess_bytes,
        ..none
    }
}

fn placement_in_c(shape: Shape) -> dualpipe_placement_kind {
    match shape {
        Shape::Linear => DUALPIPE_PLACEMENT_LINEAR,
        Shape::V => DUALPIPE_PLACEMENT_V,
        Shape::Bidirectional => DUALPIPE_PLACEMENT_BIDIRECTIONAL,
        Shape::Interleaved(_) => DUALPIPE_PLACEMENT_INTERLEAVED,
    }
}

/// A comparison that C has a handle of.
struct ComparisonObject(Comparison);

impl Object for ComparisonObject {
    type Opaque = dualpipe_comparison;
    const KIND: Kind = Kind::Comparison;
}

impl ComparisonObject {
    fn candidate(&self, candidate: u32) -> Outcome<&Candidate> {
        let all = &self.0.candidates;
        Ok(&all[args::index("candidate", candidate, all.len())?])
    }

    /// A candidate that is possible, and what it costs.
    fn possible(&self, candidate: u32) -> Outcome<(&Candidate, &Measured)> {
        let found = self.candidate(candidate)?;
        let measured = found.outcome.as_ref().map_err(|why| {
            let Candidate { name, placement, .. } = found;
            let how = format!("is {candidate}, {name} on {placement}, which is not possible: {why}");
            Failure::argument("candidate", how)
        })?;
        Ok((found, measured))
    }
}
