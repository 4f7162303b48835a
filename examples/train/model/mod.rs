//! A byte-level mixture-of-experts language model, cut into pipeline stages.
//!
//! ```text
//! stage 0        bytes -> embedding + position
//! every stage    x + attention(norm(x)), then x + experts(norm(x))
//! last stage     norm -> logits -> mean cross-entropy
//! ```
//!
//! Each part has its forward (F), backward for the input (I) and backward for the weights (W) apart, which is what
//! zero-bubble schedules are made of. The types say in which order they come: F makes a `Saved`, I turns it into an
//! input gradient and a `Pending`, W adds that to the weight gradients. A full backward is I, then W.

mod attention;
mod ends;
mod expert;
mod layer;
mod moe;
mod stage;
mod tensors;

#[cfg(test)]
mod gradient_tests;

pub(crate) use layer::Real;
pub(crate) use moe::BALANCE_WEIGHT;
pub(crate) use stage::{Pending, Saved, StageModel};
pub(crate) use tensors::Tensors;

/// Experts that each token is sent to.
pub(crate) const EXPERTS_PER_TOKEN: usize = 2;

/// The sizes of the model and of its micro-batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// Different tokens; for bytes at most 256.
    pub(crate) vocabulary: usize,
    /// Tokens of a sequence.
    pub(crate) sequence: usize,
    /// Sequences of a micro-batch.
    pub(crate) num_sequences: usize,
    /// Numbers that describe a token between layers.
    pub(crate) width: usize,
    /// Attention heads; divides `width`.
    pub(crate) num_heads: usize,
    /// Experts of a stage.
    pub(crate) num_experts: usize,
    /// Width inside an expert.
    pub(crate) hidden: usize,
    /// Stages, one block each.
    pub(crate) num_stages: usize,
}

impl Config {
    /// The sizes that the example trains.
    pub(crate) fn small(num_stages: usize) -> Config {
        Config {
            vocabulary: 256,
            sequence: 64,
            num_sequences: 2,
            width: 64,
            num_heads: 4,
            num_experts: 16,
            hidden: 64,
            num_stages,
        }
    }

    /// Tokens of a micro-batch: the rows of every activation.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_sequences * self.sequence
    }
}
