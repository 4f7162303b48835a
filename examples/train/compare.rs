//! A step's gradients against those of the sequential run, within what the order of summation can explain.
//!
//! Each of the n micro-batches adds one number g to a gradient, the same bits whoever computes it; only the order of
//! the additions differs between schedules. However f32 numbers are added, the sum is off by at most
//! `(n - 1) u / (1 - (n - 1) u)` times the sum of all |g|, where u = 2^-24 (Higham, *Accuracy and Stability of
//! Numerical Algorithms*, section 4.2). Two sums differ by at most twice that: the tolerance, different for each
//! gradient.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Config, Tensors};
use crate::sequential::Sequential;
use crate::text::Batch;

/// How two sets of gradients differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Comparison {
    num_gradients: usize,
    num_equal: usize,
    /// The largest difference, as a share of its tolerance.
    pub(crate) worst: f64,
    /// Where that is: stage and parameter.
    worst_at: String,
    /// How long the sequential run took, on one core.
    pub(crate) sequential: Duration,
}

impl Comparison {
    /// Whether every difference is within its tolerance.
    pub(crate) fn is_within_tolerance(&self) -> bool {
        self.worst <= 1.0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.num_equal as f64 / self.num_gradients.max(1) as f64;
        write!(f, "{} gradients, {percent:.1} % of them equal to the bit", self.num_gradients)?;
        if self.worst > 0.0 {
            let (worst, at) = (self.worst, &self.worst_at);
            write!(f, ";\n  the largest difference is {worst:.3} of its tolerance, at {at}")?;
        }
        Ok(())
    }
}

/// Compares `grads`, by stage and summed over the step, with the sequential run's for the same `params` and `batch`.
pub(crate) fn compare_with_sequential(
    config: Config,
    params: &[&Tensors],
    grads: &[&Tensors],
    batch: &Arc<Batch>,
) -> Result<Comparison, String> {
    let mut sequential = Sequential::new(config, 0);
    for (stage, params) in params.iter().enumerate() {
        sequential.set_params(stage, params)?;
    }
    let mut magnitudes: Vec<Vec<f64>> = Vec::new();
    for stage in sequential.stages() {
        magnitudes.push(stage.grads.iter().map(|_| 0.0).collect());
    }
    for microbatch in batch.one_by_one() {
        sequential.forward_backward(&Arc::new(microbatch))?;
        for (magnitudes, stage) in magnitudes.iter_mut().zip(sequential.stages()) {
            for (magnitude, grad) in magnitudes.iter_mut().zip(stage.grads.iter()) {
                *magnitude += f64::from(grad.abs());
            }
        }
    }
    let start = Instant::now();
    sequential.forward_backward(batch)?;
    let mut comparison = Comparison { sequential: start.elapsed(), ..Comparison::default() };

    let error = (batch.num_microbatches() as f64 - 1.0) * f64::from(f32::EPSILON) / 2.0;
    let tolerance = 2.0 * error / (1.0 - error);
    let stages = sequential.stages().zip(grads).zip(&magnitudes);
    for (stage, ((expected, grads), magnitudes)) in stages.enumerate() {
        let mut magnitudes = magnitudes.iter();
        for ((name, expected), (_, grads)) in expected.grads.groups().zip(grads.groups()) {
            for ((expected, grad), magnitude) in expected.iter().zip(grads).zip(magnitudes.by_ref()) {
                comparison.num_gradients += 1;
                if expected == grad {
                    comparison.num_equal += 1;
                    continue;
                }
                let difference = (f64::from(*expected) - f64::from(*grad)).abs();
                let share = difference / (tolerance * magnitude);
                // A gradient that is not a number must not pass for a small difference.
                if share.is_nan() || share > comparison.worst {
                    comparison.worst = if share.is_nan() { f64::INFINITY } else { share };
                    comparison.worst_at = format!("stage {stage}, {name}");
                }
            }
        }
    }
    Ok(comparison)
}
