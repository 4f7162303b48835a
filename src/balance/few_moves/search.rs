//! The best balance for few moves, and few moves for a balance: a local search that starts from what is there.
//!
//! Each step changes something about the heaviest GPU:
//!
//! ```text
//! swap     two slots exchange their experts                            2 moves
//! replace  a slot gets another expert, so that the GPU loses one
//!          or shares one with a GPU more                               1 move
//! rotate   three slots pass their experts on, so that another heavy
//!          GPU is relieved too                                         3 moves
//! ```
//!
//! The GPU, and whatever gets heavier, is lighter afterwards than the heaviest was before: the sorted loads always
//! shrink, so the search ends. Of the changes after which none of these carries more than an *aim*, it takes the one
//! that for its price takes most off all that is above the aim; of equal ones the one that leaves them closest to it,
//! which saves light GPUs for heavy experts. If no change reaches the aim, it takes the one that gains most for its
//! price.
//!
//! Aiming at more than can be reached wastes moves on a few GPUs. So for a budget the aim is bisected; what is kept is
//! the best placement that was seen. What is found is not always optimal: docs/moves.md says how often it was on small
//! layers. Finding a change costs `O(slots of a GPU * slots)`, with rotations times slots of a GPU.

use super::changes::{Change, Changes, Choice};
use super::price::Before;
use crate::balance::goal::Goal;
use crate::balance::layout::Layout;

/// Pairs of slots that one search looks at, at most, times the goal's effort: what many steps in large layers cost.
const PAIRS_MAX: usize = 1 << 21;
/// Aims that are tried for one budget.
const AIMS: usize = 7;
/// Aims that are tried for a curve.
const CURVE_AIMS: usize = 16;
/// Undoing is tried for so many changed slots at most.
const UNDO_MAX: usize = 64;

/// A search from a valid placement.
pub(super) struct Search<'a, 'b> {
    layout: &'b mut Layout<'a>,
    before: &'b Before<'a>,
    /// The slots of live GPUs that hold an expert.
    live_slots: &'b [u32],
    changes: Changes,
    /// Of one search.
    steps_max: usize,
}

impl<'a, 'b> Search<'a, 'b> {
    pub(super) fn new(
        goal: &Goal,
        layout: &'b mut Layout<'a>,
        before: &'b Before<'a>,
        live_slots: &'b [u32],
    ) -> Search<'a, 'b> {
        let cluster = before.cluster();
        let slots_of_gpu = live_slots.len().div_ceil(cluster.num_live_gpus());
        let steps_max = (PAIRS_MAX * goal.effort / (slots_of_gpu * live_slots.len()).max(1)).max(1);
        Search { layout, before, live_slots, changes: Changes::new(goal), steps_max }
    }

    /// The lightest heaviest GPU for a price of at most `most` in all; not above what it is. Aims below `least` are of
    /// no use. The placement is left in the layout.
    pub(super) fn spend(&mut self, most: f64, least: f64) {
        let start = self.layout.slot_to_expert().to_vec();
        let mut best = (self.layout.heaviest_load(), start.clone());
        let (mut low, mut high) = (least, best.0);
        // First as far down as the moves go, then by halves.
        let mut aim = least;
        for _ in 0..AIMS {
            if high <= low {
                break;
            }
            self.restore(&start);
            self.reach(aim, true, most, |_, _| {});
            let reached = self.layout.heaviest_load();
            if reached < best.0 {
                best.0 = reached;
                best.1.copy_from_slice(self.layout.slot_to_expert());
            }
            if reached > aim {
                low = aim;
            }
            high = high.min(best.0);
            aim = low + (high - low) / 2.0;
        }
        self.restore(&best.1);
        self.undo_what_is_not_needed(best.0);
    }

    /// For as little as possible at most `aim`, or as near as the search comes. Less than `least` is no use.
    pub(super) fn reach_cheaply(&mut self, aim: f64, least: f64) {
        let start = self.layout.slot_to_expert().to_vec();
        let forced = self.price();
        let mut for_nothing = None;
        if forced > 0.0 {
            // What a repair has put somewhere can be another expert for nothing.
            self.spend(forced, least);
            let heaviest = self.layout.heaviest_load();
            if heaviest <= aim {
                return;
            }
            for_nothing = Some((heaviest, self.layout.slot_to_expert().to_vec()));
            self.restore(&start);
        }
        self.reach(aim, true, f64::INFINITY, |_, _| {});
        let reached = self.layout.heaviest_load();
        self.undo_what_is_not_needed(reached.max(aim));
        let mut best = (self.price(), self.layout.slot_to_expert().to_vec());
        if reached > aim {
            if let Some((_, slots)) = for_nothing.filter(|&(heaviest, _)| heaviest < reached) {
                self.restore(&slots);
            }
            return;
        }
        // Aiming lower can be cheaper, as one change may do what takes two otherwise.
        for (closer, with_rotations) in [(1.0, false), (0.9, true), (0.75, true), (0.5, true)] {
            self.restore(&start);
            self.reach(least + (aim - least) * closer, with_rotations, best.0, |_, _| {});
            if self.layout.heaviest_load() <= aim {
                self.undo_what_is_not_needed(aim);
                let price = self.price();
                if price < best.0 {
                    best = (price, self.layout.slot_to_expert().to_vec());
                }
            }
        }
        self.restore(&best.1);
    }

