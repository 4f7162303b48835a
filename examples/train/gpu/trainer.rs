//! The stage copies of one rank on a device: [`crate::trainer`], with tensors that stay there.

use std::collections::BTreeMap;
use std::sync::Arc;

use dualpipe::execute::{CudaOptions, Place, TaskRun, Tensor};
use dualpipe::ids::Microbatch;
use dualpipe::op::{Op, Pass, StageCopy};

use super::driver::{CUdeviceptr, CUstream, Device, Event, Memory, Stream};
use super::layout::{Block, Matrices, Offsets, Scratch, Sizes, Slot};
use super::queue::Queue;
use super::stage::StagePass;
use crate::compare::Tolerance;
use crate::model::{Config, StageModel, Tensors};
use crate::optimizer::{factors, BETA_1, BETA_2, EPSILON};
use crate::rank::{check_all_came_back, not_here, Reduction, Trainer};
use crate::text::Batch;

/// The stage copies of one rank.
///
/// Passes are enqueued, in the order of the calls, on the stream that they are given: [`GpuTrainer::stream`], or one
/// that runs in order with it.
pub(crate) struct GpuTrainer {
    // Before the copies, so that it is dropped, and waited for, first.
    stream: OwnStream,
    sizes: Sizes,
    copies: Vec<(StageCopy, GpuCopy)>,
    batch: Arc<Batch>,
    /// Tokens, then targets, of all micro-batches: a byte each.
    bytes: Option<Memory>,
}

/// Done with everything when it is dropped, so that memory can go.
struct OwnStream(Stream);

impl Drop for OwnStream {
    fn drop(&mut self) {
        // A device that has failed will not use the memory either.
        let _ = self.0.synchronize();
    }
}

/// What a pass reads from one neighbour and writes for the other, on the device: `[tokens, width]` of f32.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GpuBoundary {
    pub(crate) input: Option<CUdeviceptr>,
    pub(crate) output: Option<CUdeviceptr>,
}

/// One stage copy.
struct GpuCopy {
    /// The parameters at the start, for their names and shapes.
    template: Tensors,
    offsets: Offsets,
    params: Memory,
    /// Sums over the micro-batches of the step.
    grads: Arc<Memory>,
    /// The same, plus the twin's, once they have been reduced.
    reduced: Option<Memory>,
    /// When `grads` is whole.
    ready: Arc<Event>,
    first_moments: Memory,
    second_moments: Memory,
    num_steps: i32,
    /// Tokens sent to each expert since the start, u64.
    loads: Memory,
    /// Over the step's micro-batches, f64.
    loss_sum: Memory,
    scratch: Block<Scratch>,
    slots: Vec<Block<Slot>>,
    free_slots: Vec<usize>,
    /// Slots of micro-batches that have gone forward, and of those that have come back but for W.
    saved: BTreeMap<Microbatch, usize>,
    pending: BTreeMap<Microbatch, usize>,
}

/// The gradients of a copy, for its twin.
#[derive(Clone)]
pub(crate) struct GivenGradients {
    grads: Arc<Memory>,
    ready: Arc<Event>,
}

impl GpuCopy {
    fn new(
        copy: StageCopy,
        sizes: &Sizes,
        seed: u64,
        device: &Arc<Device>,
        stream: &Stream,
    ) -> Result<Self, String> {
        let model: StageModel = StageModel::new(&sizes.config, copy.stage.index(), seed);
        let template = model.params;
        let offsets = Offsets::of(&template, sizes)?;
        let zeros = |num_bytes| Memory::zeros(device, num_bytes, stream.raw());
        let floats = || zeros(offsets.count * size_of::<f32>());
        let params = floats()?;
        params.upload(&template.iter().copied().collect::<Vec<f32>>(), stream)?;
        Ok(GpuCopy {
            params,
            grads: Arc::new(floats()?),
            reduced: None,
            ready: Arc::new(Event::new(device)?),
            first_moments: floats()?,
            second_moments: floats()?,
            num_steps: 0,
            loads: zeros(sizes.experts * size_of::<u64>())?,
            loss_sum: zeros(size_of::<f64>())?,
            scratch: Block::new(device, stream.raw(), |parts| Scratch::place(sizes, parts))?,
            slots: Vec::new(),
            free_slots: Vec::new(),
            saved: BTreeMap::new(),
            pending: BTreeMap::new(),
            template,
            offsets,
        })
    }

