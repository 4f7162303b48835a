//! The step on the pipeline: 4 ranks, each a thread of this process, on one device.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{CudaLink, CudaOptions, Executor, GraphState, Options, TaskRun, TaskRunner, Tensor};
use dualpipe::ids::Rank;
use dualpipe::op::{Op, StageCopy, Task};
use dualpipe::program::lower;

use crate::blas::Blas;
use crate::driver::{CUdeviceptr, CUstream, Event, Gpu, Outcome, Stream};
use crate::math::Queue;
use crate::mlp::Mlp;
use crate::model::Model;
use crate::numbers::CopyNumbers;
use crate::parts::Parts;
use crate::rank_threads::RankThreads;

/// How a pipeline runs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    pub(crate) has_blas: bool,
    /// The backward half of a pair runs beside the forward half, on the executor's second stream.
    pub(crate) has_comm_stream: bool,
    pub(crate) uses_graph: bool,
    /// A weight gradient is added twice, which the checks must find.
    pub(crate) is_wrong: bool,
}

/// How far weights move against their gradients in a step.
pub(crate) const RATE: f32 = 0.02;

/// What the holder of a copy's twin needs: the gradients, when they are final, when this copy has read the twin's.
struct Offer {
    grads: CUdeviceptr,
    ready: Event,
    has_read: Event,
}

/// By number of copy.
type Offers = Arc<Vec<Mutex<Option<Arc<Offer>>>>>;

/// A rank. Its executor ends before the memory that its tasks use.
pub(crate) struct PipelineRank {
    executor: Executor,
    tasks: Tasks,
    offers: Offers,
    has_stepped: bool,
}

struct Tasks {
    gpu: Arc<Gpu>,
    model: Arc<Model>,
    copies: Vec<(StageCopy, Mlp)>,
    /// Of the forward and of the backward half of a pair.
    parts: [Parts; 2],
    is_wrong: bool,
    num_reductions: usize,
    stream: Stream,
}

pub(crate) struct Pipeline {
    ranks: RankThreads<Outcome<PipelineRank>>,
    num_copies: usize,
}

fn first(tensors: &[Tensor]) -> Option<CUdeviceptr> {
    tensors.first().and_then(Tensor::data).map(|data| data.as_ptr().addr() as CUdeviceptr)
}

impl Tasks {
    fn mlp(&self, copy: StageCopy) -> Outcome<&Mlp> {
        let found = self.copies.iter().find(|(held, _)| *held == copy);
        found.map(|(_, mlp)| mlp).ok_or_else(|| format!("{copy:?} is not here"))
    }

    fn forward(&self, run: &mut TaskRun<'_>, stream: CUstream) -> Outcome {
        let Some(pass) = &mut run.forward else { return Ok(()) };
        let (copy, microbatch) = (pass.pass.copy(), pass.pass.microbatch.index());
        let parts = &self.parts[0];
        let input = first(pass.inputs).unwrap_or(parts.input(pass.pass));
        let output = match self.model.is_last(copy) {
            true => Err(parts.target(pass.pass)),
            false => Ok(first(pass.outputs).ok_or("no output")?),
        };
        let queue = parts.queue(&self.gpu, stream);
        self.mlp(copy)?.forward(&queue, &parts.scratch, microbatch, input, output)
    }

    fn backward(&self, run: &mut TaskRun<'_>, op: Op, stream: CUstream) -> Outcome {
        let Some(pass) = &mut run.backward else { return Ok(()) };
        let (copy, microbatch) = (pass.pass.copy(), pass.pass.microbatch.index());
        let (parts, mlp) = (&self.parts[1], self.mlp(copy)?);
        let queue = parts.queue(&self.gpu, stream);
        let output_grad = first(pass.output_grads);
        if op.backward_input().is_some() {
            let input_grad = first(pass.input_grads);
            mlp.backward_input(&queue, &parts.scratch, microbatch, output_grad, input_grad)?;
        }
        if op.backward_weight().is_some() {
            let input = first(pass.inputs).unwrap_or(self.parts[0].input(pass.pass));
            let is_wrong = self.is_wrong && copy.stage.0 == 1 && microbatch == 1;
            for _ in 0..1 + usize::from(is_wrong) {
                mlp.backward_weight(&queue, &parts.scratch, microbatch, input, output_grad)?;
            }
        }
        Ok(())
    }
}

