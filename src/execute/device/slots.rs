//! The buffers of a rank's program: where the tensors of each message are, and how tasks are handed them.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::{Place, Tensor};
use crate::error::Result;
use crate::execute::boundary::{Boundaries, TENSOR_ALIGNMENT};
use crate::execute::rank::Stop;
use crate::execute::task::{PassTensors, TaskRun, TaskRunner, TaskStreams};
use crate::ids::Microbatch;
use crate::op::{Op, Pass, StageCopy, Task};
use crate::program::{BufferId, PassBuffers, Program};

/// Memory that the caller brings for tensors, instead of the executor's own.
///
/// On a device it is memory of that device, used and given back in the order of the compute stream: what
/// [`Memory::allocate`] returns may still be in use by what was enqueued there before, and what [`Memory::release`]
/// gets may be used again by what is enqueued there afterwards.
pub trait Memory: Send {
    /// Memory for a tensor that is to be received: aligned for its elements, with a word that comes back with it.
    /// `Err` ends the step.
    fn allocate(&mut self, tensor: &Tensor) -> std::result::Result<(NonNull<u8>, *mut c_void), String>;

    /// The executor does not use the memory any more: what [`Memory::allocate`] gave, or what a task put into an
    /// output. Called once for each.
    fn release(&mut self, data: NonNull<u8>, owner: *mut c_void);
}

/// Memory of the executor's own for one buffer.
pub(crate) trait Room {
    /// Where it is, aligned to [`TENSOR_ALIGNMENT`].
    fn data(&self) -> NonNull<u8>;
    /// How much it is.
    fn bytes(&self) -> usize;
}

/// The buffers of a rank.
pub(crate) struct Slots<R> {
    place: Place,
    /// Whether shapes travel with the tensors, so that tasks may change them.
    exchanges_shapes: bool,
    boundaries: Boundaries,
    slots: Vec<Slot<R>>,
    memory: Option<Box<dyn Memory>>,
}

/// One buffer of the program.
struct Slot<R> {
    boundary: StageCopy,
    /// The executor's own memory for it, unless the caller brings his.
    own: Option<R>,
    tensors: Vec<Tensor>,
}

impl<R: Room> Slots<R> {
    /// Empty buffers, with memory for the largest that may come.
    pub(crate) fn new(
        program: &Program,
        place: Place,
        exchanges_shapes: bool,
        boundaries: Boundaries,
        memory: Option<Box<dyn Memory>>,
        allocate: impl FnMut(usize) -> Result<R>,
    ) -> Result<Slots<R>> {
        let slot = |boundary| Slot { boundary, own: None, tensors: Vec::new() };
        let slots = program.buffers().iter().map(|buffer| slot(buffer.boundary)).collect();
        let mut slots = Slots { place, exchanges_shapes, boundaries: boundaries.clone(), slots, memory };
        slots.set_boundaries(boundaries, allocate)?;
        Ok(slots)
    }

    /// Other shapes from the next step on.
    pub(crate) fn set_boundaries(
        &mut self,
        boundaries: Boundaries,
        mut allocate: impl FnMut(usize) -> Result<R>,
    ) -> Result<()> {
        for slot in &mut self.slots {
            let (bytes, count) = boundaries.largest_after(slot.boundary);
            if self.memory.is_none() && slot.own.as_ref().is_none_or(|own| own.bytes() < bytes) {
                slot.own = Some(allocate(bytes)?);
            }
            slot.tensors.reserve(count);
        }
        self.boundaries = boundaries;
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The most tensors that each may hold.
    pub(crate) fn capacities(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().map(|slot| slot.tensors.capacity())
    }

    /// The most bytes that a message of any rank may have, each tensor aligned.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.boundaries.largest()
    }

    /// Whether the caller brings the memory.
    pub(crate) fn are_callers(&self) -> bool {
        self.memory.is_some()
    }

    /// The tensors in a buffer; none if it is free.
    pub(crate) fn tensors(&self, buffer: BufferId) -> &[Tensor] {
        &self.slots[buffer.index()].tensors
    }

    /// The tensors in a buffer, to change.
    pub(crate) fn tensors_mut(&mut self, buffer: BufferId) -> &mut [Tensor] {
        &mut self.slots[buffer.index()].tensors
    }

