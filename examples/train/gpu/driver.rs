//! The calls of CUDA's driver that the example makes, and all of its `unsafe`.
//!
//! What is safe to call here keeps the host's memory safe: a kernel gets as many parameters as it takes, of their
//! types, and copies stay inside their buffers. A wrong address or size given to a kernel is an error of the device.

use std::collections::BTreeMap;
use std::ffi::{c_void, CString};
use std::sync::Arc;

pub(crate) use cudarc::driver::sys::{CUdeviceptr, CUstream};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use dualpipe::execute::CudaOptions;

/// The compiled kernels: kernels/NAME.cu.
const MODULES: [&str; 6] = [
    include_str!("../../../kernels/ptx/attention.ptx"),
    include_str!("../../../kernels/ptx/elementwise.ptx"),
    include_str!("../../../kernels/ptx/ends.ptx"),
    include_str!("../../../kernels/ptx/experts.ptx"),
    include_str!("../../../kernels/ptx/gemm.ptx"),
    include_str!("../../../kernels/ptx/norm.ptx"),
];

/// Says which call failed, in the driver's words.
fn by(call: &'static str) -> impl Fn(DriverError) -> String {
    move |error| {
        let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        match (name, text) {
            (Ok(name), Ok(text)) => format!("{call}: {name}, {text}"),
            _ => format!("{call}: error {}", error.0 as u32),
        }
    }
}

/// A device's primary context, with the kernels loaded.
pub(crate) struct Device {
    ordinal: usize,
    raw: sys::CUdevice,
    context: sys::CUcontext,
    modules: Vec<sys::CUmodule>,
    kernels: BTreeMap<String, Kernel>,
}

// SAFETY: the driver's functions may be called from any thread; the handles are only names.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

struct Kernel {
    function: sys::CUfunction,
    parameters: Vec<Kind>,
}

/// A type of a kernel's parameter. Addresses are u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U32,
    U64,
    F32,
}

