//! How policies would have done: each is run over a recorded load history, and judged by what came next.
//!
//! A plan that is judged by the loads it was made from flatters itself: loads drift, and a step's counts are noisy
//! even where nothing drifts. Here a policy is shown the steps before a rebalance, and never more; what it places then
//! runs until the next rebalance, and is judged on these steps alone:
//!
//! ```text
//! step       0 … window     … window + every     … window + 2 every …
//!            shown to the first plan
//!                           judges the first plan
//!            shown to the second (all of it; the last `window` steps are the window)
//!                                                judges the second plan
//! ```
//!
//! `policy` is what can be run, `moves` what a change of the placement costs, `table` the result for people.

mod moves;
mod policy;
mod table;

pub use self::moves::Moves;
pub use self::policy::{Past, Placed, Policy};

use self::moves::count;
use std::cell::Cell;

use super::bound::Bounds;
use super::cluster::{Cluster, EMPTY};
use super::evaluate::{check_len, ratio, Evaluator};
use super::goal::{Goal, GroupRule, PLAN_SLOTS_MAX};
use super::layers::THREADS_MAX;
use super::loads::{total, Loads};
use super::verify::{verify, Severity, Unverified};
use crate::error::{in_range, Error, ErrorKind, Result};

/// When to rebalance, and from where.
#[derive(Clone, Copy)]
pub struct ReplayOptions<'a> {
    /// Steps that a policy plans for; the first rebalance is after so many. At least 1, less than the history has.
    pub window: usize,
    /// Steps from one rebalance to the next, at least 1.
    pub every: usize,
    /// `[num_layers, num_slots]`: the placement at first; without: the experts in order, again and again.
    pub initial: Option<&'a [u32]>,
    /// Bytes of one expert's weights in one layer, at most 2^37.
    pub expert_bytes: u64,
    /// Whether to say, beside the imbalances, what no placement could beat in the same steps, even one made for each
    /// of them alone and with shares as it likes: the joint bound.
    pub with_bounds: bool,
    /// Of the policies of this library, as of [`Options`](super::Options). The results are the same.
    pub num_threads: usize,
    /// Called on the caller's thread now and then with how much is done and of how much; `false` stops.
    pub progress: Option<&'a Progress<'a>>,
}

/// For [`ReplayOptions::progress`].
pub type Progress<'a> = dyn Fn(u64, u64) -> bool + 'a;

/// How each policy did, in the order of the policies. Printed, it is a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// One for each policy.
    pub runs: Vec<Run>,
}

/// How one policy did.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The policy's.
    pub name: String,
    /// From each rebalance to the next.
    pub windows: Vec<Window>,
    /// `[num_layers]`: the imbalance over all judged steps, as of [`Window::imbalance`].
    pub imbalance: Vec<f64>,
    /// `[num_layers]` likewise; empty without bounds.
    pub lower_bound: Vec<f64>,
    /// All moves.
    pub moves: Moves,
    /// `[num_layers, num_gpus]`: the loads of the GPUs in the last window, for [`heat_map`](super::heat_map()).
    pub gpu_loads: Vec<f64>,
}

impl Run {
    /// Rebalances that placed anew.
    pub fn num_new(&self) -> usize {
        self.windows.iter().filter(|window| window.is_new).count()
    }

    /// As [`Window::away`], the mean over all judged steps.
    pub fn away(&self) -> f64 {
        let steps: usize = self.windows.iter().map(|window| window.num_steps).sum();
        let away: f64 = self.windows.iter().map(|window| window.away * window.num_steps as f64).sum();
        away / steps.max(1) as f64
    }
}

/// A rebalance and the steps until the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The first step; the plan was made from the steps before.
    pub step: usize,
    /// Steps until the next rebalance, or the end.
    pub num_steps: usize,
    /// Whether the policy placed anew, rather than to keep what there was.
    pub is_new: bool,
    /// `[num_layers]`: the heaviest GPU of every step summed up / the means of the steps summed up, at least 1: the
    /// inverse of what vLLM reports as balancedness.
    pub imbalance: Vec<f64>,
    /// `[num_layers]`: what no placement could beat in these steps; empty without bounds.
    pub lower_bound: Vec<f64>,
    /// The share of all layers' load that was not on its group's home node; 0 where groups are free.
    pub away: f64,
    /// What the change of placement moved.
    pub moves: Moves,
}

