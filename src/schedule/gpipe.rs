//! GPipe (arXiv 1811.06965, sections 2.2 and 2.3): all forwards, then all backwards, both in order of micro-batches as
//! in PyTorch's `ScheduleGPipe` (torch.distributed.pipelining).
//!
//! ```text
//! forward    F    n
//! backward   B    n
//! ```
//!
//! n micro-batches are alive at once on every rank. With equal stages and no time between ranks the makespan is
//! exactly (n + P - 1)(F + B): a bubble of (P - 1)(F + B), which is 1F1B's.

use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Direction, Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

/// The GPipe schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn gpipe(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::linear(num_ranks).map_err(|e| e.within("gpipe"))?;
    check_sizes("gpipe", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let stage = placement.copies_on(Rank::from_index(rank))[0].stage;
        let pass = |i| Pass { direction: Direction::Down, stage, microbatch: Microbatch::from_index(i) };
        let forwards = (0..num_microbatches).map(|i| Op::F(pass(i)));
        let backwards = (0..num_microbatches).map(|i| Op::B(pass(i)));
        match work {
            Work::Training => forwards.chain(backwards).collect(),
            Work::ForwardOnly => forwards.collect(),
        }
    });
    let orders = orders.collect();
    Schedule::new("gpipe", placement, num_microbatches, work, orders)
}
