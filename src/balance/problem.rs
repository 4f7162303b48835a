//! The sizes that DeepSeek's policy is asked with, and everything that can be wrong with them, found before anything is
//! allocated.

use super::cluster::{Cluster, SLOTS_MAX};
use super::goal::{Goal, GroupRule, EXPERTS_MAX, LAYERS_MAX, PLAN_SLOTS_MAX};
use crate::error::{in_range, Error, Result};

/// The sizes of a placement. Numbers count the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Layers, each placed for itself; 1 to 4096.
    pub num_layers: usize,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: usize,
    /// Slots of all GPUs for a layer's experts, `num_experts` to 2^20, a multiple of `num_gpus`. DeepSeek's
    /// `num_replicas`.
    pub num_slots: usize,
    /// Groups of consecutive experts that a router limits itself to; 1 where there are none.
    pub num_groups: usize,
    /// Nodes. Where they divide the groups, each group stays on one node (hierarchical); else groups and nodes
    /// play no part (global).
    pub num_nodes: usize,
    /// GPUs of all nodes; hierarchical: a multiple of `num_nodes`.
    pub num_gpus: usize,
}

impl Problem {
    /// Whether each group of experts stays on one node: where the nodes divide the groups.
    pub fn is_hierarchical(&self) -> bool {
        self.num_nodes > 0 && self.num_groups % self.num_nodes == 0
    }

    /// Whether there is an answer.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a size is out of its range, or one number does not divide another; the text has the
    /// nearest values that would do.
    pub fn check(&self) -> Result<()> {
        let &Problem { num_layers, num_experts, num_slots, num_groups, num_nodes, num_gpus } = self;
        for (argument, value, most) in [
            ("num_layers", num_layers, LAYERS_MAX),
            ("num_experts", num_experts, EXPERTS_MAX),
            ("num_slots", num_slots, SLOTS_MAX),
            ("num_groups", num_groups, EXPERTS_MAX),
            ("num_nodes", num_nodes, SLOTS_MAX),
            ("num_gpus", num_gpus, SLOTS_MAX),
        ] {
            in_range("balance", argument, value, 1..=most)?;
        }
        let slots_rule = |slots: usize| slots >= num_experts && slots % num_gpus == 0;
        if num_slots < num_experts {
            let least = format!("must be at least num_experts = {num_experts}");
            let nearest = nearest(num_slots, SLOTS_MAX, slots_rule);
            let range = format!("{least} and a multiple of num_gpus = {num_gpus}{nearest}");
            return Err(Error::argument("balance", "num_slots", num_slots, range));
        }
        if self.is_hierarchical() && num_experts % num_groups != 0 {
            let nearest = nearest(num_groups, EXPERTS_MAX, |groups| {
                num_experts % groups == 0 && groups % num_nodes == 0
            });
            let range = format!("must divide num_experts = {num_experts}{nearest}");
            return Err(Error::argument("balance", "num_groups", num_groups, range));
        }
        if self.is_hierarchical() && num_gpus % num_nodes != 0 {
            let nearest = nearest(num_gpus, SLOTS_MAX, |gpus| gpus % num_nodes == 0 && num_slots % gpus == 0);
            let range = format!("must be a multiple of num_nodes = {num_nodes}{nearest}");
            return Err(Error::argument("balance", "num_gpus", num_gpus, range));
        }
        if num_slots % num_gpus != 0 {
            let nearest = nearest(num_slots, SLOTS_MAX, slots_rule);
            let range = format!("must be a multiple of num_gpus = {num_gpus}{nearest}");
            return Err(Error::argument("balance", "num_slots", num_slots, range));
        }
        if num_layers * num_slots > PLAN_SLOTS_MAX {
            let most = PLAN_SLOTS_MAX / num_slots;
            let range = format!("must be at most {most} for {num_slots} slots");
            return Err(Error::argument("balance", "num_layers", num_layers, range));
        }
        Ok(())
    }

    /// The cluster that it is about: equal GPUs, on equal nodes where those count.
    pub(super) fn cluster(&self) -> Result<Cluster> {
        let num_nodes = if self.is_hierarchical() { self.num_nodes } else { 1 };
        Cluster::even(self.num_slots, self.num_gpus, num_nodes)
    }

    /// What DeepSeek's policy is after.
    pub(super) fn goal(&self) -> Goal {
        let goal = Goal::new(self.num_layers, self.num_experts);
        if self.is_hierarchical() {
            Goal { num_groups: self.num_groups, groups: GroupRule::Whole, ..goal }
        } else {
            goal
        }
    }
}

/// `": 28 or 32"`: the nearest numbers below and above `value` that `will_do`, as far as there are any.
fn nearest(value: usize, most: usize, will_do: impl Fn(usize) -> bool) -> String {
    let below = (1..value).rev().find(|&v| will_do(v));
    let above = (value + 1..=most).find(|&v| will_do(v));
    match (below, above) {
        (Some(below), Some(above)) => format!(": {below} or {above}"),
        (Some(one), None) | (None, Some(one)) => format!(": {one}"),
        (None, None) => String::new(),
    }
}