/// Runs each policy over a load history, and judges every plan by the steps after it.
///
/// `loads` is `[num_steps, num_layers, num_experts]`, 2 to 65536 steps. `goal` is what policies of this library plan
/// for; a placement is only held to its numbers of layers and experts, so that policies that do not know of a rule can
/// be compared with those that do. The policies run one after the other on the caller's thread.
///
/// Apart from the policies: `O(num_policies * num_steps * num_layers * (num_slots + num_experts))`.
///
/// # Errors
///
/// `InvalidArgument`: a number out of its range, a load that is negative or not finite, a placement that loses tokens
/// (as [`verify`](super::verify()) finds it), the initial one or a policy's; `Cancelled` if `options.progress`
/// returned `false`; and whatever a policy fails with.
///
/// # Examples
///
/// Expert 0 is hot, and DeepSeek's policy finds out.
///
/// ```
/// use dualpipe::balance::replay::{Policy, ReplayOptions};
/// use dualpipe::balance::{replay, Cluster, Goal};
///
/// let loads = [6.0, 2.0].repeat(8);
/// let mut policies = [Policy::none(), Policy::deepseek()];
/// let options = ReplayOptions { initial: Some(&[0, 0, 1, 1]), ..ReplayOptions::new(4, 2) };
/// let replay = replay(&Cluster::even(4, 2, 1)?, &Goal::new(1, 2), &loads, &options, &mut policies)?;
/// assert_eq!(replay.runs[0].imbalance, [1.5]);
/// assert_eq!(replay.runs[1].imbalance, [1.0]);
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn replay(
    cluster: &Cluster,
    goal: &Goal,
    loads: &[f32],
    options: &ReplayOptions<'_>,
    policies: &mut [Policy<'_>],
) -> Result<Replay> {
    goal.check(cluster).map_err(|error| error.within("replay"))?;
    // There may be more GPUs than slots.
    in_range("replay", "num_layers * num_gpus", goal.num_layers * cluster.num_gpus(), 1..=PLAN_SLOTS_MAX)?;
    let history = check(goal, loads, options)?;
    let initial = match options.initial {
        Some(initial) => initial.to_vec(),
        None => in_order(cluster, goal),
    };
    let initial = Placed { slot_to_expert: initial, shares: None };
    check_placed(cluster, goal, &initial, "the initial placement")?;
    in_range("replay", "num_threads", options.num_threads, 0..=THREADS_MAX)?;
    let bounds = bounds(cluster, &history, options)?;
    let meter = Meter::new(options, (policies.len() * bounds.len()) as u64);
    let mut runs = Vec::with_capacity(policies.len());
    for policy in policies {
        runs.push(run(cluster, &history, options, policy, initial.clone(), &bounds, &meter)?);
    }
    Ok(Replay { runs })
}

/// How far the replay has come, in plans made and judged.
struct Meter<'a> {
    progress: Option<&'a Progress<'a>>,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Meter<'a> {
    fn new(options: &ReplayOptions<'a>, total: u64) -> Meter<'a> {
        Meter { progress: options.progress, done: Cell::new(0), total }
    }

    /// `false` if the caller wants to stop.
    fn report(&self) -> bool {
        self.progress.is_none_or(|progress| progress(self.done.get(), self.total))
    }

    fn advance(&self) -> Result<()> {
        self.done.set(self.done.get() + 1);
        if self.report() {
            return Ok(());
        }
        let text = format!("replay: cancelled after {} of {} plans", self.done.get(), self.total);
        Err(Error::new(ErrorKind::Cancelled, text))
    }
}

impl ReplayOptions<'_> {
    /// A window, a time between rebalances, and nothing else.
    pub fn new(window: usize, every: usize) -> Self {
        ReplayOptions {
            window,
            every,
            initial: None,
            expert_bytes: 0,
            with_bounds: false,
            num_threads: 1,
            progress: None,
        }
    }
}

/// The loads, step by step.
struct History<'a> {
    loads: &'a [f32],
    goal: &'a Goal,
    num_steps: usize,
    /// Of all layers in one step.
    len_of_step: usize,
}

