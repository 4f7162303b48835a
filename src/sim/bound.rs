//! Makespans that no schedule on a placement can beat: a quick one in closed form, and a strong one that knows memory.
//!
//! The strong one supposes that a schedule ends by some time T, works out for every rank in which states it can be
//! when, and finds that it cannot be: so T is too short. [`windows`], [`graph`] and [`rank`] say what is worked out,
//! [`pipeline`] how ranks tell one another, [`strong`] which T are tried. docs/bounds.md has the proofs.

mod graph;
mod model;
mod pipeline;
mod quick;
mod rank;
mod strong;
mod windows;

use super::MemoryCap;
use crate::cost::Costs;
use crate::ids::Direction;
use crate::placement::Placement;
use crate::schedule::{Schedule, Work};
use quick::quick_bound_ns;
use strong::strong_bound_ns;

/// No schedule of the same micro-batches on the same placement has a shorter makespan, in nanoseconds.
/// `costs` must fit the schedule's stages.
///
/// Time: proportional to the stages, and to the square of the copies on a rank. It knows nothing of memory and little
/// of how ranks wait for one another; [`lower_bound_within_ns`] does.
pub fn lower_bound_ns(schedule: &Schedule, costs: &Costs) -> u64 {
    let microbatches = Direction::ALL.map(|direction| schedule.microbatches_in(direction));
    quick_bound_ns(schedule.placement(), microbatches, costs, schedule.work())
}

/// No training schedule of `num_microbatches` (of both directions together, as [`Schedule::new`] counts them) on
/// `placement` that keeps to `cap` has a shorter makespan, in nanoseconds. `costs` and `cap` must fit the placement.
///
/// Never below [`lower_bound_ns`], and often the optimum. Holds for every order of F, B, I, W and overlapped pairs, as
/// [`simulate`](super::simulate) times and [`MemoryCap::admits`] counts them. A tighter cap never lowers it, as long
/// as the work limit leaves off neither early. If no schedule at all keeps to `cap`, it says nothing.
///
/// Time: grows with the states in which a rank can be, about (micro-batches)² × cap³ for two copies on a rank; from
/// microseconds to about half a second, where the work limit ends it with what is proven by then. With more than
/// 400,000 states of a rank (fewer where there are many ranks) its copies are counted together, which weakens the
/// bound; above 65,536 passes the quick bound is all there is. The result depends on nothing but the arguments.
pub fn lower_bound_within_ns(
    placement: &Placement,
    num_microbatches: usize,
    costs: &Costs,
    cap: &MemoryCap,
) -> u64 {
    let microbatches = match placement.num_directions() {
        1 => [num_microbatches, 0],
        _ => [num_microbatches.div_ceil(2), num_microbatches / 2],
    };
    let quick_ns = quick_bound_ns(placement, microbatches, costs, Work::Training);
    strong_bound_ns(placement, microbatches, costs, cap, quick_ns)
}
