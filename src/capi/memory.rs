//! The caller's own memory for tensors, so that nothing is copied in or out of the executor.
//!
//! ```c
//! // Memory from malloc. user_data is not needed; the owner is the address itself.
//! #include <dualpipe.h>
//! #include <stdlib.h>
//!
//! static int32_t allocate(void *user_data, uint64_t num_bytes, void **data, void **owner) {
//!   (void)user_data;
//!   *data = *owner = malloc(num_bytes > 0 ? num_bytes : 1);
//!   return *data == NULL;
//! }
//! static void release(void *user_data, void *data, void *owner) {
//!   (void)user_data, (void)data;
//!   free(owner);
//! }
//! static void use_malloc(dualpipe_memory *memory) { // the executor's options then point to it
//!   memory->allocate = allocate;
//!   memory->release = release;
//! }
//! ```

use std::ffi::c_void;
use std::ptr::NonNull;

use super::args::{self, UserData};
use super::options::{self, Growing};
use super::status::{Failure, Outcome};
use crate::execute::{Memory, Tensor};

/// The caller's memory for tensors. Start from DUALPIPE_MEMORY_INIT. The library copies it.
///
/// With it the executor has no buffers of its own, and nothing is copied: what is received goes into memory that
/// allocate gives, and an output is wherever the task puts it. Both functions are called on the thread that runs the
/// executor's step, and release by dualpipe_executor_free too.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_memory {
    /// sizeof(dualpipe_memory).
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// What the functions get.
    pub user_data: *mut c_void,
    /// Gives memory for a tensor of num_bytes bytes that is to be received, aligned for its elements: writes its
    /// address, and a word that release gets back. Non-zero ends the step. Never NULL.
    pub allocate: dualpipe_memory_allocate_fn,
    /// The executor does not use the memory any more: what allocate gave, or what a task put into an output. Called
    /// once for each. Never NULL.
    pub release: dualpipe_memory_release_fn,
}

/// allocate.
pub type dualpipe_memory_allocate_fn = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        num_bytes: u64,
        data: *mut *mut c_void,
        owner: *mut *mut c_void,
    ) -> i32,
>;
/// release.
pub type dualpipe_memory_release_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, data: *mut c_void, owner: *mut c_void)>;

// SAFETY: repr(C); u32, u32, pointers without gaps; NULL is a value of each, and other bits are the caller's promise.
unsafe impl Growing for dualpipe_memory {
    const SIZE_V1: usize = 32;
}

/// The caller's memory as the executor's.
pub(super) struct CallerMemory {
    user_data: UserData,
    allocate: unsafe extern "C-unwind" fn(*mut c_void, u64, *mut *mut c_void, *mut *mut c_void) -> i32,
    release: unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, *mut c_void),
}

impl CallerMemory {
    /// # Safety
    /// The pointer, if its bits pass, is one to a table, as its documentation says.
    pub(super) unsafe fn read(argument: &str, table: *const dualpipe_memory) -> Outcome<CallerMemory> {
        // SAFETY: the caller's promise.
        let table = unsafe { options::read(argument, table) }?;
        args::zero(&format!("{argument}->reserved"), table.reserved)?;
        let null = |name: &str| Failure::argument(format!("{argument}->{name}"), "is NULL");
        Ok(CallerMemory {
            user_data: UserData(table.user_data),
            allocate: table.allocate.ok_or_else(|| null("allocate"))?,
            release: table.release.ok_or_else(|| null("release"))?,
        })
    }
}

impl Memory for CallerMemory {
    fn allocate(&mut self, tensor: &Tensor) -> Result<(NonNull<u8>, *mut c_void), String> {
        let (mut data, mut owner) = (std::ptr::null_mut(), std::ptr::null_mut());
        let num_bytes = tensor.bytes() as u64;
        // SAFETY: the caller's function, with what its documentation says.
        let code = unsafe { (self.allocate)(self.user_data.0, num_bytes, &mut data, &mut owner) };
        match NonNull::new(data.cast()) {
            Some(data) if code == 0 => Ok((data, owner)),
            _ => Err(format!("memory.allocate returned {code} and {data:p} for {num_bytes} bytes")),
        }
    }

    fn release(&mut self, data: NonNull<u8>, owner: *mut c_void) {
        // SAFETY: the caller's function, with what allocate or a task gave.
        unsafe { (self.release)(self.user_data.0, data.as_ptr().cast(), owner) };
    }
}
