//! Transports whose messages travel in the order of CUDA streams: they enqueue, and nobody waits for the device.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::execute::boundary::DIMENSIONS_MAX;
use crate::execute::device::cuda::events::Trace;
use crate::execute::device::cuda::graph::Gather;
use crate::execute::device::cuda::stream::{Event, Mark, StreamKey};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::ids::Rank;
use crate::op::Message;

/// One tensor of a message, in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Where its elements are; anything if there are none.
    pub(crate) address: u64,
    /// How many bytes to send, or at most to receive.
    pub(crate) bytes: usize,
    /// `false` for an absent gradient.
    pub(crate) is_present: bool,
    /// Its shape, of which the first `num_dimensions` count.
    pub(crate) shape: [i64; DIMENSIONS_MAX],
}

/// A message to be sent.
pub(crate) struct SendMessage<'a> {
    /// To whom.
    pub(crate) peer: Rank,
    /// What it is.
    pub(crate) message: Message,
    /// In which step, modulo 2^16.
    pub(crate) step: u16,
    /// Which of the rank's buffers it is in.
    pub(crate) buffer: usize,
    /// Its tensors. Their memory is left alone until the message has been taken, or the transport has been withdrawn
    /// and what it had enqueued is done.
    pub(crate) parts: &'a [Part],
    /// When they are there.
    pub(crate) written: &'a Mark,
    /// For a transport that sends on a stream of its own: to be recorded when it has.
    pub(crate) sent: &'a Arc<Event>,
}

/// A message to be received.
pub(crate) struct ReceiveMessage<'a> {
    /// From whom.
    pub(crate) peer: Rank,
    /// What it is.
    pub(crate) message: Message,
    /// In which step, modulo 2^16.
    pub(crate) step: u16,
    /// Which of the rank's buffers it goes to.
    pub(crate) buffer: usize,
    /// Room for its tensors, which is left alone until the message has arrived.
    pub(crate) parts: &'a [Part],
    /// When the room is free; `None` if it is.
    pub(crate) free: Option<&'a Mark>,
    /// To be told when the transfer begins and ends.
    pub(crate) trace: Trace,
    /// To be recorded when it is there.
    pub(crate) arrived: &'a Arc<Event>,
    /// At which instruction of the program.
    pub(crate) instruction: usize,
}

/// A message whose arrival is in the order of a stream.
pub(crate) struct Arrival {
    /// When it is there.
    pub(crate) mark: Mark,
    /// At which instruction its receive was posted.
    pub(crate) instruction: usize,
}

/// What can go wrong while streams are filled.
pub(crate) type Posted<T> = std::result::Result<T, Stop>;

/// One rank's end of such a transport. None of the methods but [`StreamTransport::wait`] waits.
///
/// Used by one thread at a time.
pub(crate) trait StreamTransport: Send {
    /// Nanoseconds on a clock that all ranks of this transport share as well as they can.
    fn now_ns(&self) -> u64;

    /// Called before the first message, and again before there can be more: how many buffers the rank has, how many
    /// tensors a message has at most, and how many bytes any message of any rank has at most, each tensor aligned to
    /// [`TENSOR_ALIGNMENT`](crate::execute::boundary::TENSOR_ALIGNMENT). All that was enqueued before is done.
    fn reserve(&mut self, buffers: usize, tensors: usize, bytes: usize) -> Result<()>;

    /// A step begins: all that was enqueued before is done, and what is left of it is forgotten. In a capture, streams
    /// of its own come after `fork` before anything else.
    fn start(&mut self, fork: Option<&Mark>);

    /// Where the ranks whose steps are captured as one graph meet, and whether this one leads.
    fn gather(&self) -> (Arc<Gather>, bool);

    /// Posts a receive; `false` if it cannot yet.
    ///
    /// # Safety
    /// The memory of the parts is left alone until the message has arrived, or the transport has been withdrawn and
    /// what it had enqueued is done.
    unsafe fn receive(&mut self, receive: ReceiveMessage<'_>) -> Posted<bool>;

    /// What has come into `buffer`: `parts` then says which tensors are present and how large they are.
    fn received(&mut self, buffer: usize, peer: Rank, parts: &mut [Part]) -> Posted<Option<Arrival>>;

    /// Starts to send; `false` if it cannot yet.
    ///
    /// # Safety
    /// As [`StreamTransport::receive`].
    unsafe fn send(&mut self, send: SendMessage<'_>) -> Posted<bool>;

    /// When what was sent from `buffer` has been taken, so that the buffer may be filled again.
    fn taken(&mut self, buffer: usize, peer: Rank) -> Posted<Option<Mark>>;

    /// Returns when something may have changed, or after `timeout`, or for no reason.
    fn wait(&mut self, timeout: Duration);

    /// What another rank said when it failed.
    fn notice(&mut self) -> Option<Notice>;

    /// What another thread can do while this one is busy, or stuck in the driver.
    fn line(&self) -> Arc<dyn Line>;

    /// Nothing more is enqueued for this rank's memory, by anyone. Appends what has to happen on devices before the
    /// memory is really left alone.
    fn withdraw(&mut self, pending: &mut Vec<Arc<Event>>);

    /// Gives memory of its own up without freeing it: what [`StreamTransport::withdraw`] told of does not happen.
    fn leak(&mut self) {}
}

/// The part of a transport that any thread may use at any time.
pub(crate) trait Line: Send + Sync {
    /// Why the transport failed by itself, if it did, and with whom.
    fn failure(&self) -> Option<(Option<Rank>, String)>;

    /// What another rank said when it failed.
    fn notice(&self) -> Option<Notice>;

    /// Ends all transfers of this rank, on devices too, and tells the others that it failed as far as possible. It
    /// may take long, or for ever: it is for a thread that nobody needs.
    fn abort(&self, notice: &Notice);
}

/// The keys of the streams that a rank hears of.
pub(crate) mod key {
    use super::{Rank, StreamKey};

    /// Its compute stream.
    pub(crate) const COMPUTE: StreamKey = StreamKey(0);
    /// Its stream for expert communication.
    pub(crate) const COMM: StreamKey = StreamKey(1);

    /// Its own for what comes from a peer.
    pub(crate) fn receive_from(peer: Rank) -> StreamKey {
        StreamKey(2 + 4 * peer.index())
    }

    /// Its own for what goes to a peer.
    pub(crate) fn send_to(peer: Rank) -> StreamKey {
        StreamKey(3 + 4 * peer.index())
    }

    /// A peer's compute stream.
    pub(crate) fn compute_of(peer: Rank) -> StreamKey {
        StreamKey(4 + 4 * peer.index())
    }

    /// A peer's for what comes from this rank.
    pub(crate) fn receive_at(peer: Rank) -> StreamKey {
        StreamKey(5 + 4 * peer.index())
    }
}

/// What arrived is not what was expected.
pub(crate) fn wrong_size(tensor: usize, got: usize, expected: usize, peer: Rank) -> Stop {
    Stop::Transport(format!(
        "tensor {tensor} has {got} bytes, not {expected}: does rank {peer} have the same shapes?"
    ))
}
