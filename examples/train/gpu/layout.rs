//! Where everything lies in a stage's memory on the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::{CUdeviceptr, CUstream, Device, Memory};
use super::queue::{AttentionShape, ExpertWeights, Matrix};
use crate::model::{Config, Tensors, EXPERTS_PER_TOKEN};

/// Bytes of an f32 and of a u32.
const WORD: usize = 4;
/// What parts of a block start at multiples of.
const ALIGNMENT: usize = 256;

/// The sizes of a stage that its kernels take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) config: Config,
    pub(crate) tokens: usize,
    pub(crate) width: usize,
    pub(crate) experts: usize,
    pub(crate) hidden: usize,
    /// A visit is a token at one of its experts.
    pub(crate) visits: usize,
}

impl Sizes {
    /// Fails for a model that the kernels cannot compute.
    pub(crate) fn new(config: Config) -> Result<Sizes, String> {
        let Config { vocabulary, sequence, width, num_heads, num_experts, hidden, .. } = config;
        let tokens = config.num_tokens();
        let is_good = vocabulary <= 256 && num_experts >= EXPERTS_PER_TOKEN && EXPERTS_PER_TOKEN == 2;
        let columns = [3 * width, EXPERTS_PER_TOKEN * hidden, vocabulary, num_heads * sequence];
        // A grid has up to 65535 blocks of 8 rows; every index of a matrix fits into 32 bits.
        let fits =
            |columns: usize| columns.checked_mul(tokens).is_some_and(|count| count <= i32::MAX as usize);
        if !is_good || tokens > 8 * 65_535 || !columns.into_iter().all(fits) {
            return Err(format!("the kernels cannot compute a model of these sizes: {config:?}"));
        }
        let visits = EXPERTS_PER_TOKEN * tokens;
        Ok(Sizes { config, tokens, width, experts: num_experts, hidden, visits })
    }

    pub(crate) fn attention(&self) -> AttentionShape {
        let Config { sequence, num_heads, width, .. } = self.config;
        AttentionShape { num_tokens: self.tokens, sequence, num_heads, head_size: width / num_heads }
    }
}

/// Where each matrix of a stage's parameters starts, in numbers; that of gradients and moments is the same.
#[derive(Clone, Debug)]
pub(crate) struct Offsets {
    /// Numbers of all matrices.
    pub(crate) count: usize,
    by_name: BTreeMap<String, usize>,
    expert_stride: usize,
}

impl Offsets {
    pub(crate) fn of(params: &Tensors, sizes: &Sizes) -> Result<Offsets, String> {
        let mut count = 0;
        let mut by_name = BTreeMap::new();
        for (name, matrix) in params.groups() {
            by_name.insert(name.to_string(), count);
            count += matrix.len();
        }
        let expert_stride = 2 * sizes.width * sizes.hidden;
        let offsets = Offsets { count, by_name, expert_stride };
        for expert in 0..sizes.experts {
            for part in ["up", "down"] {
                let first = offsets.start(&format!("expert0.{part}"))?;
                let name = format!("expert{expert}.{part}");
                if offsets.start(&name)? != first + expert * expert_stride {
                    return Err(format!(
                        "{name} does not lie {expert_stride} numbers after the expert before"
                    ));
                }
            }
        }
        Ok(offsets)
    }

    /// Numbers from an expert's matrices to the next one's.
    pub(crate) fn expert_stride(&self) -> usize {
        self.expert_stride
    }

    fn start(&self, name: &str) -> Result<usize, String> {
        self.by_name.get(name).copied().ok_or_else(|| format!("the stage has no {name}"))
    }
}

/// The matrices of a stage, of parameters or of gradients, on the device.
#[derive(Clone, Copy)]
pub(crate) struct Matrices<'a> {
    pub(crate) offsets: &'a Offsets,
    pub(crate) start: CUdeviceptr,
}

impl Matrices<'_> {
    pub(crate) fn address(&self, name: &str) -> Result<CUdeviceptr, String> {
        Ok(self.start + (self.offsets.start(name)? * WORD) as CUdeviceptr)
    }

    pub(crate) fn matrix(&self, name: &str, num_columns: usize) -> Result<Matrix, String> {
        Ok(Matrix::new(self.address(name)?, num_columns))
    }

    /// `part` is up or down.
    pub(crate) fn experts(&self, part: &str, num_columns: usize) -> Result<ExpertWeights, String> {
        let weight = self.matrix(&format!("expert0.{part}"), num_columns)?;
        Ok(ExpertWeights { weight, stride: self.offsets.expert_stride })
    }
}

/// One piece of memory and what lies where in it.
pub(crate) struct Block<T> {
    _memory: Memory,
    pub(crate) parts: T,
}

impl<T> Block<T> {
    /// Zeros. `place` takes the parts that it needs, the same ones at each call.
    pub(crate) fn new(
        device: &Arc<Device>,
        stream: CUstream,
        place: impl Fn(&mut Parts) -> T,
    ) -> Result<Block<T>, String> {
        let mut measure = Parts { next: 0 };
        place(&mut measure);
        let memory = Memory::zeros(device, measure.next as usize, stream)?;
        let parts = place(&mut Parts { next: memory.address() });
        Ok(Block { _memory: memory, parts })
    }
}

