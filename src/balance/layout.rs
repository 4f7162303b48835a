//! A placement of one layer under change: who is where, and what each GPU carries while a load is split equally.
//!
//! What is kept: each expert's slots as a sorted list threaded through the slots, so that no expert needs room of
//! its own; each GPU's load; a tree of maxima over the GPUs. A change costs `O(replicas)` of the experts concerned,
//! and `log GPUs` for each GPU whose load changes; there is no table of experts by GPUs.
//!
//! Nothing drifts. The load of one replica is rounded to a multiple of a quantum, 2^-50 to 2^-51 of the layer's
//! load, so that every sum of them is exact in float64: the state depends on the placement alone, not on the way to
//! it, and a change that is undone leaves no trace. An undone change is `set(slot, before)`, or the same `swap` again.

use super::cluster::{Cluster, EMPTY};
use super::goal::{Goal, GroupRule};

/// The placement of one layer. Made once, started for each layer; only [`Layout::new`] allocates.
pub(super) struct Layout<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    /// `[num_experts]`: the load of each expert.
    loads: Vec<f64>,
    /// `[num_experts]`: the load of one of its replicas; of the only one, if there is none yet.
    shares: Vec<f64>,
    /// `[num_experts]`: how many replicas it has.
    counts: Vec<u32>,
    /// `[num_experts]`: its first slot, or `EMPTY`.
    first: Vec<u32>,
    /// `[num_slots]`: the next slot of the same expert, or `EMPTY`.
    next: Vec<u32>,
    /// `[num_slots]`: what each slot holds, or `EMPTY`.
    slot_to_expert: Vec<u32>,
    /// `[num_experts]`: the group of each expert.
    group_of_expert: Vec<u32>,
    /// `[num_groups]`: the node of each group, or `EMPTY` if it may be anywhere.
    homes: Vec<u32>,
    /// `[a power of two]`: the load of each GPU; less than 0 for those that are dead or not there.
    gpu_loads: Vec<f64>,
    /// Node i has the heavier of 2i and 2i + 1; the leaves, behind, are the GPUs themselves and not stored.
    heaviest: Vec<u32>,
    /// A number so large that what is added to it is rounded to the quantum.
    rounder: f64,
}

/// The load of a GPU that takes no part.
const NOT_THERE: f64 = -1.0;

