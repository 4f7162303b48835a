//! Whether a planned placement is worth moving to: its gain over a horizon against the move's price, aware of noise.
//!
//! A step of a layer takes as long as its heaviest GPU. The gain is judged step by step, on counts of the last steps,
//! as sums hide that every sample of tokens is uneven: docs/loads.md has the rule, and what it does not know.
//!
//! ```c
//! // 2 ms of each step are the experts'. The move would hold up steps for 0.8 s and has 5000 steps to pay off.
//! #include <dualpipe.h>
//!
//! static dualpipe_status decide(const dualpipe_cluster *cluster, dualpipe_rebalance_proposal proposal,
//!                               dualpipe_rebalance_decision *decision) {
//!   const dualpipe_rebalance_decision none = DUALPIPE_REBALANCE_DECISION_INIT;
//!   *decision = none;
//!   proposal.expert_seconds = 2e-3;
//!   proposal.price_seconds = 0.8;
//!   proposal.horizon = 5000;
//!   return dualpipe_should_rebalance(cluster, &proposal, decision);
//! }
//! ```

use super::args;
use super::cluster::{dualpipe_cluster, read_cluster, read_slots};
use super::guard::call;
use super::options::{self, Growing, OutStruct};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::trigger::{should_rebalance, MovePrice, Proposal, Reason, Stakes};

use dualpipe_rebalance_reason::*;

/// A move that might be made, and what there is to judge it by. Start from DUALPIPE_REBALANCE_PROPOSAL_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_rebalance_proposal {
    /// sizeof(dualpipe_rebalance_proposal).
    pub size: u32,
    /// MoE layers, 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// 1 if the plan was made of these steps, otherwise 0. Better that it was made of older ones.
    pub plan_saw_counts: u32,
    /// The tokens of each of the last steps, one step after the other: of each num_layers rows of num_experts
    /// numbers. At least 4 steps; more than 16 tell more.
    pub counts: *const u32,
    /// How many numbers `counts` has.
    pub num_counts: usize,
    /// Now: num_layers rows of the cluster's slots, the expert in each, -1 where there is none.
    pub current: *const i64,
    /// NULL for an equal split, or as many shares.
    pub current_shares: *const f64,
    /// The same after the move.
    pub planned: *const i64,
    /// NULL for an equal split, or as many shares.
    pub planned_shares: *const f64,
    /// How many numbers `current`, `planned` and their shares have each.
    pub num_slots: usize,
    /// Steps that the move has to pay for itself in, at most 2^53.
    pub horizon: u64,
    /// What the experts of all layers take of a step now, as far as it grows with the heaviest GPU's tokens: seconds,
    /// 0 to 1e9.
    pub expert_seconds: f64,
    /// What the move costs: seconds that it holds up steps, finite, not negative. 0 with bytes_per_second.
    pub price_seconds: f64,
    /// Or, with bytes_per_second: the bytes of one expert of one layer, 0 to 1e18. Layers are moved one after the
    /// other, each as long as its busiest GPU receives.
    pub bytes_per_expert: f64,
    /// What a GPU receives in a second, 1 to 1e18; 0: the price is price_seconds.
    pub bytes_per_second: f64,
    /// By how many standard errors the gain must exceed the cost, at most 100. 0 stands for 3: of moves that cost and
    /// bring nothing, 1 in 300 is then made.
    pub standard_errors: f64,
}

// SAFETY: repr(C), four u32 and thirteen pointers and numbers of 64 bits.
unsafe impl Growing for dualpipe_rebalance_proposal {
    const SIZE_V1: usize = 120;
}

/// What decided.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_rebalance_reason {
    /// The gain exceeds the cost, beyond doubt: move.
    DUALPIPE_REBALANCE_WORTHWHILE = 1,
    /// The placements are the same.
    DUALPIPE_REBALANCE_SAME_PLACEMENT = 2,
    /// There are too few steps to know how far gains vary.
    DUALPIPE_REBALANCE_TOO_FEW_STEPS = 3,
    /// The plan is not better.
    DUALPIPE_REBALANCE_NO_GAIN = 4,
    /// The gain is within what chance may bring.
    DUALPIPE_REBALANCE_WITHIN_NOISE = 5,
    /// The gain is real and not certain to exceed the cost.
    DUALPIPE_REBALANCE_BELOW_COST = 6,
}

