//! Named matrices: the parameters of a stage, or their gradients, or an optimizer's moments.

use std::sync::Arc;

use ndarray::Array2;

use super::Real;

/// A matrix of a [`Tensors`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixId(usize);

/// The matrices of a stage. Parameters and gradients of a stage have the same names and shapes in the same order.
#[derive(Clone, Debug)]
pub(crate) struct Tensors<R = f32> {
    names: Arc<Vec<String>>,
    matrices: Vec<Array2<R>>,
}

impl<R: Real> Tensors<R> {
    /// The same matrices, all zero.
    pub(crate) fn zeros_like(&self) -> Tensors<R> {
        Tensors {
            names: Arc::clone(&self.names),
            matrices: self.matrices.iter().map(|m| Array2::zeros(m.dim())).collect(),
        }
    }

    /// The matrix `id`.
    pub(crate) fn matrix(&self, id: MatrixId) -> &Array2<R> {
        &self.matrices[id.0]
    }

    /// The matrix `id`, to change.
    pub(crate) fn matrix_mut(&mut self, id: MatrixId) -> &mut Array2<R> {
        &mut self.matrices[id.0]
    }

    /// Every matrix with its name, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&str, &Array2<R>)> {
        self.names.iter().map(String::as_str).zip(&self.matrices)
    }

    /// Every number, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &R> {
        self.matrices.iter().flatten()
    }

    /// Every number, in order, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut R> {
        self.matrices.iter_mut().flatten()
    }

    /// Adds `other`, which has the same matrices.
    pub(crate) fn add(&mut self, other: &Tensors<R>) {
        for (sum, term) in self.matrices.iter_mut().zip(&other.matrices) {
            *sum += term;
        }
    }

    /// Sets every number to zero.
    pub(crate) fn clear(&mut self) {
        for matrix in &mut self.matrices {
            matrix.fill(R::zero());
        }
    }
}

/// Collects the parameters of a stage as its layers are made, and draws their first values.
pub(crate) struct Builder<R> {
    rng: fastrand::Rng,
    names: Vec<String>,
    matrices: Vec<Array2<R>>,
}

impl<R: Real> Builder<R> {
    /// No parameters yet; the same `seed` draws the same values.
    pub(crate) fn new(seed: u64) -> Builder<R> {
        Builder { rng: fastrand::Rng::with_seed(seed), names: Vec::new(), matrices: Vec::new() }
    }

    /// A `[rows, columns]` matrix of normal random numbers with the given standard deviation.
    pub(crate) fn normal(&mut self, name: &str, shape: (usize, usize), deviation: f64) -> MatrixId {
        let rng = &mut self.rng;
        let matrix = Array2::from_shape_simple_fn(shape, || R::of(deviation * normal(rng)));
        self.push(name, matrix)
    }

    /// A `[rows, columns]` matrix of ones.
    pub(crate) fn ones(&mut self, name: &str, shape: (usize, usize)) -> MatrixId {
        self.push(name, Array2::ones(shape))
    }

    /// What was collected.
    pub(crate) fn finish(self) -> Tensors<R> {
        Tensors { names: Arc::new(self.names), matrices: self.matrices }
    }

    fn push(&mut self, name: &str, matrix: Array2<R>) -> MatrixId {
        self.names.push(name.to_string());
        self.matrices.push(matrix);
        MatrixId(self.matrices.len() - 1)
    }
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    // 1 - x lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}