impl<'a> Layout<'a> {
    /// Room for one layer; [`Layout::start`] fills it.
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Layout<'a> {
        let leaves = cluster.num_gpus().next_power_of_two();
        Layout {
            cluster,
            goal,
            loads: Vec::with_capacity(goal.num_experts),
            shares: vec![0.0; goal.num_experts],
            counts: vec![0; goal.num_experts],
            first: vec![EMPTY; goal.num_experts],
            next: vec![EMPTY; cluster.num_slots()],
            slot_to_expert: vec![EMPTY; cluster.num_slots()],
            group_of_expert: goal.group_of_expert(),
            homes: vec![EMPTY; goal.num_groups],
            gpu_loads: vec![NOT_THERE; leaves],
            heaviest: vec![0; leaves],
            rounder: 0.0,
        }
    }

    /// Starts with a placement, `[num_slots]`; slots may be `EMPTY`, and an expert may be nowhere.
    /// `loads` is `[num_experts]`: finite, not negative. Groups that stay whole get for their home the node of the
    /// first slot that holds one of theirs. `O(slots + experts + GPUs)`.
    pub(super) fn start(&mut self, loads: &[f64], slot_to_expert: &[u32]) {
        let total: f64 = loads.iter().sum();
        // 2^e <= total < 2^(e + 1); to 6 * 2^e and above, up to 8 * 2^e, belongs a quantum of 2^(e - 50).
        self.rounder = 6.0 * f64::from_bits(total.to_bits() & f64::INFINITY.to_bits());
        self.loads.clear();
        self.loads.extend_from_slice(loads);
        self.slot_to_expert.copy_from_slice(slot_to_expert);
        self.counts.fill(0);
        self.first.fill(EMPTY);
        self.homes.fill(EMPTY);
        for (slot, &expert) in slot_to_expert.iter().enumerate().rev() {
            if expert != EMPTY {
                self.counts[expert as usize] += 1;
                self.next[slot] = self.first[expert as usize];
                self.first[expert as usize] = slot as u32;
            }
        }
        for expert in 0..loads.len() {
            self.shares[expert] = self.share_of(expert, self.counts[expert].max(1));
        }
        for gpu in 0..self.cluster.num_gpus() {
            let is_alive = self.cluster.is_alive(gpu) && !self.cluster.slots(gpu).is_empty();
            let experts = slot_to_expert[self.cluster.slots(gpu)].iter();
            let held = experts.filter(|&&expert| expert != EMPTY).map(|&expert| self.shares[expert as usize]);
            self.gpu_loads[gpu] = if is_alive { held.sum() } else { NOT_THERE };
        }
        for node in (1..self.heaviest.len()).rev() {
            self.heaviest[node] = self.heavier_child(node);
        }
        if self.goal.groups == GroupRule::Whole {
            for (slot, &expert) in slot_to_expert.iter().enumerate() {
                if expert != EMPTY {
                    let home = &mut self.homes[self.group_of_expert[expert as usize] as usize];
                    if *home == EMPTY {
                        *home = self.cluster.node_of_gpu()[self.cluster.gpu_of_slot()[slot] as usize];
                    }
                }
            }
        }
    }

    /// Puts an expert, or `EMPTY`, into a slot of a live GPU and returns what was there.
    pub(super) fn set(&mut self, slot: usize, expert: u32) -> u32 {
        let before = self.slot_to_expert[slot];
        if before != expert {
            self.take_out(slot);
            self.put_in(slot, expert);
        }
        before
    }

    /// Exchanges what two slots hold; both hold an expert.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        let (in_a, in_b) = (self.slot_to_expert[a], self.slot_to_expert[b]);
        if in_a == in_b {
            return;
        }
        self.unlink(a, in_a);
        self.unlink(b, in_b);
        self.link(a, in_b);
        self.link(b, in_a);
        let (gpu_a, gpu_b) = (self.gpu(a), self.gpu(b));
        if gpu_a != gpu_b {
            let more = self.shares[in_b as usize] - self.shares[in_a as usize];
            self.add(gpu_a, more);
            self.add(gpu_b, -more);
        }
    }

    /// The GPU that carries most; of equal ones the first.
    pub(super) fn heaviest_gpu(&self) -> usize {
        match self.heaviest.len() {
            1 => 0,
            _ => self.heaviest[1] as usize,
        }
    }

    /// What the heaviest GPU carries.
    pub(super) fn heaviest_load(&self) -> f64 {
        self.gpu_loads[self.heaviest_gpu()]
    }

    /// `[num_gpus or more]`: what each GPU carries; less than 0 where it is dead, has no slot or is not there.
    pub(super) fn gpu_loads(&self) -> &[f64] {
        &self.gpu_loads
    }

    /// What one replica of an expert carries.
    pub(super) fn share(&self, expert: u32) -> f64 {
        self.shares[expert as usize]
    }

    /// What one replica of an expert would carry if it had `count >= 1`.
    pub(super) fn share_of(&self, expert: usize, count: u32) -> f64 {
        (self.loads[expert] / f64::from(count) + self.rounder) - self.rounder
    }

    /// How many replicas an expert has.
    pub(super) fn count(&self, expert: u32) -> u32 {
        self.counts[expert as usize]
    }

    /// The slots of an expert, in order.
    pub(super) fn slots(&self, expert: u32) -> Slots<'_> {
        Slots { next: &self.next, slot: self.first[expert as usize] }
    }

    /// `[num_slots]`: what each slot holds.
    pub(super) fn slot_to_expert(&self) -> &[u32] {
        &self.slot_to_expert
    }

    /// The GPU of a slot.
    pub(super) fn gpu(&self, slot: usize) -> usize {
        self.cluster.gpu_of_slot()[slot] as usize
    }

    /// The node of a slot.
    pub(super) fn node(&self, slot: usize) -> u32 {
        self.cluster.node_of_gpu()[self.gpu(slot)]
    }

    /// Says where a group belongs; `EMPTY` for anywhere.
    pub(super) fn set_home(&mut self, group: usize, node: u32) {
        self.homes[group] = node;
    }

    /// How many replicas of an expert a GPU holds. `O(replicas)`.
    pub(super) fn count_on(&self, expert: u32, gpu: usize) -> usize {
        let slots = self.cluster.slots(gpu);
        if slots.len() < self.counts[expert as usize] as usize {
            self.slot_to_expert[slots].iter().filter(|&&held| held == expert).count()
        } else {
            self.slots(expert).filter(|&slot| self.gpu(slot) == gpu).count()
        }
    }

    /// Whether an expert may come into a slot as far as its GPU goes: alive, without another replica of it, and on
    /// the node of its group. What the slot holds itself does not matter. `O(replicas)`.
    pub(super) fn may_enter(&self, slot: usize, expert: u32) -> bool {
        let gpu = self.gpu(slot);
        let already = usize::from(self.slot_to_expert[slot] == expert);
        self.is_at_home(slot, expert) && self.gpu_loads[gpu] >= 0.0 && self.count_on(expert, gpu) == already
    }

    /// Whether a slot is on the node of an expert's group, if it has one.
    pub(super) fn is_at_home(&self, slot: usize, expert: u32) -> bool {
        let home = self.homes[self.group_of_expert[expert as usize] as usize];
        home == EMPTY || home == self.node(slot)
    }

    /// Whether what a slot holds may go elsewhere for good: another replica is left, on enough GPUs and nodes.
    /// `O(replicas)`, on several nodes times their number.
    pub(super) fn may_leave(&self, slot: usize) -> bool {
        let expert = self.slot_to_expert[slot];
        expert == EMPTY || (self.counts[expert as usize] > 1 && self.is_spread_if(expert, slot, None))
    }

    /// Whether two slots may exchange what they hold.
    pub(super) fn may_swap(&self, a: usize, b: usize) -> bool {
        let (in_a, in_b) = (self.slot_to_expert[a], self.slot_to_expert[b]);
        self.may_enter(a, in_b)
            && self.may_enter(b, in_a)
            && self.is_spread_if(in_a, a, Some(b))
            && self.is_spread_if(in_b, b, Some(a))
    }

    /// Whether an expert is on enough GPUs and nodes, were one of its slots another one, or none.
    fn is_spread_if(&self, expert: u32, slot: usize, instead: Option<usize>) -> bool {
        let &Goal { min_gpus, min_nodes, .. } = self.goal;
        if min_gpus.max(min_nodes) == 1 {
            return true;
        }
        let slots = || self.slots(expert).filter(move |&s| s != slot).chain(instead);
        at_least(min_gpus, || slots().map(|s| self.gpu(s) as u32))
            && at_least(min_nodes, || slots().map(|s| self.node(s)))
    }

    fn take_out(&mut self, slot: usize) {
        let expert = self.slot_to_expert[slot];
        if expert != EMPTY {
            self.unlink(slot, expert);
            self.slot_to_expert[slot] = EMPTY;
            self.add(self.gpu(slot), -self.shares[expert as usize]);
            self.recount(expert, self.counts[expert as usize] - 1);
        }
    }

    fn put_in(&mut self, slot: usize, expert: u32) {
        if expert != EMPTY {
            self.recount(expert, self.counts[expert as usize] + 1);
            self.add(self.gpu(slot), self.shares[expert as usize]);
            self.link(slot, expert);
        }
    }

    /// Gives an expert another count, and the GPUs of the slots in its list their other shares.
    fn recount(&mut self, expert: u32, count: u32) {
        self.counts[expert as usize] = count;
        let share = self.share_of(expert as usize, count.max(1));
        let more = share - std::mem::replace(&mut self.shares[expert as usize], share);
        let mut slot = self.first[expert as usize];
        while slot != EMPTY {
            self.add(self.gpu(slot as usize), more);
            slot = self.next[slot as usize];
        }
    }

    fn unlink(&mut self, slot: usize, expert: u32) {
        let after = self.next[slot];
        match self.last_before(slot, expert) {
            Some(before) => self.next[before] = after,
            None => self.first[expert as usize] = after,
        }
    }

    fn link(&mut self, slot: usize, expert: u32) {
        let slot_u32 = slot as u32;
        self.slot_to_expert[slot] = expert;
        self.next[slot] = match self.last_before(slot, expert) {
            Some(before) => std::mem::replace(&mut self.next[before], slot_u32),
            None => std::mem::replace(&mut self.first[expert as usize], slot_u32),
        };
    }

    /// The last slot of an expert's list that is before `slot`.
    fn last_before(&self, slot: usize, expert: u32) -> Option<usize> {
        self.slots(expert).take_while(|&other| other < slot).last()
    }

    fn add(&mut self, gpu: usize, more: f64) {
        self.gpu_loads[gpu] += more;
        let mut node = (self.heaviest.len() + gpu) / 2;
        while node > 0 {
            self.heaviest[node] = self.heavier_child(node);
            node /= 2;
        }
    }

    fn heavier_child(&self, node: usize) -> u32 {
        let leaves = self.heaviest.len();
        let (a, b) = match 2 * node {
            leaf if leaf >= leaves => (leaf - leaves, leaf - leaves + 1),
            child => (self.heaviest[child] as usize, self.heaviest[child + 1] as usize),
        };
        if self.gpu_loads[b] > self.gpu_loads[a] {
            b as u32
        } else {
            a as u32
        }
    }
}

