//! What a layer's slots wait for, and in which order they can be written with the fewest staging buffers.
//!
//! A slot is *wanted* if it must get an expert that it does not hold. An expert is *pending* if some slot wants it and
//! each slot that holds it is wanted by another: then one of these slots must stay as it is until a first wanted slot
//! has been written, from which the others can be. It is enough to **reserve** one, any other slot of the expert may be
//! overwritten at once. Which one decides whether there is a deadlock. Let a pending expert a wait for c if a wants a
//! slot that c holds.
//!
//! 1. An expert that wants a slot of no pending expert can be written, and so can, one after the other, all that wait
//!    for it (`spread`).
//! 2. Of the rest, each expert waits for others of the rest only, so that following what they wait for leads into
//!    cycles. If an expert c of a cycle is held in more than one slot, reserving one that is not of the cycle opens it:
//!    who waits for c in the cycle is written, then all of the cycle, then all that wait for it.
//! 3. Where every expert of a cycle is held in one slot, nobody else waits for the cycle. If one of them is wanted
//!    elsewhere too, following that leads to another cycle. If none is, nobody helps: the cycle is closed and needs a
//!    staging buffer for one of its experts, and one is enough.
//!
//! So the closed cycles are exactly those of experts that move from a single slot to a single slot, and one buffer for
//! each, used one after the other or at once, is what no order of writing can save. `O(experts + slots)`.

use crate::balance::cluster::{Cluster, EMPTY};

use super::LostExpert;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Room for one layer's needs.
#[derive(Default)]
pub(super) struct Needs {
    /// `[num_slots]`: what is held now, [`EMPTY`] on dead GPUs.
    pub(super) held: Vec<u32>,
    /// `[num_slots]`: what must be copied in, [`EMPTY`] if nothing.
    pub(super) wanted: Vec<u32>,
    /// `[num_experts + 1]`: where an expert's part of `entries` begins.
    pub(super) first: Vec<u32>,
    /// The slots that hold or want an expert, by node and slot, expert after expert.
    pub(super) entries: Vec<u32>,
    /// `[num_experts]`: slots that hold the expert before the first round.
    pub(super) num_held: Vec<u32>,
    /// `[num_experts]`: slots that want it.
    pub(super) num_wanted: Vec<u32>,
    /// `[num_experts]`: for a pending expert the slot that is not overwritten before it is written elsewhere.
    pub(super) reserved: Vec<u32>,
    /// The slots of the closed cycles: the expert of a slot goes to the next one of its cycle.
    pub(super) cycle_slots: Vec<u32>,
    /// Where each cycle ends in `cycle_slots`.
    pub(super) cycle_ends: Vec<u32>,
    /// The live slots by node, then by number; the same for each layer.
    slots_by_node: Vec<u32>,
    /// `[num_experts]`: not pending, or can be written.
    done: Vec<bool>,
    /// Slots that may be overwritten and were not looked at.
    open: Vec<u32>,
    /// Experts that wait for one another, and of each where it stands here; scratch of `open_cycle`.
    path: Vec<u32>,
    place_in_path: Vec<u32>,
    /// `[num_experts]`: the entry that is followed from an expert.
    followed: Vec<u32>,
}

impl Needs {
    pub(super) fn new(cluster: &Cluster, num_experts: usize) -> Needs {
        let is_live = |slot: &u32| cluster.is_alive(cluster.gpu_of_slot()[*slot as usize] as usize);
        let mut slots_by_node: Vec<u32> = (0..cluster.num_slots() as u32).filter(is_live).collect();
        slots_by_node
            .sort_by_key(|&slot| cluster.node_of_gpu()[cluster.gpu_of_slot()[slot as usize] as usize]);
        Needs { slots_by_node, place_in_path: vec![NONE; num_experts], ..Needs::default() }
    }

