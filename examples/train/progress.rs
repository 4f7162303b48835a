//! How far the training is: a line now and then, and at the end the loss as a curve.

use std::time::Instant;

/// Lines while it trains, about.
const LINES: usize = 6;
/// Widest curve.
const COLUMNS: usize = 48;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The losses so far.
pub(crate) struct Progress {
    num_steps: usize,
    start: Instant,
    losses: Vec<f64>,
}

impl Progress {
    pub(crate) fn new(num_steps: usize) -> Progress {
        println!();
        Progress { num_steps, start: Instant::now(), losses: Vec::new() }
    }

    /// After each step.
    pub(crate) fn show(&mut self, loss: f64) {
        let step = self.losses.len();
        self.losses.push(loss);
        if step % self.num_steps.div_ceil(LINES) == 0 || step + 1 == self.num_steps {
            let seconds = self.start.elapsed().as_secs_f64();
            println!("  step {step:4}   loss {loss:.3}   {seconds:5.1} s");
        }
    }

    /// After the last one.
    pub(crate) fn conclude(&self) {
        if let (Some(first), Some(last)) = (self.losses.first(), self.losses.last()) {
            println!("  {}  {first:.3} to {last:.3} nats per byte", curve(&self.losses));
        }
    }
}

/// The losses from left to right, each column the mean of as many; the highest and the lowest column span the bars.
fn curve(losses: &[f64]) -> String {
    let columns: Vec<f64> = losses
        .chunks(losses.len().div_ceil(COLUMNS).max(1))
        .map(|losses| losses.iter().sum::<f64>() / losses.len() as f64)
        .collect();
    let least = columns.iter().copied().fold(f64::INFINITY, f64::min);
    let most = columns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |loss: &f64| {
        let height = (loss - least) / (most - least).max(f64::MIN_POSITIVE);
        BARS[((height * BARS.len() as f64) as usize).min(BARS.len() - 1)]
    };
    columns.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_spans_the_bars_and_the_columns() {
        assert_eq!(curve(&[4.0, 3.0, 2.0, 1.0]), "█▆▃▁");
        assert_eq!(curve(&[2.0]), "▁");
        let long: Vec<f64> = (0..1000).map(f64::from).collect();
        assert!(curve(&long).chars().count() <= COLUMNS);
        assert!(curve(&long).starts_with('▁') && curve(&long).ends_with('█'));
    }
}
