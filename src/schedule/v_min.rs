//! V-Min, the schedule with about a third of the activation memory of 1F1B (arXiv 2405.15362, "Pipeline Parallelism
//! with Controllable Memory"), with the building block that sail-sg/zero-bubble-pipeline-parallelism uses
//! (scheduler/zbv_greedy.py).
//!
//! Rank r of P holds stage r, on the way down, and stage 2P-1-r, on the way back up. The building block of `v_block`:
//!
//! ```text
//! way       slots from one rank to the next
//! F down    1
//! F up      1
//! I up      1, 2 slots later on all ranks if P is a multiple of 3
//! I down    1
//! ```
//!
//! At most (2P + 8)/3 activations live on a rank, each of half its layers; 1F1B's rank 0 keeps 2P of them. If
//! F = I = W, a rank idles at most 4(P - 1) of their slots, two thirds of 1F1B's 6(P - 1). With other costs, even a
//! little apart as 10, 13 and 8, most often every micro-batch adds to the bubble: the block has no slack.

use super::v_block::{forwards_in_turns, greedy_orders, Block};
use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::placement::Placement;

/// The V-Min schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn v_min(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::v(num_ranks).map_err(|e| e.within("v_min"))?;
    check_sizes("v_min", &placement, num_microbatches)?;
    let orders = match work {
        Work::ForwardOnly => forwards_in_turns(&placement, num_microbatches),
        Work::Training => greedy_orders(&placement, &block(num_ranks), num_microbatches),
    };
    Schedule::new("v_min", placement, num_microbatches, work, orders)
}

/// No two ways of repeated blocks share a slot: the test of `v_block`.
pub(super) fn block(num_ranks: usize) -> Block {
    Block { steps: [1, 1, 1, 1], waits: [if num_ranks % 3 == 0 { 2 } else { 0 }, 0] }
}
