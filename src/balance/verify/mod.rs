//! Whether a placement from anywhere can be used: an engine's, a file's, another planner's, one of before a failure.
//!
//! A wrong placement seldom fails. It loses tokens, or has them computed by the wrong expert, and shows as a model
//! that is a little worse. So nothing is taken for granted here: every number may be any number, and what is wrong is
//! said with its place. `finding` has all that can be wrong, `layer` looks for it, `wide` takes 64-bit numbers, `hash`
//! tells whether all ranks mean the same placement, `buffers` what memory it asks for.

mod buffers;
mod finding;
mod hash;
mod layer;
mod wide;

pub use self::buffers::{buffers, Buffers, Traffic};
pub use self::finding::{Finding, Kind, Severity, What};
pub use self::hash::{agree, hash, Agreement};
pub use self::wide::{verify_wide, Wide};

use std::fmt;

use self::layer::{Given, LayerCheck};
use super::cluster::Cluster;
use super::evaluate::{check_len, check_loads};
use super::goal::{Goal, EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, Result};

/// A [`Report`] keeps the first so many findings of each kind, and the number of all.
pub const FINDINGS_PER_KIND: usize = 64;

/// A placement that is to be verified, and whatever else is said about it.
#[derive(Clone, Copy, Debug)]
pub struct Unverified<'a> {
    /// `[num_layers, num_slots]`: the expert in each slot, [`EMPTY`](super::EMPTY) on dead GPUs.
    pub slot_to_expert: &'a [u32],
    /// `[num_layers, num_slots]`: which share of its expert's tokens each slot gets; 0 where there is no expert.
    pub shares: Option<&'a [f64]>,
    /// `[num_layers, num_experts, count_max]`: the slots of each expert in any order, then -1; DeepSeek's `log2phy`.
    /// Its length says what `count_max` is.
    pub expert_to_slots: Option<&'a [i32]>,
    /// `[num_layers, num_experts]`: how many slots each expert has; DeepSeek's `logcnt`.
    pub replica_counts: Option<&'a [u32]>,
    /// What no GPU may carry more than.
    pub limit: Option<LoadLimit<'a>>,
}

/// Loads, and by how much a GPU's may exceed the mean.
#[derive(Clone, Copy, Debug)]
pub struct LoadLimit<'a> {
    /// `[num_layers, num_experts]`
    pub loads: &'a [f32],
    /// In multiples of the mean GPU load.
    pub imbalance_max: f64,
}

