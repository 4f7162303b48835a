//! The planner: loads, a cluster, a goal, and perhaps the placement that is there → a plan with its proof.

use super::few_moves::{MoveBudget, MovePlanner};
use super::finish::Finisher;
use super::layers::{place_layers, Layer};
use super::loads::{add_up, Loads};
use super::refine::Refiner;
use super::route::Router;
use super::weighted::WeightedPlacer;
use super::{Cluster, ExpertPlan, Goal, Options, Split};
use crate::error::{in_range, Error, Result};

/// The placement that the experts lie by now, and how much of it may change.
#[derive(Clone, Copy, Debug)]
pub struct Current<'a> {
    /// `[num_layers, num_slots]`: the expert in each slot; [`EMPTY`](super::EMPTY), or any other number that is no
    /// expert, where there is none. What slots of dead GPUs hold does not matter.
    pub slot_to_expert: &'a [u32],
    /// How much may be moved.
    pub budget: MoveBudget,
}

/// Places the experts of every layer as well as it can, within the limits of `goal`, with a proven lower bound beside
/// it.
///
/// `loads` are of one step or of a window; of a window the sum over its steps of the heaviest GPU's load is made small.
/// With a `current` placement the plan starts from there, and what stays keeps its slot. The plan is the same for any
/// number of threads, and on every machine. Any number of threads may call this at once.
///
/// An equal split is refined from a greedy start until it is within 1e-4 of its bound or the search of `goal.effort` is
/// done; a weighted one has the best shares for its placement (docs/balance.md has how, and figures).
///
/// # Errors
///
/// `InvalidArgument` if [`Goal::check`] refuses, for loads or a placement of other sizes, too many threads, a budget
/// out of range, or if no placement was found that keeps groups whole and every expert on enough GPUs and nodes;
/// `Cancelled` if `options.progress` returned `false`.
///
/// # Examples
///
/// Eight experts on eight GPUs of two slots, of which two experts have most of the load (the example of vLLM-Ascend's
/// FlashLB). The mean is 181.25: an equal split cannot get there, weighted shares can.
///
/// ```
/// use dualpipe::balance::{balance, Cluster, Goal, Loads, Options, Split};
///
/// let cluster = Cluster::even(16, 8, 1)?;
/// let loads = [600., 560., 120., 120., 20., 10., 10., 10.];
/// let loads = Loads::new(&loads, 1, 1, 8)?;
/// let goal = Goal::new(1, 8);
/// let equal = balance(&cluster, &goal, &loads, None, Options::default())?;
/// assert!((equal.layers()[0].imbalance * 181.25 - 196.666).abs() < 0.001);
/// let goal = Goal { split: Split::Weighted, ..goal };
/// let weighted = balance(&cluster, &goal, &loads, None, Options::default())?;
/// assert!(weighted.layers()[0].imbalance < 1.000001);
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn balance(
    cluster: &Cluster,
    goal: &Goal,
    loads: &Loads<'_>,
    current: Option<Current<'_>>,
    options: Options<'_>,
) -> Result<ExpertPlan> {
    options.check()?;
    goal.check(cluster)?;
    loads.check_sizes(goal)?;
    let num_slots = cluster.num_slots();
    if let Some(Current { slot_to_expert, budget }) = current {
        let size = goal.num_layers * num_slots;
        in_range("balance", "the number of current slots", slot_to_expert.len(), size..=size)?;
        budget.check()?;
    }
    let plan = ExpertPlan::empty(cluster.clone(), *goal);
    place_layers(plan, options, SLOTS_PER_REPORT, || {
        let mut planner = LayerPlanner::new(cluster, goal, current);
        move |layer| planner.plan(loads, layer)
    })
}

/// Some milliseconds' work.
const SLOTS_PER_REPORT: usize = 1 << 10;

/// Plans layer after layer in the same memory.
struct LayerPlanner<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    current: Option<(Current<'a>, MovePlanner<'a>)>,
    placer: Placer<'a>,
    finisher: Finisher<'a>,
}

