//! A device's primary context, the one that the CUDA runtime and PyTorch use: borrowed, never owned.

use std::ffi::c_int;
use std::sync::Arc;

use super::sys::{driver_with_device, CUcontext, CUstream, Driver, DriverResult};
use crate::error::{Error, ErrorKind, Result};

/// A device and its primary context, kept alive while this lives.
pub(crate) struct Context {
    driver: &'static Driver,
    ordinal: usize,
    device: c_int,
    raw: CUcontext,
}

// SAFETY: the driver's functions may be called from any thread; the handle is only a name.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of device `ordinal`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] without a driver or a device; [`ErrorKind::InvalidArgument`] for a device that there
    /// is not; [`ErrorKind::Device`] if the driver refuses it.
    pub(crate) fn primary(ordinal: usize) -> Result<Arc<Context>> {
        let (driver, count) = driver_with_device()?;
        if ordinal >= count {
            let range = format!("must be 0 to {}", count - 1);
            return Err(Error::argument("cuda", "device", ordinal, range));
        }
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: writes to locals.
        unsafe {
            driver.cuDeviceGet(&mut device, ordinal as c_int)?;
            driver.cuDevicePrimaryCtxRetain(&mut raw, device)?;
        }
        Ok(Arc::new(Context { driver, ordinal, device, raw }))
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// The device's number, from 0.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(crate) fn raw(&self) -> CUcontext {
        self.raw
    }

    /// Makes it this thread's current context until the guard goes.
    pub(crate) fn enter(&self) -> DriverResult<Entered> {
        // SAFETY: a context that is retained.
        unsafe { self.driver.cuCtxPushCurrent_v2(self.raw) }?;
        Ok(Entered { driver: self.driver })
    }

    /// Fails unless `stream`, a caller's, belongs to this context.
    ///
    /// # Safety
    /// It is a stream, or one of the driver's names for the default streams (0, 1 and 2), which every context has.
    pub(crate) unsafe fn check_stream(&self, name: &str, stream: CUstream) -> Result<()> {
        if stream.addr() <= 2 {
            return Ok(());
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the caller's, and a local.
        unsafe { self.driver.cuStreamGetCtx(stream, &mut context) }.map_err(|why| {
            Error::new(ErrorKind::InvalidArgument, format!("cuda: {name} is no stream: {why}"))
        })?;
        if context != self.raw {
            let text = format!("cuda: {name} is not of device {}'s primary context", self.ordinal);
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }

    /// Lets copies go between this device and `peer` without a stop at the host, where the hardware can.
    pub(crate) fn enable_peer_access(&self, peer: &Context) -> DriverResult {
        if self.device == peer.device {
            return Ok(());
        }
        let mut can = 0;
        // SAFETY: writes to a local.
        unsafe { self.driver.cuDeviceCanAccessPeer(&mut can, self.device, peer.device) }?;
        if can == 0 {
            return Ok(()); // copied by way of the host
        }
        let _entered = self.enter()?;
        // SAFETY: both contexts are retained.
        match unsafe { self.driver.cuCtxEnablePeerAccess(peer.raw, 0) } {
            Err(why) if !why.is_peer_access_already_enabled() => Err(why),
            _ => Ok(()),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `primary`.
        let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// While it lives, a context is this thread's current one.
#[must_use]
pub(crate) struct Entered {
    driver: &'static Driver,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: pushed by `enter`.
        let _ = unsafe { self.driver.cuCtxPopCurrent_v2(&mut popped) };
    }
}