impl<'a> Unverified<'a> {
    /// Only where the experts are.
    pub fn new(slot_to_expert: &'a [u32]) -> Unverified<'a> {
        Unverified { slot_to_expert, shares: None, expert_to_slots: None, replica_counts: None, limit: None }
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    findings: Vec<Finding>,
    /// By [`Kind`], of all findings.
    counts: [u64; Kind::ALL.len()],
}

/// Looks for everything in a placement that is wrong, or worse than it need be.
///
/// Of `goal`, the numbers of layers, experts and groups count, [`GroupRule::Whole`](super::GroupRule::Whole),
/// `min_gpus` and `min_nodes`. `O(num_layers * (num_slots + num_experts * count_max))`.
///
/// # Errors
///
/// `InvalidArgument` where it cannot be told what is meant: a length does not fit, a size of `goal` is out of range, a
/// load is negative or not finite, `imbalance_max` is below 1 or NaN.
///
/// # Examples
///
/// The placement of deepseek-ai/EPLB issue 22 in small: expert 2 is twice on GPU 1, and expert 1 nowhere.
///
/// ```
/// use dualpipe::balance::verify::{Kind, Unverified};
/// use dualpipe::balance::{verify, Cluster, Goal};
///
/// let cluster = Cluster::even(4, 2, 1)?;
/// let report = verify(&cluster, &Goal::new(1, 3), &Unverified::new(&[0, 2, 2, 2]))?;
/// assert!(!report.is_ok());
/// assert_eq!(report.count(Kind::Missing), 1);
/// assert_eq!(
///     report.to_string(),
///     "error: layer 0: expert 1 is on no live GPU\n\
///      warning: layer 0: GPU 1 holds 2 replicas of expert 2, though other experts are left for it\n"
/// );
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn verify(cluster: &Cluster, goal: &Goal, placement: &Unverified<'_>) -> Result<Report> {
    let count_max = check(cluster, goal, placement)?;
    let (num_slots, num_experts) = (cluster.num_slots(), goal.num_experts);
    let mut report = Report { findings: Vec::new(), counts: [0; Kind::ALL.len()] };
    let mut layer_check = LayerCheck::new(cluster, goal);
    for layer in 0..goal.num_layers {
        let slots = layer * num_slots..(layer + 1) * num_slots;
        let experts = layer * num_experts..(layer + 1) * num_experts;
        let entries = experts.start * count_max..experts.end * count_max;
        let given = Given {
            slot_to_expert: &placement.slot_to_expert[slots.clone()],
            shares: placement.shares.map(|shares| &shares[slots]),
            expert_to_slots: placement.expert_to_slots.map(|table| &table[entries]),
            count_max,
            replica_counts: placement.replica_counts.map(|counts| &counts[experts.clone()]),
            limit: placement.limit.map(|limit| LoadLimit { loads: &limit.loads[experts], ..limit }),
        };
        layer_check.run(layer, &given, &mut |finding| report.add(finding));
    }
    Ok(report)
}

/// Whether all lengths fit together; returns the table's `count_max`, 0 without a table.
fn check(cluster: &Cluster, goal: &Goal, placement: &Unverified<'_>) -> Result<usize> {
    let num_layers = in_range("verify", "num_layers", goal.num_layers, 1..=LAYERS_MAX)?;
    let num_experts = in_range("verify", "num_experts", goal.num_experts, 1..=EXPERTS_MAX)?;
    in_range("verify", "num_groups", goal.num_groups, 1..=num_experts)?;
    let slots = num_layers * cluster.num_slots(); // at most 2^32, and 2^28 experts
    let experts = num_layers * num_experts;
    check_len("verify", "slot_to_expert", placement.slot_to_expert.len(), slots)?;
    check_len("verify", "shares", placement.shares.map_or(slots, <[f64]>::len), slots)?;
    check_len("verify", "replica_counts", placement.replica_counts.map_or(experts, <[u32]>::len), experts)?;
    if let Some(limit) = placement.limit {
        check_len("verify", "loads", limit.loads.len(), experts)?;
        check_loads("verify", num_experts, limit.loads)?;
        // False for NaN.
        if !(1.0..=f64::INFINITY).contains(&limit.imbalance_max) {
            return Err(Error::argument(
                "verify",
                "imbalance_max",
                limit.imbalance_max,
                "must be at least 1",
            ));
        }
    }
    let Some(table) = placement.expert_to_slots else { return Ok(0) };
    if table.len() % experts != 0 {
        let range = format!("must be a multiple of num_layers * num_experts = {num_layers} * {num_experts}");
        return Err(Error::argument("verify", "the length of expert_to_slots", table.len(), range));
    }
    Ok(table.len() / experts)
}

impl Report {
    fn add(&mut self, finding: Finding) {
        let count = &mut self.counts[finding.kind() as usize];
        *count += 1;
        if *count <= FINDINGS_PER_KIND as u64 {
            self.findings.push(finding);
        }
    }

    /// Layer by layer, of each kind the first [`FINDINGS_PER_KIND`].
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many findings of a kind there were, kept or not.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many errors there were, kept or not.
    pub fn num_errors(&self) -> u64 {
        self.num_of(Severity::Error)
    }

    /// How many warnings there were, kept or not.
    pub fn num_warnings(&self) -> u64 {
        self.num_of(Severity::Warning)
    }

    /// Whether there is no error; there may be warnings.
    pub fn is_ok(&self) -> bool {
        self.num_errors() == 0
    }

    fn num_of(&self, severity: Severity) -> u64 {
        Kind::ALL.iter().filter(|kind| kind.severity() == severity).map(|&kind| self.count(kind)).sum()
    }
}

/// A line for each finding, errors first; then, of which kinds there were more.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for severity in [Severity::Error, Severity::Warning] {
            for finding in self.findings.iter().filter(|finding| finding.kind().severity() == severity) {
                writeln!(f, "{severity}: {finding}")?;
            }
            for kind in Kind::ALL.into_iter().filter(|kind| kind.severity() == severity) {
                let more = self.count(kind).saturating_sub(FINDINGS_PER_KIND as u64);
                if more > 0 {
                    writeln!(f, "{severity}: {more} more: {kind}")?;
                }
            }
        }
        Ok(())
    }
}
