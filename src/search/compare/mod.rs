//! Which placement: published schedules and planned ones on equal devices, with what each costs in time, in memory and
//! in messages.
//!
//! Placements cut a model into different numbers of stages. What makes them comparable:
//! - costs of the same model, cut into each placement's stages by [`Costs::regrouped`];
//! - activations in units of one micro-batch on one P-th of the model, of which each of a rank's v stages keeps 1/v;
//! - parameters in copies of the model: a bidirectional placement has two.
//!
//! Messages do not slow one another down in the simulation. So what a placement sends, more the more stages it has,
//! stands in the table but is in its makespan only as latency and as its own time on the link.

use super::published::Shape;
use super::{plan, Effort, Problem, Progress};
use crate::cost::Costs;
use crate::error::{in_range, Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::placement::RANKS_MAX;
use crate::schedule::{Schedule, MICROBATCHES_MAX};
use crate::sim::{lower_bound_ns, simulate, MemoryCap, Simulation};
use table::to_text;

mod table;

/// Most ranks times micro-batches that schedules are compared for: all of them are kept.
pub const COMPARED_MAX: usize = 1 << 18;

/// The plans of a comparison, one for each placement.
pub const COMPARED_PLANS: usize = SHAPES.len();

/// The shapes in which stages are placed, in the order of the published schedules' age.
const SHAPES: [Shape; 6] = [
    Shape::Linear,
    Shape::Interleaved(2),
    Shape::Interleaved(3),
    Shape::Interleaved(4),
    Shape::V,
    Shape::Bidirectional,
];

/// A model and the devices to train it on, whatever the placement.
#[derive(Clone, Debug)]
pub struct Setting {
    /// P.
    pub num_ranks: usize,
    /// Micro-batches of a step.
    pub num_microbatches: usize,
    /// Of the finest stages that the model is to be cut into: a multiple of `num_ranks`, or one entry that is every
    /// P-th of the model's.
    pub costs: Costs,
    /// What a rank may keep. Activations are of one micro-batch on one P-th of the model.
    pub cap: MemoryCap,
}

/// What came out of a comparison.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What was compared for.
    pub setting: Setting,
    /// The best first: those that fit by makespan, then those that do not by makespan, then those that are not
    /// possible. Of two that are equal, a published one is before a planned one.
    pub candidates: Vec<Candidate>,
}

/// A schedule that was compared with others.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Of the published schedule, or `planned`.
    pub name: String,
    /// How stages are placed.
    pub shape: Shape,
    /// The same in words: `linear`, `V`, `bidirectional`, `interleaved xV` with V stages on a rank.
    pub placement: String,
    /// What it costs; or why it is not possible.
    pub outcome: Result<Measured>,
}

/// What a schedule costs.
#[derive(Clone, Debug)]
pub struct Measured {
    /// It.
    pub schedule: Schedule,
    /// How long a step takes.
    pub makespan_ns: u64,
    /// No schedule on this placement is faster; where this one fits, none that fits is.
    pub lower_bound_ns: u64,
    /// The bubble's share of the step, mean over ranks, 0 to 1.
    pub bubble_share: f64,
    /// Copies of the model's parameters that there are.
    pub parameter_copies: usize,
    /// Of the rank that has most.
    pub parameter_bytes: u64,
    /// The most activations alive at once on any rank, of one micro-batch on one P-th of the model.
    pub peak_activations: f64,
    /// The most bytes that activations take on any rank.
    pub peak_activation_bytes: u64,
    /// Bytes that go to other ranks, from the one that sends most.
    pub sent_bytes: u64,
    /// Messages that go to other ranks, from the one that sends most.
    pub sent_messages: usize,
    /// By how much it does not fit the cap, on the rank where it is most; `None` if it fits.
    pub excess: Option<Excess>,
}

/// By how much a schedule exceeds a cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Excess {
    /// Activations of one micro-batch on one P-th of the model.
    Activations(f64),
    /// Bytes.
    Bytes(u64),
}

