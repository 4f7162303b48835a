//! A CUDA device: tensors in its memory, tasks enqueued on streams.
//!
//! ```text
//! sys        the driver's functions, looked up at run time        context   a device's primary context, borrowed
//! stream     streams, events, who has waited for what             memory    device memory, pinned host memory
//! events     the events of a step                                 world     what an instruction enqueues
//! rank       a rank on a device: its parts, its end, its failures watch     the watchdog
//! step       how a step is enqueued, captured, launched
//! overlap    the halves of an F&B pair under one another
//! clock      when tasks ran, by events                         graph      a whole step captured and launched again
//! ```
//!
//! A step is enqueued by the same state machine that runs it on the host ([`crate::execute::rank`]): what it waits for
//! there is here put into the order of streams, so that it waits for nothing but other ranks' hosts.

mod clock;
pub(crate) mod context;
pub(crate) mod events;
pub(crate) mod graph;
pub(crate) mod memory;
pub mod overlap;
mod rank;
mod step;
pub(crate) mod stream;
pub(crate) mod sys;
mod watch;
mod world;

pub(crate) use rank::Cuda;
pub use rank::GraphState;
pub(crate) use watch::abort;

use std::ffi::{c_int, c_void};

use crate::error::Result;

/// How an executor uses a CUDA device.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which device, from 0.
    pub device: usize,
    /// Whether tasks get a second stream, of the highest priority, for expert communication.
    pub has_comm_stream: bool,
    /// Whether the start and end of each task and message are recorded, by events, for
    /// [`super::super::Executor::timeline`].
    pub is_timed: bool,
    /// Whether a step returns when all of it is enqueued. Otherwise it returns when the device is done with it.
    pub is_stream_ordered: bool,
    /// Whether the shapes of tensors travel with them, so that a task may make them smaller than agreed
    /// ([`super::Tensor::set_shape`]). With NCCL the host then waits for each message's header, and gradients may be
    /// absent, which otherwise it cannot tell.
    pub exchanges_shapes: bool,
    /// Whether the second step is captured as a CUDA graph, which later steps launch; see
    /// [`super::super::Executor::graph`].
    pub uses_graph: bool,
    compute_stream: Option<*mut c_void>,
    comm_stream: Option<*mut c_void>,
}

// SAFETY: the streams are names; whoever made the options promised that they may be used.
unsafe impl Send for CudaOptions {}

impl CudaOptions {
    /// Device `device`, streams of the executor's own, nothing recorded, steps that are done when they return.
    pub fn new(device: usize) -> CudaOptions {
        CudaOptions {
            device,
            has_comm_stream: false,
            is_timed: false,
            is_stream_ordered: false,
            exchanges_shapes: false,
            uses_graph: false,
            compute_stream: None,
            comm_stream: None,
        }
    }

    /// Computes on the caller's stream: a `CUstream` or `cudaStream_t`, or 1 for the legacy default stream.
    ///
    /// # Safety
    /// It is a stream of the device's primary context until the executor has been dropped.
    pub unsafe fn with_compute_stream(self, stream: *mut c_void) -> CudaOptions {
        CudaOptions { compute_stream: Some(stream), ..self }
    }

    /// Hands the caller's stream to tasks for expert communication.
    ///
    /// # Safety
    /// As [`CudaOptions::with_compute_stream`].
    pub unsafe fn with_comm_stream(self, stream: *mut c_void) -> CudaOptions {
        CudaOptions { comm_stream: Some(stream), has_comm_stream: true, ..self }
    }
}

/// What CUDA there is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaInfo {
    /// Devices.
    pub num_devices: usize,
    /// The newest CUDA that the driver knows: 1000 * major + 10 * minor.
    pub driver_version: u32,
}

/// What CUDA there is on this machine.
///
/// # Errors
/// [`crate::ErrorKind::Unavailable`] with what is missing: the driver, a function of it, a device.
pub fn available() -> Result<CudaInfo> {
    let (driver, num_devices) = sys::driver_with_device()?;
    let mut version: c_int = 0;
    // SAFETY: writes to a local.
    unsafe { driver.cuDriverGetVersion(&mut version) }?;
    Ok(CudaInfo { num_devices, driver_version: version.max(0) as u32 })
}
