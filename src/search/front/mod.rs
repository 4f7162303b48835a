//! The front of memory and time: the best makespan within each of several memory caps, beside what no schedule can beat
//! and beside the published schedules of the placement.
//!
//! A schedule that keeps to a cap keeps to every larger one, and a bound that holds within a cap holds within every
//! smaller one. So each point takes the best of all schedules found, whichever cap they were planned for, and the
//! highest bound of its own and of all larger caps: along the front neither ever rises.

mod svg;
mod text;

use std::ops::ControlFlow;

use super::published::published_on;
use super::show::Unit;
use super::{plan, Effort, Problem, Progress};
use crate::cost::Costs;
use crate::error::{in_range, Error, Result};
use crate::ids::{Direction, Rank};
use crate::op::StageCopy;
use crate::schedule::Schedule;
use crate::sim::{peak_memory_bytes, simulate, MemoryCap};

/// Most points that a front may have.
pub const FRONT_POINTS_MAX: usize = 256;
/// Most points that a front has whose caps are not given; one plan without a cap comes before theirs.
pub const FRONT_ALL_POINTS: usize = 24;

/// The memory caps of a front, each the same for all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caps {
    /// So many micro-batch activations alive at once: at least 1, rising.
    Activations(Vec<usize>),
    /// So many bytes, parameters included: rising.
    Bytes(Vec<u64>),
    /// Activations from one micro-batch of each direction at a time to where more gain nothing, at most 24 of them
    /// evenly.
    AllActivations,
    /// 24 sizes from one micro-batch of each direction at a time to where more gains nothing, evenly.
    AllBytes,
}

/// Memory against time, for one placement and its costs.
#[derive(Clone, Debug)]
pub struct Front {
    /// What it is of: ranks and micro-batches.
    pub title: String,
    /// Whether caps count bytes; activations otherwise.
    pub is_bytes: bool,
    /// By cap, the smallest first.
    pub points: Vec<FrontPoint>,
    /// The published schedules that are possible, whether they fit a cap or not; by memory.
    pub published: Vec<PublishedPoint>,
    /// Whether the progress callback stopped it: then some points were not searched for.
    pub is_stopped: bool,
}

/// The best schedule within a cap.
#[derive(Clone, Debug)]
pub struct FrontPoint {
    /// Activations or bytes.
    pub cap: u64,
    /// What the rank that keeps most keeps at once, in the unit of the cap.
    pub peak: u64,
    /// How long a step takes.
    pub makespan_ns: u64,
    /// No schedule on this placement that keeps to the cap is faster.
    pub lower_bound_ns: u64,
    /// What the search that found it began with.
    pub started_from: String,
    /// It.
    pub schedule: Schedule,
    /// `[rank]`: the most activations alive at once.
    pub peak_live: Vec<usize>,
    /// `[rank]`: the most bytes, parameters included.
    pub peak_memory_bytes: Vec<u64>,
}

/// A published schedule beside the front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPoint {
    /// Its name.
    pub name: String,
    /// What the rank that keeps most keeps at once, in the unit of the caps.
    pub peak: u64,
    /// How long a step takes.
    pub makespan_ns: u64,
}

