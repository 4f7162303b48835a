//! Interleaved zero bubble: interleaved 1F1B with the backward split (arXiv 2401.10241, ZB-H1's rule on several stages
//! per rank), as `ScheduleInterleavedZeroBubble` of PyTorch (torch/distributed/pipelining/schedules.py) orders it.
//!
//! ```text
//! warm-up    F           min((V - 1)m + P - 1 - r, Vn)
//! steady     F, I        r, while the weight gradients wait
//!            F, I, W     the rest of the forwards
//! cool-down  I, W        as many as in the warm-up
//!            W           r
//! ```
//!
//! Rank r of P, V stages each, n micro-batches in max(1, n / P rounded down) rounds of m. Forwards take m
//! micro-batches through the rank's first stage, then its second and so on, then the next m; backwards likewise from
//! the last stage. W follows I of r steps later, so that a rank keeps at most (V - 1)m + P activations of one stage.
//! With V = 1 it is ZB-H1. If all stages cost the same, each rank idles (P - 1)(F + I - W), as in ZB-H1 but of stages
//! that are 1/V as long: exact for W <= min(F, I) and n a multiple of P.

use super::{check_sizes, Schedule, Work};
use crate::error::{Error, Result};
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

const NAME: &str = "interleaved_zero_bubble";

/// The interleaved zero-bubble schedule: any `num_ranks` and `stages_per_rank` of at least 1; `num_microbatches` a
/// multiple of `max(1, num_microbatches / num_ranks)`, its rounds: any multiple of `num_ranks` is.
pub fn interleaved_zero_bubble(
    num_ranks: usize,
    stages_per_rank: usize,
    num_microbatches: usize,
    work: Work,
) -> Result<Schedule> {
    let placement = Placement::interleaved(num_ranks, stages_per_rank).map_err(|e| e.within(NAME))?;
    check_sizes(NAME, &placement, num_microbatches)?;
    let rounds = (num_microbatches / num_ranks).max(1);
    if num_microbatches % rounds != 0 {
        return Err(uneven_rounds(num_ranks, num_microbatches, rounds));
    }
    let per_round = num_microbatches / rounds;
    let steps = stages_per_rank * num_microbatches;
    let orders = (0..num_ranks).map(|rank| {
        let copies = placement.copies_on(Rank::from_index(rank));
        let pass = |step: usize, backward: bool| {
            let turn = step / per_round;
            let local = turn % stages_per_rank;
            let copy = copies[if backward { stages_per_rank - 1 - local } else { local }];
            let microbatch = turn / stages_per_rank * per_round + step % per_round;
            let microbatch = Microbatch::from_index(microbatch);
            Pass { direction: copy.direction, stage: copy.stage, microbatch }
        };
        let mut forwards = (0..steps).map(|step| Op::F(pass(step, false)));
        if work == Work::ForwardOnly {
            return forwards.collect();
        }
        let mut order = Vec::with_capacity(3 * steps);
        order.extend(forwards.by_ref().take((stages_per_rank - 1) * per_round + num_ranks - 1 - rank));
        for step in 0..steps {
            order.extend(forwards.next());
            order.push(Op::I(pass(step, true)));
            if step >= rank {
                order.push(Op::W(pass(step - rank, true)));
            }
        }
        order.extend((steps.saturating_sub(rank)..steps).map(|step| Op::W(pass(step, true))));
        order
    });
    let orders = orders.collect();
    Schedule::new(NAME, placement, num_microbatches, work, orders)
}

/// Names the nearest numbers that would do: rounds of one more or one less in each, or a multiple of the ranks.
fn uneven_rounds(num_ranks: usize, num_microbatches: usize, rounds: usize) -> Error {
    let admits = |n: usize| n % (n / num_ranks).max(1) == 0;
    let fewer = (1..num_microbatches).rev().find(|&n| admits(n)).unwrap_or(1);
    let more = (num_microbatches + 1..).find(|&n| admits(n)).unwrap_or(fewer);
    let range =
        format!("must divide into its {rounds} rounds, as {fewer} or {more} would, for {num_ranks} ranks");
    Error::argument(NAME, "num_microbatches", num_microbatches, range)
}