/// Compares the published schedules with each other, and with a planned one on each placement: linear, V,
/// bidirectional, and interleaved with 2, 3 and 4 stages on a rank. What does not admit the sizes is listed with the
/// reason.
///
/// `effort` is that of each of the 6 plans; `progress` hears of all of them together. Stopped by it, the plan at hand
/// is the best so far, and later ones are listed as not made.
///
/// # Errors
/// No ranks or micro-batches, or more than [`COMPARED_MAX`] for both multiplied; costs that are not of 1 stage or a
/// multiple of `num_ranks`; a cap with another number of entries.
pub fn compare(setting: &Setting, effort: &Effort, progress: Progress<'_>) -> Result<Comparison> {
    setting.check()?;
    let mut plans = Plans { effort, done: 0, is_stopped: false, progress };
    let mut candidates = Vec::new();
    for shape in SHAPES {
        let on_shape = setting.on(shape);
        let planned = on_shape.as_ref().map_err(Error::clone).and_then(|problem| plans.next(problem));
        let bound_ns = planned.as_ref().map_or(0, |planned| planned.1);
        let planned = ("planned", planned.map(|planned| planned.0));
        let published = shape.published(setting.num_ranks, setting.num_microbatches);
        let published = published.into_iter().map(|published| (published.name, published.schedule));
        for (name, schedule) in published.chain([planned]) {
            let measured = on_shape.as_ref().map_err(Error::clone).and_then(|problem| {
                let measured = measure(schedule?, problem, shape.stages_per_rank())?;
                Ok(measured.with_bound_of_plan(bound_ns))
            });
            let name = name.to_owned();
            candidates.push(Candidate { name, shape, placement: shape.name(), outcome: measured });
        }
    }
    candidates.sort_by_key(|candidate| match &candidate.outcome {
        Ok(measured) => (u8::from(measured.excess.is_some()), measured.makespan_ns, candidate.is_planned()),
        Err(_) => (2, 0, candidate.is_planned()),
    });
    Ok(Comparison { setting: setting.clone(), candidates })
}

impl Comparison {
    /// The table for people: an aligned line for each candidate, and the reasons of those that are not possible below.
    /// Activations are the most at once, messages those sent, each of the rank that has most; their bytes stand beside
    /// them where there are any.
    pub fn to_text(&self) -> String {
        to_text(self)
    }

    /// A candidate of it, played against its placement's share of the costs.
    ///
    /// # Errors
    /// That of a candidate which is not possible.
    pub fn simulate(&self, candidate: &Candidate) -> Result<Simulation> {
        let measured = candidate.outcome.as_ref().map_err(Error::clone)?;
        simulate(&measured.schedule, &self.setting.on(candidate.shape)?.costs)
    }

    /// The best that fits, if any does.
    pub fn best(&self) -> Option<(&Candidate, &Measured)> {
        let first = self.candidates.first()?;
        let measured = first.outcome.as_ref().ok()?;
        measured.excess.is_none().then_some((first, measured))
    }
}

impl Candidate {
    /// Whether it was planned, not published.
    pub fn is_planned(&self) -> bool {
        self.name == "planned"
    }
}

impl Setting {
    fn check(&self) -> Result<()> {
        let Setting { num_ranks, num_microbatches, costs, cap } = self;
        in_range("compare", "num_ranks", *num_ranks, 1..=RANKS_MAX as usize)?;
        in_range("compare", "num_microbatches", *num_microbatches, 1..=MICROBATCHES_MAX)?;
        let argument = "num_ranks times num_microbatches";
        in_range("compare", argument, num_ranks * num_microbatches, 1..=COMPARED_MAX)?;
        let stages = costs.num_stages();
        if stages != 1 && stages % num_ranks != 0 {
            let range = format!("must be 1 or a multiple of {num_ranks}, the number of ranks");
            return Err(Error::argument("compare", "the number of stages with costs", stages, range));
        }
        cap.fit(*num_ranks).map_err(|e| e.within("compare"))
    }

