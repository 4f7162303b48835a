//! DualPipeV: DualPipe folded in the middle, so that one direction and one copy of the parameters do.
//!
//! Sources: deepseek-ai/DualPipe, dualpipev.py; the V-shape ("cut in half") is Sea AI Lab's,
//! "DualPipe could be better without the Dual" (2025).
//!
//! Rank r holds stage r on the way down and stage 2P-1-r on the way back. Take these as the near and the far stream
//! of a DualPipe of 2P ranks, of which only the first P exist: the order is the same, op by op.

use super::dualpipe::Streams;
use super::{check_sizes, Schedule, Work};
use crate::error::{in_range, Error, Result};
use crate::ids::Rank;
use crate::placement::{Placement, RANKS_MAX};

/// The DualPipeV schedule: `num_ranks` at least 1, `num_microbatches` at least `2 * num_ranks - 1` for training
/// (DeepSeek asks for `2 * num_ranks`) and at least 1 forward only.
pub fn dualpipe_v(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    in_range("dualpipe_v", "num_ranks", num_ranks, 1..=RANKS_MAX as usize)?;
    let fewest = match work {
        Work::Training => 2 * num_ranks - 1,
        Work::ForwardOnly => 1,
    };
    if num_microbatches < fewest {
        let range = format!("must be at least {fewest} for {num_ranks} ranks");
        return Err(Error::argument("dualpipe_v", "num_microbatches", num_microbatches, range));
    }
    let placement = Placement::v(num_ranks)?;
    check_sizes("dualpipe_v", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let [near, far] = [0, 1].map(|i| placement.copies_on(Rank::from_index(rank))[i]);
        let (num_ranks, per_stream) = (2 * num_ranks, num_microbatches);
        Streams { near, far, depth: rank, num_ranks, per_stream }.order(work)
    });
    let orders = orders.collect();
    Schedule::new("dualpipe_v", placement, num_microbatches, work, orders)
}
