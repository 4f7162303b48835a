//! Costs with a spread: what a schedule takes when its ops do not take what they should.
//!
//! A step never runs at its mean costs. Clocks and caches let every op jitter, and unevenly loaded experts slow a
//! micro-batch down on one stage, forward and backward alike. Neither makes a schedule slower by its mean: where ranks
//! wait for one another, the slowest counts, so that the mean makespan is above the makespan of the mean.
//!
//! `draw` makes tables of durations, `lanes` plays a schedule against many tables at once, `bound` says what no
//! schedule can beat on them. A table depends on the spread, the costs, the placement and the number of micro-batches,
//! but not on the schedule: schedules of one problem are compared under the same fortune.
//!
//! All times are whole nanoseconds, also where they are kept as floating point: below 2^53 it adds them exactly.

mod bound;
mod draw;
mod lanes;

pub(super) use draw::{Durations, Sampler};
pub(super) use lanes::{Lanes, Model, Step, NO_PASS};

use crate::cost::Costs;
use crate::error::{in_range, Error, Result};
use crate::placement::Placement;
use crate::schedule::{Schedule, Work, MICROBATCHES_MAX};

/// Most samples of a spread.
pub const SAMPLES_MAX: usize = 1024;
/// Most samples times passes of a schedule.
pub const SAMPLED_PASSES_MAX: usize = 1 << 24;
/// Longest time of all ops and messages of a step together, in nanoseconds: ten times it, the most that a sample can
/// be, is below 2^53.
pub const SAMPLED_NS_MAX: u64 = 900_000_000_000_000;

/// How far the times of ops spread about their costs.
///
/// Every factor is drawn on its own from a distribution that is close to the normal one (a sum of 12 uniform numbers),
/// of mean 1; the product of both is kept between 0.1 and 10. Messages do not spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Relative standard deviation of each F, each I and each W, 0 to 1. B is the sum of its I and its W; a pair takes
    /// the same part of its F and B as without a spread, but at least the longer of them.
    pub op_jitter: f64,
    /// Relative standard deviation of each (direction, stage, micro-batch), 0 to 1: its F, I and W alike.
    pub expert_imbalance: f64,
    /// How many samples, 1 to [`SAMPLES_MAX`].
    pub samples: usize,
    /// Another seed draws other samples.
    pub seed: u64,
}

/// Makespans of one schedule on samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rounded to the nearest nanosecond.
    pub mean_ns: u64,
    /// The least makespan that at least 95 of 100 samples do not exceed: of K samples in order, that of place
    /// 95 K / 100, rounded up, counted from 1.
    pub p95_ns: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// `[samples]`: the makespan of a schedule for training on each sample. Without a spread each is what
/// [`simulate`](crate::sim::simulate) says.
///
/// Time: proportional to samples times ops.
///
/// # Errors
/// The schedule fails its check or does not train, the costs are of another number of stages; a relative standard
/// deviation that is not 0 to 1; samples that are not 1 to [`SAMPLES_MAX`] or that make more than
/// [`SAMPLED_PASSES_MAX`] with the passes; times above [`SAMPLED_NS_MAX`] together.
pub fn sampled_makespans(schedule: &Schedule, costs: &Costs, spread: &Spread) -> Result<Vec<u64>> {
    let placement = schedule.placement();
    spread.check(placement, schedule.num_microbatches(), costs)?;
    if schedule.work() != Work::Training {
        let range = "must be a schedule for training";
        return Err(Error::argument("sampled makespans", "the schedule", schedule.title(), range));
    }
    schedule.check()?;
    let model = Model::new(placement, schedule.num_microbatches(), costs)?;
    let orders = model.steps(schedule);
    let mut sampler = Sampler::new(&model, spread);
    let mut makespans = Vec::with_capacity(spread.samples);
    let at_once = (LANES_AT_ONCE / model.num_passes()).clamp(1, spread.samples);
    while makespans.len() < spread.samples {
        let lanes = at_once.min(spread.samples - makespans.len());
        let durations = sampler.draw(lanes);
        let mut lanes = Lanes::new(&model, &durations);
        let ends = lanes.play(&orders).ok_or_else(|| {
            Error::argument("sampled makespans", "the schedule", schedule.title(), "waits for ever")
        })?;
        makespans.extend(ends.iter().map(|&end| end as u64));
    }
    Ok(makespans)
}

