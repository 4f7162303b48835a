//! The search: chains of annealing side by side, which learn from each other between cycles.
//!
//! The number of chains, their seeds and the lengths of their cycles depend on the problem and the effort alone, and
//! chains meet only between rounds, in a fixed order: what is found does not depend on threads. First each chain keeps
//! strict improvements only, for a start may be close to something good that the least disorder destroys. Then each
//! anneals in cycles that grow longer, every chain from a temperature of its own. After a cycle the worst
//! quarter of the chains goes on from the best words of all, the others from their own best: to give up more of them
//! at once was worse.

use std::ops::ControlFlow;
use std::time::Instant;

use rayon::prelude::*;

use super::anneal::Chain;
use super::model::{Model, Words};
use super::objective::{Cost, Objective};
use super::{Effort, Progress, Stop};
use crate::random::Random;

/// What a search found.
pub(super) struct Found {
    pub(super) words: Words,
    /// Changes tried.
    pub(super) iterations: u64,
    pub(super) stop: Stop,
}

/// Chains, unless words are so long that fewer have to do.
const CHAINS: usize = 8;
/// Steps in all words of all chains, about, at most.
const CHAIN_STEPS_MAX: usize = 1 << 23;
/// Steps that a chain evaluates in a round, about: a millisecond.
const ROUND_STEPS: usize = 1 << 17;
/// Changes that a chain tries in a round, at most.
const ROUND_MAX: u64 = 1 << 10;
/// Rounds of the descent, of the first cycle and of the longest, if the effort allows.
const DESCENT_ROUNDS: u64 = 4;
const FIRST_CYCLE_ROUNDS: u64 = 64;
const LONGEST_CYCLE_ROUNDS: u64 = 256;
/// The hottest chain's first temperature, in mean steps' time, and the ratio from each chain to the next.
const HOTTEST: f64 = 0.07;
const COOLER: f64 = 0.75;

/// The best words found from `starts`, of which the first are the best; all must be feasible.
/// `is_optimal` is asked about each new best.
pub(super) fn search<O: Objective>(
    model: &Model,
    starts: &[Words],
    objective: impl Fn() -> O + Sync,
    is_optimal: &mut dyn FnMut(&Words) -> bool,
    effort: &Effort,
    deadline: Option<Instant>,
    progress: Progress<'_>,
) -> Found {
    let mut search = Search::new(model, starts, objective, effort);
    let stop = search.run(model, is_optimal, deadline, progress);
    Found { words: search.best().0.clone(), iterations: search.done, stop }
}

struct Search<O> {
    chains: Vec<Chain<O>>,
    /// The time of a mean step, in units of the guide.
    mean_step: f64,
    iterations: u64,
    done: u64,
}

/// What a round is part of.
#[derive(Clone, Copy)]
struct Phase {
    /// `None` in the descent; otherwise how much of its cycle is done before the round and after it.
    cycle: Option<(f64, f64)>,
    ends_cycle: bool,
}

impl<O: Objective> Search<O> {
    fn new(model: &Model, starts: &[Words], objective: impl Fn() -> O + Sync, effort: &Effort) -> Search<O> {
        let num_steps: usize = starts[0].iter().map(Vec::len).sum::<usize>().max(1);
        let total_ns =
            starts[0].iter().flatten().fold(0, |sum: u64, &t| sum.saturating_add(model.step(t).ns));
        let num_chains = (CHAIN_STEPS_MAX / num_steps).clamp(1, CHAINS);
        let mut random = Random::new(effort.seed);
        let mut half = || random.below(u32::MAX as usize) as u64;
        let seeds: Vec<(usize, u64)> = (0..num_chains).map(|c| (c, half() << 32 | half())).collect();
        let chains = seeds.into_par_iter().map(|(c, seed)| {
            let start = if c % 2 == 0 { 0 } else { (c / 2 + 1) % starts.len() };
            Chain::new(model, objective(), &starts[start], seed)
        });
        let per_ns = objective().per_ns() as f64;
        Search {
            chains: chains.collect(),
            mean_step: total_ns as f64 / num_steps as f64 * per_ns,
            iterations: effort.iterations,
            done: 0,
        }
    }

