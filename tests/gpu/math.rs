//! Products and elementwise functions, enqueued: by the kernels of this project, or products by cuBLAS.

use crate::blas::Blas;
use crate::driver::Argument::{F32, U32, U64};
use crate::driver::{Argument, CUdeviceptr, CUstream, Gpu, Outcome};

/// Threads of a block in one-dimensional launches.
const BLOCK: usize = 128;

/// What activations, their gradients and the weights of products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    Bf16,
}

impl Number {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::Bf16 => 2,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Number::F32 => "f32",
            Number::Bf16 => "bf16",
        }
    }

    /// `cudaDataType_t`.
    pub(crate) fn cuda_type(self) -> i32 {
        match self {
            Number::F32 => 0,
            Number::Bf16 => 14,
        }
    }
}

/// A matrix for a product: element (i, j) is `row i + column j` numbers after `start`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) start: CUdeviceptr,
    pub(crate) row: usize,
    pub(crate) column: usize,
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

/// Where to enqueue, and who multiplies.
#[derive(Clone, Copy)]
pub(crate) struct Queue<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) stream: CUstream,
    pub(crate) number: Number,
    pub(crate) blas: Option<&'a Blas>,
}

impl Queue<'_> {
    /// `c = a b + beta c`; c has no gaps. `size` are rows, columns and depth.
    pub(crate) fn product(
        &self,
        a: Matrix,
        b: Matrix,
        c: CUdeviceptr,
        size: [usize; 3],
        beta: f32,
    ) -> Outcome {
        match (self.blas, self.number) {
            (Some(blas), number) => blas.product(self.stream, number, [a, b], c, size, beta),
            (None, Number::F32) => self.own_product("gemm_f32", [a, b], c, size, [1.0, beta]),
            (None, Number::Bf16) => self.own_product("gemm_bf16", [a, b], c, size, [1.0, beta]),
        }
    }

    /// Adds `factor` times the sum of the squares of `count` f32 at `x` to the f32 at `sum`.
    pub(crate) fn add_squares(&self, x: CUdeviceptr, factor: f32, sum: CUdeviceptr, count: usize) -> Outcome {
        let (row, column) = (Matrix::new(x, count), Matrix::new(x, 1));
        self.own_product("gemm_f32", [row, column], sum, [1, 1, count], [factor, 1.0])
    }

    fn own_product(
        &self,
        kernel: &str,
        [a, b]: [Matrix; 2],
        c: CUdeviceptr,
        [rows, columns, depth]: [usize; 3],
        factors: [f32; 2],
    ) -> Outcome {
        let mut arguments = [U64(0); 16];
        let sizes = [rows, columns, depth, a.row, a.column, b.row, b.column, columns];
        let addresses = [a.start, b.start, c].map(U64);
        let batch_of_one = [U64(0); 3];
        let values = addresses.into_iter().chain(sizes.map(|size| U32(size as u32))).chain(batch_of_one);
        arguments.iter_mut().zip(values.chain(factors.map(F32))).for_each(|(to, value)| *to = value);
        let grid = (columns.div_ceil(BLOCK) as u32, rows.div_ceil(8) as u32, 1);
        self.gpu.launch(self.stream, kernel, grid, (32, 8, 1), &arguments)
    }

    /// A thread for each of `count`.
    fn each(&self, name: &str, count: usize, arguments: &[Argument]) -> Outcome {
        let grid = (count.div_ceil(BLOCK).max(1) as u32, 1, 1);
        self.gpu.launch(self.stream, name, grid, (BLOCK as u32, 1, 1), arguments)
    }

    pub(crate) fn copy(&self, from: CUdeviceptr, to: CUdeviceptr, bytes: usize) -> Outcome {
        self.gpu.copy(to, from, bytes, self.stream)
    }

    /// `out = a + b`, f32.
    pub(crate) fn add(&self, a: CUdeviceptr, b: CUdeviceptr, out: CUdeviceptr, count: usize) -> Outcome {
        self.each("add_f32", count, &[U64(a), U64(b), U64(out), U64(count as u64)])
    }

    /// `y += alpha x`, f32.
    pub(crate) fn axpy(&self, alpha: f32, x: CUdeviceptr, y: CUdeviceptr, count: usize) -> Outcome {
        self.each("axpy_f32", count, &[F32(alpha), U64(x), U64(y), U64(count as u64)])
    }

    /// `out = value`, f32.
    pub(crate) fn fill(&self, out: CUdeviceptr, value: f32, count: usize) -> Outcome {
        self.each("fill_f32", count, &[U64(out), F32(value), U64(count as u64)])
    }

    /// f32 of what activations are made of.
    pub(crate) fn widen(&self, x: CUdeviceptr, out: CUdeviceptr, count: usize) -> Outcome {
        match self.number {
            Number::F32 => self.copy(x, out, 4 * count),
            Number::Bf16 => self.each("cast_to_f32", count, &[U64(x), U64(out), U64(count as u64)]),
        }
    }

    /// What activations are made of, of f32.
    pub(crate) fn narrow(&self, x: CUdeviceptr, out: CUdeviceptr, count: usize) -> Outcome {
        match self.number {
            Number::F32 => self.copy(x, out, 4 * count),
            Number::Bf16 => self.each("cast_to_bf16", count, &[U64(x), U64(out), U64(count as u64)]),
        }
    }

    /// `out = silu(x)`. `wide` are two pieces of memory for `count` f32 each, here and below.
    pub(crate) fn silu(&self, x: CUdeviceptr, out: CUdeviceptr, wide: [u64; 2], count: usize) -> Outcome {
        let end = U64(count as u64);
        if self.number == Number::F32 {
            return self.each("silu", count, &[U64(x), U64(out), end]);
        }
        self.widen(x, wide[0], count)?;
        self.each("silu", count, &[U64(wide[0]), U64(wide[1]), end])?;
        self.narrow(wide[1], out, count)
    }

    /// The gradient for `x`, of that for `silu(x)`.
    pub(crate) fn silu_backward(
        &self,
        x: CUdeviceptr,
        out_grad: CUdeviceptr,
        x_grad: CUdeviceptr,
        wide: [u64; 2],
        count: usize,
    ) -> Outcome {
        let end = U64(count as u64);
        if self.number == Number::F32 {
            return self.each("silu_backward", count, &[U64(x), U64(out_grad), U64(x_grad), end]);
        }
        self.widen(x, wide[0], count)?;
        self.widen(out_grad, wide[1], count)?;
        self.each("silu_backward", count, &[U64(wide[0]), U64(wide[1]), U64(wide[1]), end])?;
        self.narrow(wide[1], x_grad, count)
    }
}
