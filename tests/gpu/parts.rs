//! What enqueuing needs on one stream: a cuBLAS handle, scratch memory, the micro-batches of the ends.

use std::sync::Arc;

use dualpipe::op::{Pass, StageCopy};

use crate::blas::Blas;
use crate::driver::{CUdeviceptr, CUstream, Gpu, Outcome, Stream};
use crate::math::{Number, Queue};
use crate::memory::Memory;
use crate::mlp::Scratch;
use crate::model::{bf16, Model};

/// One stream's.
pub(crate) struct Parts {
    blas: Option<Blas>,
    pub(crate) scratch: Scratch,
    number: Number,
    /// By direction and micro-batch, where the stage is here.
    inputs: [Vec<Memory>; 2],
    targets: [Vec<Memory>; 2],
}

impl Parts {
    /// With the inputs and targets of those of `copies` that are a direction's first and last.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        model: &Model,
        copies: &[StageCopy],
        blas: Option<Blas>,
        stream: &Stream,
    ) -> Outcome<Parts> {
        gpu.enter()?;
        let number = model.sizes.number;
        let (mut inputs, mut targets) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for copy in copies {
            let direction = copy.direction.index();
            if copy.stage.0 == 0 {
                for input in &model.inputs[direction] {
                    inputs[direction].push(match number {
                        Number::F32 => Memory::with(input, stream)?,
                        Number::Bf16 => {
                            let halves: Vec<u16> = input.iter().map(|&number| bf16(number)).collect();
                            Memory::with(&halves, stream)?
                        }
                    });
                }
            }
            if model.is_last(*copy) {
                let all = model.targets[direction].iter().map(|target| Memory::with(target, stream));
                targets[direction] = all.collect::<Outcome<_>>()?;
            }
        }
        Ok(Parts { blas, scratch: Scratch::new(&model.sizes)?, number, inputs, targets })
    }

    pub(crate) fn queue<'a>(&'a self, gpu: &'a Gpu, stream: CUstream) -> Queue<'a> {
        Queue { gpu, stream, number: self.number, blas: self.blas.as_ref() }
    }

    /// What goes into stage 0; 0 elsewhere.
    pub(crate) fn input(&self, pass: Pass) -> CUdeviceptr {
        self.inputs[pass.direction.index()].get(pass.microbatch.index()).map_or(0, Memory::address)
    }

    /// What should come out of the last stage; 0 elsewhere.
    pub(crate) fn target(&self, pass: Pass) -> CUdeviceptr {
        self.targets[pass.direction.index()].get(pass.microbatch.index()).map_or(0, Memory::address)
    }
}
