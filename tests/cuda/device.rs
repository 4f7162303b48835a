//! What a test has of a device besides the executor: a context, a stream and memory of its own.

use std::ffi::c_void;

use cudarc::driver::sys;

/// The caller's side of a rank.
pub(crate) struct Device {
    ordinal: i32,
    pub(crate) stream: sys::CUstream,
    /// 4 words, used in turn by what runs on two streams.
    pub(crate) scratch: u64,
}

/// Memory of a test's own.
pub(crate) struct Memory {
    pub(crate) address: u64,
}

#[allow(clippy::undocumented_unsafe_blocks)] // allocated by `Device::memory`
impl Drop for Memory {
    fn drop(&mut self) {
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

// SAFETY: names, which any thread may use.
unsafe impl Send for Device {}

fn check(result: sys::CUresult) {
    assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
}

#[allow(clippy::undocumented_unsafe_blocks)] // they write to locals, of which they are given what they made before
impl Device {
    /// With the primary context of device `ordinal` current.
    pub(crate) fn new(ordinal: usize) -> Device {
        let ordinal = ordinal as i32;
        let (mut context, mut stream, mut scratch) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        unsafe {
            check(sys::cuInit(0));
            check(sys::cuDevicePrimaryCtxRetain(&mut context, ordinal));
            check(sys::cuCtxSetCurrent(context));
            check(sys::cuStreamCreate(&mut stream, 1));
            check(sys::cuMemAlloc_v2(&mut scratch, 16));
        }
        Device { ordinal, stream, scratch }
    }

    /// Memory of the current context.
    pub(crate) fn memory(num_bytes: usize) -> Memory {
        let mut address = 0;
        unsafe { check(sys::cuMemAlloc_v2(&mut address, num_bytes)) };
        Memory { address }
    }

    pub(crate) fn stream(&self) -> *mut c_void {
        self.stream.cast()
    }
}

#[allow(clippy::undocumented_unsafe_blocks)] // as above; a lost device refuses, which does not matter
impl Drop for Device {
    fn drop(&mut self) {
        unsafe {
            let _ = sys::cuMemFree_v2(self.scratch);
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.ordinal);
        }
    }
}
