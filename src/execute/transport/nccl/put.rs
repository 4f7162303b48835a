//! Messages that are put by copy engines: no multiprocessor has to be free for them.
//!
//! Each end has a slot, memory of NCCL's that the other end may put into. What the two streams of a link do:
//!
//! | sender                              | receiver                            |
//! | ----------------------------------- | ----------------------------------- |
//! | copy the tensors into its slot      | signal that its slot is free        |
//! | wait for that signal                |                                     |
//! | put its slot into the other; signal | wait for that signal                |
//! |                                     | copy the slot out, once there is room |
//!
//! A message takes two signals and leaves none, so a step ends as it began, and may be captured: NCCL counts the
//! signals of graphs apart from all others, so that none may be left for a step of the other kind. More slots would be
//! of no use: at each end one stream does one message after the other.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::comm::{Answer, Comm};
use super::sys::{self, nccl, Puts};
use super::{nccl_version, NcclOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::execute::boundary::TENSOR_ALIGNMENT;
use crate::execute::device::cuda::context::Context;
use crate::execute::device::cuda::stream::Stream;
use crate::execute::rank::Stop;
use crate::execute::transport::stream_ordered::{Part, Posted};
use crate::ids::Rank;

/// The first NCCL that puts, and the first whose puts may be captured.
const VERSION: u32 = 22900;
const GRAPH_VERSION: u32 = 23000;

/// What `zero_cta` takes of NCCL; `None` if it is not asked for.
///
/// # Errors
/// [`ErrorKind::Unavailable`].
pub(super) fn functions(options: &NcclOptions) -> Result<Option<&'static Puts>> {
    let nccl = nccl()?;
    if !options.zero_cta {
        return Ok(None);
    }
    let version = nccl_version()?;
    match &nccl.puts {
        Some(puts) if version >= VERSION => Ok(Some(puts)),
        _ => {
            let text = format!("nccl: zero_cta needs NCCL 2.29 or newer, this is {}", in_words(version));
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }
}

/// Why puts cannot be captured, if they cannot.
pub(super) fn why_no_graph() -> Option<String> {
    let version = nccl_version().ok().filter(|&version| version < GRAPH_VERSION)?;
    Some(format!("zero_cta in a graph needs NCCL 2.30 or newer, this is {}", in_words(version)))
}

fn in_words(version: u32) -> String {
    format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)
}

/// Memory for one message at one end of a link.
pub(super) struct Slot {
    puts: &'static Puts,
    context: Arc<Context>,
    peer: Rank,
    memory: *mut c_void,
    bytes: usize,
    /// NCCL writes to it until [`Slot::opened`].
    window: Box<UnsafeCell<sys::Window>>,
    is_open: bool,
}

// SAFETY: the memory is the device's and belongs to whoever has this; NCCL writes to the window only until it has said
// so.
unsafe impl Send for Slot {}

