//! Device memory, and what is copied into and out of it.

use cudarc::driver::result;

use crate::driver::{by, CUdeviceptr, CUstream, Outcome, Stream};

/// A number that may be copied to the device and back as its bytes.
pub(crate) trait Plain: Copy + Default {}
impl Plain for f32 {}
impl Plain for u16 {}

/// Device memory.
pub(crate) struct Memory {
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Outcome<Memory> {
        // SAFETY: nothing uses it yet.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(by("cuMemAlloc"))?;
        Ok(Memory { address, bytes })
    }

    pub(crate) fn with<T: Plain>(values: &[T], stream: &Stream) -> Outcome<Memory> {
        let memory = Memory::new(size_of_val(values))?;
        // SAFETY: as many bytes; `values` outlives the copy, which is waited for.
        let copied = unsafe { result::memcpy_htod_async(memory.address, values, stream.raw()) };
        copied.map_err(by("cuMemcpyHtoDAsync"))?;
        stream.synchronize()?;
        Ok(memory)
    }

    pub(crate) fn zeros(bytes: usize, stream: &Stream) -> Outcome<Memory> {
        let memory = Memory::new(bytes)?;
        memory.clear(stream.raw())?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Enqueues zeros.
    pub(crate) fn clear(&self, stream: CUstream) -> Outcome {
        // SAFETY: inside the allocation.
        unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream) }.map_err(by("cuMemsetD8Async"))
    }

    /// The numbers in it when `stream` has come there.
    pub(crate) fn download<T: Plain>(&self, stream: &Stream) -> Outcome<Vec<T>> {
        let mut values = vec![T::default(); self.bytes / size_of::<T>()];
        // SAFETY: at most as many bytes; `values` outlives the copy, which is waited for.
        let copied = unsafe { result::memcpy_dtoh_async(&mut values, self.address, stream.raw()) };
        let done = stream.synchronize();
        copied.map_err(by("cuMemcpyDtoHAsync")).and(done).map(|()| values)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { result::free_sync(self.address) };
    }
}
