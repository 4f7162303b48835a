//! Makes a placement valid for the cluster and the goal, with few moves.
//!
//! Dead GPUs hold nothing. With whole groups each gets for its home the node that holds most of it and has room, and
//! what is elsewhere goes. A second replica on a GPU goes, as far as the budget allows. Then every expert that is
//! missing, or not on enough GPUs or nodes, heaviest first, gets a slot where it costs least: an empty one, or one
//! whose expert can spare it; of equal ones on the lightest GPU. What is still empty takes, on the lightest GPU
//! first, the expert with the heaviest replicas that is not there. `O(slots * (experts + slots))` where much is
//! wrong, `O(slots + experts)` where nothing is.

use super::price::Before;
use crate::balance::cluster::{Cluster, EMPTY};
use crate::balance::goal::{Goal, GroupRule};
use crate::balance::layout::Layout;

/// A repair of one layer.
pub(super) struct Repair<'a, 'b> {
    pub(super) cluster: &'a Cluster,
    pub(super) goal: &'a Goal,
    pub(super) layout: &'b mut Layout<'a>,
    pub(super) before: &'b Before<'a>,
    pub(super) group_of_expert: &'b [u32],
    /// How many second replicas on a GPU may go, where nothing but waste is wrong with them.
    pub(super) seconds: usize,
}

impl Repair<'_, '_> {
    /// Whether the layout, which holds what was there before, could be made valid.
    pub(super) fn repair(&mut self, loads: &[f64]) -> bool {
        if self.goal.groups == GroupRule::Whole && !self.choose_homes() {
            return false;
        }
        self.vacate();
        let mut experts: Vec<u32> = (0..self.goal.num_experts as u32).collect();
        experts.retain(|&expert| !self.is_spread(expert));
        experts.sort_by(|&a, &b| loads[b as usize].total_cmp(&loads[a as usize]));
        for &expert in &experts {
            while !self.is_spread(expert) {
                let Some(slot) = self.slot_for(expert) else {
                    return false;
                };
                self.layout.set(slot, expert);
            }
        }
        self.fill();
        true
    }

    /// Gives each group a node that has room for it, those that are most at one node first.
    fn choose_homes(&mut self) -> bool {
        let (num_groups, num_nodes) = (self.goal.num_groups, self.cluster.num_nodes());
        let mut num_experts = vec![0; num_groups];
        for &group in self.group_of_expert {
            num_experts[group as usize] += self.goal.min_gpus;
        }
        let (mut room, mut num_gpus) = (vec![0; num_nodes], vec![0; num_nodes]);
        for gpu in self.cluster.live_gpus() {
            let node = self.cluster.node_of_gpu()[gpu] as usize;
            room[node] += self.cluster.slots(gpu).len();
            num_gpus[node] += 1;
        }
        // (group, node) of each slot, sorted: how often a pair comes is how much of a group a node holds.
        let held = self.before.slots().iter().enumerate().filter(|(_, &expert)| expert != EMPTY);
        let mut pairs: Vec<(u32, u32)> = held
            .map(|(slot, &expert)| (self.group_of_expert[expert as usize], self.layout.node(slot)))
            .collect();
        pairs.sort_unstable();
        let mut counted: Vec<(usize, u32, u32)> = Vec::new();
        for pairs in pairs.chunk_by(|a, b| a == b) {
            counted.push((pairs.len(), pairs[0].0, pairs[0].1));
        }
        counted.sort_by(|a, b| b.0.cmp(&a.0).then(a.cmp(b)));
        let mut home = vec![EMPTY; num_groups];
        let everywhere = (0..num_groups as u32).map(|group| (group, EMPTY));
        for (group, node) in counted.iter().map(|&(_, group, node)| (group, node)).chain(everywhere) {
            let group = group as usize;
            let fits = |node: usize| room[node] >= num_experts[group] && num_gpus[node] >= self.goal.min_gpus;
            if home[group] == EMPTY {
                let node = match node {
                    EMPTY => (0..num_nodes).filter(|&n| fits(n)).max_by_key(|&n| (room[n], usize::MAX - n)),
                    node => Some(node as usize).filter(|&n| fits(n)),
                };
                if let Some(node) = node {
                    home[group] = node as u32;
                    room[node] -= num_experts[group];
                }
            }
        }
        for (group, &node) in home.iter().enumerate() {
            self.layout.set_home(group, node);
        }
        !home.contains(&EMPTY)
    }

