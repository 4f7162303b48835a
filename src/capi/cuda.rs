//! CUDA devices: executors whose tensors are in device memory and whose tasks are enqueued on streams. The driver and
//! NCCL are looked up when they are asked for; the library does not need them to be there.
//!
//! A task on a device is called like any other, but enqueues its work on task->compute_stream and returns: it never
//! waits for the device. What it reads is there in the order of that stream. The library makes no context current for
//! longer than a call, and needs no CUDA header: streams are void pointers, a CUstream or a cudaStream_t.
//!
//! ```c
//! // An executor on a device, of ranks in processes joined by NCCL. id is what dualpipe_nccl_unique_id gave.
//! #include <dualpipe.h>
//!
//! static dualpipe_status on_device(dualpipe_program_t program, uint32_t device, const uint8_t *id,
//!                                  size_t id_length, const dualpipe_tensor_spec *tensors, uint32_t num_tensors,
//!                                  dualpipe_executor_t *executor) {
//!   dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
//!   dualpipe_cuda_options cuda = DUALPIPE_CUDA_OPTIONS_INIT;
//!   dualpipe_nccl_options nccl = DUALPIPE_NCCL_OPTIONS_INIT;
//!   cuda.device = device;
//!   nccl.unique_id = id;
//!   nccl.unique_id_length = id_length;
//!   options.tensors = tensors;
//!   options.num_tensors = num_tensors;
//!   options.cuda = &cuda;
//!   options.nccl = &nccl;
//!   return dualpipe_executor_create(program, &options, executor);
//! }
//! ```

use std::ffi::c_void;

use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle;
use super::options::{self, Growing, OutStruct};
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::Outcome;
use crate::execute::transport::nccl::{NCCL_CTAS_MAX, NCCL_ID_BYTES};
use crate::execute::{cuda_available, nccl_unique_id, nccl_version, CudaOptions, GraphState, NcclOptions};

use dualpipe_graph_state::*;

/// How an executor uses a CUDA device. Start from DUALPIPE_CUDA_OPTIONS_INIT: device 0, streams of the executor's own,
/// nothing recorded, steps that are done when they return.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_cuda_options {
    /// sizeof(dualpipe_cuda_options).
    pub size: u32,
    /// Which device, from 0. Its primary context is used, as by the CUDA runtime and PyTorch; it is borrowed.
    pub device: u32,
    /// The stream to compute on: a CUstream or cudaStream_t of the device, borrowed until the executor is freed.
    /// NULL: one of the executor's own. (void *)1 is the legacy default stream, which cannot be captured.
    pub compute_stream: *mut c_void,
    /// The stream that tasks get for expert communication, likewise. NULL: see has_comm_stream.
    pub comm_stream: *mut c_void,
    /// 1: without a comm_stream, tasks get one of the executor's own, of the highest priority. 0: they get none.
    pub has_comm_stream: u32,
    /// 1: the start and end of each task and message are recorded by events, for dualpipe_executor_timeline.
    pub is_timed: u32,
    /// 1: a step returns when all of it is enqueued, and dualpipe_executor_synchronize waits for it; what is enqueued
    /// on compute_stream afterwards comes after the step. 0: a step returns when the device is done with it.
    pub is_stream_ordered: u32,
    /// 1: the second step is captured as a CUDA graph, which later steps launch without calling the tasks. Every rank
    /// must say the same. A task must be capturable, and must not wait for another rank's; if it is not, steps go on
    /// as usual, and dualpipe_executor_graph says why. Not with exchanges_shapes or the caller's memory.
    pub uses_graph: u32,
    /// 1: the shapes of tensors travel with them, so that a task may write smaller ones than agreed into the shape of
    /// its outputs and input_grads. With NCCL the host then waits for each message's header, and gradients may be
    /// absent, which otherwise NCCL cannot tell. Every rank must say the same.
    pub exchanges_shapes: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); u32s and pointers without gaps; any bits are a value of each.
unsafe impl Growing for dualpipe_cuda_options {
    const SIZE_V1: usize = 48;
}

/// How NCCL joins the ranks of a pipeline. Start from DUALPIPE_NCCL_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_nccl_options {
    /// sizeof(dualpipe_nccl_options).
    pub size: u32,
    /// Multiprocessors (CTAs) that each communicator uses at most, 1 to 64; 0 is 2.
    pub max_ctas: u32,
    /// What dualpipe_nccl_unique_id gave on one rank, the same on all, for one executor on each.
    pub unique_id: *const u8,
    /// Its length in bytes.
    pub unique_id_length: u64,
    /// 1: messages are put by copy engines where NCCL can, which take no multiprocessor: NCCL 2.29 or newer, with
    /// uses_graph 2.30, not with exchanges_shapes. After a fault its streams may wait for ever, and another process
    /// should take over. 0: messages are sent and received. Every rank must say the same.
    pub zero_cta: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); u32s, a pointer and a u64 without gaps; any bits are a value of each.
unsafe impl Growing for dualpipe_nccl_options {
    const SIZE_V1: usize = 32;
}

/// What CUDA there is. Start from DUALPIPE_CUDA_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_cuda_info {
    /// sizeof(dualpipe_cuda_info).
    pub size: u32,
    /// Devices, at least 1.
    pub num_devices: u32,
    /// The newest CUDA that the driver knows: 1000 * major + 10 * minor.
    pub driver_version: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); u32s.
unsafe impl Growing for dualpipe_cuda_info {
    const SIZE_V1: usize = 16;
}

