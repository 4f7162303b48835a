//! Overlap: the halves of an F&B pair under one another on a CUDA device, communication of the one while the other
//! computes, in the order of DeepSeek's published trace.
//!
//! Create one for each executor that has a comm stream (has_comm_stream), and call dualpipe_overlap_run in its tasks.
//! You say how to enqueue each part of a block, it says when and on which of the two streams.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use super::args::{Out, UserData};
use super::guard::{call, BusyFlag};
use super::handle::{self, Kind, Object};
use super::status::dualpipe_status;
use super::status::Failure;
use crate::execute::overlap::Overlap;
use crate::execute::TaskStreams;

/// What a dualpipe_overlap_t points to: nothing that C could look into.
pub struct dualpipe_overlap(());

/// Enqueues tasks part by part on two streams, with the waits that the parts need between them. One thread at a time:
/// another gets DUALPIPE_ERROR_BUSY. It is useless in a child of fork. Free it with dualpipe_overlap_free.
pub type dualpipe_overlap_t = *mut dualpipe_overlap;

/// A part of a block of attention and experts (MLP).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_part {
    /// Forward through the attention; computes.
    DUALPIPE_PART_ATTENTION_F = 0,
    /// Tokens to their experts; communicates.
    DUALPIPE_PART_DISPATCH_F = 1,
    /// Forward through the experts; computes.
    DUALPIPE_PART_MLP_F = 2,
    /// Tokens back from their experts; communicates.
    DUALPIPE_PART_COMBINE_F = 3,
    /// Gradients to the experts: backward through combine; communicates.
    DUALPIPE_PART_COMBINE_B = 4,
    /// Backward for the input through the experts; computes.
    DUALPIPE_PART_MLP_B = 5,
    /// Backward for the experts' weights; computes.
    DUALPIPE_PART_MLP_W = 6,
    /// Gradients back from the experts: backward through dispatch; communicates.
    DUALPIPE_PART_DISPATCH_B = 7,
    /// Backward for the input through the attention; computes.
    DUALPIPE_PART_ATTENTION_B = 8,
    /// Backward for the attention's weights; computes.
    DUALPIPE_PART_ATTENTION_W = 9,
}

/// Enqueues one part of a block on `stream`, a CUstream: the task's compute_stream, or its comm_stream for a part that
/// communicates. part: a dualpipe_part. block: its number in the order of the model, from 0. What the part reads from
/// the part before it in its half is there in the order of the stream. Returns 0, or anything else to stop.
pub type dualpipe_part_fn = Option<
    unsafe extern "C-unwind" fn(user_data: *mut c_void, part: u32, block: u32, stream: *mut c_void) -> i32,
>;

/// Creates what is needed to overlap tasks on CUDA device `device`, from 0.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, DUALPIPE_ERROR_UNAVAILABLE without a driver or a device,
/// DUALPIPE_ERROR_DEVICE.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_overlap_create(
    device: u32,
    overlap: *mut dualpipe_overlap_t,
) -> dualpipe_status {
    call("dualpipe_overlap_create", || {
        // SAFETY: the caller's.
        let out = unsafe { Out::new("overlap", overlap) }?;
        let overlap = Overlap::new(device as usize)?;
        out.write(handle::insert(OverlapObject { overlap: Mutex::new(overlap), busy: BusyFlag::default() })?);
        Ok(())
    })
}

/// Frees it. NULL is fine. What it has enqueued goes on.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_overlap_free(overlap: dualpipe_overlap_t) -> dualpipe_status {
    call("dualpipe_overlap_free", || handle::free::<OverlapObject>("overlap", overlap))
}

/// Has `enqueue` enqueue every part of num_forward forward blocks and num_backward backward blocks (each 0 to 4096),
/// from within a task, on the task's two streams. Of each pair of blocks in turn, forward ones from the first, backward
/// ones from the last: on the compute stream attention F, MLP B, MLP W, MLP F, attention B, attention W; on the comm
/// stream combine B under attention F, dispatch F under MLP B, dispatch B under MLP W and MLP F, combine F under
/// attention B.
///
/// The first parts come after what the task reads, whoever reads what the task writes comes after the last. What the
/// task itself enqueues before or after is not ordered with the parts on the comm stream: that takes an event.
///
/// Where one half has more blocks than the other, or a task is only one half (0 blocks of the other), the other's
/// parts are left out.
///
/// Errors: DUALPIPE_ERROR_CALLBACK_FAILED if enqueue returns anything but 0; DUALPIPE_ERROR_DEVICE.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_overlap_run(
    overlap: dualpipe_overlap_t,
    compute_stream: *mut c_void,
    comm_stream: *mut c_void,
    num_forward: u32,
    num_backward: u32,
    enqueue: dualpipe_part_fn,
    user_data: *mut c_void,
) -> dualpipe_status {
    call("dualpipe_overlap_run", || {
        let object = handle::get::<OverlapObject>("overlap", overlap)?;
        let function = enqueue.ok_or_else(|| Failure::argument("enqueue", "is NULL"))?;
        if comm_stream.is_null() {
            let how = "is NULL: the executor needs has_comm_stream for its tasks to have one";
            return Err(Failure::argument("comm_stream", how));
        }
        let _busy = object.busy.enter("overlap")?;
        let streams = TaskStreams { compute: compute_stream, comm: comm_stream };
        let user_data = UserData(user_data);
        let mut overlap = object.overlap.lock().unwrap_or_else(PoisonError::into_inner);
        let run = overlap.run(streams, num_forward as usize, num_backward as usize, |part, block, stream| {
            // SAFETY: the caller's function, with the caller's data.
            match unsafe { function(user_data.0, part as u32, block as u32, stream) } {
                0 => Ok(()),
                code => Err(format!("enqueue of {part:?} of block {block} returned {code}")),
            }
        });
        Ok(run?)
    })
}

/// An overlap that C has a handle of.
struct OverlapObject {
    overlap: Mutex<Overlap>,
    busy: BusyFlag,
}

impl Object for OverlapObject {
    type Opaque = dualpipe_overlap;
    const KIND: Kind = Kind::Overlap;
    const OWNS_THREADS: bool = true;
}
