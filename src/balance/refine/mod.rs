//! Placements with an equal split, refined until they are as good as their bound or the search has taken long enough.
//!
//! | file         | what                                                                       |
//! | ------------ | -------------------------------------------------------------------------- |
//! | `place_part` | one part, the whole layer or a node: greedy, swaps, and one of             |
//! | `pairs`      | … where no GPU has more than two slots: the counts alone are searched      |
//! | `trials`     | … where some have more: random changes, kept if swaps make them better     |
//! | `spread`     | the greedy                                                                 |
//! | `swaps`      | swaps with the heaviest GPU                                                |
//! | `repair`     | no expert twice on a GPU, each on enough nodes                             |
//! | `rota`       | if that fails: a placement that only sees to it                            |
//! | `window`     | several steps: the sum of their heaviest GPUs                              |
//! | `priced`     | groups that may be spread, at a price                                      |
//! | `part`       | what the searches change                                                   |
//! | `random`     | their random numbers, the same everywhere                                  |
//!
//! Groups that stay whole are packed on nodes first, by `group_packing`, and each node is a part.

mod pairs;
mod part;
mod place_part;
mod priced;
mod repair;
mod rota;
mod spread;
mod swaps;
mod trials;
mod window;

use std::ops::Range;

use super::bound::JointBound;
use super::cluster::{parts, Cluster, EMPTY};
use super::equal_bound::{EqualBound, Slots};
use super::goal::{Goal, GroupRule};
use super::group_packing::GroupPacker;
use super::loads::add_up;
use place_part::PartPlacer;
use priced::Priced;
use window::Window;

/// Places layer after layer in the same memory.
pub(super) struct Refiner<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    groups: GroupPacker,
    placer: PartPlacer,
    joint: JointBound,
    equal: EqualBound,
    window: Option<Window<'a>>,
    priced: Option<Priced<'a>>,
    /// (node, GPU), in this order.
    live_gpus: Vec<(u32, u32)>,
    /// `[num_experts]`: the loads of all steps.
    loads: Vec<f64>,
    /// The experts and the GPUs of the part at hand.
    experts: Vec<u32>,
    gpus: Vec<u32>,
}

/// A placement so close to its bound is not improved.
const GAP_ENOUGH: f64 = 1e-4;

