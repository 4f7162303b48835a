//! Everything that is looked for in one layer. `O(num_slots + num_experts * count_max)`, in memory that is kept.

use super::finding::{Finding, What};
use super::LoadLimit;
use crate::balance::cluster::{Cluster, EMPTY};
use crate::balance::evaluate::{Evaluator, SHARE_TOLERANCE};
use crate::balance::goal::{Goal, GroupRule};

/// [`Unverified`](super::Unverified) of one layer.
pub(super) struct Given<'a> {
    pub(super) slot_to_expert: &'a [u32],
    pub(super) shares: Option<&'a [f64]>,
    pub(super) expert_to_slots: Option<&'a [i32]>,
    pub(super) count_max: usize,
    pub(super) replica_counts: Option<&'a [u32]>,
    pub(super) limit: Option<LoadLimit<'a>>,
}

/// Checks layer after layer.
pub(super) struct LayerCheck<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    evaluator: Evaluator<'a>,
    /// The live GPUs, those of a node one after the other.
    gpus_by_node: Vec<usize>,
    /// `[num_experts]`
    group_of_expert: Vec<u32>,
    /// `[num_experts]`: where each expert is.
    presence: Vec<Presence>,
    /// `[num_groups]`
    groups: Vec<Group>,
    /// `[num_nodes]`: experts of the groups on each node.
    experts_of_node: Vec<usize>,
    /// `[num_slots]`: whether the table from experts to slots has a slot.
    listed: Vec<bool>,
}

/// Where an expert is, on live GPUs.
#[derive(Clone, Copy, Default)]
struct Presence {
    slots: usize,
    gpus: usize,
    nodes: usize,
    /// Node, counted from 1, that was last found to have it.
    last_node: usize,
    /// Slots of the GPU that is being looked at.
    times: usize,
    share_sum: f64,
}

#[derive(Clone, Copy, Default)]
struct Group {
    num_experts: usize,
    nodes: usize,
    /// As of [`Presence`].
    last_node: usize,
}

/// Takes what is found.
type Sink<'s> = &'s mut dyn FnMut(Finding);