    /// Takes out what may not be where it is.
    fn vacate(&mut self) {
        // Where every expert is to be on several GPUs, two replicas on one are not what they count as.
        let mut seconds =
            if self.goal.min_gpus.max(self.goal.min_nodes) > 1 { usize::MAX } else { self.seconds };
        for slot in 0..self.cluster.num_slots() {
            let expert = self.layout.slot_to_expert()[slot];
            if expert == EMPTY {
                continue;
            }
            let is_second =
                || self.layout.slots(expert).any(|s| s < slot && self.layout.gpu(s) == self.layout.gpu(slot));
            if !self.layout.is_at_home(slot, expert) {
                self.layout.set(slot, EMPTY);
            } else if seconds > 0 && is_second() {
                seconds -= 1;
                self.layout.set(slot, EMPTY);
            }
        }
    }

    /// Whether an expert is on enough GPUs and nodes; it is on no GPU twice if that is more than one.
    fn is_spread(&self, expert: u32) -> bool {
        let enough_gpus = self.layout.count(expert) as usize >= self.goal.min_gpus.max(self.goal.min_nodes);
        enough_gpus && (self.goal.min_nodes == 1 || self.num_nodes(expert) >= self.goal.min_nodes)
    }

    fn num_nodes(&self, expert: u32) -> usize {
        let mut nodes: Vec<u32> = self.layout.slots(expert).map(|slot| self.layout.node(slot)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    }

    fn slot_for(&self, expert: u32) -> Option<usize> {
        let needs_node = self.layout.count(expert) > 0 && self.num_nodes(expert) < self.goal.min_nodes;
        let is_new_node = |slot: usize| {
            !self.layout.slots(expert).any(|other| self.layout.node(other) == self.layout.node(slot))
        };
        let is_better =
            |a: (bool, f64, f64), b: (bool, f64, f64)| a.partial_cmp(&b).is_some_and(|order| order.is_lt());
        let mut best: Option<((bool, f64, f64), usize)> = None;
        for slot in self.cluster.live_gpus().flat_map(|gpu| self.cluster.slots(gpu)) {
            let is_taken = self.layout.slot_to_expert()[slot] != EMPTY;
            let load = self.layout.gpu_loads()[self.layout.gpu(slot)];
            // An empty slot must get something anyway.
            let cost = (is_taken, self.before.price(self.layout.gpu(slot), expert), load);
            if best.is_none_or(|(least, _)| is_better(cost, least))
                && self.layout.may_enter(slot, expert)
                && self.layout.may_leave(slot)
                && (!needs_node || is_new_node(slot))
            {
                best = Some((cost, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    fn fill(&mut self) {
        let live_slots = self.cluster.live_gpus().flat_map(|gpu| self.cluster.slots(gpu));
        let mut empty: Vec<usize> =
            live_slots.filter(|&slot| self.layout.slot_to_expert()[slot] == EMPTY).collect();
        while !empty.is_empty() {
            let load = |&(_, &slot): &(usize, &usize)| self.layout.gpu_loads()[self.layout.gpu(slot)];
            let lightest = empty.iter().enumerate().min_by(|a, b| load(a).total_cmp(&load(b)));
            let Some((place, &slot)) = lightest else {
                return;
            };
            empty.remove(place);
            let is_allowed = |&expert: &u32| self.layout.may_enter(slot, expert);
            let was = self.before.slots()[slot];
            let heaviest = (0..self.goal.num_experts as u32)
                .filter(is_allowed)
                .max_by(|&a, &b| self.layout.share(a).total_cmp(&self.layout.share(b)).then(b.cmp(&a)))
                // All that belong to the node are on the GPU already: a second replica is better than nothing.
                .or_else(|| Some(was).filter(|&was| was != EMPTY && self.layout.is_at_home(slot, was)))
                .or_else(|| {
                    (0..self.goal.num_experts as u32).find(|&expert| self.layout.is_at_home(slot, expert))
                });
            if let Some(expert) = heaviest {
                self.layout.set(slot, expert);
            }
        }
    }
}
