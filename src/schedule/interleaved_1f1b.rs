//! Interleaved 1F1B, Megatron-LM's schedule with virtual stages (arXiv 2104.04473, section 2.2.2; the warm-up is in
//! NVIDIA/Megatron-LM, megatron/core/pipeline_parallel/schedules.py).
//!
//! ```text
//! warm-up    F         w = min(2(P - 1 - r) + (v - 1)P, n v)
//! steady     F, B      the rest of the forwards
//! cool-down  B         as many as in the warm-up
//! ```
//!
//! Rank r of P holds v stages, r, r + P, r + 2P …; the counts are of passes through one of them. Passes go depth
//! first: P micro-batches through the rank's first stage, the same through its second, and so on to its last, then
//! the next P micro-batches. Backwards take the stages the other way round.
//!
//! At most min(w + 1, n v) stage activations are alive. With equal stages (F and B of one stage) and no time between
//! ranks the makespan is exactly (n v + P - 1)(F + B): a bubble of (P - 1)(F + B), 1 / v of 1F1B's. With v = 1 the
//! order is not 1F1B's: the same makespan, but the longer warm-up keeps up to 2(P - r) - 1 alive.

use super::{check_sizes, Schedule, Work};
use crate::error::{Error, Result};
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;

/// The interleaved 1F1B schedule: any `num_ranks` and `stages_per_rank` (v) of at least 1, `num_microbatches` a
/// multiple of `num_ranks`.
pub fn interleaved_1f1b(
    num_ranks: usize,
    stages_per_rank: usize,
    num_microbatches: usize,
    work: Work,
) -> Result<Schedule> {
    const NAME: &str = "interleaved_1f1b";
    let placement = interleaved(NAME, num_ranks, stages_per_rank, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let passes = DepthFirst::new(&placement, Rank::from_index(rank), num_microbatches);
        let warm_up = match work {
            Work::Training => passes.warm_up(rank).min(passes.len()),
            Work::ForwardOnly => return passes.forwards(0..passes.len()).collect(),
        };
        let mut order = Vec::with_capacity(2 * passes.len());
        order.extend(passes.forwards(0..warm_up));
        for i in warm_up..passes.len() {
            order.extend([Op::F(passes.forward(i)), Op::B(passes.backward(i - warm_up))]);
        }
        order.extend(passes.backwards(passes.len() - warm_up..passes.len()));
        order
    });
    let orders = orders.collect();
    Schedule::new(NAME, placement, num_microbatches, work, orders)
}

/// The interleaved placement, if a depth-first schedule called `name` admits the sizes.
pub(super) fn interleaved(
    name: &str,
    num_ranks: usize,
    stages_per_rank: usize,
    num_microbatches: usize,
) -> Result<Placement> {
    let placement = Placement::interleaved(num_ranks, stages_per_rank).map_err(|e| e.within(name))?;
    check_sizes(name, &placement, num_microbatches)?;
    if num_microbatches % num_ranks != 0 {
        let above = num_microbatches.next_multiple_of(num_ranks);
        let nearest = match above - num_ranks {
            0 => format!("the nearest is {above}"),
            below => format!("the nearest are {below} and {above}"),
        };
        let range = format!("must be a multiple of the {num_ranks} ranks: {nearest}");
        return Err(Error::argument(name, "num_microbatches", num_microbatches, range));
    }
    Ok(placement)
}

/// The passes of one rank, numbered depth first.
pub(super) struct DepthFirst<'a> {
    copies: &'a [StageCopy],
    num_ranks: usize,
    num_microbatches: usize,
}

impl<'a> DepthFirst<'a> {
    pub(super) fn new(placement: &'a Placement, rank: Rank, num_microbatches: usize) -> DepthFirst<'a> {
        DepthFirst { copies: placement.copies_on(rank), num_ranks: placement.num_ranks(), num_microbatches }
    }

    /// n v.
    pub(super) fn len(&self) -> usize {
        self.copies.len() * self.num_microbatches
    }

    /// The forwards that `rank` does before it turns to 1F1B, if there are as many.
    pub(super) fn warm_up(&self, rank: usize) -> usize {
        2 * (self.num_ranks - 1 - rank) + (self.copies.len() - 1) * self.num_ranks
    }

    /// The pass that goes forward as number `i`.
    pub(super) fn forward(&self, i: usize) -> Pass {
        let (microbatch, local_stage) = self.at(i);
        self.pass(microbatch, local_stage)
    }

    /// The pass that goes backward as number `i`.
    pub(super) fn backward(&self, i: usize) -> Pass {
        let (microbatch, local_stage) = self.at(i);
        self.pass(microbatch, self.copies.len() - 1 - local_stage)
    }

    pub(super) fn forwards(&self, numbers: std::ops::Range<usize>) -> impl Iterator<Item = Op> + '_ {
        numbers.map(|i| Op::F(self.forward(i)))
    }

    pub(super) fn backwards(&self, numbers: std::ops::Range<usize>) -> impl Iterator<Item = Op> + '_ {
        numbers.map(|i| Op::B(self.backward(i)))
    }

    fn at(&self, i: usize) -> (usize, usize) {
        let per_group = self.num_ranks * self.copies.len();
        let (group, i) = (i / per_group, i % per_group);
        (group * self.num_ranks + i % self.num_ranks, i / self.num_ranks)
    }

    fn pass(&self, microbatch: usize, local_stage: usize) -> Pass {
        let StageCopy { direction, stage } = self.copies[local_stage];
        Pass { direction, stage, microbatch: Microbatch::from_index(microbatch) }
    }
}
