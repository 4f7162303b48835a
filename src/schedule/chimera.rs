//! Chimera (arXiv 2107.06925, section 3): two 1F1B pipelines in opposite directions on the same ranks, merged.
//!
//! The micro-batches are cut into basic units of P, half of them for each direction, the last unit with what is left.
//! Were F and B equally long, each op would have one of these time slots to itself, which is the paper's figure:
//!
//! ```text
//! F    2P u + 2i + s
//! B    2P u + 2i + 2P - 1 - s
//! ```
//!
//! Stage s of a direction, micro-batch i of the direction's half of unit u. The two stages of a rank are s and
//! P - 1 - s, one odd and one even, so the F of one take the slots s, s + 2 … s + P - 2, and the B of the other go on
//! from s + P to s + 2P - 2: no two ops meet, and each unit begins 2P slots after the one before, its first
//! forwards between the last backwards of that ("direct concatenation").
//!
//! A rank at distance d from the nearer end keeps at most P/2 + 1 + d activations alive. With equal stages and no time
//! between ranks the bubble of k whole units is exactly (P - 2)F if F = B and (k + 1)(P - 2)F if B = 2F: then units
//! do not fit into one another without gaps, which is what the paper's other two concatenations mend.
//!
//! Forward only there are no units: with F at 2i + s the two directions take turns, n + P - 2 slots in all, the least
//! that is possible.
//!
//! Time: n log n for each rank.

use super::{check_sizes, Schedule, Work};
use crate::error::{in_range, Error, Result};
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::{Placement, RANKS_MAX};

/// The Chimera schedule with full backwards: `num_ranks` even and at least 2; `num_microbatches` counts both
/// directions, even and at least 2.
pub fn chimera(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    in_range("chimera", "num_ranks", num_ranks, 2..=RANKS_MAX as usize)?;
    if num_ranks % 2 != 0 {
        return Err(Error::argument("chimera", "num_ranks", num_ranks, "must be even and at least 2"));
    }
    let placement = Placement::bidirectional(num_ranks)?;
    check_sizes("chimera", &placement, num_microbatches)?;
    if num_microbatches % 2 != 0 {
        let range = match (num_microbatches - 1, num_microbatches + 1) {
            (0, above) => format!("must be even: the nearest is {above}"),
            (below, above) => format!("must be even: the nearest are {below} and {above}"),
        };
        return Err(Error::argument("chimera", "num_microbatches", num_microbatches, range));
    }
    let orders = (0..num_ranks).map(|rank| {
        let mut slots = Vec::with_capacity(2 * num_microbatches);
        for copy in placement.copies_on(Rank::from_index(rank)) {
            for i in 0..num_microbatches / 2 {
                let microbatch = Microbatch::from_index(i);
                let pass = Pass { direction: copy.direction, stage: copy.stage, microbatch };
                let stage = copy.stage.index();
                if work == Work::ForwardOnly {
                    slots.push((2 * i + stage, Op::F(pass)));
                    continue;
                }
                let entry = 2 * num_ranks * (i / (num_ranks / 2)) + 2 * (i % (num_ranks / 2));
                slots.push((entry + stage, Op::F(pass)));
                slots.push((entry + 2 * num_ranks - 1 - stage, Op::B(pass)));
            }
        }
        slots.sort_unstable();
        slots.into_iter().map(|(_, op)| op).collect()
    });
    let orders = orders.collect();
    Schedule::new("chimera", placement, num_microbatches, work, orders)
}