/// Whether to move, and why. Start from DUALPIPE_REBALANCE_DECISION_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_rebalance_decision {
    /// sizeof(dualpipe_rebalance_decision).
    pub size: u32,
    /// 1 if the move pays, otherwise 0.
    pub rebalance: u32,
    /// A dualpipe_rebalance_reason.
    pub reason: u32,
    /// Always 0.
    pub reserved: u32,
    /// Replicas that GPUs have to receive, in all layers.
    pub moved_replicas: u64,
    /// Now: the heaviest GPU's load / the mean, of sums over steps and layers.
    pub current_imbalance: f64,
    /// After the move: the same, as expected of steps that the plan has not seen.
    pub planned_imbalance: f64,
    /// What the planned imbalance would be if only its steps differed, each from their mean: 1 or a little more than
    /// the sampling of tokens makes inevitable.
    pub noise_floor: f64,
    /// What is expected to be saved over the horizon, in seconds; negative if the plan is worse.
    pub gain_seconds: f64,
    /// The standard error of that; infinite with too few steps.
    pub gain_error_seconds: f64,
    /// The price of the move, in seconds.
    pub cost_seconds: f64,
}

// SAFETY: repr(C), four u32, a u64 and six f64.
unsafe impl Growing for dualpipe_rebalance_decision {
    const SIZE_V1: usize = 72;
}

/// Says whether a planned placement is worth moving to: if (gain per step - standard_errors * its standard error) *
/// horizon exceeds the cost.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a placement under which the counts do not arrive.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_should_rebalance(
    cluster: *const dualpipe_cluster,
    proposal: *const dualpipe_rebalance_proposal,
    decision: *mut dualpipe_rebalance_decision,
) -> dualpipe_status {
    call("dualpipe_should_rebalance", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let (given, out) =
            unsafe { (options::read("proposal", proposal)?, OutStruct::new("decision", decision)?) };
        let plan_saw_counts = args::flag("proposal->plan_saw_counts", given.plan_saw_counts)?;
        let (num_counts, num_slots) = ("proposal->num_counts", "proposal->num_slots");
        // SAFETY: the caller's.
        let counts = unsafe { args::slice("proposal->counts", given.counts, num_counts, given.num_counts) }?;
        // SAFETY: the caller's.
        let current = unsafe { read_slots("proposal->current", given.current, num_slots, given.num_slots) }?;
        // SAFETY: the caller's.
        let planned = unsafe { read_slots("proposal->planned", given.planned, num_slots, given.num_slots) }?;
        let shares = |name: &str, pointer: *const f64| match pointer.is_null() {
            true => Ok(None),
            // SAFETY: the caller's.
            false => unsafe { args::slice(name, pointer, num_slots, given.num_slots) }.map(Some),
        };
        let found = should_rebalance(&Proposal {
            cluster: &cluster,
            num_layers: given.num_layers as usize,
            num_experts: given.num_experts as usize,
            counts,
            plan_saw_counts,
            current: &current,
            current_shares: shares("proposal->current_shares", given.current_shares)?,
            planned: &planned,
            planned_shares: shares("proposal->planned_shares", given.planned_shares)?,
            stakes: Stakes {
                expert_seconds: given.expert_seconds,
                horizon: given.horizon,
                price: read_price(&given)?,
                standard_errors: if given.standard_errors == 0.0 { 3.0 } else { given.standard_errors },
            },
        })?;
        out.write(dualpipe_rebalance_decision {
            size: 0,
            rebalance: found.rebalance.into(),
            reason: reason(found.reason) as u32,
            reserved: 0,
            moved_replicas: found.moved_replicas,
            current_imbalance: found.current_imbalance,
            planned_imbalance: found.planned_imbalance,
            noise_floor: found.noise_floor,
            gain_seconds: found.gain_seconds,
            gain_error_seconds: found.gain_error_seconds,
            cost_seconds: found.cost_seconds,
        });
        Ok(())
    })
}

/// Seconds or bytes: what the other needs is 0.
fn read_price(given: &dualpipe_rebalance_proposal) -> Outcome<MovePrice> {
    let (is_bytes, unused) = match given.bytes_per_second {
        0.0 => (false, ("bytes_per_expert", given.bytes_per_expert, "without")),
        _ => (true, ("price_seconds", given.price_seconds, "with")),
    };
    let (name, value, how) = unused;
    if value != 0.0 {
        let how = format!("is {value}, must be 0 {how} bytes_per_second");
        return Err(Failure::argument(format!("proposal->{name}"), how));
    }
    Ok(if is_bytes {
        MovePrice::Bytes { per_expert: given.bytes_per_expert, bandwidth: given.bytes_per_second }
    } else {
        MovePrice::Seconds(given.price_seconds)
    })
}

fn reason(reason: Reason) -> dualpipe_rebalance_reason {
    match reason {
        Reason::Worthwhile => DUALPIPE_REBALANCE_WORTHWHILE,
        Reason::SamePlacement => DUALPIPE_REBALANCE_SAME_PLACEMENT,
        Reason::TooFewSteps => DUALPIPE_REBALANCE_TOO_FEW_STEPS,
        Reason::NoGain => DUALPIPE_REBALANCE_NO_GAIN,
        Reason::WithinNoise => DUALPIPE_REBALANCE_WITHIN_NOISE,
        Reason::BelowCost => DUALPIPE_REBALANCE_BELOW_COST,
    }
}