/// A value for a kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Argument {
    fn kind(self) -> Kind {
        match self {
            Argument::U32(_) => Kind::U32,
            Argument::U64(_) => Kind::U64,
            Argument::F32(_) => Kind::F32,
        }
    }

    /// The value where the driver, which expects little-endian numbers, reads it.
    fn bits(self) -> u64 {
        match self {
            Argument::U32(value) => u64::from(value),
            Argument::U64(value) => value,
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

/// The kernels of a PTX text, with their parameters.
fn entries(ptx: &str) -> Result<Vec<(&str, Vec<Kind>)>, String> {
    let mut found = Vec::new();
    for entry in ptx.split(".entry ").skip(1) {
        let (name, rest) = entry.split_once('(').unwrap_or((entry, ""));
        let list = rest.split(')').next().unwrap_or_default();
        let kinds = list.split(".param .").skip(1).map(|parameter| match parameter.get(..3) {
            Some("u32") => Ok(Kind::U32),
            Some("u64") => Ok(Kind::U64),
            Some("f32") => Ok(Kind::F32),
            _ => Err(format!("{name} has a parameter of another type: {parameter}")),
        });
        found.push((name, kinds.collect::<Result<_, _>>()?));
    }
    Ok(found)
}

impl Device {
    /// Device `ordinal`, from 0.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Device>, String> {
        // SAFETY: loading runs the library's own start-up code, which is the driver's.
        if !unsafe { sys::is_culib_present() } {
            return Err("cuda: there is no libcuda.so.1: no NVIDIA driver is installed".into());
        }
        result::init().map_err(by("cuInit"))?;
        let number = i32::try_from(ordinal).map_err(|e| format!("cuda: device {ordinal}: {e}"))?;
        let raw = result::device::get(number).map_err(by("cuDeviceGet"))?;
        // SAFETY: a device that the driver named; released when the `Device` is dropped.
        let context = unsafe { result::primary_ctx::retain(raw) }.map_err(by("cuDevicePrimaryCtxRetain"))?;
        let mut device = Device { ordinal, raw, context, modules: Vec::new(), kernels: BTreeMap::new() };
        for ptx in MODULES {
            device.load(ptx)?;
        }
        Ok(Arc::new(device))
    }

    /// Whether kernels of the one can read memory of the other: they are the same.
    pub(crate) fn shares_memory_with(&self, other: &Device) -> bool {
        self.context == other.context
    }

    fn load(&mut self, ptx: &str) -> Result<(), String> {
        let image = CString::new(ptx).map_err(|e| e.to_string())?;
        let context = self.context;
        let _entered = enter(context)?;
        // SAFETY: PTX, which ends with a zero.
        let module =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(by("cuModuleLoadData"))?;
        self.modules.push(module);
        for (name, parameters) in entries(ptx)? {
            let symbol = CString::new(name).map_err(|e| e.to_string())?;
            // SAFETY: a module that is loaded.
            let function = unsafe { result::module::get_function(module, symbol) };
            let function = function.map_err(by("cuModuleGetFunction")).map_err(|e| format!("{name}: {e}"))?;
            self.kernels.insert(name.to_string(), Kernel { function, parameters });
        }
        Ok(())
    }

    /// Enqueues kernel `name`. `grid` are blocks, `block` threads of each.
    pub(crate) fn launch(
        &self,
        stream: CUstream,
        name: &str,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        arguments: &[Argument],
    ) -> Result<(), String> {
        let kernel = self.kernels.get(name).ok_or_else(|| format!("there is no kernel {name}"))?;
        if !arguments.iter().map(|argument| argument.kind()).eq(kernel.parameters.iter().copied()) {
            return Err(format!("{name} takes {:?}, not {arguments:?}", kernel.parameters));
        }
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let _entered = enter(self.context)?;
        // SAFETY: the function is loaded, and the parameters are as many and as large as it says; they are copied
        // before the call returns. What the kernel does to the device's memory is the device's matter.
        unsafe { result::launch_kernel(kernel.function, grid, block, 0, stream, &mut pointers) }
            .map_err(by("cuLaunchKernel"))
            .map_err(|e| format!("{name}: {e}"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_entered) = enter(self.context) {
            for module in self.modules.drain(..) {
                // SAFETY: loaded once; whoever enqueues its kernels keeps the device.
                let _ = unsafe { result::module::unload(module) };
            }
        }
        // SAFETY: retained once by `open`.
        let _ = unsafe { result::primary_ctx::release(self.raw) };
    }
}

/// This thread's current context, until it is dropped.
struct Entered;

fn enter(context: sys::CUcontext) -> Result<Entered, String> {
    // SAFETY: a context that is retained.
    unsafe { sys::cuCtxPushCurrent_v2(context) }.result().map_err(by("cuCtxPushCurrent"))?;
    Ok(Entered)
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes to a local; pops what `enter` pushed.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut context) }.result();
    }
}

/// A stream of a device.
pub(crate) struct Stream {
    device: Arc<Device>,
    raw: CUstream,
}