    fn gradients(&self) -> &Memory {
        self.reduced.as_ref().unwrap_or(&self.grads)
    }

    /// A slot for another micro-batch: a free one, or a new one.
    fn take_slot(&mut self, copy: StageCopy, sizes: &Sizes, queue: Queue<'_>) -> Result<usize, String> {
        if let Some(slot) = self.free_slots.pop() {
            return Ok(slot);
        }
        let (is_first, is_last) = ends(copy, sizes);
        let block = Block::new(self.params.device(), queue.stream, |parts| {
            Slot::place(sizes, is_first, is_last, parts)
        })?;
        self.slots.push(block);
        Ok(self.slots.len() - 1)
    }

    /// The numbers of `memory`, in the shapes of the parameters.
    fn tensors(&self, memory: &Memory, stream: &Stream) -> Result<Tensors, String> {
        let mut tensors = self.template.zeros_like();
        let values = memory.download::<f32>(self.offsets.count, stream)?;
        for (to, from) in tensors.iter_mut().zip(values) {
            *to = from;
        }
        Ok(tensors)
    }
}

/// Whether the copy's stage is the first, and whether it is the last.
fn ends(copy: StageCopy, sizes: &Sizes) -> (bool, bool) {
    let stage = copy.stage.index();
    (stage == 0, stage + 1 == sizes.config.num_stages)
}

impl GpuTrainer {
    /// The rank that holds `copies`, with the weights that `seed` draws, on a stream of its own.
    pub(crate) fn new(
        device: &Arc<Device>,
        config: Config,
        copies: &[StageCopy],
        seed: u64,
    ) -> Result<GpuTrainer, String> {
        let sizes = Sizes::new(config)?;
        let stream = OwnStream(Stream::new(device)?);
        let with_copy = |&copy: &StageCopy| Ok((copy, GpuCopy::new(copy, &sizes, seed, device, &stream.0)?));
        let copies = copies.iter().map(with_copy).collect::<Result<_, String>>()?;
        Ok(GpuTrainer { stream, sizes, copies, batch: Arc::new(Batch::default()), bytes: None })
    }

    /// How an executor computes on the trainer's stream. It must be dropped before the trainer.
    pub(crate) fn executor_options(&self, uses_graph: bool) -> CudaOptions {
        let mut options = self.stream.0.compute_options();
        (options.is_timed, options.uses_graph) = (true, uses_graph);
        options
    }

    /// The stream that the trainer itself uses. It lives as long as the trainer.
    pub(crate) fn stream(&self) -> CUstream {
        self.stream.0.raw()
    }

    /// Enqueues `op`: `forward` are the tensors of its forward pass, `backward` those of its backward for the input.
    pub(crate) fn run(
        &mut self,
        op: Op,
        forward: GpuBoundary,
        backward: GpuBoundary,
        stream: CUstream,
    ) -> Result<(), String> {
        if let Some(pass) = op.forward() {
            self.forward(pass, forward, stream)?;
        }
        if let Some(pass) = op.backward_input() {
            self.backward_input(pass, backward, stream)?;
        }
        if let Some(pass) = op.backward_weight() {
            self.backward_weight(pass, stream)?;
        }
        Ok(())
    }

    /// F: reads the input (none at stage 0), writes the output (none at the last stage).
    pub(crate) fn forward(
        &mut self,
        pass: Pass,
        tensors: GpuBoundary,
        stream: CUstream,
    ) -> Result<(), String> {
        let (sizes, targets) = (self.sizes, self.bytes(pass, Side::Targets)?);
        let copy = self.copy_mut(pass.copy())?;
        let device = Arc::clone(copy.params.device());
        let queue = Queue { device: &device, stream };
        let slot = copy.take_slot(pass.copy(), &sizes, queue)?;
        copy.saved.insert(pass.microbatch, slot);
        let (loads, loss_sum) = (copy.loads.address(), copy.loss_sum.address());
        let GpuBoundary { input, output } = tensors;
        self.stage_pass(pass, slot, queue)?.forward(input, output, targets, loads, loss_sum)
    }

    /// I: reads the output's gradient (none at the last stage), writes the input's (none at stage 0).
    pub(crate) fn backward_input(
        &mut self,
        pass: Pass,
        tensors: GpuBoundary,
        stream: CUstream,
    ) -> Result<(), String> {
        let copy = self.copy_mut(pass.copy())?;
        let slot = copy.saved.remove(&pass.microbatch).ok_or("its forward has not run")?;
        copy.pending.insert(pass.microbatch, slot);
        let device = Arc::clone(copy.params.device());
        let queue = Queue { device: &device, stream };
        self.stage_pass(pass, slot, queue)?.backward_input(tensors.input, tensors.output)
    }

