//! What the pages of the planner share: a problem read from C, and a search with threads of its own.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::args;
use super::log;
use super::plan::{dualpipe_placement_kind, dualpipe_plan_options};
use super::process;
use super::schedule_orders::read_placement;
use super::schedule_verify::read_cap;
use super::status::dualpipe_status::DUALPIPE_ERROR_UNAVAILABLE;
use super::status::{Failure, Outcome};
use crate::balance::THREADS_MAX;
use crate::cost::Costs;
use crate::placement::{Placement, RANKS_MAX};
use crate::search::{Effort, Problem, Progress};

use dualpipe_placement_kind::*;

/// The longest time limit: a day.
const TIME_LIMIT_NS_MAX: u64 = 86_400_000_000_000;
/// How long a search takes that is given neither iterations nor time.
const DEFAULT_TIME: Duration = Duration::from_secs(2);

/// How long to search, with how many threads, and in what progress is told.
pub(super) struct Search {
    pub(super) effort: Effort,
    num_threads: usize,
    /// What there would be without a limit of iterations.
    unit: Unit,
}

/// What progress counts.
#[derive(Clone, Copy)]
enum Unit {
    Iterations,
    /// Of so many nanoseconds.
    Nanoseconds(u64),
}

/// What to plan for.
///
/// # Safety
/// The lists in `options`, if their bits pass, may be read.
pub(super) unsafe fn read_problem(options: &dualpipe_plan_options, costs: Costs) -> Outcome<Problem> {
    // SAFETY: the caller's promise.
    let placement = unsafe { read_placement_kind(options) }?;
    let activations = (options.cap_activations, options.num_cap_activations);
    // SAFETY: as above.
    let cap = unsafe { read_cap(activations, (options.cap_bytes, options.num_cap_bytes)) }?;
    Ok(Problem { placement, num_microbatches: options.num_microbatches as usize, costs, cap })
}

/// # Safety
/// As of [`read_problem`].
unsafe fn read_placement_kind(options: &dualpipe_plan_options) -> Outcome<Placement> {
    let kinds = [
        DUALPIPE_PLACEMENT_LINEAR,
        DUALPIPE_PLACEMENT_V,
        DUALPIPE_PLACEMENT_INTERLEAVED,
        DUALPIPE_PLACEMENT_BIDIRECTIONAL,
        DUALPIPE_PLACEMENT_CUSTOM,
    ];
    let known = kinds.map(|kind| (kind as u32, kind));
    let kind = args::one_of("options->placement", options.placement, known)?;
    let is_custom = kind == DUALPIPE_PLACEMENT_CUSTOM;
    let stages_per_rank = options.stages_per_rank;
    for (field, value, is_read) in [
        ("stages_per_rank", stages_per_rank, kind == DUALPIPE_PLACEMENT_INTERLEAVED),
        ("num_stages", options.num_stages, is_custom),
        ("num_directions", options.num_directions, is_custom),
    ] {
        if !is_read && value != 0 {
            let how = format!("is {value}, must be 0 for {kind:?}");
            return Err(Failure::argument(format!("options->{field}"), how));
        }
    }
    if !is_custom && !options.rank_of.is_null() {
        return Err(Failure::argument("options->rank_of", format!("must be NULL for {kind:?}")));
    }
    let num_ranks = args::in_range("options->num_ranks", options.num_ranks, 1..=RANKS_MAX)? as usize;
    Ok(match kind {
        DUALPIPE_PLACEMENT_LINEAR => Placement::linear(num_ranks),
        DUALPIPE_PLACEMENT_V => Placement::v(num_ranks),
        DUALPIPE_PLACEMENT_INTERLEAVED => Placement::interleaved(num_ranks, stages_per_rank as usize),
        DUALPIPE_PLACEMENT_BIDIRECTIONAL => Placement::bidirectional(num_ranks),
        DUALPIPE_PLACEMENT_CUSTOM => {
            let sizes = [options.num_ranks, options.num_stages, options.num_directions];
            // SAFETY: the caller's promise.
            return unsafe { read_placement("options", sizes, options.rank_of) };
        }
    }?)
}

