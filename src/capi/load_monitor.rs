//! Loads of experts, counted step by step on many ranks, to plan placements of.
//!
//! A monitor keeps the tokens of each layer and expert for the last steps. Each rank may record what it sees;
//! monitors are merged in any order with the same result, to the byte, and saved and loaded.
//!
//! ```c
//! // On each rank, after each step: what its slots got in all layers, as DeepEP's counters say, which only grow.
//! #include <dualpipe.h>
//!
//! static dualpipe_status after_step(dualpipe_load_monitor_t monitor, uint64_t step, const int64_t *slot_to_expert,
//!                                   const int32_t *counters, size_t num_counters) {
//!   uint32_t is_kept = 0;
//!   return dualpipe_load_monitor_record_cumulative(monitor, step, slot_to_expert, counters, num_counters,
//!                                                  &is_kept);
//! }
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::args::{self, Buffer, Out};
use super::cluster::read_slots;
use super::guard::{call, Busy, BusyFlag};
use super::handle::{self, Kind, Object};
use super::options::{self, Growing, OutStruct};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::monitor::{LoadMonitor, MonitorOptions, Reported};

/// What a dualpipe_load_monitor_t points to: nothing that C could look into.
pub struct dualpipe_load_monitor(());

/// Counts of the last steps. One thread at a time may use it: others get DUALPIPE_ERROR_BUSY. It stays usable after a
/// fork. Free it with dualpipe_load_monitor_free.
pub type dualpipe_load_monitor_t = *mut dualpipe_load_monitor;

/// What a monitor keeps. Monitors that are to be merged have the same. Start from DUALPIPE_LOAD_MONITOR_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_load_monitor_options {
    /// sizeof(dualpipe_load_monitor_options).
    pub size: u32,
    /// MoE layers, 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// Step numbers that are kept: the newest and those less than this before it. At most 65536, and num_layers *
    /// num_experts * window at most 2^28. 0 stands for 1000, as vLLM's, or as many as may be.
    pub window: u32,
    /// Reports that make a step complete: ranks, if each reports for itself, or 1, if one rank has all counts. At
    /// most 65536; 0 stands for 1.
    pub num_ranks: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Steps after which a load weighs half as much in DUALPIPE_LOADS_AVERAGE; above 0, also infinite. 0 stands for a
    /// quarter of the window.
    pub half_life: f64,
}

// SAFETY: repr(C), six u32 and an f64.
unsafe impl Growing for dualpipe_load_monitor_options {
    const SIZE_V1: usize = 32;
}

/// What a monitor is and has. Start from DUALPIPE_LOAD_MONITOR_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_load_monitor_info {
    /// sizeof(dualpipe_load_monitor_info).
    pub size: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// Logical experts of a layer.
    pub num_experts: u32,
    /// Step numbers that are kept.
    pub window: u32,
    /// Reports that make a step complete.
    pub num_ranks: u32,
    /// Steps in the window with any report.
    pub num_steps: u32,
    /// Those of them with all.
    pub num_complete_steps: u32,
    /// Counters of a layer that dualpipe_load_monitor_record_cumulative has read; 0 if none.
    pub num_counters: u32,
    /// The newest step with a report; 0 if num_steps is.
    pub newest_step: u64,
    /// Steps after which a load weighs half as much.
    pub half_life: f64,
}

// SAFETY: repr(C), eight u32, a u64 and an f64.
unsafe impl Growing for dualpipe_load_monitor_info {
    const SIZE_V1: usize = 48;
}

/// Creates a monitor that has recorded nothing.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_create(
    options: *const dualpipe_load_monitor_options,
    monitor: *mut dualpipe_load_monitor_t,
) -> dualpipe_status {
    call("dualpipe_load_monitor_create", || {
        // SAFETY: both are the caller's.
        let (given, out) = unsafe { (options::read("options", options)?, Out::new("monitor", monitor)?) };
        args::zero("options->reserved", given.reserved)?;
        let default = MonitorOptions::new(given.num_layers as usize, given.num_experts as usize);
        let window = if given.window == 0 { default.window } else { given.window as usize };
        let made = LoadMonitor::new(MonitorOptions {
            window,
            num_ranks: given.num_ranks.max(1) as usize,
            half_life: if given.half_life == 0.0 { window as f64 / 4.0 } else { given.half_life },
            ..default
        })?;
        out.write(handle::insert(MonitorObject::new(made))?);
        Ok(())
    })
}

