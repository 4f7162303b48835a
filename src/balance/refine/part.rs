//! Some experts on some GPUs: the whole layer, or one node with the groups that stay there.
//!
//! Experts, GPUs and slots are numbered within the part; no GPU has more slots than there are experts. As in `layout`,
//! the load of one replica is rounded to a quantum, so that the loads of GPUs are exact sums, which can be added to
//! and taken from without drift.

use std::ops::Range;

/// A part and its placement. Everything has room of its own, which is used again from layer to layer.
#[derive(Default)]
pub(super) struct Part {
    /// `[experts]`
    pub(super) loads: Vec<f64>,
    /// No expert has fewer replicas.
    pub(super) count_min: u32,
    /// No expert is on fewer nodes.
    pub(super) nodes_min: usize,
    /// `[GPUs]`: the node of each.
    pub(super) nodes: Vec<u32>,
    /// `[GPUs + 1]`: GPU g has the slots `first[g] .. first[g + 1]`, at least one.
    first: Vec<u32>,
    /// `[slots]`
    pub(super) gpu_of_slot: Vec<u32>,

    /// `[experts]`: how many replicas each has.
    pub(super) counts: Vec<u32>,
    /// `[experts]`: the load of one replica.
    pub(super) shares: Vec<f64>,
    /// `[slots]`: the expert in each slot.
    pub(super) held: Vec<u32>,
    /// `[slots]`: the load of the replica in each slot.
    pub(super) slot_loads: Vec<f64>,
    /// `[GPUs]`
    pub(super) gpu_loads: Vec<f64>,
    /// The GPUs, lightest first; of equally loaded ones the lower number first.
    pub(super) order: Vec<u32>,
    /// A number so large that what is added to it is rounded to the quantum.
    rounder: f64,
}

impl Part {
    /// Starts with experts of these loads.
    pub(super) fn set_loads(&mut self, loads: impl Iterator<Item = f64>) {
        self.loads.clear();
        self.loads.extend(loads);
        let total: f64 = self.loads.iter().sum();
        self.rounder = 6.0 * f64::from_bits(total.to_bits() & f64::INFINITY.to_bits());
    }

    /// Starts with GPUs of so many slots on these nodes.
    pub(super) fn set_gpus(&mut self, gpus: impl Iterator<Item = (usize, u32)>) {
        self.nodes.clear();
        self.gpu_of_slot.clear();
        self.first.clear();
        self.first.push(0);
        for (gpu, (slots, node)) in gpus.enumerate() {
            self.nodes.push(node);
            self.gpu_of_slot.resize(self.gpu_of_slot.len() + slots, gpu as u32);
            self.first.push(self.gpu_of_slot.len() as u32);
        }
    }

    pub(super) fn num_gpus(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn num_slots(&self) -> usize {
        self.gpu_of_slot.len()
    }

    /// The slots of a GPU.
    pub(super) fn slots(&self, gpu: usize) -> Range<usize> {
        self.first[gpu] as usize..self.first[gpu + 1] as usize
    }

    /// The mean load of a GPU.
    pub(super) fn mean(&self) -> f64 {
        self.loads.iter().sum::<f64>() / self.num_gpus() as f64
    }

    /// The load of the heaviest GPU.
    pub(super) fn heaviest(&self) -> f64 {
        self.order.last().map_or(0.0, |&gpu| self.gpu_loads[gpu as usize])
    }

    /// The load of one replica of an expert that has `count`.
    pub(super) fn share_of(&self, expert: usize, count: u32) -> f64 {
        (self.loads[expert] / f64::from(count) + self.rounder) - self.rounder
    }

    /// Whether a GPU holds an expert.
    pub(super) fn is_on(&self, expert: u32, gpu: usize) -> bool {
        self.held[self.slots(gpu)].contains(&expert)
    }

    /// Whether two slots of different GPUs may exchange what they hold.
    pub(super) fn may_swap(&self, a: usize, b: usize) -> bool {
        let (gpu_a, gpu_b) = (self.gpu_of_slot[a] as usize, self.gpu_of_slot[b] as usize);
        !self.is_on(self.held[a], gpu_b)
            && !self.is_on(self.held[b], gpu_a)
            && self.stays_spread(a, gpu_b)
            && self.stays_spread(b, gpu_a)
    }

    /// How many slots [`Part::may_swap`] looks at.
    pub(super) fn cost_of_may_swap(&self, gpu_a: usize, gpu_b: usize) -> usize {
        let all = if self.nodes_min == 1 { 0 } else { 2 * self.num_slots() };
        self.slots(gpu_a).len() + self.slots(gpu_b).len() + all
    }

    /// Whether the expert of a slot is on enough nodes if this replica goes to a GPU.
    pub(super) fn stays_spread(&self, slot: usize, gpu: usize) -> bool {
        let node = self.nodes[gpu];
        node == self.nodes[self.gpu_of_slot[slot] as usize]
            || self.num_nodes_if(slot, Some(node)) >= self.nodes_min
    }

    /// Whether the expert of a slot is on enough nodes without this replica.
    pub(super) fn is_spread_without(&self, slot: usize) -> bool {
        self.num_nodes_if(slot, None) >= self.nodes_min
    }

    /// How many nodes the expert of a slot is on, if this replica is on `node`, or nowhere; that there is one goes
    /// without counting. `O(slots)`.
    fn num_nodes_if(&self, slot: usize, node: Option<u32>) -> usize {
        if self.nodes_min == 1 {
            return 1;
        }
        let expert = self.held[slot];
        let others = (0..self.held.len()).filter(|&other| other != slot && self.held[other] == expert);
        let mut nodes: Vec<u32> = others.map(|other| self.nodes[self.gpu_of_slot[other] as usize]).collect();
        nodes.extend(node);
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    }

    /// Everything that follows from `held` and `counts`.
    pub(super) fn weigh(&mut self) {
        self.shares.clear();
        for expert in 0..self.loads.len() {
            self.shares.push(self.share_of(expert, self.counts[expert]));
        }
        self.slot_loads.clear();
        self.slot_loads.extend(self.held.iter().map(|&expert| self.shares[expert as usize]));
        self.gpu_loads.clear();
        for gpu in 0..self.nodes.len() {
            self.gpu_loads.push(self.slot_loads[self.slots(gpu)].iter().sum());
        }
        self.order.clear();
        self.order.extend(0..self.nodes.len() as u32);
        let loads = &self.gpu_loads;
        self.order.sort_unstable_by(|&a, &b| loads[a as usize].total_cmp(&loads[b as usize]).then(a.cmp(&b)));
    }

    /// Exchanges what two slots of different GPUs hold.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        let more = self.slot_loads[b] - self.slot_loads[a];
        self.held.swap(a, b);
        self.slot_loads.swap(a, b);
        self.add(self.gpu_of_slot[a] as usize, more);
        self.add(self.gpu_of_slot[b] as usize, -more);
    }