/// Hands out parts of a block, one after the other.
pub(crate) struct Parts {
    next: CUdeviceptr,
}

impl Parts {
    /// Room for f32 or u32 numbers.
    fn words(&mut self, count: usize) -> CUdeviceptr {
        let start = self.next;
        self.next += (count * WORD).next_multiple_of(ALIGNMENT) as CUdeviceptr;
        start
    }
}

/// A norm's part of a slot.
#[derive(Clone, Copy, Default)]
pub(crate) struct NormSlot {
    pub(crate) normalized: CUdeviceptr,
    pub(crate) scales: CUdeviceptr,
    pub(crate) output: CUdeviceptr,
    pub(crate) output_grad: CUdeviceptr,
}

/// What a micro-batch leaves from F to I (without `_grad`) and to W, each with its rows.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slot {
    pub(crate) attention_norm: NormSlot,
    /// By token: `[3 width]`.
    pub(crate) qkv: CUdeviceptr,
    pub(crate) qkv_grad: CUdeviceptr,
    /// By token and head: `[sequence]`.
    pub(crate) attention_weights: CUdeviceptr,
    /// By token: `[width]`.
    pub(crate) mixed: CUdeviceptr,
    pub(crate) attention_grad: CUdeviceptr,
    pub(crate) experts_norm: NormSlot,
    /// By token: `[experts]`.
    pub(crate) probabilities: CUdeviceptr,
    pub(crate) score_grad: CUdeviceptr,
    /// By visit: an expert and its weight; and the visits by expert.
    pub(crate) choices: CUdeviceptr,
    pub(crate) choice_weights: CUdeviceptr,
    pub(crate) queue: CUdeviceptr,
    pub(crate) queue_offsets: CUdeviceptr,
    /// By visit: `[hidden]`.
    pub(crate) hidden: CUdeviceptr,
    pub(crate) activated: CUdeviceptr,
    pub(crate) hidden_grad: CUdeviceptr,
    /// By visit: `[width]`.
    pub(crate) answers: CUdeviceptr,
    pub(crate) answer_grad: CUdeviceptr,
    /// At the last stage. The logits, by token `[vocabulary]`, become their gradients.
    pub(crate) head_norm: NormSlot,
    pub(crate) logits: CUdeviceptr,
    /// At stage 0: by token, `[width]`.
    pub(crate) embedding_grad: CUdeviceptr,
}

impl Slot {
    pub(crate) fn place(sizes: &Sizes, is_first: bool, is_last: bool, parts: &mut Parts) -> Slot {
        let &Sizes { config, tokens, width, experts, hidden, visits } = sizes;
        let rows = tokens * width;
        let norm = |parts: &mut Parts| NormSlot {
            normalized: parts.words(rows),
            scales: parts.words(tokens),
            output: parts.words(rows),
            output_grad: parts.words(rows),
        };
        let mut slot = Slot {
            attention_norm: norm(parts),
            qkv: parts.words(3 * rows),
            qkv_grad: parts.words(3 * rows),
            attention_weights: parts.words(tokens * config.num_heads * config.sequence),
            mixed: parts.words(rows),
            attention_grad: parts.words(rows),
            experts_norm: norm(parts),
            probabilities: parts.words(tokens * experts),
            score_grad: parts.words(tokens * experts),
            choices: parts.words(visits),
            choice_weights: parts.words(visits),
            queue: parts.words(visits),
            queue_offsets: parts.words(experts + 1),
            hidden: parts.words(visits * hidden),
            activated: parts.words(visits * hidden),
            hidden_grad: parts.words(visits * hidden),
            answers: parts.words(visits * width),
            answer_grad: parts.words(visits * width),
            ..Slot::default()
        };
        if is_last {
            slot.head_norm = norm(parts);
            slot.logits = parts.words(tokens * config.vocabulary);
        }
        if is_first {
            slot.embedding_grad = parts.words(rows);
        }
        slot
    }
}

/// What a stage needs while it computes, and no longer.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    /// By token: `[width]`.
    pub(crate) rows: [CUdeviceptr; 3],
    /// By visit: `[width]`.
    pub(crate) by_visit: CUdeviceptr,
    pub(crate) choice_weight_grad: CUdeviceptr,
    /// By token: `[experts]`.
    pub(crate) scores: CUdeviceptr,
    /// By token and head: `[sequence]`.
    pub(crate) attention_score_grad: CUdeviceptr,
    /// By token.
    pub(crate) losses: CUdeviceptr,
}

impl Scratch {
    pub(crate) fn place(sizes: &Sizes, parts: &mut Parts) -> Scratch {
        let &Sizes { config, tokens, width, experts, visits, .. } = sizes;
        Scratch {
            rows: [(); 3].map(|()| parts.words(tokens * width)),
            by_visit: parts.words(visits * width),
            choice_weight_grad: parts.words(visits),
            scores: parts.words(tokens * experts),
            attention_score_grad: parts.words(tokens * config.num_heads * config.sequence),
            losses: parts.words(tokens),
        }
    }
}
