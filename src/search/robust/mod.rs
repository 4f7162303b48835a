//! Robust planning: the schedule with the best mean, or best 95th percentile, of makespans over samples of a spread.
//!
//! A plan for costs without a spread is the start. It, and the best of it and the published schedules, are changed by
//! annealing, with all samples played at once for each change (`chain`). What is best on the samples searched on may be
//! so on them only: the result says what it takes on as many others, which the search never saw.

mod chain;
mod moves;

use std::time::Instant;

use super::published::published_on;
use super::spread::{p95_index, sampled_lower_bounds, Durations, Lanes, Model, Sampler, Step};
use super::{plan, Effort, Problem, Progress, Spread, Stop, Summary};
use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::schedule::{Schedule, Work};
use crate::sim::{peak_memory_bytes, simulate, MemoryCap};
use chain::Chain;
use rayon::prelude::*;

/// Most samples times passes that a robust plan may have: all are kept in memory.
pub const ROBUST_PASSES_MAX: usize = 1 << 22;

/// What of the makespans on samples is to be small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Objective {
    /// [`Summary::mean_ns`].
    Mean,
    /// [`Summary::p95_ns`].
    P95,
}

/// What a schedule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Without a spread.
    pub nominal_ns: u64,
    /// On the samples that are searched on.
    pub samples: Summary,
    /// On as many others.
    pub held_out: Summary,
}

/// The most robust schedule found.
#[derive(Clone, Debug)]
pub struct RobustPlan {
    /// It; it passes its check and keeps to the cap.
    pub schedule: Schedule,
    /// What it takes.
    pub robust: Sampled,
    /// What the plan without a spread takes, with which the search began.
    pub start: Sampled,
    /// The best published schedule that is possible and keeps to the cap, by the objective; and what it takes.
    pub published: Option<(String, Sampled)>,
    /// `[rank]`: the most activations alive at once.
    pub peak_live: Vec<usize>,
    /// `[rank]`: the most bytes, parameters included.
    pub peak_memory_bytes: Vec<u64>,
    /// The objective on the samples is not below this for any schedule on this placement: the mean, or the percentile,
    /// of a lower bound for each sample. It does not know of the cap.
    pub lower_bound_ns: u64,
    /// Changes that were tried; one tried on K samples counts K times.
    pub iterations: u64,
    /// Why the search ended.
    pub stop: Stop,
}

/// The schedule of least `objective` that `effort` finds: half of it plans without a spread, the rest searches on the
/// samples. On those it is never worse than the plan without a spread, nor than any published schedule that is possible
/// and keeps to the cap.
///
/// The same problem, spread, seed and iterations give the same schedule on every machine and for any number of threads,
/// if time does not run out.
///
/// # Errors
/// Those of [`plan`] and of a [`Spread`]; more than [`ROBUST_PASSES_MAX`] samples times passes.
pub fn plan_robust(
    problem: &Problem,
    spread: &Spread,
    objective: Objective,
    effort: &Effort,
    progress: Progress<'_>,
) -> Result<RobustPlan> {
    let began = Instant::now();
    let Problem { placement, num_microbatches, costs, cap } = problem;
    spread.check(placement, *num_microbatches, costs)?;
    let model = Model::new(placement, *num_microbatches, costs)?;
    let most = ROBUST_PASSES_MAX / model.num_passes();
    if spread.samples > most {
        let range = format!("must be at most {most} to plan for {} passes", model.num_passes());
        return Err(Error::argument("spread", "samples", spread.samples, range));
    }
    let first =
        Effort { iterations: effort.iterations / 2, time: effort.time.map(|time| time / 2), ..*effort };
    let planned = plan(problem, &first, &mut |done, _| progress(done, effort.iterations))?;

    let mut sampler = Sampler::new(&model, spread);
    let sets = [sampler.draw(spread.samples), sampler.draw(spread.samples)];
    let judge = Judge { problem, model: &model, sets: &sets, objective };
    let published = published_on(placement, *num_microbatches).into_iter();
    let published = published.filter(|schedule| cap.admits(schedule, costs));
    let start = judge.candidate(planned.schedule)?;
    let mut candidates =
        published.map(|schedule| judge.candidate(schedule)).collect::<Result<Vec<Candidate>>>()?;
    candidates.sort_by_key(|candidate| candidate.value);
    let published = candidates.first().map(|best| (best.schedule.name().to_owned(), best.sampled));
    candidates.insert(0, Candidate { schedule: start.schedule.clone(), ..start });
    candidates.sort_by_key(|candidate| candidate.value);

    let bounds = sampled_lower_bounds(placement, *num_microbatches, costs, spread)?;
    let lower_bound_ns = objective.of(&Summary::of(&bounds));
    let mut search = Search {
        judge: &judge,
        chains: [candidates[0].steps(&model), start.steps(&model)],
        limits: Limits::new(problem, &model),
        done: planned.iterations,
        deadline: effort.time.and_then(|time| began.checked_add(time)),
        lower_bound_ns,
    };
    let stop = match planned.stop {
        Stop::Cancelled => Stop::Cancelled,
        _ => search.run(effort, progress, &mut candidates)?,
    };
    candidates.sort_by_key(|candidate| candidate.value);
    let best = candidates.swap_remove(0);
    Ok(RobustPlan {
        robust: best.sampled,
        start: start.sampled,
        published,
        peak_live: best.schedule.peak_live(),
        peak_memory_bytes: peak_memory_bytes(&best.schedule, costs),
        lower_bound_ns,
        iterations: search.done,
        stop,
        schedule: best.schedule,
    })
}