impl<'a> LayerCheck<'a> {
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> LayerCheck<'a> {
        let mut gpus_by_node: Vec<usize> = cluster.live_gpus().collect();
        gpus_by_node.sort_by_key(|&gpu| cluster.node_of_gpu()[gpu]);
        LayerCheck {
            cluster,
            goal,
            evaluator: Evaluator::new(cluster, goal.num_experts),
            gpus_by_node,
            group_of_expert: goal.group_of_expert(),
            presence: vec![Presence::default(); goal.num_experts],
            groups: vec![Group::default(); goal.num_groups],
            experts_of_node: vec![0; cluster.num_nodes()],
            listed: vec![false; cluster.num_slots()],
        }
    }

    /// All findings of one layer go to `found`.
    pub(super) fn run(&mut self, layer: usize, given: &Given<'_>, found: Sink<'_>) {
        let mut found = |what| found(Finding { layer, what });
        self.presence.fill(Presence::default());
        self.slots(given.slot_to_expert, &mut found);
        self.nodes(given.slot_to_expert);
        self.gpus(given.slot_to_expert, &mut found);
        self.experts(&mut found);
        if self.goal.groups == GroupRule::Whole {
            let split = self.groups.iter().enumerate().filter(|(_, group)| group.nodes > 1);
            split.for_each(|(group, &Group { nodes, .. })| found(What::SplitGroup { group, nodes }));
        }
        if let Some(shares) = given.shares {
            self.shares(given.slot_to_expert, shares, &mut found);
        }
        if let Some(counts) = given.replica_counts {
            for (expert, (&count, &Presence { slots, .. })) in counts.iter().zip(&self.presence).enumerate() {
                if count as usize != slots {
                    found(What::ReplicaCount { expert, count: count.into(), slots });
                }
            }
        }
        if let Some(table) = given.expert_to_slots {
            self.table(given.slot_to_expert, table, given.count_max, &mut found);
        }
        if let Some(limit) = given.limit {
            self.loads(given, limit, &mut found);
        }
    }

    /// What each slot holds.
    fn slots(&self, slot_to_expert: &[u32], found: &mut dyn FnMut(What)) {
        let num_experts = self.goal.num_experts;
        for (slot, (&value, &gpu)) in slot_to_expert.iter().zip(self.cluster.gpu_of_slot()).enumerate() {
            let (expert, gpu) = (value as usize, gpu as usize);
            match (value == EMPTY, self.cluster.is_alive(gpu)) {
                (true, true) => found(What::Empty { slot, gpu }),
                (true, false) => {}
                (false, _) if expert >= num_experts => {
                    found(What::NotAnExpert { slot, value: value.into(), num_experts });
                }
                (false, false) => found(What::OnDeadGpu { slot, gpu, expert }),
                (false, true) => {}
            }
        }
    }

    /// How many nodes each expert and group is on, and how many experts a node has a right to.
    fn nodes(&mut self, slot_to_expert: &[u32]) {
        self.groups.fill(Group::default());
        for &group in &self.group_of_expert {
            self.groups[group as usize].num_experts += 1;
        }
        self.experts_of_node.fill(0);
        for &gpu in &self.gpus_by_node {
            let node = self.cluster.node_of_gpu()[gpu] as usize;
            for &expert in &slot_to_expert[self.cluster.slots(gpu)] {
                let Some(presence) = self.presence.get_mut(expert as usize) else { continue };
                presence.slots += 1;
                if presence.last_node == node + 1 {
                    continue;
                }
                (presence.last_node, presence.nodes) = (node + 1, presence.nodes + 1);
                let group = &mut self.groups[self.group_of_expert[expert as usize] as usize];
                if group.last_node != node + 1 {
                    (group.last_node, group.nodes) = (node + 1, group.nodes + 1);
                    self.experts_of_node[node] += group.num_experts;
                }
            }
        }
    }

    /// How many GPUs each expert is on, and on which more than once.
    fn gpus(&mut self, slot_to_expert: &[u32], found: &mut dyn FnMut(What)) {
        for gpu in self.cluster.live_gpus() {
            let held = &slot_to_expert[self.cluster.slots(gpu)];
            let mut distinct = 0;
            for &expert in held {
                let Some(presence) = self.presence.get_mut(expert as usize) else { continue };
                presence.times += 1;
                if presence.times == 1 {
                    presence.gpus += 1;
                    distinct += 1;
                }
            }
            let allowed = match self.goal.groups {
                GroupRule::Whole => self.experts_of_node[self.cluster.node_of_gpu()[gpu] as usize],
                GroupRule::Free | GroupRule::Priced { .. } => self.goal.num_experts,
            };
            for &expert in held {
                let Some(presence) = self.presence.get_mut(expert as usize) else { continue };
                let times = std::mem::take(&mut presence.times);
                if times > 1 {
                    // Another expert in one of the slots would take nothing from anyone.
                    found(What::Twice { gpu, expert: expert as usize, times, avoidable: distinct < allowed });
                }
            }
        }
    }

    /// Whether each expert is where it must be.
    fn experts(&self, found: &mut dyn FnMut(What)) {
        let &Goal { min_gpus, min_nodes, .. } = self.goal;
        for (expert, &Presence { slots, gpus, nodes, .. }) in self.presence.iter().enumerate() {
            if slots == 0 {
                found(What::Missing { expert });
                continue;
            }
            if gpus < min_gpus {
                found(What::TooFewGpus { expert, gpus, min_gpus });
            }
            if nodes < min_nodes {
                found(What::TooFewNodes { expert, nodes, min_nodes });
            }
        }
    }

    fn shares(&mut self, slot_to_expert: &[u32], shares: &[f64], found: &mut dyn FnMut(What)) {
        for (slot, (&expert, &share)) in slot_to_expert.iter().zip(shares).enumerate() {
            let is_alive = self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize);
            let is_share = share >= 0.0 && share.is_finite();
            match self.presence.get_mut(expert as usize).filter(|_| is_alive) {
                Some(presence) if is_share => presence.share_sum += share,
                // One finding is enough: the sum is not judged.
                Some(presence) => {
                    presence.share_sum = f64::NAN;
                    found(What::Share { slot, share });
                }
                None if share == 0.0 => {}
                None => found(What::Share { slot, share }),
            }
        }
        for (expert, &Presence { slots, share_sum: sum, .. }) in self.presence.iter().enumerate() {
            if slots > 0 && (sum - 1.0).abs() > SHARE_TOLERANCE {
                found(What::ShareSum { expert, sum });
            }
        }
    }

    /// Whether the table from experts to slots is the inverse of what the slots hold.
    fn table(
        &mut self,
        slot_to_expert: &[u32],
        table: &[i32],
        count_max: usize,
        found: &mut dyn FnMut(What),
    ) {
        self.listed.fill(false);
        // A table without entries has no chunks, but its slots are unlisted all the same.
        for (expert, entries) in table.chunks_exact(count_max.max(1)).enumerate() {
            let end = entries.iter().position(|&slot| slot == -1).unwrap_or(count_max);
            for (entry, &slot) in entries.iter().enumerate() {
                let held = usize::try_from(slot).ok().and_then(|slot| slot_to_expert.get(slot));
                let is_its = held.is_some_and(|&held| held as usize == expert);
                if entry < end && is_its && !std::mem::replace(&mut self.listed[slot as usize], true) {
                    continue;
                }
                if entry < end || slot != -1 {
                    found(What::WrongSlot { expert, entry, slot: slot.into() });
                }
            }
        }
        for (slot, &expert) in slot_to_expert.iter().enumerate() {
            let is_alive = self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize);
            let expert = expert as usize;
            if expert < self.goal.num_experts && is_alive && !self.listed[slot] {
                found(What::Unlisted { slot, expert });
            }
        }
    }

    fn loads(&mut self, given: &Given<'_>, limit: LoadLimit<'_>, found: &mut dyn FnMut(What)) {
        self.evaluator.evaluate(given.slot_to_expert, given.shares, limit.loads);
        let (_, sum) = self.evaluator.max_and_sum();
        let mean = sum / self.cluster.num_live_gpus() as f64;
        for gpu in self.cluster.live_gpus() {
            let load = self.evaluator.gpu_loads()[gpu];
            if load > mean * limit.imbalance_max {
                found(What::Overloaded { gpu, load: load / mean, limit: limit.imbalance_max });
            }
        }
    }
}