    /// The needs of a layer; what has no source is added to `lost`.
    pub(super) fn find(&mut self, layer: u32, from: &[u32], to: &[u32], lost: &mut Vec<LostExpert>) {
        let num_experts = self.place_in_path.len();
        reset(&mut self.held, from.len(), EMPTY);
        reset(&mut self.wanted, from.len(), EMPTY);
        reset(&mut self.num_held, num_experts, 0);
        reset(&mut self.num_wanted, num_experts, 0);
        for &slot in &self.slots_by_node {
            let expert = from[slot as usize];
            if expert != EMPTY {
                self.held[slot as usize] = expert;
                self.num_held[expert as usize] += 1;
            }
        }
        let lost_before = lost.len();
        for &slot in &self.slots_by_node {
            let expert = to[slot as usize];
            if expert == EMPTY || expert == self.held[slot as usize] {
                continue;
            }
            if self.num_held[expert as usize] == 0 {
                lost.push(LostExpert { layer, expert, slot });
            } else {
                self.wanted[slot as usize] = expert;
                self.num_wanted[expert as usize] += 1;
            }
        }
        lost[lost_before..].sort_unstable_by_key(|lost| lost.slot);
        self.list_entries(num_experts);
        self.reserve(num_experts);
    }

    fn list_entries(&mut self, num_experts: usize) {
        reset(&mut self.first, num_experts + 1, 0);
        let mut sum = 0;
        for expert in 0..num_experts {
            // Where the next entry of the expert goes; when all are there, where those of the next expert begin.
            self.first[expert + 1] = sum;
            sum += self.num_held[expert] + self.num_wanted[expert];
        }
        reset(&mut self.entries, sum as usize, 0);
        for &slot in &self.slots_by_node {
            for expert in [self.held[slot as usize], self.wanted[slot as usize]] {
                if expert != EMPTY {
                    let next = &mut self.first[expert as usize + 1];
                    self.entries[*next as usize] = slot;
                    *next += 1;
                }
            }
        }
    }

    pub(super) fn entries_of(&self, expert: u32) -> &[u32] {
        let expert = expert as usize;
        &self.entries[self.first[expert] as usize..self.first[expert + 1] as usize]
    }

