//! Ranks of one process whose tensors are on devices, the same or several: a message is one copy from device memory
//! to device memory, in the order of streams.
//!
//! ```text
//! sender's host     runs task, records `written`, puts (where, written) down for the receiver
//! receiver's host   picks it up when it looks next: its receive stream waits for `written` and for its own buffer to
//!                   be free, copies, records `arrived`
//! sender's host     picks `arrived` up when it needs its buffer again
//! ```
//!
//! The hosts meet, the devices follow: an event is waited for only after it has been recorded, so that no order of
//! the devices' work can deadlock. Only the receiver's thread touches its receive streams. From one peer messages are
//! picked up in the order in which their receives were posted, which is the order in which they are sent.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::hub::{lock, Hub, Kind, Seat};
use super::inproc::{Inproc, Mail};
use super::mailbox::Key;
use super::stream_ordered::{
    key, wrong_size, Arrival, Line, Part, Posted, ReceiveMessage, SendMessage, StreamTransport,
};
use crate::error::Result;
use crate::execute::device::cuda::context::Context;
use crate::execute::device::cuda::events::Trace;
use crate::execute::device::cuda::graph::Gather;
use crate::execute::device::cuda::stream::{Event, Mark, Stream};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::ids::Rank;

/// What a sender puts down for a receiver; one for each of its buffers, used again and again.
pub(super) struct Outgoing {
    context: Arc<Context>,
    state: Mutex<OutgoingState>,
}

#[derive(Default)]
struct OutgoingState {
    parts: Vec<Part>,
    written: Option<Mark>,
    taken: Option<Mark>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

/// A receive that was posted.
struct Incoming {
    key: Key,
    buffer: usize,
    parts: Vec<Part>,
    free: Option<Mark>,
    trace: Trace,
    arrived: Arc<Event>,
    instruction: usize,
}

/// What a rank has with one peer.
struct Neighbour {
    rank: Rank,
    receive: Stream,
    /// Receives whose message has not been picked up, in order.
    posted: VecDeque<Incoming>,
    has_peer_access: bool,
}

/// One rank's end of an [`Inproc`] on a device.
pub(crate) struct InprocCuda {
    seat: Seat<Mail>,
    gather: Arc<Gather>,
    context: Arc<Context>,
    neighbours: Vec<Neighbour>,
    /// By buffer: what it is being sent by, and what has come into it.
    outgoing: Vec<Arc<Outgoing>>,
    arrivals: Vec<Option<(Arrival, Vec<Part>)>>,
    /// Lists of parts to be used again.
    spare: Vec<Vec<Part>>,
}

impl InprocCuda {
    /// The end of one rank, of which there is only one.
    ///
    /// # Errors
    /// `rank` is out of range or its end has been handed out before, other ranks are on the host, or a rank has failed.
    pub(crate) fn new(inproc: &Inproc, rank: Rank, context: &Arc<Context>) -> Result<InprocCuda> {
        let seat = Seat::take(&inproc.hub, rank, Kind::Cuda)?;
        Ok(InprocCuda {
            seat,
            gather: Arc::clone(&inproc.gather),
            context: Arc::clone(context),
            neighbours: Vec::new(),
            outgoing: Vec::new(),
            arrivals: Vec::new(),
            spare: Vec::new(),
        })
    }

    fn neighbour(&mut self, peer: Rank) -> Posted<usize> {
        if let Some(found) = self.neighbours.iter().position(|neighbour| neighbour.rank == peer) {
            return Ok(found);
        }
        self.seat.check(peer)?;
        let receive = Stream::new(&self.context, key::receive_from(peer), false)?;
        let posted = VecDeque::with_capacity(self.outgoing.len());
        self.neighbours.push(Neighbour { rank: peer, receive, posted, has_peer_access: false });
        Ok(self.neighbours.len() - 1)
    }