impl<'a> History<'a> {
    /// The loads of some steps, at least one.
    fn steps(&self, steps: std::ops::Range<usize>) -> Result<Loads<'a>> {
        let num_steps = steps.len();
        let loads = &self.loads[steps.start * self.len_of_step..steps.end * self.len_of_step];
        let loads = Loads::new(loads, num_steps, self.goal.num_layers, self.goal.num_experts);
        loads.map_err(|error| error.within("replay"))
    }

    /// The judged steps, from each rebalance to the next.
    fn windows(&self, options: &ReplayOptions<'_>) -> impl Iterator<Item = std::ops::Range<usize>> {
        let &ReplayOptions { window, every, .. } = options;
        let num_steps = self.num_steps;
        (window..num_steps).step_by(every).map(move |step| step..num_steps.min(step.saturating_add(every)))
    }
}

fn check<'a>(goal: &'a Goal, loads: &'a [f32], options: &ReplayOptions<'_>) -> Result<History<'a>> {
    let len_of_step = goal.num_layers * goal.num_experts;
    let num_steps = loads.len() / len_of_step;
    check_len("replay", "loads", loads.len(), num_steps * len_of_step)?;
    in_range("replay", "num_steps", num_steps, 2..=1 << 16)?;
    in_range("replay", "window", options.window, 1..=num_steps - 1)?;
    in_range("replay", "every", options.every, 1..=usize::MAX)?;
    in_range("replay", "expert_bytes", options.expert_bytes, 0..=1 << 37)?;
    let history = History { loads, goal, num_steps, len_of_step };
    history.steps(0..num_steps)?;
    Ok(history)
}

/// `[num_layers, num_slots]`: in each layer, live slot i holds expert i modulo their number.
fn in_order(cluster: &Cluster, goal: &Goal) -> Vec<u32> {
    let mut layer = vec![EMPTY; cluster.num_slots()];
    for (i, slot) in cluster.live_gpus().flat_map(|gpu| cluster.slots(gpu)).enumerate() {
        layer[slot] = (i % goal.num_experts) as u32;
    }
    layer.repeat(goal.num_layers)
}

/// Whether a placement loses no tokens; `whose` it is, for the error.
fn check_placed(cluster: &Cluster, goal: &Goal, placed: &Placed, whose: &str) -> Result<()> {
    let goal = Goal { groups: GroupRule::Free, min_gpus: 1, min_nodes: 1, ..*goal };
    let unverified =
        Unverified { shares: placed.shares.as_deref(), ..Unverified::new(&placed.slot_to_expert) };
    let report =
        verify(cluster, &goal, &unverified).map_err(|error| error.within(&format!("replay: {whose}")))?;
    match report.findings().iter().find(|finding| finding.kind().severity() == Severity::Error) {
        None => Ok(()),
        Some(finding) => Err(Error::new(ErrorKind::InvalidArgument, format!("replay: {whose}: {finding}"))),
    }
}

/// `[num_windows]` of `[num_layers]`; each empty without bounds.
fn bounds(cluster: &Cluster, history: &History<'_>, options: &ReplayOptions<'_>) -> Result<Vec<Vec<f64>>> {
    // No policy is held to more.
    let goal = Goal { groups: GroupRule::Free, min_gpus: 1, min_nodes: 1, ..*history.goal };
    let mut bounds = Bounds::new(cluster, &goal);
    let mut of_layer = |loads: &Loads<'_>, layer| {
        let (mut least, mut mean) = (0.0, 0.0);
        for loads in loads.steps_of(layer) {
            let load = total(loads);
            least += load * bounds.lower_bound(loads).joint;
            mean += load;
        }
        // Sums and quotients of positive numbers: each operation errs by a factor within 1 ± 2^-53.
        ratio(least * (1.0 - (4 * loads.num_steps()) as f64 * f64::EPSILON), mean)
    };
    let num_layers = if options.with_bounds { goal.num_layers } else { 0 };
    let mut of_window = |steps| {
        let loads = history.steps(steps)?;
        Ok((0..num_layers).map(|layer| of_layer(&loads, layer)).collect())
    };
    history.windows(options).map(&mut of_window).collect()
}

