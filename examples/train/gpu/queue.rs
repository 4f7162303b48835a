//! What is enqueued, kernel by kernel: the names, launches and parameters of kernels/*.cu.
//!
//! Arguments are in the kernels' order. Addresses are of the device's memory; matrices have no gaps unless a stride
//! says so, and are f32 unless it is said what they are.

use super::driver::Argument::{F32, U32, U64};
use super::driver::{Argument, CUdeviceptr, CUstream, Device};

/// Threads of a block in one-dimensional launches.
const BLOCK: usize = 128;

/// A stream to enqueue kernels on.
#[derive(Clone, Copy)]
pub(crate) struct Queue<'a> {
    pub(crate) device: &'a Device,
    pub(crate) stream: CUstream,
}

/// A matrix for a product: element (i, j) is `row i + column j` numbers after `start`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    start: CUdeviceptr,
    row: usize,
    column: usize,
}

impl Matrix {
    /// A matrix without gaps.
    pub(crate) fn new(start: CUdeviceptr, num_columns: usize) -> Matrix {
        Matrix { start, row: num_columns, column: 1 }
    }

    /// Rows as columns.
    pub(crate) fn transposed(self) -> Matrix {
        Matrix { row: self.column, column: self.row, ..self }
    }
}

/// The sizes of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) num_tokens: usize,
    pub(crate) sequence: usize,
    pub(crate) num_heads: usize,
    pub(crate) head_size: usize,
}

impl AttentionShape {
    /// What the dot products of queries and keys are multiplied by.
    fn scale(&self) -> f32 {
        (self.head_size as f64).sqrt().recip() as f32
    }

    fn sizes(&self) -> [usize; 4] {
        [self.num_tokens, self.sequence, self.num_heads, self.head_size]
    }

    fn num_rows(&self) -> usize {
        self.num_tokens * self.num_heads
    }

    fn num_elements(&self) -> usize {
        self.num_rows() * self.head_size
    }
}

/// The weights of all experts' first or second layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertWeights {
    /// The first expert's.
    pub(crate) weight: Matrix,
    /// Numbers from an expert's weights to the next one's.
    pub(crate) stride: usize,
}

impl ExpertWeights {
    /// Each expert's matrix transposed.
    pub(crate) fn transposed(self) -> ExpertWeights {
        ExpertWeights { weight: self.weight.transposed(), ..self }
    }
}

/// A launch's arguments, in order.
struct Arguments(Vec<Argument>);

fn addresses(addresses: &[CUdeviceptr]) -> Arguments {
    Arguments(addresses.iter().map(|&address| U64(address)).collect())
}

impl Arguments {
    /// Sizes of tensors, which [`super::layout::Sizes`] has seen to fit.
    fn sizes(mut self, sizes: &[usize]) -> Arguments {
        self.0.extend(sizes.iter().map(|&size| U32(size as u32)));
        self
    }

    /// Numbers of elements that may be large.
    fn counts(mut self, counts: &[usize]) -> Arguments {
        self.0.extend(counts.iter().map(|&count| U64(count as u64)));
        self
    }

    fn floats(mut self, floats: &[f32]) -> Arguments {
        self.0.extend(floats.iter().map(|&float| F32(float)));
        self
    }
}

