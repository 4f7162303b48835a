//! Placements in 64-bit numbers with -1 for none: DeepSeek's tensors, and what the C interface takes.
//!
//! They are narrowed to the types that this library computes with. What does not fit becomes a number that is wrong
//! there too, and the finding gets its own number back: nothing is cut to something that could be right.

use super::{verify, LoadLimit, Report, Unverified, What};
use crate::balance::cluster::{Cluster, EMPTY};
use crate::balance::goal::Goal;
use crate::error::Result;

/// [`Unverified`] in 64-bit numbers, any at all.
#[derive(Clone, Copy, Debug)]
pub struct Wide<'a> {
    /// `[num_layers, num_slots]`: the expert in each slot, -1 on dead GPUs; DeepSeek's `phy2log`.
    pub slot_to_expert: &'a [i64],
    /// As of [`Unverified`].
    pub shares: Option<&'a [f64]>,
    /// `[num_layers, num_experts, count_max]`: the slots of each expert in any order, then -1; DeepSeek's `log2phy`.
    pub expert_to_slots: Option<&'a [i64]>,
    /// `[num_layers, num_experts]`: how many slots each expert has; DeepSeek's `logcnt`.
    pub replica_counts: Option<&'a [i64]>,
    /// As of [`Unverified`].
    pub limit: Option<LoadLimit<'a>>,
}

impl<'a> Wide<'a> {
    /// Only where the experts are.
    pub fn new(slot_to_expert: &'a [i64]) -> Wide<'a> {
        Wide { slot_to_expert, shares: None, expert_to_slots: None, replica_counts: None, limit: None }
    }
}

/// No expert, slot or count: there are far fewer of each. And none of them says that there is nothing.
const NO_EXPERT: u32 = EMPTY - 1;
const NO_SLOT: i32 = i32::MIN;
const NO_COUNT: u32 = u32::MAX;

/// As [`verify`](super::super::verify()), of 64-bit numbers.
///
/// ```
/// use dualpipe::balance::verify::{verify_wide, Wide};
/// use dualpipe::balance::{Cluster, Goal};
///
/// // 2^32 cut to 32 bits would be expert 0.
/// let report = verify_wide(&Cluster::even(4, 2, 1)?, &Goal::new(1, 3), &Wide::new(&[1, 2, 1, 1 << 32]))?;
/// assert!(report.to_string().contains("layer 0: slot 3 holds 4294967296, but experts are 0 to 2"));
/// # Ok::<(), dualpipe::Error>(())
/// ```
///
/// # Errors
///
/// As of [`verify`](super::super::verify()).
pub fn verify_wide(cluster: &Cluster, goal: &Goal, wide: &Wide<'_>) -> Result<Report> {
    let experts: Vec<u32> = wide.slot_to_expert.iter().map(|&expert| narrow_expert(expert)).collect();
    let slots = |slots: &[i64]| slots.iter().map(|&slot| i32::try_from(slot).unwrap_or(NO_SLOT)).collect();
    let slots: Option<Vec<i32>> = wide.expert_to_slots.map(slots);
    let counts = |counts: &[i64]| counts.iter().map(|&n| u32::try_from(n).unwrap_or(NO_COUNT)).collect();
    let counts: Option<Vec<u32>> = wide.replica_counts.map(counts);
    let narrow = Unverified {
        slot_to_expert: &experts,
        shares: wide.shares,
        expert_to_slots: slots.as_deref(),
        replica_counts: counts.as_deref(),
        limit: wide.limit,
    };
    let mut report = verify(cluster, goal, &narrow)?;
    let (num_slots, num_experts) = (cluster.num_slots(), goal.num_experts);
    let count_max = slots.map_or(0, |slots| slots.len() / (goal.num_layers * num_experts));
    for finding in &mut report.findings {
        let layer = finding.layer;
        match &mut finding.what {
            What::NotAnExpert { slot, value, .. } => *value = wide.slot_to_expert[layer * num_slots + *slot],
            What::ReplicaCount { expert, count, .. } => {
                *count = wide.replica_counts.map_or(*count, |counts| counts[layer * num_experts + *expert]);
            }
            What::WrongSlot { expert, entry, slot } => {
                let i = (layer * num_experts + *expert) * count_max + *entry;
                *slot = wide.expert_to_slots.map_or(*slot, |slots| slots[i]);
            }
            _ => {}
        }
    }
    Ok(report)
}

/// -1 is [`EMPTY`]; what is no expert stays none.
pub(crate) fn narrow_expert(expert: i64) -> u32 {
    match u32::try_from(expert) {
        Ok(expert) => expert.min(NO_EXPERT),
        Err(_) if expert == -1 => EMPTY,
        Err(_) => NO_EXPERT,
    }
}
