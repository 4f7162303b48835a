//! ZB-H2, the zero-bubble schedule with about twice the memory of 1F1B (arXiv 2401.10241, section 2).
//!
//! ```text
//! warm-up    F           min(2(P - r) - 1, n)
//! steady     I, F        2r, while the weight gradients wait
//!            I, W, F     the rest of the forwards
//! cool-down  I, W        as many as in the warm-up
//!            W           2r
//! ```
//!
//! Rank r of P; one stage each. W of a micro-batch follows I of the one 2r later, so that every rank keeps at most
//! 2P - 1 activations. The ranks start and end one after the other, so that the next step can follow at once where the
//! optimizer needs no barrier. If all stages cost the same, a rank idles at most (P - 1)(F + I - 2W) between its first
//! op and its last, nothing if F = I = W: exact for W <= min(F, I) and n >= 2P - 1, too low for a longer W.

use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Direction, Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

/// The ZB-H2 schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn zb_h2(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::linear(num_ranks).map_err(|e| e.within("zb_h2"))?;
    check_sizes("zb_h2", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let stage = placement.copies_on(Rank::from_index(rank))[0].stage;
        let pass = |i| Pass { direction: Direction::Down, stage, microbatch: Microbatch::from_index(i) };
        let mut forwards = (0..num_microbatches).map(|i| Op::F(pass(i)));
        if work == Work::ForwardOnly {
            return forwards.collect();
        }
        let delay = 2 * rank;
        let mut order = Vec::with_capacity(3 * num_microbatches);
        order.extend(forwards.by_ref().take(2 * (num_ranks - rank) - 1));
        for i in 0..num_microbatches {
            order.push(Op::I(pass(i)));
            if i >= delay {
                order.push(Op::W(pass(i - delay)));
            }
            order.extend(forwards.next());
        }
        order.extend((num_microbatches.saturating_sub(delay)..num_microbatches).map(|i| Op::W(pass(i))));
        order
    });
    let orders = orders.collect();
    Schedule::new("zb_h2", placement, num_microbatches, work, orders)
}