    /// Lays the tensors of a micro-batch out in a buffer.
    pub(crate) fn lay_out(&mut self, buffer: BufferId, microbatch: Microbatch) {
        let slot = &mut self.slots[buffer.index()];
        slot.tensors.clear();
        let mut offset = 0;
        for spec in self.boundaries.after(slot.boundary, microbatch) {
            let mut tensor = Tensor::without_data(spec, self.place);
            if self.exchanges_shapes {
                tensor.allow_resize();
            }
            if let Some(own) = &slot.own {
                let data = NonNull::new(own.data().as_ptr().wrapping_add(offset));
                // SAFETY: the room holds the largest micro-batch's tensors, aligned as here, and lives as long as the
                // slot.
                data.into_iter().for_each(|data| unsafe { tensor.adopt(data, std::ptr::null_mut()) });
            }
            offset += tensor.bytes().next_multiple_of(TENSOR_ALIGNMENT);
            slot.tensors.push(tensor);
        }
    }

    /// As [`Slots::lay_out`], for a message that is to be received: with the caller's memory if that is whose it is.
    pub(crate) fn lay_out_receive(
        &mut self,
        buffer: BufferId,
        microbatch: Microbatch,
    ) -> std::result::Result<(), Stop> {
        self.lay_out(buffer, microbatch);
        let Some(memory) = &mut self.memory else { return Ok(()) };
        for tensor in self.slots[buffer.index()].tensors.iter_mut().filter(|tensor| tensor.bytes() > 0) {
            let (data, owner) = memory.allocate(tensor).map_err(Stop::Callback)?;
            // SAFETY: `Memory::allocate` promises memory for the tensor until it is released.
            unsafe { tensor.adopt(data, owner) };
        }
        Ok(())
    }

    /// Empties a buffer.
    pub(crate) fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if let Some(memory) = &mut self.memory {
            for tensor in &slot.tensors {
                if let Some(data) = tensor.data() {
                    memory.release(data, tensor.owner());
                }
            }
        }
        slot.tensors.clear();
    }

    /// Empties all of them.
    pub(crate) fn release_all(&mut self) {
        (0..self.slots.len()).for_each(|index| self.release(index));
    }

    /// Gives all memory up without freeing it: something may still be using it.
    pub(crate) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.own.take());
            slot.tensors.clear();
        }
    }

    /// Runs a task on the tensors that it reads and writes.
    pub(crate) fn run(
        &mut self,
        program: &Program,
        task: Task,
        streams: Option<TaskStreams>,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Stop> {
        let Task::Op(op) = task else {
            let mut run = TaskRun { task, streams, forward: None, backward: None };
            return runner.run(&mut run).map_err(Stop::Callback);
        };
        let (_, written) = program.reads_and_writes(op);
        let made_by = [op.forward(), op.backward_input()];
        for (buffer, pass) in written.into_iter().zip(made_by) {
            if let (Some(buffer), Some(pass)) = (buffer, pass) {
                self.lay_out(buffer, pass.microbatch);
            }
        }
        let backward = op.backward_input().or(op.backward_weight());
        let mut forward = op.forward().map(|pass| self.take(program, pass, op, true));
        let mut backward = backward.map(|pass| self.take(program, pass, op, false));
        let mut run = TaskRun {
            task,
            streams,
            forward: forward.as_mut().map(Taken::lend),
            backward: backward.as_mut().map(Taken::lend),
        };
        let ran = runner.run(&mut run).map_err(Stop::Callback);
        [forward, backward].into_iter().flatten().for_each(|taken| self.put_back(taken));
        ran?;
        let kinds = [("output", true), ("input gradient", false)];
        for (buffer, (name, is_activation)) in written.into_iter().zip(kinds) {
            let Some(buffer) = buffer else { continue };
            for (i, tensor) in self.tensors(buffer).iter().enumerate() {
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

    /// Moves the tensors of a pass out of their slots, so that the task can have some of them to read, some to write.
    fn take(&mut self, program: &Program, pass: Pass, op: Op, is_forward: bool) -> Taken {
        let buffers = program.pass_buffers(pass);
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
            Some(id) => std::mem::take(&mut self.slots[id.index()].tensors),
            None => Vec::new(),
        });
        Taken { pass, ids, tensors }
    }

    fn put_back(&mut self, taken: Taken) {
        for (id, tensors) in taken.ids.into_iter().zip(taken.tensors) {
            if let Some(id) = id {
                self.slots[id.index()].tensors = tensors;
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