    /// W: adds to the copy's gradients.
    pub(crate) fn backward_weight(&mut self, pass: Pass, stream: CUstream) -> Result<(), String> {
        let copy = self.copy_mut(pass.copy())?;
        let slot = copy.pending.remove(&pass.microbatch).ok_or("its backward for the input has not run")?;
        // Whoever takes it is enqueued after this.
        copy.free_slots.push(slot);
        let device = Arc::clone(copy.params.device());
        let queue = Queue { device: &device, stream };
        let copy = self.copy(pass.copy())?;
        let grads = Matrices { offsets: &copy.offsets, start: copy.grads.address() };
        self.stage_pass(pass, slot, queue)?.backward_weight(grads)
    }

    /// The stage copies, in the order in which they were given.
    #[cfg(test)]
    pub(crate) fn copies(&self) -> impl Iterator<Item = StageCopy> + '_ {
        self.copies.iter().map(|(copy, _)| *copy)
    }

    /// What is in `memory` when the stream has come here.
    #[cfg(test)]
    pub(crate) fn download(&self, memory: &Memory, count: usize) -> Vec<f32> {
        memory.download(count, &self.stream.0).unwrap()
    }

    fn stage_pass<'a>(&'a self, pass: Pass, slot: usize, queue: Queue<'a>) -> Result<StagePass<'a>, String> {
        let copy = self.copy(pass.copy())?;
        let (is_first, is_last) = ends(pass.copy(), &self.sizes);
        let slot = copy.slots.get(slot).ok_or("its slot is gone")?;
        Ok(StagePass {
            queue,
            sizes: &self.sizes,
            params: Matrices { offsets: &copy.offsets, start: copy.params.address() },
            slot: slot.parts,
            scratch: copy.scratch.parts,
            tokens: self.bytes(pass, Side::Tokens)?,
            is_first,
            is_last,
        })
    }

    /// Where the bytes of a micro-batch are.
    fn bytes(&self, pass: Pass, side: Side) -> Result<CUdeviceptr, String> {
        let index = self.batch.index(pass)?;
        let before = match side {
            Side::Tokens => index,
            Side::Targets => self.batch.num_microbatches() + index,
        };
        let bytes = self.bytes.as_ref().ok_or("no step has begun")?;
        Ok(bytes.address() + (before * self.sizes.tokens) as CUdeviceptr)
    }

    fn copy(&self, copy: StageCopy) -> Result<&GpuCopy, String> {
        let found = self.copies.iter().find(|(c, _)| *c == copy);
        found.map(|(_, found)| found).ok_or_else(|| not_here(copy))
    }

    fn copy_mut(&mut self, copy: StageCopy) -> Result<&mut GpuCopy, String> {
        let found = self.copies.iter_mut().find(|(c, _)| *c == copy);
        found.map(|(_, found)| found).ok_or_else(|| not_here(copy))
    }
}

/// The work is enqueued on [`GpuTrainer::stream`], on which the rank's executor computes too.
impl Trainer for GpuTrainer {
    type Gradients = GivenGradients;

    const REDUCTION: Reduction = Reduction::AfterTheStep;
    const TOLERANCE: Tolerance = Tolerance::DEVICE;

    /// A captured step goes on with the memory that it was captured with: batches must not grow.
    fn begin_step(&mut self, batch: Arc<Batch>) -> Result<(), String> {
        let stream = &self.stream.0;
        let tokens = batch.microbatches().iter().map(|microbatch| &microbatch.tokens);
        let targets = batch.microbatches().iter().map(|microbatch| &microbatch.targets);
        let bytes: Vec<u8> = tokens.chain(targets).flatten().copied().collect();
        if bytes.len() != 2 * batch.num_microbatches() * self.sizes.tokens {
            return Err(format!("a micro-batch does not have {} tokens", self.sizes.tokens));
        }
        if let Some((_, copy)) = self.copies.first() {
            if self.batch.num_microbatches() < batch.num_microbatches() {
                stream.synchronize()?;
                self.bytes = None;
            }
            if self.bytes.is_none() {
                self.bytes = Some(Memory::zeros(copy.params.device(), bytes.len(), stream.raw())?);
            }
        }
        self.batch = batch;
        for (_, copy) in &mut self.copies {
            copy.grads.clear(stream.raw())?;
            copy.loss_sum.clear(stream.raw())?;
            // Of a step that failed.
            let left = std::mem::take(&mut copy.saved).into_values();
            copy.free_slots.extend(left.chain(std::mem::take(&mut copy.pending).into_values()));
        }
        self.bytes.as_ref().map_or(Ok(()), |memory| memory.upload(&bytes, stream))
    }