    /// (price, heaviest load) of the best that was seen for each price, from what is there up to `most`: of searches
    /// with aims all the way down to `least`.
    pub(super) fn trace(&mut self, least: f64, most: f64) -> Vec<(f64, f64)> {
        let start = self.layout.slot_to_expert().to_vec();
        let (price, heaviest) = (self.price(), self.layout.heaviest_load());
        let mut seen = vec![(price, heaviest)];
        for step in 0..CURVE_AIMS {
            self.restore(&start);
            let aim = least + (heaviest - least) * step as f64 / CURVE_AIMS as f64;
            self.reach(aim, step % 2 == 1, most.max(price), |price, heaviest| seen.push((price, heaviest)));
        }
        seen.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut lightest = f64::INFINITY;
        seen.retain(|&(_, heaviest)| {
            let is_lighter = heaviest < lightest;
            lightest = lightest.min(heaviest);
            is_lighter
        });
        seen
    }

    /// Changes the heaviest GPU until it carries at most `aim`, nothing helps, or `most` or all steps are spent. After
    /// each change `seen` gets the price of all and what the heaviest GPU carries.
    fn reach(&mut self, aim: f64, with_rotations: bool, most: f64, mut seen: impl FnMut(f64, f64)) {
        let mut price = self.price();
        for _ in 0..self.steps_max {
            let heaviest = self.layout.heaviest_load();
            if heaviest <= aim {
                return;
            }
            let most = most - price;
            let choice =
                self.changes.best(self.layout, self.before, self.live_slots, aim, most, with_rotations);
            let Some(Choice { change, price: more, .. }) = choice else {
                return;
            };
            let undo = self.apply(change);
            if self.layout.heaviest_load() > heaviest {
                self.apply(undo);
                return;
            }
            price += more;
            seen(price, self.layout.heaviest_load());
        }
    }

    /// Returns the change that takes it back.
    fn apply(&mut self, change: Change) -> Change {
        match change {
            Change::Swap(a, b) => {
                self.layout.swap(a, b);
                change
            }
            Change::Rotate(a, b, c) => {
                self.layout.swap(a, b);
                self.layout.swap(b, c);
                Change::Rotate(c, b, a)
            }
            Change::Replace(slot, expert) => Change::Replace(slot, self.layout.set(slot, expert)),
        }
    }

    fn restore(&mut self, placement: &[u32]) {
        // On the way experts may be missing; a layout allows that.
        for &slot in self.live_slots {
            self.layout.set(slot as usize, placement[slot as usize]);
        }
    }

    fn price(&self) -> f64 {
        let slots = self.live_slots.iter().map(|&slot| slot as usize);
        slots.map(|slot| self.before.price(self.layout.gpu(slot), self.layout.slot_to_expert()[slot])).sum()
    }

    /// Takes changes back, as long as no GPU carries more than `most` and it gets cheaper.
    fn undo_what_is_not_needed(&mut self, most: f64) {
        let is_changed =
            |layout: &Layout<'_>, slot: usize| layout.slot_to_expert()[slot] != self.before.slots()[slot];
        loop {
            let slots = self.live_slots.iter().map(|&slot| slot as usize);
            let changed: Vec<usize> = slots.filter(|&slot| is_changed(self.layout, slot)).collect();
            if changed.len() > UNDO_MAX || !changed.iter().any(|&slot| self.try_to_undo(slot, &changed, most))
            {
                return;
            }
        }
    }

    fn try_to_undo(&mut self, slot: usize, changed: &[usize], most: f64) -> bool {
        let was = self.before.slots()[slot];
        if was != crate::balance::cluster::EMPTY && self.dearer_by(slot, was) < 0.0 {
            let may = self.layout.may_enter(slot, was) && self.layout.may_leave(slot);
            if may && self.stays_below(Change::Replace(slot, was), most) {
                return true;
            }
        }
        changed.iter().any(|&other| {
            let [held, in_other] = [slot, other].map(|slot| self.layout.slot_to_expert()[slot]);
            other > slot
                && self.dearer_by(slot, in_other) + self.dearer_by(other, held) < 0.0
                && self.layout.may_swap(slot, other)
                && self.stays_below(Change::Swap(slot, other), most)
        })
    }

    /// What having this expert in a slot costs more than what is there.
    fn dearer_by(&self, slot: usize, expert: u32) -> f64 {
        let gpu = self.layout.gpu(slot);
        self.before.price(gpu, expert) - self.before.price(gpu, self.layout.slot_to_expert()[slot])
    }

    fn stays_below(&mut self, change: Change, most: f64) -> bool {
        let undo = self.apply(change);
        let stays = self.layout.heaviest_load() <= most;
        if !stays {
            self.apply(undo);
        }
        stays
    }
}