impl Search {
    /// Of the fields of those names in what is given as `argument`.
    pub(super) fn read(
        argument: &str,
        [iterations, time_limit_ns, seed]: [u64; 3],
        num_threads: u32,
    ) -> Outcome<Search> {
        args::in_range(format!("{argument}->time_limit_ns"), time_limit_ns, 0..=TIME_LIMIT_NS_MAX)?;
        let field = format!("{argument}->num_threads");
        let num_threads = args::in_range(field, num_threads as usize, 0..=THREADS_MAX)?;
        let time = match (iterations, time_limit_ns) {
            (0, 0) => Some(DEFAULT_TIME),
            (_, 0) => None,
            (_, ns) => Some(Duration::from_nanos(ns)),
        };
        let unit = match (iterations, time) {
            (0, Some(time)) => Unit::Nanoseconds(time.as_nanos() as u64),
            _ => Unit::Iterations,
        };
        let iterations = if iterations == 0 { u64::MAX } else { iterations };
        Ok(Search { effort: Effort { iterations, time, seed }, num_threads, unit })
    }

    /// The same for so many plans, one after the other: where progress counts time, it is that of all of them.
    pub(super) fn of_plans(self, plans: usize) -> Search {
        let unit = match self.unit {
            Unit::Iterations => Unit::Iterations,
            Unit::Nanoseconds(limit) => Unit::Nanoseconds(limit.saturating_mul(plans as u64)),
        };
        Search { unit, ..self }
    }

    /// Runs `search` on threads of its own, which a child of fork has too, and asks the progress callback on this one,
    /// as is promised. If the callback stops it, `search` ends with what it has.
    pub(super) fn run<T: Send>(
        &self,
        search: impl FnOnce(&Effort, Progress<'_>) -> crate::error::Result<T> + Send,
    ) -> Outcome<T> {
        // In a child of fork one, as the header says: whoever forks a trainer has other uses for its cores.
        let num_threads = if process::fork_epoch() != 0 { 1 } else { self.num_threads };
        let pool = ThreadPoolBuilder::new().num_threads(num_threads);
        // Scoped: its threads have ended when this returns.
        let found = pool.build_scoped(|thread| thread.run(), |pool| self.run_in(pool, search));
        let found = found.map_err(|error| {
            Failure::new(DUALPIPE_ERROR_UNAVAILABLE, format!("num_threads is {num_threads}: {error}"))
        })?;
        Ok(found?)
    }

    fn run_in<T: Send>(
        &self,
        pool: &ThreadPool,
        search: impl FnOnce(&Effort, Progress<'_>) -> crate::error::Result<T> + Send,
    ) -> crate::error::Result<T> {
        let began = Instant::now();
        let (ask, asked) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        let mut found = None;
        pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                let mut progress = move |done: u64, total: u64| {
                    let answered = ask.send((done, total)).ok().and_then(|()| answered.recv().ok());
                    // Nobody is there any more if the callback panicked.
                    answered.unwrap_or(ControlFlow::Break(()))
                };
                found = Some(search(&self.effort, &mut progress));
            });
            for (done, total) in asked {
                let (done, total) = self.unit.count(began, done, total);
                let go_on = match log::progress(done, total) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                };
                if answer.send(go_on).is_err() {
                    break;
                }
            }
        });
        found.unwrap_or_else(|| unreachable!("a scope ends when what it spawned has ended"))
    }
}

impl Unit {
    /// `done` of `total` iterations in this unit.
    fn count(self, began: Instant, done: u64, total: u64) -> (u64, u64) {
        match self {
            Unit::Iterations => (done.min(total), total),
            Unit::Nanoseconds(limit) => ((began.elapsed().as_nanos() as u64).min(limit), limit),
        }
    }
}