    fn run_op(&mut self, op: Op, run: &mut TaskRun<'_>) -> Result<(), String> {
        let streams = run.streams.ok_or("the task has no stream")?;
        let forward = match &run.forward {
            None => GpuBoundary::default(),
            Some(pass) => GpuBoundary { input: address(pass.inputs)?, output: address(pass.outputs)? },
        };
        let backward = match &run.backward {
            None => GpuBoundary::default(),
            Some(pass) => {
                GpuBoundary { input: address(pass.output_grads)?, output: address(pass.input_grads)? }
            }
        };
        self.run(op, forward, backward, streams.compute.cast())
    }

    fn give_gradients(&self, copy: StageCopy) -> Result<GivenGradients, String> {
        let copy = self.copy(copy)?;
        copy.ready.record(self.stream())?;
        Ok(GivenGradients { grads: Arc::clone(&copy.grads), ready: Arc::clone(&copy.ready) })
    }

    /// The twin must not begin another step before that is done.
    fn reduce(&mut self, copy: StageCopy, twin: &GivenGradients) -> Result<(), String> {
        let stream = self.stream();
        let copy = self.copy_mut(copy)?;
        let device = Arc::clone(copy.params.device());
        let queue = Queue { device: &device, stream };
        let count = copy.offsets.count;
        if copy.reduced.is_none() {
            copy.reduced = Some(Memory::zeros(&device, count * size_of::<f32>(), stream)?);
        }
        let Some(reduced) = &copy.reduced else { return Ok(()) };
        twin.ready.wait(&device, stream)?;
        let other = if twin.grads.device().shares_memory_with(&device) {
            twin.grads.address()
        } else {
            reduced.copy_from(&twin.grads, stream)?;
            reduced.address()
        };
        queue.add(copy.grads.address(), other, reduced.address(), count)
    }

    fn update(&mut self) -> Result<(), String> {
        let stream = self.stream();
        let scale = 1.0 / self.batch.num_microbatches() as f32;
        for (copy, trainer) in &self.copies {
            check_all_came_back(*copy, trainer.saved.len(), trainer.pending.len())?;
        }
        for (_, copy) in &mut self.copies {
            copy.num_steps = copy.num_steps.saturating_add(1);
            let (rate, second_scale) = factors(copy.num_steps);
            let memories = [&copy.params, copy.gradients(), &copy.first_moments, &copy.second_moments];
            let queue = Queue { device: copy.params.device(), stream };
            let factors = [scale, rate, second_scale, BETA_1, BETA_2, EPSILON];
            queue.adam(memories.map(Memory::address), factors, copy.offsets.count)?;
        }
        Ok(())
    }

    fn loss_sum(&self) -> Result<f64, String> {
        let losses =
            self.copies.iter().map(|(_, copy)| Ok(copy.loss_sum.download::<f64>(1, &self.stream.0)?[0]));
        losses.sum()
    }

    fn expert_loads(&self, copy: StageCopy) -> Result<Vec<u64>, String> {
        self.copy(copy)?.loads.download(self.sizes.experts, &self.stream.0)
    }

    fn grads(&self, copy: StageCopy) -> Result<Tensors, String> {
        let copy = self.copy(copy)?;
        copy.tensors(copy.gradients(), &self.stream.0)
    }

    fn params(&self, copy: StageCopy) -> Result<Tensors, String> {
        let copy = self.copy(copy)?;
        copy.tensors(&copy.params, &self.stream.0)
    }
}

/// Where the one tensor of a boundary is; at the ends of the model there is none.
fn address(tensors: &[Tensor]) -> Result<Option<CUdeviceptr>, String> {
    let Some(tensor) = tensors.first() else { return Ok(None) };
    match (tensor.place(), tensor.data()) {
        (Place::Cuda(_), Some(data)) => Ok(Some(data.addr().get() as CUdeviceptr)),
        _ => Err("a boundary tensor is not on a device".into()),
    }
}

#[derive(Clone, Copy)]
enum Side {
    Tokens,
    Targets,
}
