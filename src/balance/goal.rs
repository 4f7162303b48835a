//! What a placement is to be: how an expert's tokens are shared, where groups may be, how many failures to survive.

use super::cluster::{parts, Cluster};
use crate::error::{in_range, Error, Result};

/// How the tokens of an expert are shared among its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Each replica gets as many, as engines do by default.
    Equal,
    /// Each slot gets the share that the plan says ([`ExpertPlan::shares`](super::ExpertPlan::shares)).
    Weighted,
}

/// Whether the experts of a group stay together. A router that limits a token to few groups keeps it on few nodes then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GroupRule {
    /// Groups play no part.
    Free,
    /// Every replica of a group's experts is on one node, the group's.
    Whole,
    /// A group may be spread over nodes. Its home is the node that most of its load is on, and what is placed is the
    /// least `imbalance + price * away`, where `away` is the share of all load that is not at its group's home.
    Priced {
        /// In multiples of the mean GPU load; finite, not negative.
        price: f64,
    },
}

/// What is to be placed, and what makes a placement good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Layers, each placed for itself; 1 to 4096.
    pub num_layers: usize,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: usize,
    /// Groups of consecutive experts, 1 to `num_experts`; where they do not divide, the first have one expert more.
    pub num_groups: usize,
    /// What the groups mean.
    pub groups: GroupRule,
    /// What is made even.
    pub split: Split,
    /// Every expert is on at least so many GPUs, at least 1.
    pub min_gpus: usize,
    /// Every expert is on GPUs of at least so many nodes, at least 1.
    pub min_nodes: usize,
    /// How long to search: the time grows in proportion. 1 to 1000; 1 is what docs/balance.md has the figures of.
    pub effort: usize,
}

pub(super) const LAYERS_MAX: usize = 4096;
pub(super) const EXPERTS_MAX: usize = 1 << 16;
/// Slots of all layers together.
pub(super) const PLAN_SLOTS_MAX: usize = 1 << 26;
const EFFORT_MAX: usize = 1000;

impl Goal {
    /// No groups, an equal split, nothing to survive.
    pub fn new(num_layers: usize, num_experts: usize) -> Goal {
        Goal {
            num_layers,
            num_experts,
            num_groups: 1,
            groups: GroupRule::Free,
            split: Split::Equal,
            min_gpus: 1,
            min_nodes: 1,
            effort: 1,
        }
    }

    /// `[num_experts]`: the group of each expert.
    pub(super) fn group_of_expert(&self) -> Vec<u32> {
        let groups = parts(self.num_experts, self.num_groups).enumerate();
        groups.flat_map(|(group, experts)| experts.map(move |_| group as u32)).collect()
    }

    /// Whether there is a placement on `cluster`, as far as counting tells.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a number out of its range, too few live slots, too few GPUs or nodes to be on; `min_nodes`
    /// of more than 1 with groups that are whole.
    pub fn check(&self, cluster: &Cluster) -> Result<()> {
        let &Goal { num_layers, num_experts, num_groups, min_gpus, min_nodes, effort, .. } = self;
        in_range("balance", "num_layers", num_layers, 1..=LAYERS_MAX)?;
        in_range("balance", "num_experts", num_experts, 1..=EXPERTS_MAX)?;
        in_range("balance", "num_groups", num_groups, 1..=num_experts)?;
        in_range("balance", "effort", effort, 1..=EFFORT_MAX)?;
        if let GroupRule::Priced { price } = self.groups {
            if !(price >= 0.0 && price.is_finite()) {
                return Err(Error::argument("balance", "price", price, "must be finite and not negative"));
            }
        }
        let mut nodes: Vec<u32> = cluster.live_gpus().map(|gpu| cluster.node_of_gpu()[gpu]).collect();
        in_range("balance", "min_gpus", min_gpus, 1..=nodes.len())?;
        nodes.sort_unstable();
        nodes.dedup();
        in_range("balance", "min_nodes", min_nodes, 1..=nodes.len())?;
        if self.groups == GroupRule::Whole && min_nodes > 1 {
            let range = "must be 1 where each group stays on one node";
            return Err(Error::argument("balance", "min_nodes", min_nodes, range));
        }
        let replicas = num_experts * min_gpus.max(min_nodes); // at most 2^36
        if cluster.num_live_slots() < replicas {
            let range = format!("must be at least {replicas} for {num_experts} experts, min_gpus {min_gpus} and min_nodes {min_nodes}");
            return Err(Error::argument(
                "balance",
                "the number of live slots",
                cluster.num_live_slots(),
                range,
            ));
        }
        // An expert has at most one use for a GPU's slots.
        let places = |gpu: usize| cluster.slots(gpu).len().min(num_experts);
        let places: usize = cluster.live_gpus().map(places).sum();
        if places < num_experts * min_gpus {
            let range =
                format!("must be at most {} for {num_experts} experts on these GPUs", places / num_experts);
            return Err(Error::argument("balance", "min_gpus", min_gpus, range));
        }
        if num_layers * cluster.num_slots() > PLAN_SLOTS_MAX {
            let most = PLAN_SLOTS_MAX / cluster.num_slots();
            let range = format!("must be at most {most} for {} slots", cluster.num_slots());
            return Err(Error::argument("balance", "num_layers", num_layers, range));
        }
        Ok(())
    }
}
