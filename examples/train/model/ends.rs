//! The two ends of the model: bytes to rows, and rows to a loss.

use ndarray::{Array2, Axis};

use super::layer::{softmax, Layer, Linear, Product, RmsNorm, SavedNorm};
use super::tensors::{Builder, MatrixId, Tensors};
use super::{Config, Real};

/// A row for each byte, plus one for its position.
pub(crate) struct Embedding {
    bytes: MatrixId,
    positions: MatrixId,
    sequence: usize,
}

impl Embedding {
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, config: &Config) -> Embedding {
        let width = config.width;
        Embedding {
            bytes: builder.normal("embedding.bytes", (config.vocabulary, width), 0.5),
            positions: builder.normal("embedding.positions", (config.sequence, width), 0.1),
            sequence: config.sequence,
        }
    }

    /// F: `[tokens, width]`.
    pub(crate) fn forward<R: Real>(&self, params: &Tensors<R>, tokens: &[u8]) -> Array2<R> {
        let rows: Vec<usize> = tokens.iter().map(|&token| usize::from(token)).collect();
        let mut output = params.matrix(self.bytes).select(Axis(0), &rows);
        let positions = params.matrix(self.positions);
        for (i, mut row) in output.rows_mut().into_iter().enumerate() {
            row += &positions.row(i % self.sequence);
        }
        output
    }

    /// W; there is no I, bytes have no gradient.
    pub(crate) fn backward_weight<R: Real>(
        &self,
        tokens: &[u8],
        output_grad: &Array2<R>,
        grads: &mut Tensors<R>,
    ) {
        // Added up here first: a micro-batch adds one number to each gradient, as everywhere.
        let mut by_byte = Array2::zeros(grads.matrix(self.bytes).dim());
        let mut by_position = Array2::zeros(grads.matrix(self.positions).dim());
        for (i, (&token, grad)) in tokens.iter().zip(output_grad.rows()).enumerate() {
            let mut row = by_byte.row_mut(usize::from(token));
            row += &grad;
            let mut row = by_position.row_mut(i % self.sequence);
            row += &grad;
        }
        *grads.matrix_mut(self.bytes) += &by_byte;
        *grads.matrix_mut(self.positions) += &by_position;
    }
}

/// Norm, logits, and the mean cross-entropy of the next byte.
pub(crate) struct LossHead {
    norm: RmsNorm,
    out: Linear,
}

/// What [`LossHead`] saves.
pub(crate) struct SavedHead<R> {
    norm: SavedNorm<R>,
    out_input: Array2<R>,
    logits_grad: Array2<R>,
}

/// What the I of a [`LossHead`] leaves for its W.
pub(crate) type PendingHead<R> = [Product<R>; 2];

impl LossHead {
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, config: &Config) -> LossHead {
        LossHead {
            norm: RmsNorm::new(builder, "head.norm", config.width),
            // Small: an untrained model should find every byte about as likely.
            out: Linear::new(builder, "head.out", (config.width, config.vocabulary), 0.1),
        }
    }

    /// F: the loss of a micro-batch, and its gradient for the logits, which comes for free.
    pub(crate) fn forward<R: Real>(
        &self,
        params: &Tensors<R>,
        input: Array2<R>,
        targets: &[u8],
    ) -> (f64, SavedHead<R>) {
        let (normalized, norm) = self.norm.forward(params, input);
        let (mut logits, out_input) = self.out.forward(params, normalized);
        let mut loss = 0.0;
        for (mut row, &target) in logits.rows_mut().into_iter().zip(targets) {
            softmax(row.view_mut());
            let probability = &mut row[usize::from(target)];
            // A probability that underflows to zero still has a finite loss.
            loss -= probability.max(R::min_positive_value()).wide().ln();
            *probability -= R::one();
        }
        let num_tokens = targets.len() as f64;
        logits /= R::of(num_tokens);
        let saved = SavedHead { norm, out_input, logits_grad: logits };
        (loss / num_tokens, saved)
    }

    /// I: the loss's gradient for the input.
    pub(crate) fn backward_input<R: Real>(
        &self,
        params: &Tensors<R>,
        saved: SavedHead<R>,
    ) -> (Array2<R>, PendingHead<R>) {
        let (grad, out) = self.out.backward_input(params, saved.out_input, saved.logits_grad);
        let (input_grad, norm) = self.norm.backward_input(params, saved.norm, grad);
        (input_grad, [norm, out])
    }

    /// W.
    pub(crate) fn backward_weight<R: Real>(&self, [norm, out]: PendingHead<R>, grads: &mut Tensors<R>) {
        self.norm.backward_weight(norm, grads);
        self.out.backward_weight(out, grads);
    }
}
