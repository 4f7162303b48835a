//! The same step without a pipeline: one thread, one stream, no executor, the same kernels.

use std::sync::Arc;

use dualpipe::ids::{Microbatch, Rank};
use dualpipe::op::{Op, Pass, StageCopy};

use crate::blas::Blas;
use crate::driver::{CUdeviceptr, Gpu, Outcome, Stream};
use crate::math::Queue;
use crate::memory::Memory;
use crate::mlp::Mlp;
use crate::model::Model;
use crate::numbers::CopyNumbers;
use crate::parts::Parts;
use crate::ranks::RATE;

/// All copies of all stages.
pub(crate) struct Sequential {
    gpu: Arc<Gpu>,
    model: Arc<Model>,
    copies: Vec<(StageCopy, Mlp)>,
    parts: Parts,
    /// By number of copy and micro-batch: what the stage hands on, and the gradient that comes back for that.
    outputs: Vec<Vec<Memory>>,
    output_grads: Vec<Vec<Memory>>,
    stream: Stream,
}

impl Sequential {
    pub(crate) fn new(gpu: &Arc<Gpu>, model: &Arc<Model>, has_blas: bool) -> Outcome<Sequential> {
        gpu.enter()?;
        let stream = Stream::new()?;
        let blas = if has_blas { Some(Blas::new()?) } else { None };
        let copies = model.copies();
        let parts = Parts::new(gpu, model, &copies, blas, &stream)?;
        let queue = parts.queue(gpu, stream.raw());
        let count = |copy: &StageCopy| model.schedule.microbatches_in(copy.direction);
        let mlp = |copy: &StageCopy| {
            let weights = &model.weights[copy.stage.index()];
            Ok((*copy, Mlp::new(&queue, &stream, model.sizes, weights, count(copy))?))
        };
        let bytes = model.sizes.boundary() * model.sizes.number.bytes();
        let boundary = |copy| (0..count(copy)).map(|_| Memory::new(bytes)).collect::<Outcome<Vec<_>>>();
        let boundaries = || copies.iter().map(boundary).collect::<Outcome<Vec<_>>>();
        let (outputs, output_grads) = (boundaries()?, boundaries()?);
        let copies = copies.iter().map(mlp).collect::<Outcome<Vec<_>>>()?;
        let (gpu, model) = (Arc::clone(gpu), Arc::clone(model));
        Ok(Sequential { gpu, model, copies, parts, outputs, output_grads, stream })
    }

    fn queue(&self) -> Queue<'_> {
        self.parts.queue(&self.gpu, self.stream.raw())
    }

    fn input(&self, index: usize, pass: Pass) -> CUdeviceptr {
        match pass.stage.0 {
            0 => self.parts.input(pass),
            _ => self.outputs[index - 1][pass.microbatch.index()].address(),
        }
    }

    fn output_grad(&self, index: usize, pass: Pass) -> Option<CUdeviceptr> {
        let grad = self.output_grads[index][pass.microbatch.index()].address();
        (!self.model.is_last(pass.copy())).then_some(grad)
    }

    /// A step, with the sums of its gradients; `is_update`: weights move. Returns when the device is done.
    pub(crate) fn step(&self, is_update: bool) -> Outcome<Vec<CopyNumbers>> {
        let queue = self.queue();
        for (_, mlp) in &self.copies {
            mlp.clear(self.stream.raw())?;
        }
        for (index, (copy, mlp)) in self.copies.iter().enumerate() {
            for pass in self.passes(*copy) {
                let microbatch = pass.microbatch.index();
                let output = match self.model.is_last(*copy) {
                    true => Err(self.parts.target(pass)),
                    false => Ok(self.outputs[index][microbatch].address()),
                };
                mlp.forward(&queue, &self.parts.scratch, microbatch, self.input(index, pass), output)?;
            }
        }
        for (index, (copy, mlp)) in self.copies.iter().enumerate().rev() {
            for pass in self.passes(*copy) {
                let microbatch = pass.microbatch.index();
                let before = index.checked_sub(1).filter(|_| copy.stage.0 > 0);
                let input_grad = before.map(|before| self.output_grads[before][microbatch].address());
                let output_grad = self.output_grad(index, pass);
                mlp.backward_input(&queue, &self.parts.scratch, microbatch, output_grad, input_grad)?;
            }
        }
        for (index, (copy, mlp)) in self.copies.iter().enumerate() {
            for pass in self.weight_order(*copy) {
                let (input, output_grad) = (self.input(index, pass), self.output_grad(index, pass));
                let microbatch = pass.microbatch.index();
                mlp.backward_weight(&queue, &self.parts.scratch, microbatch, input, output_grad)?;
            }
        }
        self.reduce(&queue, is_update)?;
        self.copies.iter().map(|(_, mlp)| CopyNumbers::of(mlp, &self.stream)).collect()
    }

    fn reduce(&self, queue: &Queue<'_>, is_update: bool) -> Outcome {
        let (schedule, count) = (&self.model.schedule, self.model.sizes.weights());
        for (copy, mlp) in &self.copies {
            let twin = schedule.twin(*copy).map(|(twin, _)| twin);
            match self.copies.iter().find(|(other, _)| Some(*other) == twin) {
                Some((_, twin)) => {
                    queue.add(mlp.grads.address(), twin.grads.address(), mlp.reduced.address(), count)?;
                }
                None => queue.copy(mlp.grads.address(), mlp.reduced.address(), 4 * count)?,
            }
        }
        match is_update {
            true => {
                self.copies.iter().try_for_each(|(_, mlp)| mlp.update(queue, mlp.reduced.address(), RATE))
            }
            false => Ok(()),
        }
    }

    fn passes(&self, copy: StageCopy) -> impl Iterator<Item = Pass> {
        let count = self.model.schedule.microbatches_in(copy.direction) as u32;
        let pass = move |microbatch| Pass {
            direction: copy.direction,
            stage: copy.stage,
            microbatch: Microbatch(microbatch),
        };
        (0..count).map(pass)
    }

    /// The order in which the schedule adds up the copy's gradients: sums of floats depend on it.
    fn weight_order(&self, copy: StageCopy) -> Vec<Pass> {
        let schedule = &self.model.schedule;
        let rank = schedule.placement().rank_of(copy).unwrap_or(Rank(0));
        let passes = schedule.order(rank).iter().filter_map(|op: &Op| op.backward_weight());
        passes.filter(|pass| pass.copy() == copy).collect()
    }
}
