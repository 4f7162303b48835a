//! Device memory and pinned host memory of our own.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use super::context::Context;
use super::sys::{self, CUdeviceptr, DriverResult};

/// Memory on a device.
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    address: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// `bytes` bytes, at least one, aligned for anything.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> DriverResult<DeviceMemory> {
        let _entered = context.enter()?;
        let mut address = 0;
        // SAFETY: writes to a local.
        unsafe { context.driver().cuMemAlloc_v2(&mut address, bytes.max(1)) }?;
        Ok(DeviceMemory { context: Arc::clone(context), address, bytes })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    /// The driver waits for all work of the device first. Who cannot be sure that it ends must forget the memory.
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { self.context.driver().cuMemFree_v2(self.address) };
    }
}

/// Host memory that stays in place, which the device can read and write.
pub(crate) struct PinnedMemory {
    context: Arc<Context>,
    data: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to whoever has this.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared, it only tells where it is.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// `bytes` zero bytes, at least one, aligned for anything.
    pub(crate) fn zeroed(context: &Arc<Context>, bytes: usize) -> DriverResult<PinnedMemory> {
        let _entered = context.enter()?;
        let mut data: *mut c_void = std::ptr::null_mut();
        let bytes = bytes.max(1);
        // SAFETY: writes to a local.
        unsafe { context.driver().cuMemHostAlloc(&mut data, bytes, sys::HOST_PORTABLE) }?;
        let data = NonNull::new(data.cast::<u8>()).unwrap_or(NonNull::dangling());
        // SAFETY: just allocated, of this size.
        unsafe { data.as_ptr().write_bytes(0, bytes) };
        Ok(PinnedMemory { context: Arc::clone(context), data, bytes })
    }

    pub(crate) fn data(&self) -> NonNull<u8> {
        self.data
    }

    /// The address by which the device knows it: the same, with unified addressing.
    pub(crate) fn address(&self) -> u64 {
        self.data.as_ptr().expose_provenance() as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: allocated by `zeroed`, freed once.
        let _ = unsafe { self.context.driver().cuMemFreeHost(self.data.as_ptr().cast()) };
    }
}
