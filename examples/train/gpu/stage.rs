//! F, I and W of a stage as kernels: [`crate::model`], with the same names, step for step.

use super::driver::CUdeviceptr;
use super::layout::{Matrices, NormSlot, Scratch, Sizes, Slot};
use super::queue::{Matrix, Queue};
use crate::model::{BALANCE_WEIGHT, EXPERTS_PER_TOKEN};

/// A micro-batch at a stage.
#[derive(Clone, Copy)]
pub(crate) struct StagePass<'a> {
    pub(crate) queue: Queue<'a>,
    pub(crate) sizes: &'a Sizes,
    pub(crate) params: Matrices<'a>,
    pub(crate) slot: Slot,
    pub(crate) scratch: Scratch,
    /// One byte for each token.
    pub(crate) tokens: CUdeviceptr,
    pub(crate) is_first: bool,
    pub(crate) is_last: bool,
}

impl StagePass<'_> {
    /// F: reads `input` (stage 0: none), writes `output` (last stage: none); both `[tokens, width]`. Adds to the
    /// experts' `loads` and, at the last stage, to `loss_sum`.
    pub(crate) fn forward(
        &self,
        input: Option<CUdeviceptr>,
        output: Option<CUdeviceptr>,
        targets: CUdeviceptr,
        loads: CUdeviceptr,
        loss_sum: CUdeviceptr,
    ) -> Result<(), String> {
        let [embedded, part, middle] = self.scratch.rows;
        let input = match (self.is_first, input) {
            (true, None) => self.embedding(embedded)?,
            (false, Some(input)) => input,
            (true, Some(_)) => return Err("stage 0 has no input activation".into()),
            (false, None) => return Err("the input activation is missing".into()),
        };
        let output = match (self.is_last, output) {
            // The embedding is not needed any more when the end of the block is written.
            (true, None) => embedded,
            (false, Some(output)) => output,
            (true, Some(_)) => return Err("the last stage has no output activation".into()),
            (false, None) => return Err("the output activation is missing".into()),
        };
        let count = self.sizes.tokens * self.sizes.width;
        self.norm("attention.norm", input, &self.slot.attention_norm)?;
        self.attention(part)?;
        self.queue.add(part, input, middle, count)?;
        self.norm("experts.norm", middle, &self.slot.experts_norm)?;
        self.experts(part, loads)?;
        self.queue.add(part, middle, output, count)?;
        if self.is_last {
            self.head(output, targets, loss_sum)?;
        }
        Ok(())
    }

    /// I: reads `output_grad` (last stage: none), writes `input_grad` (stage 0: none).
    pub(crate) fn backward_input(
        &self,
        output_grad: Option<CUdeviceptr>,
        input_grad: Option<CUdeviceptr>,
    ) -> Result<(), String> {
        let [head_grad, part, _] = self.scratch.rows;
        let output_grad = match (self.is_last, output_grad) {
            (true, None) => self.head_backward(head_grad)?,
            (false, Some(grad)) => grad,
            (true, Some(_)) => return Err("the last stage has no output gradient".into()),
            (false, None) => return Err("the output gradient is missing".into()),
        };
        let input_grad = match (self.is_first, input_grad) {
            (true, None) => self.slot.embedding_grad,
            (false, Some(grad)) => grad,
            (true, Some(_)) => return Err("stage 0 has no input gradient".into()),
            (false, None) => return Err("the input gradient is missing".into()),
        };
        let count = self.sizes.tokens * self.sizes.width;
        let middle_grad = self.slot.attention_grad;
        self.experts_backward(output_grad)?;
        self.norm_backward("experts.norm", &self.slot.experts_norm, part)?;
        self.queue.add(part, output_grad, middle_grad, count)?;
        self.attention_backward()?;
        self.norm_backward("attention.norm", &self.slot.attention_norm, part)?;
        self.queue.add(part, middle_grad, input_grad, count)
    }

    /// W: adds to `grads`.
    pub(crate) fn backward_weight(&self, grads: Matrices<'_>) -> Result<(), String> {
        let (slot, sizes) = (&self.slot, self.sizes);
        let &Sizes { config, tokens, width, experts, hidden, .. } = sizes;
        if self.is_first {
            let addresses = [
                self.tokens,
                slot.embedding_grad,
                grads.address("embedding.bytes")?,
                grads.address("embedding.positions")?,
            ];
            let size = [tokens, config.vocabulary, config.sequence, width];
            self.queue.embedding_grad(addresses, size)?;
        }
        self.gain_grad("attention.norm", &slot.attention_norm, grads)?;
        let (norm, size) = (slot.attention_norm.output, [width, 3 * width]);
        self.linear_grad("attention.qkv", norm, slot.qkv_grad, size, grads)?;
        self.linear_grad("attention.out", slot.mixed, slot.attention_grad, [width, width], grads)?;

        self.gain_grad("experts.norm", &slot.experts_norm, grads)?;
        let norm = slot.experts_norm.output;
        self.linear_grad("router", norm, slot.score_grad, [width, experts], grads)?;
        let queue = [slot.queue, slot.queue_offsets];
        for (part, input, grad, size) in [
            ("expert0.up", norm, slot.hidden_grad, [experts, EXPERTS_PER_TOKEN, hidden, width]),
            ("expert0.down", slot.activated, slot.answer_grad, [experts, 1, width, hidden]),
        ] {
            let addresses = [input, grad, queue[0], queue[1], grads.address(part)?];
            self.queue.expert_weight_grad(addresses, size, grads.offsets.expert_stride())?;
        }
        if self.is_last {
            self.gain_grad("head.norm", &slot.head_norm, grads)?;
            let (norm, size) = (slot.head_norm.output, [width, config.vocabulary]);
            self.linear_grad("head.out", norm, slot.logits, size, grads)?;
        }
        Ok(())
    }

    fn embedding(&self, out: CUdeviceptr) -> Result<CUdeviceptr, String> {
        let bytes = self.params.address("embedding.bytes")?;
        let positions = self.params.address("embedding.positions")?;
        let size = [self.sizes.tokens, self.sizes.config.sequence, self.sizes.width];
        self.queue.embedding([self.tokens, bytes, positions, out], size)?;
        Ok(out)
    }

    fn attention(&self, out: CUdeviceptr) -> Result<(), String> {
        let (slot, width) = (&self.slot, self.sizes.width);
        self.linear("attention.qkv", slot.attention_norm.output, slot.qkv, [width, 3 * width])?;
        self.queue.attention([slot.qkv, slot.attention_weights, slot.mixed], self.sizes.attention())?;
        self.linear("attention.out", slot.mixed, out, [width, width])
    }

    /// Leaves the gradient for its input with the norm before.
    fn attention_backward(&self) -> Result<(), String> {
        let (slot, scratch, width) = (&self.slot, &self.scratch, self.sizes.width);
        let mixed_grad = scratch.rows[1];
        self.linear_backward("attention.out", slot.attention_grad, mixed_grad, [width, width], false)?;
        let addresses =
            [slot.qkv, slot.attention_weights, mixed_grad, scratch.attention_score_grad, slot.qkv_grad];
        self.queue.attention_backward(addresses, self.sizes.attention())?;
        let (grad, size) = (slot.attention_norm.output_grad, [width, 3 * width]);
        self.linear_backward("attention.qkv", slot.qkv_grad, grad, size, false)
    }

    fn experts(&self, out: CUdeviceptr, loads: CUdeviceptr) -> Result<(), String> {
        let (slot, input) = (&self.slot, self.slot.experts_norm.output);
        let &Sizes { tokens, width, experts, hidden, visits, .. } = self.sizes;
        let scores = self.scratch.scores;
        self.linear("router", input, scores, [width, experts])?;
        let chosen = [scores, slot.choices, slot.choice_weights, slot.probabilities];
        self.queue.route(chosen, [tokens, experts])?;
        self.queue.expert_queues([slot.choices, slot.queue, slot.queue_offsets, loads], [visits, experts])?;
        let up = self.params.experts("up", hidden)?;
        let size = [visits, EXPERTS_PER_TOKEN, hidden, width];
        self.queue.expert_product(input, up, slot.choices, slot.hidden, size)?;
        self.queue.silu(slot.hidden, slot.activated, visits * hidden)?;
        let down = self.params.experts("down", width)?;
        let size = [visits, 1, width, hidden];
        self.queue.expert_product(slot.activated, down, slot.choices, slot.answers, size)?;
        self.queue.combine([slot.answers, slot.choice_weights, out], [tokens, width])
    }

    /// Leaves the gradient for its input with the norm before.
    fn experts_backward(&self, output_grad: CUdeviceptr) -> Result<(), String> {
        let (slot, scratch) = (&self.slot, &self.scratch);
        let &Sizes { tokens, width, experts, hidden, visits, .. } = self.sizes;
        let weight_grad = scratch.choice_weight_grad;
        let answers = [slot.answers, slot.choice_weights, output_grad, slot.answer_grad, weight_grad];
        self.queue.combine_backward(answers, [visits, width])?;
        let down = self.params.experts("down", width)?.transposed();
        let size = [visits, 1, hidden, width];
        self.queue.expert_product(slot.answer_grad, down, slot.choices, slot.hidden_grad, size)?;
        self.queue.silu_backward(slot.hidden, slot.hidden_grad, visits * hidden)?;
        let up = self.params.experts("up", hidden)?.transposed();
        let size = [visits, 1, width, hidden];
        self.queue.expert_product(slot.hidden_grad, up, slot.choices, scratch.by_visit, size)?;
        let input_grad = slot.experts_norm.output_grad;
        self.queue.sum_visits([scratch.by_visit, input_grad], [tokens, width])?;
        let scores = [
            slot.probabilities,
            slot.choices,
            slot.choice_weights,
            weight_grad,
            slot.queue_offsets,
            slot.score_grad,
        ];
        // An expert's share of the visits is its load over their number.
        let balance_scale = BALANCE_WEIGHT * experts as f64 / (visits as f64 * tokens as f64);
        self.queue.route_backward(scores, balance_scale as f32, [tokens, experts])?;
        self.linear_backward("router", slot.score_grad, input_grad, [width, experts], true)
    }

    fn head(&self, input: CUdeviceptr, targets: CUdeviceptr, loss_sum: CUdeviceptr) -> Result<(), String> {
        let (slot, vocabulary) = (&self.slot, self.sizes.config.vocabulary);
        self.norm("head.norm", input, &slot.head_norm)?;
        self.linear("head.out", slot.head_norm.output, slot.logits, [self.sizes.width, vocabulary])?;
        let losses = self.scratch.losses;
        self.queue.cross_entropy([slot.logits, targets, losses, loss_sum], [self.sizes.tokens, vocabulary])
    }

    fn head_backward(&self, out: CUdeviceptr) -> Result<CUdeviceptr, String> {
        let (norm, logits_grad) = (&self.slot.head_norm, self.slot.logits);
        let size = [self.sizes.width, self.sizes.config.vocabulary];
        self.linear_backward("head.out", logits_grad, norm.output_grad, size, false)?;
        self.norm_backward("head.norm", norm, out)?;
        Ok(out)
    }

    fn norm(&self, gain: &str, input: CUdeviceptr, norm: &NormSlot) -> Result<(), String> {
        let addresses = [input, self.params.address(gain)?, norm.normalized, norm.scales, norm.output];
        self.queue.rmsnorm(addresses, [self.sizes.tokens, self.sizes.width])
    }

    fn norm_backward(&self, gain: &str, norm: &NormSlot, input_grad: CUdeviceptr) -> Result<(), String> {
        let gain = self.params.address(gain)?;
        let addresses = [norm.normalized, norm.scales, gain, norm.output_grad, input_grad];
        self.queue.rmsnorm_backward(addresses, [self.sizes.tokens, self.sizes.width])
    }

    fn gain_grad(&self, gain: &str, norm: &NormSlot, grads: Matrices<'_>) -> Result<(), String> {
        let addresses = [norm.normalized, norm.output_grad, grads.address(gain)?];
        self.queue.rmsnorm_gain_grad(addresses, [self.sizes.tokens, self.sizes.width])
    }

    /// `size` are the rows and columns of the weights, here and below.
    fn linear(&self, name: &str, x: CUdeviceptr, y: CUdeviceptr, size: [usize; 2]) -> Result<(), String> {
        let [rows, columns] = size;
        let (x, w) = (Matrix::new(x, rows), self.params.matrix(name, columns)?);
        self.queue.product(x, w, y, [self.sizes.tokens, columns, rows], false)
    }

    fn linear_backward(
        &self,
        name: &str,
        y_grad: CUdeviceptr,
        x_grad: CUdeviceptr,
        [rows, columns]: [usize; 2],
        accumulates: bool,
    ) -> Result<(), String> {
        let (y_grad, w) = (Matrix::new(y_grad, columns), self.params.matrix(name, columns)?);
        self.queue.product(y_grad, w.transposed(), x_grad, [self.sizes.tokens, rows, columns], accumulates)
    }

    fn linear_grad(
        &self,
        name: &str,
        x: CUdeviceptr,
        y_grad: CUdeviceptr,
        [rows, columns]: [usize; 2],
        grads: Matrices<'_>,
    ) -> Result<(), String> {
        let (x, y_grad) = (Matrix::new(x, rows), Matrix::new(y_grad, columns));
        let size = [rows, columns, self.sizes.tokens];
        self.queue.product(x.transposed(), y_grad, grads.address(name)?, size, true)
    }
}
