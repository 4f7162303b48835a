//! Placements for weighted shares: the heaviest GPU as light as can be where the tokens of an expert may be split
//! among its replicas in any proportion.
//!
//! | file      | what                                                              |
//! | --------- | ----------------------------------------------------------------- |
//! | `trees`   | where each GPU has two slots: experts parted in trees             |
//! | `wrap`    | the experts of a tree on its GPUs                                 |
//! | `search`  | from there, or from an equal split: off the bottleneck            |
//! | `islands` | GPUs that shared experts connect                                  |
//!
//! For any placement `route::level` finds the best shares exactly; what is searched for is the placement alone.

mod islands;
mod search;
mod trees;
mod wrap;

use super::bound::JointBound;
use super::cluster::{Cluster, EMPTY};
use super::goal::{Goal, GroupRule};
use super::loads::add_up;
use super::refine::Refiner;
use super::route::shares::{per_load, share};
use search::Search;
use trees::Trees;

/// Places layer after layer in the same memory.
pub(super) struct WeightedPlacer<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    refiner: Refiner<'a>,
    search: Search<'a>,
    trees: Trees,
    joint: JointBound,
    /// `[num_experts]`, and a phantom or more while trees are made.
    loads: Vec<f64>,
    /// `[num_experts]`: of the steps.
    mean_loads: Vec<f32>,
    /// Of the tree being laid out.
    experts: Vec<(f64, u32)>,
    /// `[num_live_gpus]`
    gpus: Vec<[u32; 2]>,
}

/// Local optima left, for each effort.
const KICKS: usize = 8;
/// Trees so near the bound are not improved.
const ENOUGH: f64 = 1.003;

impl<'a> WeightedPlacer<'a> {
    /// For a goal that [`Goal::check`] accepts.
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> WeightedPlacer<'a> {
        WeightedPlacer {
            cluster,
            goal,
            refiner: Refiner::new(cluster, goal),
            search: Search::new(cluster, goal),
            trees: Trees::default(),
            joint: JointBound::default(),
            loads: Vec::with_capacity(goal.num_experts + 1),
            mean_loads: Vec::with_capacity(goal.num_experts),
            experts: Vec::new(),
            gpus: Vec::new(),
        }
    }

    /// Places one layer: `steps`, at least one, are each `[num_experts]`; it is their sum that is balanced, for the
    /// shares are the same in all of them. Fills `slot_to_expert`, as [`Refiner::place`] does, and `shares`, 0 where
    /// there is no expert, both `[num_slots]`.
    ///
    /// `false` if no placement was found, see there.
    pub(super) fn place(&mut self, steps: &[&[f32]], slot_to_expert: &mut [u32], shares: &mut [f64]) -> bool {
        add_up(steps, &mut self.loads);
        if self.can_be_trees() {
            self.place_trees(slot_to_expert);
        } else {
            let num_steps = steps.len() as f64;
            self.mean_loads.clear();
            self.mean_loads.extend(self.loads.iter().map(|&load| (load / num_steps) as f32));
            if !self.refiner.place(&[&self.mean_loads], slot_to_expert) {
                return false;
            }
        }
        let per_load = per_load(self.loads.iter().sum());
        self.search.improve(&self.loads, per_load, slot_to_expert);
        let (links, leveller) = self.search.split();
        share(links, leveller, &self.loads, shares);
        true
    }

    /// Two slots on each GPU, and experts may be anywhere.
    fn can_be_trees(&self) -> bool {
        let &Goal { groups, min_gpus, min_nodes, num_experts, .. } = self.goal;
        groups == GroupRule::Free
            && min_gpus.max(min_nodes) == 1
            && num_experts > 1
            && self.cluster.live_gpus().all(|gpu| self.cluster.slots(gpu).len() == 2)
    }

    fn place_trees(&mut self, slot_to_expert: &mut [u32]) {
        let num_gpus = self.cluster.num_live_gpus();
        let num_experts = self.goal.num_experts;
        let mean = self.loads.iter().sum::<f64>() / num_gpus as f64;
        let pairs = self.cluster.num_live_slots();
        let bound = self.joint.heaviest_gpu(&self.loads, mean, pairs, 1);
        // As many phantoms as make one tree, or none; then one more, for a second or another tree.
        let fewest = (num_gpus + 1).saturating_sub(num_experts);
        let mut least = f64::INFINITY;
        for num_phantoms in [fewest, fewest + 1] {
            let num_trees = num_experts + num_phantoms - num_gpus;
            // More than one phantom could be alone in a tree.
            if least <= bound * ENOUGH
                || (num_phantoms > 1 && num_trees > 1)
                || 2 * num_trees > num_experts + num_phantoms
            {
                break;
            }
            self.loads.resize(num_experts + num_phantoms, 0.0);
            let kicks = KICKS * self.goal.effort;
            let ratio = self.trees.part(&self.loads, num_trees, bound, bound * ENOUGH, kicks);
            if ratio < least {
                least = ratio;
                self.lay_out(ratio.max(mean), slot_to_expert);
            }
        }
        self.loads.truncate(num_experts);
    }

    /// Puts the trees on the GPUs, in order.
    fn lay_out(&mut self, most: f64, slot_to_expert: &mut [u32]) {
        self.gpus.clear();
        self.gpus.resize(self.cluster.num_live_gpus(), [0; 2]);
        let mut free = self.gpus.iter_mut();
        for tree in self.trees.best() {
            self.experts.clear();
            self.experts.extend(tree.experts.iter().map(|&expert| (self.loads[expert as usize], expert)));
            wrap::wrap(&mut self.experts, most, self.goal.num_experts as u32, &mut free);
        }
        slot_to_expert.fill(EMPTY);
        for (gpu, experts) in self.cluster.live_gpus().zip(&self.gpus) {
            slot_to_expert[self.cluster.slots(gpu)].copy_from_slice(experts);
        }
    }
}
