//! DeepSeek's placement of experts, EPLB: `rebalance_experts` of deepseek-ai/EPLB, number for number.
//!
//! Three steps for each layer, of which the first and the limits to a node are for the hierarchical policy only:
//!
//! ```text
//! 1  pack the groups of experts on the nodes             by a group's load
//! 2  within each node, replicate the heaviest experts    by load / replicas
//! 3  pack the node's replicas on its GPUs                by load / replicas
//! ```
//!
//! The global policy is the same with one group on one node. `replicate` and `pack` have the greedies.
//!
//! Different from DeepSeek's code:
//! 1. Ties always go to the lower index. Theirs do where torch's sort is stable, which its version and the machine
//!    decide. As long as no two experts of a layer are equally loaded, this concerns only the replicas of one
//!    expert, which are equally heavy: the same slots hold it, but which is called its first replica may differ.
//! 2. A group's load is added up in order, in float32. Theirs is too, but in an order that depends on the width of
//!    the machine's vectors; for whole loads that add up to less than 2^24 there is no difference.
//! 3. Nothing is renumbered node by node and back again. A node knows its experts' names instead.

use super::bound::Bounds;
use super::goal::Split;
use super::layers::{place_layers, Layer, Options};
use super::loads::Loads;
use super::pack::Packer;
use super::plan::{ExpertPlan, LayerBalance};
use super::replicate::Replicas;
use super::Problem;
use crate::error::Result;

/// Places the experts of every layer as DeepSeek's EPLB does.
///
/// `loads` is row major `[num_layers, num_experts]`: how much each expert has to do, in any unit that adds up;
/// finite, not negative, at most 1e38 in all of a layer. The plan is the same for any number of threads, and on
/// every machine. Any number of threads may call this at once.
///
/// `O(num_layers * num_slots * log num_slots)`; each thread takes a few times `num_slots` words of memory.
///
/// # Errors
///
/// `InvalidArgument` if [`Problem::check`] refuses the sizes, for a load out of range, or too many threads;
/// `Cancelled` if `options.progress` returned `false`.
///
/// # Examples
///
/// One layer of the example in DeepSeek's README: 12 experts in 4 groups, 16 slots on 2 nodes of 4 GPUs.
///
/// ```
/// use dualpipe::balance::{deepseek, Options, Problem};
///
/// let problem = Problem {
///     num_layers: 1,
///     num_experts: 12,
///     num_slots: 16,
///     num_groups: 4,
///     num_nodes: 2,
///     num_gpus: 8,
/// };
/// let loads = [90., 132., 40., 61., 104., 165., 39., 4., 73., 56., 183., 86.];
/// let plan = deepseek(&problem, &loads, Options::default())?;
/// assert_eq!(
///     plan.slot_to_expert(),
///     [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]
/// );
/// let layer = plan.layers()[0];
/// assert!(layer.imbalance < 1.26 && layer.lower_bound() > 1.0);
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn deepseek(problem: &Problem, loads: &[f32], options: Options<'_>) -> Result<ExpertPlan> {
    options.check()?;
    problem.check()?;
    let loads = Loads::new(loads, 1, problem.num_layers, problem.num_experts)?;
    let plan = ExpertPlan::empty(problem.cluster()?, problem.goal());
    let (cluster, goal) = (plan.cluster().clone(), *plan.goal());
    place_layers(plan, options, SLOTS_PER_REPORT, || {
        let mut placer = Placer::new(problem, Bounds::of_deepseek(&cluster, &goal));
        move |layer| {
            let loads = loads.of(0, layer.index);
            placer.place(loads, layer);
            Ok(())
        }
    })
}

/// A millisecond's work.
const SLOTS_PER_REPORT: usize = 1 << 14;

/// The sizes as the steps see them, and room for one layer.
struct Placer {
    groups_per_node: usize,
    group_size: usize,
    num_groups: usize,
    num_nodes: usize,
    gpus_per_node: usize,
    slots_per_node: usize,

