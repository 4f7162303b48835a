//! One rank's communicators and streams, and what has been asked of them.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::comm::{Answer, Comm, Comms, POLL_PERIOD};
use super::header::Headers;
use super::put::{self, Slot};
use super::sys;
use super::{links, NcclOptions, NCCL_ID_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::execute::device::cuda::abort;
use crate::execute::device::cuda::context::Context;
use crate::execute::device::cuda::events::Trace;
use crate::execute::device::cuda::graph::Gather;
use crate::execute::device::cuda::stream::{Event, Mark, Stream};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::execute::transport::monotonic_ns;
use crate::execute::transport::stream_ordered::{
    key, Arrival, Line, Part, Posted, ReceiveMessage, SendMessage, StreamTransport,
};
use crate::ids::Rank;
use crate::placement::Placement;

/// One rank's end of NCCL.
pub(crate) struct NcclTransport {
    rank: Rank,
    context: Arc<Context>,
    comms: Arc<Comms>,
    ends: Vec<End>,
    /// By buffer: what has come into it, and when what was sent from it is out.
    arrivals: Vec<Option<(Arrival, Vec<Part>)>>,
    taken: Vec<Option<Mark>>,
    spare: Vec<Vec<Part>>,
    timeout: Duration,
    exchanges_shapes: bool,
    /// With `zero_cta`, NCCL's functions for it.
    puts: Option<&'static sys::Puts>,
    /// Bytes of each slot.
    slot_bytes: usize,
    gather: Arc<Gather>,
}

/// One way between this rank and another.
struct End {
    peer: Rank,
    is_send: bool,
    comm: Arc<Comm>,
    stream: Stream,
    headers: Option<Headers>,
    slot: Option<Slot>,
    /// What has not been enqueued yet, in order; the first is being, if `stage` says so.
    queue: VecDeque<Message>,
    stage: Stage,
    /// In a capture, what everything comes after.
    fork: Option<Mark>,
}

/// How far the first message of the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// NCCL is enqueuing the header.
    Header,
    /// The header has been asked for, and is read when it is there.
    HeaderComing,
    /// NCCL is enqueuing how the ends agree that the receiver's slot is free.
    Slot,
    /// NCCL is enqueuing the tensors.
    Tensors,
}

struct Message {
    buffer: usize,
    parts: Vec<Part>,
    after: Option<Mark>,
    trace: Option<Trace>,
    done: Arc<Event>,
    instruction: usize,
}

impl NcclTransport {
    /// Joins the other ranks that `rank` has messages with, all of which must come within `timeout`. The options have
    /// been checked for this placement.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], [`ErrorKind::Timeout`], [`ErrorKind::Transport`].
    pub(crate) fn new(
        context: &Arc<Context>,
        placement: &Placement,
        rank: Rank,
        options: &NcclOptions,
        exchanges_shapes: bool,
        timeout: Duration,
    ) -> Result<NcclTransport> {
        let links = links(placement);
        let puts = put::functions(options)?;
        let device_error = |why: crate::execute::device::cuda::sys::DriverError| Error::from(why);
        let _entered = context.enter().map_err(device_error)?;
        let mut transport = NcclTransport {
            rank,
            context: Arc::clone(context),
            comms: Arc::new(Comms { comms: Vec::new() }),
            ends: Vec::new(),
            arrivals: Vec::new(),
            taken: Vec::new(),
            spare: Vec::new(),
            timeout,
            exchanges_shapes,
            puts,
            slot_bytes: 0,
            gather: Arc::new(Gather::new(1)),
        };
        let mut comms = Vec::new();
        for ((from, to), id) in links.into_iter().zip(options.unique_id.chunks_exact(NCCL_ID_BYTES)) {
            let (peer, is_send) = match (from == rank, to == rank) {
                (true, _) => (to, true),
                (_, true) => (from, false),
                _ => continue,
            };
            let mut unique = sys::UniqueId([0; NCCL_ID_BYTES]);
            unique.0.copy_from_slice(id);
            let key = if is_send { key::send_to(peer) } else { key::receive_from(peer) };
            let stream = Stream::new(context, key, true).map_err(device_error)?;
            let comm = Arc::new(Comm::begin(peer, unique, c_int::from(!is_send), options.max_ctas)?);
            comms.push(Arc::clone(&comm));
            let (queue, stage) = (VecDeque::new(), Stage::Waiting);
            let (headers, slot, fork) = (None, None, None);
            transport.ends.push(End { peer, is_send, comm, stream, headers, slot, queue, stage, fork });
        }
        transport.comms = Arc::new(Comms { comms });
        transport.join()?;
        Ok(transport)
    }

