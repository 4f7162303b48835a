//! What a search starts from: the published schedules of the placement, and constructed ones.

use super::construct::construct;
use super::published::published_on;
use super::Problem;
use crate::error::Result;
use crate::schedule::{Schedule, Work};
use crate::sim::{simulate, MemoryCap};

/// The name of a plan that no published schedule was possible for.
pub(super) const CONSTRUCTED: &str = "constructed";

/// A schedule that keeps to the cap, and its makespan.
pub(super) struct Start {
    pub(super) schedule: Schedule,
    pub(super) makespan_ns: u64,
}

/// The best published schedule first, if one is possible and keeps to the cap; then others, the fastest first.
pub(super) fn starts(problem: &Problem, seed: u64) -> Result<Vec<Start>> {
    let Problem { placement, num_microbatches, costs, cap } = problem;
    let start = |schedule: Schedule| -> Result<Start> {
        let makespan_ns = simulate(&schedule, costs)?.timeline.makespan_ns();
        Ok(Start { schedule, makespan_ns })
    };
    let published = published_on(placement, *num_microbatches).into_iter();
    let published = published.filter(|schedule| cap.admits(schedule, costs)).map(start);
    let mut published = published.collect::<Result<Vec<Start>>>()?;
    published.sort_by_key(|start| start.makespan_ns);
    let mut orders = construct(problem, seed, tries(problem))?;
    if cap != &MemoryCap::Unlimited {
        // A pair keeps two activations at once: where memory is short, doing without can be faster.
        let apart = Problem { costs: costs.without_overlap(), ..problem.clone() };
        orders.extend(construct(&apart, seed, tries(problem))?);
    }
    let constructed = orders.into_iter().map(|orders| {
        let placement = placement.clone();
        start(Schedule::new(CONSTRUCTED, placement, *num_microbatches, Work::Training, orders)?)
    });
    let mut constructed = constructed.collect::<Result<Vec<Start>>>()?;
    constructed.sort_by_key(|start| start.makespan_ns);
    published.extend(constructed);
    if let [_, rest @ ..] = &mut published[..] {
        rest.sort_by_key(|start| start.makespan_ns);
    }
    Ok(published)
}

/// How often to try to construct: a try dispatches all passes at least once.
fn tries(problem: &Problem) -> usize {
    const TRIES: usize = 20;
    const PASSES: usize = 100_000;
    let passes = problem.placement.num_stages().saturating_mul(problem.num_microbatches);
    (PASSES / passes.max(1)).clamp(1, TRIES)
}
