//! The rounds of one layer: a greedy list schedule.
//!
//! Each round takes the wanted slots that may be overwritten, longest chain of waiting slots first, and gives each the
//! nearest source that still may send: the GPU itself, then the node, then anywhere. Nobody fetches from outside what
//! is being fetched to its GPU or node in the same round, and the last source near somebody who waits is kept for him:
//! so each node gets an expert over a link once, and each GPU once. Where that would stop everything, it is given up
//! for one copy; safety is not, which the reserved slots of [`Needs`] are for.
//!
//! A staging buffer takes an expert whose slot may not be overwritten yet. Without buffers to save rounds with, that is
//! only the one expert of each closed cycle that `Staging` has chosen.
//!
//! In a round a GPU tries at most [`LOOKS`] slots per copy that it may receive, so that a layer costs
//! `O(copies log slots + rounds * GPUs * LOOKS)` however large it is.

use std::collections::{BTreeMap, BinaryHeap};

use super::needs::{reset, Needs, NONE};
use super::staging::Buffers;
use super::stock::{Group, Stock};
use super::{ExpertCopy, Link, TransferOptions};
use crate::balance::cluster::{Cluster, EMPTY};
use crate::error::{Error, ErrorKind, Result};

const LOOKS: usize = 32;
/// Of so many sources that may send the one is taken that has the least to send.
const SOURCES: usize = 4;

/// Room to schedule a layer.
pub(super) struct Rounds<'a> {
    cluster: &'a Cluster,
    options: &'a TransferOptions<'a>,
    pub(super) needs: Needs,
    pub(super) stock: Stock,
    pub(super) buffers: Buffers,
    layer: u32,
    round: u32,
    /// `[num_slots]`: the last round in which a slot was read, and was written.
    read_in: Vec<u32>,
    written_in: Vec<u32>,
    /// `[num_slots]`: how many slots wait one for another behind this one, which counts too.
    chain: Vec<u32>,
    /// `[num_experts]`: whether a first wanted slot, or a buffer, has it.
    is_safe: Vec<bool>,
    /// `[num_gpus]`
    gpus: Vec<Gpu>,
    /// Copies from node to node of this round.
    over_link: BTreeMap<(u32, u32), usize>,
    candidates: Vec<(u32, u32)>,
}

/// What a GPU does and waits for.
#[derive(Clone, Default)]
struct Gpu {
    sends: usize,
    receives: usize,
    /// Experts that only it can send.
    must_send: u32,
    must_receive: u32,
    /// Wanted slots that may be overwritten, and such as may not but may be staged: longest chain first.
    ready: BinaryHeap<(u32, u32)>,
    stageable: BinaryHeap<(u32, u32)>,
}