/// The front of `problem`, whose own cap is not used: one plan with `effort` for each cap. `progress` hears of all of
/// them together; stopped by it, each point has the best that was found until then, or what a search would start from.
///
/// # Errors
/// No caps, too many, not rising, or one that is too small for any schedule; and those of [`plan`].
pub fn memory_time_front(
    problem: &Problem,
    caps: &Caps,
    effort: &Effort,
    progress: Progress<'_>,
) -> Result<Front> {
    let Problem { placement, num_microbatches, costs, .. } = problem;
    costs.fit(placement.num_stages())?;
    let is_bytes = matches!(caps, Caps::Bytes(_) | Caps::AllBytes);
    let mut search =
        Search { problem, effort, is_bytes, found: Vec::new(), done: 0, all: 0, is_stopped: false, progress };
    let asked = caps;
    let caps = match asked {
        Caps::Activations(caps) => checked(caps.iter().map(|&cap| cap as u64).collect(), 1)?,
        Caps::Bytes(caps) => checked(caps.clone(), 0)?,
        Caps::AllActivations | Caps::AllBytes => search.all_caps()?,
    };
    search.all = search.done + caps.len() as u64;
    let mut bounds = Vec::with_capacity(caps.len());
    for &cap in caps.iter().rev() {
        bounds.push(search.plan(Some(cap))?);
    }
    let mut points: Vec<FrontPoint> = Vec::with_capacity(caps.len());
    let mut bound_ns = 0;
    for (&cap, own_bound_ns) in caps.iter().rev().zip(bounds) {
        bound_ns = own_bound_ns.max(bound_ns);
        if let Some(best) = search.best_within(cap) {
            points.push(FrontPoint { cap, lower_bound_ns: bound_ns, ..best.clone() });
        }
    }
    points.reverse();
    if let (Caps::AllActivations | Caps::AllBytes, Some(last)) = (asked, points.last()) {
        let gaining = points.iter().position(|point| point.makespan_ns == last.makespan_ns);
        points.truncate(gaining.map_or(points.len(), |first| first + 1));
    }
    let published = published_on(placement, *num_microbatches);
    let published = published.into_iter().filter_map(|schedule| {
        let makespan_ns = simulate(&schedule, costs).ok()?.timeline.makespan_ns();
        let peak = peak(&schedule, costs, is_bytes);
        Some(PublishedPoint { name: schedule.name().to_owned(), peak, makespan_ns })
    });
    let mut published: Vec<PublishedPoint> = published.collect();
    published.sort_by_key(|published| (published.peak, published.makespan_ns));
    published.dedup_by(|a, b| a == b);
    let title = format!("{} ranks, {num_microbatches} micro-batches", placement.num_ranks());
    Ok(Front { title, is_bytes, points, published, is_stopped: search.is_stopped })
}

impl Front {
    /// A table for people: a line for each cap, with a bar from the fastest makespan to this one; below, the published
    /// schedules.
    pub fn to_text(&self) -> String {
        text::draw(self)
    }

    /// One self-contained picture: makespan over memory as steps, the lower bound as a line below, published schedules
    /// as named dots.
    pub fn to_svg(&self) -> String {
        svg::draw(self)
    }

    fn memory_unit(&self) -> Unit {
        let peaks = self.points.iter().map(|point| point.cap);
        let most = peaks.chain(self.published.iter().map(|published| published.peak)).max().unwrap_or(0);
        if self.is_bytes {
            Unit::of_bytes(most)
        } else {
            Unit::COUNT
        }
    }

    /// From the lowest bound to the longest makespan.
    fn times(&self) -> (u64, u64) {
        let planned = self.points.iter().flat_map(|point| [point.lower_bound_ns, point.makespan_ns]);
        let times = || planned.clone().chain(self.published.iter().map(|published| published.makespan_ns));
        (times().min().unwrap_or(0), times().max().unwrap_or(0))
    }
}

/// Caps in rising order, each at least `least`.
fn checked(caps: Vec<u64>, least: u64) -> Result<Vec<u64>> {
    in_range("front", "the number of caps", caps.len(), 1..=FRONT_POINTS_MAX)?;
    let mut before = None;
    for (i, &cap) in caps.iter().enumerate() {
        if cap < least || before.is_some_and(|before| cap <= before) {
            let range = match before {
                Some(before) => format!("must be more than {before}, the one before"),
                None => format!("must be at least {least}"),
            };
            return Err(Error::argument("front", format!("caps[{i}]"), cap, range));
        }
        before = Some(cap);
    }
    Ok(caps)
}

struct Search<'a> {
    problem: &'a Problem,
    effort: &'a Effort,
    is_bytes: bool,
    /// What was found for any cap; its cap and bound are of no meaning.
    found: Vec<FrontPoint>,
    /// Plans made, and to be made.
    done: u64,
    all: u64,
    is_stopped: bool,
    progress: Progress<'a>,
}

