//! Expert plans: which slots hold which replicas of which experts, and how good that is.
//!
//! A plan is made from the loads of the experts, say how many tokens each got in the last steps. Experts that are in
//! demand get replicas, and replicas are placed so that GPUs are loaded evenly; a lower bound says what no placement
//! could better. dualpipe_expert_plan_create has DeepSeek's policy, dualpipe_expert_plan_balance the best that can be
//! found, on any cluster (cluster.h), also from a placement that is there with few moves (moves.h).
//!
//! ```c
//! // One layer: 8 experts in 12 slots on 4 GPUs of one node. experts[slot] is then the expert in that slot.
//! #include <dualpipe.h>
//!
//! static dualpipe_status place(const float loads[8], int64_t experts[12]) {
//!   dualpipe_balance_options options = DUALPIPE_BALANCE_OPTIONS_INIT;
//!   dualpipe_expert_plan_t plan = NULL;
//!   size_t count = 0;
//!   options.num_layers = options.num_groups = options.num_nodes = options.num_threads = 1;
//!   options.num_experts = 8;
//!   options.num_slots = 12;
//!   options.num_gpus = 4;
//!   dualpipe_status status = dualpipe_expert_plan_create(&options, loads, 8, &plan);
//!   if (status == DUALPIPE_OK) status = dualpipe_expert_plan_slot_to_expert(plan, experts, 12, &count);
//!   dualpipe_expert_plan_free(plan);
//!   return status;
//! }
//! ```

use super::args::{self, Buffer, Out};
use super::cluster::{dualpipe_cluster, dualpipe_goal, read_cluster, read_goal, read_slots, steps_of, to_c};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::log;
use super::moves::{dualpipe_current_placement, read_current};
use super::options::{self, Growing, OutStruct};
use super::process;
use super::status::{dualpipe_status, Outcome};
use crate::balance::{
    balance, deepseek, gpu_loads, node_loads, Current, ExpertPlan, Options, Problem, Split, THREADS_MAX,
};

/// What a dualpipe_expert_plan_t points to: nothing that C could look into.
pub struct dualpipe_expert_plan(());

/// Where the replicas of every layer's experts lie. It never changes: any number of threads may use it at once. It
/// stays usable after a fork. Free it with dualpipe_expert_plan_free.
pub type dualpipe_expert_plan_t = *mut dualpipe_expert_plan;

/// What to place. Start from DUALPIPE_BALANCE_OPTIONS_INIT.
///
/// If num_nodes divides num_groups, groups of experts stay on one node (hierarchical), and num_groups must divide
/// num_experts, num_nodes num_gpus and num_slots, num_gpus num_slots; otherwise nodes and groups do not count (global).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_balance_options {
    /// sizeof(dualpipe_balance_options).
    pub size: u32,
    /// MoE layers, 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// Slots of all GPUs together, at least num_experts, at most 2^20.
    pub num_slots: u32,
    /// Groups of experts, at least 1.
    pub num_groups: u32,
    /// Nodes, at least 1.
    pub num_nodes: u32,
    /// GPUs, at least 1.
    pub num_gpus: u32,
    /// Threads, at most 4096: 1 is the caller's alone, 0 as many as there are cores. The result is the same.
    /// In a child of fork it is always 1.
    pub num_threads: u32,
}

// SAFETY: repr(C), eight u32.
unsafe impl Growing for dualpipe_balance_options {
    const SIZE_V1: usize = 32;
}

/// How well a layer is balanced, in multiples of the mean load of a live GPU; 1 where there is no load. Of a window of
/// steps all are sums over the steps, each weighted by its load.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_layer_balance {
    /// The heaviest GPU's load, at least 1; of a window, the inverse of what vLLM calls balancedness.
    pub imbalance: f64,
    /// No placement of this kind has a lower imbalance: the greatest of the bounds below that hold for it.
    pub lower_bound: f64,
    /// No placement has a lower imbalance, even if replicas share a load unequally.
    pub joint_bound: f64,
    /// No placement whose replicas share a load equally has a lower imbalance.
    pub equal_bound: f64,
    /// No placement that keeps every group on one node has a lower imbalance; 1 where groups need not be whole.
    pub node_bound: f64,
    /// The share of all load that is not on the node that most of its group's load is on, 0 to 1; 0 without
    /// DUALPIPE_GROUPS_PRICED.
    pub away: f64,
}

