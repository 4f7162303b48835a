//! Looped BFS: Breadth-First Pipeline Parallelism (arXiv 2211.05953), with the backwards in the order of PyTorch's
//! `ScheduleLoopedBFS` (torch.distributed.pipelining): last micro-batch first.
//!
//! ```text
//! forward    for each of the rank's v stages, first to last    F    micro-batches 0 … n-1
//! backward   for each of the rank's v stages, last to first    B    micro-batches n-1 … 0
//! ```
//!
//! A rank needs the parameters of one stage at a time, twice a step: what sharded data parallelism wants. All n v
//! stage activations are alive at once. With equal stages (F and B of one stage) and no time between ranks the
//! makespan is exactly ((v - 1) max(n, P) + n + P - 1)(F + B): from n = P on a bubble of (P - 1)(F + B), 1 / v of
//! GPipe's; below, the ranks wait for every loop to come round.

use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;

/// The looped BFS schedule: any `num_ranks`, `stages_per_rank` (v) and `num_microbatches` of at least 1.
pub fn looped_bfs(
    num_ranks: usize,
    stages_per_rank: usize,
    num_microbatches: usize,
    work: Work,
) -> Result<Schedule> {
    let placement = Placement::interleaved(num_ranks, stages_per_rank).map_err(|e| e.within("looped_bfs"))?;
    check_sizes("looped_bfs", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let copies = placement.copies_on(Rank::from_index(rank));
        let forwards = copies.iter().flat_map(|&copy| passes(copy, num_microbatches)).map(Op::F);
        let backwards = copies.iter().rev().flat_map(|&copy| passes(copy, num_microbatches).rev()).map(Op::B);
        match work {
            Work::Training => forwards.chain(backwards).collect(),
            Work::ForwardOnly => forwards.collect(),
        }
    });
    let orders = orders.collect();
    Schedule::new("looped_bfs", placement, num_microbatches, work, orders)
}

fn passes(copy: StageCopy, num_microbatches: usize) -> impl DoubleEndedIterator<Item = Pass> {
    let StageCopy { direction, stage } = copy;
    (0..num_microbatches).map(move |i| Pass { direction, stage, microbatch: Microbatch::from_index(i) })
}
