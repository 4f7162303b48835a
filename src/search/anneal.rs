//! One chain of the search: simulated annealing of words. A change is kept if its guide stays below that of the words
//! so far and a threshold drawn anew each time, about exponential with the temperature as its mean: as the threshold
//! is known beforehand, an evaluation can stop as soon as it is passed.
//!
//! Source: Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing", Science 220, 1983; Metropolis' rule
//! with the uniform number drawn first.

use super::model::{Model, Token, Words};
use super::moves;
use super::objective::{Cost, Objective};
use crate::random::Random;

/// Of 10 changes, so many touch the critical path.
const CRITICAL_OF_10: usize = 3;
/// Changes to try before the critical path is found anew.
const REFRESH: u64 = 32;
/// How far from the corresponding place a neighbour is changed.
const NEARBY: usize = 4;

/// A chain.
pub(super) struct Chain<O> {
    objective: O,
    random: Random,
    words: Words,
    cost: Cost,
    best: Words,
    best_cost: Cost,
    /// `[rank]`: its word before the change that is tried.
    saved: Words,
    /// The ranks that it touches.
    touched: Vec<usize>,
    put_off: Vec<u32>,
    /// Changes tried since the critical path was found.
    age: u64,
}

impl<O: Objective> Chain<O> {
    /// A chain that starts from `words`, which must be feasible.
    pub(super) fn new(model: &Model, mut objective: O, words: &Words, seed: u64) -> Chain<O> {
        let cost = objective.cost(model, words, u64::MAX).unwrap_or(Cost { goal: u64::MAX, guide: u64::MAX });
        Chain {
            objective,
            random: Random::new(seed),
            words: words.clone(),
            cost,
            best: words.clone(),
            best_cost: cost,
            saved: vec![Vec::new(); words.len()],
            touched: Vec::new(),
            put_off: vec![0; model.copies.len()],
            age: u64::MAX,
        }
    }

    /// The best so far, and its cost.
    pub(super) fn best(&self) -> (&Words, Cost) {
        (&self.best, self.best_cost)
    }

    /// Goes on from these words instead.
    pub(super) fn adopt(&mut self, words: &Words, cost: Cost) {
        self.words.clone_from(words);
        self.cost = cost;
    }

    /// Goes on from the best so far.
    pub(super) fn return_to_best(&mut self) {
        self.words.clone_from(&self.best);
        self.cost = self.best_cost;
    }

    /// Where to change: anywhere, or on the critical path as it was a moment ago.
    fn place(&mut self) -> Option<(usize, usize)> {
        let critical = self.objective.critical();
        if !critical.is_empty() && self.random.below(10) < CRITICAL_OF_10 {
            let (r, at) = critical[self.random.below(critical.len())];
            let last = self.words[r as usize].len().checked_sub(1)?;
            return Some((r as usize, (at as usize).min(last)));
        }
        let r = self.random.below(self.words.len());
        let len = self.words[r].len();
        (len > 0).then(|| (r, self.random.below(len)))
    }

    /// Tries one change at a temperature, in units of the guide. Below 0: keeps only what is strictly better.
    pub(super) fn step(&mut self, model: &Model, temperature: f64) {
        if self.age >= REFRESH {
            self.age = 0;
            self.objective.find_critical(model, &self.words, &mut self.random);
        }
        self.age += 1;
        let Some((rank, at)) = self.place() else { return };
        self.touched.clear();
        let mut is_changed = self.change(model, rank, at);
        while self.random.below(4) == 0 {
            let (rank, at) = self.place_beside(rank, at);
            is_changed |= self.change(model, rank, at);
        }
        let threshold = match temperature < 0.0 {
            true => self.cost.guide.saturating_sub(1),
            false => self.cost.guide.saturating_add((temperature * exponential(&mut self.random)) as u64),
        };
        let (words, put_off) = (&self.words, &mut self.put_off);
        let fits = is_changed && self.touched.iter().all(|&rank| fits(model, rank, &words[rank], put_off));
        let cost = if fits { self.objective.cost(model, words, threshold) } else { None };
        match cost {
            Some(cost) if cost.guide <= threshold => {
                self.cost = cost;
                if cost < self.best_cost {
                    self.best_cost = cost;
                    self.best.clone_from(&self.words);
                }
            }
            _ => {
                for &rank in &self.touched {
                    std::mem::swap(&mut self.words[rank], &mut self.saved[rank]);
                }
            }
        }
    }

    /// Changes a word, which is saved before the first change.
    fn change(&mut self, model: &Model, rank: usize, at: usize) -> bool {
        if !self.touched.contains(&rank) {
            self.touched.push(rank);
            self.saved[rank].clone_from(&self.words[rank]);
        }
        moves::change(model, &mut self.words[rank], at, &mut self.random)
    }

    /// Where else to change in the same step: anywhere on the same rank, or near by, also on a neighbour.
    fn place_beside(&mut self, rank: usize, at: usize) -> (usize, usize) {
        let here = self.words[rank].len();
        let neighbour = match self.random.below(4) {
            0 => rank.saturating_sub(1),
            1 => (rank + 1).min(self.words.len() - 1),
            2 => rank,
            _ => return (rank, self.random.below(here)),
        };
        let there = self.words[neighbour].len();
        if there == 0 {
            return (rank, self.random.below(here));
        }
        let at = (at * there / here + self.random.below(2 * NEARBY + 1)).saturating_sub(NEARBY);
        (neighbour, at.min(there - 1))
    }
}

/// Whether no W comes before its I, and the memory suffices.
pub(super) fn fits(model: &Model, rank: usize, word: &[Token], put_off: &mut [u32]) -> bool {
    let none = model.num_copies();
    let cap = model.cap[rank];
    for &copy in &model.held[rank] {
        put_off[copy as usize] = 0;
    }
    let mut live = 0u64;
    for &token in word {
        let step = model.step(token);
        if step.forward != none {
            live += model.copies[step.forward as usize].size;
            if live > cap {
                return false;
            }
        }
        if step.weight == none {
            if step.input != none {
                put_off[step.input as usize] += 1;
            }
            continue;
        }
        if step.input == none {
            let put_off = &mut put_off[step.weight as usize];
            if *put_off == 0 {
                return false;
            }
            *put_off -= 1;
        }
        let size = model.copies[step.weight as usize].size;
        if size > live {
            return false;
        }
        live -= size;
    }
    true
}

/// About exponential, with a mean near 1 and at most 61: -log2 of a number drawn from 0 to 1, made of straight pieces
/// between the powers of 2, for a logarithm is not the same on every machine.
fn exponential(random: &mut Random) -> f64 {
    let mut unit = random.unit();
    let mut whole = 0.0;
    while unit < 0.5 && whole < 60.0 {
        unit *= 2.0;
        whole += 1.0;
    }
    0.7 * (whole + 2.0 * (1.0 - unit))
}