/// The slots of an expert: [`Layout::slots`].
#[derive(Clone)]
pub(super) struct Slots<'a> {
    next: &'a [u32],
    slot: u32,
}

impl Iterator for Slots<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.slot == EMPTY {
            return None;
        }
        let slot = self.slot as usize;
        self.slot = self.next[slot];
        Some(slot)
    }
}

/// Whether there are `least` or more different ones.
fn at_least<I: Iterator<Item = u32>>(least: usize, places: impl Fn() -> I) -> bool {
    let is_new = |&(i, place): &(usize, u32)| !places().take(i).any(|other| other == place);
    places().enumerate().filter(is_new).take(least).count() == least
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a layout says, computed anew.
    fn loads_anew(layout: &Layout<'_>) -> Vec<f64> {
        let cluster = layout.cluster;
        let load = |gpu| {
            let experts = layout.slot_to_expert[cluster.slots(gpu)].iter().filter(|&&e| e != EMPTY);
            let count = |e| layout.slot_to_expert.iter().filter(|&other| other == e).count();
            experts.map(|e| layout.share_of(*e as usize, count(e) as u32)).sum()
        };
        (0..cluster.num_gpus()).map(|g| if cluster.is_alive(g) { load(g) } else { NOT_THERE }).collect()
    }

    #[test]
    fn after_any_changes_it_is_as_if_started_anew_and_undone_changes_leave_no_trace() {
        let cluster =
            Cluster::new(&[3, 2, 4, 1, 3], &[0, 0, 1, 1, 2], &[true, true, false, true, true]).unwrap();
        let goal = Goal::new(1, 6);
        let mut layout = Layout::new(&cluster, &goal);
        let mut random = fastrand::Rng::with_seed(1);
        let loads = [0.1, 1e7, 3.3, 0.0, 7.7, 1.0 / 3.0];
        let mut slots = vec![EMPTY; 13];
        let live = [0, 1, 2, 3, 4, 9, 10, 11, 12];
        live.iter().zip([0, 1, 2, 3, 4, 5, 0, 1, 2]).for_each(|(&slot, e)| slots[slot] = e);
        layout.start(&loads, &slots);
        for _ in 0..2000 {
            let before = layout.slot_to_expert.clone();
            let loads_before = layout.gpu_loads.clone();
            let (a, b) = (live[random.usize(..9)], live[random.usize(..9)]);
            let expert = if random.u32(..9) == 0 { EMPTY } else { random.u32(..6) };
            let both = before[a] != EMPTY && before[b] != EMPTY;
            let was = layout.set(a, expert);
            layout.set(a, was);
            if both {
                layout.swap(a, b);
                layout.swap(a, b);
            }
            assert_eq!((&layout.slot_to_expert, &layout.gpu_loads), (&before, &loads_before));
            match random.bool() && both {
                true => layout.swap(a, b),
                false => _ = layout.set(a, expert),
            }
            let anew = loads_anew(&layout);
            assert_eq!(layout.gpu_loads[..5], anew);
            let heaviest = anew.iter().copied().fold(0.0, f64::max);
            assert_eq!(Some(layout.heaviest_gpu()), anew.iter().position(|&load| load == heaviest));
            for e in 0..6 {
                let want = (0..13).filter(|&slot| layout.slot_to_expert[slot] == e);
                assert!(layout.slots(e).eq(want));
                assert_eq!(layout.slots(e).count() as u32, layout.count(e));
            }
        }
    }

    #[test]
    fn a_replica_may_go_where_its_expert_is_not_and_stay_spread() {
        let cluster = Cluster::new(&[2, 2, 2, 2], &[0, 0, 1, 1], &[true, true, true, false]).unwrap();
        let goal = Goal { min_gpus: 2, ..Goal::new(1, 3) };
        let mut layout = Layout::new(&cluster, &goal);
        layout.start(&[1.0; 3], &[0, 1, 0, 2, 1, 2, EMPTY, EMPTY]);
        assert!(layout.may_enter(4, 0) && !layout.may_enter(1, 0) && !layout.may_enter(6, 0));
        assert!(layout.may_enter(0, 0), "it is there");
        assert!(!layout.may_leave(0), "one GPU would be left");
        assert!(layout.may_swap(0, 5) && !layout.may_swap(0, 4));
        let goal = Goal { min_nodes: 2, num_groups: 3, ..goal };
        let mut layout = Layout::new(&cluster, &goal);
        layout.start(&[1.0; 3], &[0, 1, 0, 2, 1, 2, EMPTY, EMPTY]);
        assert!(!layout.may_swap(1, 5), "1 would be on nodes 0 and 1 as before, 2 on node 0 only");
        layout.set_home(0, 0);
        assert!(layout.is_at_home(3, 0) && !layout.is_at_home(4, 0) && layout.is_at_home(4, 1));
    }

    #[test]
    fn shares_add_up_exactly() {
        let cluster = Cluster::even(1000, 1, 1).unwrap();
        let goal = Goal::new(1, 1);
        let mut layout = Layout::new(&cluster, &goal);
        layout.start(&[1.0], &[0; 1000]);
        assert!((layout.heaviest_load() - 1.0).abs() < 1e-12);
        layout.start(&[0.0], &[0; 1000]);
        assert_eq!((layout.heaviest_gpu(), layout.heaviest_load()), (0, 0.0));
    }
}
