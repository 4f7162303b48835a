//! The reference: every stage on one thread, one micro-batch after the other.

use std::sync::Arc;

use dualpipe::ids::{Direction, Microbatch, Stage};
use dualpipe::op::{Pass, StageCopy};

use crate::model::{Config, Tensors};
use crate::rank::Trainer;
use crate::text::Batch;
use crate::trainer::{CopyTrainer, RankTrainer};

/// One rank that holds the whole model.
pub(crate) struct Sequential {
    trainer: RankTrainer,
    config: Config,
}

impl Sequential {
    /// The model that `seed` draws.
    pub(crate) fn new(config: Config, seed: u64) -> Sequential {
        let copies: Vec<StageCopy> = (0..config.num_stages).map(|stage| pass(stage, 0).copy()).collect();
        let trainer = RankTrainer::new(config, &copies, seed, Arc::new(Batch::default()));
        Sequential { trainer, config }
    }

    /// The mean loss of `batch`; leaves the sums of its gradients.
    pub(crate) fn forward_backward(&mut self, batch: &Arc<Batch>) -> Result<f64, String> {
        self.trainer.begin_step(Arc::clone(batch))?;
        for microbatch in 0..batch.num_microbatches() {
            self.one_microbatch(microbatch)?;
        }
        Ok(self.trainer.loss_sum()? / batch.num_microbatches() as f64)
    }

    /// Takes over the parameters of a stage.
    pub(crate) fn set_params(&mut self, stage: usize, params: &Tensors) -> Result<(), String> {
        let copy = self.trainer.copy_mut(pass(stage, 0).copy())?;
        copy.model.params = params.clone();
        Ok(())
    }

    /// Moves the parameters against the gradients.
    pub(crate) fn update(&mut self) -> Result<(), String> {
        self.trainer.update()
    }

    /// The stages, in order.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &CopyTrainer> {
        self.trainer.copies().iter().map(|(_, copy)| copy)
    }

    fn one_microbatch(&mut self, microbatch: usize) -> Result<(), String> {
        let num_stages = self.config.num_stages;
        let boundary = || vec![0.0; self.config.num_tokens() * self.config.width];
        let mut activation = boundary();
        let mut output = boundary();
        for stage in 0..num_stages {
            let input = (stage > 0).then_some(&activation[..]);
            let is_last = stage + 1 == num_stages;
            let to = (!is_last).then_some(&mut output[..]);
            self.trainer.forward(pass(stage, microbatch), input, to)?;
            std::mem::swap(&mut activation, &mut output);
        }
        let (mut gradient, mut input_grad) = (activation, output);
        for stage in (0..num_stages).rev() {
            let is_last = stage + 1 == num_stages;
            let output_grad = (!is_last).then_some(&gradient[..]);
            let to = (stage > 0).then_some(&mut input_grad[..]);
            let pass = pass(stage, microbatch);
            self.trainer.backward_input(pass, output_grad, to)?;
            self.trainer.backward_weight(pass)?;
            std::mem::swap(&mut gradient, &mut input_grad);
        }
        Ok(())
    }
}

fn pass(stage: usize, microbatch: usize) -> Pass {
    Pass { direction: Direction::Down, stage: Stage(stage as u16), microbatch: Microbatch(microbatch as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    fn losses_and_gradients(seed: u64) -> (Vec<f64>, Vec<f32>) {
        let config = Config::small(2);
        let text = Text::own_sources().unwrap();
        let mut model = Sequential::new(config, seed);
        let losses = (0..8).map(|step| {
            let batch = Arc::new(text.batch(&config, seed, step, 4).unwrap());
            let loss = model.forward_backward(&batch).unwrap();
            model.update().unwrap();
            loss
        });
        let losses = losses.collect();
        let grads = model.stages().flat_map(|stage| stage.grads.iter());
        (losses, grads.copied().collect())
    }

    #[test]
    fn an_untrained_model_knows_nothing_and_soon_more() {
        let (losses, _) = losses_and_gradients(3);
        assert!((losses[0] - 256f64.ln()).abs() < 0.2, "{losses:?}");
        assert!(losses[7] < losses[0] - 0.3, "{losses:?}");
    }

    #[test]
    fn a_seed_gives_the_same_run_bit_for_bit() {
        assert_eq!(losses_and_gradients(3), losses_and_gradients(3));
        assert_ne!(losses_and_gradients(3), losses_and_gradients(4));
    }
}
