//! 1F1B, the schedule of PipeDream-Flush (arXiv 2006.09503) and Megatron-LM (arXiv 2104.04473, section 2.2.1).
//!
//! ```text
//! warm-up    F         min(P - 1 - r, n)
//! steady     F, B      the rest of the forwards
//! cool-down  B         as many as in the warm-up
//! ```
//!
//! Rank r of P; one stage each, full backwards, at most P - r live activations.

use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Direction, Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

/// The 1F1B schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn one_f_one_b(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::linear(num_ranks).map_err(|e| e.within("1f1b"))?;
    check_sizes("1f1b", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let stage = placement.copies_on(Rank::from_index(rank))[0].stage;
        let pass = |i| Pass { direction: Direction::Down, stage, microbatch: Microbatch::from_index(i) };
        let forwards = (0..num_microbatches).map(|i| Op::F(pass(i)));
        if work == Work::ForwardOnly {
            return forwards.collect();
        }
        let warm_up = (num_ranks - 1 - rank).min(num_microbatches);
        let mut order = Vec::with_capacity(2 * num_microbatches);
        order.extend(forwards.clone().take(warm_up));
        for (i, forward) in forwards.skip(warm_up).enumerate() {
            order.extend([forward, Op::B(pass(i))]);
        }
        order.extend((num_microbatches - warm_up..num_microbatches).map(|i| Op::B(pass(i))));
        order
    });
    let orders = orders.collect();
    Schedule::new("1f1b", placement, num_microbatches, work, orders)
}
