//! Loads of experts, checked: of one step, or of the steps of a window.

use super::goal::Goal;
use crate::error::{in_range, Error, Result};

/// How much each expert had to do: tokens, or any measure that adds up.
#[derive(Clone, Copy, Debug)]
pub struct Loads<'a> {
    values: &'a [f32],
    num_steps: usize,
    num_layers: usize,
    num_experts: usize,
}

/// What a layer's loads of all steps may add up to: far enough below float32's 3.4e38 that no rounded sum of them
/// overflows.
const LAYER_LOAD_MAX: f64 = 1e38;
const STEPS_MAX: usize = 1 << 16;

impl<'a> Loads<'a> {
    /// `values` are row major `[num_steps, num_layers, num_experts]`; all numbers at least 1.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not so many values, more than 65536 steps, a load that is negative or not finite, loads of a
    /// layer that add up to more than 1e38.
    pub fn new(
        values: &'a [f32],
        num_steps: usize,
        num_layers: usize,
        num_experts: usize,
    ) -> Result<Loads<'a>> {
        in_range("balance", "num_steps", num_steps, 1..=STEPS_MAX)?;
        let num_values = num_layers.checked_mul(num_experts).and_then(|n| n.checked_mul(num_steps));
        if num_values != Some(values.len()) {
            let (steps, factors) = match num_steps {
                1 => ("", format!("{num_layers} * {num_experts}")),
                _ => ("num_steps * ", format!("{num_steps} * {num_layers} * {num_experts}")),
            };
            let product = num_values.map_or(String::new(), |n| format!(" = {n}"));
            let range = format!("must be {steps}num_layers * num_experts = {factors}{product}");
            return Err(Error::argument("balance", "the number of loads", values.len(), range));
        }
        let loads = Loads { values, num_steps, num_layers, num_experts };
        for layer in 0..num_layers {
            loads.check_layer(layer)?;
        }
        Ok(loads)
    }

    /// Whether they are of the goal's layers and experts.
    pub(super) fn check_sizes(&self, goal: &Goal) -> Result<()> {
        for (argument, of_loads, of_goal) in [
            ("num_layers", self.num_layers, goal.num_layers),
            ("num_experts", self.num_experts, goal.num_experts),
        ] {
            if of_loads != of_goal {
                let range = format!("must be the goal's, {of_goal}");
                return Err(Error::argument("balance", format!("{argument} of the loads"), of_loads, range));
            }
        }
        Ok(())
    }

    /// Steps of the window.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// `[num_experts]`: the loads of a layer in one step.
    pub fn of(&self, step: usize, layer: usize) -> &'a [f32] {
        &self.values[(step * self.num_layers + layer) * self.num_experts..][..self.num_experts]
    }

    /// The loads of a layer in every step.
    pub(super) fn steps_of(&self, layer: usize) -> impl Iterator<Item = &'a [f32]> + '_ {
        (0..self.num_steps).map(move |step| self.of(step, layer))
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        let mut sum = 0.0;
        for (step, loads) in self.steps_of(layer).enumerate() {
            // Without an early exit, to be vectorised.
            if !loads.iter().fold(true, |all, &load| all & is_load(load)) {
                let expert = loads.iter().position(|&load| !is_load(load)).unwrap_or(0);
                let step = if self.num_steps == 1 { String::new() } else { format!("step {step}, ") };
                return Err(Error::argument(
                    "balance",
                    format!("loads[{step}layer {layer}, expert {expert}]"),
                    format!("{:?}", loads[expert]),
                    "must be finite and not negative",
                ));
            }
            sum += total(loads);
        }
        if sum > LAYER_LOAD_MAX {
            return Err(Error::argument(
                "balance",
                format!("the sum of layer {layer}'s loads"),
                format!("{sum:.3e}"),
                format!("must be at most {LAYER_LOAD_MAX:e}"),
            ));
        }
        Ok(())
    }
}

fn is_load(load: f32) -> bool {
    // False for NaN.
    (0.0..=f32::MAX).contains(&load)
}

/// Makes of `sums` the load of each expert over all steps, of which there is at least one, each `[num_experts]`.
pub(super) fn add_up(steps: &[&[f32]], sums: &mut Vec<f64>) {
    sums.clear();
    sums.resize(steps[0].len(), 0.0);
    for step in steps {
        sums.iter_mut().zip(*step).for_each(|(sum, &load)| *sum += f64::from(load));
    }
}

/// The sum in float64, in a fixed order that leaves the processor eight sums to do at once.
pub(super) fn total(loads: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let chunks = loads.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().copied().map(f64::from).sum();
    for chunk in chunks {
        for (sum, &load) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(load);
        }
    }
    sums.iter().sum::<f64>() + rest
}