    /// Waits until all peers have come to what was begun with them.
    fn join(&self) -> Result<()> {
        let rank = self.rank;
        let deadline = Instant::now() + self.timeout;
        for comm in &self.comms.comms {
            loop {
                let (kind, text) = match comm.poll() {
                    Ok(Answer::Done) => break,
                    Ok(Answer::InProgress) if Instant::now() < deadline => {
                        std::thread::sleep(POLL_PERIOD);
                        continue;
                    }
                    Ok(Answer::InProgress) => {
                        let text = format!("it has not come within {:?}", self.timeout);
                        (ErrorKind::Timeout, text)
                    }
                    Err(Stop::Transport(text)) => (ErrorKind::Transport, text),
                    Err(_) => (ErrorKind::Transport, "it failed".into()),
                };
                let text = format!("nccl: rank {rank} waited for rank {}: {text}", comm.peer);
                let line = Arc::clone(&self.comms) as Arc<dyn Line>;
                abort(&line, &Notice { rank, text: text.clone() });
                return Err(Error::new(kind, text));
            }
        }
        Ok(())
    }

    /// New slots, for messages of this many bytes, which all ranks make at the same time.
    fn open_slots(&mut self, puts: &'static sys::Puts, bytes: usize) -> Result<()> {
        let _entered = self.context.enter().map_err(Error::from)?;
        self.slot_bytes = bytes;
        for end in &mut self.ends {
            end.slot.take().into_iter().for_each(|slot| slot.close(&end.comm));
            end.slot.insert(Slot::new(puts, &self.context, &end.comm, bytes)?).register(&end.comm)?;
        }
        self.join()?;
        self.ends.iter_mut().filter_map(|end| end.slot.as_mut()).try_for_each(Slot::opened)
    }

    fn end(&mut self, peer: Rank, is_send: bool) -> Posted<&mut End> {
        let found = self.ends.iter_mut().find(|end| end.peer == peer && end.is_send == is_send);
        found.ok_or_else(|| Stop::Transport(format!("there is no link with rank {peer}")))
    }

    fn list(&mut self, parts: &[Part]) -> Vec<Part> {
        let mut list = self.spare.pop().unwrap_or_default();
        list.clear();
        list.extend_from_slice(parts);
        list
    }

    /// Gets every end on as far as it goes without waiting.
    fn progress(&mut self) -> Posted<()> {
        let NcclTransport { ends, arrivals, taken, spare, .. } = self;
        for end in ends {
            while let Some((message, mark)) = end.advance()? {
                let Message { buffer, parts, instruction, .. } = message;
                match end.is_send {
                    true => {
                        taken[buffer] = Some(mark);
                        spare.push(parts);
                    }
                    false => arrivals[buffer] = Some((Arrival { mark, instruction }, parts)),
                }
            }
        }
        Ok(())
    }
}

