//! Causal multi-head attention.

use ndarray::{s, Array2, ArrayView2, Axis, Zip};

use super::layer::{softmax, Layer, Linear, Product};
use super::tensors::{Builder, Tensors};
use super::{Config, Real};

/// Every token looks at itself and those before it in its sequence.
pub(crate) struct Attention {
    /// `[width, 3 width]`: queries, keys and values.
    qkv: Linear,
    /// `[width, width]`.
    out: Linear,
    sequence: usize,
    num_heads: usize,
}

/// What [`Attention`] saves.
pub(crate) struct SavedAttention<R> {
    qkv_input: Array2<R>,
    qkv: Array2<R>,
    /// `[sequence, sequence]` by sequence and head: how much a token (row) looks at another (column).
    weights: Vec<Array2<R>>,
    out_input: Array2<R>,
}

impl Attention {
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, config: &Config, gain: f64) -> Attention {
        let width = config.width;
        Attention {
            qkv: Linear::new(builder, "attention.qkv", (width, 3 * width), 1.0),
            out: Linear::new(builder, "attention.out", (width, width), gain),
            sequence: config.sequence,
            num_heads: config.num_heads,
        }
    }

    /// Where a (sequence, head) lies: its rows, and the first columns of query, key and value.
    fn heads(&self, num_rows: usize, width: usize) -> impl Iterator<Item = Head> {
        let (sequence, num_heads) = (self.sequence, self.num_heads);
        let size = width / num_heads;
        (0..num_rows / sequence).flat_map(move |i| {
            (0..num_heads).map(move |head| Head {
                rows: (i * sequence, (i + 1) * sequence),
                columns: [0, 1, 2].map(|part| part * width + head * size),
                size,
            })
        })
    }
}

/// One head of one sequence.
struct Head {
    rows: (usize, usize),
    columns: [usize; 3],
    size: usize,
}

impl Head {
    /// 0: its queries, 1: its keys, 2: its values. Part 0 of a matrix without keys and values is its output.
    fn of<'a, R>(&self, matrix: &'a Array2<R>, part: usize) -> ArrayView2<'a, R> {
        let column = self.columns[part];
        matrix.slice(s![self.rows.0..self.rows.1, column..column + self.size])
    }

    /// Writes what [`Head::of`] reads.
    fn set<R: Real>(&self, matrix: &mut Array2<R>, part: usize, value: &Array2<R>) {
        let column = self.columns[part];
        let rows = self.rows.0..self.rows.1;
        matrix.slice_mut(s![rows, column..column + self.size]).assign(value);
    }

    /// What the dot products of queries and keys are multiplied by.
    fn scale<R: Real>(&self) -> R {
        R::of((self.size as f64).sqrt().recip())
    }
}

impl<R: Real> Layer<R> for Attention {
    type Saved = SavedAttention<R>;
    type Pending = [Product<R>; 2];

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        let mut mixed = Array2::zeros(input.dim());
        let (num_rows, width) = input.dim();
        let (qkv, qkv_input) = self.qkv.forward(params, input);
        let mut all_weights = Vec::new();
        for head in self.heads(num_rows, width) {
            let [queries, keys, values] = [0, 1, 2].map(|part| head.of(&qkv, part));
            let mut weights = queries.dot(&keys.t()) * head.scale::<R>();
            for (i, mut row) in weights.rows_mut().into_iter().enumerate() {
                row.slice_mut(s![i + 1..]).fill(R::zero());
                softmax(row.slice_mut(s![..=i]));
            }
            head.set(&mut mixed, 0, &weights.dot(&values));
            all_weights.push(weights);
        }
        let (output, out_input) = self.out.forward(params, mixed);
        let saved = SavedAttention { qkv_input, qkv, weights: all_weights, out_input };
        (output, saved)
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        saved: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        let (num_rows, width) = output_grad.dim();
        let (mixed_grad, out) = self.out.backward_input(params, saved.out_input, output_grad);
        let mut qkv_grad = Array2::zeros(saved.qkv.dim());
        for (head, weights) in self.heads(num_rows, width).zip(saved.weights) {
            let [queries, keys, values] = [0, 1, 2].map(|part| head.of(&saved.qkv, part));
            let mixed_grad = head.of(&mixed_grad, 0);
            let values_grad = weights.t().dot(&mixed_grad);
            // Through the softmax: dz = p (dp - sum(p dp)), which is zero where p is, beyond the diagonal.
            let mut grad = mixed_grad.dot(&values.t());
            let mean = (&grad * &weights).sum_axis(Axis(1)).insert_axis(Axis(1));
            grad -= &mean;
            Zip::from(&mut grad).and(&weights).for_each(|g, &w| *g *= w * head.scale::<R>());
            head.set(&mut qkv_grad, 0, &grad.dot(&keys));
            head.set(&mut qkv_grad, 1, &grad.t().dot(&queries));
            head.set(&mut qkv_grad, 2, &values_grad);
        }
        let (input_grad, qkv) = self.qkv.backward_input(params, saved.qkv_input, qkv_grad);
        (input_grad, [qkv, out])
    }

    fn backward_weight(&self, [qkv, out]: Self::Pending, grads: &mut Tensors<R>) {
        self.qkv.backward_weight(qkv, grads);
        self.out.backward_weight(out, grads);
    }
}
