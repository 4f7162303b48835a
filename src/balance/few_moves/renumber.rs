//! A placement renumbered so that as much as possible stays where it was.
//!
//! A placement says which experts share a GPU and which GPUs a node; GPUs with equally many slots have nothing else
//! that tells them apart, nor have nodes of equal GPUs. Which set of experts becomes which GPU is an assignment
//! problem: the most experts that stay on their GPU, of equally many, that stay on their node. Where nodes mean
//! something to the goal, GPUs are assigned within each pair of nodes first and then the nodes; both are exact
//! (`assign`), what they are together is the most that any renumbering of this kind keeps. Last, an expert that stays
//! on its GPU stays in its slot. No GPU's load changes.
//!
//! `O(GPUs^3)` for GPUs that are numbered together, with nodes `O(nodes^2 * GPUs of a node^3 + nodes^3)`. Of more than
//! [`EXACT_MAX`] the most similar pairs are taken first instead, `O(slots log slots)`.

use super::assign::Assignment;
use super::price::{Before, Origin};
use crate::balance::cluster::{Cluster, EMPTY};

/// So many GPUs, or nodes, are assigned exactly.
const EXACT_MAX: usize = 512;
/// What is never chosen where there is another way: no set of experts goes to a GPU with another number of slots.
const NEVER: i64 = 1 << 40;

/// Room to renumber.
#[derive(Default)]
pub(super) struct Renumber {
    assignment: Assignment,
    costs: Vec<i64>,
    column_of: Vec<usize>,
}

impl Renumber {
    /// Renumbers `placement`, `[num_slots]`: all GPUs together, or `by_node`.
    pub(super) fn renumber(
        &mut self,
        cluster: &Cluster,
        before: &Before<'_>,
        by_node: bool,
        placement: &mut [u32],
    ) {
        let new = placement.to_vec();
        let becomes = match by_node {
            true => self.by_node(cluster, before, &new),
            false => self.all_gpus(cluster, before, &new),
        };
        for (gpu, becomes) in becomes {
            placement[cluster.slots(becomes)].copy_from_slice(&new[cluster.slots(gpu)]);
        }
        keep_slots(cluster, before.slots(), placement);
    }

    fn all_gpus(&mut self, cluster: &Cluster, before: &Before<'_>, new: &[u32]) -> Vec<(usize, usize)> {
        let mut gpus: Vec<usize> = cluster.live_gpus().collect();
        gpus.sort_by_key(|&gpu| cluster.slots(gpu).len());
        let mut becomes = Vec::new();
        for alike in gpus.chunk_by(|&a, &b| cluster.slots(a).len() == cluster.slots(b).len()) {
            if alike.len() > EXACT_MAX {
                becomes.extend(most_similar_first(cluster, before, new, alike));
            } else {
                becomes.extend(self.assign(cluster, before, new, alike, alike).1);
            }
        }
        becomes
    }

    fn by_node(&mut self, cluster: &Cluster, before: &Before<'_>, new: &[u32]) -> Vec<(usize, usize)> {
        let mut nodes: Vec<Vec<usize>> = vec![Vec::new(); cluster.num_nodes()];
        for gpu in cluster.live_gpus() {
            nodes[cluster.node_of_gpu()[gpu] as usize].push(gpu);
        }
        nodes.retain(|gpus| !gpus.is_empty());
        let sizes = |gpus: &[usize]| {
            let mut sizes: Vec<usize> = gpus.iter().map(|&gpu| cluster.slots(gpu).len()).collect();
            sizes.sort_unstable();
            sizes
        };
        let sizes: Vec<Vec<usize>> = nodes.iter().map(|gpus| sizes(gpus)).collect();
        let n = nodes.len();
        if n > EXACT_MAX || nodes.iter().any(|gpus| gpus.len() > EXACT_MAX) {
            let own = nodes.iter().flat_map(|gpus| most_similar_first(cluster, before, new, gpus));
            return own.collect();
        }
        let mut costs = vec![NEVER; n * n];
        for a in 0..n {
            for b in (0..n).filter(|&b| sizes[a] == sizes[b]) {
                costs[a * n + b] = self.assign(cluster, before, new, &nodes[a], &nodes[b]).0;
            }
        }
        let mut node_of = Vec::new();
        self.assignment.solve(n, &costs, &mut node_of);
        let pairs = node_of.iter().enumerate();
        pairs.flat_map(|(a, &b)| self.assign(cluster, before, new, &nodes[a], &nodes[b]).1).collect()
    }

