//! How messages get from rank to rank.

mod hub;
mod inproc;
pub(crate) mod inproc_cuda;
pub mod mailbox;
pub mod nccl;
pub(crate) mod stream_ordered;

pub use inproc::{Inproc, InprocTransport};

use std::ptr::NonNull;
use std::time::Duration;

use super::fault::Notice;
use super::rank::Stop;
use crate::ids::Rank;
use crate::op::Message;

/// One tensor of one message, to be sent or received.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The other rank.
    pub peer: Rank,
    /// What it is of. Two ranks send and receive messages in the same order, within a channel and over all.
    pub message: Message,
    /// Which of the message's tensors.
    pub tensor: usize,
    /// In which step, modulo 2^16.
    pub step: u16,
    /// The elements; anything if there are no bytes.
    pub data: NonNull<u8>,
    /// How many bytes to send, or at most to receive.
    pub bytes: usize,
}

impl Transfer {
    /// The [`channel`] of its message.
    pub fn channel(&self) -> u32 {
        channel(self.message)
    }

    /// Its [`tag`], the same on both sides.
    pub fn tag(&self) -> u64 {
        tag(self.message, self.step, self.tensor)
    }
}

// SAFETY: a transfer names memory of the executor that posts it, which stays in place until the transfer has ended
// or been withdrawn; handing the name to another thread is what a transport is for.
unsafe impl Send for Transfer {}

/// A transfer under way, as its transport calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(pub u64);

/// How a transfer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Bytes transferred: 0 for an absent gradient.
    pub bytes: usize,
    /// When the sender posted it, on the transport's clock, if the transport knows.
    pub sent_ns: Option<u64>,
}

/// One rank's end of a transport. None of the methods but [`Transport::wait`] waits.
///
/// Used by one thread at a time.
pub trait Transport: Send {
    /// Nanoseconds on a clock that all ranks of this transport share as well as they can.
    fn now_ns(&self) -> u64;

    /// Called once before the first transfer: the most that are ever under way at once.
    fn reserve(&mut self, transfers: usize);

    /// Starts to send; `None` if it cannot yet.
    ///
    /// # Safety
    /// The transfer's memory can be read until the transfer has ended or [`Transport::withdraw`] has returned.
    unsafe fn send(&mut self, transfer: Transfer) -> Result<Option<Request>, Stop>;

    /// Posts a receive; `None` if it cannot yet.
    ///
    /// # Safety
    /// The transfer's memory can be written, and nobody else reads or writes it, until the transfer has ended or
    /// [`Transport::withdraw`] has returned.
    unsafe fn receive(&mut self, transfer: Transfer) -> Result<Option<Request>, Stop>;

    /// Whether a transfer has ended; it is forgotten then.
    fn test(&mut self, request: Request, peer: Rank) -> Result<Option<Completion>, Stop>;

    /// Returns when something may have changed, or after `timeout`, or for no reason.
    fn wait(&mut self, timeout: Duration);

    /// What another rank said when it failed.
    fn notice(&mut self) -> Option<Notice>;

    /// Tells all ranks that this one has failed. The first notice counts.
    fn abort(&mut self, notice: &Notice);

    /// Ends all transfers of this rank: afterwards none of its memory is touched.
    fn withdraw(&mut self);
}

/// The channel of a message: its direction and kind, 0 to 3.
pub fn channel(message: Message) -> u32 {
    2 * message.pass.direction.index() as u32 + message.kind as u32
}

/// A number of its own for each tensor of each message of each step: the tag of tensor number `tensor` of a message in
/// step number `step`, which counts modulo 2^16:
/// step 16 bits, kind 1, direction 1, making stage 13, micro-batch 20, tensor 5, from the highest of 56 down.
pub fn tag(message: Message, step: u16, tensor: usize) -> u64 {
    let pass = message.pass;
    let fields = [
        (message.kind as u64, 1),
        (pass.direction.index() as u64, 1),
        (pass.stage.0 as u64, 13),
        (pass.microbatch.0 as u64, 20),
        (tensor as u64, 5),
    ];
    fields.iter().fold(step as u64, |tag, &(value, bits)| (tag << bits) | value)
}

/// Nanoseconds on the system's monotonic clock, which all processes of a machine share.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local; it cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