impl TaskRunner for Tasks {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Outcome {
        let streams = run.streams.ok_or("no streams")?;
        let Task::Op(op) = run.task else {
            self.num_reductions += 1; // done behind the step: a captured one must not wait for another rank
            return Ok(());
        };
        self.forward(run, streams.compute.cast())?;
        let beside = if streams.comm.is_null() { streams.compute } else { streams.comm };
        self.backward(run, op, beside.cast())
    }
}

impl PipelineRank {
    fn new(
        gpu: &Arc<Gpu>,
        model: &Arc<Model>,
        way: Way,
        rank: usize,
        make: impl FnOnce(CUstream) -> Outcome<Executor>,
        offers: &Offers,
    ) -> Outcome<PipelineRank> {
        gpu.enter()?;
        let stream = Stream::new()?;
        let blas = || if way.has_blas { Blas::new().map(Some) } else { Ok(None) };
        let placement = model.schedule.placement();
        let copies = placement.copies_on(Rank(rank as u32));
        let part = |copies: &[StageCopy]| Parts::new(gpu, model, copies, blas()?, &stream);
        let parts = [part(copies)?, part(&[])?];
        let queue = parts[0].queue(gpu, stream.raw());
        let mlp = |&copy: &StageCopy| {
            let num_microbatches = model.schedule.microbatches_in(copy.direction);
            let weights = &model.weights[copy.stage.index()];
            let mlp = Mlp::new(&queue, &stream, model.sizes, weights, num_microbatches)?;
            let (ready, has_read) = (Event::new(false)?, Event::new(false)?);
            let offer = Arc::new(Offer { grads: mlp.grads.address(), ready, has_read });
            let index = placement.copy_index(copy).ok_or("no such copy")?;
            *offers[index].lock().map_err(|why| why.to_string())? = Some(offer);
            Ok((copy, mlp))
        };
        let copies = copies.iter().map(mlp).collect::<Outcome<Vec<_>>>()?;
        stream.synchronize()?;
        let executor = make(stream.raw())?;
        let (gpu, model, is_wrong) = (Arc::clone(gpu), Arc::clone(model), way.is_wrong);
        let tasks = Tasks { gpu, model, copies, parts, is_wrong, num_reductions: 0, stream };
        Ok(PipelineRank { executor, tasks, offers: Arc::clone(offers), has_stepped: false })
    }

    fn queue(&self) -> Queue<'_> {
        self.tasks.parts[0].queue(&self.tasks.gpu, self.tasks.stream.raw())
    }

    fn offer(&self, copy: Option<StageCopy>) -> Option<Arc<Offer>> {
        let index = self.tasks.model.schedule.placement().copy_index(copy?)?;
        self.offers[index].lock().ok()?.clone()
    }

    fn twin(&self, copy: StageCopy) -> Option<Arc<Offer>> {
        self.offer(self.tasks.model.schedule.twin(copy).map(|(twin, _)| twin))
    }

    /// Enqueues a step.
    fn step(&mut self) -> Outcome {
        let stream = self.tasks.stream.raw();
        for (copy, mlp) in &self.tasks.copies {
            if let Some(twin) = self.twin(*copy).filter(|_| self.has_stepped) {
                twin.has_read.wait(stream)?;
            }
            mlp.clear(stream)?;
        }
        self.has_stepped = true;
        self.executor.step(&mut self.tasks).map_err(|why| why.to_string())?;
        self.tasks.copies.iter().try_for_each(|&(copy, _)| {
            self.offer(Some(copy)).map_or(Ok(()), |offer| offer.ready.record(stream))
        })
    }

    /// Enqueues the sums of the gradients of both copies of each stage, when all ranks have enqueued the step.
    fn reduce(&mut self) -> Outcome {
        let (queue, stream) = (self.queue(), self.tasks.stream.raw());
        let count = self.tasks.model.sizes.weights();
        for (copy, mlp) in &self.tasks.copies {
            let (Some(own), Some(twin)) = (self.offer(Some(*copy)), self.twin(*copy)) else {
                queue.copy(mlp.grads.address(), mlp.reduced.address(), 4 * count)?;
                continue;
            };
            twin.ready.wait(stream)?;
            queue.add(own.grads, twin.grads, mlp.reduced.address(), count)?;
            own.has_read.record(stream)?;
        }
        Ok(())
    }

    fn update(&mut self) -> Outcome {
        let queue = self.queue();
        self.tasks.copies.iter().try_for_each(|(_, mlp)| mlp.update(&queue, mlp.reduced.address(), RATE))
    }

    fn numbers(&mut self) -> Outcome<Vec<(StageCopy, CopyNumbers)>> {
        if !self.executor.synchronize(Duration::from_secs(60)).map_err(|why| why.to_string())? {
            return Err("the device did not end the step".into());
        }
        let tasks = &self.tasks;
        tasks.copies.iter().map(|(copy, mlp)| Ok((*copy, CopyNumbers::of(mlp, &tasks.stream)?))).collect()
    }
}

