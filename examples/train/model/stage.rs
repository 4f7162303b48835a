//! One pipeline stage: a block, with the embedding before it at stage 0 and the loss after it at the last.

use ndarray::{Array2, ArrayView2};

use super::attention::Attention;
use super::ends::{Embedding, LossHead, PendingHead, SavedHead};
use super::layer::{Layer, Residual, RmsNorm};
use super::moe::Moe;
use super::tensors::{Builder, Tensors};
use super::{Config, Real};

/// A stage and its parameters.
pub(crate) struct StageModel<R = f32> {
    embedding: Option<Embedding>,
    attention: Residual<Attention>,
    moe: Residual<Moe>,
    head: Option<LossHead>,
    /// The parameters, which the optimizer changes.
    pub(crate) params: Tensors<R>,
}

/// What the F of a stage leaves for its I.
pub(crate) struct Saved<R: Real = f32> {
    tokens: Vec<u8>,
    attention: <Residual<Attention> as Layer<R>>::Saved,
    moe: <Residual<Moe> as Layer<R>>::Saved,
    head: Option<SavedHead<R>>,
    /// The micro-batch's cross-entropy, at the last stage.
    pub(crate) loss: Option<f64>,
}

impl<R: Real> Saved<R> {
    /// The balance loss of the stage's router, which the gradients contain too.
    #[cfg(test)]
    pub(crate) fn balance_loss(&self) -> R {
        self.moe.1.balance_loss()
    }

    /// Tokens that the router sent to each expert.
    pub(crate) fn expert_loads(&self) -> impl Iterator<Item = u64> + '_ {
        self.moe.1.loads()
    }
}

/// What the I of a stage leaves for its W.
pub(crate) struct Pending<R: Real = f32> {
    embedding: Option<(Vec<u8>, Array2<R>)>,
    attention: <Residual<Attention> as Layer<R>>::Pending,
    moe: <Residual<Moe> as Layer<R>>::Pending,
    head: Option<PendingHead<R>>,
}

impl<R: Real> StageModel<R> {
    /// Stage `stage` of the model that `seed` draws: every copy of it starts with the same parameters.
    pub(crate) fn new(config: &Config, stage: usize, seed: u64) -> StageModel<R> {
        let mut builder = Builder::new(seed.wrapping_mul(1 << 16).wrapping_add(stage as u64));
        let is_last = stage + 1 == config.num_stages;
        // As in GPT-2: the sum of all blocks should be as large as one.
        let gain = (2.0 * config.num_stages as f64).sqrt().recip();
        StageModel {
            embedding: (stage == 0).then(|| Embedding::new(&mut builder, config)),
            attention: Residual {
                norm: RmsNorm::new(&mut builder, "attention.norm", config.width),
                layer: Attention::new(&mut builder, config, gain),
            },
            moe: Residual {
                norm: RmsNorm::new(&mut builder, "experts.norm", config.width),
                layer: Moe::new(&mut builder, config, gain),
            },
            head: is_last.then(|| LossHead::new(&mut builder, config)),
            params: builder.finish(),
        }
    }

    /// F: the output, `[tokens, width]`; none at the last stage, where the loss is in the `Saved`.
    ///
    /// `input` is the previous stage's output, none at stage 0; `tokens` are what stage 0 reads and `targets` what
    /// the last stage should predict, one byte per row.
    pub(crate) fn forward(
        &self,
        tokens: &[u8],
        targets: &[u8],
        input: Option<ArrayView2<'_, R>>,
    ) -> Result<(Option<Array2<R>>, Saved<R>), String> {
        let rows = match (&self.embedding, input) {
            (Some(embedding), None) => embedding.forward(&self.params, tokens),
            (None, Some(input)) => input.to_owned(),
            (Some(_), Some(_)) => return Err("stage 0 has no input activation".into()),
            (None, None) => return Err("the input activation is missing".into()),
        };
        let (rows, attention) = self.attention.forward(&self.params, rows);
        let (rows, moe) = self.moe.forward(&self.params, rows);
        let mut saved = Saved { tokens: tokens.to_vec(), attention, moe, head: None, loss: None };
        let Some(head) = &self.head else {
            return Ok((Some(rows), saved));
        };
        let (loss, saved_head) = head.forward(&self.params, rows, targets);
        saved.head = Some(saved_head);
        saved.loss = Some(loss);
        Ok((None, saved))
    }

    /// I: the gradient for the input; none at stage 0. `output_grad` is none at the last stage.
    pub(crate) fn backward_input(
        &self,
        saved: Saved<R>,
        output_grad: Option<ArrayView2<'_, R>>,
    ) -> Result<(Option<Array2<R>>, Pending<R>), String> {
        let params = &self.params;
        let (grad, head) = match (self.head.as_ref().zip(saved.head), output_grad) {
            (Some((head, saved)), None) => {
                let (grad, pending) = head.backward_input(params, saved);
                (grad, Some(pending))
            }
            (None, Some(grad)) => (grad.to_owned(), None),
            (Some(_), Some(_)) => return Err("the last stage has no output gradient".into()),
            (None, None) => return Err("the output gradient is missing".into()),
        };
        let (grad, moe) = self.moe.backward_input(params, saved.moe, grad);
        let (grad, attention) = self.attention.backward_input(params, saved.attention, grad);
        let (input_grad, embedding) =
            if self.embedding.is_some() { (None, Some((saved.tokens, grad))) } else { (Some(grad), None) };
        let pending = Pending { embedding, attention, moe, head };
        Ok((input_grad, pending))
    }

    /// W: adds the gradients for the parameters to `grads`.
    pub(crate) fn backward_weight(&self, pending: Pending<R>, grads: &mut Tensors<R>) {
        if let (Some(embedding), Some((tokens, grad))) = (&self.embedding, pending.embedding) {
            embedding.backward_weight(&tokens, &grad, grads);
        }
        self.attention.backward_weight(pending.attention, grads);
        self.moe.backward_weight(pending.moe, grads);
        if let (Some(head), Some(pending)) = (&self.head, pending.head) {
            head.backward_weight(pending, grads);
        }
    }
}
