//! One part, placed: greedily, then swaps, then what the number of slots calls for.

use super::pairs::Pairs;
use super::part::Part;
use super::repair::repair;
use super::rota::take_turns;
use super::spread::Spreader;
use super::swaps::descend;
use super::trials;
use crate::random::Random;

/// The room to place a part in. Fill in `part`'s loads, GPUs and least counts first.
#[derive(Default)]
pub(super) struct PartPlacer {
    pub(super) part: Part,
    other: Part,
    spreader: Spreader,
    pairs: Pairs,
}

/// Looks at two slots that the first swaps may cost.
const LOOKS: usize = 1 << 26;
const SEED: u64 = 0x6d_6f65;

impl PartPlacer {
    /// Places the part; no better than `enough` is needed. `false` if an expert is twice on a GPU or on too few
    /// nodes, as no other way was found.
    pub(super) fn place(&mut self, mut enough: f64, effort: usize) -> bool {
        let part = &mut self.part;
        let mut looks = LOOKS * effort;
        let mut random = Random::new(SEED);
        self.spreader.replicate(part);
        self.spreader.pack(part);
        let mut is_valid = repair(part, &mut looks);
        if !is_valid {
            take_turns(part);
            is_valid = repair(part, &mut looks);
        }
        descend(part, enough, &mut looks);
        if part.heaviest() > enough && Pairs::are_enough(part) {
            self.other.copy_placement(part);
            let paired = self.pairs.search(part, enough, effort, &mut random);
            let stays_valid = repair(part, &mut looks) || !is_valid;
            descend(part, enough, &mut looks);
            if !stays_valid || part.heaviest() >= self.other.heaviest() {
                part.copy_placement(&self.other);
            }
            // What the pairs would have had but for an expert that was twice on a GPU is left to gain.
            enough = enough.max(paired);
        }
        trials::search(part, &mut self.other, enough, effort, &mut random);
        is_valid
    }
}
