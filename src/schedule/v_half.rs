//! V-Half, the schedule with about half of the activation memory of 1F1B (arXiv 2405.15362, "Pipeline Parallelism with
//! Controllable Memory"), with the building block that sail-sg/zero-bubble-pipeline-parallelism uses
//! (scheduler/zbv_greedy.py).
//!
//! Rank r of P holds stage r, on the way down, and stage 2P-1-r, on the way back up. The building block of `v_block`:
//!
//! ```text
//! way       slots from one rank to the next
//! F down    2
//! F up      1
//! I up      2, 3 slots later on all ranks if P is even
//! I down    1, 1 slot later on all ranks
//! ```
//!
//! At most P + 2 activations live on a rank, each of half its layers; 1F1B's rank 0 keeps 2P of them. If F = I = W and
//! n >= P/2, a rank idles at most 3(P - 1) of their slots, half of 1F1B's 6(P - 1). With costs a little apart, as 10,
//! 13 and 8, the bubble is longer but does not grow with n; with costs far apart, as 10, 30 and 5, it does.

use super::v_block::{forwards_in_turns, greedy_orders, Block};
use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::placement::Placement;

/// The V-Half schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn v_half(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::v(num_ranks).map_err(|e| e.within("v_half"))?;
    check_sizes("v_half", &placement, num_microbatches)?;
    let orders = match work {
        Work::ForwardOnly => forwards_in_turns(&placement, num_microbatches),
        Work::Training => greedy_orders(&placement, &block(num_ranks), num_microbatches),
    };
    Schedule::new("v_half", placement, num_microbatches, work, orders)
}

/// No two ways of repeated blocks share a slot: the test of `v_block`.
pub(super) fn block(num_ranks: usize) -> Block {
    Block { steps: [2, 1, 2, 1], waits: [if num_ranks % 2 == 0 { 3 } else { 0 }, 1] }
}
