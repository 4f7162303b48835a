//! Ranks of one process: a message is one copy, from the sender's buffer into the receiver's.
//!
//! A mailbox per rank, guarded by a lock. Whoever brings the second half of a message copies it, under the lock of
//! the receiver's mailbox, so that [`Transport::withdraw`] need only take the lock to know that nobody is copying.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use super::hub::{Hub, Kind, Seat};
use super::inproc_cuda::Outgoing;
use super::mailbox::{Key, Mailbox};
use super::{Completion, Request, Transfer, Transport};
use crate::error::Result;
use crate::execute::device::cuda::graph::Gather;
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::ids::Rank;

/// What the ranks of one process share. Cloning gives another handle on the same.
///
/// Any thread may use it at any time.
#[derive(Clone, Debug)]
pub struct Inproc {
    pub(super) hub: Arc<Hub<Mail>>,
    pub(super) gather: Arc<Gather>,
}

/// What has been put down for a rank: of its kind's messages.
#[derive(Debug, Default)]
pub(super) struct Mail {
    halves: Mailbox<Half, Half>,
    /// Sends that the rank has not looked at.
    pub(super) outgoing: Vec<(Key, Arc<Outgoing>)>,
}

impl Inproc {
    /// For `num_ranks` ranks, at least 1.
    pub fn new(num_ranks: usize) -> Result<Inproc> {
        Ok(Inproc { hub: Arc::new(Hub::new(num_ranks)?), gather: Arc::new(Gather::new(num_ranks)) })
    }

    /// How many ranks it joins.
    pub fn num_ranks(&self) -> usize {
        self.hub.num_ranks()
    }

    /// The end of one rank on the host, of which there is only one.
    ///
    /// # Errors
    /// `rank` is out of range or its end has been handed out before, or a rank has failed.
    pub fn transport(&self, rank: Rank) -> Result<InprocTransport> {
        let seat = Seat::take(&self.hub, rank, Kind::Host)?;
        Ok(InprocTransport { seat, requests: Arc::default(), free: Vec::new() })
    }
}

/// One side of a transfer.
#[derive(Debug)]
struct Half {
    transfer: Transfer,
    request: usize,
    requests: Arc<Vec<RequestState>>,
    sent_ns: u64,
}

/// How a request stands.
#[derive(Debug, Default)]
struct RequestState {
    /// 0 while under way, then the bytes plus 1.
    done: AtomicU64,
    sent_ns: AtomicU64,
}

/// Copies a message and tells both sides.
///
/// Called under the lock of the receiver's mailbox with two halves that were in it, or one that was and one that its
/// owner posts right now: so both transfers are under way, and their memory is there.
fn copy(send: &Half, receive: &Half) {
    let bytes = send.transfer.bytes.min(receive.transfer.bytes);
    if bytes > 0 {
        // SAFETY: see above, and the contracts of `Transport::send` and `Transport::receive`: both sides are good
        // for `bytes`, and the receiver's memory is not used by anyone else, so they do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(send.transfer.data.as_ptr(), receive.transfer.data.as_ptr(), bytes);
        }
    }
    for half in [receive, send] {
        let state = &half.requests[half.request];
        state.sent_ns.store(send.sent_ns, Ordering::Relaxed);
        // The receiver learns how much was meant for it, also if that is more than it had room for.
        state.done.store(send.transfer.bytes as u64 + 1, Ordering::Release);
    }
}

/// One rank's end of an [`Inproc`] on the host.
#[derive(Debug)]
pub struct InprocTransport {
    seat: Seat<Mail>,
    requests: Arc<Vec<RequestState>>,
    free: Vec<usize>,
}

impl InprocTransport {
    fn half(&mut self, transfer: Transfer) -> Option<Half> {
        let request = self.free.pop()?;
        self.requests[request].done.store(0, Ordering::Relaxed);
        let sent_ns = self.now_ns();
        Some(Half { transfer, request, requests: Arc::clone(&self.requests), sent_ns })
    }

    /// Puts one side of a transfer into the mailbox of `receiver`, and copies if the other is there.
    fn exchange(
        &mut self,
        transfer: Transfer,
        receiver: Rank,
        post: impl FnOnce(&mut Mailbox<Half, Half>, Half) -> Option<(Half, Half)>,
    ) -> std::result::Result<Option<Request>, Stop> {
        self.seat.check(transfer.peer)?;
        let Some(half) = self.half(transfer) else { return Ok(None) };
        let request = Request(half.request as u64);
        let hub = self.seat.hub();
        let mut mail = hub.mailbox(receiver);
        let matched = post(&mut mail.halves, half);
        if let Some((send, receive)) = &matched {
            copy(send, receive);
        }
        drop(mail);
        if matched.is_some() {
            hub.notify(transfer.peer);
        }
        Ok(Some(request))
    }
}

impl Transport for InprocTransport {
    fn now_ns(&self) -> u64 {
        self.seat.hub().now_ns()
    }

    fn reserve(&mut self, transfers: usize) {
        self.requests = Arc::new((0..transfers).map(|_| RequestState::default()).collect());
        self.free = (0..transfers).rev().collect();
    }

    unsafe fn send(&mut self, transfer: Transfer) -> std::result::Result<Option<Request>, Stop> {
        let key = Key { from: self.seat.rank(), tag: transfer.tag() };
        self.exchange(transfer, transfer.peer, |mailbox, half| mailbox.send(key, half))
    }

    unsafe fn receive(&mut self, transfer: Transfer) -> std::result::Result<Option<Request>, Stop> {
        let key = Key { from: transfer.peer, tag: transfer.tag() };
        self.exchange(transfer, self.seat.rank(), |mailbox, half| mailbox.receive(key, half))
    }

    fn test(&mut self, request: Request, peer: Rank) -> std::result::Result<Option<Completion>, Stop> {
        let index = request.0 as usize;
        // Looked at before the request, so that what happens in between ends the next wait at once.
        let is_gone = self.seat.is_gone(peer)?;
        let state = &self.requests[index];
        match state.done.load(Ordering::Acquire) {
            0 if is_gone => Err(Stop::PeerGone),
            0 => Ok(None),
            done => {
                self.free.push(index);
                let sent_ns = Some(state.sent_ns.load(Ordering::Relaxed));
                Ok(Some(Completion { bytes: done as usize - 1, sent_ns }))
            }
        }
    }

    fn wait(&mut self, timeout: Duration) {
        self.seat.wait(timeout);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.seat.hub().notice()
    }

    fn abort(&mut self, notice: &Notice) {
        self.seat.hub().abort(notice);
    }

    fn withdraw(&mut self) {
        let (hub, rank) = (self.seat.hub(), self.seat.rank());
        for receiver in 0..hub.num_ranks() {
            hub.mailbox(Rank::from_index(receiver)).halves.withdraw_sends(rank);
        }
        hub.mailbox(rank).halves.withdraw_receives();
    }
}

impl Drop for InprocTransport {
    fn drop(&mut self) {
        self.withdraw();
    }
}