    /// Gives a slot, whose expert has another one, to another expert. `O(slots)`.
    pub(super) fn give(&mut self, slot: usize, expert: u32) {
        let before = self.held[slot];
        self.held[slot] = expert;
        self.counts[before as usize] -= 1;
        self.counts[expert as usize] += 1;
        for changed in [before, expert] {
            self.shares[changed as usize] = self.share_of(changed as usize, self.counts[changed as usize]);
        }
        for slot in 0..self.held.len() {
            let held = self.held[slot];
            if held == before || held == expert {
                let load = self.shares[held as usize];
                let more = load - std::mem::replace(&mut self.slot_loads[slot], load);
                self.add(self.gpu_of_slot[slot] as usize, more);
            }
        }
    }

    /// Adds to the load of a GPU, and moves it in the order.
    fn add(&mut self, gpu: usize, more: f64) {
        let loads = &self.gpu_loads;
        let place = |order: &[u32], load: f64| {
            let is_before = |&other: &u32| (loads[other as usize], other as usize) < (load, gpu);
            order.partition_point(is_before)
        };
        let from = place(&self.order, loads[gpu]);
        let to = place(&self.order, loads[gpu] + more);
        if from < to {
            self.order.copy_within(from + 1..to, from);
            self.order[to - 1] = gpu as u32;
        } else {
            self.order.copy_within(to..from, to + 1);
            self.order[to] = gpu as u32;
        }
        self.gpu_loads[gpu] += more;
    }

    /// Takes over the placement of the same part.
    pub(super) fn copy_placement(&mut self, from: &Part) {
        self.counts.clone_from(&from.counts);
        self.shares.clone_from(&from.shares);
        self.held.clone_from(&from.held);
        self.slot_loads.clone_from(&from.slot_loads);
        self.gpu_loads.clone_from(&from.gpu_loads);
        self.order.clone_from(&from.order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn after_any_changes_it_is_as_if_weighed_anew() {
        let mut part = Part { count_min: 1, nodes_min: 1, ..Part::default() };
        part.set_loads([0.1, 1e7, 3.3, 0.0, 1.0 / 3.0].into_iter());
        part.set_gpus([(3, 0), (2, 0), (1, 1), (4, 1)].into_iter());
        part.held = vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4];
        part.counts = vec![2; 5];
        part.weigh();
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let (a, b) = (random.below(10), random.below(10));
            if part.gpu_of_slot[a] == part.gpu_of_slot[b] {
                continue;
            }
            if random.below(2) == 0 {
                part.swap(a, b);
            } else if part.counts[part.held[a] as usize] > 1 {
                part.give(a, part.held[b]);
            }
            let (loads, order) = (part.gpu_loads.clone(), part.order.clone());
            part.weigh();
            assert_eq!((&part.gpu_loads, &part.order), (&loads, &order));
        }
    }
}