/// Places the experts of every layer by DeepSeek's policy (EPLB: github.com/deepseek-ai/EPLB), number for number; of
/// equal loads the lower index comes first.
///
/// loads: num_layers rows of num_experts numbers, in all num_loads, finite and not negative: tokens, or any
/// measure that adds up. Calls the progress callback now and then.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with the nearest numbers that would do; DUALPIPE_ERROR_CANCELLED.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_create(
    options: *const dualpipe_balance_options,
    loads: *const f32,
    num_loads: usize,
    plan: *mut dualpipe_expert_plan_t,
) -> dualpipe_status {
    call("dualpipe_expert_plan_create", || {
        // SAFETY: both are the caller's.
        let (given, out) = unsafe { (options::read("options", options)?, Out::new("plan", plan)?) };
        let problem = Problem {
            num_layers: given.num_layers as usize,
            num_experts: given.num_experts as usize,
            num_slots: given.num_slots as usize,
            num_groups: given.num_groups as usize,
            num_nodes: given.num_nodes as usize,
            num_gpus: given.num_gpus as usize,
        };
        problem.check()?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        let planned = plan_with(given.num_threads, "options->num_threads", |options| {
            deepseek(&problem, loads, options)
        })?;
        out.write(handle::insert(PlanObject(planned))?);
        Ok(())
    })
}

/// Makes a plan with the threads that were asked for, and with the progress callback.
fn plan_with(
    num_threads: u32,
    argument: &str,
    make: impl FnOnce(Options<'_>) -> crate::error::Result<ExpertPlan>,
) -> Outcome<ExpertPlan> {
    let num_threads = args::in_range(argument, num_threads as usize, 0..=THREADS_MAX)?;
    // The threads of a pool are not in the child of a fork.
    let num_threads = if process::fork_epoch() != 0 { 1 } else { num_threads };
    let mut stopped = None;
    let mut progress = |done: usize, total: usize| match log::progress(done as u64, total as u64) {
        Ok(()) => true,
        Err(failure) => {
            stopped = Some(failure);
            false
        }
    };
    let planned = make(Options { num_threads, progress: Some(&mut progress) });
    match stopped {
        Some(failure) => Err(failure),
        None => Ok(planned?),
    }
}

/// Places the experts of every layer as well as it can within the limits of `goal`, with a proven lower bound beside
/// it.
///
/// loads: num_layers rows of num_experts numbers, finite and not negative; or so many of each step of a window, one
/// step after the other: then the sum over its steps of the heaviest GPU's load is made small.
///
/// current: NULL, or the placement that is there and how much of it may change; what stays keeps its slot.
///
/// num_threads: 1 is the caller's alone, 0 as many as there are cores, at most 4096. The plan is the same. In a child
/// of fork it is always 1. Calls the progress callback now and then.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if no placement was found that keeps groups whole and every expert on
/// enough GPUs and nodes; DUALPIPE_ERROR_CANCELLED.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_balance(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    loads: *const f32,
    num_loads: usize,
    current: *const dualpipe_current_placement,
    num_threads: u32,
    plan: *mut dualpipe_expert_plan_t,
) -> dualpipe_status {
    call("dualpipe_expert_plan_balance", || {
        // SAFETY: the caller's.
        let (cluster, goal) = unsafe { (read_cluster("cluster", cluster)?, read_goal("goal", goal)?) };
        goal.check(&cluster)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let current = unsafe { read_current("current", current) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("plan", plan) }?;
        let loads = steps_of(&goal, loads)?;
        let current =
            current.as_ref().map(|(slot_to_expert, budget)| Current { slot_to_expert, budget: *budget });
        let planned = plan_with(num_threads, "num_threads", |options| {
            balance(&cluster, &goal, &loads, current, options)
        })?;
        out.write(handle::insert(PlanObject(planned))?);
        Ok(())
    })
}