/// Samples times passes that are kept in memory at a time.
const LANES_AT_ONCE: usize = 1 << 19;

/// A makespan for each sample that no schedule for training is faster than, in the order of [`sampled_makespans`]. So
/// the mean of these is a lower bound for the mean, and their 95th percentile one for the 95th percentile.
///
/// # Errors
/// As of [`sampled_makespans`], for the placement and the number of micro-batches.
pub fn sampled_lower_bounds(
    placement: &Placement,
    num_microbatches: usize,
    costs: &Costs,
    spread: &Spread,
) -> Result<Vec<u64>> {
    spread.check(placement, num_microbatches, costs)?;
    let model = Model::new(placement, num_microbatches, costs)?;
    let mut sampler = Sampler::new(&model, spread);
    Ok((0..spread.samples).map(|_| bound::lower_bound_ns(&model, &sampler.draw(1), 0)).collect())
}

impl Summary {
    /// Of at least one makespan.
    pub fn of(makespans: &[u64]) -> Summary {
        let mut sorted = makespans.to_vec();
        sorted.sort_unstable();
        let sum: u128 = sorted.iter().map(|&ns| u128::from(ns)).sum();
        let count = sorted.len().max(1) as u128;
        Summary {
            mean_ns: ((sum + count / 2) / count) as u64,
            p95_ns: sorted.get(p95_index(sorted.len())).copied().unwrap_or(0),
            min_ns: sorted.first().copied().unwrap_or(0),
            max_ns: sorted.last().copied().unwrap_or(0),
        }
    }
}

/// Where the 95th percentile of so many sorted samples is.
pub(super) fn p95_index(samples: usize) -> usize {
    (95 * samples).div_ceil(100).saturating_sub(1)
}

impl Spread {
    /// Fails unless it can be drawn for a step.
    pub(super) fn check(&self, placement: &Placement, num_microbatches: usize, costs: &Costs) -> Result<()> {
        in_range("spread", "op_jitter", self.op_jitter, 0.0..=1.0)?;
        in_range("spread", "expert_imbalance", self.expert_imbalance, 0.0..=1.0)?;
        in_range("spread", "samples", self.samples, 1..=SAMPLES_MAX)?;
        costs.fit(placement.num_stages())?;
        in_range("spread", "num_microbatches", num_microbatches, 1..=MICROBATCHES_MAX)?;
        let num_passes = num_microbatches.div_ceil(placement.num_directions()) * placement.num_copies();
        let most = SAMPLED_PASSES_MAX / num_passes.max(1);
        if self.samples > most {
            let range = format!("must be at most {most} for {num_passes} passes");
            return Err(Error::argument("spread", "samples", self.samples, range));
        }
        let whole_ns = whole_ns(placement, num_microbatches, costs);
        in_range(
            "spread",
            "the time of all ops and messages in ns",
            whole_ns,
            0..=u128::from(SAMPLED_NS_MAX),
        )?;
        Ok(())
    }
}

/// Time of all ops of a step and of all its messages.
fn whole_ns(placement: &Placement, num_microbatches: usize, costs: &Costs) -> u128 {
    let stages = (0..placement.num_stages()).map(|stage| crate::ids::Stage(stage as u16));
    let of_stage = stages.map(|stage| {
        let cost = costs.stage(stage);
        u128::from(cost.forward_ns + cost.backward_ns() + 2 * costs.output_ns(stage))
    });
    of_stage.sum::<u128>() * num_microbatches as u128
}