    /// The sets of experts that are to be at `from` to the GPUs `to`, of which there are as many of each size.
    fn assign(
        &mut self,
        cluster: &Cluster,
        before: &Before<'_>,
        new: &[u32],
        from: &[usize],
        to: &[usize],
    ) -> (i64, Vec<(usize, usize)>) {
        self.costs.clear();
        for &gpu in from {
            let slots = cluster.slots(gpu);
            for &becomes in to {
                let same_size = slots.len() == cluster.slots(becomes).len();
                let cost =
                    if same_size { -stay(cluster, before, &new[slots.clone()], becomes) } else { NEVER };
                self.costs.push(cost);
            }
        }
        let sum = self.assignment.solve(from.len(), &self.costs, &mut self.column_of);
        (sum, from.iter().zip(&self.column_of).map(|(&gpu, &column)| (gpu, to[column])).collect())
    }
}

/// How much of a set of experts a GPU has: one that is on it counts for more than all that are on its node.
fn stay(cluster: &Cluster, before: &Before<'_>, experts: &[u32], gpu: usize) -> i64 {
    let of_expert = |&expert: &u32| match before.origin(gpu, expert) {
        Origin::SameGpu => cluster.num_slots() as i64 + 1,
        Origin::SameNode => 1,
        Origin::OtherNode | Origin::Nowhere => 0,
    };
    experts.iter().filter(|&&expert| expert != EMPTY).map(of_expert).sum()
}

/// Pairs of sets and GPUs, those with most experts in common first; what has nothing in common in order.
fn most_similar_first(
    cluster: &Cluster,
    before: &Before<'_>,
    new: &[u32],
    gpus: &[usize],
) -> Vec<(usize, usize)> {
    let mut held: Vec<(u32, usize)> = Vec::new();
    for &gpu in gpus {
        held.extend(before.slots()[cluster.slots(gpu)].iter().map(|&expert| (expert, gpu)));
    }
    held.sort_unstable();
    let mut in_common: Vec<(usize, usize)> = Vec::new();
    for &gpu in gpus {
        for &expert in &new[cluster.slots(gpu)] {
            let first = held.partition_point(|&(other, _)| other < expert);
            let there = held[first..].iter().take_while(|&&(other, _)| other == expert);
            in_common.extend(there.map(|&(_, other)| (gpu, other)));
        }
    }
    in_common.sort_unstable();
    let mut counted: Vec<(usize, usize, usize)> =
        in_common.chunk_by(|a, b| a == b).map(|pairs| (pairs.len(), pairs[0].0, pairs[0].1)).collect();
    counted.sort_by(|a, b| b.0.cmp(&a.0).then(a.cmp(b)));
    let (mut is_placed, mut is_taken) = (vec![false; cluster.num_gpus()], vec![false; cluster.num_gpus()]);
    let mut becomes = Vec::with_capacity(gpus.len());
    for (_, gpu, other) in counted {
        if !is_placed[gpu] && !is_taken[other] {
            (is_placed[gpu], is_taken[other]) = (true, true);
            becomes.push((gpu, other));
        }
    }
    let placed = gpus.iter().copied().filter(|&gpu| !is_placed[gpu]);
    let free = gpus.iter().copied().filter(|&gpu| !is_taken[gpu]);
    becomes.extend(placed.zip(free));
    becomes
}

/// Reorders the slots of each GPU: an expert that was in one of them is in the same again.
pub(super) fn keep_slots(cluster: &Cluster, before: &[u32], placement: &mut [u32]) {
    for gpu in cluster.live_gpus() {
        let slots = cluster.slots(gpu);
        for slot in slots.clone() {
            if placement[slot] == before[slot] {
                continue;
            }
            let is_misplaced =
                |&other: &usize| placement[other] == before[slot] && before[other] != before[slot];
            if let Some(other) = slots.clone().find(is_misplaced) {
                placement.swap(slot, other);
            }
        }
    }
}
