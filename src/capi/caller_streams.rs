//! The caller's transport on a CUDA device: its functions enqueue on streams of the executor's.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::transport::{dualpipe_transport_post_fn, Alarm, CallerTransport};
use crate::execute::device::cuda::context::Context;
use crate::execute::device::cuda::graph::Gather;
use crate::execute::device::cuda::stream::{Event, Mark, Stream};
use crate::execute::fault::Notice;
use crate::execute::rank::Stop;
use crate::execute::transport::stream_ordered::{
    key, Arrival, Line, Part, Posted, ReceiveMessage, SendMessage, StreamTransport,
};
use crate::execute::transport::{monotonic_ns, Transfer, Transport};
use crate::ids::Rank;

/// The caller's table of functions with the streams that it enqueues on.
pub(super) struct CallerStreams {
    transport: CallerTransport,
    alarm: Arc<Alarm>,
    context: Arc<Context>,
    streams: Vec<(Rank, bool, Stream)>,
    /// By buffer: what has come into it, and when what was sent from it is out.
    arrivals: Vec<Option<Arrival>>,
    taken: Vec<Option<Mark>>,
    /// By buffer, how many of a message's tensors the caller has taken up, if not all at once.
    posted: Vec<usize>,
    fork: Option<Mark>,
    gather: Arc<Gather>,
}

impl CallerStreams {
    pub(super) fn new(transport: CallerTransport, context: &Arc<Context>) -> CallerStreams {
        CallerStreams {
            alarm: Arc::new(transport.alarm()),
            transport,
            context: Arc::clone(context),
            streams: Vec::new(),
            arrivals: Vec::new(),
            taken: Vec::new(),
            posted: Vec::new(),
            fork: None,
            gather: Arc::new(Gather::new(1)),
        }
    }

    /// The stream for what goes to a peer or comes from it.
    fn stream(&mut self, peer: Rank, is_send: bool) -> Posted<usize> {
        if let Some(found) = self.streams.iter().position(|(to, send, _)| *to == peer && *send == is_send) {
            return Ok(found);
        }
        let key = if is_send { key::send_to(peer) } else { key::receive_from(peer) };
        self.streams.push((peer, is_send, Stream::new(&self.context, key, true)?));
        Ok(self.streams.len() - 1)
    }

    /// Has the caller enqueue the tensors of a message; `false` if it cannot take all of them yet.
    fn post(
        &mut self,
        function: dualpipe_transport_post_fn,
        message: &Message<'_>,
        stream: usize,
    ) -> Posted<bool> {
        let raw = self.streams[stream].2.raw().cast();
        while let Some(part) = message.parts.get(self.posted[message.buffer]) {
            let index = self.posted[message.buffer];
            let data: *mut u8 = std::ptr::with_exposed_provenance_mut(part.address as usize);
            let transfer = Transfer {
                peer: message.peer,
                message: message.content,
                tensor: index,
                step: message.step,
                data: NonNull::new(data).unwrap_or(NonNull::dangling()),
                bytes: part.bytes,
            };
            let device = self.context.ordinal() as u32;
            if self.transport.post(function, transfer, raw, device)?.is_none() {
                return Ok(false);
            }
            self.posted[message.buffer] += 1;
        }
        self.posted[message.buffer] = 0;
        Ok(true)
    }
}

/// What is the same for a send and a receive.
struct Message<'a> {
    peer: Rank,
    content: crate::op::Message,
    step: u16,
    buffer: usize,
    parts: &'a [Part],
}

impl StreamTransport for CallerStreams {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn reserve(&mut self, buffers: usize, _: usize, _: usize) -> crate::error::Result<()> {
        self.arrivals = (0..buffers).map(|_| None).collect();
        self.taken = vec![None; buffers];
        self.posted = vec![0; buffers];
        Ok(())
    }

    fn start(&mut self, fork: Option<&Mark>) {
        self.streams.iter_mut().for_each(|(.., stream)| stream.forget());
        self.arrivals.fill_with(|| None);
        self.taken.fill(None);
        self.posted.fill(0);
        self.fork = fork.cloned();
    }

    fn gather(&self) -> (Arc<Gather>, bool) {
        (Arc::clone(&self.gather), true)
    }

    unsafe fn receive(&mut self, receive: ReceiveMessage<'_>) -> Posted<bool> {
        let ReceiveMessage { peer, message: content, step, buffer, parts, free, trace, arrived, instruction } =
            receive;
        let stream = self.stream(peer, false)?;
        if self.posted[buffer] == 0 {
            let fork = self.fork.clone();
            let stream = &mut self.streams[stream].2;
            fork.iter().chain(free).try_for_each(|mark| stream.wait(mark))?;
            trace.begin(stream)?;
        }
        let message = Message { peer, content, step, buffer, parts };
        if !self.post(self.transport.table.receive, &message, stream)? {
            return Ok(false);
        }
        let stream = &mut self.streams[stream].2;
        trace.end(stream)?;
        self.arrivals[buffer] = Some(Arrival { mark: stream.mark(arrived)?, instruction });
        Ok(true)
    }

    fn received(&mut self, buffer: usize, _: Rank, _: &mut [Part]) -> Posted<Option<Arrival>> {
        Ok(self.arrivals[buffer].take())
    }

    unsafe fn send(&mut self, send: SendMessage<'_>) -> Posted<bool> {
        let SendMessage { peer, message: content, step, buffer, parts, written, sent } = send;
        if let Some(absent) = parts.iter().position(|part| !part.is_present) {
            let text = format!(
                "gradient {absent} is absent, which a transport of the caller's cannot tell on streams"
            );
            return Err(Stop::Transport(text));
        }
        let stream = self.stream(peer, true)?;
        self.streams[stream].2.wait(written)?;
        let message = Message { peer, content, step, buffer, parts };
        if !self.post(self.transport.table.send, &message, stream)? {
            return Ok(false);
        }
        self.taken[buffer] = Some(self.streams[stream].2.mark(sent)?);
        Ok(true)
    }

    fn taken(&mut self, buffer: usize, _: Rank) -> Posted<Option<Mark>> {
        Ok(self.taken[buffer].clone())
    }

    fn wait(&mut self, timeout: Duration) {
        Transport::wait(&mut self.transport, timeout);
    }

    fn notice(&mut self) -> Option<Notice> {
        Transport::notice(&mut self.transport)
    }

    fn line(&self) -> Arc<dyn Line> {
        Arc::clone(&self.alarm) as Arc<dyn Line>
    }

    fn withdraw(&mut self, pending: &mut Vec<Arc<Event>>) {
        Transport::withdraw(&mut self.transport);
        for (.., stream) in &self.streams {
            // Behind all that the stream still has to do.
            pending.extend(Event::new(&self.context, false).ok().filter(|last| last.record(stream).is_ok()));
        }
    }
}

impl Line for Alarm {
    /// The caller's functions tell of failures when they are called.
    fn failure(&self) -> Option<(Option<Rank>, String)> {
        None
    }

    fn notice(&self) -> Option<Notice> {
        self.poll()
    }

    fn abort(&self, notice: &Notice) {
        self.tell(notice);
    }
}