impl Objective {
    /// Of makespans.
    pub fn of(self, summary: &Summary) -> u64 {
        match self {
            Objective::Mean => summary.mean_ns,
            Objective::P95 => summary.p95_ns,
        }
    }
}

/// A schedule that may be the result.
struct Candidate {
    schedule: Schedule,
    sampled: Sampled,
    /// The objective, and what decides where it is equal.
    value: (u64, u64),
}

impl Candidate {
    fn steps(&self, model: &Model) -> Vec<Vec<Step>> {
        model.steps(&self.schedule)
    }
}

/// Says what schedules take.
struct Judge<'a> {
    problem: &'a Problem,
    model: &'a Model,
    /// Those searched on, and the others.
    sets: &'a [Durations; 2],
    objective: Objective,
}

impl Judge<'_> {
    fn candidate(&self, schedule: Schedule) -> Result<Candidate> {
        let nominal_ns = simulate(&schedule, &self.problem.costs)?.timeline.makespan_ns();
        let orders = self.model.steps(&schedule);
        let summary = |durations: &Durations| {
            let mut lanes = Lanes::new(self.model, durations);
            // It passed its check in the simulation, so that it does not wait for ever.
            let ends: Vec<u64> = lanes.play(&orders).unwrap_or(&[]).iter().map(|&end| end as u64).collect();
            Summary::of(&ends)
        };
        let [samples, held_out] = self.sets.each_ref().map(summary);
        let sampled = Sampled { nominal_ns, samples, held_out };
        let value = (self.objective.of(&samples), nominal_ns);
        Ok(Candidate { schedule, sampled, value })
    }

    /// The schedule of these orders, if it can run: the order of gradient reductions may not admit it.
    fn schedule(&self, orders: &[Vec<Step>]) -> Option<Schedule> {
        let Problem { placement, num_microbatches, .. } = self.problem;
        let ops = orders.iter().map(|order| order.iter().map(|&step| self.model.op(step)).collect());
        let ops: Option<Vec<Vec<_>>> = ops.collect();
        let schedule =
            Schedule::new("planned", placement.clone(), *num_microbatches, Work::Training, ops?).ok()?;
        schedule.check().is_ok().then_some(schedule)
    }
}

/// What ranks may keep.
struct Limits {
    /// `[rank]`: of activations.
    caps: Vec<u64>,
    /// `[pass]`
    sizes: Vec<u64>,
}

impl Limits {
    fn new(problem: &Problem, model: &Model) -> Limits {
        let stage = |pass: u32| problem.costs.stage(model.pass(pass).stage);
        let is_bytes = matches!(problem.cap, MemoryCap::Bytes(_));
        let size = |pass: u32| if is_bytes { stage(pass).activation_bytes } else { 1 };
        let cap = |rank: Rank| {
            let copies = problem.placement.copies_on(rank).iter();
            let parameters: u64 = copies.map(|copy| problem.costs.stage(copy.stage).parameter_bytes).sum();
            let bytes = problem.cap.bytes(rank).map(|bytes| bytes.saturating_sub(parameters));
            bytes.or(problem.cap.activations(rank).map(|cap| cap as u64)).unwrap_or(u64::MAX)
        };
        Limits {
            caps: (0..model.num_ranks()).map(Rank::from_index).map(cap).collect(),
            sizes: (0..model.num_passes() as u32).map(size).collect(),
        }
    }

    /// Whether a rank's order keeps to its cap.
    fn admit(&self, rank: usize, order: &[Step]) -> bool {
        let size = |pass: u32| self.sizes.get(pass as usize).copied().unwrap_or(0);
        let mut live = 0u64;
        order.iter().all(|step| {
            live += size(step.forward);
            let fits = live <= self.caps[rank];
            // A W before its F is found when the order is played.
            live = live.saturating_sub(size(step.weight));
            fits
        })
    }
}