    /// `[num_groups]`
    group_loads: Vec<f32>,
    /// `[num_nodes, groups_per_node]`: the group in each of a node's places.
    node_groups: Vec<u32>,
    /// `[experts per node]`: the names of the node's experts.
    experts: Vec<u32>,
    /// `[experts per node]`: their loads.
    loads: Vec<f32>,
    replicas: Replicas,
    /// `[slots per node]`: the loads of the replicas.
    slot_loads: Vec<f32>,
    packer: Packer,
    bounds: Bounds,
}

impl Placer {
    fn new(problem: &Problem, bounds: Bounds) -> Placer {
        let (num_groups, num_nodes) =
            if problem.is_hierarchical() { (problem.num_groups, problem.num_nodes) } else { (1, 1) };
        let experts_per_node = problem.num_experts / num_nodes;
        let slots_per_node = problem.num_slots / num_nodes;
        let gpus_per_node = problem.num_gpus / num_nodes;
        Placer {
            groups_per_node: num_groups / num_nodes,
            group_size: problem.num_experts / num_groups,
            num_groups,
            num_nodes,
            gpus_per_node,
            slots_per_node,
            group_loads: Vec::with_capacity(num_groups),
            node_groups: vec![0; num_groups],
            experts: Vec::with_capacity(experts_per_node),
            loads: Vec::with_capacity(experts_per_node),
            replicas: Replicas::with_capacity(experts_per_node, slots_per_node),
            slot_loads: Vec::with_capacity(slots_per_node),
            packer: Packer::with_capacity(slots_per_node.max(num_groups), gpus_per_node.max(num_nodes)),
            bounds,
        }
    }

    fn place(&mut self, loads: &[f32], mut layer: Layer<'_>) {
        self.pack_groups(loads); // 1
        for node in 0..self.num_nodes {
            self.name_experts(node, loads);
            self.replicas.replicate(&self.loads, self.slots_per_node); // 2
            self.pack_replicas(node, &mut layer); // 3
        }
        *layer.balance = LayerBalance {
            imbalance: self.bounds.imbalance(loads, &layer),
            away: 0.0,
            split: Split::Equal,
            bound: self.bounds.lower_bound(loads),
        };
    }

    fn pack_groups(&mut self, loads: &[f32]) {
        // One group to a node stays in order, and its load does not matter.
        self.group_loads.clear();
        if self.groups_per_node == 1 {
            self.group_loads.resize(self.num_groups, 0.0);
        } else {
            let groups = loads.chunks_exact(self.group_size);
            self.group_loads.extend(groups.map(sum_in_order));
        }
        let places = self.packer.pack(&self.group_loads, self.num_nodes);
        self.node_groups.copy_from_slice(places);
    }

    fn name_experts(&mut self, node: usize, loads: &[f32]) {
        let size = self.group_size;
        let groups = &self.node_groups[node * self.groups_per_node..][..self.groups_per_node];
        self.experts.clear();
        self.loads.clear();
        for &group in groups {
            let first = group as usize * size;
            self.experts.extend(first as u32..(first + size) as u32);
            // -0.0 becomes 0.0, as the keys of a tournament must not be negative.
            self.loads.extend(loads[first..][..size].iter().map(|load| load + 0.0));
        }
    }

    fn pack_replicas(&mut self, node: usize, layer: &mut Layer<'_>) {
        let Replicas { expert, rank, count, share, .. } = &self.replicas;
        let slots = node * expert.len()..(node + 1) * expert.len();
        self.slot_loads.resize(expert.len(), 0.0);
        for (load, &e) in self.slot_loads.iter_mut().zip(expert) {
            *load = share[e as usize];
        }
        let places = self.packer.pack(&self.slot_loads, self.gpus_per_node);
        let slot_to_expert = &mut layer.slot_to_expert[slots.clone()];
        let slot_to_replica = &mut layer.slot_to_replica[slots];
        let slots = slot_to_expert.iter_mut().zip(slot_to_replica);
        for ((slot_expert, slot_replica), &item) in slots.zip(places) {
            *slot_expert = self.experts[expert[item as usize] as usize];
            *slot_replica = rank[item as usize];
        }
        for (&expert, &count) in self.experts.iter().zip(count) {
            layer.replica_counts[expert as usize] = count;
        }
    }
}

fn sum_in_order(loads: &[f32]) -> f32 {
    loads.iter().fold(0.0, |sum, load| sum + load)
}
