//! What no placement can beat, and how far from it one is.
//!
//! For a layer with loads w, their sum W, on G live GPUs, with every expert on at least k of them:
//!
//! ```text
//! mean    some GPU carries at least W / G
//! joint   the least T >= W / G with  Σ max(k, ⌈w / T⌉) <= R :
//!         where no GPU carries more than T, nothing that an expert has on one does, and it needs ⌈w / T⌉ of them
//! equal   where each replica carries as much, and no GPU has more than two slots: `equal_bound`
//! node    where groups stay on their node: `node_bound`
//! ```
//!
//! R is the number of pairs of a GPU and an expert that there can be: all slots, except that more slots on a GPU than
//! there are experts do not count.
//!
//! The joint bound also holds where replicas share a load unequally. At the mean too many replicas may be asked for,
//! say by x; raising T past w / (count - 1) gives one up, past w / (count - 2) another. So T is the x-th least of all
//! w / j for k <= j < ⌈w G / W⌉, of which there are fewer than G: `O(E + G)`.
//!
//! Rounding: a bound must never exceed the optimum. All is float64, made of sums, quotients and comparisons of
//! non-negative numbers, so that each operation errs by a factor within 1 ± 2^-53, and fewer than E + R + 16 of
//! them follow each other. A bound is lowered by twice that, and is at least 1, which is exact. No count is taken
//! too high: x <= k for a whole k stays so when x is rounded, hence rounding never raises ⌈w / T⌉. The only
//! difference, T - x in the equal bound, is of two numbers that are taken as they are, and so is no less exact.

use super::cluster::Cluster;
use super::equal_bound::{round_up, EqualBound, Slots};
use super::goal::Goal;
use super::layers::Layer;
use super::loads::{total, Loads};
use super::node_bound::NodeBound;
use super::plan::LayerBound;
use super::problem::Problem;
use crate::error::Result;

/// `[num_layers]`: for each layer what no placement can beat. `loads` is `[num_layers, num_experts]`, finite, not
/// negative, at most 1e38 in all of a layer.
///
/// # Errors
///
/// `InvalidArgument` if [`Goal::check`] refuses, or for a load out of range.
pub fn bounds(cluster: &Cluster, goal: &Goal, loads: &[f32]) -> Result<Vec<LayerBound>> {
    goal.check(cluster)?;
    let loads = Loads::new(loads, 1, goal.num_layers, goal.num_experts)?;
    let mut bounds = Bounds::new(cluster, goal);
    Ok((0..goal.num_layers).map(|layer| bounds.lower_bound(loads.of(0, layer))).collect())
}

/// `[num_layers]`: for each layer what no placement of DeepSeek's kind can beat, which gives each node equally many
/// groups. The loads are those of [`deepseek`](super::deepseek()), whose plan has these bounds too.
///
/// # Errors
///
/// `InvalidArgument` if [`Problem::check`] refuses the sizes, or for a load out of range.
pub fn lower_bounds(problem: &Problem, loads: &[f32]) -> Result<Vec<LayerBound>> {
    problem.check()?;
    let loads = Loads::new(loads, 1, problem.num_layers, problem.num_experts)?;
    let mut bounds = Bounds::of_deepseek(&problem.cluster()?, &problem.goal());
    Ok((0..problem.num_layers).map(|layer| bounds.lower_bound(loads.of(0, layer))).collect())
}

/// Room to find the bounds of one layer.
pub(super) struct Bounds {
    cluster: Cluster,
    num_gpus: usize,
    /// What an expert is on at least.
    count_min: u32,
    /// R.
    num_pairs: usize,
    /// The slots, where no GPU has more than two.
    equal_slots: Option<Slots>,
    /// What every bound is multiplied with, for rounding.
    caution: f64,
    joint: JointBound,
    equal: EqualBound,
    node: Option<NodeBound>,
    /// `[num_experts]`: the load of each, or of one replica.
    shares: Vec<f64>,
}

impl Bounds {
    pub(super) fn new(cluster: &Cluster, goal: &Goal) -> Bounds {
        let node = NodeBound::new(cluster, goal, None);
        Bounds { node, ..Bounds::without_groups(cluster, goal) }
    }

