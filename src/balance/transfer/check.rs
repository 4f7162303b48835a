//! Whether a transfer plan is right: it is replayed from the placement that it starts with.
//!
//! Of each slot and staging buffer the replay knows what it holds and when it was last read and written. It shares no
//! code with what makes plans, only their types. `O(slots + copies)` a layer, times a logarithm with a limit on links.

use std::collections::BTreeMap;

use super::{check_placements, ExpertCopy, Link, LinkCounts, LostExpert, TransferOptions, TransferPlan};
use crate::balance::cluster::{Cluster, EMPTY};
use crate::error::{Error, ErrorKind, Result};

/// Whether `plan` leads from placement `from` to placement `to`, `[num_layers, num_slots]` both, within the limits of
/// `options`: every copy reads a slot or buffer that holds its expert since an earlier round, nothing is read and
/// written in the same round, no GPU or link does more than it may, dead GPUs do nothing, no slot is touched that holds
/// what it should or should hold nothing, and in the end every slot holds what it should. Counts, rounds, buffers and
/// the list of the lost must be as they are said to be.
///
/// # Errors
///
/// `InvalidArgument` as for [`transfers`](super::transfers()); `InvalidSchedule` with the first fault found.
pub fn check_transfers(
    plan: &TransferPlan,
    cluster: &Cluster,
    num_experts: usize,
    from: &[u32],
    to: &[u32],
    options: &TransferOptions<'_>,
) -> Result<()> {
    let num_layers = check_placements("check_transfers", cluster, num_experts, from, to)?;
    let num_slots = cluster.num_slots();
    let bytes = options.check(num_layers, num_slots).map_err(|error| error.within("check_transfers"))?;
    let fault =
        |text: String| Err(Error::new(ErrorKind::InvalidSchedule, format!("check_transfers: {text}")));
    if plan.bytes_per_expert != bytes {
        return fault(format!("an expert has {} bytes, not {bytes}", plan.bytes_per_expert));
    }
    if plan.staging.len() != cluster.num_gpus() {
        return fault(format!("staging is of {} GPUs, not {}", plan.staging.len(), cluster.num_gpus()));
    }
    let most_buffers = options.staging_per_gpu.max(1);
    if let Some(gpu) = plan.staging.iter().position(|&buffers| buffers as usize > most_buffers) {
        return fault(format!("GPU {gpu} has {} buffers, more than {most_buffers}", plan.staging[gpu]));
    }
    let mut is_done = vec![false; num_layers];
    let mut lost = Vec::new();
    let mut next_copy = 0usize;
    let mut gain_before = f64::INFINITY;
    for planned in &plan.layers {
        let layer = planned.layer as usize;
        if layer >= num_layers || std::mem::replace(&mut is_done[layer], true) {
            return fault(format!("layer {layer} is not there or done twice"));
        }
        if let Some(&gain) = options.gains.get(layer) {
            if gain > gain_before {
                return fault(format!("layer {layer} gains more than the one before"));
            }
            gain_before = gain;
        }
        let copies = next_copy..next_copy.saturating_add(planned.num_copies);
        let Some(copies) = plan.copies.get(copies).filter(|_| planned.first_copy == next_copy) else {
            return fault(format!("layer {layer}'s copies do not follow those of the layer before"));
        };
        next_copy += planned.num_copies;
        let slots = layer * num_slots..(layer + 1) * num_slots;
        let (from, to) = (&from[slots.clone()], &to[slots]);
        let mut replay = Replay::new(cluster, options, &plan.staging, from, to);
        let num_rounds = match replay.run(planned.layer, copies) {
            Ok(num_rounds) => num_rounds,
            Err(text) => return fault(format!("layer {layer}: {text}")),
        };
        if let Err(text) = replay.compare(planned.layer, num_experts, from, &mut lost) {
            return fault(format!("layer {layer}: {text}"));
        }
        if planned.num_rounds != num_rounds || planned.least_rounds > num_rounds {
            let said = (planned.num_rounds, planned.least_rounds);
            return fault(format!(
                "layer {layer}: {num_rounds} rounds, not {} and at least {}",
                said.0, said.1
            ));
        }
        if planned.counts != LinkCounts::of(copies) {
            return fault(format!("layer {layer}: the copies are {:?}", LinkCounts::of(copies)));
        }
    }
    if let Some(layer) = is_done.iter().position(|&done| !done) {
        return fault(format!("layer {layer} is missing"));
    }
    if next_copy != plan.copies.len() {
        return fault(format!("{} copies belong to no layer", plan.copies.len() - next_copy));
    }
    lost.sort_unstable_by_key(|lost: &LostExpert| (lost.layer, lost.slot));
    if lost != plan.lost {
        return fault(format!("{} experts are lost, not as {} are said to be", lost.len(), plan.lost.len()));
    }
    Ok(())
}

/// A slot or buffer.
#[derive(Clone, Copy)]
struct Room {
    holds: u32,
    /// One more than the last round; 0 for never.
    read: u32,
    written: u32,
}

struct Replay<'a> {
    cluster: &'a Cluster,
    options: &'a TransferOptions<'a>,
    to: &'a [u32],
    /// The slots, then the buffers of each GPU.
    rooms: Vec<Room>,
    /// `[num_gpus + 1]`: where the buffers of each GPU begin.
    first_buffer: Vec<usize>,
    /// `[num_gpus]`: the round, one more, and what has been sent and received in it.
    sends: Vec<(u32, usize)>,
    receives: Vec<(u32, usize)>,
    over_link: BTreeMap<(u32, u32), (u32, usize)>,
}

