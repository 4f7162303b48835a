//! The host: tensors in ordinary memory, tasks on the thread that runs the rank.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::NonNull;

use super::Tensor;
use crate::error::{Error, ErrorKind, Result};
use crate::execute::boundary::{Boundaries, TENSOR_ALIGNMENT};
use crate::execute::fault::Notice;
use crate::execute::rank::{Stop, World};
use crate::execute::record::Recorder;
use crate::execute::task::{PassTensors, TaskRun, TaskRunner};
use crate::execute::transport::{channel, tag, Request, Transfer, Transport};
use crate::ids::{Microbatch, Rank};
use crate::op::{Message, Op, Pass, StageCopy, Task};
use crate::program::{BufferId, PassBuffers, Program};

/// Memory that the caller brings for tensors, instead of the executor's own.
pub trait Memory: Send {
    /// Memory for a tensor that is to be received: aligned for its elements, with a word that comes back with it.
    /// `Err` ends the step.
    fn allocate(&mut self, tensor: &Tensor) -> std::result::Result<(NonNull<u8>, *mut c_void), String>;

    /// The executor does not use the memory any more: what [`Memory::allocate`] gave, or what a task put into an
    /// output. Called once for each.
    fn release(&mut self, data: NonNull<u8>, owner: *mut c_void);
}

/// A rank's buffers and its end of the transport.
pub(crate) struct Host {
    transport: Box<dyn Transport>,
    boundaries: Boundaries,
    slots: Vec<Slot>,
    memory: Option<Box<dyn Memory>>,
    step: u16,
    pub(crate) recorder: Recorder,
}

/// One buffer of the program.
struct Slot {
    boundary: StageCopy,
    /// The executor's own memory for it, unless the caller brings his.
    own: Option<Allocation>,
    tensors: Vec<Tensor>,
    /// Of the tensors that are still being transferred, the request.
    requests: Vec<Option<Request>>,
    posted_ns: u64,
}

impl Host {
    pub(crate) fn new(
        program: &Program,
        boundaries: Boundaries,
        mut transport: Box<dyn Transport>,
        memory: Option<Box<dyn Memory>>,
    ) -> Result<Host> {
        let mut slots = Vec::with_capacity(program.buffers().len());
        for buffer in program.buffers() {
            let (bytes, count) = boundaries.largest_after(buffer.boundary);
            slots.push(Slot {
                boundary: buffer.boundary,
                own: if memory.is_none() { Some(Allocation::zeroed(bytes)?) } else { None },
                tensors: Vec::with_capacity(count),
                requests: Vec::with_capacity(count),
                posted_ns: 0,
            });
        }
        transport.reserve(slots.iter().map(|slot| slot.tensors.capacity()).sum());
        Ok(Host { transport, boundaries, slots, memory, step: 0, recorder: Recorder::new(program) })
    }

    /// Other shapes from the next step on.
    pub(crate) fn set_boundaries(&mut self, boundaries: Boundaries) -> Result<()> {
        for slot in &mut self.slots {
            let (bytes, count) = boundaries.largest_after(slot.boundary);
            if slot.own.as_ref().is_some_and(|own| own.layout.size() < bytes) {
                slot.own = Some(Allocation::zeroed(bytes)?);
            }
            slot.tensors.reserve(count);
            slot.requests.reserve(count);
        }
        self.transport.reserve(self.slots.iter().map(|slot| slot.tensors.capacity()).sum());
        self.boundaries = boundaries;
        Ok(())
    }

    pub(crate) fn start(&mut self) {
        self.step = self.step.wrapping_add(1);
        let now_ns = self.transport.now_ns();
        self.recorder.start(now_ns);
    }

    pub(crate) fn transport(&mut self) -> &mut dyn Transport {
        &mut *self.transport
    }

    /// Gives everything back, wherever the step stopped.
    pub(crate) fn stop(&mut self) {
        self.transport.withdraw();
        (0..self.slots.len()).for_each(|i| self.release(i));
    }

