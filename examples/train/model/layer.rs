//! The small layers: linear, norm, and the residual connection around another layer.

use ndarray::{Array1, Array2, ArrayViewMut1, Axis, NdFloat, Zip};

use super::tensors::{Builder, MatrixId, Tensors};

/// The numbers that the model computes with: f32 to train, f64 to check gradients.
pub(crate) trait Real: NdFloat {
    /// The nearest number to `value`.
    fn of(value: f64) -> Self;
    /// The number itself.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(value: f64) -> f32 {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn of(value: f64) -> f64 {
        value
    }
    fn wide(self) -> f64 {
        self
    }
}

/// F, I and W of a part of a stage. Rows are tokens.
pub(crate) trait Layer<R: Real> {
    /// What F leaves for I.
    type Saved;
    /// What I leaves for W.
    type Pending;

    /// F: the output.
    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved);

    /// I: the loss's gradient for the input, from that for the output.
    fn backward_input(
        &self,
        params: &Tensors<R>,
        saved: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending);

    /// W: adds the loss's gradient for the parameters to `grads`.
    fn backward_weight(&self, pending: Self::Pending, grads: &mut Tensors<R>);
}

/// `y = x w`.
pub(crate) struct Linear {
    weight: MatrixId,
}

impl Linear {
    /// Weights that keep the size of their input, times `gain`.
    pub(crate) fn new<R: Real>(
        builder: &mut Builder<R>,
        name: &str,
        shape: (usize, usize),
        gain: f64,
    ) -> Linear {
        let deviation = gain / (shape.0 as f64).sqrt();
        Linear { weight: builder.normal(name, shape, deviation) }
    }
}

/// What a linear layer multiplies at W, `input^T output_grad`; a norm the same, elementwise.
pub(crate) struct Product<R> {
    input: Array2<R>,
    output_grad: Array2<R>,
}

impl<R: Real> Layer<R> for Linear {
    type Saved = Array2<R>;
    type Pending = Product<R>;

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        (input.dot(params.matrix(self.weight)), input)
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        input: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        let input_grad = output_grad.dot(&params.matrix(self.weight).t());
        (input_grad, Product { input, output_grad })
    }

    fn backward_weight(&self, pending: Self::Pending, grads: &mut Tensors<R>) {
        let Product { input, output_grad } = pending;
        // Not accumulated inside the product: whole products are the same bits in every order of micro-batches.
        *grads.matrix_mut(self.weight) += &input.t().dot(&output_grad);
    }
}

/// RMSNorm (arXiv 1910.07467): `y = x / rms(x) * gain`, by row.
pub(crate) struct RmsNorm {
    gain: MatrixId,
}

impl RmsNorm {
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, name: &str, width: usize) -> RmsNorm {
        RmsNorm { gain: builder.ones(name, (1, width)) }
    }
}

/// What [`RmsNorm`] saves.
pub(crate) struct SavedNorm<R> {
    /// `x / rms(x)`.
    normalized: Array2<R>,
    /// `1 / rms(x)`, by row.
    scale: Array1<R>,
}

impl<R: Real> Layer<R> for RmsNorm {
    type Saved = SavedNorm<R>;
    /// Of the normalized input.
    type Pending = Product<R>;

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        let width = R::of(input.ncols() as f64);
        let scale = input.map_axis(Axis(1), |row| (row.dot(&row) / width + R::of(1e-6)).sqrt().recip());
        let mut normalized = input;
        normalized *= &scale.view().insert_axis(Axis(1));
        let output = &normalized * params.matrix(self.gain);
        (output, SavedNorm { normalized, scale })
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        saved: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        let SavedNorm { normalized, scale } = saved;
        let width = R::of(normalized.ncols() as f64);
        let mut grad = &output_grad * params.matrix(self.gain);
        Zip::from(grad.rows_mut()).and(normalized.rows()).and(&scale).for_each(
            |mut grad, normalized, &scale| {
                // The part of the gradient along x only changes rms(x), which the division takes out again.
                let along = grad.dot(&normalized) / width;
                Zip::from(&mut grad).and(normalized).for_each(|g, &n| *g = (*g - n * along) * scale);
            },
        );
        let input = normalized;
        (grad, Product { input, output_grad })
    }

    fn backward_weight(&self, pending: Self::Pending, grads: &mut Tensors<R>) {
        let grad = (pending.input * pending.output_grad).sum_axis(Axis(0));
        *grads.matrix_mut(self.gain) += &grad;
    }
}

/// `y = x + layer(norm(x))`.
pub(crate) struct Residual<L> {
    pub(crate) norm: RmsNorm,
    pub(crate) layer: L,
}

impl<R: Real, L: Layer<R>> Layer<R> for Residual<L> {
    type Saved = (SavedNorm<R>, L::Saved);
    type Pending = (Product<R>, L::Pending);

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        let (normalized, norm) = self.norm.forward(params, input.clone());
        let (mut output, layer) = self.layer.forward(params, normalized);
        output += &input;
        (output, (norm, layer))
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        (norm, layer): Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        let (grad, layer) = self.layer.backward_input(params, layer, output_grad.clone());
        let (mut input_grad, norm) = self.norm.backward_input(params, norm, grad);
        input_grad += &output_grad;
        (input_grad, (norm, layer))
    }

    fn backward_weight(&self, (norm, layer): Self::Pending, grads: &mut Tensors<R>) {
        self.norm.backward_weight(norm, grads);
        self.layer.backward_weight(layer, grads);
    }
}

/// Turns a row of logits into probabilities.
pub(crate) fn softmax<R: Real>(mut row: ArrayViewMut1<'_, R>) {
    let highest = row.fold(R::neg_infinity(), |a, &b| a.max(b));
    row.mapv_inplace(|x| (x - highest).exp());
    let sum = row.sum();
    row /= sum;
}