    /// Takes back what has not been picked up, here and at the peers.
    fn forget(&mut self) {
        let (hub, rank) = (self.seat.hub(), self.seat.rank());
        for receiver in 0..hub.num_ranks() {
            hub.mailbox(Rank::from_index(receiver)).outgoing.retain(|(key, _)| key.from != rank);
        }
        self.neighbours.iter_mut().for_each(|neighbour| neighbour.posted.clear());
        self.arrivals.fill_with(|| None);
    }

    /// Picks up what has been put down for this rank, as far as its receives have been posted.
    fn pick_up(&mut self) -> Posted<()> {
        let (hub, rank) = (Arc::clone(self.seat.hub()), self.seat.rank());
        for neighbour in &mut self.neighbours {
            while let Some(key) = neighbour.posted.front().map(|incoming| incoming.key) {
                // Under the lock until the copy is enqueued, so that `withdraw` need only take it to know that nobody
                // is enqueuing any more.
                let mut mail = hub.mailbox(rank);
                let Some(found) = mail.outgoing.iter().position(|(sent, _)| *sent == key) else { break };
                let (_, outgoing) = mail.outgoing.remove(found);
                let Some(mut incoming) = neighbour.posted.pop_front() else { break };
                let mut state = lock(&outgoing.state);
                let mark = neighbour.copy(&incoming, &outgoing.context, &state)?;
                state.taken = Some(Mark { stream: key::receive_at(rank), ..mark.clone() });
                incoming.parts.clone_from(&state.parts);
                drop(state);
                drop(mail);
                let arrival = Arrival { mark, instruction: incoming.instruction };
                self.arrivals[incoming.buffer] = Some((arrival, incoming.parts));
                hub.notify(neighbour.rank);
            }
        }
        Ok(())
    }
}

impl Neighbour {
    /// Enqueues the copy of a message, and `arrived` behind it.
    fn copy(&mut self, incoming: &Incoming, context: &Arc<Context>, sent: &OutgoingState) -> Posted<Mark> {
        if sent.parts.len() != incoming.parts.len() {
            let (got, expected, peer) = (sent.parts.len(), incoming.parts.len(), self.rank);
            let text = format!("a message of {got} tensors, not {expected}: does rank {peer} have the same?");
            return Err(Stop::Transport(text));
        }
        if !self.has_peer_access {
            self.receive.context().enable_peer_access(context)?;
            self.has_peer_access = true;
        }
        for mark in incoming.free.iter().chain(&sent.written) {
            self.receive.wait(mark)?;
        }
        incoming.trace.begin(&self.receive)?;
        for (i, (from, to)) in sent.parts.iter().zip(&incoming.parts).enumerate() {
            if from.is_present && from.bytes > to.bytes {
                return Err(wrong_size(i, from.bytes, to.bytes, self.rank));
            }
            if from.is_present && from.bytes > 0 {
                // SAFETY: the contracts of `StreamTransport::send` and `receive`: both stay in place until the stream
                // has done it, which `withdraw` on either side tells of.
                unsafe { self.receive.copy(to.address, from.address, context, from.bytes) }?;
            }
        }
        incoming.trace.end(&self.receive)?;
        Ok(self.receive.mark(&incoming.arrived)?)
    }
}

impl StreamTransport for InprocCuda {
    fn now_ns(&self) -> u64 {
        self.seat.hub().now_ns()
    }

    fn reserve(&mut self, buffers: usize, tensors: usize, _: usize) -> Result<()> {
        let parts = || Vec::with_capacity(tensors);
        let outgoing = || {
            let state = OutgoingState { parts: parts(), ..OutgoingState::default() };
            Arc::new(Outgoing { context: Arc::clone(&self.context), state: Mutex::new(state) })
        };
        self.outgoing = (0..buffers).map(|_| outgoing()).collect();
        self.arrivals = (0..buffers).map(|_| None).collect();
        self.spare = (0..buffers).map(|_| parts()).collect();
        self.seat.hub().mailbox(self.seat.rank()).outgoing.reserve(buffers);
        Ok(())
    }