    fn run(
        &mut self,
        model: &Model,
        is_optimal: &mut dyn FnMut(&Words) -> bool,
        deadline: Option<Instant>,
        progress: Progress<'_>,
    ) -> Stop {
        let mut asked = None;
        let num_steps = self.best().0.iter().map(Vec::len).sum::<usize>().max(1);
        let per_chain = ((ROUND_STEPS / num_steps) as u64).clamp(1, ROUND_MAX);
        let rounds = self.iterations / (per_chain * self.chains.len() as u64);
        let mut phases = Phases::new(rounds);
        loop {
            let (words, cost) = self.best();
            if asked != Some(cost) {
                asked = Some(cost);
                if is_optimal(words) {
                    return Stop::Optimal;
                }
            }
            if progress(self.done, self.iterations) == ControlFlow::Break(()) {
                return Stop::Cancelled;
            }
            if self.done >= self.iterations {
                return Stop::Iterations;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Stop::Time;
            }
            let phase = phases.next();
            self.round(model, phase, per_chain);
            if phase.ends_cycle {
                self.exchange();
            }
        }
    }

    fn best(&self) -> (&Words, Cost) {
        let best = self.chains.iter().map(Chain::best).min_by_key(|&(_, cost)| cost);
        best.unwrap_or_else(|| unreachable!("there is a chain"))
    }

    /// Each chain tries so many changes; the last round, what is left.
    fn round(&mut self, model: &Model, phase: Phase, per_chain: u64) {
        let num_chains = self.chains.len() as u64;
        let left = self.iterations - self.done;
        let mean_step = self.mean_step;
        self.chains.par_iter_mut().enumerate().for_each(|(c, chain)| {
            let share = left / num_chains + u64::from((c as u64) < left % num_chains);
            let hottest = mean_step * (0..c).fold(HOTTEST, |hot, _| hot * COOLER);
            for i in 0..per_chain.min(share) {
                let temperature = match phase.cycle {
                    None => -1.0,
                    Some((from, to)) => {
                        let left = 1.0 - (from + (to - from) * (i as f64 / per_chain as f64));
                        hottest * left * left
                    }
                };
                chain.step(model, temperature);
            }
        });
        self.done += left.min(per_chain.saturating_mul(num_chains));
    }

    fn exchange(&mut self) {
        let mut by_cost: Vec<usize> = (0..self.chains.len()).collect();
        by_cost.sort_by_key(|&c| self.chains[c].best().1);
        let (words, cost) = self.chains[by_cost[0]].best();
        let words = words.clone();
        let stay = by_cost.len() - by_cost.len() / 4;
        for (place, &c) in by_cost.iter().enumerate() {
            if place < stay {
                self.chains[c].return_to_best();
            } else {
                self.chains[c].adopt(&words, cost);
            }
        }
    }
}

/// The descent, then cycles that grow longer.
struct Phases {
    rounds: u64,
    done: u64,
    is_descent: bool,
    next_cycle: u64,
}

impl Phases {
    /// The phases of so many rounds: of few, one cycle takes all but the descent.
    fn new(all_rounds: u64) -> Phases {
        let descent = (all_rounds / 8).clamp(1, DESCENT_ROUNDS);
        let first = all_rounds.saturating_sub(descent).clamp(1, FIRST_CYCLE_ROUNDS);
        Phases { rounds: descent, done: 0, is_descent: true, next_cycle: first }
    }

    fn next(&mut self) -> Phase {
        let part = |done: u64| done as f64 / self.rounds as f64;
        let cycle = (!self.is_descent).then(|| (part(self.done), part(self.done + 1)));
        self.done += 1;
        let ends_cycle = self.done == self.rounds;
        if ends_cycle {
            (self.rounds, self.done, self.is_descent) = (self.next_cycle, 0, false);
            self.next_cycle = (2 * self.next_cycle).min(LONGEST_CYCLE_ROUNDS);
        }
        Phase { cycle, ends_cycle }
    }
}
