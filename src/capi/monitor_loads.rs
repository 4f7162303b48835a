//! What a monitor has counted (load_monitor.h): loads to balance, which steps are there, how balanced they are.
//!
//! ```c
//! // On one rank, now and then: the states of all ranks, sent in whatever way, become loads for
//! // dualpipe_expert_plan_balance.
//! #include <dualpipe.h>
//!
//! static dualpipe_status loads_of_all(dualpipe_load_monitor_t sum, const uint8_t *const *states,
//!                                     const size_t *lengths, size_t num_ranks, float *loads, size_t capacity,
//!                                     size_t *count) {
//!   dualpipe_status status = DUALPIPE_OK;
//!   for (size_t rank = 0; rank < num_ranks && status == DUALPIPE_OK; rank++) {
//!     dualpipe_load_monitor_t one = NULL;
//!     status = dualpipe_load_monitor_load(states[rank], lengths[rank], &one);
//!     if (status == DUALPIPE_OK) status = dualpipe_load_monitor_merge(sum, one);
//!     dualpipe_load_monitor_free(one);
//!   }
//!   if (status != DUALPIPE_OK) return status;
//!   return dualpipe_load_monitor_loads(sum, DUALPIPE_REPORTED_BY_ALL_RANKS, DUALPIPE_LOADS_AVERAGE, loads,
//!                                      capacity, count);
//! }
//! ```

use super::args::{self, Buffer, Out};
use super::cluster::{dualpipe_cluster, read_cluster, read_slots};
use super::guard::call;
use super::handle;
use super::load_monitor::{dualpipe_load_monitor_t, MonitorObject};
use super::status::{dualpipe_status, Outcome};
use crate::balance::monitor::{Balancedness, Reported};

use dualpipe_monitor_loads::*;
use dualpipe_reported::*;

/// Which steps of a window are asked for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_reported {
    /// Those with num_ranks reports of each layer.
    DUALPIPE_REPORTED_BY_ALL_RANKS = 1,
    /// Those with any report. Where ranks report their own slots, experts of absent ranks look idle in these.
    DUALPIPE_REPORTED_BY_ANY = 2,
}

/// What becomes of the steps.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_monitor_loads {
    /// Their tokens: num_layers rows of num_experts numbers.
    DUALPIPE_LOADS_SUM = 1,
    /// Tokens per step, alike, averaged with weights that halve with each half_life of steps before the newest.
    DUALPIPE_LOADS_AVERAGE = 2,
    /// The tokens of each step, one step after the other in order of their numbers.
    DUALPIPE_LOADS_STEPS = 3,
}

/// The loads of the steps asked for (reported: a dualpipe_reported), summed, averaged or one by one (kind: a
/// dualpipe_monitor_loads); 0 where there is no such step. Buffers are filled as dualpipe.h says under "Buffers".
///
/// The average is computed from the window's integers, so that it too does not depend on the order of merging. A step
/// that is missing has no weight.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_loads(
    monitor: dualpipe_load_monitor_t,
    reported: u32,
    kind: u32,
    loads: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_loads", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let reported = read_reported(reported)?;
        let kinds = [DUALPIPE_LOADS_SUM, DUALPIPE_LOADS_AVERAGE, DUALPIPE_LOADS_STEPS];
        let kind = args::one_of("kind", kind, kinds.map(|kind| (kind as u32, kind)))?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("loads", loads, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let loads = match kind {
            DUALPIPE_LOADS_SUM => monitor.window_sum(reported),
            DUALPIPE_LOADS_AVERAGE => monitor.average(reported),
            DUALPIPE_LOADS_STEPS => monitor.steps(reported),
        };
        out.fill(loads.len(), loads)
    })
}

/// The tokens of the steps asked for (a dualpipe_reported), exactly: num_layers rows of num_experts numbers. Buffers
/// are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_counts(
    monitor: dualpipe_load_monitor_t,
    reported: u32,
    counts: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_counts", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let reported = read_reported(reported)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("counts", counts, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let counts = monitor.window_counts(reported);
        out.fill(counts.len(), counts)
    })
}

