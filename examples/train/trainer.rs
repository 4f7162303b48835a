//! What a rank on the host does when a pass is due: the same methods for a pipeline rank and for the sequential run.

use std::collections::BTreeMap;
use std::sync::Arc;

use dualpipe::execute::{TaskRun, Tensor};
use dualpipe::ids::Microbatch;
use dualpipe::op::{Op, Pass, StageCopy};
use ndarray::{Array2, ArrayView2};

use crate::compare::Tolerance;
use crate::model::{Config, Pending, Saved, StageModel, Tensors};
use crate::optimizer::Adam;
use crate::rank::{check_all_came_back, not_here, Reduction, Trainer};
use crate::text::Batch;

/// The stage copies of one rank, with everything that training them needs.
pub(crate) struct RankTrainer {
    config: Config,
    copies: Vec<(StageCopy, CopyTrainer)>,
    batch: Arc<Batch>,
}

/// What a pass reads from one neighbour and writes for the other; at the ends of the model there is none.
#[derive(Default)]
pub(crate) struct Boundary<'a> {
    pub(crate) input: Option<&'a [f32]>,
    pub(crate) output: Option<&'a mut [f32]>,
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

    /// Runs `op`: `forward` are the tensors of its forward pass, `backward` those of its backward for the input.
    pub(crate) fn run(
        &mut self,
        op: Op,
        forward: Boundary<'_>,
        backward: Boundary<'_>,
    ) -> Result<(), String> {
        if let Some(pass) = op.forward() {
            self.forward(pass, forward.input, forward.output)?;
        }
        if let Some(pass) = op.backward_input() {
            self.backward_input(pass, backward.input, backward.output)?;
        }
        if let Some(pass) = op.backward_weight() {
            self.backward_weight(pass)?;
        }
        Ok(())
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

    /// The stage copies, in the order in which they were given.
    pub(crate) fn copies(&self) -> &[(StageCopy, CopyTrainer)] {
        &self.copies
    }

    /// The stage copy `copy`.
    pub(crate) fn copy(&self, copy: StageCopy) -> Result<&CopyTrainer, String> {
        let found = self.copies.iter().find(|(c, _)| *c == copy);
        found.map(|(_, trainer)| trainer).ok_or_else(|| not_here(copy))
    }

    /// The stage copy `copy`, to change.
    pub(crate) fn copy_mut(&mut self, copy: StageCopy) -> Result<&mut CopyTrainer, String> {
        let found = self.copies.iter_mut().find(|(c, _)| *c == copy);
        found.map(|(_, trainer)| trainer).ok_or_else(|| not_here(copy))
    }

    /// A boundary tensor as rows of tokens.
    fn rows<'a>(&self, tensor: Option<&'a [f32]>) -> Result<Option<ArrayView2<'a, f32>>, String> {
        let shape = (self.config.num_tokens(), self.config.width);
        let view = tensor.map(|values| ArrayView2::from_shape(shape, values));
        view.transpose().map_err(|e| format!("a boundary tensor is not {shape:?}: {e}"))
    }
}

impl Trainer for RankTrainer {
    type Gradients = Tensors;

    const REDUCTION: Reduction = Reduction::InTasks;
    const TOLERANCE: Tolerance = Tolerance::ORDER;

    fn begin_step(&mut self, batch: Arc<Batch>) -> Result<(), String> {
        self.batch = batch;
        for (_, copy) in &mut self.copies {
            copy.grads.clear();
            copy.saved.clear();
            copy.pending.clear();
            copy.loss_sum = 0.0;
        }
        Ok(())
    }

    fn run_op(&mut self, op: Op, run: &mut TaskRun<'_>) -> Result<(), String> {
        let forward = match &mut run.forward {
            None => Boundary::default(),
            Some(pass) => Boundary { input: read(pass.inputs)?, output: written(pass.outputs)? },
        };
        let backward = match &mut run.backward {
            None => Boundary::default(),
            Some(pass) => Boundary { input: read(pass.output_grads)?, output: written(pass.input_grads)? },
        };
        self.run(op, forward, backward)
    }

    fn give_gradients(&self, copy: StageCopy) -> Result<Tensors, String> {
        Ok(self.copy(copy)?.grads.clone())
    }

