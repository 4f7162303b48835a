//! The calls of CUDA's driver that the checks make themselves, and the handles of what they make.
//!
//! A thread calls [`Gpu::enter`] before anything else here. What is safe to call keeps the host's memory safe: a kernel
//! gets as many parameters as it takes, and copies stay inside their allocations.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void, CString};
use std::sync::Arc;

pub(crate) use cudarc::driver::sys::{CUdeviceptr, CUstream};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// The compiled kernels that the checks use: kernels/NAME.cu.
const MODULES: [&str; 4] = [
    include_str!("../../kernels/ptx/bench.ptx"),
    include_str!("../../kernels/ptx/cast.ptx"),
    include_str!("../../kernels/ptx/elementwise.ptx"),
    include_str!("../../kernels/ptx/gemm.ptx"),
];

/// What a call gives, or says why not.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Says which call failed, in the driver's words.
pub(crate) fn by(call: &'static str) -> impl Fn(DriverError) -> String {
    move |error| match error.error_name() {
        Ok(name) => format!("{call}: {}", name.to_string_lossy()),
        Err(_) => format!("{call}: error {}", error.0 as u32),
    }
}

/// Device 0's primary context, which the executor uses too, with the kernels loaded; never given back.
pub(crate) struct Gpu {
    context: sys::CUcontext,
    device: sys::CUdevice,
    /// With the number of their parameters.
    kernels: BTreeMap<String, (sys::CUfunction, usize)>,
    pub(crate) name: String,
}

