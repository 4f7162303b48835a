//! What can be replayed: anything that makes a placement from past loads and the placement there is.

use crate::balance::cluster::Cluster;
use crate::balance::few_moves::MoveBudget;
use crate::balance::goal::{Goal, GroupRule, Split};
use crate::balance::loads::Loads;
use crate::balance::plan::ExpertPlan;
use crate::balance::{balance, deepseek, Current, Options, Problem};
use crate::error::{Error, ErrorKind, Result};

/// What a policy may know: the steps before a rebalance, and what is placed on what.
#[derive(Clone, Copy)]
pub struct Past<'a> {
    pub(super) loads: &'a [f32],
    pub(super) window: Loads<'a>,
    pub(super) cluster: &'a Cluster,
    pub(super) goal: &'a Goal,
    pub(super) step: usize,
    pub(super) num_threads: usize,
    /// Whether the caller of the replay wants it to go on.
    pub(super) go_on: &'a dyn Fn() -> bool,
}

impl<'a> Past<'a> {
    /// The step that is next; so many are past.
    pub fn step(&self) -> usize {
        self.step
    }

    /// `[step, num_layers, num_experts]`: the loads of all past steps.
    pub fn loads(&self) -> &'a [f32] {
        self.loads
    }

    /// The last steps: those of the window.
    pub fn window(&self) -> &Loads<'a> {
        &self.window
    }

    /// What the experts are placed on.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// What makes a placement good.
    pub fn goal(&self) -> &'a Goal {
        self.goal
    }

    /// `[num_layers, num_experts]`: the sum of the window's steps.
    pub fn total(&self) -> Vec<f32> {
        let mut total = Vec::with_capacity(self.goal.num_layers * self.goal.num_experts);
        for layer in 0..self.goal.num_layers {
            let mut sums = vec![0.0; self.goal.num_experts];
            for loads in self.window.steps_of(layer) {
                sums.iter_mut().zip(loads).for_each(|(sum, &load)| *sum += f64::from(load));
            }
            total.extend(sums.into_iter().map(|sum| sum as f32));
        }
        total
    }

    /// How a policy of this library is to plan, and `plan` that it makes.
    fn plan(&self, plan: impl FnOnce(Options<'_>) -> Result<ExpertPlan>) -> Result<Option<Placed>> {
        let mut progress = |_, _| (self.go_on)();
        let options = Options { num_threads: self.num_threads, progress: Some(&mut progress) };
        Ok(Some(Placed::from(&plan(options)?)))
    }
}

/// Where the experts are.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// `[num_layers, num_slots]`, [`EMPTY`](crate::balance::EMPTY) on dead GPUs.
    pub slot_to_expert: Vec<u32>,
    /// `[num_layers, num_slots]`; without: an equal split.
    pub shares: Option<Vec<f64>>,
}

impl From<&ExpertPlan> for Placed {
    fn from(plan: &ExpertPlan) -> Placed {
        let shares = (plan.goal().split == Split::Weighted).then(|| plan.shares().into_owned());
        Placed { slot_to_expert: plan.slot_to_expert().to_vec(), shares }
    }
}

/// A policy and its name.
pub struct Policy<'p> {
    name: String,
    plan: Box<Plan<'p>>,
}

type Plan<'p> = dyn FnMut(&Past<'_>, &Placed) -> Result<Option<Placed>> + 'p;

impl<'p> Policy<'p> {
    /// `plan` is called at each rebalance with what is past and where the experts are; `None` keeps them there.
    pub fn new(
        name: impl Into<String>,
        plan: impl FnMut(&Past<'_>, &Placed) -> Result<Option<Placed>> + 'p,
    ) -> Policy<'p> {
        Policy { name: name.into(), plan: Box::new(plan) }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Policy<'p> {
        Policy { name: name.into(), ..self }
    }

    /// Never moves anything.
    pub fn none() -> Policy<'p> {
        Policy::new("none", |_, _| Ok(None))
    }

    /// DeepSeek's policy on the sum of the window, which does not care where the experts were. Groups and nodes count
    /// unless the goal's groups are free. It fails on a cluster that is not of equal GPUs, all alive, in equal nodes.
    pub fn deepseek() -> Policy<'p> {
        Policy::new("deepseek", |past, _| {
            let problem = problem(past.cluster, past.goal)?;
            past.plan(|options| deepseek(&problem, &past.total(), options))
        })
    }

    /// [`balance`](crate::balance::balance()) on the steps of the window, anew each time, numbered so that as much as
    /// possible stays where it is.
    pub fn refined() -> Policy<'p> {
        Policy::few_moves(MoveBudget::Free).named("refined")
    }

    /// [`balance`](crate::balance::balance()) on the steps of the window, from the placement there is, within a budget
    /// that each layer has at each rebalance.
    pub fn few_moves(budget: MoveBudget) -> Policy<'p> {
        Policy::new("few moves", move |past, current| {
            let current = Current { slot_to_expert: &current.slot_to_expert, budget };
            past.plan(|options| balance(past.cluster, past.goal, &past.window, Some(current), options))
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn plan(&mut self, past: &Past<'_>, current: &Placed) -> Result<Option<Placed>> {
        (self.plan)(past, current)
    }
}

/// The sizes that DeepSeek's policy knows, of a cluster that has no more to it than these.
fn problem(cluster: &Cluster, goal: &Goal) -> Result<Problem> {
    let groups_count = goal.groups != GroupRule::Free;
    let problem = Problem {
        num_layers: goal.num_layers,
        num_experts: goal.num_experts,
        num_slots: cluster.num_slots(),
        num_groups: if groups_count { goal.num_groups } else { 1 },
        num_nodes: if groups_count { cluster.num_nodes() } else { 1 },
        num_gpus: cluster.num_gpus(),
    };
    problem.check().map_err(|error| error.within("deepseek"))?;
    let even = problem.cluster()?;
    let is_alike = |gpu: usize| cluster.is_alive(gpu) && cluster.slots(gpu) == even.slots(gpu);
    let nodes_are_alike = !problem.is_hierarchical() || cluster.node_of_gpu() == even.node_of_gpu();
    if !(0..cluster.num_gpus()).all(is_alike) || (groups_count && !nodes_are_alike) {
        let text =
            "deepseek: the cluster has GPUs or nodes that are dead or unlike others, must be of equal ones";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    Ok(problem)
}