    fn reduce(&mut self, copy: StageCopy, twin: &Tensors) -> Result<(), String> {
        self.copy_mut(copy)?.grads.add(twin);
        Ok(())
    }

    fn update(&mut self) -> Result<(), String> {
        let scale = 1.0 / self.batch.num_microbatches() as f32;
        for (copy, trainer) in &self.copies {
            check_all_came_back(*copy, trainer.saved.len(), trainer.pending.len())?;
        }
        for (_, copy) in &mut self.copies {
            copy.optimizer.step(&mut copy.model.params, &copy.grads, scale);
        }
        Ok(())
    }

    fn loss_sum(&self) -> Result<f64, String> {
        Ok(self.copies.iter().map(|(_, copy)| copy.loss_sum).sum())
    }

    fn expert_loads(&self, copy: StageCopy) -> Result<Vec<u64>, String> {
        Ok(self.copy(copy)?.expert_loads.clone())
    }

    fn grads(&self, copy: StageCopy) -> Result<Tensors, String> {
        Ok(self.copy(copy)?.grads.clone())
    }

    fn params(&self, copy: StageCopy) -> Result<Tensors, String> {
        Ok(self.copy(copy)?.model.params.clone())
    }
}

/// The one tensor of a boundary; at the ends of the model there is none.
fn read(tensors: &[Tensor]) -> Result<Option<&[f32]>, String> {
    let Some(tensor) = tensors.first() else { return Ok(None) };
    tensor.as_slice().map(Some).ok_or_else(|| "a boundary tensor is not there as f32".into())
}

/// As [`read`], to be written.
fn written(tensors: &mut [Tensor]) -> Result<Option<&mut [f32]>, String> {
    let Some(tensor) = tensors.first_mut() else { return Ok(None) };
    tensor.as_mut_slice().map(Some).ok_or_else(|| "a boundary tensor is not there as f32".into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;
    use dualpipe::ids::{Direction, Stage};

    #[test]
    fn passes_out_of_order_are_refused() {
        let config = Config::small(1);
        let batch = Arc::new(Text::own_sources().unwrap().batch(&config, 1, 0, 1).unwrap());
        let pass = |stage, microbatch| Pass {
            direction: Direction::Down,
            stage: Stage(stage),
            microbatch: Microbatch(microbatch),
        };
        let mut trainer = RankTrainer::new(config, &[pass(0, 0).copy()], 1, batch);
        let mut error = |op| {
            let result = trainer.run(op, Boundary::default(), Boundary::default());
            result.and_then(|()| trainer.update()).err()
        };
        for (op, expected) in [
            (Op::I(pass(0, 0)), Some("its forward has not run")),
            (Op::F(pass(0, 1)), Some("there is no micro-batch 1, the step has 1")),
            (Op::F(pass(1, 0)), Some("this rank does not hold stage 1 of direction 0")),
            (Op::F(pass(0, 0)), Some("stage 0 of direction 0 still has to run 1 I and 0 W")),
            (Op::W(pass(0, 0)), Some("its backward for the input has not run")),
            (Op::I(pass(0, 0)), Some("stage 0 of direction 0 still has to run 0 I and 1 W")),
            (Op::W(pass(0, 0)), None),
            (Op::B(pass(0, 0)), Some("its forward has not run")),
        ] {
            assert_eq!(error(op).as_deref(), expected, "{op}");
        }
    }

    #[test]
    fn a_buffer_of_the_wrong_size_is_refused() {
        let config = Config::small(2);
        let batch = Arc::new(Text::own_sources().unwrap().batch(&config, 1, 0, 1).unwrap());
        let pass =
            |stage| Pass { direction: Direction::Down, stage: Stage(stage), microbatch: Microbatch(0) };
        let copies = [pass(0).copy(), pass(1).copy()];
        let mut trainer = RankTrainer::new(config, &copies, 1, batch);
        let right = config.num_tokens() * config.width;
        for (num_numbers, is_ok) in [(0, false), (right - 1, false), (right, true)] {
            let mut buffer = vec![0.0; num_numbers];
            let forward = trainer.forward(pass(0), None, Some(&mut buffer));
            assert_eq!(forward.is_ok(), is_ok, "{forward:?}");
            let forward = trainer.forward(pass(1), Some(&buffer), None);
            assert_eq!(forward.is_ok(), is_ok, "{forward:?}");
        }
    }
}