/// Frees a monitor. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_free(monitor: dualpipe_load_monitor_t) -> dualpipe_status {
    call("dualpipe_load_monitor_free", || {
        if monitor.is_null() {
            return Ok(());
        }
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let _busy = object.busy.enter("monitor")?;
        handle::free::<MonitorObject>("monitor", monitor)
    })
}

/// One report of a step, of all layers: num_layers rows of num_experts numbers of tokens. is_kept becomes 1, or 0 if
/// the step is older than the window and was left out.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a step of 2^63 or more, or one that has all its reports; nothing
/// is recorded then. So with the other ways to record.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_record_logical(
    monitor: dualpipe_load_monitor_t,
    step: u64,
    counts: *const u32,
    num_counts: usize,
    is_kept: *mut u32,
) -> dualpipe_status {
    call("dualpipe_load_monitor_record_logical", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let counts = unsafe { args::slice("counts", counts, "num_counts", num_counts) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("is_kept", is_kept) }?;
        let (_busy, mut monitor) = object.enter("monitor")?;
        out.write(monitor.record_logical(step, counts)?.into());
        Ok(())
    })
}

/// One report of one layer of a step: num_experts numbers of tokens. A step's layers may come in any order.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_record_layer(
    monitor: dualpipe_load_monitor_t,
    step: u64,
    layer: u32,
    counts: *const u32,
    num_counts: usize,
    is_kept: *mut u32,
) -> dualpipe_status {
    call("dualpipe_load_monitor_record_layer", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let counts = unsafe { args::slice("counts", counts, "num_counts", num_counts) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("is_kept", is_kept) }?;
        let (_busy, mut monitor) = object.enter("monitor")?;
        out.write(monitor.record_layer(step, layer as usize, counts)?.into());
        Ok(())
    })
}

/// One report of a step from slots, a rank's own or all: num_layers rows of tokens of as many slots each, in all
/// num_counts, as DeepEP counts what it receives. They count for the experts that the slots hold: slot_to_expert, of
/// the same shape, -1 where there is none and no token.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_record_physical(
    monitor: dualpipe_load_monitor_t,
    step: u64,
    slot_to_expert: *const i64,
    counts: *const i32,
    num_counts: usize,
    is_kept: *mut u32,
) -> dualpipe_status {
    call("dualpipe_load_monitor_record_physical", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_counts", num_counts) }?;
        // SAFETY: the caller's.
        let counts = unsafe { args::slice("counts", counts, "num_counts", num_counts) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("is_kept", is_kept) }?;
        let (_busy, mut monitor) = object.enter("monitor")?;
        out.write(monitor.record_physical(step, &slots, counts)?.into());
        Ok(())
    })
}

/// dualpipe_load_monitor_record_physical from counters that only grow, such as DeepEP's
/// cumulative_local_expert_recv_stats: what they have grown by since this monitor last read them, or since they were
/// 0.
///
/// A counter may run over, and grow by less than 2^31 between two readings. If one of a layer has fallen, the layer's
/// were set to 0 and are counted from there. If all have outgrown what they were before, that cannot be seen: see
/// dualpipe_load_monitor_set_counters.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for another number of counters than last time. The counters have not
/// been read then; a step that was left out has read them.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_record_cumulative(
    monitor: dualpipe_load_monitor_t,
    step: u64,
    slot_to_expert: *const i64,
    counters: *const i32,
    num_counters: usize,
    is_kept: *mut u32,
) -> dualpipe_status {
    call("dualpipe_load_monitor_record_cumulative", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_counters", num_counters) }?;
        // SAFETY: the caller's.
        let values = unsafe { args::slice("counters", counters, "num_counters", num_counters) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("is_kept", is_kept) }?;
        let (_busy, mut monitor) = object.enter("monitor")?;
        out.write(monitor.record_cumulative(step, &slots, values)?.into());
        Ok(())
    })
}

