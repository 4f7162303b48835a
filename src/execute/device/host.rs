//! The host: tensors in ordinary memory, tasks on the thread that runs the rank.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::cuda::GraphState;
use super::slots::{Memory, Room, Slots};
use super::{Device, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::execute::boundary::{Boundaries, TENSOR_ALIGNMENT};
use crate::execute::fault::{Fault, Notice};
use crate::execute::rank::{Progress, RankMachine, Stop, World};
use crate::execute::record::Recorder;
use crate::execute::task::TaskRunner;
use crate::execute::transport::stream_ordered::wrong_size;
use crate::execute::transport::{Request, Transfer, Transport};
use crate::ids::Rank;
use crate::op::{Message, Task};
use crate::program::{BufferId, Program};
use crate::timeline::Timeline;

/// A rank's buffers and its end of the transport.
pub(crate) struct Host {
    program: Arc<Program>,
    transport: Box<dyn Transport>,
    slots: Slots<Allocation>,
    transfers: Vec<Transfers>,
    step: u16,
    recorder: Recorder,
}

/// What is on its way into or out of one buffer.
#[derive(Default)]
struct Transfers {
    /// Of the tensors that are still being transferred, the request.
    requests: Vec<Option<Request>>,
    posted_ns: u64,
}

impl Host {
    pub(crate) fn new(
        program: Arc<Program>,
        boundaries: Boundaries,
        transport: Box<dyn Transport>,
        memory: Option<Box<dyn Memory>>,
    ) -> Result<Host> {
        let slots = Slots::new(&program, Place::Host, false, boundaries, memory, Allocation::zeroed)?;
        let transfers = (0..slots.len()).map(|_| Transfers::default()).collect();
        let recorder = Recorder::new(&program);
        let mut host = Host { program, transport, slots, transfers, step: 0, recorder };
        host.reserve();
        Ok(host)
    }

    fn reserve(&mut self) {
        for (transfers, capacity) in self.transfers.iter_mut().zip(self.slots.capacities()) {
            transfers.requests.reserve(capacity);
        }
        self.transport.reserve(self.slots.capacities().sum());
    }

    fn release(&mut self, index: usize) {
        self.slots.release(index);
        self.transfers[index].requests.clear();
    }

    fn transfer(&self, message: Message, peer: Rank, buffer: BufferId, tensor: usize) -> Transfer {
        let t = &self.slots.tensors(buffer)[tensor];
        Transfer {
            peer,
            message,
            tensor,
            step: self.step,
            data: t.data().unwrap_or(NonNull::dangling()),
            bytes: if t.is_present() { t.bytes() } else { 0 },
        }
    }

    /// When the message was sent, once all its tensors have been transferred.
    fn test(&mut self, peer: Rank, buffer: BufferId) -> std::result::Result<Option<u64>, Stop> {
        let transfers = &mut self.transfers[buffer.index()];
        let mut sent_ns = transfers.posted_ns;
        for (i, pending) in transfers.requests.iter_mut().enumerate() {
            let Some(request) = *pending else { continue };
            let Some(completion) = self.transport.test(request, peer)? else { return Ok(None) };
            *pending = None;
            let tensor = &mut self.slots.tensors_mut(buffer)[i];
            let expected = if tensor.is_present() { tensor.bytes() } else { 0 };
            if completion.bytes == 0 {
                tensor.set_present(expected == 0 && tensor.is_present());
            } else if completion.bytes != expected {
                return Err(wrong_size(i, completion.bytes, expected, peer));
            }
            sent_ns = completion.sent_ns.unwrap_or(sent_ns);
        }
        Ok(Some(sent_ns))
    }
}

impl Device for Host {
    fn set_boundaries(&mut self, boundaries: Boundaries) -> Result<()> {
        self.slots.set_boundaries(boundaries, Allocation::zeroed)?;
        self.reserve();
        Ok(())
    }

    fn step(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Fault> {
        self.step = self.step.wrapping_add(1);
        let now_ns = self.transport.now_ns();
        self.recorder.start(now_ns);
        loop {
            match machine.advance(&mut HostWorld { host: self, runner: &mut *runner })? {
                Progress::Finished => return Ok(()),
                Progress::Waiting { deadline_ns, .. } => {
                    let left_ns = deadline_ns.saturating_sub(self.transport.now_ns());
                    self.transport.wait(Duration::from_nanos(left_ns));
                }
            }
        }
    }

    fn synchronize(&mut self, _: Duration) -> std::result::Result<bool, Fault> {
        Ok(true)
    }

    fn fault(&self) -> Option<Fault> {
        None
    }

    /// Gives everything back, wherever the step stopped.
    fn fail(&mut self, notice: &Notice) {
        self.transport.abort(notice);
        self.stop();
    }

    fn graph(&self) -> GraphState {
        GraphState::Off
    }

    fn timeline(&self) -> Result<Timeline> {
        Ok(self.recorder.timeline(&self.program))
    }
}

impl Host {
    fn stop(&mut self) {
        self.transport.withdraw();
        (0..self.slots.len()).for_each(|i| self.release(i));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A host and the callback of the step: all that surrounds a rank.
struct HostWorld<'a> {
    host: &'a mut Host,
    runner: &'a mut dyn TaskRunner,
}

impl World for HostWorld<'_> {
    fn now_ns(&mut self) -> u64 {
        self.host.transport.now_ns()
    }

    fn receive(&mut self, message: Message, from: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        let host = &mut *self.host;
        // Freed buffers have no tensors: if there are some, the transport could not take all of them before.
        if host.slots.tensors(buffer).is_empty() {
            host.slots.lay_out_receive(buffer, message.pass.microbatch)?;
            host.transfers[buffer.index()].posted_ns = host.transport.now_ns();
        }
        for i in host.transfers[buffer.index()].requests.len()..host.slots.tensors(buffer).len() {
            let transfer = host.transfer(message, from, buffer, i);
            // SAFETY: the buffer belongs to this message until `free`, which comes after the transfer has ended, or
            // `stop`, which withdraws it first.
            match unsafe { host.transport.receive(transfer) }? {
                Some(request) => host.transfers[buffer.index()].requests.push(Some(request)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn is_received(
        &mut self,
        message: Message,
        from: Rank,
        buffer: BufferId,
    ) -> std::result::Result<bool, Stop> {
        let Some(sent_ns) = self.host.test(from, buffer)? else { return Ok(false) };
        let now_ns = self.host.transport.now_ns();
        let rank = self.host.program.rank();
        self.host.recorder.message(message, from, rank, sent_ns, now_ns);
        Ok(true)
    }

    fn send(&mut self, message: Message, to: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        let host = &mut *self.host;
        for i in host.transfers[buffer.index()].requests.len()..host.slots.tensors(buffer).len() {
            let transfer = host.transfer(message, to, buffer, i);
            // SAFETY: nobody writes to the buffer before `free`, which comes after the transfer has ended, or `stop`,
            // which withdraws it first.
            match unsafe { host.transport.send(transfer) }? {
                Some(request) => host.transfers[buffer.index()].requests.push(Some(request)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn is_sent(&mut self, _: Message, to: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        Ok(self.host.test(to, buffer)?.is_some())
    }

    fn run(&mut self, task: Task) -> std::result::Result<(), Stop> {
        let host = &mut *self.host;
        let start_ns = host.transport.now_ns();
        let ran = host.slots.run(&host.program, task, None, &mut *self.runner);
        let end_ns = host.transport.now_ns();
        host.recorder.task(task, start_ns, end_ns);
        ran
    }

    fn free(&mut self, buffer: BufferId) {
        self.host.release(buffer.index());
    }

    fn notice(&mut self) -> Option<Notice> {
        self.host.transport.notice()
    }
}

/// Zeroed memory, aligned for any tensor.
struct Allocation {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to whoever has the allocation.
unsafe impl Send for Allocation {}

impl Allocation {
    fn zeroed(bytes: usize) -> Result<Allocation> {
        let too_large =
            || Error::new(ErrorKind::InvalidArgument, format!("executor: no memory for {bytes} bytes"));
        let layout = Layout::from_size_align(bytes.max(1), TENSOR_ALIGNMENT).map_err(|_| too_large())?;
        // SAFETY: the layout is not of size 0.
        let data = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(too_large)?;
        Ok(Allocation { data, layout })
    }
}

impl Room for Allocation {
    fn data(&self) -> NonNull<u8> {
        self.data
    }

    fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.data.as_ptr(), self.layout) }
    }
}