    /// Of placements with equally many groups on each node; `equal` is not looked for, as that would take longer than
    /// to place.
    pub(super) fn of_deepseek(cluster: &Cluster, goal: &Goal) -> Bounds {
        let groups_per_node = goal.num_groups.div_ceil(cluster.num_nodes());
        let node = NodeBound::new(cluster, goal, Some(groups_per_node));
        Bounds { node, equal_slots: None, ..Bounds::without_groups(cluster, goal) }
    }

    fn without_groups(cluster: &Cluster, goal: &Goal) -> Bounds {
        let slots = || cluster.live_gpus().map(|gpu| cluster.slots(gpu).len());
        let num_pairs = slots().map(|slots| slots.min(goal.num_experts)).sum();
        let count_min = goal.min_gpus.max(goal.min_nodes) as u32;
        let operations = goal.num_experts + cluster.num_slots() + 16;
        Bounds {
            num_gpus: cluster.num_live_gpus(),
            count_min,
            num_pairs,
            equal_slots: Slots::new(slots(), goal.num_experts, count_min),
            caution: 1.0 - operations as f64 * f64::EPSILON,
            joint: JointBound::default(),
            equal: EqualBound::default(),
            node: None,
            shares: Vec::with_capacity(goal.num_experts),
            cluster: cluster.clone(),
        }
    }

    /// The bounds of a layer of checked loads.
    pub(super) fn lower_bound(&mut self, loads: &[f32]) -> LayerBound {
        let mean = total(loads) / self.num_gpus as f64;
        if mean == 0.0 {
            return LayerBound::MEAN;
        }
        self.shares.clear();
        self.shares.extend(loads.iter().copied().map(f64::from));
        let node = self.node.as_mut().map_or(mean, |node| node.heaviest_gpu(loads));
        let joint = self.joint.heaviest_gpu(&self.shares, mean, self.num_pairs, self.count_min);
        let equal =
            self.equal_slots.map_or(joint, |slots| self.equal.heaviest_gpu(&self.shares, slots, joint));
        let careful = |bound: f64| (bound / mean * self.caution).max(1.0);
        LayerBound { joint: careful(joint), equal: careful(equal), node: careful(node) }
    }

    /// Max GPU load / mean GPU load of a layer that has been placed, with an equal split.
    pub(super) fn imbalance(&mut self, loads: &[f32], layer: &Layer<'_>) -> f64 {
        let of_experts = loads.iter().zip(&*layer.replica_counts);
        self.shares.clear();
        self.shares.extend(of_experts.map(|(&load, &count)| f64::from(load) / f64::from(count)));
        let experts = |gpu| layer.slot_to_expert[self.cluster.slots(gpu)].iter();
        let gpu_loads = self.cluster.live_gpus().map(|gpu| {
            let shares = experts(gpu).map(|&expert| self.shares.get(expert as usize).copied().unwrap_or(0.0));
            shares.sum::<f64>()
        });
        let heaviest = gpu_loads.fold(0.0, f64::max);
        let mean = total(loads) / self.num_gpus as f64;
        if mean == 0.0 {
            return 1.0;
        }
        // The heaviest is no lighter than the mean, whatever rounding says.
        (heaviest / mean).max(1.0)
    }
}

/// The joint bound, without the caution for rounding.
#[derive(Default)]
pub(super) struct JointBound {
    /// Where T gives up a replica; as bits, which order positive numbers alike.
    given_up: Vec<u64>,
}

impl JointBound {
    /// The least T from the mean on at which there are enough pairs of a GPU and an expert.
    pub(super) fn heaviest_gpu(&mut self, loads: &[f64], mean: f64, num_pairs: usize, count_min: u32) -> f64 {
        self.given_up.clear();
        let floor = f64::from(count_min) * mean;
        for &load in loads {
            if load > floor {
                let counts = count_min..round_up(load / mean);
                self.given_up.extend(counts.map(|count| (load / f64::from(count)).to_bits()));
            }
        }
        let asked = loads.len() * count_min as usize + self.given_up.len();
        match asked.checked_sub(num_pairs + 1) {
            Some(nth) if nth < self.given_up.len() => {
                let (_, &mut share, _) = self.given_up.select_nth_unstable(nth);
                f64::from_bits(share).max(mean)
            }
            _ => mean,
        }
    }
}