    /// Lays the tensors of a micro-batch out in a buffer.
    fn lay_out(&mut self, buffer: BufferId, microbatch: Microbatch) -> &mut Slot {
        let slot = &mut self.slots[buffer.index()];
        slot.tensors.clear();
        let mut offset = 0;
        for spec in self.boundaries.after(slot.boundary, microbatch) {
            let mut tensor = Tensor::without_data(spec);
            if let Some(own) = &slot.own {
                // SAFETY: the allocation holds the largest micro-batch's tensors, aligned as here, and lives as long
                // as the slot.
                unsafe { tensor.adopt(own.data.add(offset), std::ptr::null_mut()) };
            }
            offset += tensor.bytes().next_multiple_of(TENSOR_ALIGNMENT);
            slot.tensors.push(tensor);
        }
        slot
    }

    fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if let Some(memory) = &mut self.memory {
            for tensor in &slot.tensors {
                if let Some(data) = tensor.data() {
                    memory.release(data, tensor.owner());
                }
            }
        }
        slot.tensors.clear();
        slot.requests.clear();
    }

    fn transfer(&self, message: Message, peer: Rank, buffer: BufferId, tensor: usize) -> Transfer {
        let t = &self.slots[buffer.index()].tensors[tensor];
        Transfer {
            peer,
            channel: channel(message),
            tag: tag(message, self.step, tensor),
            data: t.data().unwrap_or(NonNull::dangling()),
            bytes: if t.is_present() { t.bytes() } else { 0 },
        }
    }

    /// When the message was sent, once all its tensors have been transferred.
    fn test(&mut self, peer: Rank, buffer: BufferId) -> std::result::Result<Option<u64>, Stop> {
        let slot = &mut self.slots[buffer.index()];
        let mut sent_ns = slot.posted_ns;
        for (i, pending) in slot.requests.iter_mut().enumerate() {
            let Some(request) = *pending else { continue };
            let Some(completion) = self.transport.test(request, peer)? else { return Ok(None) };
            *pending = None;
            let tensor = &mut slot.tensors[i];
            let expected = if tensor.is_present() { tensor.bytes() } else { 0 };
            if completion.bytes == 0 {
                tensor.set_present(expected == 0 && tensor.is_present());
            } else if completion.bytes != expected {
                let (got, rank) = (completion.bytes, peer);
                let text = format!(
                    "tensor {i} has {got} bytes, not {expected}: does rank {rank} have the same shapes?"
                );
                return Err(Stop::Transport(text));
            }
            sent_ns = completion.sent_ns.unwrap_or(sent_ns);
        }
        Ok(Some(sent_ns))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A host and the callback of the step: all that surrounds a rank.
pub(crate) struct HostWorld<'a> {
    pub(crate) host: &'a mut Host,
    pub(crate) program: &'a Program,
    pub(crate) runner: &'a mut dyn TaskRunner,
}

