//! Replays: how policies would have done on recorded loads, judged by what came next.
//!
//! A policy sees the steps before a rebalance, and never more; what it places runs until the next rebalance and is
//! judged by the loads of these steps alone. All policies of a replay see the same loads and start alike.
//!
//! ```c
//! // A table of four policies over recorded steps: plans from the last 10, every 10; 8 moves of each layer.
//! #include <dualpipe.h>
//!
//! static dualpipe_status compare(const dualpipe_cluster *cluster, const dualpipe_goal *goal, const float *loads,
//!                                size_t num_loads, char *table, size_t capacity, size_t *length) {
//!   dualpipe_replay_options options = DUALPIPE_REPLAY_OPTIONS_INIT;
//!   dualpipe_policy policies[4] = {{0}};
//!   dualpipe_replay_t replay = NULL;
//!   dualpipe_status status;
//!   options.window = options.every = 10;
//!   policies[0].kind = DUALPIPE_POLICY_NONE;
//!   policies[1].kind = DUALPIPE_POLICY_DEEPSEEK;
//!   policies[2].kind = DUALPIPE_POLICY_REFINED;
//!   policies[3].kind = DUALPIPE_POLICY_FEW_MOVES;
//!   policies[3].budget = DUALPIPE_BUDGET_MOVES;
//!   policies[3].max_moves = 8;
//!   status = dualpipe_replay_create(cluster, goal, loads, num_loads, &options, policies, 4, &replay);
//!   if (status == DUALPIPE_OK) status = dualpipe_replay_text(replay, table, capacity, length);
//!   dualpipe_replay_free(replay);
//!   return status;
//! }
//! ```

use std::cell::RefCell;
use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::cluster::{dualpipe_cluster, dualpipe_goal, read_cluster, read_goal, read_slots};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::log;
use super::op::DUALPIPE_NONE;
use super::options::{self, Growing};
use super::policy::{dualpipe_policy, read_policies};
use super::process;
use super::status::{dualpipe_status, Outcome};
use crate::balance::replay::{replay, Moves, Replay, ReplayOptions, Run, Window};
use crate::balance::THREADS_MAX;

/// What a dualpipe_replay_t points to: nothing that C could look into.
pub struct dualpipe_replay(());

/// How policies did. It never changes: any number of threads may use it at once. It stays usable after a fork. Free it
/// with dualpipe_replay_free.
pub type dualpipe_replay_t = *mut dualpipe_replay;

/// When to rebalance, and from where. Start from DUALPIPE_REPLAY_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_replay_options {
    /// sizeof(dualpipe_replay_options).
    pub size: u32,
    /// Steps that a policy plans for; the first rebalance is after so many. At least 1, less than there are.
    pub window: u32,
    /// Steps from one rebalance to the next, at least 1.
    pub every: u32,
    /// 1: also say what no placement could beat in the same steps, even one made for each of them alone; else 0.
    pub with_bounds: u32,
    /// Threads of the policies of this library, at most 4096; 0 stands for as many as there are cores. The results are
    /// the same. In a child of fork it is always 1.
    pub num_threads: u32,
    /// Must be 0.
    pub reserved: u32,
    /// NULL, or num_layers rows of the cluster's slots: the placement at first. NULL: the experts in order, again and
    /// again.
    pub initial: *const i64,
    /// How many numbers `initial` has; 0 without.
    pub num_slots: usize,
    /// Bytes of one expert's weights in one layer, at most 2^37: what a move carries.
    pub expert_bytes: u64,
}

// SAFETY: repr(C), six u32 and three values of 64 bits.
unsafe impl Growing for dualpipe_replay_options {
    const SIZE_V1: usize = 48;
}

/// Slots whose expert is not the one they held before, by where the nearest copy of it was.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_replay_moves {
    /// In another slot of the same GPU.
    pub same_gpu: u64,
    /// On another GPU of the same node.
    pub same_node: u64,
    /// On another node.
    pub other_node: u64,
    /// What the moves within nodes carry.
    pub same_node_bytes: u64,
    /// What the moves between nodes carry.
    pub other_node_bytes: u64,
}

