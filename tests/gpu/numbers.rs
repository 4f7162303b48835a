//! What a step makes, and how it is compared.

use crate::driver::{Outcome, Stream};
use crate::mlp::Mlp;
use crate::model::Reference;

/// Of one copy of a stage.
#[derive(Clone, PartialEq)]
pub(crate) struct CopyNumbers {
    pub(crate) grads: Vec<f32>,
    /// The sum of both copies' gradients; where there is one copy, its own.
    pub(crate) reduced: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) loss: Vec<f32>,
}

impl CopyNumbers {
    /// When `stream` has come here.
    pub(crate) fn of(mlp: &Mlp, stream: &Stream) -> Outcome<CopyNumbers> {
        Ok(CopyNumbers {
            grads: mlp.grads.download(stream)?,
            reduced: mlp.reduced.download(stream)?,
            weights: mlp.weights(stream)?,
            loss: mlp.loss.download(stream)?,
        })
    }

    fn lists(&self) -> [(&'static str, &[f32]); 4] {
        [
            ("gradients", &self.grads),
            ("summed gradients", &self.reduced),
            ("weights", &self.weights),
            ("loss", &self.loss),
        ]
    }
}

/// Whether all bits are the same: how many numbers were compared, or the first that differs.
pub(crate) fn same_bits(got: &[CopyNumbers], want: &[CopyNumbers]) -> Outcome<usize> {
    if got.len() != want.len() {
        return Err(format!("{} copies, not {}", got.len(), want.len()));
    }
    let mut count = 0;
    for (copy, (got, want)) in got.iter().zip(want).enumerate() {
        for ((name, got), (_, want)) in got.lists().into_iter().zip(want.lists()) {
            let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
            if let Some(i) = got.iter().zip(want).position(differs).or((got.len() != want.len()).then_some(0))
            {
                let (got, want) = (got.get(i), want.get(i));
                return Err(format!("copy {copy}, {name}, number {i}: {got:?}, not {want:?}"));
            }
            count += got.len();
        }
    }
    Ok(count)
}

/// The largest `|got - want| / |want|` of any copy's gradients, of the summed gradients and of the losses, in the
/// Euclidean norm.
pub(crate) fn distance(got: &[CopyNumbers], want: &Reference) -> f64 {
    let num_copies = got.len();
    let relative = |got: &[f32], want: &[f64]| {
        let square = |x: f64| x * x;
        let far: f64 = got.iter().zip(want).map(|(&got, want)| square(f64::from(got) - want)).sum();
        let size: f64 = want.iter().map(|&want| square(want)).sum();
        match far.is_finite() && got.len() == want.len() && size > 0.0 {
            true => (far / size).sqrt(),
            false => f64::INFINITY,
        }
    };
    // Copies are in order of direction and stage; with two directions a stage's are half of all apart.
    let is_replicated = got.iter().any(|numbers| numbers.reduced != numbers.grads);
    let summed = |copy: usize| match is_replicated {
        true => {
            let twin = (copy + num_copies / 2) % num_copies;
            want.grads[copy].iter().zip(&want.grads[twin]).map(|(a, b)| a + b).collect()
        }
        false => want.grads[copy].clone(),
    };
    let of_copy = |(copy, numbers): (usize, &CopyNumbers)| {
        let loss = match want.losses[copy] {
            0.0 => f64::from(numbers.loss[0].abs()),
            want => (f64::from(numbers.loss[0]) - want).abs() / want,
        };
        let grads = relative(&numbers.grads, &want.grads[copy]);
        grads.max(relative(&numbers.reduced, &summed(copy))).max(loss)
    };
    got.iter()
        .enumerate()
        .map(of_copy)
        .fold(0.0, |most, one| if one > most || one.is_nan() { one } else { most })
}
