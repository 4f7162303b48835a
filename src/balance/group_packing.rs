//! Whole groups of experts onto nodes: the heaviest node, by load / GPUs, as light as can be.
//!
//! ```text
//! greedy    heaviest group first, onto the lightest node with room for it
//! improve   a group of the heaviest node goes elsewhere, alone or in exchange, while that helps
//! search    up to 24 groups on 64 nodes: branch and bound over all packings, which proves the best
//! ```
//!
//! A node has room for n experts if they can be on as many of its GPUs as they must, k: Σ min(slots, n) >= k n. The
//! search also knows a limit to the number of groups, for policies that give equally many to each node.
//!
//! Greedy `O((groups + nodes) log nodes)`; improving is limited to 2^20 looks at two groups, the search to 2^15 steps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cluster::Cluster;
use super::goal::Goal;

/// Packs the groups of layer after layer.
pub(super) struct GroupPacker {
    /// `[num_groups]`: the experts of each.
    sizes: Vec<u32>,
    /// The live nodes.
    nodes: Vec<Node>,
    /// `[num_groups]`
    loads: Vec<f64>,
    /// The groups, heaviest first.
    heaviest_first: Vec<u32>,
    /// `[live nodes]`: while packing.
    packs: Vec<Pack>,
    /// `[num_groups]`: the pack of each group while packing, and in the best packing.
    pack_of_group: Vec<u32>,
    best: Vec<u32>,
    /// The heaviest node of the best packing, load / GPUs.
    least: f64,
    /// Steps of the search that are left.
    steps: usize,
}

/// A node with live GPUs.
#[derive(Clone, Copy)]
pub(super) struct Node {
    pub(super) node: u32,
    pub(super) gpus: f64,
    pub(super) slots: usize,
    /// Room for so many experts.
    experts: u32,
}

/// What is on a node so far.
#[derive(Clone, Copy, PartialEq)]
struct Pack {
    gpus: f64,
    load: f64,
    /// Experts and groups that there is room for.
    experts: u32,
    groups: u32,
}

/// How a packing turned out.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    /// The heaviest node, load / GPUs.
    pub(super) heaviest: f64,
    /// Whether no packing is better, but for rounding.
    pub(super) is_best: bool,
}

const SEARCHED_GROUPS: usize = 24;
const SEARCHED_NODES: usize = 64;
const SEARCH_STEPS: usize = 1 << 15;
const IMPROVE_LOOKS: usize = 1 << 20;

impl GroupPacker {
    /// `groups_per_node`: no node gets more groups.
    pub(super) fn new(cluster: &Cluster, goal: &Goal, groups_per_node: Option<usize>) -> GroupPacker {
        let mut sizes = vec![0; goal.num_groups];
        for &group in &goal.group_of_expert() {
            sizes[group as usize] += 1;
        }
        let mut slots_of_node = vec![Vec::new(); cluster.num_nodes()];
        for gpu in cluster.live_gpus() {
            slots_of_node[cluster.node_of_gpu()[gpu] as usize].push(cluster.slots(gpu).len());
        }
        let all = slots_of_node.iter().enumerate().filter(|(_, gpus)| gpus.len() >= goal.min_gpus);
        let nodes: Vec<Node> = all
            .map(|(node, slots)| Node {
                node: node as u32,
                gpus: slots.len() as f64,
                slots: slots.iter().sum(),
                experts: room(slots, goal) as u32,
            })
            .collect();
        let groups = groups_per_node.unwrap_or(goal.num_groups) as u32;
        let packs =
            nodes.iter().map(|node| Pack { gpus: node.gpus, load: 0.0, experts: node.experts, groups });
        GroupPacker {
            packs: packs.collect(),
            loads: Vec::with_capacity(goal.num_groups),
            heaviest_first: (0..goal.num_groups as u32).collect(),
            pack_of_group: vec![0; goal.num_groups],
            best: vec![0; goal.num_groups],
            least: f64::INFINITY,
            steps: 0,
            sizes,
            nodes,
        }
    }

    /// The nodes that have live GPUs, enough of them for each expert to be on as many as it must.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// `[num_groups]`: the node of each group in the last packing, as an index of [`GroupPacker::nodes`].
    pub(super) fn node_of_group(&self) -> &[u32] {
        &self.best
    }

    /// Packs groups of these loads; none if no packing was found.
    pub(super) fn pack(&mut self, loads: impl Iterator<Item = f64>) -> Option<Packed> {
        self.loads.clear();
        self.loads.extend(loads);
        let loads = &self.loads;
        let by_load = |&a: &u32, &b: &u32| loads[b as usize].total_cmp(&loads[a as usize]).then(a.cmp(&b));
        self.heaviest_first.sort_unstable_by(by_load);
        self.least = f64::INFINITY;
        let empty = self.packs.clone();
        if self.greedy() {
            self.improve();
            self.least = self.packs.iter().map(|pack| pack.load / pack.gpus).fold(0.0, f64::max);
            self.best.copy_from_slice(&self.pack_of_group);
        }
        self.packs = empty;
        let is_small = self.loads.len() <= SEARCHED_GROUPS && self.packs.len() <= SEARCHED_NODES;
        self.steps = if is_small { SEARCH_STEPS } else { 0 };
        if self.steps > 0 {
            let gpus: f64 = self.packs.iter().map(|pack| pack.gpus).sum();
            let mean = self.loads.iter().sum::<f64>() / gpus;
            self.search(0, 0.0, mean);
        }
        if !self.least.is_finite() {
            return None;
        }
        let is_best = self.steps > 0;
        self.fill_empty();
        Some(Packed { heaviest: self.least, is_best })
    }