impl Search<'_> {
    /// Plans within a cap and keeps what it finds; the bound. Once stopped, it does not search any more.
    fn plan(&mut self, cap: Option<u64>) -> Result<u64> {
        let cap = match cap {
            None => MemoryCap::Unlimited,
            Some(cap) if self.is_bytes => MemoryCap::Bytes(vec![cap]),
            Some(cap) => MemoryCap::Activations(vec![usize::try_from(cap).unwrap_or(usize::MAX)]),
        };
        let each = self.effort.iterations;
        let (before, all) = (each.saturating_mul(self.done), each.saturating_mul(self.all));
        self.done += 1;
        let problem = Problem { cap, ..self.problem.clone() };
        let effort = Effort { iterations: if self.is_stopped { 0 } else { each }, ..*self.effort };
        let (progress, is_stopped) = (&mut *self.progress, &mut self.is_stopped);
        let plan = plan(&problem, &effort, &mut |done, _| {
            if !*is_stopped {
                *is_stopped = progress(before.saturating_add(done), all).is_break();
            }
            if *is_stopped {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        self.found.push(FrontPoint {
            cap: 0,
            peak: peak(&plan.schedule, &problem.costs, self.is_bytes),
            makespan_ns: plan.makespan_ns,
            lower_bound_ns: plan.lower_bound_ns,
            started_from: plan.started_from,
            schedule: plan.schedule,
            peak_live: plan.peak_live,
            peak_memory_bytes: plan.peak_memory_bytes,
        });
        Ok(plan.lower_bound_ns)
    }

    /// From the least with which a step is possible to what the best schedule without a cap keeps.
    fn all_caps(&mut self) -> Result<Vec<u64>> {
        self.all = FRONT_ALL_POINTS as u64 + 1;
        self.plan(None)?;
        let least = least(self.problem, self.is_bytes);
        let most = self.found.iter().map(|point| point.peak).max().unwrap_or(least).max(least);
        let steps = (most - least).min(FRONT_ALL_POINTS as u64 - 1).max(1);
        let cap = |step: u64| least + ((most - least) as u128 * step as u128 / steps as u128) as u64;
        let mut caps: Vec<u64> = (0..=steps).map(cap).collect();
        caps.dedup();
        Ok(caps)
    }

    /// The fastest of all that keep to a cap; of several, the one that keeps least.
    fn best_within(&self, cap: u64) -> Option<&FrontPoint> {
        let fitting = self.found.iter().filter(|point| point.peak <= cap);
        fitting.min_by_key(|point| (point.makespan_ns, point.peak))
    }
}

/// What the rank that keeps most keeps at once.
fn peak(schedule: &Schedule, costs: &Costs, is_bytes: bool) -> u64 {
    if is_bytes {
        return peak_memory_bytes(schedule, costs).into_iter().max().unwrap_or(0);
    }
    schedule.peak_live().into_iter().max().unwrap_or(0) as u64
}

/// Where caps begin: at one micro-batch of each direction at a time. With less, two directions would take turns.
fn least(problem: &Problem, is_bytes: bool) -> u64 {
    let Problem { placement, costs, .. } = problem;
    let of_rank = |rank: Rank| {
        let copies = placement.copies_on(rank).iter();
        let parameters: u64 = copies.clone().map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
        let alive = |copy: &StageCopy| if is_bytes { costs.stage(copy.stage).activation_bytes } else { 1 };
        // A single micro-batch goes in direction 0.
        let is_used = |copy: &&StageCopy| copy.direction == Direction::Down || problem.num_microbatches > 1;
        copies.filter(is_used).map(alive).sum::<u64>() + if is_bytes { parameters } else { 0 }
    };
    (0..placement.num_ranks()).map(Rank::from_index).map(of_rank).max().unwrap_or(0)
}