impl<'a> Replay<'a> {
    fn new(
        cluster: &'a Cluster,
        options: &'a TransferOptions<'a>,
        staging: &[u32],
        from: &[u32],
        to: &'a [u32],
    ) -> Replay<'a> {
        let is_live = |slot: usize| cluster.is_alive(cluster.gpu_of_slot()[slot] as usize);
        let held = from.iter().enumerate().map(|(slot, &expert)| if is_live(slot) { expert } else { EMPTY });
        let mut rooms: Vec<Room> = held.map(|holds| Room { holds, read: 0, written: 0 }).collect();
        let mut first_buffer = vec![rooms.len()];
        for (gpu, &buffers) in staging.iter().enumerate() {
            first_buffer.push(first_buffer[gpu] + buffers as usize);
            rooms.resize(first_buffer[gpu + 1], Room { holds: EMPTY, read: 0, written: 0 });
        }
        Replay {
            cluster,
            options,
            to,
            rooms,
            first_buffer,
            sends: vec![(0, 0); cluster.num_gpus()],
            receives: vec![(0, 0); cluster.num_gpus()],
            over_link: BTreeMap::new(),
        }
    }

    /// The number of rounds, or what is wrong.
    fn run(&mut self, layer: u32, copies: &[ExpertCopy]) -> std::result::Result<u32, String> {
        let mut num_rounds = 0;
        for copy in copies {
            if copy.layer != layer {
                return Err(format!("{copy:?} is of another layer"));
            }
            if copy.round != num_rounds && Some(copy.round) != num_rounds.checked_sub(1) {
                return Err(format!("{copy:?} is not of round {num_rounds} or the one before"));
            }
            num_rounds = copy.round + 1;
            self.copy(copy, num_rounds).map_err(|text| format!("{copy:?}: {text}"))?;
        }
        Ok(num_rounds)
    }

    /// What a round writes is written at once: nobody may read it before the next.
    fn copy(&mut self, copy: &ExpertCopy, round: u32) -> std::result::Result<(), String> {
        let from = self.room(copy.from_gpu, copy.from)?;
        let to = self.room(copy.to_gpu, copy.to)?;
        let (from_gpu, to_gpu) = (copy.from_gpu as usize, copy.to_gpu as usize);
        if copy.link != Link::between(self.cluster, from_gpu, to_gpu) {
            return Err("that is another link".to_owned());
        }
        if self.rooms[from].written == round {
            return Err("what it reads is written in the same round".to_owned());
        }
        if self.rooms[from].holds != copy.expert {
            return Err(format!("what it reads holds {}", self.rooms[from].holds));
        }
        if to == from || self.rooms[to].read == round || self.rooms[to].written == round {
            return Err("what it writes is read or written in the same round".to_owned());
        }
        if let Some(&wanted) = self.to.get(copy.to as usize) {
            if wanted != copy.expert || self.rooms[to].holds == wanted {
                return Err(format!("the slot holds {} and is to hold {wanted}", self.rooms[to].holds));
            }
        }
        self.rooms[from].read = round;
        self.rooms[to] = Room { holds: copy.expert, read: 0, written: round };
        if copy.link != Link::SameGpu {
            count(&mut self.sends[from_gpu], round, self.options.sends_per_gpu, "sends")?;
            count(&mut self.receives[to_gpu], round, self.options.receives_per_gpu, "receives")?;
        }
        if copy.link == Link::OtherNode && self.options.copies_per_node_link > 0 {
            let nodes = (self.cluster.node_of_gpu()[from_gpu], self.cluster.node_of_gpu()[to_gpu]);
            let on_link = self.over_link.entry(nodes).or_default();
            count(on_link, round, self.options.copies_per_node_link, "copies over a link")?;
        }
        Ok(())
    }

    /// Where a slot, or a buffer of a GPU, is in `rooms`.
    fn room(&self, gpu: u32, room: u32) -> std::result::Result<usize, String> {
        let (gpu, room, num_slots) = (gpu as usize, room as usize, self.cluster.num_slots());
        if gpu >= self.cluster.num_gpus() || !self.cluster.is_alive(gpu) {
            return Err(format!("GPU {gpu} is dead or not there"));
        }
        if room < num_slots {
            let holder = self.cluster.gpu_of_slot()[room] as usize;
            return if holder == gpu { Ok(room) } else { Err(format!("slot {room} is on GPU {holder}")) };
        }
        let buffer = self.first_buffer[gpu] + (room - num_slots);
        if buffer >= self.first_buffer[gpu + 1] {
            return Err(format!("GPU {gpu} has no staging buffer {}", room - num_slots));
        }
        Ok(buffer)
    }

    /// Whether all is where it should be, as far as it was anywhere.
    fn compare(
        &self,
        layer: u32,
        num_experts: usize,
        from: &[u32],
        lost: &mut Vec<LostExpert>,
    ) -> std::result::Result<(), String> {
        let mut was_there = vec![false; num_experts];
        for (slot, &expert) in from.iter().enumerate() {
            if expert != EMPTY && self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize) {
                was_there[expert as usize] = true;
            }
        }
        for (slot, &expert) in self.to.iter().enumerate() {
            let holds = self.rooms[slot].holds;
            if expert == EMPTY || expert == holds {
                continue;
            }
            if was_there[expert as usize] {
                return Err(format!("slot {slot} holds {holds} in the end, not {expert}"));
            }
            lost.push(LostExpert { layer, expert, slot: slot as u32 });
        }
        Ok(())
    }
}

fn count(counter: &mut (u32, usize), round: u32, most: usize, what: &str) -> std::result::Result<(), String> {
    if counter.0 != round {
        *counter = (round, 0);
    }
    counter.1 += 1;
    if counter.1 > most {
        return Err(format!("more than {most} {what} in the round"));
    }
    Ok(())
}
