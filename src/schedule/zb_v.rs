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
//! N is the greater of n and 2P - 1; micro-batches from n on are left out. At most 2P activations live on a rank, each
//! of half its layers: the memory of 1F1B's rank 0. If all stages cost the same, a rank idles at most
//! (P - 1)(F + I - 2W) between its first op and its last, nothing if F = I = W: exact for F = I >= W and n >= 2P - 1.

use super::v_block::forwards_in_turns;
use super::{check_sizes, Schedule, Work};
use crate::error::Result;
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;

/// The ZB-V schedule: any `num_ranks` and `num_microbatches` of at least 1.
pub fn zb_v(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    let placement = Placement::v(num_ranks).map_err(|e| e.within("zb_v"))?;
    check_sizes("zb_v", &placement, num_microbatches)?;
    let orders = match work {
        Work::ForwardOnly => forwards_in_turns(&placement, num_microbatches),
        Work::Training => {
            (0..num_ranks).map(|rank| training_order(&placement, rank, num_microbatches)).collect()
        }
    };
    Schedule::new("zb_v", placement, num_microbatches, work, orders)
}

/// A kind of op and the position of its copy among the rank's.
type Step = (usize, usize);
const KINDS: [fn(Pass) -> Op; 3] = [Op::F, Op::I, Op::W];
const F_DOWN: Step = (0, 0);
const I_DOWN: Step = (1, 0);
const W_DOWN: Step = (2, 0);
const F_UP: Step = (0, 1);
const I_UP: Step = (1, 1);
const W_UP: Step = (2, 1);

fn training_order(placement: &Placement, rank: usize, num_microbatches: usize) -> Vec<Op> {
    let copies = placement.copies_on(Rank::from_index(rank));
    let num_ranks = placement.num_ranks();
    let filled = num_microbatches.max(2 * num_ranks - 1);
    let below = num_ranks - rank;
    let table: [(usize, &[Step]); 9] = [
        (2 * below - 1, &[F_DOWN]),
        (rank, &[F_UP, F_DOWN]),
        (below, &[F_UP, I_UP, W_UP]),
        (filled + rank + 1 - 2 * num_ranks, &[F_DOWN, I_DOWN, W_DOWN, F_UP, I_UP, W_UP]),
        (below - 1, &[I_DOWN, W_DOWN, F_UP, I_UP, W_UP]),
        (rank, &[I_DOWN, I_UP]),
        (below, &[I_DOWN, W_DOWN]),
        (rank, &[W_UP]),
        (rank, &[W_DOWN]),
    ];
    let mut order = Vec::with_capacity(6 * num_microbatches);
    let mut next_microbatch = [[0; 2]; 3];
    for (repeats, steps) in table {
        for &(kind, copy) in std::iter::repeat_n(steps, repeats).flatten() {
            let microbatch = next_microbatch[kind][copy];
            next_microbatch[kind][copy] += 1;
            if microbatch < num_microbatches {
                let StageCopy { direction, stage } = copies[copy];
                order.push(KINDS[kind](Pass {
                    direction,
                    stage,
                    microbatch: Microbatch::from_index(microbatch),
                }));
            }
        }
    }
    order
}
