//! Tables of durations, drawn.
//!
//! Floating point only adds, multiplies and rounds here, so that the same seed draws the same table everywhere.

use super::lanes::Model;
use super::Spread;
use crate::random::Random;

/// Least and greatest factor.
const FACTORS: std::ops::RangeInclusive<f64> = 0.1..=10.0;

/// Durations of F, I and W of every pass, for several samples.
pub(in crate::search) struct Durations {
    pub(super) lanes: usize,
    /// `[pass, F I W, lane]`, whole nanoseconds.
    table_ns: Vec<f64>,
}

/// Draws one sample after the other from a stream of random numbers.
pub(in crate::search) struct Sampler<'a> {
    model: &'a Model,
    spread: Spread,
    random: Random,
}

impl Durations {
    pub(in crate::search) fn samples(&self) -> usize {
        self.lanes
    }

    /// `[lane]`, of part 0 (F), 1 (I) or 2 (W) of a pass.
    pub(super) fn of(&self, pass: usize, part: usize) -> &[f64] {
        &self.table_ns[(3 * pass + part) * self.lanes..][..self.lanes]
    }
}

impl<'a> Sampler<'a> {
    pub(in crate::search) fn new(model: &'a Model, spread: &Spread) -> Sampler<'a> {
        Sampler { model, spread: *spread, random: Random::new(spread.seed) }
    }

    /// The next samples, one in each lane. How many are drawn at a time does not change what they are, nor does the
    /// size of the spread change the random numbers.
    pub(in crate::search) fn draw(&mut self, lanes: usize) -> Durations {
        let num_passes = self.model.num_passes();
        let mut table_ns = vec![0.0; num_passes * 3 * lanes];
        for lane in 0..lanes {
            for pass in 0..num_passes {
                let imbalance = 1.0 + self.spread.expert_imbalance * self.normal();
                for (part, cost_ns) in self.model.costs_ns(pass).into_iter().enumerate() {
                    let jitter = 1.0 + self.spread.op_jitter * self.normal();
                    // Both may be negative: each by itself must not.
                    let factor =
                        (imbalance.max(0.0) * jitter.max(0.0)).clamp(*FACTORS.start(), *FACTORS.end());
                    table_ns[(3 * pass + part) * lanes + lane] = (cost_ns * factor).round();
                }
            }
        }
        Durations { lanes, table_ns }
    }

    /// About normal: mean 0, variance 1, at most 6 either way.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random.unit()).sum::<f64>() - 6.0
    }
}
