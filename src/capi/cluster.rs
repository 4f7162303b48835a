//! What experts are placed on, and what makes a placement good: two structs that functions of expert plans take.
//!
//! ```c
//! // 288 slots on 32 GPUs of 4 nodes; GPU 5 has failed. Groups of experts stay on a node.
//! #include <dualpipe.h>
//!
//! static void describe(dualpipe_cluster *cluster, dualpipe_goal *goal, uint8_t is_alive[32]) {
//!   const dualpipe_cluster no_cluster = DUALPIPE_CLUSTER_INIT;
//!   const dualpipe_goal no_goal = DUALPIPE_GOAL_INIT;
//!   *cluster = no_cluster;
//!   cluster->num_gpus = 32;
//!   cluster->num_slots = 288;
//!   cluster->num_nodes = 4;
//!   is_alive[5] = 0;
//!   cluster->is_alive = is_alive;
//!   *goal = no_goal;
//!   goal->num_layers = 58;
//!   goal->num_experts = 256;
//!   goal->num_groups = 8;
//!   goal->group_rule = DUALPIPE_GROUPS_WHOLE;
//! }
//! ```

use super::args;
use super::options::{self, Growing};
use super::status::{Failure, Outcome};
use crate::balance::{Cluster, Goal, GroupRule, Loads, Split, EMPTY};

/// GPUs, their slots for the experts of a layer, and their nodes. Start from DUALPIPE_CLUSTER_INIT.
///
/// Slots are numbered GPU by GPU, those of dead GPUs too: a number means the same slot before and after a failure. A
/// slot of a dead GPU holds no expert, which is written as -1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_cluster {
    /// sizeof(dualpipe_cluster).
    pub size: u32,
    /// GPUs, 1 to 2^20.
    pub num_gpus: u32,
    /// Slots of all GPUs together, num_gpus to 2^20; where they do not divide, the first GPUs have one more. 0 with
    /// slots_per_gpu.
    pub num_slots: u32,
    /// Nodes, 1 to num_gpus; where they do not divide, the first have one GPU more. 0 stands for 1, and with
    /// node_of_gpu it must be 0.
    pub num_nodes: u32,
    /// NULL, or num_gpus numbers: the slots of each GPU, also 0.
    pub slots_per_gpu: *const u32,
    /// NULL, or num_gpus numbers: the node of each GPU, less than num_gpus.
    pub node_of_gpu: *const u32,
    /// NULL, or num_gpus times 0 or 1: whether each GPU is alive. NULL: all are.
    pub is_alive: *const u8,
}

// SAFETY: repr(C), four u32 and three pointers.
unsafe impl Growing for dualpipe_cluster {
    const SIZE_V1: usize = 40;
}

/// How the tokens of an expert are shared among its replicas.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub enum dualpipe_split {
    /// Each replica gets as many, as engines do by default.
    DUALPIPE_SPLIT_EQUAL = 0,
    /// Each slot gets the share that the plan says.
    DUALPIPE_SPLIT_WEIGHTED = 1,
}

/// Whether the experts of a group stay together.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub enum dualpipe_group_rule {
    /// Groups play no part.
    DUALPIPE_GROUPS_FREE = 0,
    /// Every replica of a group's experts is on one node.
    DUALPIPE_GROUPS_WHOLE = 1,
    /// A group may be spread over nodes, at dualpipe_goal's price.
    DUALPIPE_GROUPS_PRICED = 2,
}

/// What is placed, and what makes a placement good. Start from DUALPIPE_GOAL_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_goal {
    /// sizeof(dualpipe_goal).
    pub size: u32,
    /// MoE layers, each placed for itself; 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// Groups of consecutive experts, at most num_experts; where they do not divide, the first have one expert more. 0
    /// stands for 1.
    pub num_groups: u32,
    /// A dualpipe_group_rule.
    pub group_rule: u32,
    /// A dualpipe_split.
    pub split: u32,
    /// Every expert is on at least so many GPUs. 0 stands for 1.
    pub min_gpus: u32,
    /// Every expert is on GPUs of at least so many nodes. 0 stands for 1.
    pub min_nodes: u32,
    /// How long to search: the time grows in proportion. At most 1000; 0 stands for 1.
    pub effort: u32,
    /// Must be 0.
    pub reserved: u32,
    /// For DUALPIPE_GROUPS_PRICED, otherwise 0: the least imbalance + price * away is looked for, away being the
    /// share of all load that is not on the node that most of its group's load is on. Finite, not negative.
    pub price: f64,
}