impl<'a> Refiner<'a> {
    /// For a goal that [`Goal::check`] accepts.
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Refiner<'a> {
        let live_gpus = cluster.live_gpus().map(|gpu| (cluster.node_of_gpu()[gpu], gpu as u32));
        let mut live_gpus: Vec<(u32, u32)> = live_gpus.collect();
        live_gpus.sort_unstable();
        Refiner {
            cluster,
            goal,
            live_gpus,
            groups: GroupPacker::new(cluster, goal, None),
            placer: PartPlacer::default(),
            joint: JointBound::default(),
            equal: EqualBound::default(),
            window: None,
            priced: None,
            loads: Vec::with_capacity(goal.num_experts),
            experts: Vec::with_capacity(goal.num_experts),
            gpus: Vec::with_capacity(cluster.num_gpus()),
        }
    }

    /// Places one layer: `steps`, at least one, are each `[num_experts]`, `slot_to_expert` is `[num_slots]` and filled,
    /// `EMPTY` in slots of dead GPUs and of nodes without a group where groups are whole.
    ///
    /// `false` if no placement was found that has room for the groups, or every expert on enough GPUs and nodes; with
    /// unequal GPUs there may be none.
    pub(super) fn place(&mut self, steps: &[&[f32]], slot_to_expert: &mut [u32]) -> bool {
        add_up(steps, &mut self.loads);
        let is_valid = match self.goal.groups {
            GroupRule::Free => self.place_free(slot_to_expert),
            GroupRule::Whole => self.place_whole(slot_to_expert),
            GroupRule::Priced { price } => self.place_priced(price, slot_to_expert),
        };
        if is_valid && steps.len() > 1 {
            let window = self.window.get_or_insert_with(|| Window::new(self.cluster, self.goal));
            window.improve(steps, &self.loads, slot_to_expert);
        }
        is_valid
    }

    fn place_free(&mut self, slot_to_expert: &mut [u32]) -> bool {
        slot_to_expert.fill(EMPTY);
        self.experts.clear();
        self.experts.extend(0..self.goal.num_experts as u32);
        self.gpus.clear();
        self.gpus.extend(self.cluster.live_gpus().map(|gpu| gpu as u32));
        self.place_part(0.0, self.goal.min_nodes, slot_to_expert).is_some()
    }

    fn place_whole(&mut self, slot_to_expert: &mut [u32]) -> bool {
        slot_to_expert.fill(EMPTY);
        let groups: Vec<Range<usize>> = parts(self.goal.num_experts, self.goal.num_groups).collect();
        let load = |group: &Range<usize>| self.loads[group.clone()].iter().sum::<f64>();
        if self.groups.pack(groups.iter().map(load)).is_none() {
            return false;
        }
        // The groups of each node, the heaviest node first: the others need not be better.
        let mut node_loads = vec![0.0; self.groups.nodes().len()];
        let mut packed: Vec<(u32, &Range<usize>)> =
            self.groups.node_of_group().iter().copied().zip(&groups).collect();
        packed.sort_by_key(|&(node, _)| node);
        packed.iter().for_each(|&(node, group)| node_loads[node as usize] += load(group));
        let ratio = |node: u32| node_loads[node as usize] / self.groups.nodes()[node as usize].gpus;
        let mut of_nodes: Vec<&[(u32, &Range<usize>)]> = packed.chunk_by(|a, b| a.0 == b.0).collect();
        of_nodes.sort_by(|a, b| ratio(b[0].0).total_cmp(&ratio(a[0].0)).then(a[0].0.cmp(&b[0].0)));
        let mut heaviest = 0.0;
        for of_node in of_nodes {
            let name = self.groups.nodes()[of_node[0].0 as usize].node;
            self.experts.clear();
            of_node.iter().for_each(|(_, group)| self.experts.extend(group.start as u32..group.end as u32));
            self.gpus.clear();
            let first = self.live_gpus.partition_point(|&(node, _)| node < name);
            let on_node = self.live_gpus[first..].iter().take_while(|&&(node, _)| node == name);
            self.gpus.extend(on_node.map(|&(_, gpu)| gpu));
            match self.place_part(heaviest, 1, slot_to_expert) {
                Some(load) => heaviest = load.max(heaviest),
                None => return false,
            }
        }
        true
    }

    fn place_priced(&mut self, price: f64, slot_to_expert: &mut [u32]) -> bool {
        let mut whole = vec![EMPTY; slot_to_expert.len()];
        let has_whole = self.goal.min_nodes == 1
            && self.place_whole(&mut whole)
            && is_full(self.cluster, self.goal.num_experts, &whole);
        if !self.place_free(slot_to_expert) {
            return false;
        }
        let priced = self.priced.get_or_insert_with(|| Priced::new(self.cluster, self.goal));
        let free = priced.gather(price, &self.loads, slot_to_expert);
        if has_whole && priced.spread(price, &self.loads, &mut whole) < free {
            slot_to_expert.copy_from_slice(&whole);
        }
        true
    }

    /// Places `experts` on `gpus`; no better is needed than `enough`. Returns the heaviest load, or none if the
    /// placement is not valid.
    fn place_part(&mut self, enough: f64, min_nodes: usize, slot_to_expert: &mut [u32]) -> Option<f64> {
        let part = &mut self.placer.part;
        part.count_min = self.goal.min_gpus.max(min_nodes) as u32;
        part.nodes_min = min_nodes;
        part.set_loads(self.experts.iter().map(|&expert| self.loads[expert as usize]));
        let room = |gpu: usize| self.cluster.slots(gpu).len().min(self.experts.len());
        let gpus = self.gpus.iter().map(|&gpu| gpu as usize);
        part.set_gpus(gpus.map(|gpu| (room(gpu), self.cluster.node_of_gpu()[gpu])));
        if part.num_slots() < self.experts.len() * part.count_min as usize {
            return None;
        }
        let mean = part.mean();
        let mut bound = self.joint.heaviest_gpu(&part.loads, mean, part.num_slots(), part.count_min);
        let slots = (0..part.num_gpus()).map(|gpu| part.slots(gpu).len());
        if let Some(slots) = Slots::new(slots, self.experts.len(), part.count_min) {
            if mean > 0.0 {
                bound = self.equal.heaviest_gpu(&part.loads, slots, bound);
            }
        }
        let enough = enough.max(bound * (1.0 + GAP_ENOUGH));
        let is_valid = self.placer.place(enough, self.goal.effort);
        self.write(slot_to_expert);
        is_valid.then(|| self.placer.part.heaviest())
    }

    /// Names what the part's slots hold. Slots that a GPU has beyond one for each expert get what changes least there:
    /// an expert that is nowhere else, or the lightest.
    fn write(&self, slot_to_expert: &mut [u32]) {
        let part = &self.placer.part;
        for (gpu, &name) in self.gpus.iter().enumerate() {
            let held = &part.held[part.slots(gpu)];
            let slots = &mut slot_to_expert[self.cluster.slots(name as usize)];
            let (slots, surplus) = slots.split_at_mut(held.len());
            for (slot, &expert) in slots.iter_mut().zip(held) {
                *slot = self.experts[expert as usize];
            }
            let key = |&&expert: &&u32| {
                (part.counts[expert as usize] > 1, part.loads[expert as usize].to_bits(), expert)
            };
            if let Some(&filler) = held.iter().min_by_key(key) {
                surplus.fill(self.experts[filler as usize]);
            }
        }
    }
}

/// Whether each live GPU holds as many different experts as it can.
fn is_full(cluster: &Cluster, num_experts: usize, slot_to_expert: &[u32]) -> bool {
    let mut held = Vec::new();
    cluster.live_gpus().all(|gpu| {
        held.clear();
        held.extend_from_slice(&slot_to_expert[cluster.slots(gpu)]);
        held.sort_unstable();
        held.dedup();
        held.len() == cluster.slots(gpu).len().min(num_experts) && !held.contains(&EMPTY)
    })
}