    fn put(&mut self, group: u32, pack: usize) {
        self.pack_of_group[group as usize] = pack as u32;
        self.packs[pack].load += self.loads[group as usize];
        self.packs[pack].experts -= self.sizes[group as usize];
        self.packs[pack].groups -= 1;
    }

    fn greedy(&mut self) -> bool {
        // Groups have at most two sizes: nodes with room for either, and those with room for a small one only.
        let small = self.sizes.iter().copied().min().unwrap_or(0);
        let large = self.sizes.iter().copied().max().unwrap_or(0);
        let mut heaps = [BinaryHeap::new(), BinaryHeap::new()];
        let enter = |heaps: &mut [BinaryHeap<_>; 2], index: usize, pack: &Pack| {
            let key = Reverse(((pack.load / pack.gpus).to_bits(), index));
            if pack.groups > 0 && pack.experts >= large {
                heaps[0].push(key);
            } else if pack.groups > 0 && pack.experts >= small {
                heaps[1].push(key);
            }
        };
        self.packs.iter().enumerate().for_each(|(index, pack)| enter(&mut heaps, index, pack));
        for i in 0..self.heaviest_first.len() {
            let group = self.heaviest_first[i];
            let is_small = self.sizes[group as usize] < large;
            let from_narrow = is_small && heaps[1].peek() > heaps[0].peek();
            let Some(Reverse((_, index))) = heaps[usize::from(from_narrow)].pop() else { return false };
            self.put(group, index);
            enter(&mut heaps, index, &self.packs[index]);
        }
        true
    }

    fn improve(&mut self) {
        let mut looks = IMPROVE_LOOKS;
        let ratio = |pack: &Pack, more: f64| (pack.load + more) / pack.gpus;
        let needs = self.packs.len() + self.loads.len();
        while looks >= needs {
            looks -= needs;
            let mut heaviest = 0;
            for (index, pack) in self.packs.iter().enumerate() {
                if ratio(pack, 0.0) > ratio(&self.packs[heaviest], 0.0) {
                    heaviest = index;
                }
            }
            let from = self.packs[heaviest];
            let mut best = (ratio(&from, 0.0), None);
            for group in (0..self.loads.len()).filter(|&g| self.pack_of_group[g] as usize == heaviest) {
                if looks < needs {
                    break;
                }
                looks -= needs;
                let (load, size) = (self.loads[group], self.sizes[group]);
                for (index, to) in self.packs.iter().enumerate() {
                    let heavier = ratio(&from, -load).max(ratio(to, load));
                    if index != heaviest && to.groups > 0 && to.experts >= size && heavier < best.0 {
                        best = (heavier, Some((group, index, None)));
                    }
                }
                for other in 0..self.loads.len() {
                    let index = self.pack_of_group[other] as usize;
                    let (to, less) = (&self.packs[index], load - self.loads[other]);
                    let heavier = ratio(&from, -less).max(ratio(to, less));
                    let has_room =
                        to.experts + self.sizes[other] >= size && from.experts + size >= self.sizes[other];
                    if index != heaviest && has_room && heavier < best.0 {
                        best = (heavier, Some((group, index, Some(other))));
                    }
                }
            }
            let Some((group, index, other)) = best.1 else { return };
            self.take(group, heaviest);
            if let Some(other) = other {
                self.take(other, index);
                self.put(other as u32, heaviest);
            }
            self.put(group as u32, index);
        }
    }

    fn take(&mut self, group: usize, pack: usize) {
        self.packs[pack].load -= self.loads[group];
        self.packs[pack].experts += self.sizes[group];
        self.packs[pack].groups += 1;
    }

    /// Gives nodes without a group one that is not alone on its node, where that makes the heaviest no heavier.
    fn fill_empty(&mut self) {
        let mut counts = vec![0; self.nodes.len()];
        self.best.iter().for_each(|&pack| counts[pack as usize] += 1);
        // The lightest group first: it is the most likely to fit.
        let mut lightest_first = self.heaviest_first.iter().rev();
        for (index, node) in self.nodes.iter().enumerate() {
            while counts[index] == 0 {
                let Some(&group) = lightest_first.next() else { return };
                let from = self.best[group as usize] as usize;
                let (load, size) = (self.loads[group as usize], self.sizes[group as usize]);
                if counts[from] > 1 && size <= node.experts && load / node.gpus <= self.least {
                    counts[from] -= 1;
                    counts[index] += 1;
                    self.best[group as usize] = index as u32;
                }
            }
        }
    }

