//! Staging buffers: on which GPUs, and what is in them.
//!
//! A closed cycle is staged on the GPU to which the staged expert goes, so that it costs no transfer more. The fewest
//! buffers are wanted, so that cycles that share a GPU share its only buffer, one after the other, and layers do
//! too: a GPU that has one already is taken, otherwise the one that most of the layer's cycles pass through. That a
//! GPU never needs more than one is exact; that few GPUs need one is this greedy's.

use super::needs::{reset, Needs};
use crate::balance::cluster::Cluster;

/// The buffers of all GPUs.
pub(super) struct Buffers {
    per_gpu: usize,
    /// `[num_gpus]`: buffers that are needed at once, in any layer so far.
    needed: Vec<u32>,
    /// `[num_gpus]`: for each buffer what it is for.
    contents: Vec<Vec<Content>>,
    /// `[num_slots]`: the buffer that has what a slot wants.
    buffer_of_slot: Vec<u32>,
    /// `[num_slots]`: whether a slot's expert is the one of its cycle that is staged.
    is_chosen: Vec<bool>,
    /// `[num_gpus]`: how many of a layer's cycles pass through a GPU, and the last one that was counted.
    num_cycles: Vec<u32>,
    counted: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Content {
    Expert,
    /// Since the round in which it was read.
    Free(u32),
}

const NOT_STAGED: u32 = u32::MAX;

impl Buffers {
    /// `per_gpu`: how many a GPU may use to save rounds.
    pub(super) fn new(num_gpus: usize, per_gpu: usize) -> Buffers {
        Buffers {
            per_gpu,
            needed: vec![0; num_gpus],
            contents: vec![Vec::new(); num_gpus],
            buffer_of_slot: Vec::new(),
            is_chosen: Vec::new(),
            num_cycles: Vec::new(),
            counted: Vec::new(),
        }
    }

    pub(super) fn into_needed(self) -> Vec<u32> {
        self.needed
    }

    /// Starts a layer: chooses from each closed cycle the slot whose expert is staged.
    pub(super) fn choose_for_cycles(&mut self, cluster: &Cluster, needs: &Needs) {
        let num_gpus = cluster.num_gpus();
        reset(&mut self.buffer_of_slot, needs.held.len(), NOT_STAGED);
        reset(&mut self.is_chosen, needs.held.len(), false);
        reset(&mut self.num_cycles, num_gpus, 0);
        reset(&mut self.counted, num_gpus, 0);
        self.contents.iter_mut().for_each(|contents| contents.fill(Content::Free(0)));
        let gpu = |slot: u32| cluster.gpu_of_slot()[slot as usize] as usize;
        let starts = || std::iter::once(0).chain(needs.cycle_ends.iter().copied());
        let cycles = || starts().zip(&needs.cycle_ends).map(|(start, &end)| start as usize..end as usize);
        for (cycle, slots) in cycles().enumerate() {
            for &slot in &needs.cycle_slots[slots] {
                let last = std::mem::replace(&mut self.counted[gpu(slot)], cycle as u32 + 1);
                self.num_cycles[gpu(slot)] += u32::from(last != cycle as u32 + 1);
            }
        }
        for slots in cycles() {
            let cost = |slot: u32| {
                (self.needed[gpu(slot)] == 0, std::cmp::Reverse(self.num_cycles[gpu(slot)]), slot)
            };
            if let Some(&slot) = needs.cycle_slots[slots].iter().min_by_key(|&&slot| cost(slot)) {
                self.is_chosen[slot as usize] = true;
                self.needed[gpu(slot)] = self.needed[gpu(slot)].max(1);
            }
        }
    }

    pub(super) fn is_chosen(&self, slot: usize) -> bool {
        self.is_chosen[slot]
    }

    /// Whether what a slot wants may be staged at all.
    pub(super) fn may_stage(&self, slot: usize) -> bool {
        self.per_gpu > 0 || self.is_chosen[slot]
    }

    /// The buffer that has what a slot wants.
    pub(super) fn of_slot(&self, slot: usize) -> Option<usize> {
        let buffer = self.buffer_of_slot[slot];
        (buffer != NOT_STAGED).then_some(buffer as usize)
    }

    /// A buffer that may be written in a round.
    pub(super) fn free_buffer(&mut self, gpu: usize, round: u32) -> Option<usize> {
        let contents = &mut self.contents[gpu];
        let is_free = |content: &Content| matches!(content, Content::Free(since) if *since < round);
        let free = contents.iter().position(is_free);
        if free.is_none() && contents.len() < self.per_gpu.max(1) {
            contents.push(Content::Free(0));
            return Some(contents.len() - 1);
        }
        free
    }

    pub(super) fn fill(&mut self, gpu: usize, buffer: usize, slot: usize) {
        self.contents[gpu][buffer] = Content::Expert;
        self.buffer_of_slot[slot] = buffer as u32;
        self.needed[gpu] = self.needed[gpu].max(buffer as u32 + 1);
    }

    pub(super) fn empty(&mut self, gpu: usize, buffer: usize, slot: usize, round: u32) {
        self.contents[gpu][buffer] = Content::Free(round);
        self.buffer_of_slot[slot] = NOT_STAGED;
    }
}
