//! What no placement can beat that keeps each group of experts on one node.
//!
//! Some node carries at least the load of the heaviest node in the best packing of the groups, and one of its GPUs
//! at least that / its GPUs. Where `group_packing` proves its packing to be the best, that is the bound. Else
//!
//! ```text
//! of the j N + 1 heaviest groups some one of N nodes holds j + 1
//! ```
//!
//! and that node carries at least the lightest j + 1 of them; and if each node has k groups, k - j - 1 others.
//!
//! Besides, a group that is alone on a node as large as any, with the most slots that any has, needs its joint bound
//! there; of these the greatest is a bound. It tells where a node has few slots for many experts.

use super::bound::JointBound;
use super::cluster::{parts, Cluster};
use super::goal::{Goal, GroupRule};
use super::group_packing::GroupPacker;
use super::loads::total;

/// Room to find the bound of one layer.
pub(super) struct NodeBound {
    goal: Goal,
    packer: GroupPacker,
    groups_per_node: Option<usize>,
    /// The most GPUs and slots of a node.
    gpus_max: f64,
    slots_max: usize,
    joint: JointBound,
    /// `[num_groups]`
    groups: Vec<f64>,
    /// Loads of one group's experts.
    experts: Vec<f64>,
}

/// So many of the pigeons' bounds are looked at; each is valid alone, and the first ones are the best.
const PIGEONS_MAX: usize = 64;

impl NodeBound {
    /// None where nodes and groups do not bind. `groups_per_node`: each node has so many.
    pub(super) fn new(cluster: &Cluster, goal: &Goal, groups_per_node: Option<usize>) -> Option<NodeBound> {
        let packer = GroupPacker::new(cluster, goal, groups_per_node);
        if goal.groups != GroupRule::Whole || packer.nodes().len() < 2 {
            return None;
        }
        let nodes = packer.nodes().iter();
        Some(NodeBound {
            gpus_max: nodes.clone().map(|node| node.gpus).fold(1.0, f64::max),
            slots_max: nodes.map(|node| node.slots).max().unwrap_or(0),
            joint: JointBound::default(),
            groups: Vec::with_capacity(goal.num_groups),
            experts: Vec::new(),
            goal: *goal,
            packer,
            groups_per_node,
        })
    }

    /// Some GPU carries at least this.
    pub(super) fn heaviest_gpu(&mut self, loads: &[f32]) -> f64 {
        self.groups.clear();
        let groups = parts(self.goal.num_experts, self.goal.num_groups);
        self.groups.extend(groups.map(|experts| total(&loads[experts])));
        let alone = self.alone(loads);
        let packed = match self.packer.pack(self.groups.iter().copied()) {
            Some(packed) if packed.is_best => packed.heaviest,
            _ => self.pigeons(),
        };
        packed.max(alone)
    }

    fn alone(&mut self, loads: &[f32]) -> f64 {
        // Where each node has so many groups, the others need a slot for each expert.
        let group_size = self.goal.num_experts / self.goal.num_groups;
        let others = self.groups_per_node.map_or(0, |groups| (groups - 1) * group_size * self.goal.min_gpus);
        let slots = self.slots_max.saturating_sub(others);
        let mut most = 0.0;
        for (experts, &load) in parts(self.goal.num_experts, self.goal.num_groups).zip(&self.groups) {
            self.experts.clear();
            self.experts.extend(loads[experts].iter().copied().map(f64::from));
            if load > 0.0 {
                let mean = load / self.gpus_max;
                let count_min = self.goal.min_gpus as u32;
                most = self.joint.heaviest_gpu(&self.experts, mean, slots, count_min).max(most);
            }
        }
        most
    }

    fn pigeons(&mut self) -> f64 {
        self.groups.sort_unstable_by(|a, b| b.total_cmp(a));
        let (groups, num_nodes) = (&self.groups, self.packer.nodes().len());
        let jth = (0..PIGEONS_MAX).take_while(|j| j * num_nodes < groups.len());
        let bounds = jth.map(|j| {
            let together = &groups[j * num_nodes - j..=j * num_nodes];
            let others = self.groups_per_node.map_or(0, |per_node| per_node.saturating_sub(j + 1));
            together.iter().sum::<f64>() + groups[groups.len() - others..].iter().sum::<f64>()
        });
        bounds.fold(0.0, f64::max) / self.gpus_max
    }
}