impl End {
    /// Gets the first message on; returns it once all of it is enqueued.
    fn advance(&mut self) -> Posted<Option<(Message, Mark)>> {
        while let Some(message) = self.queue.front_mut() {
            let is_busy = matches!(self.stage, Stage::Header | Stage::Slot | Stage::Tensors);
            if is_busy && self.comm.poll()? == Answer::InProgress {
                return Ok(None);
            }
            let next = match (self.stage, &mut self.headers) {
                (Stage::Waiting, Some(headers)) if self.is_send && !headers.is_free(message.buffer)? => {
                    return Ok(None);
                }
                (Stage::Waiting, headers) => {
                    self.fork.iter().try_for_each(|mark| self.stream.wait(mark))?;
                    // What comes into a slot does not need the buffer yet.
                    let needs_buffer = self.is_send || self.slot.is_none();
                    let mut after = message.after.iter().filter(|_| needs_buffer);
                    after.try_for_each(|mark| self.stream.wait(mark))?;
                    match (headers, &self.slot) {
                        (Some(headers), _) => {
                            let (buffer, parts) = (message.buffer, &message.parts);
                            let answer =
                                headers.exchange(&self.comm, &self.stream, buffer, parts, self.is_send)?;
                            (answer, Stage::Header)
                        }
                        (None, Some(slot)) => {
                            message.trace.iter().try_for_each(|trace| trace.begin(&self.stream))?;
                            if self.is_send {
                                slot.fill(&self.stream, &message.parts)?;
                            }
                            (slot.agree(&self.comm, &self.stream, self.is_send)?, Stage::Slot)
                        }
                        (None, None) => (self.transfer()?, Stage::Tensors),
                    }
                }
                (Stage::Slot, _) => {
                    let Some(slot) = &self.slot else { return Ok(None) };
                    (slot.put(&self.comm, &self.stream, &message.parts, self.is_send)?, Stage::Tensors)
                }
                (Stage::Header, Some(headers)) if !self.is_send => {
                    headers.fetch(&self.stream, message.buffer)?;
                    (Answer::Done, Stage::HeaderComing)
                }
                (Stage::HeaderComing, Some(headers)) => {
                    if !headers.read(message.buffer, &mut message.parts, self.peer)? {
                        return Ok(None);
                    }
                    (self.transfer()?, Stage::Tensors)
                }
                (Stage::Header | Stage::HeaderComing, _) => (self.transfer()?, Stage::Tensors),
                (Stage::Tensors, _) => {
                    self.stage = Stage::Waiting;
                    let Some(message) = self.queue.pop_front() else { return Ok(None) };
                    if let Some(slot) = self.slot.as_ref().filter(|_| !self.is_send) {
                        message.after.iter().try_for_each(|mark| self.stream.wait(mark))?;
                        slot.empty(&self.stream, &message.parts)?;
                    }
                    message.trace.iter().try_for_each(|trace| trace.end(&self.stream))?;
                    let mark = self.stream.mark(&message.done)?;
                    return Ok(Some((message, mark)));
                }
            };
            let (answer, stage) = next;
            self.stage = stage;
            if answer == Answer::InProgress {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Enqueues the tensors of the first message: one group, on the other side as well.
    fn transfer(&self) -> Posted<Answer> {
        let Some(message) = self.queue.front() else { return Ok(Answer::Done) };
        message.trace.iter().try_for_each(|trace| trace.begin(&self.stream))?;
        let peer = c_int::from(self.is_send);
        let stream = self.stream.raw();
        self.comm.call("ncclGroupEnd", |nccl, comm| {
            // SAFETY: the communicator and the stream live; each part is memory that the contracts of
            // `StreamTransport::send` and `receive` leave alone until the stream has done it, or it is aborted.
            unsafe {
                let mut code = (nccl.ncclGroupStart)();
                for part in message.parts.iter().filter(|part| part.is_present && part.bytes > 0) {
                    let data: *mut std::ffi::c_void =
                        std::ptr::with_exposed_provenance_mut(part.address as usize);
                    if matches!(code, sys::SUCCESS | sys::IN_PROGRESS) {
                        code = match self.is_send {
                            true => (nccl.ncclSend)(data, part.bytes, sys::UINT8, peer, comm, stream),
                            false => (nccl.ncclRecv)(data, part.bytes, sys::UINT8, peer, comm, stream),
                        };
                    }
                }
                // A group that was begun has to be ended, whatever became of it.
                match ((nccl.ncclGroupEnd)(), code) {
                    (end, sys::SUCCESS | sys::IN_PROGRESS) => end,
                    (_, code) => code,
                }
            }
        })
    }
}

impl StreamTransport for NcclTransport {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn reserve(&mut self, buffers: usize, tensors: usize, bytes: usize) -> Result<()> {
        self.arrivals = (0..buffers).map(|_| None).collect();
        self.taken = vec![None; buffers];
        self.spare = (0..buffers).map(|_| Vec::with_capacity(tensors)).collect();
        for end in &mut self.ends {
            end.queue.reserve(buffers);
            end.headers = match self.exchanges_shapes {
                true => Some(Headers::new(&self.context, buffers, tensors)?),
                false => None,
            };
        }
        let Some(puts) = self.puts.filter(|_| bytes > self.slot_bytes) else { return Ok(()) };
        self.open_slots(puts, bytes).inspect_err(|why| {
            let text = why.to_string();
            abort(&self.line(), &Notice { rank: self.rank, text });
        })
    }

    fn start(&mut self, fork: Option<&Mark>) {
        for end in &mut self.ends {
            end.queue.clear();
            end.stage = Stage::Waiting;
            end.stream.forget();
            end.fork = fork.cloned();
        }
        self.arrivals.fill_with(|| None);
        self.taken.fill(None);
        if let Some(why) = fork.and(self.puts).and_then(|_| put::why_no_graph()) {
            self.gather.give_up(&why);
        }
    }

    fn gather(&self) -> (Arc<Gather>, bool) {
        (Arc::clone(&self.gather), true)
    }

    unsafe fn receive(&mut self, receive: ReceiveMessage<'_>) -> Posted<bool> {
        let parts = self.list(receive.parts);
        self.end(receive.peer, false)?.queue.push_back(Message {
            buffer: receive.buffer,
            parts,
            after: receive.free.cloned(),
            trace: Some(receive.trace),
            done: Arc::clone(receive.arrived),
            instruction: receive.instruction,
        });
        self.progress()?;
        Ok(true)
    }

    fn received(&mut self, buffer: usize, _: Rank, parts: &mut [Part]) -> Posted<Option<Arrival>> {
        self.progress()?;
        let Some((arrival, got)) = self.arrivals[buffer].take() else { return Ok(None) };
        parts.iter_mut().zip(&got).for_each(|(part, got)| *part = *got);
        self.spare.push(got);
        Ok(Some(arrival))
    }

    unsafe fn send(&mut self, send: SendMessage<'_>) -> Posted<bool> {
        if let Some(absent) = send.parts.iter().position(|part| !part.is_present) {
            if !self.exchanges_shapes {
                let text = format!("gradient {absent} is absent, which only exchanges_shapes lets NCCL tell");
                return Err(Stop::Transport(text));
            }
        }
        let parts = self.list(send.parts);
        self.taken[send.buffer] = None;
        self.end(send.peer, true)?.queue.push_back(Message {
            buffer: send.buffer,
            parts,
            after: Some(send.written.clone()),
            trace: None,
            done: Arc::clone(send.sent),
            instruction: 0,
        });
        self.progress()?;
        Ok(true)
    }

    fn taken(&mut self, buffer: usize, _: Rank) -> Posted<Option<Mark>> {
        self.progress()?;
        Ok(self.taken[buffer].clone())
    }

    fn wait(&mut self, timeout: Duration) {
        std::thread::sleep(timeout.min(POLL_PERIOD));
    }

    fn notice(&mut self) -> Option<Notice> {
        None
    }

    fn line(&self) -> Arc<dyn Line> {
        Arc::clone(&self.comms) as Arc<dyn Line>
    }

    fn leak(&mut self) {
        for end in &mut self.ends {
            std::mem::forget((end.headers.take(), end.slot.take()));
            end.comm.forget();
        }
    }

    fn withdraw(&mut self, pending: &mut Vec<Arc<Event>>) {
        for end in &mut self.ends {
            end.queue.clear();
            // Behind all that the stream still has to do.
            pending.extend(
                Event::new(&self.context, false).ok().filter(|last| last.record(&end.stream).is_ok()),
            );
        }
    }
}

impl Drop for NcclTransport {
    fn drop(&mut self) {
        for end in &mut self.ends {
            end.slot.take().into_iter().for_each(|slot| slot.close(&end.comm));
            end.comm.bury();
            end.comm.end(self.timeout.min(Duration::from_secs(5)));
        }
    }
}