// SAFETY: the driver's functions may be called from any thread; the handles are only names.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// A parameter of a kernel. Addresses are U64.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Argument {
    /// The value where the driver, which expects little-endian numbers, reads it.
    fn bits(self) -> u64 {
        match self {
            Argument::U32(value) => u64::from(value),
            Argument::U64(value) => value,
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl Gpu {
    pub(crate) fn open() -> Outcome<Arc<Gpu>> {
        // SAFETY: loading runs the library's own start-up code, which is the driver's.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no libcuda.so.1: no NVIDIA driver is installed".into());
        }
        result::init().map_err(by("cuInit"))?;
        let device = result::device::get(0).map_err(by("cuDeviceGet"))?;
        // SAFETY: a device that the driver named.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(by("cuDevicePrimaryCtxRetain"))?;
        let name = result::device::get_name(device).map_err(by("cuDeviceGetName"))?;
        let mut gpu = Gpu { context, device, kernels: BTreeMap::new(), name };
        gpu.enter()?;
        for ptx in MODULES {
            gpu.load(ptx)?;
        }
        Ok(Arc::new(gpu))
    }

    /// Whether it is the stand-in, which computes but takes no time that means anything.
    pub(crate) fn is_standin(&self) -> bool {
        self.name == "stand-in"
    }

    /// Makes the context this thread's.
    pub(crate) fn enter(&self) -> Outcome {
        // SAFETY: a context that is retained.
        unsafe { result::ctx::set_current(self.context) }.map_err(by("cuCtxSetCurrent"))
    }

    /// Multiprocessors, and their highest clock in kHz.
    pub(crate) fn shape(&self) -> [i32; 2] {
        use sys::CUdevice_attribute_enum as Attribute;
        let wanted =
            [Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE];
        // SAFETY: a device that the driver named.
        wanted.map(|wanted| unsafe { result::device::get_attribute(self.device, wanted) }.unwrap_or(0))
    }

    fn load(&mut self, ptx: &str) -> Outcome {
        let image = CString::new(ptx).map_err(|e| e.to_string())?;
        // SAFETY: PTX, which ends with a zero.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(by("cuModuleLoadData"))?;
        for entry in ptx.split(".entry ").skip(1) {
            let (name, rest) = entry.split_once('(').unwrap_or((entry, ""));
            let num_parameters = rest.split(')').next().unwrap_or_default().matches(".param").count();
            let symbol = CString::new(name).map_err(|e| e.to_string())?;
            // SAFETY: a module that is loaded.
            let function = unsafe { result::module::get_function(module, symbol) };
            let function = function.map_err(|why| format!("{name}: {}", by("cuModuleGetFunction")(why)))?;
            self.kernels.insert(name.to_string(), (function, num_parameters));
        }
        Ok(())
    }

    /// Enqueues kernel `name`: so many blocks of so many threads.
    pub(crate) fn launch(
        &self,
        stream: CUstream,
        name: &str,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        arguments: &[Argument],
    ) -> Outcome {
        let &(function, num_parameters) = self.kernels.get(name).ok_or(format!("no kernel {name}"))?;
        if num_parameters != arguments.len() {
            return Err(format!("{name} takes {num_parameters} parameters, not {}", arguments.len()));
        }
        let mut values = [0_u64; 24];
        let mut pointers = [std::ptr::null_mut::<c_void>(); 24];
        for ((value, pointer), argument) in values.iter_mut().zip(&mut pointers).zip(arguments) {
            *value = argument.bits();
            *pointer = std::ptr::from_mut(value).cast();
        }
        // SAFETY: the function is loaded, and there are as many parameters as it takes, each in 8 bytes; they are
        // copied before the call returns. What the kernel does to the device's memory is the device's matter.
        unsafe { result::launch_kernel(function, grid, block, 0, stream, &mut pointers) }
            .map_err(|why| format!("{name}: {}", by("cuLaunchKernel")(why)))
    }

    /// Keeps one thread of `stream` busy for so long.
    pub(crate) fn spin(&self, stream: CUstream, nanoseconds: u64) -> Outcome {
        self.launch(stream, "spin", (1, 1, 1), (1, 1, 1), &[Argument::U64(nanoseconds)])
    }

    /// Enqueues a copy from device memory to device memory.
    pub(crate) fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> Outcome {
        // SAFETY: the device's memory is the device's matter.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(by("cuMemcpyDtoDAsync"))
    }

    /// Waits until the device has done all that was enqueued.
    pub(crate) fn synchronize(&self) -> Outcome {
        result::ctx::synchronize().map_err(by("cuCtxSynchronize"))
    }
}

/// A stream that does not wait for the default stream.
pub(crate) struct Stream(CUstream);

// SAFETY: as for `Gpu`.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new() -> Outcome<Stream> {
        result::stream::create(result::stream::StreamKind::NonBlocking)
            .map(Stream)
            .map_err(by("cuStreamCreate"))
    }

    /// The driver's name for it.
    pub(crate) fn raw(&self) -> CUstream {
        self.0
    }

    /// Waits until all that was enqueued is done.
    pub(crate) fn synchronize(&self) -> Outcome {
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.0) }.map_err(by("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and destroyed once; what is enqueued still runs.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// An event that tells when it happened, or only orders streams.
pub(crate) struct Event(sys::CUevent);

// SAFETY: as for `Gpu`.
unsafe impl Send for Event {}
// SAFETY: as for `Gpu`.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(is_timed: bool) -> Outcome<Event> {
        use sys::CUevent_flags_enum as Flags;
        let flags = if is_timed { Flags::CU_EVENT_DEFAULT } else { Flags::CU_EVENT_DISABLE_TIMING };
        result::event::create(flags).map(Event).map_err(by("cuEventCreate"))
    }

    pub(crate) fn record(&self, stream: CUstream) -> Outcome {
        // SAFETY: the event is alive; a wrong stream is refused.
        unsafe { result::event::record(self.0, stream) }.map_err(by("cuEventRecord"))
    }

    /// What is enqueued on `stream` from now on comes after it.
    pub(crate) fn wait(&self, stream: CUstream) -> Outcome {
        // SAFETY: as above.
        let waited = unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }.result();
        waited.map_err(by("cuStreamWaitEvent"))
    }

    /// Nanoseconds from `start` to this; both timed and done.
    pub(crate) fn ns_since(&self, start: &Event) -> Outcome<f64> {
        // SAFETY: both are alive.
        let elapsed = unsafe { result::event::elapsed(start.0, self.0) };
        elapsed.map(|milliseconds| f64::from(milliseconds) * 1e6).map_err(by("cuEventElapsedTime"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// What the driver says of its age: 1000 * major + 10 * minor.
pub(crate) fn driver_version() -> i32 {
    let mut version: c_int = 0;
    // SAFETY: writes to a local.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    version
}
