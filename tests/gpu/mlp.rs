//! A stage on the device, a residual layer of two products: `y = x + silu(x w1) w2`. The last stage ends in the mean of
//! `(y - target)^2`.

use crate::driver::{CUdeviceptr, CUstream, Outcome, Stream};
use crate::math::{Matrix, Number, Queue};
use crate::memory::Memory;

/// The sizes of all stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Rows of a micro-batch.
    pub(crate) tokens: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) number: Number,
}

impl Sizes {
    /// Numbers that cross a boundary.
    pub(crate) fn boundary(&self) -> usize {
        self.tokens * self.width
    }

    /// Numbers of a stage's weights: of `w1` and `w2`, each half.
    pub(crate) fn weights(&self) -> usize {
        2 * self.width * self.hidden
    }

    fn boundary_bytes(&self) -> usize {
        self.boundary() * self.number.bytes()
    }
}

/// What a micro-batch keeps at a stage from F to W.
struct Kept {
    before_silu: Memory,
    hidden: Memory,
    hidden_grad: Memory,
    /// At the last stage: the output, and the loss's gradient for it.
    output: Memory,
    output_grad: Memory,
}

/// Memory for what is over when the next kernels are enqueued behind: one for each stream.
pub(crate) struct Scratch {
    narrow: Memory,
    wide: [Memory; 2],
}

impl Scratch {
    pub(crate) fn new(sizes: &Sizes) -> Outcome<Scratch> {
        let most =
            [sizes.boundary(), sizes.tokens * sizes.hidden, sizes.weights()].into_iter().max().unwrap_or(0);
        let wide = || Memory::new(4 * most);
        Ok(Scratch { narrow: wide()?, wide: [wide()?, wide()?] })
    }

    fn wide(&self) -> [CUdeviceptr; 2] {
        [self.wide[0].address(), self.wide[1].address()]
    }
}

/// A stage's weights and gradients, and its micro-batches.
pub(crate) struct Mlp {
    sizes: Sizes,
    /// f32; what products read is `weights`.
    master: Memory,
    weights: Memory,
    pub(crate) grads: Memory,
    /// The sum of both copies' gradients.
    pub(crate) reduced: Memory,
    /// One f32: the sum of its micro-batches' losses.
    pub(crate) loss: Memory,
    kept: Vec<Kept>,
}

impl Mlp {
    /// With these weights, for so many micro-batches.
    pub(crate) fn new(
        queue: &Queue<'_>,
        stream: &Stream,
        sizes: Sizes,
        weights: &[f32],
        num_microbatches: usize,
    ) -> Outcome<Mlp> {
        let Sizes { tokens, hidden, number, .. } = sizes;
        let kept = || {
            let [wide, boundary] = [tokens * hidden * number.bytes(), sizes.boundary_bytes()];
            Ok(Kept {
                before_silu: Memory::new(wide)?,
                hidden: Memory::new(wide)?,
                hidden_grad: Memory::new(wide)?,
                output: Memory::new(boundary)?,
                output_grad: Memory::new(boundary)?,
            })
        };
        let count = sizes.weights();
        let mlp = Mlp {
            sizes,
            master: Memory::with(weights, stream)?,
            weights: Memory::new(count * number.bytes())?,
            grads: Memory::zeros(4 * count, stream)?,
            reduced: Memory::zeros(4 * count, stream)?,
            loss: Memory::zeros(4, stream)?,
            kept: (0..num_microbatches).map(|_| kept()).collect::<Outcome<_>>()?,
        };
        queue.narrow(mlp.master.address(), mlp.weights.address(), count)?;
        Ok(mlp)
    }

    /// `w1` as [width, hidden], `w2` as [hidden, width].
    fn matrices(&self) -> [Matrix; 2] {
        let Sizes { width, hidden, number, .. } = self.sizes;
        let first = self.weights.address();
        let second = first + (width * hidden * number.bytes()) as u64;
        [Matrix::new(first, hidden), Matrix::new(second, width)]
    }

    /// F. Without a place for the output it is the last stage's, whose loss and gradient come of `target` (f32).
    pub(crate) fn forward(
        &self,
        queue: &Queue<'_>,
        scratch: &Scratch,
        microbatch: usize,
        input: CUdeviceptr,
        output: Result<CUdeviceptr, CUdeviceptr>,
    ) -> Outcome {
        let Sizes { tokens, width, hidden, .. } = self.sizes;
        let (kept, [w1, w2]) = (&self.kept[microbatch], self.matrices());
        let to = output.unwrap_or(kept.output.address());
        queue.product(
            Matrix::new(input, width),
            w1,
            kept.before_silu.address(),
            [tokens, hidden, width],
            0.0,
        )?;
        let (x, out) = (kept.before_silu.address(), kept.hidden.address());
        queue.silu(x, out, scratch.wide(), tokens * hidden)?;
        queue.copy(input, to, self.sizes.boundary_bytes())?;
        queue.product(Matrix::new(out, hidden), w2, to, [tokens, width, hidden], 1.0)?;
        match output {
            Ok(_) => Ok(()),
            Err(target) => self.end(queue, scratch, kept, target),
        }
    }

