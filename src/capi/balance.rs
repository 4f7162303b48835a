//! Expert plans: which slots hold which replicas of which experts, and how good that is.
//!
//! A plan is made from the loads of the experts, say how many tokens each got in the last steps. Experts that are in
//! demand get replicas, and replicas are placed so that GPUs are loaded evenly; a lower bound says what no placement
//! could better.
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
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::log;
use super::options::{self, Growing};
use super::process;
use super::status::{dualpipe_status, Outcome};
use crate::balance::{deepseek, ExpertPlan, Options, Problem, THREADS_MAX};

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

/// How well a layer is balanced.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_layer_balance {
    /// The heaviest GPU's load / the mean GPU load, at least 1.
    pub imbalance: f64,
    /// No placement has a lower imbalance (hierarchical: none that keeps groups on their nodes), at least 1.
    pub lower_bound: f64,
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
        let num_threads =
            args::in_range("options->num_threads", given.num_threads as usize, 0..=THREADS_MAX)?;
        // The threads of a pool are not in the child of a fork.
        let is_forked = process::fork_epoch() != 0;
        let num_threads = if is_forked { 1 } else { num_threads };
        let mut stopped = None;
        let mut progress = |done: usize, total: usize| match log::progress(done as u64, total as u64) {
            Ok(()) => true,
            Err(failure) => {
                stopped = Some(failure);
                false
            }
        };
        let planned = deepseek(&problem, loads, Options { num_threads, progress: Some(&mut progress) });
        if let Some(failure) = stopped {
            return Err(failure);
        }
        out.write(handle::insert(PlanObject(planned?))?);
        Ok(())
    })
}

/// Frees a plan. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_plan_free(plan: dualpipe_expert_plan_t) -> dualpipe_status {
    call("dualpipe_expert_plan_free", || handle::free::<PlanObject>("plan", plan))
}

/// The expert in each slot: num_layers rows of num_slots numbers (DeepSeek's phy2log). GPU g holds the slots from g *
/// num_slots / num_gpus on. Buffers are filled as dualpipe.h says under "Buffers".
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
        fill(out, object.0.slot_to_expert())
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
        fill(out, object.0.replica_counts())
    })
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
        });
        out.fill(object.0.layers().len(), layers)
    })
}

fn fill(out: Buffer<i64>, values: &[u32]) -> Outcome {
    out.fill(values.len(), values.iter().map(|&value| value.into()))
}

/// A plan that C has a handle of.
struct PlanObject(ExpertPlan);

impl Object for PlanObject {
    type Opaque = dualpipe_expert_plan;
    const KIND: Kind = Kind::ExpertPlan;
}