/// Makes a plan of a placement from anywhere, to be routed by, compared, or moved from.
///
/// slot_to_expert: num_layers rows of the cluster's num_slots numbers, -1 in slots of dead GPUs, in all num_slots.
/// shares: for DUALPIPE_SPLIT_WEIGHTED as many numbers, otherwise NULL and 0. loads: NULL and 0, or as for
/// dualpipe_expert_plan_balance: what imbalance and bounds are said of, which are 1 otherwise. The goal's groups and
/// what is to be survived need not be kept.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement by which tokens would be lost, with the first place
/// where.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_create_from_slots(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    slot_to_expert: *const i64,
    num_slots: usize,
    shares: *const f64,
    num_shares: usize,
    loads: *const f32,
    num_loads: usize,
    plan: *mut dualpipe_expert_plan_t,
) -> dualpipe_status {
    call("dualpipe_expert_plan_create_from_slots", || {
        // SAFETY: the caller's.
        let (cluster, goal) = unsafe { (read_cluster("cluster", cluster)?, read_goal("goal", goal)?) };
        goal.check(&cluster)?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let shares = unsafe { args::slice("shares", shares, "num_shares", num_shares) }?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("plan", plan) }?;
        let wanted = goal.num_layers * cluster.num_slots();
        args::in_range("num_slots", num_slots, wanted..=wanted)?;
        let wanted = if goal.split == Split::Weighted { wanted } else { 0 };
        args::in_range("num_shares", num_shares, wanted..=wanted)?;
        let loads = if loads.is_empty() { None } else { Some(steps_of(&goal, loads)?) };
        let shares = if shares.is_empty() { None } else { Some(shares) };
        let made = ExpertPlan::from_slots(&cluster, &goal, &slots, shares, loads.as_ref())?;
        out.write(handle::insert(PlanObject(made))?);
        Ok(())
    })
}

/// What a plan is of. Start from DUALPIPE_EXPERT_PLAN_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_expert_plan_info {
    /// sizeof(dualpipe_expert_plan_info).
    pub size: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// Logical experts of a layer.
    pub num_experts: u32,
    /// Slots of a layer, those of dead GPUs too.
    pub num_slots: u32,
    /// GPUs, dead ones too.
    pub num_gpus: u32,
    /// Nodes.
    pub num_nodes: u32,
    /// Groups of experts.
    pub num_groups: u32,
    /// A dualpipe_split.
    pub split: u32,
}

// SAFETY: repr(C), eight u32.
unsafe impl Growing for dualpipe_expert_plan_info {
    const SIZE_V1: usize = 32;
}

/// Says what a plan is of.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_describe(
    plan: dualpipe_expert_plan_t,
    info: *mut dualpipe_expert_plan_info,
) -> dualpipe_status {
    call("dualpipe_expert_plan_describe", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (cluster, goal) = (object.0.cluster(), object.0.goal());
        out.write(dualpipe_expert_plan_info {
            size: 0,
            num_layers: goal.num_layers as u32,
            num_experts: goal.num_experts as u32,
            num_slots: cluster.num_slots() as u32,
            num_gpus: cluster.num_gpus() as u32,
            num_nodes: cluster.num_nodes() as u32,
            num_groups: goal.num_groups as u32,
            split: u32::from(goal.split == Split::Weighted),
        });
        Ok(())
    })
}

/// Frees a plan. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_free(plan: dualpipe_expert_plan_t) -> dualpipe_status {
    call("dualpipe_expert_plan_free", || handle::free::<PlanObject>("plan", plan))
}

