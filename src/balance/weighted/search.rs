//! Local search over placements whose shares are the best there are: what weighs on the bottleneck is moved off it.
//!
//! `route::level` says which GPUs X cannot be relieved, however tokens are routed: the load of experts that are on
//! GPUs of X only is |X| T. It becomes less in two ways, each of which another island (GPUs that shared experts
//! connect) must bear:
//!
//! ```text
//! exchange   an expert of X and a lighter one from elsewhere, each with one replica, change places
//! help       a replica elsewhere becomes one of a heavy expert of X: X gains a GPU, with whoever else is there
//! ```
//!
//! What that does is guessed by the ratios, load / GPUs, of X and of the other island; the few best guesses are
//! tried, and the first that makes the heaviest GPU lighter is kept, until none does. A local optimum, not
//! necessarily the best.
//!
//! A guess costs a few operations, of which there are `O(slots)` for each of some experts of X; a try costs
//! `O(experts + slots)` and some searches of the flow. Tries are limited by the slots they read.

use super::super::cluster::{Cluster, EMPTY};
use super::super::goal::{Goal, GroupRule};
use super::super::layout::Layout;
use super::super::route::level::{Level, Leveller};
use super::super::route::links::Links;
use super::super::route::shares::units;
use super::islands::Islands;

/// Room to search for the placement of one layer.
pub(super) struct Search<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    layout: Layout<'a>,
    links: Links,
    leveller: Leveller,
    islands: Islands,
    /// `[num_experts]`: loads in the leveller's units.
    units: Vec<u64>,
    /// `[num_gpus]`: whether a GPU is in the bottleneck.
    is_bottleneck: Vec<bool>,
    /// `[num_gpus]`: the load of experts that are only there, and the slots of others.
    alone: Vec<(u64, u32)>,
    /// Experts of the bottleneck, heaviest first.
    captives: Vec<u32>,
    guesses: Vec<Guess>,
}

/// A change, and the ratio that it is guessed to leave.
#[derive(Clone, Copy)]
struct Guess {
    ratio: f64,
    change: Change,
}

#[derive(Clone, Copy)]
enum Change {
    /// Two slots exchange their experts.
    Exchange(u32, u32),
    /// A slot gets another expert.
    Help { slot: u32, expert: u32 },
}

/// So many of the best guesses are tried.
const GUESSES_MAX: usize = 8;
/// Experts of the bottleneck that are exchanged, the heaviest; and that are helped.
const EXCHANGED_MAX: usize = 32;
const HELPED_MAX: usize = 2;
/// Slots read by all tries, for each effort.
const SLOTS_READ: usize = 1 << 17;
/// As near to the mean there is nothing left to search for.
const ENOUGH: f64 = 1.0001;
/// What counts as a gain: a part of the ratio.
const GAIN: f64 = 1e-6;