    /// The same model and devices on one placement.
    fn on(&self, shape: Shape) -> Result<Problem> {
        let placement = shape.placement(self.num_ranks)?;
        let stages = if self.costs.num_stages() == 1 { self.num_ranks } else { self.costs.num_stages() };
        let costs = self.costs.regrouped(stages, placement.num_stages())?;
        let cap = match &self.cap {
            MemoryCap::Activations(caps) => {
                let of_stages = |&cap: &usize| cap.saturating_mul(shape.stages_per_rank());
                MemoryCap::Activations(caps.iter().map(of_stages).collect())
            }
            cap => cap.clone(),
        };
        Ok(Problem { placement, num_microbatches: self.num_microbatches, costs, cap })
    }
}

/// One plan after another.
struct Plans<'a> {
    effort: &'a Effort,
    done: u64,
    is_stopped: bool,
    progress: Progress<'a>,
}

impl Plans<'_> {
    /// A plan and the bound that it found.
    fn next(&mut self, problem: &Problem) -> Result<(Schedule, u64)> {
        if self.is_stopped {
            return Err(Error::new(ErrorKind::Cancelled, "plan: not made: stopped before"));
        }
        let each = self.effort.iterations;
        let (before, all) = (each.saturating_mul(self.done), each.saturating_mul(SHAPES.len() as u64));
        self.done += 1;
        let (progress, is_stopped) = (&mut *self.progress, &mut self.is_stopped);
        let plan = plan(problem, self.effort, &mut |done, _| {
            let flow = progress(before.saturating_add(done), all);
            *is_stopped |= flow.is_break();
            flow
        })?;
        Ok((plan.schedule, plan.lower_bound_ns))
    }
}

fn measure(schedule: Schedule, problem: &Problem, stages_per_rank: usize) -> Result<Measured> {
    let simulation = simulate(&schedule, &problem.costs)?;
    let placement = &problem.placement;
    let ranks = || (0..placement.num_ranks()).map(Rank::from_index);
    let stage_bytes = |rank| {
        let copies = placement.copies_on(rank).iter();
        copies.map(|copy| problem.costs.stage(copy.stage).parameter_bytes).sum::<u64>()
    };
    let parameters: Vec<u64> = ranks().map(stage_bytes).collect();
    let activations = simulation.peak_memory_bytes.iter().zip(&parameters).map(|(peak, bytes)| peak - bytes);
    let (mut bytes, mut messages) = (vec![0u64; placement.num_ranks()], vec![0usize; placement.num_ranks()]);
    for span in &simulation.timeline.messages {
        bytes[span.from.index()] += problem.costs.stage(span.message.boundary().stage).output_bytes;
        messages[span.from.index()] += 1;
    }
    let peak_live = schedule.peak_live();
    let whole = |stage_activations: usize| stage_activations as f64 / stages_per_rank as f64;
    let excess_activations = |rank: Rank| {
        peak_live[rank.index()].checked_sub(problem.cap.activations(rank)?).filter(|&over| over > 0)
    };
    let excess_bytes = |rank: Rank| {
        simulation.peak_memory_bytes[rank.index()]
            .checked_sub(problem.cap.bytes(rank)?)
            .filter(|&over| over > 0)
    };
    let activations_over = ranks().filter_map(excess_activations).max();
    let bytes_over = ranks().filter_map(excess_bytes).max();
    Ok(Measured {
        makespan_ns: simulation.timeline.makespan_ns(),
        lower_bound_ns: lower_bound_ns(&schedule, &problem.costs),
        bubble_share: simulation.timeline.bubble_share(),
        parameter_copies: placement.num_directions(),
        peak_activation_bytes: activations.max().unwrap_or(0),
        parameter_bytes: parameters.into_iter().max().unwrap_or(0),
        peak_activations: whole(peak_live.iter().copied().max().unwrap_or(0)),
        sent_bytes: bytes.into_iter().max().unwrap_or(0),
        sent_messages: messages.into_iter().max().unwrap_or(0),
        excess: activations_over
            .map(|over| Excess::Activations(whole(over)))
            .or(bytes_over.map(Excess::Bytes)),
        schedule,
    })
}

impl Measured {
    /// A plan's bound may know of the cap: then it holds for what fits.
    fn with_bound_of_plan(self, bound_ns: u64) -> Measured {
        match self.excess {
            None => Measured { lower_bound_ns: self.lower_bound_ns.max(bound_ns), ..self },
            Some(_) => self,
        }
    }
}