/// Lanes times steps that a chain plays in a round, about: some milliseconds.
const ROUND_LANE_STEPS: usize = 1 << 22;
/// Rounds of the first and of the longest cycle.
const CYCLE_ROUNDS: [u64; 2] = [8, 128];

struct Search<'a> {
    judge: &'a Judge<'a>,
    /// What each chain begins with: the best candidate, and the plan without a spread.
    chains: [Vec<Vec<Step>>; 2],
    limits: Limits,
    done: u64,
    deadline: Option<Instant>,
    lower_bound_ns: u64,
}

impl Search<'_> {
    /// Searches until something ends it, and adds what it found to the candidates.
    fn run(
        &mut self,
        effort: &Effort,
        progress: Progress<'_>,
        candidates: &mut Vec<Candidate>,
    ) -> Result<Stop> {
        let (judge, limits) = (self.judge, &self.limits);
        let samples = judge.sets[0].samples() as u64;
        let num_steps: usize = self.chains[0].iter().map(Vec::len).sum::<usize>().max(1);
        let per_round = (ROUND_LANE_STEPS / num_steps / samples as usize).clamp(1, 1 << 10) as u64;
        let seeds = (0u64..).map(|chain| effort.seed.wrapping_add(chain.wrapping_mul(0x9E6D_62D0_6F6A_9A9B)));
        let starts: Vec<(u64, Vec<Vec<Step>>)> = seeds.zip(self.chains.iter().cloned()).collect();
        let mut chains: Vec<Chain<'_>> =
            starts.into_par_iter().map(|(seed, orders)| Chain::new(judge, limits, orders, seed)).collect();
        let mut cycle = (0, CYCLE_ROUNDS[0]);
        let stop = loop {
            let best = chains.iter().map(Chain::best_ns).fold(f64::INFINITY, f64::min);
            if best <= self.lower_bound_ns as f64 {
                break Stop::Optimal;
            }
            if progress(self.done, effort.iterations).is_break() {
                break Stop::Cancelled;
            }
            if effort.iterations.saturating_sub(self.done) < samples * chains.len() as u64 {
                break Stop::Iterations;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Stop::Time;
            }
            let left = (effort.iterations - self.done) / (samples * chains.len() as u64);
            let count = per_round.min(left);
            let cool =
                |done: u64| (1.0 - done as f64 / cycle.1 as f64) * (1.0 - done as f64 / cycle.1 as f64);
            let (from, to) = (cool(cycle.0), cool(cycle.0 + 1));
            chains.par_iter_mut().for_each(|chain| chain.run(count, from, to));
            self.done += count * samples * chains.len() as u64;
            cycle.0 += 1;
            if cycle.0 == cycle.1 {
                cycle = (0, (2 * cycle.1).min(CYCLE_ROUNDS[1]));
                exchange(&mut chains);
            }
        };
        for chain in &chains {
            if let Some(schedule) = judge.schedule(chain.best()) {
                candidates.push(judge.candidate(schedule)?);
            }
        }
        Ok(stop)
    }
}

/// All chains go on from the best of all.
fn exchange(chains: &mut [Chain<'_>]) {
    let best = (0..chains.len()).min_by(|&a, &b| chains[a].best_value().total_cmp(&chains[b].best_value()));
    let Some(best) = best else { return };
    let orders = chains[best].best().to_vec();
    for chain in chains.iter_mut() {
        chain.go_on_from(&orders);
    }
}

/// The objective of makespans on samples, and the value to search by. A percentile hangs on one sample: most changes
/// leave it as it is, and what makes it small by luck does so on these samples only. So the search minimises the mean
/// of the slowest fifth together with the mean of all, each with half of the weight.
fn values(objective: Objective, ends_ns: &[f64], sorted: &mut Vec<f64>) -> (f64, f64) {
    let mean = |ends_ns: &[f64]| ends_ns.iter().sum::<f64>() / ends_ns.len().max(1) as f64;
    match objective {
        Objective::Mean => (mean(ends_ns), mean(ends_ns)),
        Objective::P95 => {
            sorted.clear();
            sorted.extend_from_slice(ends_ns);
            sorted.sort_unstable_by(f64::total_cmp);
            let slowest = &sorted[sorted.len() * 4 / 5..];
            (sorted[p95_index(sorted.len())], 0.5 * mean(slowest) + 0.5 * mean(ends_ns))
        }
    }
}
