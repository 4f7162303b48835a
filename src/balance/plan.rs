//! The answer: where each replica lies, and how well balanced that is beside what is possible at all.

use super::Problem;
use crate::error::{Error, Result};

/// Where the replicas of every layer's experts lie.
///
/// Immutable and `Sync`: any number of threads may read it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertPlan {
    problem: Problem,
    pub(super) slot_to_expert: Vec<u32>,
    pub(super) slot_to_replica: Vec<u32>,
    pub(super) replica_counts: Vec<u32>,
    pub(super) layers: Vec<LayerBalance>,
}

/// How well one layer is balanced, in multiples of the mean GPU load; 1 where there is no load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerBalance {
    /// The heaviest GPU's load / the mean, at least 1, computed in float64.
    pub imbalance: f64,
    /// What no placement can beat.
    pub bound: LayerBound,
}

/// Proven lower bounds on a layer's imbalance, whose rounding is downwards; both at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerBound {
    /// No placement at all is below this, even one whose replicas share a load unequally.
    pub joint: f64,
    /// No placement is below this that keeps each group on one node, with equally many on each. 1 where groups do
    /// not bind: one node, or a number of nodes that does not divide the groups.
    pub node: f64,
}

/// For every expert the slots that hold its replicas, in the order of their replica ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertToSlots {
    /// `[num_layers, num_experts, count_max]`, row major; -1 behind an expert's last replica.
    pub slots: Vec<i32>,
    /// The most replicas that any expert of any layer has.
    pub count_max: usize,
}

/// `ExpertToSlots` has at most this many elements.
const EXPERT_TO_SLOTS_MAX: usize = 1 << 28;

impl LayerBalance {
    /// The greater of the two bounds: no placement of this kind is below it.
    pub fn lower_bound(&self) -> f64 {
        self.bound.joint.max(self.bound.node)
    }

    /// `imbalance / lower_bound - 1`: where it is 0, the layer is proven to be optimal.
    pub fn gap(&self) -> f64 {
        self.imbalance / self.lower_bound() - 1.0
    }
}

impl LayerBound {
    /// That there is a mean.
    pub(super) const MEAN: LayerBound = LayerBound { joint: 1.0, node: 1.0 };
}

impl ExpertPlan {
    /// A plan to be filled in.
    pub(super) fn empty(problem: &Problem) -> ExpertPlan {
        let &Problem { num_layers, num_experts, num_slots, .. } = problem;
        let not_placed = LayerBalance { imbalance: 1.0, bound: LayerBound::MEAN };
        ExpertPlan {
            problem: *problem,
            slot_to_expert: vec![0; num_layers * num_slots],
            slot_to_replica: vec![0; num_layers * num_slots],
            replica_counts: vec![0; num_layers * num_experts],
            layers: vec![not_placed; num_layers],
        }
    }

    /// What was asked.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// `[num_layers, num_slots]`, row major: the expert in each slot. GPU g holds the slots
    /// `g * num_slots / num_gpus` and following, node n the GPUs `n * num_gpus / num_nodes` and following.
    pub fn slot_to_expert(&self) -> &[u32] {
        &self.slot_to_expert
    }

    /// `[num_layers, num_slots]`, row major: which replica of its expert each slot holds, from 0.
    pub fn slot_to_replica(&self) -> &[u32] {
        &self.slot_to_replica
    }

    /// `[num_layers, num_experts]`, row major: how many replicas each expert has, at least 1.
    pub fn replica_counts(&self) -> &[u32] {
        &self.replica_counts
    }

    /// `[num_layers]`: how well each layer is balanced.
    pub fn layers(&self) -> &[LayerBalance] {
        &self.layers
    }

    /// The slots of every expert: DeepSeek's `log2phy`. `O(num_layers * (num_slots + num_experts * count_max))`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` where it would have more than 2^28 elements: one expert in very many slots makes the
    /// whole table wide.
    pub fn expert_to_slots(&self) -> Result<ExpertToSlots> {
        let &Problem { num_experts, num_slots, .. } = &self.problem;
        let count_max = self.replica_counts.iter().copied().max().unwrap_or(0) as usize;
        let size = self.replica_counts.len().saturating_mul(count_max);
        if size > EXPERT_TO_SLOTS_MAX {
            return Err(Error::argument(
                "balance",
                "num_layers * num_experts * the most replicas of one expert",
                size,
                format!("must be at most {EXPERT_TO_SLOTS_MAX} for a table of experts to slots"),
            ));
        }
        let mut slots = vec![-1; size];
        let of_layer = slots.chunks_mut((num_experts * count_max).max(1));
        let held = self.slot_to_expert.chunks(num_slots);
        let held = held.zip(self.slot_to_replica.chunks(num_slots));
        for (slots, (experts, replicas)) in of_layer.zip(held) {
            for (slot, (&expert, &replica)) in experts.iter().zip(replicas).enumerate() {
                slots[expert as usize * count_max + replica as usize] = slot as i32;
            }
        }
        Ok(ExpertToSlots { slots, count_max })
    }
}
