//! Adam (arXiv 1412.6980), algorithm 1, with a linear warm-up of the learning rate.

use crate::model::Tensors;

const LEARNING_RATE: f32 = 3e-3;
pub(crate) const BETA_1: f32 = 0.9;
pub(crate) const BETA_2: f32 = 0.99;
pub(crate) const EPSILON: f32 = 1e-8;
const NUM_WARM_UP_STEPS: i32 = 10;

/// What step `num_steps`, from 1, multiplies the first moments with, and the second.
pub(crate) fn factors(num_steps: i32) -> (f32, f32) {
    let warm_up = (num_steps as f32 / NUM_WARM_UP_STEPS as f32).min(1.0);
    // The moments start at zero; these divisions make up for it.
    let rate = warm_up * LEARNING_RATE / (1.0 - BETA_1.powi(num_steps));
    (rate, 1.0 / (1.0 - BETA_2.powi(num_steps)))
}

/// The moments of one stage copy's gradients.
pub(crate) struct Adam {
    first: Tensors,
    second: Tensors,
    num_steps: i32,
}

impl Adam {
    pub(crate) fn new(params: &Tensors) -> Adam {
        Adam { first: params.zeros_like(), second: params.zeros_like(), num_steps: 0 }
    }

    /// Moves `params` against `scale * grads`.
    pub(crate) fn step(&mut self, params: &mut Tensors, grads: &Tensors, scale: f32) {
        self.num_steps = self.num_steps.saturating_add(1);
        let (rate, second_scale) = factors(self.num_steps);
        let moments = self.first.iter_mut().zip(self.second.iter_mut());
        for ((param, grad), (first, second)) in params.iter_mut().zip(grads.iter()).zip(moments) {
            let grad = scale * grad;
            *first = BETA_1 * *first + (1.0 - BETA_1) * grad;
            *second = BETA_2 * *second + (1.0 - BETA_2) * grad * grad;
            *param -= rate * *first / ((second_scale * *second).sqrt() + EPSILON);
        }
    }
}
