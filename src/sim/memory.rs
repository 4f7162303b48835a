//! The bytes that a schedule keeps on each rank.

use crate::cost::Costs;
use crate::ids::Rank;
use crate::schedule::{Schedule, Work};

/// `[rank]`: the parameters of its copies and the most activations alive at once.
///
/// A micro-batch is alive on a stage from the start of its F to the end of its B or W (forward only: of its F); an
/// overlapped pair begins its forward before its backward ends.
pub fn peak_memory_bytes(schedule: &Schedule, costs: &Costs) -> Vec<u64> {
    (0..schedule.num_ranks()).map(|rank| rank_peak_bytes(schedule, costs, Rank::from_index(rank))).collect()
}

fn rank_peak_bytes(schedule: &Schedule, costs: &Costs, rank: Rank) -> u64 {
    let copies = schedule.placement().copies_on(rank);
    let mut alive: u64 = copies.iter().map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
    let mut peak = alive;
    for op in schedule.order(rank) {
        let forward = op.forward().map_or(0, |pass| costs.stage(pass.stage).activation_bytes);
        alive += forward;
        peak = peak.max(alive);
        alive -= match schedule.work() {
            Work::ForwardOnly => forward,
            Work::Training => op.backward_weight().map_or(0, |p| costs.stage(p.stage).activation_bytes),
        };
    }
    peak
}
