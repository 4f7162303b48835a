//! ZB-H1, the zero-bubble schedule with the memory of 1F1B (arXiv 2401.10241, section 2).
//!
//! ```text
//! warm-up    F           min(P - 1 - r, n)
//! steady     F, I        r, while the weight gradients wait
//!            F, I, W     the rest of the forwards
//! cool-down  I, W        as many as in the warm-up
//!            W           r
//! ```
//!
//! Rank r of P; one stage each. W of a micro-batch follows I of the one r later, so that every rank keeps at most P
//! activations, as many as rank 0 in 1F1B. If all stages cost the same, each rank idles (P - 1)(F + I - W), where 1F1B
//! idles (P - 1)(F + I + W): exact for W <= min(F, I) and n >= P, too low for a longer W.

use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Direction, Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

/// The ZB-H1 schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn zb_h1(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::linear(num_ranks).map_err(|e| e.within("zb_h1"))?;
    check_sizes("zb_h1", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let stage = placement.copies_on(Rank::from_index(rank))[0].stage;
        let pass = |i| Pass { direction: Direction::Down, stage, microbatch: Microbatch::from_index(i) };
        let mut forwards = (0..num_microbatches).map(|i| Op::F(pass(i)));
        if work == Work::ForwardOnly {
            return forwards.collect();
        }
        let mut order = Vec::with_capacity(3 * num_microbatches);
        order.extend(forwards.by_ref().take(num_ranks - 1 - rank));
        for i in 0..num_microbatches {
            order.extend(forwards.next());
            order.push(Op::I(pass(i)));
            if i >= rank {
                order.push(Op::W(pass(i - rank)));
            }
        }
        order.extend((num_microbatches.saturating_sub(rank)..num_microbatches).map(|i| Op::W(pass(i))));
        order
    });
    let orders = orders.collect();
    Schedule::new("zb_h1", placement, num_microbatches, work, orders)
}
