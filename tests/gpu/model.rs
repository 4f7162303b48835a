//! What a step computes: a schedule, the weights of its stages, its micro-batches, and the same in f64 on the host.

use std::sync::Arc;

use dualpipe::execute::{Boundaries, DType, TensorSpec};
use dualpipe::ids::{Direction, Stage};
use dualpipe::op::StageCopy;
use dualpipe::schedule::Schedule;

use crate::driver::Outcome;
use crate::math::Number;
use crate::mlp::Sizes;

/// A model and the micro-batches of a step.
pub(crate) struct Model {
    pub(crate) schedule: Schedule,
    pub(crate) sizes: Sizes,
    /// By stage; the same in both directions.
    pub(crate) weights: Vec<Vec<f32>>,
    /// By direction and micro-batch: what goes into stage 0, and what should come out of the last.
    pub(crate) inputs: Vec<Vec<Vec<f32>>>,
    pub(crate) targets: Vec<Vec<Vec<f32>>>,
}

impl Model {
    pub(crate) fn new(schedule: Schedule, sizes: Sizes, seed: u64) -> Arc<Model> {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Weights are such that a product neither grows nor shrinks what it is given by much.
        let mut numbers = |count: usize, scale: f64| {
            let number = |_| exact(sizes.number, (scale * (2.0 * rng.f64() - 1.0)) as f32);
            (0..count).map(number).collect::<Vec<f32>>()
        };
        let half = sizes.weights() / 2;
        let stage = |_| {
            let scale = |depth: usize| (3.0 / depth as f64).sqrt();
            [numbers(half, scale(sizes.width)), numbers(half, scale(sizes.hidden))].concat()
        };
        let weights = (0..schedule.placement().num_stages()).map(stage).collect();
        let mut batch = || {
            let mut one = |direction| {
                let count = schedule.microbatches_in(direction);
                (0..count).map(|_| numbers(sizes.boundary(), 1.0)).collect()
            };
            Direction::ALL.map(&mut one).to_vec()
        };
        let (inputs, targets) = (batch(), batch());
        Arc::new(Model { schedule, sizes, weights, inputs, targets })
    }

    /// All copies, in the order of their numbers.
    pub(crate) fn copies(&self) -> Vec<StageCopy> {
        let placement = self.schedule.placement();
        let directions = &Direction::ALL[..placement.num_directions()];
        let copies = directions.iter().flat_map(|&direction| {
            (0..placement.num_stages()).map(move |stage| StageCopy { direction, stage: Stage(stage as u16) })
        });
        copies.collect()
    }

    pub(crate) fn is_last(&self, copy: StageCopy) -> bool {
        copy.stage.index() + 1 == self.schedule.placement().num_stages()
    }

    /// One tensor at each boundary.
    pub(crate) fn boundaries(&self) -> Outcome<Boundaries> {
        let dtype = match self.sizes.number {
            Number::F32 => DType::F32,
            Number::Bf16 => DType::BF16,
        };
        let shape = [self.sizes.tokens as i64, self.sizes.width as i64];
        let spec = TensorSpec::new(dtype, shape).map_err(|why| why.to_string())?;
        Boundaries::uniform(vec![spec]).map_err(|why| why.to_string())
    }
}

/// The nearest number that the type has.
fn exact(number: Number, value: f32) -> f32 {
    match number {
        Number::F32 => value,
        Number::Bf16 => f32::from_bits(u32::from(bf16(value)) << 16),
    }
}

/// The bits of the nearest bf16, the even one of two that are as near.
pub(crate) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Gradients and loss of each copy, summed over its micro-batches, in f64.
pub(crate) struct Reference {
    pub(crate) grads: Vec<Vec<f64>>,
    pub(crate) losses: Vec<f64>,
}

/// `c += a b` by strides of rows and columns: `size` are rows, columns and depth; c has no gaps.
fn multiply(a: &[f64], b: &[f64], c: &mut [f64], [rows, columns, depth]: [usize; 3], strides: [usize; 4]) {
    for i in 0..rows {
        for k in 0..depth {
            let factor = a[i * strides[0] + k * strides[1]];
            for j in 0..columns {
                c[i * columns + j] += factor * b[k * strides[2] + j * strides[3]];
            }
        }
    }
}

impl Reference {
    pub(crate) fn new(model: &Model) -> Reference {
        let copies = model.copies();
        let mut reference = Reference {
            grads: vec![vec![0.0; model.sizes.weights()]; copies.len()],
            losses: vec![0.0; copies.len()],
        };
        for direction in 0..model.schedule.placement().num_directions() {
            for (input, target) in model.inputs[direction].iter().zip(&model.targets[direction]) {
                reference.add(model, direction, input, target);
            }
        }
        reference
    }

    /// One micro-batch, forward and backward.
    fn add(&mut self, model: &Model, direction: usize, input: &[f32], target: &[f32]) {
        let Sizes { tokens, width, hidden, .. } = model.sizes;
        let (half, num_stages) = (width * hidden, model.weights.len());
        let double = |numbers: &[f32]| numbers.iter().map(|&number| f64::from(number)).collect::<Vec<f64>>();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let weights: Vec<Vec<f64>> = model.weights.iter().map(|weights| double(weights)).collect();
        let mut x = double(input);
        let mut kept = Vec::new();
        for weights in &weights {
            let mut before = vec![0.0; tokens * hidden];
            multiply(&x, weights, &mut before, [tokens, hidden, width], [width, 1, hidden, 1]);
            let after: Vec<f64> = before.iter().map(|&x| x * sigmoid(x)).collect();
            let mut y = x.clone();
            multiply(&after, &weights[half..], &mut y, [tokens, width, hidden], [hidden, 1, width, 1]);
            kept.push((std::mem::replace(&mut x, y), before, after));
        }
        let count = x.len() as f64;
        let difference: Vec<f64> = x.iter().zip(target).map(|(y, &target)| y - f64::from(target)).collect();
        let first = direction * num_stages;
        self.losses[first + num_stages - 1] += difference.iter().map(|d| d * d).sum::<f64>() / count;
        let mut grad: Vec<f64> = difference.iter().map(|d| 2.0 * d / count).collect();
        for (stage, (x, before, after)) in kept.iter().enumerate().rev() {
            let mut inner = vec![0.0; tokens * hidden];
            multiply(
                &grad,
                &weights[stage][half..],
                &mut inner,
                [tokens, hidden, width],
                [width, 1, 1, width],
            );
            for (grad, &x) in inner.iter_mut().zip(before) {
                let s = sigmoid(x);
                *grad *= s * (1.0 + x * (1.0 - s));
            }
            let (w1, w2) = self.grads[first + stage].split_at_mut(half);
            multiply(x, &inner, w1, [width, hidden, tokens], [1, width, hidden, 1]);
            multiply(after, &grad, w2, [hidden, width, tokens], [1, hidden, width, 1]);
            multiply(&inner, &weights[stage], &mut grad, [tokens, width, hidden], [hidden, 1, 1, hidden]);
        }
    }
}