impl World for HostWorld<'_> {
    fn now_ns(&mut self) -> u64 {
        self.host.transport.now_ns()
    }

    fn receive(&mut self, message: Message, from: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        let host = &mut *self.host;
        // Freed buffers have no tensors: if there are some, the transport could not take all of them before.
        if host.slots[buffer.index()].tensors.is_empty() {
            let slot = host.lay_out(buffer, message.pass.microbatch);
            let count = slot.tensors.len();
            for i in 0..count {
                let tensor = &mut host.slots[buffer.index()].tensors[i];
                if let Some(memory) = host.memory.as_mut().filter(|_| tensor.bytes() > 0) {
                    let (data, owner) = memory.allocate(tensor).map_err(Stop::Callback)?;
                    // SAFETY: `Memory::allocate` promises memory for the tensor until it is released.
                    unsafe { tensor.adopt(data, owner) };
                }
            }
            host.slots[buffer.index()].posted_ns = host.transport.now_ns();
        }
        for i in host.slots[buffer.index()].requests.len()..host.slots[buffer.index()].tensors.len() {
            let transfer = host.transfer(message, from, buffer, i);
            // SAFETY: the buffer belongs to this message until `free`, which comes after the transfer has ended, or
            // `stop`, which withdraws it first.
            match unsafe { host.transport.receive(transfer) }? {
                Some(request) => host.slots[buffer.index()].requests.push(Some(request)),
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
        self.host.recorder.message(message, from, self.program.rank(), sent_ns, now_ns);
        Ok(true)
    }

    fn send(&mut self, message: Message, to: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        let host = &mut *self.host;
        for i in host.slots[buffer.index()].requests.len()..host.slots[buffer.index()].tensors.len() {
            let transfer = host.transfer(message, to, buffer, i);
            // SAFETY: nobody writes to the buffer before `free`, which comes after the transfer has ended, or `stop`,
            // which withdraws it first.
            match unsafe { host.transport.send(transfer) }? {
                Some(request) => host.slots[buffer.index()].requests.push(Some(request)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn is_sent(&mut self, _: Message, to: Rank, buffer: BufferId) -> std::result::Result<bool, Stop> {
        Ok(self.host.test(to, buffer)?.is_some())
    }

    fn run(&mut self, task: Task) -> std::result::Result<(), Stop> {
        let start_ns = self.host.transport.now_ns();
        let ran = match task {
            Task::Op(op) => self.run_op(op),
            Task::ReduceGrads(_) => self.call(TaskRun { task, forward: None, backward: None }),
        };
        let end_ns = self.host.transport.now_ns();
        self.host.recorder.task(task, start_ns, end_ns);
        ran
    }

    fn free(&mut self, buffer: BufferId) {
        self.host.release(buffer.index());
    }

    fn notice(&mut self) -> Option<Notice> {
        self.host.transport.notice()
    }
}

impl HostWorld<'_> {
    fn run_op(&mut self, op: Op) -> std::result::Result<(), Stop> {
        let (_, written) = self.program.reads_and_writes(op);
        let made_by = [op.forward(), op.backward_input()];
        for (buffer, pass) in written.into_iter().zip(made_by) {
            if let (Some(buffer), Some(pass)) = (buffer, pass) {
                self.host.lay_out(buffer, pass.microbatch);
            }
        }
        let backward = op.backward_input().or(op.backward_weight());
        let mut forward = op.forward().map(|pass| self.take(pass, op, true));
        let mut backward = backward.map(|pass| self.take(pass, op, false));
        let ran = self.call(TaskRun {
            task: Task::Op(op),
            forward: forward.as_mut().map(Taken::lend),
            backward: backward.as_mut().map(Taken::lend),
        });
        [forward, backward].into_iter().flatten().for_each(|taken| self.put_back(taken));
        ran?;
        let kinds = [("output", true), ("input gradient", false)];
        for (buffer, (name, is_activation)) in written.into_iter().zip(kinds) {
            let Some(buffer) = buffer else { continue };
            for (i, tensor) in self.host.slots[buffer.index()].tensors.iter().enumerate() {
                if is_activation && !tensor.is_present() {
                    return Err(Stop::Callback(format!("it left {name} {i} absent, only gradients may be")));
                }
                if tensor.is_present() && tensor.data().is_none() && tensor.bytes() > 0 {
                    return Err(Stop::Callback(format!("it left {name} {i} without memory")));
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, mut run: TaskRun<'_>) -> std::result::Result<(), Stop> {
        self.runner.run(&mut run).map_err(Stop::Callback)
    }

    /// Moves the tensors of a pass out of their slots, so that the task can have some of them to read, some to write.
    fn take(&mut self, pass: Pass, op: Op, is_forward: bool) -> Taken {
        let buffers = self.program.pass_buffers(pass);
        let writes_grad = op.backward_input() == Some(pass);
        let used = match is_forward {
            true => PassBuffers { input: buffers.input, output: buffers.output, ..PassBuffers::default() },
            false => PassBuffers {
                output: None,
                input_grad: buffers.input_grad.filter(|_| writes_grad),
                ..buffers
            },
        };
        let ids = [used.input, used.output, used.output_grad, used.input_grad];
        let tensors = ids.map(|id| match id {
            Some(id) => std::mem::take(&mut self.host.slots[id.index()].tensors),
            None => Vec::new(),
        });
        Taken { pass, ids, tensors }
    }

    fn put_back(&mut self, taken: Taken) {
        for (id, tensors) in taken.ids.into_iter().zip(taken.tensors) {
            if let Some(id) = id {
                self.host.slots[id.index()].tensors = tensors;
            }
        }
    }
}

/// The tensors of a pass while its task runs: inputs, outputs, output gradients, input gradients.
struct Taken {
    pass: Pass,
    ids: [Option<BufferId>; 4],
    tensors: [Vec<Tensor>; 4],
}

impl Taken {
    fn lend(&mut self) -> PassTensors<'_> {
        let [inputs, outputs, output_grads, input_grads] = &mut self.tensors;
        PassTensors { pass: self.pass, inputs, outputs, output_grads, input_grads }
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

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.data.as_ptr(), self.layout) }
    }
}
