//! No expert twice on a GPU, and each on enough nodes, where a placement did not see to it.
//!
//! A slot that is in the way is swapped with the one that leaves the heavier of the two GPUs lightest. If there is
//! none, a second replica gives its slot to another expert: as no GPU has more slots than there are experts, there
//! always is one that the GPU does not have.
//!
//! `O(slots)` to find what is in the way, `O(slots * slots of a GPU)` for each repair.

use super::part::Part;

/// Repairs, with so many looks at slots; `false` if some expert is still twice on a GPU, or on too few nodes.
pub(super) fn repair(part: &mut Part, looks: &mut usize) -> bool {
    let mut is_whole = true;
    for slot in seconds(part) {
        if is_second(part, slot) && !(swap_away(part, slot, looks) || give_away(part, slot, looks)) {
            is_whole = false;
        }
    }
    for expert in on_few_nodes(part) {
        is_whole &= spread(part, expert, looks);
    }
    is_whole
}

/// The slots whose GPU has the same expert in an earlier one.
fn seconds(part: &Part) -> Vec<usize> {
    let mut last_gpu = vec![u32::MAX; part.loads.len()];
    let slots = part.held.iter().zip(&part.gpu_of_slot).enumerate();
    let seconds =
        slots.filter(|(_, (&expert, &gpu))| std::mem::replace(&mut last_gpu[expert as usize], gpu) == gpu);
    seconds.map(|(slot, _)| slot).collect()
}

fn is_second(part: &Part, slot: usize) -> bool {
    let slots = part.slots(part.gpu_of_slot[slot] as usize);
    let same = part.held[slots].iter().filter(|&&expert| expert == part.held[slot]);
    same.take(2).count() == 2
}

fn swap_away(part: &mut Part, slot: usize, looks: &mut usize) -> bool {
    let gpu = part.gpu_of_slot[slot] as usize;
    let mut best: Option<(f64, usize)> = None;
    for other in 0..part.num_slots() {
        if *looks == 0 {
            break;
        }
        *looks = looks.saturating_sub(1);
        let other_gpu = part.gpu_of_slot[other] as usize;
        let heavier = heavier_after(part, slot, other);
        if other_gpu != gpu && best.is_none_or(|(least, _)| heavier < least) {
            *looks = looks.saturating_sub(part.cost_of_may_swap(gpu, other_gpu));
            if part.may_swap(slot, other) {
                best = Some((heavier, other));
            }
        }
    }
    best.map(|(_, other)| part.swap(slot, other)).is_some()
}

/// The load of the heavier of two GPUs after a swap.
fn heavier_after(part: &Part, a: usize, b: usize) -> f64 {
    let less = part.slot_loads[a] - part.slot_loads[b];
    let load = |slot: usize| part.gpu_loads[part.gpu_of_slot[slot] as usize];
    (load(a) - less).max(load(b) + less)
}

/// To the expert whose replicas are heaviest of those that the GPU does not have.
fn give_away(part: &mut Part, slot: usize, looks: &mut usize) -> bool {
    if part.counts[part.held[slot] as usize] <= part.count_min || *looks == 0 {
        return false;
    }
    *looks = looks.saturating_sub(part.loads.len() + part.num_slots());
    let mut is_on = vec![false; part.loads.len()];
    for &expert in &part.held[part.slots(part.gpu_of_slot[slot] as usize)] {
        is_on[expert as usize] = true;
    }
    let absent = (0..part.loads.len()).filter(|&expert| !is_on[expert]);
    let heir = absent.reduce(|a, b| if part.shares[b] > part.shares[a] { b } else { a });
    heir.map(|heir| part.give(slot, heir as u32)).is_some()
}

/// The experts that are on fewer nodes than they must.
fn on_few_nodes(part: &Part) -> Vec<u32> {
    if part.nodes_min == 1 {
        return Vec::new();
    }
    let slots = part.held.iter().zip(&part.gpu_of_slot);
    let mut places: Vec<(u32, u32)> =
        slots.map(|(&expert, &gpu)| (expert, part.nodes[gpu as usize])).collect();
    places.sort_unstable();
    places.dedup();
    let experts = places.chunk_by(|a, b| a.0 == b.0);
    experts.filter(|nodes| nodes.len() < part.nodes_min).map(|nodes| nodes[0].0).collect()
}

/// Brings replicas of an expert to other nodes until it is on enough.
fn spread(part: &mut Part, expert: u32, looks: &mut usize) -> bool {
    loop {
        let mut slots: Vec<usize> = (0..part.num_slots()).filter(|&s| part.held[s] == expert).collect();
        let node = |slot: usize| part.nodes[part.gpu_of_slot[slot] as usize];
        slots.sort_by_key(|&slot| node(slot));
        let mut nodes: Vec<u32> = slots.iter().map(|&slot| node(slot)).collect();
        nodes.dedup();
        if nodes.len() >= part.nodes_min {
            return true;
        }
        let mut best: Option<(f64, usize, usize)> = None;
        // Of replicas on one node the first stays.
        for pair in slots.windows(2).filter(|pair| node(pair[0]) == node(pair[1])) {
            let slot = pair[1];
            let gpu = part.gpu_of_slot[slot] as usize;
            for other in 0..part.num_slots() {
                if *looks == 0 {
                    return false;
                }
                *looks = looks.saturating_sub(1);
                let other_gpu = part.gpu_of_slot[other] as usize;
                let heavier = heavier_after(part, slot, other);
                if best.is_none_or(|(least, ..)| heavier < least)
                    && nodes.binary_search(&part.nodes[other_gpu]).is_err()
                {
                    *looks = looks.saturating_sub(part.cost_of_may_swap(gpu, other_gpu));
                    if !part.is_on(part.held[other], gpu) && part.stays_spread(other, gpu) {
                        best = Some((heavier, slot, other));
                    }
                }
            }
        }
        match best {
            Some((_, slot, other)) => part.swap(slot, other),
            None => return false,
        }
    }
}
