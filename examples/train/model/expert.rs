//! One expert: two linear layers with a SiLU between them.

use ndarray::Array2;

use super::layer::{Layer, Linear, Product};
use super::tensors::{Builder, Tensors};
use super::{Config, Real};

/// `y = silu(x up) down`.
pub(crate) struct Expert {
    up: Linear,
    down: Linear,
}

/// What [`Expert`] saves.
pub(crate) struct SavedExpert<R> {
    up_input: Array2<R>,
    /// Before the SiLU.
    hidden: Array2<R>,
    down_input: Array2<R>,
}

impl Expert {
    /// Expert `index` of a stage.
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, index: usize, config: &Config, gain: f64) -> Expert {
        let (width, hidden) = (config.width, config.hidden);
        let [up, down] = ["up", "down"].map(|part| format!("expert{index}.{part}"));
        Expert {
            up: Linear::new(builder, &up, (width, hidden), 1.0),
            down: Linear::new(builder, &down, (hidden, width), gain),
        }
    }
}

impl<R: Real> Layer<R> for Expert {
    type Saved = SavedExpert<R>;
    type Pending = [Product<R>; 2];

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        let (hidden, up_input) = self.up.forward(params, input);
        let activated = hidden.mapv(|x| x * sigmoid(x));
        let (output, down_input) = self.down.forward(params, activated);
        let saved = SavedExpert { up_input, hidden, down_input };
        (output, saved)
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        saved: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        let (mut grad, down) = self.down.backward_input(params, saved.down_input, output_grad);
        grad.zip_mut_with(&saved.hidden, |g, &x| {
            let s = sigmoid(x);
            *g *= s * (R::one() + x * (R::one() - s));
        });
        let (input_grad, up) = self.up.backward_input(params, saved.up_input, grad);
        (input_grad, [up, down])
    }

    fn backward_weight(&self, [up, down]: Self::Pending, grads: &mut Tensors<R>) {
        self.up.backward_weight(up, grads);
        self.down.backward_weight(down, grads);
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    ((-x).exp() + R::one()).recip()
}