/// How a policy did. Imbalances are those of the judged steps: the heaviest GPU of every step summed up / the means of
/// the steps summed up, the inverse of what vLLM calls balancedness.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_replay_run {
    /// Mean over layers.
    pub imbalance: f64,
    /// That of the worst layer.
    pub worst_imbalance: f64,
    /// What no placement could beat, mean over layers; 0 without bounds.
    pub lower_bound: f64,
    /// The share of all load that was not on its group's home node, mean over steps; 0 where groups are free.
    pub away: f64,
    /// Rebalances.
    pub num_windows: u64,
    /// Rebalances that placed anew.
    pub num_new: u64,
    /// All moves.
    pub moves: dualpipe_replay_moves,
}

/// A rebalance and the steps until the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_replay_window {
    /// The first step; the plan was made from the steps before.
    pub step: u32,
    /// Steps until the next rebalance, or the end.
    pub num_steps: u32,
    /// 1 if the policy placed anew, 0 if it kept what there was.
    pub is_new: u32,
    /// 0.
    pub reserved: u32,
    /// In these steps, mean over layers.
    pub imbalance: f64,
    /// In these steps, that of the worst layer.
    pub worst_imbalance: f64,
    /// What no placement could beat in these steps, mean over layers; 0 without bounds.
    pub lower_bound: f64,
    /// The share of all load that was not on its group's home node; 0 where groups are free.
    pub away: f64,
    /// What the change of placement moved.
    pub moves: dualpipe_replay_moves,
}

/// A layer in some steps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_replay_layer {
    /// As of dualpipe_replay_run.
    pub imbalance: f64,
    /// What no placement could beat; 0 without bounds.
    pub lower_bound: f64,
}

/// Runs 1 to 64 policies, one after the other, over recorded loads.
///
/// loads: 2 to 65536 steps of num_layers rows of num_experts numbers, one step after the other, in all num_loads. The
/// goal is what policies of this library plan for; a placement is only held to its numbers of layers and experts, so
/// that a policy that does not know of a rule can be compared with one that does. Calls the progress callback now and
/// then.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement that loses tokens, the initial one or a policy's;
/// DUALPIPE_ERROR_CALLBACK_FAILED; DUALPIPE_ERROR_CANCELLED.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_create(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    loads: *const f32,
    num_loads: usize,
    options: *const dualpipe_replay_options,
    policies: *const dualpipe_policy,
    num_policies: usize,
    replay: *mut dualpipe_replay_t,
) -> dualpipe_status {
    call("dualpipe_replay_create", || {
        // SAFETY: the caller's.
        let (cluster, goal) = unsafe { (read_cluster("cluster", cluster)?, read_goal("goal", goal)?) };
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let given = unsafe { options::read("options", options) }?;
        // SAFETY: the caller's.
        let initial = unsafe { read_initial(&given) }?;
        // SAFETY: the caller's.
        let mut policies = unsafe { read_policies(policies, num_policies) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("replay", replay) }?;
        let num_threads =
            args::in_range("options->num_threads", given.num_threads as usize, 0..=THREADS_MAX)?;
        let stopped = RefCell::new(None);
        let progress = |done: u64, total: u64| match log::progress(done, total) {
            Ok(()) => true,
            Err(failure) => {
                *stopped.borrow_mut() = Some(failure);
                false
            }
        };
        let options = ReplayOptions {
            window: given.window as usize,
            every: given.every as usize,
            initial: initial.as_deref(),
            expert_bytes: given.expert_bytes,
            with_bounds: args::flag("options->with_bounds", given.with_bounds)?,
            // The threads of a pool are not in the child of a fork.
            num_threads: if process::fork_epoch() != 0 { 1 } else { num_threads },
            progress: Some(&progress),
        };
        let replayed = self::replay(&cluster, &goal, loads, &options, &mut policies);
        if let Some(failure) = stopped.take() {
            return Err(failure);
        }
        out.write(handle::insert(ReplayObject(replayed?))?);
        Ok(())
    })
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
unsafe fn read_initial(given: &dualpipe_replay_options) -> Outcome<Option<Vec<u32>>> {
    args::zero("options->reserved", given.reserved)?;
    if given.initial.is_null() {
        args::in_range("options->num_slots, without initial,", given.num_slots, 0..=0)?;
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    unsafe { read_slots("options->initial", given.initial, "options->num_slots", given.num_slots) }.map(Some)
}

/// Frees a replay. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_free(replay: dualpipe_replay_t) -> dualpipe_status {
    call("dualpipe_replay_free", || handle::free::<ReplayObject>("replay", replay))
}

/// How each policy did, in their order. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_runs(
    replay: dualpipe_replay_t,
    runs: *mut dualpipe_replay_run,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_replay_runs", || {
        let object = handle::get::<ReplayObject>("replay", replay)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("runs", runs, capacity, "count", count) }?;
        out.fill(object.0.runs.len(), object.0.runs.iter().map(run_in_c))
    })
}

