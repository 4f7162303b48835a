//! The planner: for given ranks, micro-batches, costs and memory, the best schedule that it can find, beside what no
//! schedule can beat.

mod anneal;
mod compare;
mod construct;
mod critical;
mod evaluate;
mod finish;
mod front;
mod model;
mod moves;
mod objective;
mod published;
mod robust;
mod rounds;
mod show;
mod spread;
mod start;
#[cfg(test)]
mod tests;

pub use compare::{compare, Candidate, Comparison, Excess, Measured, Setting, COMPARED_MAX, COMPARED_PLANS};
pub use front::{
    memory_time_front, Caps, Front, FrontPoint, PublishedPoint, FRONT_ALL_POINTS, FRONT_POINTS_MAX,
};
pub use published::Shape;
pub use robust::{plan_robust, Objective, RobustPlan, Sampled, ROBUST_PASSES_MAX};
pub use spread::{
    sampled_lower_bounds, sampled_makespans, Spread, Summary, SAMPLED_NS_MAX, SAMPLED_PASSES_MAX, SAMPLES_MAX,
};

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::cost::Costs;
use crate::error::{Error, ErrorKind, Result};
use crate::placement::Placement;
use crate::schedule::{Schedule, Work};
use crate::sim::{lower_bound_within_ns, peak_memory_bytes, simulate, MemoryCap};
use model::{Model, Words};
use objective::Makespan;
use start::{starts, Start};

/// What to plan for: a training step on a placement.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Who holds which stage.
    pub placement: Placement,
    /// Micro-batches of a step, both directions together; any number.
    pub num_microbatches: usize,
    /// Times and bytes.
    pub costs: Costs,
    /// How much may be kept on each rank.
    pub cap: MemoryCap,
}

/// How long to search, and along which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Changes to try, all threads together. What is found depends on this and the seed alone.
    pub iterations: u64,
    /// Stop when so much time has passed, wherever the search is: then what is found depends on the machine too.
    pub time: Option<Duration>,
    /// Another seed searches another way.
    pub seed: u64,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The makespan is the lower bound: nothing is left to find.
    Optimal,
    /// All iterations were made.
    Iterations,
    /// The time was up.
    Time,
    /// The progress callback asked for it.
    Cancelled,
}

/// The best schedule found.
#[derive(Clone, Debug)]
pub struct Plan {
    /// It; it passes its check and keeps to the cap.
    pub schedule: Schedule,
    /// How long a step takes.
    pub makespan_ns: u64,
    /// `[rank]`: the most activations alive at once.
    pub peak_live: Vec<usize>,
    /// `[rank]`: the most bytes, parameters included.
    pub peak_memory_bytes: Vec<u64>,
    /// No schedule on this placement that keeps to the cap is faster.
    pub lower_bound_ns: u64,
    /// The name of the schedule that the search began with: the best published one that is possible here, or
    /// `"constructed"` where none is.
    pub started_from: String,
    /// How long that one takes.
    pub start_makespan_ns: u64,
    /// Changes that were tried.
    pub iterations: u64,
    /// Why it ended.
    pub stop: Stop,
}

/// Is told now and then how many of how many iterations are done; may stop the search.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// The best schedule that `effort` finds: never slower than the best published one of this placement that keeps to the
/// cap.
///
/// It starts from that one, or from a constructed one where there is none, and changes orders by simulated annealing.
/// The same problem, seed and iterations give the same schedule on every machine and for any number
/// of threads, if time does not run out. `progress` is called on the calling thread, about every few milliseconds for
/// small problems; if it stops the search, the best so far is returned.
///
/// # Errors
/// No micro-batch or too many; costs of another number of stages; a cap for another number of ranks, or one that not
/// even one micro-batch after the other keeps to.
pub fn plan(problem: &Problem, effort: &Effort, progress: Progress<'_>) -> Result<Plan> {
    let began = Instant::now();
    problem.check()?;
    let Problem { placement, num_microbatches, costs, cap } = problem;
    let (starts, bound_ns) = rayon::join(
        || starts(problem, effort.seed),
        || lower_bound_within_ns(placement, *num_microbatches, costs, cap),
    );
    let starts = starts?;
    let Some(start) = starts.first() else { return Err(nothing_fits()) };
    let deadline = effort.time.and_then(|time| began.checked_add(time));
    let Improved { schedule: better, iterations, stop } =
        improve(problem, &starts, bound_ns, effort, deadline, progress)?;
    let (schedule, makespan_ns) = match better {
        Some((schedule, makespan_ns)) if makespan_ns < start.makespan_ns => (schedule, makespan_ns),
        _ => {
            let best = starts.iter().min_by_key(|start| start.makespan_ns).unwrap_or(start);
            (best.schedule.clone(), best.makespan_ns)
        }
    };
    Ok(Plan {
        makespan_ns,
        peak_live: schedule.peak_live(),
        peak_memory_bytes: peak_memory_bytes(&schedule, &problem.costs),
        lower_bound_ns: bound_ns,
        started_from: start.schedule.name().to_owned(),
        start_makespan_ns: start.makespan_ns,
        iterations,
        stop,
        schedule,
    })
}

