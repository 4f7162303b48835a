//! Interleaved 1F1B with overlapped pairs: Megatron-LM's combined 1F1B, which hides the all-to-all of expert
//! parallelism (NVIDIA/Megatron-LM, megatron/core/pipeline_parallel/combined_1f1b.py and schedules.py).
//!
//! ```text
//! warm-up    F         w = min(2(P - 1 - r) + (v - 1)P + 1, n v)
//! steady     F & B     the rest of the forwards
//! cool-down  B         as many as in the warm-up
//! ```
//!
//! Placement and order of passes are those of `interleaved_1f1b`. There a backward may need the forward just before
//! it; one more forward in the warm-up makes every F and B of the steady state independent, so each two are a pair.
//!
//! At most min(w + 1, n v) stage activations are alive, as a pair begins its F before its B ends: one more than in
//! `interleaved_1f1b`. With equal stages (F, B and F&B of one stage) and no time between ranks the last rank never
//! waits between its first op and its last, so the makespan is exactly (P - 1 + u)(F + B) + (n v - u) F&B, where
//! u = min((v - 1)P + 1, n v) are its forwards before the first pair. Without overlap, F&B = F + B, that is the
//! makespan of `interleaved_1f1b`: the extra forward costs memory only.
//!
//! Megatron offers one stage per rank only on one rank; the same rule is complete for any number of ranks.

use super::interleaved_1f1b::{interleaved, DepthFirst};
use super::{Schedule, Work};
use crate::error::Result;
use crate::ids::Rank;
use crate::op::Op;

/// The overlapped interleaved schedule: any `num_ranks` and `stages_per_rank` (v) of at least 1, `num_microbatches`
/// a multiple of `num_ranks`.
pub fn interleaved_overlapped(
    num_ranks: usize,
    stages_per_rank: usize,
    num_microbatches: usize,
    work: Work,
) -> Result<Schedule> {
    const NAME: &str = "interleaved_overlapped";
    let placement = interleaved(NAME, num_ranks, stages_per_rank, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let passes = DepthFirst::new(&placement, Rank::from_index(rank), num_microbatches);
        let warm_up = match work {
            Work::Training => (passes.warm_up(rank) + 1).min(passes.len()),
            Work::ForwardOnly => return passes.forwards(0..passes.len()).collect(),
        };
        let mut order: Vec<Op> = Vec::with_capacity(passes.len() + warm_up);
        order.extend(passes.forwards(0..warm_up));
        let pairs = (warm_up..passes.len()).map(|i| Op::FB(passes.forward(i), passes.backward(i - warm_up)));
        order.extend(pairs);
        order.extend(passes.backwards(passes.len() - warm_up..passes.len()));
        order
    });
    let orders = orders.collect();
    Schedule::new(NAME, placement, num_microbatches, work, orders)
}
