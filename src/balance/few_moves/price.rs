//! What it costs to have an expert on a GPU, by where it was.

use super::{MoveCost, MovePrices};
use crate::balance::cluster::{Cluster, EMPTY};

/// The placement of a layer that is to be changed, looked up by expert.
pub(super) struct Before<'a> {
    cluster: &'a Cluster,
    prices: MovePrices,
    /// `[num_slots]`: what each slot held; [`EMPTY`] on dead GPUs.
    slots: Vec<u32>,
    /// `[num_experts + 1]`: where an expert's part of `gpus` begins.
    first: Vec<u32>,
    /// The GPUs of the slots that held an expert, expert after expert.
    gpus: Vec<u32>,
}

/// From how far an expert must come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    SameGpu,
    SameNode,
    OtherNode,
    Nowhere,
}

impl<'a> Before<'a> {
    pub(super) fn new(cluster: &'a Cluster, num_experts: usize, prices: MovePrices) -> Before<'a> {
        let (slots, first, gpus) = (Vec::new(), vec![0; num_experts + 1], Vec::new());
        Before { cluster, prices, slots, first, gpus }
    }

    /// `[num_slots]`; what is on dead GPUs or is no expert counts as nothing.
    pub(super) fn start(&mut self, current: &[u32]) {
        let num_experts = self.first.len() - 1;
        let gpu_of_slot = self.cluster.gpu_of_slot();
        self.slots.clear();
        self.slots.extend(current.iter().zip(gpu_of_slot).map(|(&expert, &gpu)| {
            let is_held = (expert as usize) < num_experts && self.cluster.is_alive(gpu as usize);
            if is_held {
                expert
            } else {
                EMPTY
            }
        }));
        self.first.fill(0);
        for &expert in self.slots.iter().filter(|&&expert| expert != EMPTY) {
            self.first[expert as usize + 1] += 1;
        }
        let mut sum = 0;
        for first in &mut self.first[1..] {
            // Where the next GPU of this expert goes; after all, where the next expert begins.
            sum += std::mem::replace(first, sum);
        }
        self.gpus.clear();
        self.gpus.resize(sum as usize, 0);
        for (&expert, &gpu) in self.slots.iter().zip(gpu_of_slot) {
            if expert != EMPTY {
                let next = &mut self.first[expert as usize + 1];
                self.gpus[*next as usize] = gpu;
                *next += 1;
            }
        }
    }

    pub(super) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// `[num_slots]`
    pub(super) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// From where an expert comes to a GPU. `O(replicas)`.
    pub(super) fn origin(&self, gpu: usize, expert: u32) -> Origin {
        let node = self.cluster.node_of_gpu()[gpu];
        let gpus = self.first[expert as usize] as usize..self.first[expert as usize + 1] as usize;
        let mut origin = Origin::Nowhere;
        for &other in &self.gpus[gpus] {
            if other as usize == gpu {
                return Origin::SameGpu;
            }
            if self.cluster.node_of_gpu()[other as usize] == node {
                origin = Origin::SameNode;
            } else if origin == Origin::Nowhere {
                origin = Origin::OtherNode;
            }
        }
        origin
    }

    /// What it costs to have an expert on a GPU.
    pub(super) fn price(&self, gpu: usize, expert: u32) -> f64 {
        match self.origin(gpu, expert) {
            Origin::SameGpu => 0.0,
            Origin::SameNode => self.prices.same_node,
            Origin::OtherNode | Origin::Nowhere => self.prices.other_node,
        }
    }

    /// `[num_gpus]`: what it costs to have an expert on each GPU. `O(GPUs * replicas)`.
    pub(super) fn prices(&self, expert: u32, prices: &mut Vec<f64>) {
        prices.clear();
        prices.resize(self.cluster.num_gpus(), self.prices.other_node);
        let gpus = self.first[expert as usize] as usize..self.first[expert as usize + 1] as usize;
        let gpus = &self.gpus[gpus];
        let node_of_gpu = self.cluster.node_of_gpu();
        for (gpu, price) in prices.iter_mut().enumerate() {
            if gpus.iter().any(|&other| node_of_gpu[other as usize] == node_of_gpu[gpu]) {
                *price = self.prices.same_node;
            }
        }
        for &gpu in gpus {
            prices[gpu as usize] = 0.0;
        }
    }

    /// What a whole placement costs.
    pub(super) fn cost(&self, slot_to_expert: &[u32]) -> MoveCost {
        let mut cost = MoveCost::default();
        for (slot, &expert) in slot_to_expert.iter().enumerate() {
            if expert == EMPTY {
                continue;
            }
            match self.origin(self.cluster.gpu_of_slot()[slot] as usize, expert) {
                Origin::SameGpu => cost.same_gpu += usize::from(self.slots[slot] != expert),
                Origin::SameNode => cost.same_node += 1,
                Origin::OtherNode => cost.other_node += 1,
                Origin::Nowhere => cost.lost += 1,
            }
        }
        cost.moves = cost.same_node + cost.other_node + cost.lost;
        cost.price = cost.same_node as f64 * self.prices.same_node
            + (cost.other_node + cost.lost) as f64 * self.prices.other_node;
        cost
    }
}
