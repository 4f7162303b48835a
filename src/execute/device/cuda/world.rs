//! What each instruction of a program puts into the streams of a device.
//!
//! | instruction | enqueues                                                                                   |
//! | ----------- | ------------------------------------------------------------------------------------------ |
//! | RECEIVE     | on the receive stream: wait until the buffer's last reader is done; receive; `arrived`      |
//! | RUN         | on the compute stream: wait for what it reads to arrive; the task; `done`                   |
//! | SEND        | on the send stream, or by the receiver: wait for `done`; send; `taken`                      |
//! | FREE        | of what was sent: on the compute stream, which fills the buffer next, wait until it is taken|
//!
//! These are all the waits there are: one for each edge between two streams, and none that another implies.

use super::rank::Cuda;
use super::sys::DriverError;
use crate::execute::fault::Notice;
use crate::execute::rank::{Stop, World};
use crate::execute::task::{TaskRunner, TaskStreams};
use crate::execute::transport::stream_ordered::{wrong_size, Part, ReceiveMessage, SendMessage};
use crate::ids::Rank;
use crate::op::{Message, Task};
use crate::program::BufferId;

impl From<DriverError> for Stop {
    fn from(error: DriverError) -> Stop {
        Stop::Device(error.to_string())
    }
}

/// A rank on a device at one instruction of its program.
pub(super) struct CudaWorld<'a> {
    pub(super) cuda: &'a mut Cuda,
    pub(super) instruction: usize,
    pub(super) runner: &'a mut dyn TaskRunner,
}

impl CudaWorld<'_> {
    /// Lists the tensors in a buffer as a transport sees them.
    fn list_parts(&mut self, buffer: BufferId) {
        let Cuda { slots, parts, .. } = &mut *self.cuda;
        parts.clear();
        parts.extend(slots.tensors(buffer).iter().map(|tensor| {
            let mut shape = [0; crate::execute::boundary::DIMENSIONS_MAX];
            shape[..tensor.shape().len()].copy_from_slice(tensor.shape());
            let address = tensor.data().map_or(0, |data| data.as_ptr().expose_provenance() as u64);
            Part { address, bytes: tensor.bytes(), is_present: tensor.is_present(), shape }
        }));
    }
}

impl World for CudaWorld<'_> {
    fn now_ns(&mut self) -> u64 {
        self.cuda.transport.now_ns()
    }

    fn receive(&mut self, message: Message, from: Rank, buffer: BufferId) -> Result<bool, Stop> {
        if self.cuda.slots.tensors(buffer).is_empty() {
            self.cuda.slots.lay_out_receive(buffer, message.pass.microbatch)?;
            if self.cuda.slots.are_callers() {
                // The caller's memory may be used once the compute stream has come to where it was given.
                let cuda = &mut *self.cuda;
                let given = cuda.compute.mark(cuda.events.given(self.instruction))?;
                cuda.buffers[buffer.index()].free = Some(given);
            }
        }
        self.list_parts(buffer);
        let cuda = &mut *self.cuda;
        let receive = ReceiveMessage {
            peer: from,
            message,
            step: cuda.step as u16,
            buffer: buffer.index(),
            parts: &cuda.parts,
            free: cuda.buffers[buffer.index()].free.as_ref(),
            trace: cuda.events.trace(self.instruction, cuda.is_capturing),
            arrived: cuda.events.done(self.instruction),
            instruction: self.instruction,
        };
        // SAFETY: the buffer is left alone until `free` or `fail`: the one puts whoever fills it next behind its last
        // reader, the other waits for what was enqueued or gives the memory up.
        let is_posted = unsafe { cuda.transport.receive(receive) }?;
        if is_posted {
            cuda.buffers[buffer.index()].free = None;
        }
        Ok(is_posted)
    }

    fn is_received(&mut self, _: Message, from: Rank, buffer: BufferId) -> Result<bool, Stop> {
        self.list_parts(buffer);
        let cuda = &mut *self.cuda;
        let Some(arrival) = cuda.transport.received(buffer.index(), from, &mut cuda.parts)? else {
            return Ok(false);
        };
        cuda.compute.wait_when_settled(&arrival.mark);
        cuda.watch.record(arrival.instruction, cuda.step);
        for (i, (tensor, part)) in cuda.slots.tensors_mut(buffer).iter_mut().zip(&cuda.parts).enumerate() {
            tensor.set_present(part.is_present);
            if !part.is_present || part.bytes == tensor.bytes() {
                continue;
            }
            let shape = &part.shape[..tensor.shape().len()];
            if tensor.set_shape(shape).is_err() || tensor.bytes() != part.bytes {
                return Err(wrong_size(i, part.bytes, tensor.bytes(), from));
            }
        }
        Ok(true)
    }

    fn send(&mut self, message: Message, to: Rank, buffer: BufferId) -> Result<bool, Stop> {
        self.list_parts(buffer);
        let cuda = &mut *self.cuda;
        let Some(written) = &cuda.last_done else {
            return Err(Stop::Transport("there is nothing to send before the first task".into()));
        };
        let send = SendMessage {
            peer: to,
            message,
            step: cuda.step as u16,
            buffer: buffer.index(),
            parts: &cuda.parts,
            written,
            sent: cuda.events.done(self.instruction),
        };
        cuda.buffers[buffer.index()].sent_at = self.instruction;
        // SAFETY: nobody writes to the buffer before `is_sent`, which puts the compute stream behind the send, or
        // `fail`, which waits for what was enqueued or gives the memory up.
        unsafe { cuda.transport.send(send) }
    }

    fn is_sent(&mut self, _: Message, to: Rank, buffer: BufferId) -> Result<bool, Stop> {
        let cuda = &mut *self.cuda;
        let Some(taken) = cuda.transport.taken(buffer.index(), to)? else { return Ok(false) };
        cuda.compute.wait_when_settled(&taken);
        if cuda.slots.are_callers() {
            // Who gets the memory back may use it from here on.
            cuda.compute.settle()?;
        }
        cuda.watch.record_taken(cuda.buffers[buffer.index()].sent_at, &taken.event);
        Ok(true)
    }

    fn run(&mut self, task: Task) -> Result<(), Stop> {
        let cuda = &mut *self.cuda;
        cuda.compute.settle()?;
        let trace = cuda.events.trace(self.instruction, cuda.is_capturing);
        trace.begin(&cuda.compute)?;
        if let Some(comm) = &mut cuda.comm {
            comm.stream.wait(&cuda.compute.mark(&comm.fork)?)?;
        }
        let comm = cuda.comm.as_ref().map_or(std::ptr::null_mut(), |comm| comm.stream.raw().cast());
        let streams = TaskStreams { compute: cuda.compute.raw().cast(), comm };
        cuda.slots.run(&cuda.program, task, Some(streams), &mut *self.runner)?;
        if let Some(comm) = &mut cuda.comm {
            cuda.compute.wait(&comm.stream.mark(&comm.join)?)?;
        }
        trace.end(&cuda.compute)?;
        cuda.last_done = Some(cuda.compute.mark(cuda.events.done(self.instruction))?);
        cuda.watch.record(self.instruction, cuda.step);
        Ok(())
    }

    fn free(&mut self, buffer: BufferId) {
        self.cuda.slots.release(buffer.index());
        self.cuda.buffers[buffer.index()].free.clone_from(&self.cuda.last_done);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.cuda.transport.notice()
    }
}