    /// Tries all packings of the groups from the `next` heaviest on, while the heaviest node has `heaviest`.
    fn search(&mut self, next: usize, heaviest: f64, mean: f64) {
        if next == self.loads.len() {
            self.least = heaviest;
            self.best.copy_from_slice(&self.pack_of_group);
            return;
        }
        let group = self.heaviest_first[next];
        let (load, size) = (self.loads[group as usize], self.sizes[group as usize]);
        for index in 0..self.packs.len() {
            let pack = self.packs[index];
            let then = heaviest.max((pack.load + load) / pack.gpus);
            // Nodes that are alike are tried once.
            let has_room = pack.experts >= size && pack.groups > 0;
            if !has_room || then >= self.least || self.packs[..index].contains(&pack) {
                continue;
            }
            if self.steps == 0 || self.least <= mean {
                return;
            }
            self.steps -= 1;
            self.put(group, index);
            self.search(next + 1, then, mean);
            self.packs[index] = pack;
        }
    }
}

/// The most experts that can be on `goal.min_gpus` each of GPUs with so many slots.
fn room(slots: &[usize], goal: &Goal) -> usize {
    let fits = |experts: usize| {
        slots.iter().map(|slots| experts.min(*slots)).sum::<usize>() >= goal.min_gpus * experts
    };
    // The left side is concave: what fits, fits with fewer.
    let (mut fitting, mut most) = (0, goal.num_experts);
    while fitting < most {
        let middle = (fitting + most).div_ceil(2);
        if fits(middle) {
            fitting = middle;
        } else {
            most = middle - 1;
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that the heaviest node can have, by trying all.
    fn least(cluster: &Cluster, loads: &[f64], size: usize) -> f64 {
        let nodes = cluster.num_nodes();
        let mut least = f64::INFINITY;
        for mut code in 0..nodes.pow(loads.len() as u32) {
            let (mut of_node, mut room) = (vec![0.0; nodes], vec![0i64; nodes]);
            for gpu in cluster.live_gpus() {
                room[cluster.node_of_gpu()[gpu] as usize] += cluster.slots(gpu).len() as i64;
            }
            for load in loads {
                of_node[code % nodes] += load;
                room[code % nodes] -= size as i64;
                code /= nodes;
            }
            let gpus =
                |node| cluster.live_gpus().filter(|&g| cluster.node_of_gpu()[g] as usize == node).count();
            if room.iter().all(|&left| left >= 0) {
                let ratios = (0..nodes).filter(|&n| of_node[n] > 0.0).map(|n| of_node[n] / gpus(n) as f64);
                least = ratios.fold(0.0, f64::max).min(least);
            }
        }
        least
    }

    #[test]
    fn few_groups_are_packed_as_well_as_can_be() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..300 {
            let num_groups = random.usize(1..=7);
            let size = random.usize(1..=3);
            let gpus: Vec<u32> = (0..random.usize(2..=6)).map(|_| random.u32(1..=8)).collect();
            let nodes: Vec<u32> = gpus.iter().map(|_| random.u32(0..gpus.len().min(3) as u32)).collect();
            let alive: Vec<bool> = gpus.iter().map(|_| random.u32(..5) > 0).collect();
            let Ok(cluster) = Cluster::new(&gpus, &nodes, &alive) else { continue };
            let goal = Goal { num_groups, ..Goal::new(1, num_groups * size) };
            let loads: Vec<f64> = (0..num_groups).map(|_| f64::from(random.u32(0..100))).collect();
            let mut packer = GroupPacker::new(&cluster, &goal, None);
            let packed = packer.pack(loads.iter().copied());
            let want = least(&cluster, &loads, size);
            assert_eq!(packed.map_or(f64::INFINITY, |packed| packed.heaviest), want, "round {round}");
            assert!(packed.is_none_or(|packed| packed.is_best));
            // The packing is what it says.
            if packed.is_some() {
                let mut of_node = vec![0.0; packer.nodes().len()];
                packer.node_of_group().iter().zip(&loads).for_each(|(&n, load)| of_node[n as usize] += load);
                let ratios = of_node.iter().zip(packer.nodes()).map(|(load, node)| load / node.gpus);
                assert_eq!(ratios.fold(0.0, f64::max), want, "round {round}");
            }
        }
    }

    #[test]
    fn many_groups_are_packed_greedily_and_improved() {
        let cluster = Cluster::even(400, 40, 10).unwrap();
        let goal = Goal { num_groups: 100, ..Goal::new(1, 200) };
        let mut random = fastrand::Rng::with_seed(7);
        let loads: Vec<f64> = (0..100).map(|_| random.f64() + 0.1).collect();
        let packed = GroupPacker::new(&cluster, &goal, None).pack(loads.iter().copied()).unwrap();
        assert!(packed.heaviest < loads.iter().sum::<f64>() / 40.0 * 1.002 && !packed.is_best);
    }
}
