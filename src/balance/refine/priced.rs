//! Groups that may be spread over nodes, at a price: the least imbalance + price * away.
//!
//! Two ways lead there, and the better end is taken. From a placement that cares for balance only, replicas go to
//! their group's home by swaps while the whole gains. From one whose groups are whole, the heaviest GPU is relieved
//! again and again by the swap that costs least for what it gains; the whole may get worse on the way, as all GPUs of
//! a heavy node have to be relieved before anything is gained, and the best placement on the way is kept.
//!
//! `O(slots of a GPU * slots)` for each swap.

use super::super::cluster::{Cluster, EMPTY};
use super::super::goal::Goal;
use super::super::layout::Layout;

/// Improves layer after layer in the same memory.
pub(super) struct Priced<'a> {
    cluster: &'a Cluster,
    effort: usize,
    layout: Layout<'a>,
    group_of_expert: Vec<u32>,
    /// `[num_groups]`: the node that most of its load is on.
    homes: Vec<u32>,
    /// (group, node, load) of each slot.
    places: Vec<(u32, u32, f64)>,
}

/// Pairs of slots looked at with an effort of 1.
const LOOKS: usize = 1 << 23;
/// A swap must take so much of the heaviest GPU's excess over the mean.
const RELIEF_MIN: f64 = 0.01;

impl<'a> Priced<'a> {
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Priced<'a> {
        Priced {
            cluster,
            effort: goal.effort,
            layout: Layout::new(cluster, goal),
            group_of_expert: goal.group_of_expert(),
            homes: vec![EMPTY; goal.num_groups],
            places: Vec::with_capacity(cluster.num_slots()),
        }
    }

    /// Brings replicas home from a balanced placement; returns the cost in terms of load.
    pub(super) fn gather(&mut self, price: f64, loads: &[f64], slot_to_expert: &mut [u32]) -> f64 {
        self.layout.start(loads, slot_to_expert);
        let away = self.find_homes();
        let price = price / self.cluster.num_live_gpus() as f64;
        let mut cost = self.layout.heaviest_load() + price * away;
        let mut looks = LOOKS * self.effort;
        let mut is_better = true;
        while is_better && looks > 0 {
            is_better = false;
            for slot in 0..slot_to_expert.len() {
                if looks > 0 && self.away(slot, slot) > 0.0 {
                    if let Some(other) = self.way_home(slot, price, &mut looks) {
                        self.layout.swap(slot, other);
                        is_better = true;
                    }
                }
            }
        }
        let away = self.find_homes();
        let now = self.layout.heaviest_load() + price * away;
        if now < cost {
            cost = now;
            slot_to_expert.copy_from_slice(self.layout.slot_to_expert());
        }
        cost
    }

    /// Spreads groups from a placement where they are whole; returns the cost in terms of load.
    pub(super) fn spread(&mut self, price: f64, loads: &[f64], slot_to_expert: &mut [u32]) -> f64 {
        self.layout.start(loads, slot_to_expert);
        let mut away = self.find_homes();
        let price = price / self.cluster.num_live_gpus() as f64;
        let mean = loads.iter().sum::<f64>() / self.cluster.num_live_gpus() as f64;
        let mut cost = self.layout.heaviest_load() + price * away;
        let mut looks = LOOKS * self.effort;
        while looks > 0 {
            let Some((a, b, more)) = self.relief(mean, price, &mut looks) else { break };
            self.layout.swap(a, b);
            away += more;
            let now = self.layout.heaviest_load() + price * away;
            if now < cost {
                cost = now;
                slot_to_expert.copy_from_slice(self.layout.slot_to_expert());
            }
        }
        cost
    }

    /// Where most of each group's load is; returns the load that is elsewhere.
    fn find_homes(&mut self) -> f64 {
        self.places.clear();
        for (slot, &expert) in self.layout.slot_to_expert().iter().enumerate() {
            if expert != EMPTY {
                let group = self.group_of_expert[expert as usize];
                self.places.push((group, self.layout.node(slot), self.layout.share(expert)));
            }
        }
        self.places.sort_by_key(|&(group, node, _)| (group, node));
        let mut away = 0.0;
        for of_group in self.places.chunk_by(|a, b| a.0 == b.0) {
            let (mut all, mut most, mut home) = (0.0, -1.0, EMPTY);
            for on_node in of_group.chunk_by(|a, b| a.1 == b.1) {
                let load = on_node.iter().map(|place| place.2).sum();
                all += load;
                if load > most {
                    (most, home) = (load, on_node[0].1);
                }
            }
            self.homes[of_group[0].0 as usize] = home;
            away += all - most;
        }
        away
    }

    /// The load away from home that what is in `slot` is, or would be in another one.
    fn away(&self, slot: usize, there: usize) -> f64 {
        match self.layout.slot_to_expert()[slot] {
            EMPTY => 0.0,
            expert
                if self.homes[self.group_of_expert[expert as usize] as usize] == self.layout.node(there) =>
            {
                0.0
            }
            expert => self.layout.share(expert),
        }
    }

    /// How much more is away after a swap.
    fn more_away(&self, a: usize, b: usize) -> f64 {
        self.away(a, b) + self.away(b, a) - self.away(a, a) - self.away(b, b)
    }

    /// What gains most among swaps of `slot` with the slots at home.
    fn way_home(&self, slot: usize, price: f64, looks: &mut usize) -> Option<usize> {
        let expert = self.layout.slot_to_expert()[slot];
        let heaviest = self.layout.heaviest_load();
        let mut best = None;
        let mut least = -heaviest * 1e-12;
        *looks = looks.saturating_sub(self.cluster.num_slots());
        for (other, &other_expert) in self.layout.slot_to_expert().iter().enumerate() {
            if other_expert == EMPTY || self.away(slot, other) > 0.0 {
                continue;
            }
            let less = self.layout.share(expert) - self.layout.share(other_expert);
            let loads = self.layout.gpu_loads();
            let heavier =
                (loads[self.layout.gpu(slot)] - less).max(loads[self.layout.gpu(other)] + less).max(heaviest);
            let more = heavier - heaviest + price * self.more_away(slot, other);
            if more < least && self.layout.may_swap(slot, other) {
                least = more;
                best = Some(other);
            }
        }
        best
    }

    /// The swap of the heaviest GPU that takes most from it for what more is away, and what that is.
    fn relief(&self, mean: f64, price: f64, looks: &mut usize) -> Option<(usize, usize, f64)> {
        let gpu = self.layout.heaviest_gpu();
        let loads = self.layout.gpu_loads();
        let heaviest = loads[gpu];
        let excess = heaviest - mean;
        let mut best = None;
        let mut most = 0.0;
        for a in self.cluster.slots(gpu) {
            *looks = looks.saturating_sub(self.cluster.num_slots());
            let expert = self.layout.slot_to_expert()[a];
            for (b, &other) in self.layout.slot_to_expert().iter().enumerate() {
                if other == EMPTY || expert == EMPTY {
                    continue;
                }
                let less = self.layout.share(expert) - self.layout.share(other);
                let relief = heaviest - (heaviest - less).max(loads[self.layout.gpu(b)] + less);
                if relief <= RELIEF_MIN * excess {
                    continue;
                }
                let more = self.more_away(a, b);
                // A swap that costs next to nothing is as good as its relief.
                let value = relief / (excess * 0.01 + price * more.max(0.0));
                if value > most && self.layout.may_swap(a, b) {
                    most = value;
                    best = Some((a, b, more));
                }
            }
        }
        best
    }
}