impl Pipeline {
    pub(crate) fn new(gpu: &Arc<Gpu>, model: &Arc<Model>, way: Way, timeout: Duration) -> Outcome<Pipeline> {
        let programs = lower(&model.schedule).map_err(|why| why.to_string())?;
        let inproc = Inproc::new(model.schedule.num_ranks()).map_err(|why| why.to_string())?;
        let num_copies = model.schedule.placement().num_copies();
        let offers: Offers = Arc::new((0..num_copies).map(|_| Mutex::default()).collect());
        let (num_ranks, boundaries) = (model.schedule.num_ranks(), model.boundaries()?);
        let (gpu, model) = (Arc::clone(gpu), Arc::clone(model));
        let make = move |rank: usize| {
            let make = |stream: CUstream| {
                let mut cuda = CudaOptions::new(0);
                (cuda.has_comm_stream, cuda.uses_graph) = (way.has_comm_stream, way.uses_graph);
                cuda.is_stream_ordered = true;
                // SAFETY: the rank's own stream, which outlives its executor.
                let cuda = unsafe { cuda.with_compute_stream(stream.cast()) };
                let options = Options { timeout, ..Options::new(boundaries.clone()) };
                let (program, link) = (programs[rank].clone(), CudaLink::inproc(&inproc));
                Executor::on_cuda(program, link, options, &cuda).map_err(|why| why.to_string())
            };
            PipelineRank::new(&gpu, &model, way, rank, make, &offers)
        };
        Ok(Pipeline { ranks: RankThreads::new(num_ranks, make), num_copies })
    }

    fn all<T: Send + 'static>(
        &self,
        job: impl Fn(&mut PipelineRank) -> Outcome<T> + Clone + Send + 'static,
    ) -> Outcome<Vec<T>> {
        let job = move |rank: usize, state: &mut Outcome<PipelineRank>| match state {
            Ok(state) => job(state).map_err(|why| format!("rank {rank}: {why}")),
            Err(why) => Err(format!("rank {rank} was not made: {why}")),
        };
        self.ranks.all(job).into_iter().collect()
    }

    /// Enqueues a step with the sums of its gradients.
    pub(crate) fn step(&self) -> Outcome {
        self.all(PipelineRank::step)?;
        self.all(PipelineRank::reduce).map(drop)
    }

    /// Enqueues that the weights move.
    pub(crate) fn update(&self) -> Outcome {
        self.all(PipelineRank::update).map(drop)
    }

    /// What the last step made, by number of copy, once the device is done with it.
    pub(crate) fn numbers(&self) -> Outcome<Vec<CopyNumbers>> {
        let mut all: Vec<_> = self.all(PipelineRank::numbers)?.into_iter().flatten().collect();
        all.sort_by_key(|(copy, _)| *copy);
        match all.len() == self.num_copies {
            true => Ok(all.into_iter().map(|(_, numbers)| numbers).collect()),
            false => Err(format!("{} copies of {}", all.len(), self.num_copies)),
        }
    }

    /// How often tasks to reduce gradients were run.
    pub(crate) fn num_reductions(&self) -> Outcome<usize> {
        Ok(self.all(|rank| Ok(rank.tasks.num_reductions))?.into_iter().sum())
    }

    pub(crate) fn graphs(&self) -> Outcome<Vec<GraphState>> {
        self.all(|rank| Ok(rank.executor.graph()))
    }
}