/// How far an executor is from launching whole steps.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_graph_state {
    /// Graphs were not asked for.
    DUALPIPE_GRAPH_OFF = 0,
    /// The next step runs as usual.
    DUALPIPE_GRAPH_COLD = 1,
    /// The next step is captured.
    DUALPIPE_GRAPH_WARM = 2,
    /// Steps are launched.
    DUALPIPE_GRAPH_CAPTURED = 3,
    /// A step could not be captured: steps run as usual.
    DUALPIPE_GRAPH_FELL_BACK = 4,
}

/// What CUDA there is on this machine.
///
/// Errors: DUALPIPE_ERROR_UNAVAILABLE, whose text says what is missing: the driver, a function of it, or a device.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_cuda_available(info: *mut dualpipe_cuda_info) -> dualpipe_status {
    call("dualpipe_cuda_available", || {
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let found = cuda_available()?;
        out.write(dualpipe_cuda_info {
            size: 0,
            num_devices: found.num_devices as u32,
            driver_version: found.driver_version,
            reserved: 0,
        });
        Ok(())
    })
}

/// The version of NCCL that is found, 10000 * major + 100 * minor + patch: that of the library which the environment
/// variable DUALPIPE_NCCL_LIB names; else libnccl.so.2, of which the copy that the process has, for example PyTorch's,
/// is taken; else libnccl.so.
///
/// Errors: DUALPIPE_ERROR_UNAVAILABLE, whose text says what is missing.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_nccl_version(version: *mut u32) -> dualpipe_status {
    call("dualpipe_nccl_version", || {
        // SAFETY: the caller's.
        let out = unsafe { Out::new("version", version) }?;
        out.write(nccl_version()?);
        Ok(())
    })
}

/// New ids for the communicators of a pipeline that follows schedule, one for each pair of ranks that exchange messages
/// and way between them: 128 bytes each. One rank asks for them and hands them to all others by whatever it has (MPI, a
/// store, a file); each set is for one executor on each rank. That rank's process must live while the others join.
///
/// bytes: NULL with capacity 0 asks for the count alone, which needs no NCCL.
///
/// Errors: DUALPIPE_ERROR_BUFFER_TOO_SMALL; DUALPIPE_ERROR_UNAVAILABLE without NCCL; DUALPIPE_ERROR_TRANSPORT with
/// NCCL's own words.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_nccl_unique_id(
    schedule: dualpipe_schedule_t,
    bytes: *mut u8,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_nccl_unique_id", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("bytes", bytes, capacity, "count", count) }?;
        let placement = object.schedule.placement();
        let needed = crate::execute::transport::nccl::links(placement).len() * NCCL_ID_BYTES;
        match bytes.is_null() || capacity < needed {
            true => out.fill(needed, []),
            false => out.fill(needed, nccl_unique_id(placement)?),
        }
    })
}

impl dualpipe_cuda_options {
    /// # Safety
    /// The streams are streams of the device's primary context until the executor is freed.
    pub(super) unsafe fn checked(&self, argument: &str) -> Outcome<CudaOptions> {
        let field = |name: &str| format!("{argument}->{name}");
        args::zero(&field("reserved"), self.reserved)?;
        let mut options = CudaOptions::new(self.device as usize);
        options.has_comm_stream = args::flag(&field("has_comm_stream"), self.has_comm_stream)?;
        options.is_timed = args::flag(&field("is_timed"), self.is_timed)?;
        options.is_stream_ordered = args::flag(&field("is_stream_ordered"), self.is_stream_ordered)?;
        options.uses_graph = args::flag(&field("uses_graph"), self.uses_graph)?;
        options.exchanges_shapes = args::flag(&field("exchanges_shapes"), self.exchanges_shapes)?;
        if !self.compute_stream.is_null() {
            // SAFETY: the caller's promise.
            options = unsafe { options.with_compute_stream(self.compute_stream) };
        }
        if !self.comm_stream.is_null() {
            // SAFETY: the caller's promise.
            options = unsafe { options.with_comm_stream(self.comm_stream) };
        }
        Ok(options)
    }
}

/// The caller's options for NCCL.
///
/// # Safety
/// The pointer, if its bits pass, is one to such options, whose unique_id may be read.
pub(super) unsafe fn read_nccl(argument: &str, given: *const dualpipe_nccl_options) -> Outcome<NcclOptions> {
    // SAFETY: the caller's promise.
    let given = unsafe { options::read(argument, given) }?;
    let max_ctas = args::in_range(format!("{argument}->max_ctas"), given.max_ctas, 0..=NCCL_CTAS_MAX)?;
    let zero_cta = args::flag(&format!("{argument}->zero_cta"), given.zero_cta)?;
    args::zero(&format!("{argument}->reserved"), given.reserved)?;
    let length_name = format!("{argument}->unique_id_length");
    let length = args::in_range(&length_name, given.unique_id_length, 0..=isize::MAX as u64)? as usize;
    // SAFETY: the caller's promise.
    let id = unsafe { args::slice(format!("{argument}->unique_id"), given.unique_id, &length_name, length) }?;
    let mut options = NcclOptions::new(id.to_vec());
    options.zero_cta = zero_cta;
    if max_ctas > 0 {
        options.max_ctas = max_ctas;
    }
    Ok(options)
}

/// The state as C knows it, with the reason of a fall-back.
pub(super) fn graph_state(state: GraphState) -> (dualpipe_graph_state, String) {
    match state {
        GraphState::Off => (DUALPIPE_GRAPH_OFF, String::new()),
        GraphState::Cold => (DUALPIPE_GRAPH_COLD, String::new()),
        GraphState::Warm => (DUALPIPE_GRAPH_WARM, String::new()),
        GraphState::Captured => (DUALPIPE_GRAPH_CAPTURED, String::new()),
        GraphState::FellBack(why) => (DUALPIPE_GRAPH_FELL_BACK, why),
    }
}