    /// Its streams first wait for what the peer has written, which puts them into the peer's capture.
    fn start(&mut self, _: Option<&Mark>) {
        self.forget();
        self.neighbours.iter_mut().for_each(|neighbour| neighbour.receive.forget());
    }

    fn gather(&self) -> (Arc<Gather>, bool) {
        (Arc::clone(&self.gather), self.seat.rank().0 == 0)
    }

    unsafe fn receive(&mut self, receive: ReceiveMessage<'_>) -> Posted<bool> {
        let neighbour = self.neighbour(receive.peer)?;
        let mut parts = self.spare.pop().unwrap_or_default();
        parts.clear();
        parts.extend_from_slice(receive.parts);
        self.neighbours[neighbour].posted.push_back(Incoming {
            key: Key { from: receive.peer, tag: super::tag(receive.message, receive.step, 0) },
            buffer: receive.buffer,
            parts,
            free: receive.free.cloned(),
            trace: receive.trace,
            arrived: Arc::clone(receive.arrived),
            instruction: receive.instruction,
        });
        self.pick_up()?;
        Ok(true)
    }

    fn received(&mut self, buffer: usize, peer: Rank, parts: &mut [Part]) -> Posted<Option<Arrival>> {
        // Looked at before the mail, so that what happens in between ends the next wait at once.
        let is_gone = self.seat.is_gone(peer)?;
        self.pick_up()?;
        match self.arrivals[buffer].take() {
            None if is_gone => Err(Stop::PeerGone),
            None => Ok(None),
            Some((arrival, got)) => {
                for (part, got) in parts.iter_mut().zip(&got) {
                    *part = Part { address: part.address, ..*got };
                }
                self.spare.push(got);
                Ok(Some(arrival))
            }
        }
    }

    unsafe fn send(&mut self, send: SendMessage<'_>) -> Posted<bool> {
        self.seat.check(send.peer)?;
        let (hub, rank) = (self.seat.hub(), self.seat.rank());
        let outgoing = &self.outgoing[send.buffer];
        {
            let mut state = lock(&outgoing.state);
            state.parts.clear();
            state.parts.extend_from_slice(send.parts);
            state.written = Some(Mark { stream: key::compute_of(rank), ..send.written.clone() });
            state.taken = None;
        }
        let key = Key { from: rank, tag: super::tag(send.message, send.step, 0) };
        hub.mailbox(send.peer).outgoing.push((key, Arc::clone(outgoing)));
        hub.notify(send.peer);
        Ok(true)
    }

    fn taken(&mut self, buffer: usize, peer: Rank) -> Posted<Option<Mark>> {
        let is_gone = self.seat.is_gone(peer)?;
        // Two ranks that send to one another and wait for their buffers must not each wait for the other to look.
        self.pick_up()?;
        let taken = lock(&self.outgoing[buffer].state).taken.clone();
        if taken.is_none() && is_gone {
            return Err(Stop::PeerGone);
        }
        Ok(taken)
    }

    fn wait(&mut self, timeout: Duration) {
        self.seat.wait(timeout);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.seat.hub().notice()
    }

    fn line(&self) -> Arc<dyn Line> {
        Arc::clone(self.seat.hub()) as Arc<dyn Line>
    }

    fn withdraw(&mut self, pending: &mut Vec<Arc<Event>>) {
        self.forget();
        for outgoing in &self.outgoing {
            pending.extend(lock(&outgoing.state).taken.take().map(|mark| mark.event));
        }
        for neighbour in &self.neighbours {
            // Behind all that the stream still has to do.
            pending.extend(
                Event::new(&self.context, false).ok().filter(|last| last.record(&neighbour.receive).is_ok()),
            );
        }
    }
}

impl Line for Hub<Mail> {
    fn failure(&self) -> Option<(Option<Rank>, String)> {
        None
    }

    fn notice(&self) -> Option<Notice> {
        Hub::notice(self)
    }

    fn abort(&self, notice: &Notice) {
        Hub::abort(self, notice);
    }
}

impl Drop for InprocCuda {
    fn drop(&mut self) {
        self.withdraw(&mut Vec::new());
    }
}