fn run(
    cluster: &Cluster,
    history: &History<'_>,
    options: &ReplayOptions<'_>,
    policy: &mut Policy<'_>,
    mut current: Placed,
    bounds: &[Vec<f64>],
    meter: &Meter<'_>,
) -> Result<Run> {
    let mut judge = Judge::new(cluster, history.goal);
    let mut windows = Vec::with_capacity(bounds.len());
    for (steps, bound) in history.windows(options).zip(bounds) {
        let past = Past {
            loads: &history.loads[..steps.start * history.len_of_step],
            window: history.steps(steps.start - options.window..steps.start)?,
            cluster,
            goal: history.goal,
            step: steps.start,
            num_threads: options.num_threads,
            go_on: &|| meter.report(),
        };
        let next = policy.plan(&past, &current)?;
        let is_new = next.is_some();
        let mut moves = Moves::default();
        if let Some(next) = next {
            let whose = format!("the placement of `{}` at step {}", policy.name(), steps.start);
            check_placed(cluster, history.goal, &next, &whose)?;
            moves = count(
                cluster,
                history.goal.num_experts,
                options.expert_bytes,
                &current.slot_to_expert,
                &next.slot_to_expert,
            )?;
            current = next;
        }
        let (step, num_steps) = (steps.start, steps.len());
        let (imbalance, away) = judge.judge(&history.steps(steps)?, &current, bound);
        windows.push(Window { step, num_steps, is_new, imbalance, lower_bound: bound.clone(), away, moves });
        meter.advance()?;
    }
    let moves = windows.iter().fold(Moves::default(), |all, window| all + window.moves);
    let (imbalance, lower_bound) = judge.totals();
    let lower_bound = if options.with_bounds { lower_bound } else { Vec::new() };
    Ok(Run {
        name: policy.name().to_owned(),
        windows,
        imbalance,
        lower_bound,
        moves,
        gpu_loads: judge.gpu_loads,
    })
}

/// Judges placements window by window, and adds up.
struct Judge<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    evaluator: Evaluator<'a>,
    group_of_expert: Vec<u32>,
    /// `[num_layers]`, over all windows.
    sums: Vec<Sums>,
    /// `[num_layers, num_gpus]`: of the last window.
    gpu_loads: Vec<f64>,
}

/// Of a layer, over steps.
#[derive(Clone, Copy, Default)]
struct Sums {
    max: f64,
    mean: f64,
    /// A lower bound on `max`.
    least: f64,
}

impl<'a> Judge<'a> {
    fn new(cluster: &'a Cluster, goal: &'a Goal) -> Judge<'a> {
        Judge {
            cluster,
            goal,
            evaluator: Evaluator::new(cluster, goal.num_experts),
            group_of_expert: goal.group_of_expert(),
            sums: vec![Sums::default(); goal.num_layers],
            gpu_loads: vec![0.0; goal.num_layers * cluster.num_gpus()],
        }
    }

    /// The imbalance of each layer in these steps, and how much load is away from home.
    fn judge(&mut self, loads: &Loads<'_>, placed: &Placed, bound: &[f64]) -> (Vec<f64>, f64) {
        let (num_slots, num_gpus) = (self.cluster.num_slots(), self.cluster.num_gpus());
        self.gpu_loads.fill(0.0);
        let mut imbalance = Vec::with_capacity(self.goal.num_layers);
        let (mut away, mut all) = (0.0, 0.0);
        for layer in 0..self.goal.num_layers {
            let slots = layer * num_slots..(layer + 1) * num_slots;
            let shares = placed.shares.as_ref().map(|shares| &shares[slots.clone()]);
            let slot_to_expert = &placed.slot_to_expert[slots];
            let mut sums = Sums::default();
            for loads in loads.steps_of(layer) {
                self.evaluator.evaluate(slot_to_expert, shares, loads);
                let (max, sum) = self.evaluator.max_and_sum();
                sums.max += max;
                sums.mean += sum / self.cluster.num_live_gpus() as f64;
                let of_layer = &mut self.gpu_loads[layer * num_gpus..][..num_gpus];
                of_layer.iter_mut().zip(self.evaluator.gpu_loads()).for_each(|(all, load)| *all += load);
                if self.goal.groups != GroupRule::Free {
                    away += sum * self.evaluator.away(&self.group_of_expert, slot_to_expert, shares, loads);
                    all += sum;
                }
            }
            sums.least = sums.mean * bound.get(layer).copied().unwrap_or(1.0);
            imbalance.push(ratio(sums.max, sums.mean));
            self.sums[layer].add(sums);
        }
        (imbalance, if all > 0.0 { away / all } else { 0.0 })
    }

    /// `[num_layers]` each: imbalance and lower bound over all windows.
    fn totals(&self) -> (Vec<f64>, Vec<f64>) {
        let of = |sum: fn(&Sums) -> f64| self.sums.iter().map(|sums| ratio(sum(sums), sums.mean)).collect();
        (of(|sums| sums.max), of(|sums| sums.least))
    }
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.max += other.max;
        self.mean += other.mean;
        self.least += other.least;
    }
}
