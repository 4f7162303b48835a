//! Costs: the time and bytes of each stage, and of the links between ranks.
//!
//! They are the caller's, read by dualpipe_simulate and not kept. One entry does for all stages; measured ones come
//! from the spans of a recorded timeline. Times and bytes may be 0: what costs nothing takes no time.

use super::args;
use super::options::{self, Growing};
use super::status::Outcome;
use crate::cost::{Costs, Link, StageCosts};
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
}

// SAFETY: repr(C), two u32 and four times 8 bytes, of which the pointer may be anything until it is checked.
unsafe impl Growing for dualpipe_costs {
    const SIZE_V1: usize = 40;
}

/// The caller's costs.
///
/// # Safety
/// The pointer, and the one in it, if their bits pass, may be read.
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
    Ok(Costs::new(stages.iter().map(StageCosts::from).collect(), link)?)
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