impl Queue<'_> {
    /// A thread for each of `count`.
    fn each(&self, name: &str, count: usize, arguments: Arguments) -> Result<(), String> {
        let grid = (count.div_ceil(BLOCK).max(1) as u32, 1, 1);
        self.device.launch(self.stream, name, grid, (BLOCK as u32, 1, 1), &arguments.0)
    }

    /// `c = a b`, or `c += a b` if it `accumulates`; c has no gaps. `size` are rows, columns and depth.
    pub(crate) fn product(
        &self,
        a: Matrix,
        b: Matrix,
        c: CUdeviceptr,
        size: [usize; 3],
        accumulates: bool,
    ) -> Result<(), String> {
        let [rows, columns, depth] = size;
        let arguments = addresses(&[a.start, b.start, c])
            .sizes(&[rows, columns, depth, a.row, a.column, b.row, b.column, columns])
            .counts(&[0; 3]) // a batch of one
            .floats(&[1.0, if accumulates { 1.0 } else { 0.0 }]);
        let grid = (columns.div_ceil(128) as u32, rows.div_ceil(8) as u32, 1);
        self.device.launch(self.stream, "gemm_f32", grid, (32, 8, 1), &arguments.0)
    }

    pub(crate) fn add(
        &self,
        a: CUdeviceptr,
        b: CUdeviceptr,
        out: CUdeviceptr,
        count: usize,
    ) -> Result<(), String> {
        self.each("add_f32", count, addresses(&[a, b, out]).counts(&[count]))
    }

    pub(crate) fn silu(&self, x: CUdeviceptr, out: CUdeviceptr, count: usize) -> Result<(), String> {
        self.each("silu", count, addresses(&[x, out]).counts(&[count]))
    }

    /// Turns the gradient for the output into that for `x`, in place.
    pub(crate) fn silu_backward(
        &self,
        x: CUdeviceptr,
        grad: CUdeviceptr,
        count: usize,
    ) -> Result<(), String> {
        self.each("silu_backward", count, addresses(&[x, grad, grad]).counts(&[count]))
    }

    /// `all`: parameters, gradients, first and second moments. `factors`: of the gradients, the rate, of the
    /// second moment, both betas, epsilon.
    pub(crate) fn adam(&self, all: [CUdeviceptr; 4], factors: [f32; 6], count: usize) -> Result<(), String> {
        self.each("adam", count, addresses(&all).floats(&factors).counts(&[count]))
    }

    /// `all`: x, gain; out: normalized, scales, output. `size` are rows and columns, as below.
    pub(crate) fn rmsnorm(&self, all: [CUdeviceptr; 5], size: [usize; 2]) -> Result<(), String> {
        self.each("rmsnorm", size[0], addresses(&all).sizes(&size))
    }

    /// `all`: normalized, scales, gain, the output's gradient; out: the input's.
    pub(crate) fn rmsnorm_backward(&self, all: [CUdeviceptr; 5], size: [usize; 2]) -> Result<(), String> {
        self.each("rmsnorm_backward", size[0], addresses(&all).sizes(&size))
    }

    /// `all`: normalized, the output's gradient; added to: the gain's.
    pub(crate) fn rmsnorm_gain_grad(&self, all: [CUdeviceptr; 3], size: [usize; 2]) -> Result<(), String> {
        self.each("rmsnorm_gain_grad", size[1], addresses(&all).sizes(&size))
    }

    /// From queries, keys and values to the weights, and to the values mixed by them.
    pub(crate) fn attention(
        &self,
        [qkv, weights, mixed]: [CUdeviceptr; 3],
        shape: AttentionShape,
    ) -> Result<(), String> {
        let sizes = shape.sizes();
        let scores = addresses(&[qkv, weights]).floats(&[shape.scale()]).sizes(&sizes);
        self.each("attention_weights", shape.num_rows(), scores)?;
        self.each("attention_mix", shape.num_elements(), addresses(&[qkv, weights, mixed]).sizes(&sizes))
    }

    /// `all`: qkv, weights, the gradient for the mixed values; out: those for the scores and for qkv.
    pub(crate) fn attention_backward(
        &self,
        all: [CUdeviceptr; 5],
        shape: AttentionShape,
    ) -> Result<(), String> {
        let sizes = shape.sizes();
        let scores = addresses(&all[..4]).floats(&[shape.scale()]).sizes(&sizes);
        self.each("attention_score_grad", shape.num_rows(), scores)?;
        self.each("attention_qkv_grad", shape.num_elements(), addresses(&all).sizes(&sizes))
    }

    /// `all`: the bytes (u8), the rows of each byte and position; out: the tokens' rows. `size` are tokens,
    /// sequence and width.
    pub(crate) fn embedding(&self, all: [CUdeviceptr; 4], size: [usize; 3]) -> Result<(), String> {
        self.each("embedding", size[0] * size[2], addresses(&all).sizes(&size))
    }

    /// `all`: the bytes (u8), the gradient for the rows; added to: those for each byte and position. `size` are
    /// tokens, vocabulary, sequence and width.
    pub(crate) fn embedding_grad(&self, all: [CUdeviceptr; 4], size: [usize; 4]) -> Result<(), String> {
        let ([bytes, out_grad, byte_grad, position_grad], [tokens, vocabulary, sequence, width]) =
            (all, size);
        let by_byte = addresses(&[bytes, out_grad, byte_grad]).sizes(&[tokens, vocabulary, width]);
        self.each("embedding_byte_grad", vocabulary * width, by_byte)?;
        let by_position = addresses(&[out_grad, position_grad]).sizes(&[tokens, sequence, width]);
        self.each("embedding_position_grad", sequence * width, by_position)
    }

    /// `all`: the logits, which become their gradients, the targets (u8); out: the tokens' losses; added to: the
    /// sum of means (f64). `size` are tokens and vocabulary.
    pub(crate) fn cross_entropy(&self, all: [CUdeviceptr; 4], size: [usize; 2]) -> Result<(), String> {
        let [logits, targets, losses, sum] = all;
        self.each("cross_entropy", size[0], addresses(&[logits, targets, losses]).sizes(&size))?;
        self.each("add_mean", 1, addresses(&[losses, sum]).sizes(&size[..1]))
    }

    /// `all`: the scores; out: the choices (u32), their weights, the probabilities. `size` are tokens, experts.
    pub(crate) fn route(&self, all: [CUdeviceptr; 4], size: [usize; 2]) -> Result<(), String> {
        self.each("route", size[0], addresses(&all).sizes(&size))
    }

    /// `all`: the choices; out: the queue and its offsets (u32); added to: the loads (u64). `size` are visits,
    /// experts.
    pub(crate) fn expert_queues(&self, all: [CUdeviceptr; 4], size: [usize; 2]) -> Result<(), String> {
        self.each("expert_queues", size[1], addresses(&all).sizes(&size))
    }

    /// `out = input w`, with the weights of each visit's expert. `size` are visits, visits for each row of `input`,
    /// columns and depth.
    pub(crate) fn expert_product(
        &self,
        input: CUdeviceptr,
        weights: ExpertWeights,
        choices: CUdeviceptr,
        out: CUdeviceptr,
        size: [usize; 4],
    ) -> Result<(), String> {
        let Matrix { start, row, column } = weights.weight;
        let arguments = addresses(&[input, start, choices, out])
            .sizes(&size)
            .sizes(&[row, column])
            .counts(&[weights.stride]);
        self.each("expert_product", size[0] * size[2], arguments)
    }

    /// `all`: input, the output's gradient, queue, offsets; added to: the first expert's gradients, from which
    /// the next one's are `stride` numbers away. `size` are experts, visits for each row of `input`, columns, depth.
    pub(crate) fn expert_weight_grad(
        &self,
        all: [CUdeviceptr; 5],
        size: [usize; 4],
        stride: usize,
    ) -> Result<(), String> {
        let [experts, _, columns, depth] = size;
        let arguments = addresses(&all).sizes(&size).counts(&[stride]);
        self.each("expert_weight_grad", experts * columns * depth, arguments)
    }

    /// `all`: answers, weights; out: the tokens' rows. `size` are tokens, width.
    pub(crate) fn combine(&self, all: [CUdeviceptr; 3], size: [usize; 2]) -> Result<(), String> {
        self.each("combine", size[0] * size[1], addresses(&all).sizes(&size))
    }

    /// `all`: answers, weights, the gradient for the tokens' rows; out: those for answers and weights. `size` are
    /// visits, width.
    pub(crate) fn combine_backward(&self, all: [CUdeviceptr; 5], size: [usize; 2]) -> Result<(), String> {
        self.each("combine_backward", size[0], addresses(&all).sizes(&size))
    }

    /// `all`: a row for each visit; out: for each token. `size` are tokens, width.
    pub(crate) fn sum_visits(&self, all: [CUdeviceptr; 2], size: [usize; 2]) -> Result<(), String> {
        self.each("sum_visits", size[0] * size[1], addresses(&all).sizes(&size))
    }

    /// `all`: probabilities, choices, weights, the weights' gradients, offsets; out: the scores' gradients.
    /// `size` are tokens, experts.
    pub(crate) fn route_backward(
        &self,
        all: [CUdeviceptr; 6],
        balance_scale: f32,
        size: [usize; 2],
    ) -> Result<(), String> {
        self.each("route_backward", size[0], addresses(&all).floats(&[balance_scale]).sizes(&size))
    }
}