/// Says what the counters show now, of which nothing is to count; NULL and 0: they have been set to 0, and there may
/// be another number of them from now on.
///
/// A saved state has the last reading. After a restart, counters that have outlived it go on without being counted
/// twice. Counters that began at 0 again, as those in a process that ended do, need this call with NULL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_set_counters(
    monitor: dualpipe_load_monitor_t,
    counters: *const i32,
    num_counters: usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_set_counters", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let values = unsafe { args::slice("counters", counters, "num_counters", num_counters) }?;
        let (_busy, mut monitor) = object.enter("monitor")?;
        Ok(monitor.set_counters(values)?)
    })
}

/// Adds what another monitor, made with the same options, has recorded; it stays as it is. Any order of merging and
/// recording comes to the same. The readings of counters are not merged: each monitor keeps its own.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if a step would have more reports than ranks, as after merging a
/// monitor twice; nothing has changed then.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_merge(
    monitor: dualpipe_load_monitor_t,
    other: dualpipe_load_monitor_t,
) -> dualpipe_status {
    call("dualpipe_load_monitor_merge", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        let added = handle::get::<MonitorObject>("other", other)?;
        if monitor == other {
            return Err(Failure::argument("other", "is monitor itself, must be another"));
        }
        let (_busy, mut monitor) = object.enter("monitor")?;
        let (_other_busy, other) = added.enter("other")?;
        Ok(monitor.merge(&other)?)
    })
}

/// Says what a monitor is and has.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_describe(
    monitor: dualpipe_load_monitor_t,
    info: *mut dualpipe_load_monitor_info,
) -> dualpipe_status {
    call("dualpipe_load_monitor_describe", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let options = *monitor.options();
        out.write(dualpipe_load_monitor_info {
            size: 0,
            num_layers: options.num_layers as u32,
            num_experts: options.num_experts as u32,
            window: options.window as u32,
            num_ranks: options.num_ranks as u32,
            num_steps: monitor.step_numbers(Reported::ByAny).len() as u32,
            num_complete_steps: monitor.step_numbers(Reported::ByAllRanks).len() as u32,
            num_counters: (monitor.counters().len() / options.num_layers) as u32,
            newest_step: monitor.newest_step().unwrap_or(0),
            half_life: options.half_life,
        });
        Ok(())
    })
}

/// The state, from which dualpipe_load_monitor_load makes the same monitor, also on another machine; equal monitors
/// have equal bytes. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_save(
    monitor: dualpipe_load_monitor_t,
    bytes: *mut u8,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_monitor_save", || {
        let object = handle::get::<MonitorObject>("monitor", monitor)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("bytes", bytes, capacity, "count", count) }?;
        let (_busy, monitor) = object.enter("monitor")?;
        let bytes = monitor.to_bytes();
        out.fill(bytes.len(), bytes)
    })
}

/// Creates a monitor from a saved state.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for bytes of something else, of another version, damaged, or cut off.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_monitor_load(
    bytes: *const u8,
    num_bytes: usize,
    monitor: *mut dualpipe_load_monitor_t,
) -> dualpipe_status {
    call("dualpipe_load_monitor_load", || {
        // SAFETY: the caller's.
        let bytes = unsafe { args::slice("bytes", bytes, "num_bytes", num_bytes) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("monitor", monitor) }?;
        out.write(handle::insert(MonitorObject::new(LoadMonitor::from_bytes(bytes)?))?);
        Ok(())
    })
}

/// A monitor that C has a handle of.
pub(super) struct MonitorObject {
    busy: BusyFlag,
    monitor: Mutex<LoadMonitor>,
}

impl MonitorObject {
    fn new(monitor: LoadMonitor) -> MonitorObject {
        MonitorObject { busy: BusyFlag::default(), monitor: Mutex::new(monitor) }
    }

    /// Nobody waits here: who has the busy flag has the monitor.
    pub(super) fn enter(&self, argument: &str) -> Outcome<(Busy, MutexGuard<'_, LoadMonitor>)> {
        let busy = self.busy.enter(argument)?;
        Ok((busy, self.monitor.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Object for MonitorObject {
    type Opaque = dualpipe_load_monitor;
    const KIND: Kind = Kind::LoadMonitor;
}