/// The name of a schedule that the planner made.
const PLANNED: &str = "planned";

/// What a search came to.
struct Improved {
    /// The best that it found, and its makespan; `None` if there was nothing to do or too much.
    schedule: Option<(Schedule, u64)>,
    iterations: u64,
    stop: Stop,
}

/// Searches from `starts`.
fn improve(
    problem: &Problem,
    starts: &[Start],
    bound_ns: u64,
    effort: &Effort,
    deadline: Option<Instant>,
    progress: Progress<'_>,
) -> Result<Improved> {
    if starts[0].makespan_ns == bound_ns {
        return Ok(Improved { schedule: None, iterations: 0, stop: Stop::Optimal });
    }
    let Some(model) = Model::new(problem) else {
        return Ok(Improved { schedule: None, iterations: 0, stop: Stop::Iterations });
    };
    let words = feasible_words(&model, starts);
    if words.is_empty() {
        return Ok(Improved { schedule: None, iterations: 0, stop: Stop::Iterations });
    }
    let mut clock = evaluate::Clock::new(&model);
    let mut is_optimal = |words: &Words| {
        clock.length(&model, words, u64::MAX >> 1).is_some_and(|length| length.makespan_ns <= bound_ns)
    };
    let objective = || Makespan::new(&model);
    let found = rounds::search(&model, &words, objective, &mut is_optimal, effort, deadline, progress);
    let schedule = schedule_of(problem, &model, &found.words)?;
    schedule.check()?;
    let makespan_ns = simulate(&schedule, &problem.costs)?.timeline.makespan_ns();
    if !problem.cap.admits(&schedule, &problem.costs) {
        return Err(Error::new(
            ErrorKind::Internal,
            "plan: the schedule found does not keep to the memory cap",
        ));
    }
    let schedule = Some((schedule, makespan_ns));
    Ok(Improved { schedule, iterations: found.iterations, stop: found.stop })
}

/// The starts as words, the shortest first: those that can run in the model and keep to its caps.
fn feasible_words(model: &Model, starts: &[Start]) -> Vec<Words> {
    let mut clock = evaluate::Clock::new(model);
    let mut put_off = vec![0; model.copies.len()];
    let words = starts.iter().filter_map(|start| {
        let words = model.words(start.schedule.orders());
        let fits = words.iter().enumerate().all(|(rank, word)| anneal::fits(model, rank, word, &mut put_off));
        let length = clock.length(model, &words, u64::MAX >> 1).filter(|_| fits)?;
        Some((length, words))
    });
    let mut words: Vec<_> = words.collect();
    words.sort();
    words.dedup();
    words.into_iter().map(|(_, words)| words).collect()
}

fn schedule_of(problem: &Problem, model: &Model, words: &Words) -> Result<Schedule> {
    let is_merged = finish::merges(model, words);
    let orders = model.orders(words, problem.placement.num_ranks(), &is_merged);
    Schedule::new(PLANNED, problem.placement.clone(), problem.num_microbatches, Work::Training, orders)
}

impl Problem {
    fn check(&self) -> Result<()> {
        let no_ops = vec![Vec::new(); self.placement.num_ranks()];
        Schedule::new("plan", self.placement.clone(), self.num_microbatches, Work::Training, no_ops)?;
        self.costs.fit(self.placement.num_stages()).map_err(|e| e.within("plan"))?;
        self.cap.fit(self.placement.num_ranks()).map_err(|e| e.within("plan"))
    }
}

fn nothing_fits() -> Error {
    Error::new(ErrorKind::InvalidArgument, "plan: no schedule keeps to the memory cap")
}