    /// Before the first round only, as is all below.
    fn holders(&self, expert: u32) -> impl Iterator<Item = u32> + '_ {
        self.entries_of(expert).iter().copied().filter(move |&slot| self.held[slot as usize] == expert)
    }

    fn is_kept(&self, slot: u32) -> bool {
        self.wanted[slot as usize] == EMPTY
    }

    fn reserve(&mut self, num_experts: usize) {
        reset(&mut self.reserved, num_experts, NONE);
        reset(&mut self.done, num_experts, true);
        reset(&mut self.followed, num_experts, 0);
        self.cycle_slots.clear();
        self.cycle_ends.clear();
        for expert in 0..num_experts as u32 {
            let is_kept =
                self.num_wanted[expert as usize] == 0 || self.holders(expert).any(|s| self.is_kept(s));
            self.done[expert as usize] = is_kept;
        }
        let is_pending: Vec<u32> = (0..num_experts as u32).filter(|&e| !self.done[e as usize]).collect();
        for slot in 0..self.held.len() as u32 {
            let held = self.held[slot as usize];
            if !self.is_kept(slot) && (held == EMPTY || self.done[held as usize]) {
                self.open.push(slot);
            }
        }
        self.spread();
        self.find_closed_cycles(&is_pending);
        for &expert in &is_pending {
            if !self.done[expert as usize] {
                self.open_cycle(expert);
            }
        }
        for &expert in &is_pending {
            if self.reserved[expert as usize] == NONE {
                // Best a slot for whose next expert nobody waits: keeping it delays nobody else.
                let has_no_chain = |&slot: &u32| !is_pending_sorted(&is_pending, self.wanted[slot as usize]);
                let reserved =
                    self.holders(expert).find(has_no_chain).or_else(|| self.holders(expert).next());
                self.reserved[expert as usize] = reserved.unwrap_or(NONE);
            }
        }
    }

    /// Writes all that can be once the slots of `open` may be overwritten.
    fn spread(&mut self) {
        while let Some(slot) = self.open.pop() {
            let expert = self.wanted[slot as usize];
            if !std::mem::replace(&mut self.done[expert as usize], true) {
                for entry in self.first[expert as usize]..self.first[expert as usize + 1] {
                    let slot = self.entries[entry as usize];
                    if self.held[slot as usize] == expert {
                        self.open.push(slot);
                    }
                }
            }
        }
    }

    fn moves_once(&self, expert: u32) -> bool {
        self.num_held[expert as usize] == 1 && self.num_wanted[expert as usize] == 1
    }

    fn find_closed_cycles(&mut self, pending: &[u32]) {
        for &start in pending {
            // `followed` says with which expert a walk began that came by.
            let mut expert = start;
            let first_slot = self.cycle_slots.len();
            while !self.done[expert as usize]
                && self.moves_once(expert)
                && self.followed[expert as usize] == 0
            {
                self.followed[expert as usize] = start + 1;
                // Backwards: who waits for this expert.
                let slot = self.holders(expert).next().unwrap_or(NONE);
                self.cycle_slots.push(slot);
                expert = self.wanted[slot as usize];
            }
            if self.cycle_slots.len() == first_slot || expert != start {
                self.cycle_slots.truncate(first_slot);
                continue;
            }
            self.cycle_slots[first_slot..].reverse();
            self.cycle_ends.push(self.cycle_slots.len() as u32);
            for place in first_slot..self.cycle_slots.len() {
                let slot = self.cycle_slots[place];
                let expert = self.held[slot as usize];
                self.reserved[expert as usize] = slot;
                self.done[expert as usize] = true;
            }
        }
    }

    /// Follows what `start` waits for into a cycle that is not closed, and opens it; then `start` is done.
    fn open_cycle(&mut self, start: u32) {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        path.push(start);
        self.place_in_path[start as usize] = 0;
        self.followed[start as usize] = self.first[start as usize];
        let mut expert = start;
        while let Some(slot) = self.follow(expert) {
            let next = self.held[slot as usize];
            let place = self.place_in_path[next as usize];
            if place == NONE {
                self.place_in_path[next as usize] = path.len() as u32;
                self.followed[next as usize] = self.first[next as usize];
                path.push(next);
                expert = next;
                continue;
            }
            let cycle = place as usize..path.len();
            let several = cycle.clone().find(|&place| self.num_held[path[place] as usize] > 1);
            if let Some(place) = several {
                let opened = path[place];
                let before = if place == cycle.start { cycle.end - 1 } else { place - 1 };
                let waits_for = self.entries[self.followed[path[before] as usize] as usize];
                let other = self.holders(opened).find(|&slot| slot != waits_for);
                self.reserved[opened as usize] = other.unwrap_or(NONE);
                self.open.push(waits_for);
                self.spread();
                break;
            }
            // Nobody outside waits for this cycle, so it is the whole path; one of it is wanted elsewhere too.
            let Some(place) = path.iter().position(|&e| self.num_wanted[e as usize] > 1) else {
                break; // a closed cycle: not here
            };
            path.rotate_left(place + 1);
            for (place, &expert) in path.iter().enumerate() {
                self.place_in_path[expert as usize] = place as u32;
            }
            expert = path[path.len() - 1];
            self.followed[expert as usize] += 1;
        }
        for &expert in &path {
            self.place_in_path[expert as usize] = NONE;
        }
        self.path = path;
    }

    /// The next slot, from `followed` on, that the expert wants.
    fn follow(&mut self, expert: u32) -> Option<u32> {
        let end = self.first[expert as usize + 1];
        let followed = &mut self.followed[expert as usize];
        while *followed < end {
            let slot = self.entries[*followed as usize];
            if self.wanted[slot as usize] == expert {
                return Some(slot);
            }
            *followed += 1;
        }
        None
    }
}

fn is_pending_sorted(pending: &[u32], expert: u32) -> bool {
    pending.binary_search(&expert).is_ok()
}

/// `[value; len]`, in the room that is there.
pub(super) fn reset<T: Copy>(values: &mut Vec<T>, len: usize, value: T) {
    values.clear();
    values.resize(len, value);
}