impl Slot {
    /// Memory for a message of this many bytes. The context must be current.
    pub(super) fn new(
        puts: &'static Puts,
        context: &Arc<Context>,
        comm: &Comm,
        bytes: usize,
    ) -> Result<Slot> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: writes to a local.
        let code = unsafe { (puts.ncclMemAlloc)(&mut memory, bytes) };
        if code != sys::SUCCESS {
            let text = nccl()?.say("ncclMemAlloc", code, std::ptr::null_mut());
            return Err(Error::new(
                ErrorKind::Device,
                format!("nccl: no device memory for {bytes} bytes: {text}"),
            ));
        }
        let window = Box::new(UnsafeCell::new(std::ptr::null_mut()));
        Ok(Slot {
            puts,
            context: Arc::clone(context),
            peer: comm.peer,
            memory,
            bytes,
            window,
            is_open: false,
        })
    }

    /// Begins to let the peer put into it, once the peer does the same; [`Comm::poll`] tells when it has.
    pub(super) fn register(&self, comm: &Comm) -> Result<()> {
        let answer = comm.call("ncclCommWindowRegister", |_, comm| {
            let (window, flags) = (self.window.get(), sys::WINDOW_SYMMETRIC);
            // SAFETY: the communicator lives; the memory stays until it is deregistered or the communicator is gone,
            // and where the window is written to as well.
            unsafe { (self.puts.ncclCommWindowRegister)(comm, self.memory, self.bytes, window, flags) }
        });
        match answer {
            Ok(_) => Ok(()),
            Err(Stop::Transport(text)) => Err(self.error(ErrorKind::Transport, &text)),
            Err(_) => Err(self.error(ErrorKind::Transport, "it failed")),
        }
    }

    /// The communicator is done with it.
    pub(super) fn opened(&mut self) -> Result<()> {
        self.is_open = true;
        // A window that cannot be is no error to NCCL.
        let text = "NCCL cannot put there: zero_cta needs NVLink, or a network that NCCL can put over";
        match self.window.get_mut().is_null() {
            false => Ok(()),
            true => Err(self.error(ErrorKind::Unavailable, text)),
        }
    }

    fn error(&self, kind: ErrorKind, text: &str) -> Error {
        Error::new(kind, format!("nccl: with rank {}: {text}", self.peer))
    }

    /// Gives all of it back, when the device has done all that it will do with it.
    pub(super) fn close(mut self, comm: &Comm) {
        let window = *self.window.get_mut();
        if self.is_open && !window.is_null() {
            // It says no if the communicator is gone, and with it the window.
            let _ = comm.call("ncclCommWindowDeregister", |_, comm| {
                // SAFETY: both live, and the device is done with them.
                unsafe { (self.puts.ncclCommWindowDeregister)(comm, window) }
            });
        }
        comm.bury();
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { (self.puts.ncclMemFree)(self.memory) };
        }
        if !self.is_open {
            std::mem::forget(self.window); // NCCL may come to write to it
        }
    }

    /// Where each of the tensors that have elements is in the slot.
    fn places<'a>(&self, parts: &'a [Part]) -> impl Iterator<Item = (u64, &'a Part)> {
        let mut next = self.memory.expose_provenance() as u64;
        parts.iter().filter(|part| part.is_present && part.bytes > 0).map(move |part| {
            let place = next;
            next += part.bytes.next_multiple_of(TENSOR_ALIGNMENT) as u64;
            (place, part)
        })
    }

    /// Bytes of a message, which fits.
    fn size(&self, parts: &[Part]) -> Posted<usize> {
        let begin = self.memory.expose_provenance() as u64;
        let end = self.places(parts).last().map_or(begin, |(place, part)| place + part.bytes as u64);
        let bytes = (end - begin) as usize;
        match bytes <= self.bytes {
            true => Ok(bytes),
            false => Err(Stop::Transport(format!("a message of {bytes} bytes in a slot of {}", self.bytes))),
        }
    }

    /// Enqueues that the tensors are copied in.
    pub(super) fn fill(&self, stream: &Stream, parts: &[Part]) -> Posted<()> {
        self.size(parts)?;
        for (place, part) in self.places(parts) {
            // SAFETY: the contract of `StreamTransport::send`; the slot has room, and stays until the device is done.
            unsafe { stream.copy(place, part.address, &self.context, part.bytes) }?;
        }
        Ok(())
    }

    /// Enqueues that they are copied out.
    pub(super) fn empty(&self, stream: &Stream, parts: &[Part]) -> Posted<()> {
        self.size(parts)?;
        for (place, part) in self.places(parts) {
            // SAFETY: the contract of `StreamTransport::receive`; the slot as in `fill`.
            unsafe { stream.copy(part.address, place, &self.context, part.bytes) }?;
        }
        Ok(())
    }

    /// Enqueues that the receiver says that its slot is free, and the sender waits for that.
    pub(super) fn agree(&self, comm: &Comm, stream: &Stream, is_send: bool) -> Posted<Answer> {
        match is_send {
            true => self.wait(comm, stream, is_send),
            false => self.signal(comm, stream, is_send),
        }
    }

    /// Enqueues that the sender puts the message, and the receiver waits for it.
    pub(super) fn put(&self, comm: &Comm, stream: &Stream, parts: &[Part], is_send: bool) -> Posted<Answer> {
        let bytes = self.size(parts)?;
        match is_send {
            false => return self.wait(comm, stream, is_send),
            true if bytes == 0 => return self.signal(comm, stream, is_send),
            true => {}
        }
        comm.call("ncclPutSignal", |_, comm| {
            let (data, peer, stream) = (self.memory, peer(is_send), stream.raw());
            // SAFETY: the communicator and the stream live; NCCL has written the window, which is as large at the
            // peer; both slots stay until the devices are done with them.
            unsafe {
                let window = *self.window.get();
                (self.puts.ncclPutSignal)(data, bytes, sys::UINT8, peer, window, 0, 0, 0, 0, comm, stream)
            }
        })
    }

    fn signal(&self, comm: &Comm, stream: &Stream, is_send: bool) -> Posted<Answer> {
        comm.call("ncclSignal", |_, comm| {
            // SAFETY: the communicator and the stream live.
            unsafe { (self.puts.ncclSignal)(peer(is_send), 0, 0, 0, comm, stream.raw()) }
        })
    }

    fn wait(&self, comm: &Comm, stream: &Stream, is_send: bool) -> Posted<Answer> {
        comm.expect_signals();
        comm.call("ncclWaitSignal", |_, comm| {
            let mut signals = sys::Signals { count: 1, peer: peer(is_send), index: 0, context: 0 };
            // SAFETY: the communicator and the stream live; NCCL copies the description.
            unsafe { (self.puts.ncclWaitSignal)(1, &mut signals, comm, stream.raw()) }
        })
    }
}

/// The other rank of the communicator: the sender is its rank 0.
fn peer(is_send: bool) -> c_int {
    c_int::from(is_send)
}
