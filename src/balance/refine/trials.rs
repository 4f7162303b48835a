//! What swaps alone do not find: a change at random that concerns the heaviest GPU, swaps again, and back if it was
//! no use. Half of the changes are two swaps, half give the slot of a redundant replica to an expert of the heaviest
//! GPU, whose replicas all become lighter.
//!
//! Source: iterated local search; Lourenço, Martin and Stützle, "Iterated local search", 2003.

use super::part::Part;
use super::swaps::descend;
use crate::random::Random;

/// Trials with an effort of 1, to polish, and as long as much is left to gain.
const TRIALS: usize = 10;
const TRIALS_MAX: usize = 600;
/// So much above what is enough is much.
const MUCH: f64 = 1e-3;
/// Looks at two slots, and copies of a slot, that all trials may cost together.
const WORK: usize = 1 << 22;
/// So many slots are drawn to find one that may be given away.
const DRAWS: usize = 16;

/// Searches until no GPU carries more than `enough`. `saved` is room for a placement.
pub(super) fn search(part: &mut Part, saved: &mut Part, enough: f64, effort: usize, random: &mut Random) {
    if part.num_gpus() == 1 {
        return;
    }
    let mut work = WORK * effort;
    let mut best = part.heaviest();
    saved.copy_placement(part);
    for trial in 0..TRIALS_MAX * effort {
        let is_polished = trial >= TRIALS * effort && best <= enough * (1.0 + MUCH);
        if best <= enough || is_polished || work == 0 {
            break;
        }
        let is_changed = if random.below(2) == 0 { shuffle(part, random) } else { recount(part, random) };
        if is_changed {
            descend(part, enough, &mut work);
            work = work.saturating_sub(2 * part.num_slots());
            if part.heaviest() <= best {
                best = part.heaviest();
                saved.copy_placement(part);
            } else {
                part.copy_placement(saved);
            }
        }
    }
}

/// Two swaps of the heaviest GPU with any others.
fn shuffle(part: &mut Part, random: &mut Random) -> bool {
    let gpu = part.order[part.num_gpus() - 1] as usize;
    let mut is_changed = false;
    for _ in 0..2 {
        let slot = draw_slot(part, gpu, random);
        let other = random.below(part.num_slots());
        if part.gpu_of_slot[other] as usize != gpu && part.may_swap(slot, other) {
            part.swap(slot, other);
            is_changed = true;
        }
    }
    is_changed
}

/// One more replica for an expert, mostly one of the heaviest GPU.
fn recount(part: &mut Part, random: &mut Random) -> bool {
    let gpu = part.order[part.num_gpus() - 1] as usize;
    let expert = match random.below(4) {
        0 => random.below(part.loads.len()) as u32,
        _ => part.held[draw_slot(part, gpu, random)],
    };
    for _ in 0..DRAWS {
        let slot = random.below(part.num_slots());
        let gpu = part.gpu_of_slot[slot] as usize;
        if part.counts[part.held[slot] as usize] > part.count_min
            && !part.is_on(expert, gpu)
            && part.is_spread_without(slot)
        {
            part.give(slot, expert);
            return true;
        }
    }
    false
}

fn draw_slot(part: &Part, gpu: usize, random: &mut Random) -> usize {
    let slots = part.slots(gpu);
    slots.start + random.below(slots.len())
}
