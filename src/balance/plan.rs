//! The answer: where each replica lies, and how well balanced that is beside what is possible at all.

use std::borrow::Cow;

use super::cluster::{Cluster, EMPTY};
use super::goal::{Goal, Split};
use crate::error::{Error, Result};

/// Where the replicas of every layer's experts lie.
///
/// Immutable and `Sync`: any number of threads may read it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertPlan {
    cluster: Cluster,
    goal: Goal,
    pub(super) slot_to_expert: Vec<u32>,
    pub(super) slot_to_replica: Vec<u32>,
    pub(super) replica_counts: Vec<u32>,
    /// `[num_layers, num_slots]`, or nothing where the split is equal.
    pub(super) weights: Vec<f64>,
    pub(super) layers: Vec<LayerBalance>,
}

/// How well one layer is balanced, in multiples of the mean load of a GPU; 1 where there is no load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerBalance {
    /// The heaviest GPU's load / the mean, at least 1, computed in float64. Of a window: the heaviest GPU of every step
    /// summed up / the means of the steps summed up, the inverse of what vLLM reports as balancedness.
    pub imbalance: f64,
    /// The share of all load that is not on its group's home node; 0 where groups are whole or play no part.
    pub away: f64,
    /// How the tokens of an expert are shared, which decides what bound applies.
    pub split: Split,
    /// What no placement can beat.
    pub bound: LayerBound,
}

/// Proven lower bounds on a layer's imbalance, whose rounding is downwards; all at least 1. Of a window: on the steps'
/// bounds, weighted by their loads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerBound {
    /// No placement at all is below this, even one whose replicas share a load unequally.
    pub joint: f64,
    /// No placement whose replicas share a load equally is below this; at least `joint`.
    pub equal: f64,
    /// No placement is below this that keeps each group on one node. 1 where groups need not be whole.
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
    /// The greatest of the bounds that hold for a placement of this kind.
    pub fn lower_bound(&self) -> f64 {
        let LayerBound { joint, equal, node } = self.bound;
        match self.split {
            Split::Equal => joint.max(equal).max(node),
            Split::Weighted => joint.max(node),
        }
    }

    /// `imbalance / lower_bound - 1`: where it is 0, the layer is proven to be optimal.
    pub fn gap(&self) -> f64 {
        self.imbalance / self.lower_bound() - 1.0
    }
}

impl LayerBound {
    /// That there is a mean.
    pub(super) const MEAN: LayerBound = LayerBound { joint: 1.0, equal: 1.0, node: 1.0 };
}

impl ExpertPlan {
    /// A plan to be filled in.
    pub(super) fn empty(cluster: Cluster, goal: Goal) -> ExpertPlan {
        let Goal { num_layers, num_experts, split, .. } = goal;
        let num_slots = cluster.num_slots();
        let num_weights = if split == Split::Weighted { num_layers * num_slots } else { 0 };
        let not_placed = LayerBalance { imbalance: 1.0, away: 0.0, split, bound: LayerBound::MEAN };
        ExpertPlan {
            cluster,
            goal,
            slot_to_expert: vec![EMPTY; num_layers * num_slots],
            slot_to_replica: vec![0; num_layers * num_slots],
            replica_counts: vec![0; num_layers * num_experts],
            weights: vec![0.0; num_weights],
            layers: vec![not_placed; num_layers],
        }
    }

    /// What the experts are placed on.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What the placement was to be.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// Layers.
    pub fn num_layers(&self) -> usize {
        self.goal.num_layers
    }

    /// Logical experts of a layer.
    pub fn num_experts(&self) -> usize {
        self.goal.num_experts
    }

    /// `[num_layers, num_slots]`, row major: the expert in each slot, [`EMPTY`] in those of a dead GPU.
    pub fn slot_to_expert(&self) -> &[u32] {
        &self.slot_to_expert
    }

    /// `[num_slots]`: the expert in each slot of a layer.
    pub fn slots_of_layer(&self, layer: usize) -> &[u32] {
        let num_slots = self.cluster.num_slots();
        &self.slot_to_expert[layer * num_slots..][..num_slots]
    }

    /// `[num_layers, num_slots]`, row major: the share of its expert's tokens that each slot gets; of an expert they
    /// sum to 1.
    pub fn shares(&self) -> Cow<'_, [f64]> {
        if self.goal.split == Split::Weighted {
            return Cow::Borrowed(&self.weights);
        }
        let layers = self.slot_to_expert.chunks(self.cluster.num_slots());
        let layers = layers.zip(self.replica_counts.chunks(self.num_experts()));
        let share = |expert: u32, counts: &[u32]| match expert {
            EMPTY => 0.0,
            expert => 1.0 / f64::from(counts[expert as usize]),
        };
        layers
            .flat_map(|(experts, counts)| experts.iter().map(move |&expert| share(expert, counts)))
            .collect()
    }

    /// `[num_layers, num_slots]`, row major: which replica of its expert each slot holds, from 0; 0 in empty slots.
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
        let (num_experts, num_slots) = (self.num_experts(), self.cluster.num_slots());
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
            let held = experts.iter().zip(replicas).enumerate().filter(|(_, (&expert, _))| expert != EMPTY);
            for (slot, (&expert, &replica)) in held {
                slots[expert as usize * count_max + replica as usize] = slot as i32;
            }
        }
        Ok(ExpertToSlots { slots, count_max })
    }
}