impl<'a> Search<'a> {
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Search<'a> {
        Search {
            cluster,
            goal,
            layout: Layout::new(cluster, goal),
            links: Links::new(cluster, goal.num_experts),
            leveller: Leveller::new(cluster),
            islands: Islands::new(cluster.num_gpus()),
            units: vec![0; goal.num_experts],
            is_bottleneck: vec![false; cluster.num_gpus()],
            alone: vec![(0, 0); cluster.num_gpus()],
            captives: Vec::with_capacity(goal.num_experts),
            guesses: Vec::with_capacity(GUESSES_MAX + 1),
        }
    }

    /// The links of the placement, and who splits the loads on them: for the shares.
    pub(super) fn split(&mut self) -> (&Links, &mut Leveller) {
        (&self.links, &mut self.leveller)
    }

    /// Makes a placement of every expert better. `per_load` is what a load of 1 is in units.
    pub(super) fn improve(&mut self, loads: &[f64], per_load: f64, slot_to_expert: &mut [u32]) {
        self.units.iter_mut().zip(loads).for_each(|(unit, &load)| *unit = units(load, per_load));
        self.layout.start(loads, slot_to_expert);
        let total: u64 = self.units.iter().sum();
        let enough = (total as f64 / self.cluster.num_live_gpus() as f64 * ENOUGH) as u64;
        let mut tries = self.goal.effort * (SLOTS_READ / self.cluster.num_slots()).max(GUESSES_MAX);
        let mut level = self.level();
        while level.heaviest > enough && tries > 0 {
            self.guess(level);
            let better = (0..self.guesses.len().min(tries)).find_map(|index| {
                tries -= 1;
                let undo = self.make(self.guesses[index].change);
                let now = self.level();
                if now.heaviest < level.heaviest {
                    return Some(now);
                }
                self.make(undo);
                None
            });
            match better {
                Some(better) => level = better,
                None => break,
            }
        }
        slot_to_expert.copy_from_slice(self.layout.slot_to_expert());
        self.links.read(self.cluster, self.goal.num_experts, slot_to_expert);
        self.leveller.read(&self.links);
    }

    fn level(&mut self) -> Level {
        let Search { cluster, goal, layout, links, leveller, units, .. } = self;
        links.read(cluster, goal.num_experts, layout.slot_to_expert());
        leveller.read(links);
        leveller.level(links, |expert| units[expert])
    }

    /// Makes a change and returns the one that undoes it.
    fn make(&mut self, change: Change) -> Change {
        match change {
            Change::Exchange(a, b) => {
                self.layout.swap(a as usize, b as usize);
                change
            }
            Change::Help { slot, expert } => {
                Change::Help { slot, expert: self.layout.set(slot as usize, expert) }
            }
        }
    }

    /// Finds the best guesses for a placement that was just levelled.
    fn guess(&mut self, level: Level) {
        let Search { links, leveller, islands, units, is_bottleneck, captives, layout, guesses, .. } = self;
        guesses.clear();
        islands.read(links, units);
        is_bottleneck.fill(false);
        leveller.bottleneck.iter().for_each(|&gpu| is_bottleneck[gpu as usize] = true);
        let is_captive = |&expert: &u32| {
            let mut of = links.of(expert as usize);
            !of.is_empty() && of.all(|link| is_bottleneck[links.gpu(link)])
        };
        captives.clear();
        captives.extend((0..units.len() as u32).filter(is_captive));
        let share = |&expert: &u32| units[expert as usize] / u64::from(layout.count(expert));
        captives.sort_by_key(|expert| (std::cmp::Reverse(share(expert)), *expert));
        self.guess_exchanges(level);
        self.guess_helps(level);
    }

    fn guess_exchanges(&mut self, level: Level) {
        let size = self.leveller.bottleneck.len() as f64;
        let load = level.bottleneck_load as f64;
        let island = self.islands.of(self.leveller.bottleneck[0] as usize);
        let mut left = EXCHANGED_MAX;
        for index in 0..self.captives.len() {
            let captive = self.captives[index];
            if self.layout.count(captive) > 1 || left == 0 {
                continue;
            }
            left -= 1;
            let Some(a) = self.layout.slots(captive).next() else { continue };
            for b in 0..self.cluster.num_slots() {
                let expert = self.layout.slot_to_expert()[b];
                let gpu = self.layout.gpu(b);
                if expert == EMPTY || self.is_bottleneck[gpu] || self.layout.count(expert) > 1 {
                    continue;
                }
                let lighter = self.units[captive as usize] as f64 - self.units[expert as usize] as f64;
                if lighter <= 0.0 {
                    continue;
                }
                let (other_size, other_load) = self.islands.size_and_load(self.islands.of(gpu));
                let other = match self.islands.of(gpu) == island {
                    true => 0.0, // load can flow to the rest of its own island
                    false => (other_load as f64 + lighter) / other_size as f64,
                };
                let ratio = other.max((load - lighter) / size);
                if self.is_worth_a_try(ratio, level)
                    && self.layout.may_swap(a, b)
                    && self.keeps_nodes(captive, b)
                    && self.keeps_nodes(expert, a)
                {
                    self.note(ratio, Change::Exchange(a as u32, b as u32));
                }
            }
        }
    }

    fn guess_helps(&mut self, level: Level) {
        let size = self.leveller.bottleneck.len() as f64;
        let load = level.bottleneck_load as f64;
        let island = self.islands.of(self.leveller.bottleneck[0] as usize);
        self.alone.fill((0, 0));
        for (slot, &expert) in self.layout.slot_to_expert().iter().enumerate().filter(|held| *held.1 != EMPTY)
        {
            let alone = &mut self.alone[self.layout.gpu(slot)];
            match self.layout.count(expert) {
                1 => alone.0 += self.units[expert as usize],
                _ => alone.1 += 1,
            }
        }
        for slot in 0..self.cluster.num_slots() {
            let expert = self.layout.slot_to_expert()[slot];
            let gpu = self.layout.gpu(slot);
            if expert == EMPTY || self.is_bottleneck[gpu] || self.layout.count(expert) == 1 {
                continue;
            }
            let (other_size, other_load) = self.islands.size_and_load(self.islands.of(gpu));
            let (other_size, other_load) = (other_size as f64, other_load as f64);
            let ratio = if self.islands.of(gpu) == island {
                0.0 // its own island: the flow says
            } else if self.alone[gpu].1 == 1 && other_size > 1.0 {
                let with_it = self.alone[gpu].0 as f64;
                ((other_load - with_it) / (other_size - 1.0)).max((load + with_it) / (size + 1.0))
            } else {
                (load + other_load) / (size + other_size) // the islands become one
            };
            if self.is_worth_a_try(ratio, level) && self.layout.may_leave(slot) {
                for index in 0..self.captives.len().min(HELPED_MAX) {
                    let captive = self.captives[index];
                    if self.layout.may_enter(slot, captive) && self.keeps_nodes(captive, slot) {
                        self.note(ratio, Change::Help { slot: slot as u32, expert: captive });
                    }
                }
            }
        }
    }

    /// Whether a ratio is less than the bottleneck's, and than that of the guesses there are if these are enough.
    fn is_worth_a_try(&self, ratio: f64, level: Level) -> bool {
        let most = level.bottleneck_load as f64 / self.leveller.bottleneck.len() as f64 * (1.0 - GAIN);
        ratio < self.guesses.get(GUESSES_MAX - 1).map_or(most, |worst| worst.ratio.min(most))
    }

    /// Adds a guess to the best ones; earlier ones go first among equals.
    fn note(&mut self, ratio: f64, change: Change) {
        let place = self.guesses.partition_point(|other| other.ratio <= ratio);
        self.guesses.insert(place, Guess { ratio, change });
        self.guesses.truncate(GUESSES_MAX);
    }

    /// Whether an expert that comes into a slot leaves its group where it is, if spreading it has a price: the start
    /// has weighed that.
    fn keeps_nodes(&self, expert: u32, slot: usize) -> bool {
        let is_priced = matches!(self.goal.groups, GroupRule::Priced { .. });
        !is_priced || self.layout.slots(expert).any(|other| self.layout.node(other) == self.layout.node(slot))
    }
}