    fn end(&self, queue: &Queue<'_>, scratch: &Scratch, kept: &Kept, target: CUdeviceptr) -> Outcome {
        let (count, [difference, grad]) = (self.sizes.boundary(), scratch.wide());
        let mean = 1.0 / count as f32;
        queue.widen(kept.output.address(), difference, count)?;
        queue.axpy(-1.0, target, difference, count)?;
        queue.add_squares(difference, mean, self.loss.address(), count)?;
        queue.fill(grad, 0.0, count)?;
        queue.axpy(2.0 * mean, difference, grad, count)?;
        queue.narrow(grad, kept.output_grad.address(), count)
    }

    /// I. The last stage takes its own gradient, the first makes none.
    pub(crate) fn backward_input(
        &self,
        queue: &Queue<'_>,
        scratch: &Scratch,
        microbatch: usize,
        output_grad: Option<CUdeviceptr>,
        input_grad: Option<CUdeviceptr>,
    ) -> Outcome {
        let Sizes { tokens, width, hidden, .. } = self.sizes;
        let (kept, [w1, w2]) = (&self.kept[microbatch], self.matrices());
        let grad = output_grad.unwrap_or(kept.output_grad.address());
        let (out_grad, hidden_grad) = (scratch.narrow.address(), kept.hidden_grad.address());
        let size = [tokens, hidden, width];
        queue.product(Matrix::new(grad, width), w2.transposed(), out_grad, size, 0.0)?;
        let x = kept.before_silu.address();
        queue.silu_backward(x, out_grad, hidden_grad, scratch.wide(), tokens * hidden)?;
        let Some(to) = input_grad else { return Ok(()) };
        queue.copy(grad, to, self.sizes.boundary_bytes())?;
        queue.product(Matrix::new(hidden_grad, hidden), w1.transposed(), to, [tokens, width, hidden], 1.0)
    }

    /// W: adds to the gradients, which are f32 whatever the activations are.
    pub(crate) fn backward_weight(
        &self,
        queue: &Queue<'_>,
        scratch: &Scratch,
        microbatch: usize,
        input: CUdeviceptr,
        output_grad: Option<CUdeviceptr>,
    ) -> Outcome {
        let Sizes { tokens, width, hidden, number } = self.sizes;
        let kept = &self.kept[microbatch];
        let grad = output_grad.unwrap_or(kept.output_grad.address());
        let half = width * hidden;
        let (x, hidden_grad) = (Matrix::new(input, width), Matrix::new(kept.hidden_grad.address(), hidden));
        let (y, y_grad) = (Matrix::new(kept.hidden.address(), hidden), Matrix::new(grad, width));
        let (to, beta) = match number {
            Number::F32 => (self.grads.address(), 1.0),
            Number::Bf16 => (scratch.narrow.address(), 0.0),
        };
        queue.product(x.transposed(), hidden_grad, to, [width, hidden, tokens], beta)?;
        let second = to + (half * number.bytes()) as u64;
        queue.product(y.transposed(), y_grad, second, [hidden, width, tokens], beta)?;
        if number == Number::F32 {
            return Ok(());
        }
        let wide = scratch.wide()[0];
        queue.widen(to, wide, 2 * half)?;
        queue.axpy(1.0, wide, self.grads.address(), 2 * half)
    }

    /// Enqueues zeros for gradients and loss: a step begins.
    pub(crate) fn clear(&self, stream: CUstream) -> Outcome {
        self.grads.clear(stream)?;
        self.loss.clear(stream)
    }

    /// Moves the weights against `grads`, f32.
    pub(crate) fn update(&self, queue: &Queue<'_>, grads: CUdeviceptr, rate: f32) -> Outcome {
        queue.axpy(-rate, grads, self.master.address(), self.sizes.weights())?;
        queue.narrow(self.master.address(), self.weights.address(), self.sizes.weights())
    }

    /// The f32 weights when `stream` has come here.
    pub(crate) fn weights(&self, stream: &Stream) -> Outcome<Vec<f32>> {
        self.master.download(stream)
    }
}