/// The numbers of the steps asked for (a dualpipe_reported), in order. Buffers are filled as dualpipe.h says under
/// "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_step_numbers(
    monitor: dualpipe_load_monitor_t,
    reported: u32,
    steps: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_step_numbers", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let reported = read_reported(reported)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("steps", steps, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let steps = monitor.step_numbers(reported);
        out.fill(steps.len(), steps)
    })
}

/// The steps that have a report but not all, in order. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_incomplete_steps(
    monitor: dualpipe_load_monitor_t,
    steps: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_incomplete_steps", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("steps", steps, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let steps = monitor.incomplete_steps();
        out.fill(steps.len(), steps)
    })
}

/// How many reports there are of a step, for each layer; 0 of a step that is not in the window. Buffers are filled as
/// dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_reports(
    monitor: dualpipe_load_monitor_t,
    step: u64,
    reports: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_reports", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("reports", reports, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let num_layers = monitor.options().num_layers;
        let none = vec![0; num_layers];
        out.fill(num_layers, monitor.reports(step).unwrap_or(&none).iter().copied())
    })
}

/// How balanced the steps asked for (a dualpipe_reported) are on the GPUs of a placement, as vLLM logs it: the mean
/// GPU's load / the greatest, 0 where there is no load. overall: the sum over layers of the means / that of the
/// greatest; layers: of each layer.
///
/// slot_to_expert: num_layers rows of the cluster's slots, -1 where there is no expert, in all num_slots. shares:
/// NULL for an equal split, or as many numbers. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_balancedness(
    monitor: dualpipe_load_monitor_t,
    reported: u32,
    cluster: *const dualpipe_cluster,
    slot_to_expert: *const i64,
    shares: *const f64,
    num_slots: usize,
    overall: *mut f64,
    layers: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_balancedness", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let reported = read_reported(reported)?;
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        let shares = match shares.is_null() {
            true => None,
            // SAFETY: the caller's.
            false => Some(unsafe { args::slice("shares", shares, "num_slots", num_slots) }?),
        };
        // SAFETY: the caller's.
        let out = unsafe { BalancednessOut::new(overall, layers, capacity, count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        out.write(monitor.balancedness(reported, &cluster, &slots, shares)?)
    })
}

/// The same of loads of GPUs, however they came about: rows of the cluster's num_gpus numbers, 0 to 1e100, in all
/// num_gpu_loads, a row for each layer. Dead GPUs do not count.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_balancedness(
    cluster: *const dualpipe_cluster,
    gpu_loads: *const f64,
    num_gpu_loads: usize,
    overall: *mut f64,
    layers: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_balancedness", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("gpu_loads", gpu_loads, "num_gpu_loads", num_gpu_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { BalancednessOut::new(overall, layers, capacity, count) }?;
        out.write(Balancedness::of_gpu_loads(&cluster, loads)?)
    })
}

struct BalancednessOut {
    overall: Out<f64>,
    layers: Buffer<f64>,
}

impl BalancednessOut {
    /// # Safety
    /// As of [`Out::new`] and [`Buffer::new`].
    unsafe fn new(overall: *mut f64, layers: *mut f64, capacity: usize, count: *mut usize) -> Outcome<Self> {
        // SAFETY: as promised by the caller.
        let layers = unsafe { Buffer::new("layers", layers, capacity, "count", count) }?;
        // SAFETY: as promised by the caller.
        Ok(BalancednessOut { overall: unsafe { Out::new("overall", overall) }?, layers })
    }

    /// The buffer first, as it may be too small.
    fn write(self, found: Balancedness) -> Outcome {
        self.layers.fill(found.layers.len(), found.layers)?;
        self.overall.write(found.overall);
        Ok(())
    }
}

fn read_reported(reported: u32) -> Outcome<Reported> {
    let all = [DUALPIPE_REPORTED_BY_ALL_RANKS, DUALPIPE_REPORTED_BY_ANY];
    Ok(match args::one_of("reported", reported, all.map(|reported| (reported as u32, reported)))? {
        DUALPIPE_REPORTED_BY_ALL_RANKS => Reported::ByAllRanks,
        DUALPIPE_REPORTED_BY_ANY => Reported::ByAny,
    })
}