/// Whether the last sources near somebody who waits are kept.
#[derive(Clone, Copy, PartialEq)]
enum Care {
    Near,
    OneCopy,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        num_experts: usize,
        options: &'a TransferOptions<'a>,
    ) -> Rounds<'a> {
        Rounds {
            cluster,
            options,
            needs: Needs::new(cluster, num_experts),
            stock: Stock::default(),
            buffers: Buffers::new(cluster.num_gpus(), options.staging_per_gpu),
            layer: 0,
            round: 0,
            read_in: Vec::new(),
            written_in: Vec::new(),
            chain: Vec::new(),
            is_safe: Vec::new(),
            gpus: vec![Gpu::default(); cluster.num_gpus()],
            over_link: BTreeMap::new(),
            candidates: Vec::new(),
        }
    }

    /// Adds the copies of a layer, whose needs and stock are known, and returns the number of rounds.
    pub(super) fn schedule(&mut self, layer: u32, copies: &mut Vec<ExpertCopy>) -> Result<u32> {
        self.layer = layer;
        self.start();
        let mut left: usize = self.needs.num_wanted.iter().map(|&wanted| wanted as usize).sum();
        self.round = 0;
        while left > 0 {
            self.round += 1;
            let first = copies.len();
            self.copy(Care::Near, copies);
            self.stage(copies);
            if copies.len() == first {
                self.copy(Care::OneCopy, copies);
            }
            if copies.len() == first {
                let text = format!("transfers: layer {layer} stops in round {}", self.round - 1);
                return Err(Error::new(ErrorKind::Internal, text));
            }
            left -= self.finish_round(&copies[first..]);
        }
        Ok(self.round)
    }

    fn start(&mut self) {
        let (num_slots, num_experts) = (self.needs.held.len(), self.needs.reserved.len());
        reset(&mut self.read_in, num_slots, 0);
        reset(&mut self.written_in, num_slots, 0);
        reset(&mut self.is_safe, num_experts, false);
        self.buffers.choose_for_cycles(self.cluster, &self.needs);
        self.measure_chains();
        for gpu in &mut self.gpus {
            gpu.must_send = 0;
            gpu.must_receive = 0;
            gpu.ready.clear();
            gpu.stageable.clear();
        }
        for &slot in self.needs.reserved.iter().filter(|&&slot| slot != NONE) {
            self.gpus[self.cluster.gpu_of_slot()[slot as usize] as usize].must_send += 1;
        }
        for slot in 0..num_slots {
            if self.needs.wanted[slot] == EMPTY {
                continue;
            }
            let gpu = &mut self.gpus[self.cluster.gpu_of_slot()[slot] as usize];
            gpu.must_receive += 1;
            let held = self.needs.held[slot];
            if held == EMPTY || self.needs.reserved[held as usize] != slot as u32 {
                gpu.ready.push((self.chain[slot], slot as u32));
            } else if self.buffers.may_stage(slot) {
                gpu.stageable.push((self.chain[slot], slot as u32));
            }
        }
    }

    /// Follows from each slot the reserved slot of the expert it wants: writing the one sets the other free.
    fn measure_chains(&mut self) {
        reset(&mut self.chain, self.needs.held.len(), 0);
        let mut behind: Vec<usize> = Vec::new();
        for start in 0..self.chain.len() {
            let mut slot = start;
            while self.needs.wanted[slot] != EMPTY && self.chain[slot] == 0 {
                // A closed cycle ends where it is staged; where all may be, it is measured from where one begins.
                self.chain[slot] = u32::MAX;
                behind.push(slot);
                let reserved = self.needs.reserved[self.needs.wanted[slot] as usize];
                if reserved == NONE || self.buffers.is_chosen(slot) {
                    break;
                }
                slot = reserved as usize;
            }
            let known = |length: u32| if length == u32::MAX { 0 } else { length };
            let is_end = behind.last() == Some(&slot);
            let mut length = if is_end { 0 } else { known(self.chain[slot]) };
            while let Some(slot) = behind.pop() {
                length += 1;
                self.chain[slot] = length;
            }
        }
    }

    /// Copies to the slots that may be overwritten.
    fn copy(&mut self, care: Care, copies: &mut Vec<ExpertCopy>) {
        let looks = self.options.receives_per_gpu.saturating_mul(LOOKS);
        let mut candidates = std::mem::take(&mut self.candidates);
        for gpu in &mut self.gpus {
            for _ in 0..looks.min(gpu.ready.len()) {
                if let Some((chain, slot)) = gpu.ready.pop() {
                    let receives_left = gpu.must_receive / self.options.receives_per_gpu as u32;
                    candidates.push((chain.max(receives_left), slot));
                }
            }
        }
        candidates.sort_unstable_by(|a, b| (b.0, a.1).cmp(&(a.0, b.1)));
        let first = copies.len();
        for (_, slot) in candidates.drain(..) {
            let gpu = self.cluster.gpu_of_slot()[slot as usize] as usize;
            let is_done = care == Care::OneCopy && copies.len() > first;
            match if is_done { None } else { self.source_for_slot(slot as usize, care) } {
                Some(from) => self.commit(from, slot, slot as usize, copies),
                None => self.gpus[gpu].ready.push((self.chain[slot as usize], slot)),
            }
        }
        self.candidates = candidates;
    }

    /// From where a slot that may be overwritten can be written in this round: a slot, or from `num_slots` on a buffer.
    fn source_for_slot(&mut self, slot: usize, care: Care) -> Option<u32> {
        let held = self.needs.held[slot];
        if self.read_in[slot] == self.round || (care == Care::Near && self.stock.is_last_near(slot, held)) {
            return None;
        }
        match self.buffers.of_slot(slot) {
            Some(buffer) => Some((self.needs.held.len() + buffer) as u32),
            None => self.nearest_source(slot),
        }
    }

    /// Stages what cannot go to its slot yet.
    fn stage(&mut self, copies: &mut Vec<ExpertCopy>) {
        for gpu in 0..self.gpus.len() {
            let mut looks = LOOKS.min(self.gpus[gpu].stageable.len());
            let mut waiting = Vec::new();
            while looks > 0 {
                looks -= 1;
                let Some((chain, slot)) = self.gpus[gpu].stageable.pop() else {
                    break;
                };
                let held = self.needs.held[slot as usize];
                if self.written_in[slot as usize] > 0 || self.is_safe[held as usize] {
                    continue; // it need not be staged any more
                }
                let buffer = self.buffers.free_buffer(gpu, self.round);
                match buffer.and_then(|buffer| Some((buffer, self.nearest_source(slot as usize)?))) {
                    Some((buffer, from)) => {
                        self.buffers.fill(gpu, buffer, slot as usize);
                        self.commit(from, (self.needs.held.len() + buffer) as u32, slot as usize, copies);
                    }
                    None => waiting.push((chain, slot)),
                }
            }
            self.gpus[gpu].stageable.extend(waiting);
        }
    }

    /// A slot to copy from what `slot` wants, so that no limit is exceeded.
    fn nearest_source(&mut self, slot: usize) -> Option<u32> {
        let expert = self.needs.wanted[slot];
        let [gpu_group, node_group] = self.stock.of_wanted[slot].map(|group| group as usize);
        let on_gpu = self.stock.on_gpu[gpu_group];
        if on_gpu.holders > 0 {
            let (from, next) = self.search(on_gpu, expert, slot, Link::SameGpu)?;
            self.stock.on_gpu[gpu_group].next = next;
            return Some(from);
        }
        let gpu = self.cluster.gpu_of_slot()[slot] as usize;
        if on_gpu.imported == self.round || self.gpus[gpu].receives >= self.options.receives_per_gpu {
            return None;
        }
        let on_node = self.stock.on_node[node_group];
        let (group, link) = match on_node.holders {
            0 if on_node.imported == self.round => return None,
            0 => (self.stock.anywhere[expert as usize], Link::OtherNode),
            _ => (on_node, Link::SameNode),
        };
        if group.exhausted == self.round {
            return None;
        }
        let found = self.search(group, expert, slot, link);
        let group = match link {
            Link::OtherNode => &mut self.stock.anywhere[expert as usize],
            _ => &mut self.stock.on_node[node_group],
        };
        match found {
            Some((_, next)) => group.next = next,
            // A link may be full for one node only.
            None if link == Link::SameNode || self.options.copies_per_node_link == 0 => {
                group.exhausted = self.round
            }
            None => {}
        }
        found.map(|(from, _)| from)
    }

    /// Of the first few slots of a group that may be read the one whose GPU has least to send; and where to go on.
    fn search(&self, group: Group, expert: u32, to: usize, link: Link) -> Option<(u32, u32)> {
        let node = |slot: usize| self.cluster.node_of_gpu()[self.cluster.gpu_of_slot()[slot] as usize];
        let mut best: Option<(u32, u32, u32)> = None;
        let mut found = 0;
        for entry in (group.next..group.end).chain(group.first..group.next) {
            let slot = self.needs.entries[entry as usize];
            let index = slot as usize;
            if self.needs.held[index] != expert || self.written_in[index] == self.round {
                continue;
            }
            let gpu = &self.gpus[self.cluster.gpu_of_slot()[index] as usize];
            if link != Link::SameGpu {
                if gpu.sends >= self.options.sends_per_gpu {
                    continue;
                }
                if link == Link::OtherNode && !self.has_room(node(index), node(to)) {
                    continue;
                }
            }
            let next = if entry + 1 == group.end { group.first } else { entry + 1 };
            if best.is_none_or(|(must_send, ..)| gpu.must_send < must_send) {
                best = Some((gpu.must_send, slot, next));
            }
            found += 1;
            if found == SOURCES || link == Link::SameGpu {
                break;
            }
        }
        best.map(|(_, slot, next)| (slot, next))
    }

    fn has_room(&self, from: u32, to: u32) -> bool {
        let most = self.options.copies_per_node_link;
        most == 0 || self.over_link.get(&(from, to)).is_none_or(|&copies| copies < most)
    }

    /// A copy of what `slot` wants, into it or a buffer of its GPU.
    fn commit(&mut self, from: u32, to: u32, slot: usize, copies: &mut Vec<ExpertCopy>) {
        let num_slots = self.needs.held.len();
        let to_gpu = self.cluster.gpu_of_slot()[slot];
        let from_gpu = match self.cluster.gpu_of_slot().get(from as usize) {
            Some(&gpu) => gpu,
            None => to_gpu,
        };
        let link = Link::between(self.cluster, from_gpu as usize, to_gpu as usize);
        if link != Link::SameGpu {
            self.gpus[from_gpu as usize].sends += 1;
            self.gpus[to_gpu as usize].receives += 1;
            self.stock.imported(slot, self.round);
        }
        if link == Link::OtherNode && self.options.copies_per_node_link > 0 {
            let node = |gpu: u32| self.cluster.node_of_gpu()[gpu as usize];
            *self.over_link.entry((node(from_gpu), node(to_gpu))).or_insert(0) += 1;
        }
        match self.read_in.get_mut(from as usize) {
            Some(read_in) => *read_in = self.round,
            None => self.buffers.empty(to_gpu as usize, from as usize - num_slots, slot, self.round),
        }
        let expert = self.needs.wanted[slot];
        if (from as usize) < num_slots {
            self.stock.arrived(slot, expert);
        }
        if to as usize == slot {
            self.written_in[slot] = self.round;
            self.stock.overwritten(slot, self.needs.held[slot]);
        }
        copies.push(ExpertCopy {
            layer: self.layer,
            round: self.round - 1,
            expert,
            from_gpu,
            from,
            to_gpu,
            to,
            link,
        });
    }

    /// What has been copied is there from now on. Returns how many slots have been written.
    fn finish_round(&mut self, copies: &[ExpertCopy]) -> usize {
        let mut num_written = 0;
        for copy in copies {
            let (to, expert) = (copy.to as usize, copy.expert as usize);
            if to < self.needs.held.len() {
                self.stock.written(to, copy.expert);
                self.needs.held[to] = copy.expert;
                self.gpus[copy.to_gpu as usize].must_receive -= 1;
                num_written += 1;
            }
            let reserved = self.needs.reserved[expert];
            if !std::mem::replace(&mut self.is_safe[expert], true) && reserved != NONE {
                let gpu = &mut self.gpus[self.cluster.gpu_of_slot()[reserved as usize] as usize];
                gpu.must_send -= 1;
                gpu.ready.push((self.chain[reserved as usize], reserved));
            }
        }
        for copy in copies {
            self.gpus[copy.from_gpu as usize].sends = 0;
            self.gpus[copy.to_gpu as usize].receives = 0;
        }
        self.over_link.clear();
        num_written
    }
}
