//! Costs: the time and bytes of each stage, and of the links between ranks.
//!
//! They are the caller's, read by dualpipe_simulate and not kept. One entry does for all stages; measured ones come
//! from the spans of a recorded timeline. Times and bytes may be 0: what costs nothing takes no time.

use super::args;
use super::options::{self, Growing};
use super::status::Outcome;
use crate::cost::{Costs, Link, PairCosts, StageCosts, PAIRS_MAX};
use crate::ids::Stage;
use crate::placement::STAGES_MAX;

/// What one stage costs for one micro-batch. Times are in nanoseconds, at most 10^12 (a quarter of an hour); bytes at
/// most 2^50. B takes input_ns + weight_ns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_stage_costs {
    /// Time of F.
    pub forward_ns: u64,
    /// Time of I.
    pub input_ns: u64,
    /// Time of W.
    pub weight_ns: u64,
    /// Time of FB when both are of this stage: at least the longer of F and B, and F + B if nothing overlaps.
    pub overlapped_ns: u64,
    /// Bytes that its F sends to the next stage, and that the gradient coming back has.
    pub output_bytes: u64,
    /// Bytes that one micro-batch keeps on this stage from its F to its W.
    pub activation_bytes: u64,
    /// Bytes of its parameters, their gradients and optimizer state, for each copy of them.
    pub parameter_bytes: u64,
}

/// What an FB of two stages takes, where it was measured or the stages differ.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_pair_costs {
    /// The stage whose F it is.
    pub forward_stage: u32,
    /// The stage whose B it is.
    pub backward_stage: u32,
    /// Time of the pair, at most 10^12: at least the longer of that F and that B.
    pub overlapped_ns: u64,
}

/// The costs of a model and of the links it runs over. Start from DUALPIPE_COSTS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_costs {
    /// sizeof(dualpipe_costs).
    pub size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The costs of each stage, num_stages of them, read during the call.
    pub stages: *const dualpipe_stage_costs,
    /// The stages of the model, or 1 if all cost the same.
    pub num_stages: usize,
    /// Time of a message without bytes from one rank to another, at most 10^12.
    pub p2p_latency_ns: u64,
    /// Bytes per second from one rank to another; 0 if bytes take no time. No message may take more than 10^12 ns.
    pub p2p_bytes_per_second: u64,
    /// Times of FB that pairs of stages have of their own, num_pairs of them in any order, each pair once. In others F
    /// and B shrink by their own stage's overlapped_ns / (F + B). Where all stages cost the same, any may be named.
    pub pairs: *const dualpipe_pair_costs,
    /// 0 to 1048576.
    pub num_pairs: usize,
}

// SAFETY: repr(C), two u32 and six times 8 bytes, of which the pointers may be anything until they are checked.
unsafe impl Growing for dualpipe_costs {
    const SIZE_V1: usize = 40;
}

/// The caller's costs.
///
/// # Safety
/// The pointer, and those in it, if their bits pass, may be read.
pub(crate) unsafe fn read(argument: &str, costs: *const dualpipe_costs) -> Outcome<Costs> {
    // SAFETY: the caller's promise.
    let costs = unsafe { options::read(argument, costs) }?;
    let field = |name: &str| format!("{argument}->{name}");
    args::zero(&field("reserved"), costs.reserved)?;
    args::in_range(field("num_stages"), costs.num_stages, 1..=STAGES_MAX as usize)?;
    // SAFETY: the caller's promise.
    let stages =
        unsafe { args::slice(field("stages"), costs.stages, field("num_stages"), costs.num_stages) }?;
    let link = Link {
        latency_ns: costs.p2p_latency_ns,
        bytes_per_second: Some(costs.p2p_bytes_per_second).filter(|&bytes| bytes > 0),
    };
    args::in_range(field("num_pairs"), costs.num_pairs, 0..=PAIRS_MAX)?;
    // SAFETY: the caller's promise.
    let pairs = unsafe { args::slice(field("pairs"), costs.pairs, field("num_pairs"), costs.num_pairs) }?;
    let stages_max = if stages.len() == 1 { STAGES_MAX } else { stages.len() as u32 };
    let pair = |(i, pair): (usize, &dualpipe_pair_costs)| {
        let stage = |name: &str, stage: u32| {
            args::in_range(field(&format!("pairs[{i}].{name}")), stage, 0..=stages_max - 1)
                .map(|stage| Stage(stage as u16))
        };
        Ok(PairCosts {
            forward: stage("forward_stage", pair.forward_stage)?,
            backward: stage("backward_stage", pair.backward_stage)?,
            overlapped_ns: pair.overlapped_ns,
        })
    };
    let pairs = pairs.iter().enumerate().map(pair).collect::<Outcome<Vec<PairCosts>>>()?;
    Ok(Costs::new(stages.iter().map(StageCosts::from).collect(), link)?.with_pairs(pairs)?)
}

impl From<&dualpipe_stage_costs> for StageCosts {
    fn from(stage: &dualpipe_stage_costs) -> StageCosts {
        StageCosts {
            forward_ns: stage.forward_ns,
            input_ns: stage.input_ns,
            weight_ns: stage.weight_ns,
            overlapped_ns: stage.overlapped_ns,
            output_bytes: stage.output_bytes,
            activation_bytes: stage.activation_bytes,
            parameter_bytes: stage.parameter_bytes,
        }
    }
}
