//! Who holds an expert during a layer's rounds, and who still wants it: counted for each GPU and for each node.
//!
//! The slots that hold or want an expert are listed by node and GPU (`Needs::entries`). A group is a stretch of
//! that list: an expert's slots on one GPU, or on one node. Its counts say in `O(1)` how far away the nearest source
//! is, and whether a slot is the last one near somebody who still waits for its expert.

use super::needs::{reset, Needs};
use crate::balance::cluster::{Cluster, EMPTY};

/// An expert's slots on one GPU or node.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// Where its entries begin and end.
    pub(super) first: u32,
    pub(super) end: u32,
    /// Where the next search for a source begins, so that all sources get their turn.
    pub(super) next: u32,
    /// Slots that hold the expert, without those that are being overwritten.
    pub(super) holders: u32,
    /// Slots that want it and have not been written, nor have it in a buffer.
    pub(super) left: u32,
    /// The last round in which it came from outside.
    pub(super) imported: u32,
    /// The last round in which a search found nothing; until it ends no other will.
    pub(super) exhausted: u32,
}

/// Room for the groups of one layer.
#[derive(Default)]
pub(super) struct Stock {
    pub(super) on_gpu: Vec<Group>,
    pub(super) on_node: Vec<Group>,
    /// `[num_experts]`: all slots of an expert.
    pub(super) anywhere: Vec<Group>,
    /// `[num_slots]`: the group on its GPU and the one on its node, of the expert that the slot holds at first.
    pub(super) of_held: Vec<[u32; 2]>,
    /// `[num_slots]`: the same of the expert that it wants.
    pub(super) of_wanted: Vec<[u32; 2]>,
}

impl Stock {
    pub(super) fn count(&mut self, cluster: &Cluster, needs: &Needs) {
        let num_slots = cluster.num_slots();
        self.on_gpu.clear();
        self.on_node.clear();
        self.anywhere.clear();
        reset(&mut self.of_held, num_slots, [0; 2]);
        reset(&mut self.of_wanted, num_slots, [0; 2]);
        for (expert, bounds) in needs.first.windows(2).enumerate() {
            let (mut gpu_before, mut node_before) = (EMPTY, EMPTY);
            let mut all = Group::starting(bounds[0]);
            for entry in bounds[0]..bounds[1] {
                let slot = needs.entries[entry as usize] as usize;
                let gpu = cluster.gpu_of_slot()[slot];
                let node = cluster.node_of_gpu()[gpu as usize];
                if gpu != gpu_before {
                    self.on_gpu.push(Group::starting(entry));
                    gpu_before = gpu;
                }
                if node != node_before {
                    self.on_node.push(Group::starting(entry));
                    node_before = node;
                }
                let is_held = needs.held[slot] == expert as u32;
                let groups = [self.on_gpu.len() as u32 - 1, self.on_node.len() as u32 - 1];
                let of_slot = if is_held { &mut self.of_held } else { &mut self.of_wanted };
                of_slot[slot] = groups;
                let [gpu_group, node_group] = groups.map(|group| group as usize);
                for group in [&mut self.on_gpu[gpu_group], &mut self.on_node[node_group], &mut all] {
                    group.end = entry + 1;
                    group.holders += u32::from(is_held);
                    group.left += u32::from(!is_held);
                }
            }
            self.anywhere.push(all);
        }
    }

    /// A slot, which wanted this expert, has got it, or a buffer has it for the slot.
    pub(super) fn arrived(&mut self, slot: usize, expert: u32) {
        for group in self.groups(self.of_wanted[slot], expert) {
            group.left -= 1;
        }
    }

    /// A slot holds this expert from now on.
    pub(super) fn written(&mut self, slot: usize, expert: u32) {
        for group in self.groups(self.of_wanted[slot], expert) {
            group.holders += 1;
        }
    }

    /// A slot is being overwritten.
    pub(super) fn overwritten(&mut self, slot: usize, held: u32) {
        if held != EMPTY {
            for group in self.groups(self.of_held[slot], held) {
                group.holders -= 1;
            }
        }
    }

    /// The expert that a slot wants comes to its GPU, and perhaps node, from outside.
    pub(super) fn imported(&mut self, slot: usize, round: u32) {
        let [gpu, node] = self.of_wanted[slot].map(|group| group as usize);
        self.on_gpu[gpu].imported = round;
        self.on_node[node].imported = round;
    }

    /// Whether overwriting a slot would make somebody fetch its expert from farther away.
    pub(super) fn is_last_near(&self, slot: usize, held: u32) -> bool {
        if held == EMPTY || self.anywhere[held as usize].left == 0 {
            return false;
        }
        let [gpu, node] = self.of_held[slot].map(|group| group as usize);
        let is_last = |group: &Group| group.left > 0 && group.holders == 1;
        is_last(&self.on_gpu[gpu]) || is_last(&self.on_node[node])
    }

    fn groups(&mut self, [gpu, node]: [u32; 2], expert: u32) -> [&mut Group; 3] {
        [
            &mut self.on_gpu[gpu as usize],
            &mut self.on_node[node as usize],
            &mut self.anywhere[expert as usize],
        ]
    }
}

impl Group {
    fn starting(first: u32) -> Group {
        Group { first, end: first, next: first, holders: 0, left: 0, imported: 0, exhausted: 0 }
    }
}
