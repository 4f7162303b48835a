//! The best single change of a placement for its heaviest GPU; `search` says which changes there are and which is best.

use super::price::Before;
use crate::balance::cluster::{Cluster, EMPTY};
use crate::balance::goal::Goal;
use crate::balance::layout::Layout;

/// A change of a placement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// Two slots exchange what they hold.
    Swap(usize, usize),
    /// The first slot gets what the second holds, that what the third holds, and that what the first holds.
    Rotate(usize, usize, usize),
    /// A slot gets another expert.
    Replace(usize, u32),
}

/// A change, and what it is worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) change: Change,
    effect: Effect,
    pub(super) price: f64,
}

/// What a change does to GPUs.
#[derive(Clone, Copy, Debug)]
struct Effect {
    /// The heaviest of the GPU that is to be relieved and those that get heavier, afterwards.
    peak: f64,
    /// By how much less all GPUs together are above the aim.
    relief: f64,
}

/// A rotation relieves one of so many GPUs besides the heaviest.
const ROTATION_PARTNERS: usize = 3;
/// On GPUs of more slots no rotations are tried: they cost the square.
const ROTATION_SLOTS: usize = 32;

/// Room to look for changes.
pub(super) struct Changes {
    num_experts: u32,
    /// Whether a rotation leaves every expert on as many nodes as it must be.
    may_rotate: bool,
    /// `[num_slots]`: what it costs to have the expert of a slot where it is, and on the heaviest GPU.
    here: Vec<f64>,
    on_heaviest: Vec<f64>,
    /// `[num_gpus]`: what it costs to have the expert under inspection there.
    elsewhere: Vec<f64>,
    partners: Vec<usize>,
    /// Slots that could hold the expert under inspection, and what their GPU would carry.
    takers: Vec<(f64, usize)>,
}

/// What is looked at.
struct View<'a, 'b> {
    layout: &'b Layout<'a>,
    before: &'b Before<'a>,
    cluster: &'b Cluster,
    live_slots: &'b [u32],
    heaviest_gpu: usize,
}

/// The best change so far, and by what it is judged.
struct Best {
    aim: f64,
    most: f64,
    heaviest: f64,
    choice: Option<Choice>,
}

impl Changes {
    pub(super) fn new(goal: &Goal) -> Changes {
        Changes {
            num_experts: goal.num_experts as u32,
            may_rotate: goal.min_nodes == 1,
            here: Vec::new(),
            on_heaviest: Vec::new(),
            elsewhere: Vec::new(),
            partners: Vec::new(),
            takers: Vec::new(),
        }
    }

