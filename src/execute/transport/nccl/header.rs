//! The header of a message whose shapes are not agreed ahead: which tensors there are, and their shapes.
//!
//! The sender's host writes it, the device carries it ahead of the tensors, and the receiver's host reads it before it
//! asks for them. This is the one place where a host waits for a device in a step, and only if it was asked for.

use std::ffi::c_int;
use std::sync::Arc;

use super::comm::{Answer, Comm};
use super::sys;
use crate::error::Result;
use crate::execute::boundary::DIMENSIONS_MAX;
use crate::execute::device::cuda::context::Context;
use crate::execute::device::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::execute::device::cuda::stream::{Event, Stream};
use crate::execute::device::cuda::sys::DriverResult;
use crate::execute::transport::stream_ordered::{wrong_size, Part, Posted};
use crate::ids::Rank;

/// Numbers that describe a tensor: whether it is present, its bytes, its shape.
const WORDS: usize = 2 + DIMENSIONS_MAX;

/// The headers of one way between two ranks: one for each buffer of the rank.
pub(super) struct Headers {
    context: Arc<Context>,
    host: PinnedMemory,
    device: DeviceMemory,
    /// Words of one header.
    words: usize,
    /// When the header that is being received is there.
    fetched: Arc<Event>,
    /// By buffer, when the header that was sent last has left the host.
    copied: Vec<Arc<Event>>,
}

impl Headers {
    pub(super) fn new(context: &Arc<Context>, buffers: usize, tensors: usize) -> Result<Headers> {
        let words = tensors.max(1) * WORDS;
        let bytes = buffers.max(1) * words * size_of::<i64>();
        let copied = (0..buffers).map(|_| Event::new(context, false)).collect::<DriverResult<_>>()?;
        Ok(Headers {
            context: Arc::clone(context),
            copied,
            host: PinnedMemory::zeroed(context, bytes)?,
            device: DeviceMemory::new(context, bytes)?,
            words,
            fetched: Event::new(context, false)?,
        })
    }

    fn bytes(&self) -> usize {
        self.words * size_of::<i64>()
    }

    /// The header of `buffer` in pinned memory.
    fn header(&mut self, buffer: usize) -> &mut [i64] {
        let data = self.host.data().cast::<i64>();
        // SAFETY: one of `buffers` headers of `words` words, which `new` made room for; the device has been waited for
        // wherever it writes (`read`), and what it reads is written before it is asked to.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr().add(buffer * self.words), self.words) }
    }

    /// Where the header of `buffer` is on the host and on the device.
    fn addresses(&self, buffer: usize) -> (u64, u64) {
        let offset = (buffer * self.bytes()) as u64;
        (self.host.address() + offset, self.device.address() + offset)
    }

    /// Whether the host may write the header of `buffer`.
    pub(super) fn is_free(&self, buffer: usize) -> Posted<bool> {
        Ok(self.copied[buffer].is_done()?)
    }

    /// Enqueues that the header of `parts` is sent, or that one is received.
    pub(super) fn exchange(
        &mut self,
        comm: &Comm,
        stream: &Stream,
        buffer: usize,
        parts: &[Part],
        is_send: bool,
    ) -> Posted<Answer> {
        let (host, device) = self.addresses(buffer);
        if is_send {
            for (words, part) in self.header(buffer).chunks_exact_mut(WORDS).zip(parts) {
                words[0] = part.is_present.into();
                words[1] = part.bytes as i64;
                words[2..].copy_from_slice(&part.shape);
            }
            // SAFETY: both stay until the transport is dropped, whose streams are waited for before.
            unsafe { stream.copy(device, host, &self.context, self.bytes()) }?;
            self.copied[buffer].record(stream)?;
        }
        let (bytes, raw) = (self.bytes(), stream.raw());
        let data: *mut std::ffi::c_void = std::ptr::with_exposed_provenance_mut(device as usize);
        let (function, peer) = if is_send { ("ncclSend", 1) } else { ("ncclRecv", 0) };
        comm.call(function, |nccl, comm| {
            let peer: c_int = peer;
            // SAFETY: the communicator and the stream live; the memory as above.
            unsafe {
                match is_send {
                    true => (nccl.ncclSend)(data, bytes, sys::UINT8, peer, comm, raw),
                    false => (nccl.ncclRecv)(data, bytes, sys::UINT8, peer, comm, raw),
                }
            }
        })
    }

    /// Enqueues that what has been received is brought to the host.
    pub(super) fn fetch(&self, stream: &Stream, buffer: usize) -> Posted<()> {
        let (host, device) = self.addresses(buffer);
        // SAFETY: as in `exchange`.
        unsafe { stream.copy(host, device, &self.context, self.bytes()) }?;
        Ok(self.fetched.record(stream)?)
    }

    /// Reads the header if it is there: `parts` then has the sizes and shapes that are coming.
    pub(super) fn read(&mut self, buffer: usize, parts: &mut [Part], peer: Rank) -> Posted<bool> {
        if !self.fetched.is_done()? {
            return Ok(false);
        }
        for (i, (words, part)) in self.header(buffer).chunks_exact(WORDS).zip(parts).enumerate() {
            part.is_present = words[0] != 0;
            let bytes = usize::try_from(words[1]).ok().filter(|&bytes| bytes <= part.bytes);
            match (part.is_present, bytes) {
                (true, None) => return Err(wrong_size(i, words[1].max(0) as usize, part.bytes, peer)),
                (true, Some(bytes)) => part.bytes = bytes,
                (false, _) => {}
            }
            part.shape.copy_from_slice(&words[2..]);
        }
        Ok(true)
    }
}