// SAFETY: repr(C), ten u32 and one f64.
unsafe impl Growing for dualpipe_goal {
    const SIZE_V1: usize = 48;
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
pub(super) unsafe fn read_cluster(argument: &str, pointer: *const dualpipe_cluster) -> Outcome<Cluster> {
    // SAFETY: as promised by the caller.
    let given = unsafe { options::read(argument, pointer) }?;
    let field = |name: &str| format!("{argument}->{name}");
    let num_gpus = args::in_range(field("num_gpus"), given.num_gpus as usize, 1..=GPUS_MAX)?;
    check_unused(given, argument)?;
    // SAFETY: as promised by the caller, also below.
    let slots = unsafe { list(field("slots_per_gpu"), given.slots_per_gpu, num_gpus) }?;
    // SAFETY: as above.
    let nodes = unsafe { list(field("node_of_gpu"), given.node_of_gpu, num_gpus) }?;
    // SAFETY: as above.
    let alive = unsafe { list(field("is_alive"), given.is_alive, num_gpus) }?.unwrap_or_default();
    let flag = |(gpu, &is): (usize, &u8)| args::flag(&format!("{argument}->is_alive[{gpu}]"), is.into());
    let alive = alive.iter().enumerate().map(flag).collect::<Outcome<Vec<bool>>>()?;
    // What there is no list of is as even as can be.
    let num_slots = if slots.is_none() { given.num_slots as usize } else { num_gpus };
    let even = Cluster::even(num_slots, num_gpus, given.num_nodes.max(1) as usize)?;
    let even_slots: Vec<u32> = (0..num_gpus).map(|gpu| even.slots(gpu).len() as u32).collect();
    let slots = slots.unwrap_or(&even_slots);
    Ok(Cluster::new(slots, nodes.unwrap_or(even.node_of_gpu()), &alive)?)
}

/// Most GPUs of a cluster.
const GPUS_MAX: usize = 1 << 20;

/// A number that a list stands for is 0.
fn check_unused(given: dualpipe_cluster, argument: &str) -> Outcome {
    if !given.slots_per_gpu.is_null() {
        args::zero(&format!("{argument}->num_slots, beside slots_per_gpu,"), given.num_slots)?;
    }
    if !given.node_of_gpu.is_null() {
        args::zero(&format!("{argument}->num_nodes, beside node_of_gpu,"), given.num_nodes)?;
    }
    Ok(())
}

/// `count` values, or none for NULL.
///
/// # Safety
/// As of [`args::slice`].
unsafe fn list<'a, T>(name: String, pointer: *const T, count: usize) -> Outcome<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    unsafe { args::slice(name, pointer, "num_gpus", count) }.map(Some)
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
pub(super) unsafe fn read_goal(argument: &str, pointer: *const dualpipe_goal) -> Outcome<Goal> {
    // SAFETY: as promised by the caller.
    let given = unsafe { options::read(argument, pointer) }?;
    let field = |name: &str| format!("{argument}->{name}");
    args::zero(&field("reserved"), given.reserved)?;
    let rule = args::one_of(
        &field("group_rule"),
        given.group_rule,
        [
            (0, dualpipe_group_rule::DUALPIPE_GROUPS_FREE),
            (1, dualpipe_group_rule::DUALPIPE_GROUPS_WHOLE),
            (2, dualpipe_group_rule::DUALPIPE_GROUPS_PRICED),
        ],
    )?;
    let split = args::one_of(
        &field("split"),
        given.split,
        [(0, dualpipe_split::DUALPIPE_SPLIT_EQUAL), (1, dualpipe_split::DUALPIPE_SPLIT_WEIGHTED)],
    )?;
    let groups = match rule {
        dualpipe_group_rule::DUALPIPE_GROUPS_FREE => GroupRule::Free,
        dualpipe_group_rule::DUALPIPE_GROUPS_WHOLE => GroupRule::Whole,
        dualpipe_group_rule::DUALPIPE_GROUPS_PRICED => GroupRule::Priced { price: given.price },
    };
    if !matches!(groups, GroupRule::Priced { .. }) && given.price != 0.0 {
        let how = format!("is {}, must be 0 unless group_rule is DUALPIPE_GROUPS_PRICED", given.price);
        return Err(Failure::argument(field("price"), how));
    }
    let or_one = |number: u32| number.max(1) as usize;
    Ok(Goal {
        num_layers: given.num_layers as usize,
        num_experts: given.num_experts as usize,
        num_groups: or_one(given.num_groups),
        groups,
        split: match split {
            dualpipe_split::DUALPIPE_SPLIT_EQUAL => Split::Equal,
            dualpipe_split::DUALPIPE_SPLIT_WEIGHTED => Split::Weighted,
        },
        min_gpus: or_one(given.min_gpus),
        min_nodes: or_one(given.min_nodes),
        effort: or_one(given.effort),
    })
}

/// As many steps as the loads are enough for.
pub(super) fn steps_of<'a>(goal: &Goal, loads: &'a [f32]) -> Outcome<Loads<'a>> {
    let of_step = goal.num_layers * goal.num_experts; // at most 2^28
    if loads.is_empty() || loads.len() % of_step != 0 {
        let how = format!(
            "is {}, must be a multiple, not 0, of num_layers * num_experts = {} * {} = {of_step}",
            loads.len(),
            goal.num_layers,
            goal.num_experts
        );
        return Err(Failure::argument("num_loads", how));
    }
    Ok(Loads::new(loads, loads.len() / of_step, goal.num_layers, goal.num_experts)?)
}

/// A map of slots to experts as C has it, -1 where there is none.
///
/// # Safety
/// As of [`args::slice`].
pub(super) unsafe fn read_slots(
    name: &str,
    pointer: *const i64,
    count_name: &str,
    count: usize,
) -> Outcome<Vec<u32>> {
    // SAFETY: as promised by the caller.
    let experts = unsafe { args::slice(name, pointer, count_name, count) }?;
    let expert = |(slot, &expert): (usize, &i64)| match u32::try_from(expert) {
        _ if expert == -1 => Ok(EMPTY),
        Ok(expert) if expert != EMPTY => Ok(expert),
        _ => {
            let how = format!("is {expert}, must be an expert, or -1 for none");
            Err(Failure::argument(format!("{name}[{slot}]"), how))
        }
    };
    experts.iter().enumerate().map(expert).collect()
}

/// What a slot holds, as C has it.
pub(super) fn to_c(expert: u32) -> i64 {
    if expert == EMPTY {
        -1
    } else {
        expert.into()
    }
}
