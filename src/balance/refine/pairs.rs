//! How many replicas each expert gets where no GPU has more than two slots.
//!
//! Given the counts the best placement is known: the heaviest replica with the lightest, and so on inwards, a GPU of
//! one slot holding nothing as its second (by exchange: two GPUs that pair otherwise can trade their lighter ones and
//! the heavier of them does not become heavier). So only the counts are searched: a redundant replica goes from one
//! expert to another, and what is made small is the excess of all GPUs over a target a little below the best so far.
//! A change for the worse is taken if it is below a threshold that falls to nothing: threshold accepting.
//!
//! Source: Dueck and Scheuer, "Threshold accepting", Journal of Computational Physics 90, 1990. Unlike annealing it
//! needs no exponential function, which differs among machines.
//!
//! `O(slots)` for each change tried.

use super::part::Part;
use crate::random::Random;

/// Changes tried with an effort of 1.
const TRIALS: usize = 30_000;
/// What they may cost together, in slots.
const WORK_MAX: usize = TRIALS << 13;
/// The target is so much below the best placement.
const STEP: f64 = 0.002;
/// The threshold at first, in multiples of the load of all GPUs / slots²: with fewer replicas each change is greater.
const THRESHOLD: f64 = 2.0;

/// The room to search in.
#[derive(Default)]
pub(super) struct Pairs {
    /// The loads of all replicas and of none for each missing second slot, ascending.
    items: Vec<f64>,
    trial: Vec<f64>,
    /// The expert of each replica above the least count.
    spares: Vec<u32>,
    best: Vec<u32>,
    /// (load, expert), ascending.
    replicas: Vec<(u64, u32)>,
}

/// At `at` of the items, `take` are left out and `put` of `load` come in.
#[derive(Clone, Copy)]
struct Edit {
    at: usize,
    take: usize,
    put: usize,
    load: f64,
}

impl Pairs {
    /// Whether this is how to place a part.
    pub(super) fn are_enough(part: &Part) -> bool {
        let slots = (0..part.num_gpus()).map(|gpu| part.slots(gpu).len());
        slots.max().unwrap_or(0) == 2
    }

    /// Improves the counts and places by them. `enough`: no better is needed. May put an expert twice on a GPU; returns
    /// the heaviest load that this way has been reached.
    pub(super) fn search(&mut self, part: &mut Part, enough: f64, effort: usize, random: &mut Random) -> f64 {
        let num_slots = part.num_slots();
        let hottest =
            THRESHOLD * part.mean() * part.num_gpus() as f64 / (num_slots as f64 * num_slots as f64);
        let trials = (TRIALS * effort).min(WORK_MAX * effort / num_slots.max(1));
        self.start(part);
        let mut best = heaviest(&self.items);
        let target = |best: f64| (best * (1.0 - STEP)).max(enough);
        let mut excess = excess_over(&self.items, target(best));
        for trial in 0..trials {
            if best <= enough || self.spares.is_empty() {
                break;
            }
            let spare = random.below(self.spares.len());
            let (fewer, more) = (self.spares[spare] as usize, random.below(part.loads.len()));
            if fewer == more || part.counts[more] as usize >= part.num_gpus() {
                continue;
            }
            self.give(part, fewer, more);
            let then = excess_over(&self.trial, target(best));
            let left = 1.0 - trial as f64 / trials as f64;
            let threshold = hottest * left * random.unit();
            if then > excess + threshold {
                continue;
            }
            excess = then;
            std::mem::swap(&mut self.items, &mut self.trial);
            self.spares[spare] = more as u32;
            part.counts[fewer] -= 1;
            part.counts[more] += 1;
            let now = heaviest(&self.items);
            if now < best {
                best = now;
                self.best.copy_from_slice(&part.counts);
                excess = excess_over(&self.items, target(best));
            }
        }
        part.counts.copy_from_slice(&self.best);
        self.place(part);
        best
    }

    fn start(&mut self, part: &Part) {
        self.items.clear();
        self.spares.clear();
        for (expert, &count) in part.counts.iter().enumerate() {
            let share = part.share_of(expert, count);
            self.items.extend((0..count).map(|_| share));
            self.spares.extend((part.count_min..count).map(|_| expert as u32));
        }
        self.items.resize(2 * part.num_gpus(), 0.0);
        self.items.sort_unstable_by(f64::total_cmp);
        self.best.clear();
        self.best.extend_from_slice(&part.counts);
    }

    /// Writes to `trial` the items after a replica went from one expert to another.
    fn give(&mut self, part: &Part, fewer: usize, more: usize) {
        let position = |load: f64| self.items.partition_point(|&item| item < load);
        let out = |expert: usize| {
            let (load, take) = (part.share_of(expert, part.counts[expert]), part.counts[expert] as usize);
            Edit { at: position(load), take, put: 0, load }
        };
        let come = |expert: usize, count: u32| {
            let load = part.share_of(expert, count);
            Edit { at: position(load), take: 0, put: count as usize, load }
        };
        let mut edits =
            [out(fewer), out(more), come(fewer, part.counts[fewer] - 1), come(more, part.counts[more] + 1)];
        // What comes in at a place is no heavier than what is taken out there.
        edits.sort_unstable_by(|a, b| (a.at, a.take).cmp(&(b.at, b.take)).then(a.load.total_cmp(&b.load)));
        self.trial.clear();
        let mut from = 0;
        for edit in edits {
            let at = edit.at.max(from);
            self.trial.extend_from_slice(&self.items[from..at]);
            self.trial.extend((0..edit.put).map(|_| edit.load));
            from = at + edit.take;
        }
        self.trial.extend_from_slice(&self.items[from..]);
    }

    /// The heaviest with the lightest, by `part.counts`.
    fn place(&mut self, part: &mut Part) {
        self.replicas.clear();
        for (expert, &count) in part.counts.iter().enumerate() {
            let key = (part.share_of(expert, count).to_bits(), expert as u32);
            self.replicas.extend((0..count).map(|_| key));
        }
        self.replicas.sort_unstable();
        let mut heavy = self.replicas.iter().rev();
        let mut light = self.replicas.iter();
        for size in [1, 2] {
            for gpu in 0..part.num_gpus() {
                let slots = part.slots(gpu);
                if slots.len() == size {
                    let held = heavy.by_ref().take(1).chain(light.by_ref().take(size - 1));
                    part.held[slots].iter_mut().zip(held).for_each(|(slot, &(_, expert))| *slot = expert);
                }
            }
        }
        part.weigh();
    }
}

fn pairs(items: &[f64]) -> impl Iterator<Item = f64> + '_ {
    let (light, heavy) = items.split_at(items.len() / 2);
    light.iter().zip(heavy.iter().rev()).map(|(a, b)| a + b)
}

fn heaviest(items: &[f64]) -> f64 {
    pairs(items).fold(0.0, f64::max)
}

/// How much the GPUs carry above `target`, all together; in four sums at once.
fn excess_over(items: &[f64], target: f64) -> f64 {
    let (light, heavy) = items.split_at(items.len() / 2);
    let mut sums = [0.0; 4];
    let heavy = heavy.rchunks(4);
    for (light, heavy) in light.chunks(4).zip(heavy) {
        for ((sum, a), b) in sums.iter_mut().zip(light).zip(heavy.iter().rev()) {
            *sum += (a + b - target).max(0.0);
        }
    }
    sums.iter().sum()
}