// SAFETY: as for `Device`.
unsafe impl Send for Stream {}
// SAFETY: as for `Device`.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default stream.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Stream, String> {
        let _entered = enter(device.context)?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream { device: Arc::clone(device), raw: raw.map_err(by("cuStreamCreate"))? })
    }

    /// The driver's name for it.
    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Options of an executor that computes on this stream. It must be dropped before the stream, or it computes on a
    /// stream that is gone.
    pub(crate) fn compute_options(&self) -> CudaOptions {
        let options = CudaOptions::new(self.device.ordinal);
        // SAFETY: a stream of that device's primary context; `Pipeline`, which alone makes such executors, drops them
        // all before the trainers, whose the streams are.
        unsafe { options.with_compute_stream(self.raw.cast()) }
    }

    /// Waits until all that was enqueued is done.
    pub(crate) fn synchronize(&self) -> Result<(), String> {
        let _entered = enter(self.device.context)?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.raw) }.map_err(by("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = enter(self.device.context) {
            // SAFETY: made by `new`, and destroyed once; what is enqueued still runs.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// An event of a device.
pub(crate) struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: as for `Device`.
unsafe impl Send for Event {}
// SAFETY: as for `Device`.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Event, String> {
        let _entered = enter(device.context)?;
        let raw = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Event { device: Arc::clone(device), raw: raw.map_err(by("cuEventCreate"))? })
    }

    /// Happens when `stream`, of the same device, has done what is enqueued so far.
    pub(crate) fn record(&self, stream: CUstream) -> Result<(), String> {
        let _entered = enter(self.device.context)?;
        // SAFETY: the event is alive, the stream the caller's.
        unsafe { result::event::record(self.raw, stream) }.map_err(by("cuEventRecord"))
    }

    /// What is enqueued on `stream`, of any device, from now on comes after the event.
    pub(crate) fn wait(&self, device: &Device, stream: CUstream) -> Result<(), String> {
        let _entered = enter(device.context)?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as for `record`.
        unsafe { result::stream::wait_event(stream, self.raw, flags) }.map_err(by("cuStreamWaitEvent"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = enter(self.device.context) {
            // SAFETY: made by `new`, and destroyed once; whoever waits for it still does.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

/// Numbers that host and device write the same way, any bits of which are one.
pub(crate) trait Plain: Copy + Default {}

impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}

/// Memory of a device. What uses it must be done when it is dropped.
pub(crate) struct Memory {
    device: Arc<Device>,
    address: CUdeviceptr,
    num_bytes: usize,
}

impl Memory {
    /// Zeros, when `stream` has come there.
    pub(crate) fn zeros(device: &Arc<Device>, num_bytes: usize, stream: CUstream) -> Result<Memory, String> {
        let _entered = enter(device.context)?;
        // SAFETY: a context is current; freed when the `Memory` is dropped.
        let address = unsafe { result::malloc_sync(num_bytes.max(1)) }.map_err(by("cuMemAlloc"))?;
        let memory = Memory { device: Arc::clone(device), address, num_bytes };
        memory.clear(stream)?;
        Ok(memory)
    }

    /// Where it starts.
    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Enqueues zeros.
    pub(crate) fn clear(&self, stream: CUstream) -> Result<(), String> {
        if self.num_bytes == 0 {
            return Ok(());
        }
        let _entered = enter(self.device.context)?;
        // SAFETY: inside the allocation.
        unsafe { result::memset_d8_async(self.address, 0, self.num_bytes, stream) }
            .map_err(by("cuMemsetD8Async"))
    }

    /// Writes `values` at the start, when `stream` has come there; returns when that is done.
    pub(crate) fn upload<T: Plain>(&self, values: &[T], stream: &Stream) -> Result<(), String> {
        self.check_fits(values)?;
        {
            let _entered = enter(self.device.context)?;
            // SAFETY: inside the allocation; `values` outlives the copy, which is waited for.
            unsafe { result::memcpy_htod_async(self.address, values, stream.raw) }
                .map_err(by("cuMemcpyHtoDAsync"))?;
        }
        stream.synchronize()
    }

    /// The `count` numbers at the start, when `stream` has come there.
    pub(crate) fn download<T: Plain>(&self, count: usize, stream: &Stream) -> Result<Vec<T>, String> {
        let mut values = vec![T::default(); count];
        self.check_fits(&values)?;
        let copied = enter(self.device.context).and_then(|_entered| {
            // SAFETY: inside the allocation; `values` outlives the copy, which is waited for.
            unsafe { result::memcpy_dtoh_async(&mut values, self.address, stream.raw) }
                .map_err(by("cuMemcpyDtoHAsync"))
        });
        let done = stream.synchronize();
        copied.and(done).map(|()| values)
    }

    /// Enqueues a copy of all of `from`, which may be another device's.
    pub(crate) fn copy_from(&self, from: &Memory, stream: CUstream) -> Result<(), String> {
        if from.num_bytes > self.num_bytes {
            return Err(format!("{} bytes do not fit into {}", from.num_bytes, self.num_bytes));
        }
        let _entered = enter(self.device.context)?;
        let (to_context, from_context) = (self.device.context, from.device.context);
        // SAFETY: inside both allocations, whose contexts are alive.
        unsafe {
            result::memcpy_peer_async(
                to_context,
                self.address,
                from_context,
                from.address,
                from.num_bytes,
                stream,
            )
        }
        .map_err(by("cuMemcpyPeerAsync"))
    }

    fn check_fits<T>(&self, values: &[T]) -> Result<(), String> {
        let have = size_of_val(values);
        match have <= self.num_bytes {
            true => Ok(()),
            false => Err(format!("{have} bytes do not fit into {}", self.num_bytes)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Ok(_entered) = enter(self.device.context) {
            // SAFETY: allocated by `zeros`, and freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