/// Where there is no current placement, or it may all be changed.
#[allow(clippy::large_enum_variant)] // there is one for each thread
enum Placer<'a> {
    Equal(Refiner<'a>),
    Weighted(WeightedPlacer<'a>),
}

impl<'a> LayerPlanner<'a> {
    fn new(cluster: &'a Cluster, goal: &'a Goal, current: Option<Current<'a>>) -> LayerPlanner<'a> {
        LayerPlanner {
            cluster,
            goal,
            current: current.map(|current| (current, MovePlanner::new(cluster, goal, current.budget))),
            placer: match goal.split {
                Split::Equal => Placer::Equal(Refiner::new(cluster, goal)),
                Split::Weighted => Placer::Weighted(WeightedPlacer::new(cluster, goal)),
            },
            finisher: Finisher::new(cluster, goal),
        }
    }

    fn plan(&mut self, loads: &Loads<'_>, mut layer: Layer<'_>) -> Result<()> {
        let steps: Vec<&[f32]> = loads.steps_of(layer.index).collect();
        let Some((current, mut planner)) = self.current.take() else {
            self.place_anew(&steps, &mut layer)?;
            self.finisher.finish(&steps, &mut layer);
            return Ok(());
        };
        let outcome = self.plan_from(&current, &mut planner, &steps, &mut layer);
        self.current = Some((current, planner));
        outcome
    }

    fn plan_from(
        &mut self,
        current: &Current<'_>,
        planner: &mut MovePlanner<'_>,
        steps: &[&[f32]],
        layer: &mut Layer<'_>,
    ) -> Result<()> {
        let slots =
            &current.slot_to_expert[layer.index * self.cluster.num_slots()..][..self.cluster.num_slots()];
        let Some(cost) = planner.place(steps, slots, layer.slot_to_expert) else {
            self.place_anew(steps, layer)?;
            planner.renumber(slots, layer.slot_to_expert);
            return self.share_and_finish(steps, layer);
        };
        self.share_and_finish(steps, layer)?;
        let few_moves = layer.balance.imbalance;
        if current.budget.is_content(few_moves, layer.balance.lower_bound()) {
            return Ok(());
        }
        // Single moves may have come to a dead end that a placement made anew knows nothing of.
        let kept = layer.slot_to_expert.to_vec();
        if self.place_anew(steps, layer).is_ok() {
            let cost_anew = planner.renumber(slots, layer.slot_to_expert);
            self.share_and_finish(steps, layer)?;
            if current.budget.affords(&cost_anew, cost.forced) && layer.balance.imbalance < few_moves {
                return Ok(());
            }
        }
        layer.slot_to_expert.copy_from_slice(&kept);
        self.share_and_finish(steps, layer)
    }

    fn place_anew(&mut self, steps: &[&[f32]], layer: &mut Layer<'_>) -> Result<()> {
        let is_placed = match &mut self.placer {
            Placer::Equal(refiner) => refiner.place(steps, layer.slot_to_expert),
            Placer::Weighted(placer) => placer.place(steps, layer.slot_to_expert, layer.weights),
        };
        if is_placed {
            return Ok(());
        }
        Err(self.found_none(layer.index))
    }

    fn share_and_finish(&mut self, steps: &[&[f32]], layer: &mut Layer<'_>) -> Result<()> {
        self.share(steps, layer)?;
        self.finisher.finish(steps, layer);
        Ok(())
    }

    /// The best shares for where the experts are.
    fn share(&self, steps: &[&[f32]], layer: &mut Layer<'_>) -> Result<()> {
        if self.goal.split == Split::Equal {
            return Ok(());
        }
        let mut loads = Vec::new();
        add_up(steps, &mut loads);
        let mut router = Router::new(self.cluster, self.goal.num_experts, layer.slot_to_expert)?;
        router.shares(&loads, layer.weights).map(drop)
    }

    fn found_none(&self, layer: usize) -> Error {
        let Goal { num_groups, min_gpus, min_nodes, .. } = self.goal;
        Error::argument(
            "balance",
            "the number of live slots",
            self.cluster.num_live_slots(),
            format!(
                "but no placement of layer {layer} was found that has {num_groups} groups whole, if they must \
                 be, and every expert on min_gpus = {min_gpus} GPUs and min_nodes = {min_nodes} nodes; ask for \
                 less or give more slots"
            ),
        )
    }
}
