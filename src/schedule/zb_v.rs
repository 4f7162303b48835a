//! ZB-V, the zero-bubble schedule on the V placement (arXiv 2401.10241, section 6; V-ZB of arXiv 2405.15362), in the
//! order that `ScheduleZBVZeroBubble` of PyTorch (torch/distributed/pipelining/schedules.py) runs.
//!
//! Rank r of P holds stage r on the way down and stage 2P-1-r on the way back up:
//!
//! ```text
//! warm-up    F down                               2(P - r) - 1
//!            F up, F down                         r
//!            F up, I up, W up                     P - r
//! steady     F down, I down, W down, F up, I up, W up
//!                                                 N - 2P + r + 1
//! cool-down  I down, W down, F up, I up, W up     P - r - 1
//!            I down, I up                         r
//!            I down, W down                       P - r
//!            W up                                 r
//!            W down                               r
//! ```
//!
//! N is the greater of n and 2P - 1; micro-batches from n on are left out. If F = I = W and n >= 2P - 1, no rank idles
//! between its first op and its last. At most 2P activations live on a rank, each of half its layers: the memory of
//! 1F1B's rank 0.

use super::dualpipe::Streams;
use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;

/// The ZB-V schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn zb_v(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::v(num_ranks).map_err(|e| e.within("zb_v"))?;
    check_sizes("zb_v", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let copies = [0, 1].map(|i| placement.copies_on(Rank::from_index(rank))[i]);
        match work {
            Work::Training => training(num_ranks, rank, num_microbatches, copies),
            Work::ForwardOnly => Streams::of_v(num_ranks, rank, num_microbatches, copies).order(work),
        }
    });
    let orders = orders.collect();
    Schedule::new("zb_v", placement, num_microbatches, work, orders)
}

type Part = fn(Pass) -> Op;
const PARTS: [Part; 3] = [Op::F, Op::I, Op::W];
/// Index of a part in [`PARTS`] and of a copy among the rank's two.
type Step = (usize, usize);
const [F_DOWN, I_DOWN, W_DOWN]: [Step; 3] = [(0, 0), (1, 0), (2, 0)];
const [F_UP, I_UP, W_UP]: [Step; 3] = [(0, 1), (1, 1), (2, 1)];