    /// None if no change makes the heaviest GPU lighter for `most` at most.
    pub(super) fn best<'a>(
        &mut self,
        layout: &Layout<'a>,
        before: &Before<'a>,
        live_slots: &[u32],
        aim: f64,
        most: f64,
        with_rotations: bool,
    ) -> Option<Choice> {
        let heaviest_gpu = layout.heaviest_gpu();
        let cluster = before.cluster();
        let view = View { layout, before, cluster, live_slots, heaviest_gpu };
        let mut best = Best { aim, most, heaviest: layout.heaviest_load(), choice: None };
        self.look_up_prices(&view);
        if with_rotations && self.may_rotate && cluster.slots(heaviest_gpu).len() <= ROTATION_SLOTS {
            self.find_partners(&view, aim);
        } else {
            self.partners.clear();
        }
        for slot in view.slots_of(heaviest_gpu) {
            let held = layout.slot_to_expert()[slot];
            before.prices(held, &mut self.elsewhere);
            self.swaps(&view, slot, &mut best);
            self.rotations(&view, slot, &mut best);
            if layout.may_leave(slot) {
                for expert in 0..self.num_experts {
                    self.replace(&view, slot, expert, &mut best);
                }
            }
            // Whoever shares this expert takes a part of its load.
            let less = layout.share(held) - layout.share_of(held as usize, layout.count(held) + 1);
            if less > 0.0 && best.may_be_beaten(best.heaviest - less) {
                for other in view.slots().filter(|&other| layout.gpu(other) != heaviest_gpu) {
                    if layout.count(layout.slot_to_expert()[other]) > 1 {
                        self.replace(&view, other, held, &mut best);
                    }
                }
            }
        }
        best.choice
    }

    fn look_up_prices(&mut self, view: &View<'_, '_>) {
        let held = view.layout.slot_to_expert();
        self.here.resize(held.len(), 0.0);
        self.on_heaviest.resize(held.len(), 0.0);
        for slot in view.slots() {
            self.here[slot] = view.before.price(view.layout.gpu(slot), held[slot]);
            self.on_heaviest[slot] = view.before.price(view.heaviest_gpu, held[slot]);
        }
    }

    fn find_partners(&mut self, view: &View<'_, '_>, aim: f64) {
        let loads = view.layout.gpu_loads();
        self.partners.clear();
        self.partners.extend((0..loads.len()).filter(|&gpu| loads[gpu] > aim && gpu != view.heaviest_gpu));
        self.partners.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]));
        self.partners.truncate(ROTATION_PARTNERS);
    }

    fn swaps(&self, view: &View<'_, '_>, slot: usize, best: &mut Best) {
        let layout = view.layout;
        let share = layout.share(layout.slot_to_expert()[slot]);
        let load = layout.gpu_loads()[view.heaviest_gpu];
        for other in view.slots() {
            let other_gpu = layout.gpu(other);
            let lighter = share - layout.share(layout.slot_to_expert()[other]);
            let other_load = layout.gpu_loads()[other_gpu];
            let peak = (load - lighter).max(other_load + lighter);
            if lighter <= 0.0 || other_gpu == view.heaviest_gpu || !best.may_be_beaten(peak) {
                continue;
            }
            let relief = best.relief(load, load - lighter) + best.relief(other_load, other_load + lighter);
            let price =
                self.on_heaviest[other] + self.elsewhere[other_gpu] - self.here[slot] - self.here[other];
            let choice = Choice { change: Change::Swap(slot, other), effect: Effect { peak, relief }, price };
            if best.is_beaten_by(&choice) && layout.may_swap(slot, other) {
                best.choice = Some(choice);
            }
        }
    }

    /// `slot` gets the expert of a partner, that the one of a third GPU, and that the one of `slot`.
    fn rotations(&mut self, view: &View<'_, '_>, slot: usize, best: &mut Best) {
        if self.partners.is_empty() {
            return;
        }
        let layout = view.layout;
        let (held, loads) = (layout.slot_to_expert(), layout.gpu_loads());
        let (share, load) = (layout.share(held[slot]), loads[view.heaviest_gpu]);
        let takers = view.slots().map(|third| {
            let third_gpu = layout.gpu(third);
            (loads[third_gpu] - layout.share(held[third]) + share, third)
        });
        let is_taker = |&(after, third): &(f64, usize)| {
            best.may_be_beaten(after)
                && layout.gpu(third) != view.heaviest_gpu
                && layout.share(held[third]) < share
        };
        self.takers.clear();
        self.takers.extend(takers.filter(is_taker));
        for &partner in &self.partners {
            for second in view.slots_of(partner) {
                let second_share = layout.share(held[second]);
                let after = load - share + second_share;
                if second_share >= share
                    || !best.may_be_beaten(after)
                    || !layout.may_enter(slot, held[second])
                {
                    continue;
                }
                for &(third_after, third) in &self.takers {
                    let second_after = loads[partner] - second_share + layout.share(held[third]);
                    let peak = after.max(second_after).max(third_after);
                    if second_after >= loads[partner]
                        || !best.may_be_beaten(peak)
                        || layout.gpu(third) == partner
                    {
                        continue;
                    }
                    let third_gpu = layout.gpu(third);
                    let relief = best.relief(load, after)
                        + best.relief(loads[partner], second_after)
                        + best.relief(loads[third_gpu], third_after);
                    let coming = self.on_heaviest[second]
                        + self.elsewhere[third_gpu]
                        + view.before.price(partner, held[third]);
                    let price = coming - self.here[slot] - self.here[second] - self.here[third];
                    let change = Change::Rotate(slot, second, third);
                    let choice = Choice { change, effect: Effect { peak, relief }, price };
                    let may = || layout.may_enter(second, held[third]) && layout.may_enter(third, held[slot]);
                    if best.is_beaten_by(&choice) && may() {
                        best.choice = Some(choice);
                    }
                }
            }
        }
    }

    fn replace(&self, view: &View<'_, '_>, slot: usize, expert: u32, best: &mut Best) {
        let layout = view.layout;
        if layout.slot_to_expert()[slot] == expert {
            return;
        }
        let load = layout.gpu_loads()[layout.gpu(slot)];
        let coming_share = layout.share_of(expert as usize, layout.count(expert) + 1);
        let after = load - layout.share(layout.slot_to_expert()[slot]) + coming_share;
        if after > load && !best.may_be_beaten(after) {
            return; // as most are: the rest need not be computed
        }
        let effect = effect_of_replacing(layout, slot, expert, best);
        if best.may_be_beaten(effect.peak) {
            let price = view.before.price(layout.gpu(slot), expert) - self.here[slot];
            let choice = Choice { change: Change::Replace(slot, expert), effect, price };
            if best.is_beaten_by(&choice) && layout.may_enter(slot, expert) && layout.may_leave(slot) {
                best.choice = Some(choice);
            }
        }
    }
}

