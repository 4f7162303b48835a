//! The functions of CUDA's driver that the library calls, looked up once, by the names that 12.x and 13.x share.
//!
//! cudarc finds the library and names the types. Its functions are not called: they panic if one is missing, and
//! take a driver's answer for a Rust enum, which a newer driver's is not. Here a missing function is an error, and a
//! code is a number.

#![allow(non_snake_case)] // the names are the driver's

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys;
pub(crate) use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUevent, CUgraph, CUgraphExec, CUstream};

use crate::error::{Error, ErrorKind, Result};

/// `CU_STREAM_NON_BLOCKING`: the legacy default stream is not waited for.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_EVENT_RECORD_EXTERNAL`: in a capture, a node that records the event at each launch.
pub(crate) const EVENT_RECORD_EXTERNAL: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: only what this thread does can spoil the capture.
pub(crate) const CAPTURE_THREAD_LOCAL: c_uint = 1;
/// `CU_MEMHOSTALLOC_PORTABLE`: of use in every context.
pub(crate) const HOST_PORTABLE: c_uint = 1;

/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;
/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
const PEER_ACCESS_ALREADY_ENABLED: c_int = 704;

macro_rules! driver {
    ($($symbol:ident($($argument:ident: $type:ty),*);)*) => {
        /// The driver's functions.
        pub(crate) struct Driver {
            $($symbol: unsafe extern "C" fn($($type),*) -> c_int,)*
        }

        impl Driver {
            /// Looks every function up.
            fn load() -> std::result::Result<Driver, String> {
                // SAFETY: loading runs the library's own start-up code, which is the driver's.
                if !unsafe { sys::is_culib_present() } {
                    return Err("libcuda.so.1 was not found: no NVIDIA driver is installed, or the loader's search \
                                path (LD_LIBRARY_PATH) does not have it".to_string());
                }
                // SAFETY: it is present.
                let library = unsafe { sys::culib() };
                $(
                    // SAFETY: the type is the one that the driver's documentation gives for this name.
                    let found = unsafe { library.get(concat!(stringify!($symbol), "\0").as_bytes()) };
                    let $symbol = *found.map_err(|_| {
                        format!("libcuda.so.1 has no {}: the driver is too old", stringify!($symbol))
                    })?;
                )*
                Ok(Driver { $($symbol,)* })
            }

            $(
                /// As in the driver's documentation.
                ///
                /// # Safety
                /// As there.
                #[allow(clippy::too_many_arguments)]
                pub(crate) unsafe fn $symbol(&self, $($argument: $type),*) -> DriverResult {
                    // SAFETY: the caller's.
                    let code = unsafe { (self.$symbol)($($argument),*) };
                    if code == SUCCESS {
                        return Ok(());
                    }
                    Err(DriverError { function: stringify!($symbol), code })
                }
            )*
        }
    };
}

driver! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorName(code: c_int, name: *mut *const c_char);
    cuGetErrorString(code: c_int, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut c_int, ordinal: c_int);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: c_int);
    cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
    cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);
    cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamGetCtx(stream: CUstream, context: *mut CUcontext);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamIsCapturing(stream: CUstream, status: *mut c_uint);
    cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventRecordWithFlags(event: CUevent, stream: CUstream, flags: c_uint);
    cuEventQuery(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuMemAlloc_v2(memory: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(memory: CUdeviceptr);
    cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(memory: *mut c_void);
    cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyPeerAsync(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
        stream: CUstream
    );
    cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: u64);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphDestroy(graph: CUgraph);
    cuGraphExecDestroy(executable: CUgraphExec);
}

/// What a driver function returns.
pub(crate) type DriverResult<T = ()> = std::result::Result<T, DriverError>;

/// A driver function that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DriverError {
    function: &'static str,
    code: c_int,
}

impl DriverError {
    /// Whether every later call in this context will fail as well: the process goes on, the device is lost to it.
    fn is_sticky(self) -> bool {
        // Illegal address, launch timeout, context destroyed, assertion, hardware faults, unknown.
        matches!(self.code, 4 | 700 | 702 | 709 | 710 | 714..=719 | 999)
    }

    /// Whether the call that failed only said "not yet".
    pub(crate) fn is_not_ready(self) -> bool {
        self.code == NOT_READY
    }

    pub(crate) fn is_peer_access_already_enabled(self) -> bool {
        self.code == PEER_ACCESS_ALREADY_ENABLED
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DriverError { function, code } = self;
        let words = |ask: unsafe fn(&Driver, c_int, *mut *const c_char) -> DriverResult| {
            let mut text = std::ptr::null();
            let driver = driver().ok()?;
            // SAFETY: writes to a local; what it points to afterwards is the driver's own, for ever.
            unsafe { ask(driver, *code, &mut text) }.ok()?;
            // SAFETY: a NUL-terminated text, if it is one.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        write!(f, "{}", function.trim_end_matches("_v2").trim_end_matches("_v3"))?;
        match words(Driver::cuGetErrorName) {
            Some(name) => write!(f, ": {name} ({code})")?,
            None => write!(f, ": error {code}")?,
        }
        words(Driver::cuGetErrorString).map_or(Ok(()), |text| write!(f, ", {text}"))?;
        match self.is_sticky() {
            true => write!(f, "; this process has lost the device, only a new one can use it"),
            false => Ok(()),
        }
    }
}

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Error {
        Error::new(ErrorKind::Device, error.to_string())
    }
}

/// The driver, loaded and initialized at the first call; never unloaded.
///
/// # Errors
/// [`ErrorKind::Unavailable`] with what is missing.
pub(crate) fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();
    let loaded = DRIVER.get_or_init(Driver::load);
    loaded.as_ref().map_err(|why| Error::new(ErrorKind::Unavailable, format!("cuda: {why}")))
}

/// The driver, if there is also a device.
///
/// # Errors
/// [`ErrorKind::Unavailable`] with what is missing.
pub(crate) fn driver_with_device() -> Result<(&'static Driver, usize)> {
    let driver = driver()?;
    let unavailable = |why: DriverError| Error::new(ErrorKind::Unavailable, format!("cuda: {why}"));
    // SAFETY: no arguments to speak of.
    unsafe { driver.cuInit(0) }.map_err(unavailable)?;
    let mut count = 0;
    // SAFETY: writes to a local.
    unsafe { driver.cuDeviceGetCount(&mut count) }.map_err(unavailable)?;
    if count <= 0 {
        return Err(Error::new(ErrorKind::Unavailable, "cuda: the driver sees no device"));
    }
    Ok((driver, count as usize))
}