/// The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log), -1 in slots of dead GPUs.
/// Slots are numbered GPU by GPU. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_slot_to_expert(
    plan: dualpipe_expert_plan_t,
    experts: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_slot_to_expert", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("experts", experts, capacity, "count", count) }?;
        let experts = object.0.slot_to_expert();
        out.fill(experts.len(), experts.iter().map(|&expert| to_c(expert)))
    })
}

/// How many replicas each expert has: num_layers rows of num_experts numbers (DeepSeek's logcnt). Buffers are filled as
/// dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_replica_counts(
    plan: dualpipe_expert_plan_t,
    counts: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_replica_counts", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("counts", counts, capacity, "count", count) }?;
        let counts = object.0.replica_counts();
        out.fill(counts.len(), counts.iter().map(|&count| count.into()))
    })
}

/// The share of its expert's tokens that each slot gets: num_layers rows of num_slots numbers; of an expert they sum
/// to 1, and with DUALPIPE_SPLIT_EQUAL they are alike. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_shares(
    plan: dualpipe_expert_plan_t,
    shares: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_shares", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("shares", shares, capacity, "count", count) }?;
        let shares = object.0.shares();
        out.fill(shares.len(), shares.iter().copied())
    })
}

/// The load of each GPU under any loads, say those of the next step: num_layers rows of num_gpus numbers; loads are
/// num_layers rows of num_experts numbers. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_gpu_loads(
    plan: dualpipe_expert_plan_t,
    loads: *const f32,
    num_loads: usize,
    gpu_loads: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_gpu_loads", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("gpu_loads", gpu_loads, capacity, "count", count) }?;
        let loads = loads_of_gpus(&object.0, loads)?;
        out.fill(loads.len(), loads)
    })
}

/// The load of each node under any loads: num_layers rows of num_nodes numbers; otherwise as
/// dualpipe_expert_plan_gpu_loads.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_node_loads(
    plan: dualpipe_expert_plan_t,
    loads: *const f32,
    num_loads: usize,
    node_loads: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_node_loads", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("node_loads", node_loads, capacity, "count", count) }?;
        let loads = self::node_loads(object.0.cluster(), &loads_of_gpus(&object.0, loads)?);
        out.fill(loads.len(), loads)
    })
}

fn loads_of_gpus(plan: &ExpertPlan, loads: &[f32]) -> Outcome<Vec<f64>> {
    let wanted = plan.num_layers() * plan.num_experts();
    args::in_range("num_loads", loads.len(), wanted..=wanted)?;
    Ok(gpu_loads(plan.cluster(), plan.num_experts(), plan.slot_to_expert(), Some(&plan.shares()), loads)?)
}

/// The slots of each expert, in the order of its replicas: num_layers tables of num_experts rows as long as the most
/// replicas of any expert, -1 behind the last (DeepSeek's log2phy). Buffers are filled as dualpipe.h says under
/// "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if that is more than 2^28 numbers.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_expert_to_slots(
    plan: dualpipe_expert_plan_t,
    slots: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_expert_to_slots", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("slots", slots, capacity, "count", count) }?;
        let table = object.0.expert_to_slots()?.slots;
        out.fill(table.len(), table.iter().map(|&slot| slot.into()))
    })
}

/// How well each layer is balanced, num_layers entries. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_layers(
    plan: dualpipe_expert_plan_t,
    layers: *mut dualpipe_layer_balance,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_plan_layers", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("layers", layers, capacity, "count", count) }?;
        let layers = object.0.layers().iter().map(|layer| dualpipe_layer_balance {
            imbalance: layer.imbalance,
            lower_bound: layer.lower_bound(),
            joint_bound: layer.bound.joint,
            equal_bound: layer.bound.equal,
            node_bound: layer.bound.node,
            away: layer.away,
        });
        out.fill(object.0.layers().len(), layers)
    })
}

/// A plan that C has a handle of.
pub(super) struct PlanObject(pub(super) ExpertPlan);

impl Object for PlanObject {
    type Opaque = dualpipe_expert_plan;
    const KIND: Kind = Kind::ExpertPlan;
}