/// A policy's rebalances, from each to the next; `run` is the policy's index. Buffers are filled as dualpipe.h says
/// under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_windows(
    replay: dualpipe_replay_t,
    run: u32,
    windows: *mut dualpipe_replay_window,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_replay_windows", || {
        let object = handle::get::<ReplayObject>("replay", replay)?;
        let run = object.run(run)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("windows", windows, capacity, "count", count) }?;
        out.fill(run.windows.len(), run.windows.iter().map(window_in_c))
    })
}

/// Each layer of a policy's run, num_layers entries: in the steps of one window, or with DUALPIPE_NONE in all judged
/// steps. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_layers(
    replay: dualpipe_replay_t,
    run: u32,
    window: u32,
    layers: *mut dualpipe_replay_layer,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_replay_layers", || {
        let object = handle::get::<ReplayObject>("replay", replay)?;
        let run = object.run(run)?;
        let (imbalances, bounds) = match window {
            DUALPIPE_NONE => (&run.imbalance, &run.lower_bound),
            window => {
                let window = &run.windows[args::index("window", window, run.windows.len())?];
                (&window.imbalance, &window.lower_bound)
            }
        };
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("layers", layers, capacity, "count", count) }?;
        let bounds = bounds.iter().copied().chain(std::iter::repeat(0.0));
        let layer = |(&imbalance, lower_bound)| dualpipe_replay_layer { imbalance, lower_bound };
        out.fill(imbalances.len(), imbalances.iter().zip(bounds).map(layer))
    })
}

/// The load of each GPU in the last window of a policy's run, num_layers rows of num_gpus numbers: for a heat map.
/// Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_gpu_loads(
    replay: dualpipe_replay_t,
    run: u32,
    gpu_loads: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_replay_gpu_loads", || {
        let object = handle::get::<ReplayObject>("replay", replay)?;
        let run = object.run(run)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("gpu_loads", gpu_loads, capacity, "count", count) }?;
        out.fill(run.gpu_loads.len(), run.gpu_loads.iter().copied())
    })
}

/// A table for people: a line for each policy. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_replay_text(
    replay: dualpipe_replay_t,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_replay_text", || {
        let object = handle::get::<ReplayObject>("replay", replay)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&object.0.to_string())
    })
}

fn run_in_c(run: &Run) -> dualpipe_replay_run {
    dualpipe_replay_run {
        imbalance: mean(&run.imbalance),
        worst_imbalance: worst(&run.imbalance),
        lower_bound: mean(&run.lower_bound),
        away: run.away(),
        num_windows: run.windows.len() as u64,
        num_new: run.num_new() as u64,
        moves: moves_in_c(&run.moves),
    }
}

fn window_in_c(window: &Window) -> dualpipe_replay_window {
    dualpipe_replay_window {
        step: window.step as u32,
        num_steps: window.num_steps as u32,
        is_new: window.is_new.into(),
        reserved: 0,
        imbalance: mean(&window.imbalance),
        worst_imbalance: worst(&window.imbalance),
        lower_bound: mean(&window.lower_bound),
        away: window.away,
        moves: moves_in_c(&window.moves),
    }
}

fn moves_in_c(moves: &Moves) -> dualpipe_replay_moves {
    let &Moves { same_gpu, same_node, other_node, same_node_bytes, other_node_bytes } = moves;
    dualpipe_replay_moves { same_gpu, same_node, other_node, same_node_bytes, other_node_bytes }
}

/// 0 of nothing.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn worst(imbalances: &[f64]) -> f64 {
    imbalances.iter().copied().fold(1.0, f64::max)
}

/// A replay that C has a handle of.
struct ReplayObject(Replay);

impl Object for ReplayObject {
    type Opaque = dualpipe_replay;
    const KIND: Kind = Kind::Replay;
}

impl ReplayObject {
    fn run(&self, run: u32) -> Outcome<&Run> {
        Ok(&self.0.runs[args::index("run", run, self.0.runs.len())?])
    }
}