impl View<'_, '_> {
    fn slots_of(&self, gpu: usize) -> impl Iterator<Item = usize> + '_ {
        self.cluster.slots(gpu).filter(|&slot| self.layout.slot_to_expert()[slot] != EMPTY)
    }

    fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.live_slots.iter().map(|&slot| slot as usize)
    }
}

/// What it does if a slot gets another expert. `O(replicas)`.
fn effect_of_replacing(layout: &Layout<'_>, slot: usize, expert: u32, best: &Best) -> Effect {
    let leaving = layout.slot_to_expert()[slot];
    let coming_share = layout.share_of(expert as usize, layout.count(expert) + 1);
    let less = layout.share(expert) - coming_share;
    let more = layout.share_of(leaving as usize, (layout.count(leaving) - 1).max(1)) - layout.share(leaving);
    let mut effect = Effect { peak: 0.0, relief: 0.0 };
    let mut touch = |gpu: usize, change: f64| {
        let load = layout.gpu_loads()[gpu];
        if change > 0.0 || load == best.heaviest {
            effect.peak = effect.peak.max(load + change);
        }
        effect.relief += best.relief(load, load + change);
    };
    touch(layout.gpu(slot), coming_share - layout.share(leaving));
    for gpu in layout.slots(expert).map(|slot| layout.gpu(slot)) {
        touch(gpu, more * layout.count_on(leaving, gpu) as f64 - less);
    }
    for gpu in layout.slots(leaving).filter(|&other| other != slot).map(|slot| layout.gpu(slot)) {
        if layout.count_on(expert, gpu) == 0 {
            touch(gpu, more);
        }
    }
    effect
}

impl Best {
    /// By how much less a GPU is above the aim.
    fn relief(&self, before: f64, after: f64) -> f64 {
        (before - self.aim).max(0.0) - (after - self.aim).max(0.0)
    }

    /// Whether a change with this peak could be better, whatever it costs.
    fn may_be_beaten(&self, peak: f64) -> bool {
        let has_reached = self.choice.is_some_and(|choice| choice.effect.peak <= self.aim);
        peak < self.heaviest && (peak <= self.aim || !has_reached)
    }

    fn is_beaten_by(&self, other: &Choice) -> bool {
        // Sums of prices that are not whole are not exact.
        if other.price > self.most * (1.0 + 1e-12) {
            return false;
        }
        let Some(best) = self.choice else {
            return true;
        };
        let (peak, best_peak) = (other.effect.peak, best.effect.peak);
        let has_reached = peak <= self.aim;
        if has_reached != (best_peak <= self.aim) {
            return has_reached;
        }
        let gains = match has_reached {
            true => (other.effect.relief, best.effect.relief),
            false => (self.heaviest - peak, self.heaviest - best_peak),
        };
        // What is free is best; then by gain per price, without a quotient of zero.
        let (gain, best_gain) = match (other.price <= 0.0, best.price <= 0.0) {
            (true, true) => gains,
            (false, false) => (gains.0 * best.price, gains.1 * other.price),
            (is_free, _) => return is_free,
        };
        let fits_better = if has_reached { peak > best_peak } else { peak < best_peak };
        gain > best_gain || (gain == best_gain && fits_better)
    }
}
