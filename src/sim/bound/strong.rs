//! The strong bound: the longest makespan that can be refuted, found by doubling and bisection.
//!
//! Source: Klein & Scholl, Computing lower bounds by destructive improvement, European Journal of Operational Research
//! 112 (1999): suppose that a schedule ends by T, draw conclusions, and where they contradict one another T was too
//! short. The conclusions here ([`super::pipeline`]) are this project's own.

use super::model::all_copies;
use super::pipeline::{Counting, Pipeline, Verdict};
use super::windows::{Windows, FAR_NS};
use crate::cost::Costs;
use crate::ids::{Direction, Rank, Stage};
use crate::placement::Placement;
use crate::sim::MemoryCap;

/// How many states may be explored, twice for one bound: some tenths of a second.
const WORK_MAX: u64 = 10_000_000;
/// Most passes for which the strong bound is tried.
const PASSES_MAX: u128 = 1 << 16;
/// The trials are this part of the bound apart, or closer.
const PRECISION: i64 = 4096;
/// Trials first go up by this part of the bound, then by twice as much, and so on.
const FIRST_STEP: i64 = 128;

/// The greater of `at_least_ns`, which must be a bound, and what can be refuted, for training within `cap`.
pub(super) fn strong_bound_ns(
    placement: &Placement,
    microbatches: [usize; 2],
    costs: &Costs,
    cap: &MemoryCap,
    at_least_ns: u64,
) -> u64 {
    let unit_ns = unit_ns(placement, costs) as i64;
    let (passes, serial_ns) = serial_ns(placement, microbatches, costs);
    if unit_ns == 0 || passes > PASSES_MAX || serial_ns > FAR_NS as u128 / 8 {
        return at_least_ns;
    }
    let shortest = (at_least_ns as i64 + unit_ns - 1) / unit_ns;
    let step = (shortest / PRECISION).max(1);
    // More than all of them are too short only if no schedule at all is within the cap.
    let count = (serial_ns / unit_ns as u128) as i64 / step + 1;
    let trials = Trials { shortest_ns: shortest * unit_ns, step_ns: step * unit_ns, count };
    let mut refuted = 0;
    for counting in [Counting::Together, Counting::Apart] {
        let Some(mut pipeline) = Pipeline::new(placement, microbatches, costs, cap, counting, WORK_MAX)
        else {
            continue;
        };
        match trials.refute(&mut pipeline, refuted) {
            Some(more) => refuted = more,
            None => return at_least_ns,
        }
    }
    match refuted {
        0 => (shortest * unit_ns) as u64,
        _ => (trials.makespan_ns(refuted - 1) + unit_ns) as u64,
    }
}

/// The makespans that are tried. They do not depend on the cap, so a tighter one never leads to a lesser bound.
struct Trials {
    shortest_ns: i64,
    step_ns: i64,
    count: i64,
}

impl Trials {
    fn makespan_ns(&self, trial: i64) -> i64 {
        self.shortest_ns + trial * self.step_ns
    }

    /// How many of them, from the first, are refuted, if the first `refuted` are; `None` if all are.
    fn refute(&self, pipeline: &mut Pipeline, mut refuted: i64) -> Option<i64> {
        let long_ns = FAR_NS / 4;
        let rough = pipeline.rough_windows(long_ns);
        let mut verdict = |trial: i64| {
            let horizon_ns = self.makespan_ns(trial);
            let mut windows: Vec<Windows> = rough.iter().map(|w| w.moved(long_ns, horizon_ns)).collect();
            pipeline.narrow(&mut windows, horizon_ns)
        };
        let mut width = (self.shortest_ns / self.step_ns / FIRST_STEP).max(1);
        let mut open = loop {
            let trial = refuted + width - 1;
            match verdict(trial) {
                Verdict::Refuted if trial > self.count => return None,
                Verdict::Refuted => refuted = trial + 1,
                Verdict::Open => break trial,
                Verdict::OutOfWork => return Some(refuted),
            }
            width *= 2;
        };
        while refuted < open {
            let trial = refuted + (open - refuted) / 2;
            match verdict(trial) {
                Verdict::Refuted => refuted = trial + 1,
                Verdict::Open => open = trial,
                Verdict::OutOfWork => break,
            }
        }
        Some(refuted)
    }
}

/// The greatest time of which every makespan is a multiple, as a sum of durations; 0 if nothing takes any.
fn unit_ns(placement: &Placement, costs: &Costs) -> u64 {
    let stages = (0..placement.num_stages()).map(|stage| Stage(stage as u16));
    let alone = stages.flat_map(|stage| {
        let of = costs.stage(stage);
        [of.forward_ns, of.input_ns, of.weight_ns, costs.output_ns(stage)]
    });
    let pairs = (0..placement.num_ranks()).map(|rank| placement.copies_on(Rank::from_index(rank)));
    let pairs = pairs.flat_map(|copies| copies.iter().flat_map(move |f| copies.iter().map(move |b| (f, b))));
    let pairs = pairs.map(|(forward, backward)| costs.pair_ns(forward.stage, backward.stage));
    alone.chain(pairs).fold(0, greatest_common_divisor)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

/// The number of passes, and the time of all ops and messages one after the other.
fn serial_ns(placement: &Placement, microbatches: [usize; 2], costs: &Costs) -> (u128, u128) {
    let count = |direction: Direction| microbatches[direction.index()] as u128;
    all_copies(placement).fold((0, 0), |(passes, ns), copy| {
        let of = costs.stage(copy.stage);
        let pass_ns = of.forward_ns + of.backward_ns() + 2 * costs.output_ns(copy.stage);
        (passes + count(copy.direction), ns + count(copy.direction) * pass_ns as u128)
    })
}
