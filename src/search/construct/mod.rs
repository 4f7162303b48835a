//! Schedules made from nothing, for the planner to start from: of any placement, any number of micro-batches, any costs
//! and as little memory as can be.
//!
//! Ranks act by a policy of a few numbers in simulated time (`dispatch`, which never gets stuck). The numbers are then
//! varied at random, and what makes the step shorter is kept: an evolution strategy with a pool of parents.

mod dispatch;
mod lines;
mod play;
mod policy;
mod room;
#[cfg(test)]
mod tests;

use super::Problem;
use crate::error::{in_range, Result};
use crate::op::Op;
use crate::random::Random;
use crate::schedule::MICROBATCHES_MAX;
use dispatch::{dispatch, Outcome};
use lines::Lines;
use policy::Policy;

/// F, I and W to dispatch in each try, about: some 5 ms.
const STEPS_PER_TRY: usize = 16_000;
/// Most runs of a try.
const RUNS_PER_TRY_MAX: usize = 256;
/// Most schedules that are kept to vary, and given back.
const SCHEDULES_MAX: usize = 16;

/// Orders of all ranks, `[schedule][rank]`, that keep to the cap: at least one, at most 16, the fastest first, no two
/// alike. The same arguments give the same orders; more `tries` (0 is 1) and another seed give better or other ones.
///
/// Time: each try dispatches all passes once, and again while that takes only milliseconds.
///
/// # Errors
/// Costs or a cap that do not fit the placement; a cap that cannot hold one micro-batch of each stage of a rank, below
/// which there is no schedule.
pub(super) fn construct(problem: &Problem, seed: u64, tries: usize) -> Result<Vec<Vec<Vec<Op>>>> {
    in_range("plan", "num_microbatches", problem.num_microbatches, 1..=MICROBATCHES_MAX)?;
    problem.costs.fit(problem.placement.num_stages())?;
    problem.cap.fit(problem.placement.num_ranks())?;
    let lines = Lines::new(problem)?;
    let runs_per_try = (STEPS_PER_TRY / lines.num_steps().max(1)).clamp(1, RUNS_PER_TRY_MAX);
    let runs = tries.max(1).saturating_mul(runs_per_try);
    let mut random = Random::new(seed);
    let mut basics = Policy::basics(&lines).into_iter();
    let mut pool: Vec<Tried> = Vec::new();
    for run in 0..runs {
        let policy = match basics.next() {
            Some(basic) => basic,
            None => {
                let parent = random.below(pool.len()).min(random.below(pool.len()));
                pool[parent].policy.varied(&mut random, run > runs / 2)
            }
        };
        let slowest = pool.get(SCHEDULES_MAX - 1).map_or(u64::MAX, |tried| tried.outcome.makespan_ns);
        if let Some(outcome) = dispatch(&lines, &policy, slowest) {
            keep(&mut pool, Tried { policy, outcome });
        }
    }
    Ok(pool.iter().map(|tried| lines.orders(&tried.outcome.steps)).collect())
}

/// A policy and what came of it.
struct Tried {
    policy: Policy,
    outcome: Outcome,
}

impl Tried {
    /// Less is better. Equal makespans are common; then ranks that end early are likelier to give a shorter one.
    fn key(&self) -> (u64, f64) {
        (self.outcome.makespan_ns, self.outcome.ends)
    }
}

/// Keeps the best, in order, without two of the same key: the same orders have the same.
fn keep(pool: &mut Vec<Tried>, tried: Tried) {
    let at = pool.partition_point(|other| other.key() < tried.key());
    if pool.get(at).is_none_or(|other| other.key() != tried.key()) {
        pool.insert(at, tried);
        pool.truncate(SCHEDULES_MAX);
    }
}
