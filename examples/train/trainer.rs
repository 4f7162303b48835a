//! What a rank does when a pass is due: the same methods for a pipeline rank and for the sequential run.

use std::collections::BTreeMap;
use std::sync::Arc;

use dualpipe::ids::Microbatch;
use dualpipe::op::{Pass, StageCopy};
use ndarray::{Array2, ArrayView2};

use crate::model::{Config, Pending, Saved, StageModel, Tensors};
use crate::optimizer::Adam;
use crate::text::Batch;

/// The stage copies of one rank, with everything that training them needs.
pub(crate) struct RankTrainer {
    config: Config,
    copies: Vec<(StageCopy, CopyTrainer)>,
    batch: Arc<Batch>,
}

/// One stage copy.
pub(crate) struct CopyTrainer {
    pub(crate) model: StageModel,
    /// Sums over the micro-batches of the step.
    pub(crate) grads: Tensors,
    /// Tokens sent to each expert since the start.
    pub(crate) expert_loads: Vec<u64>,
    optimizer: Adam,
    saved: BTreeMap<Microbatch, Saved>,
    pending: BTreeMap<Microbatch, Pending>,
    loss_sum: f64,
}

impl RankTrainer {
    /// The rank that holds `copies`, with the weights that `seed` draws.
    pub(crate) fn new(config: Config, copies: &[StageCopy], seed: u64, batch: Arc<Batch>) -> Self {
        let trainer = |&copy: &StageCopy| {
            let model = StageModel::new(&config, copy.stage.index(), seed);
            let trainer = CopyTrainer {
                grads: model.params.zeros_like(),
                expert_loads: vec![0; config.num_experts],
                optimizer: Adam::new(&model.params),
                saved: BTreeMap::new(),
                pending: BTreeMap::new(),
                loss_sum: 0.0,
                model,
            };
            (copy, trainer)
        };
        RankTrainer { config, copies: copies.iter().map(trainer).collect(), batch }
    }

    /// Starts a step: gradients and loss are zero, and passes speak of the micro-batches of `batch`.
    pub(crate) fn begin_step(&mut self, batch: Arc<Batch>) {
        self.batch = batch;
        for (_, copy) in &mut self.copies {
            copy.grads.clear();
            copy.saved.clear();
            copy.pending.clear();
            copy.loss_sum = 0.0;
        }
    }

    /// F: reads `input` (none at stage 0), writes `output` (none at the last stage); both `[tokens, width]`.
    pub(crate) fn forward(
        &mut self,
        pass: Pass,
        input: Option<&[f32]>,
        output: Option<&mut [f32]>,
    ) -> Result<(), String> {
        let batch = Arc::clone(&self.batch);
        let microbatch = batch.microbatch(pass)?;
        let input = self.rows(input)?;
        let copy = self.copy_mut(pass.copy())?;
        let (tokens, targets) = (&microbatch.tokens, &microbatch.targets);
        let (result, saved) = copy.model.forward(tokens, targets, input)?;
        copy_out(result, output)?;
        copy.loss_sum += saved.loss.unwrap_or(0.0);
        for (sum, load) in copy.expert_loads.iter_mut().zip(saved.expert_loads()) {
            *sum += load;
        }
        copy.saved.insert(pass.microbatch, saved);
        Ok(())
    }

    /// I: reads `output_grad` (none at the last stage), writes `input_grad` (none at stage 0).
    pub(crate) fn backward_input(
        &mut self,
        pass: Pass,
        output_grad: Option<&[f32]>,
        input_grad: Option<&mut [f32]>,
    ) -> Result<(), String> {
        let output_grad = self.rows(output_grad)?;
        let copy = self.copy_mut(pass.copy())?;
        let saved = copy.saved.remove(&pass.microbatch);
        let saved = saved.ok_or("its forward has not run")?;
        let (result, pending) = copy.model.backward_input(saved, output_grad)?;
        copy_out(result, input_grad)?;
        copy.pending.insert(pass.microbatch, pending);
        Ok(())
    }

    /// W: adds to the copy's gradients.
    pub(crate) fn backward_weight(&mut self, pass: Pass) -> Result<(), String> {
        let copy = self.copy_mut(pass.copy())?;
        let pending = copy.pending.remove(&pass.microbatch);
        let pending = pending.ok_or("its backward for the input has not run")?;
        copy.model.backward_weight(pending, &mut copy.grads);
        Ok(())
    }

    /// Ends a step: moves every parameter against the mean of its gradients over the step's micro-batches.
    pub(crate) fn update(&mut self) {
        let scale = 1.0 / self.batch.num_microbatches() as f32;
        for (_, copy) in &mut self.copies {
            copy.optimizer.step(&mut copy.model.params, &copy.grads, scale);
        }
    }

    /// The losses of the step's micro-batches that ended at this rank, added up.
    pub(crate) fn loss_sum(&self) -> f64 {
        self.copies.iter().map(|(_, copy)| copy.loss_sum).sum()
    }

    /// The stage copies, in the order in which they were given.
    pub(crate) fn copies(&self) -> &[(StageCopy, CopyTrainer)] {
        &self.copies
    }

    /// The stage copy `copy`.
    pub(crate) fn copy_mut(&mut self, copy: StageCopy) -> Result<&mut CopyTrainer, String> {
        let found = self.copies.iter_mut().find(|(c, _)| *c == copy);
        found.map(|(_, trainer)| trainer).ok_or_else(|| {
            let StageCopy { direction, stage } = copy;
            format!("this rank does not hold stage {stage} of direction {direction}")
        })
    }

    /// A boundary tensor as rows of tokens.
    fn rows<'a>(&self, tensor: Option<&'a [f32]>) -> Result<Option<ArrayView2<'a, f32>>, String> {
        let shape = (self.config.num_tokens(), self.config.width);
        let view = tensor.map(|values| ArrayView2::from_shape(shape, values));
        view.transpose().map_err(|e| format!("a boundary tensor is not {shape:?}: {e}"))
    }
}

/// Writes `result` to `buffer`, if the stage has a neighbour to read it.
fn copy_out(result: Option<Array2<f32>>, buffer: Option<&mut [f32]>) -> Result<(), String> {
    let (have, want) = (result.as_ref().map_or(0, Array2::len), buffer.as_ref().map_or(0, |b| b.len()));
    if have != want {
        return Err(format!("the result has {have} numbers, its buffer {want}"));
    }
    for (to, from) in buffer.into_iter().flatten().zip(result.iter().flatten()) {
        *to = *from;
    }
    Ok(())
}
