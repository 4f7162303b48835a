//! Swaps of two replicas, one of them on the heaviest GPU, for as long as they make it lighter.
//!
//! Each step looks through the other GPUs, lightest first, for the swap that makes the heavier of the two as light as
//! can be; it stops early at one that takes most of the excess away, and where not even a perfect swap would be better.
//! A step looks at the slots of the heaviest GPU times all slots at most.

use super::part::Part;

/// A swap that leaves so much of the excess over the mean is taken at once.
const GOOD_ENOUGH: f64 = 0.25;
/// So many slots of a GPU are looked at. Heaps of slots are well balanced as they are.
const SLOTS_SEEN: usize = 128;
/// Moving so many GPUs in their order costs as much as a look at two slots.
const MOVED_PER_LOOK: usize = 16;

/// Swaps until no GPU carries more than `enough`, no swap helps, or there have been so many looks at two slots.
pub(super) fn descend(part: &mut Part, enough: f64, looks: &mut usize) {
    let mean = part.mean();
    while part.heaviest() > enough {
        let good_enough = mean + GOOD_ENOUGH * (part.heaviest() - mean);
        let Some((slot, other)) = best_swap(part, good_enough, looks) else { return };
        part.swap(slot, other);
        *looks = looks.saturating_sub(part.num_gpus() / MOVED_PER_LOOK);
    }
}

fn best_swap(part: &Part, good_enough: f64, looks: &mut usize) -> Option<(usize, usize)> {
    let (&gpu, others) = part.order.split_last()?;
    let heaviest = part.gpu_loads[gpu as usize];
    let seen = |gpu: u32| {
        let slots = part.slots(gpu as usize);
        slots.start.max(slots.end.saturating_sub(SLOTS_SEEN))..slots.end
    };
    let mut best = None;
    let mut least = heaviest;
    for &other_gpu in others {
        let load = part.gpu_loads[other_gpu as usize];
        if (heaviest + load) * 0.5 >= least || *looks == 0 {
            break;
        }
        let other_slots = seen(other_gpu);
        *looks = looks.saturating_sub(other_slots.len() * seen(gpu).len());
        for slot in seen(gpu) {
            let share = part.slot_loads[slot];
            for (other, other_share) in other_slots.clone().zip(&part.slot_loads[other_slots.clone()]) {
                let less = share - other_share;
                let heavier = (heaviest - less).max(load + less);
                if heavier < least {
                    *looks = looks.saturating_sub(part.cost_of_may_swap(gpu as usize, other_gpu as usize));
                    if part.may_swap(slot, other) {
                        least = heavier;
                        best = Some((slot, other));
                    }
                }
            }
        }
        if least <= good_enough {
            break;
        }
    }
    best
}
