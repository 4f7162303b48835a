//! A placement one can trust: whether it is right, the same on all ranks, and what memory it asks for.
//!
//! A wrong placement seldom fails: tokens are lost, or computed by another expert, and the model is a little worse. So
//! a placement from a file, an engine or another planner is verified before it is used. Any numbers may be in it.
//!
//! ```c
//! // Prints what is wrong with a placement; returns how many errors there were, or -1 if it could not be told.
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static int print_errors(const dualpipe_cluster *cluster, const dualpipe_goal *goal,
//!                         const int64_t *slot_to_expert, size_t num_slots) {
//!   dualpipe_unverified_placement placement = DUALPIPE_UNVERIFIED_PLACEMENT_INIT;
//!   dualpipe_verdict verdict;
//!   static char text[1 << 16];
//!   size_t count = 0;
//!   placement.slot_to_expert = slot_to_expert;
//!   placement.num_slots = num_slots;
//!   if (dualpipe_expert_verify(cluster, goal, &placement, &verdict, NULL, 0, &count) != DUALPIPE_OK) return -1;
//!   if (dualpipe_expert_verify_text(cluster, goal, &placement, text, sizeof text, &count) == DUALPIPE_OK)
//!     fputs(text, stderr);
//!   return (int)verdict.num_errors;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::cluster::{dualpipe_cluster, dualpipe_goal, read_cluster, read_goal, read_slots};
use super::guard::call;
use super::op::DUALPIPE_NONE;
use super::options::{self, Growing, OutStruct};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::verify::{
    agree, buffers, hash, verify_wide, Finding, Kind, LoadLimit, Severity, Traffic, What, Wide,
};
use crate::balance::{Cluster, Goal};

use dualpipe_finding_kind::*;
use dualpipe_severity::*;

/// A placement that is to be verified, and whatever else is said about it. Start from
/// DUALPIPE_UNVERIFIED_PLACEMENT_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_unverified_placement {
    /// sizeof(dualpipe_unverified_placement).
    pub size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// num_layers rows of the cluster's slots: the expert in each, -1 on dead GPUs (DeepSeek's phy2log).
    pub slot_to_expert: *const i64,
    /// How many numbers slot_to_expert has, and shares if there are any.
    pub num_slots: usize,
    /// NULL, or the share of its expert's tokens that each slot gets, 0 where there is no expert.
    pub shares: *const f64,
    /// NULL, or num_layers tables of num_experts rows of equal length: the slots of each expert in any order, then -1
    /// (DeepSeek's log2phy).
    pub expert_to_slots: *const i64,
    /// How many numbers expert_to_slots has; 0 without.
    pub num_expert_to_slots: usize,
    /// NULL, or num_layers rows of num_experts: how many slots each expert has (DeepSeek's logcnt).
    pub replica_counts: *const i64,
    /// NULL, or num_layers rows of num_experts: loads under which no GPU may carry more than imbalance_max.
    pub loads: *const f32,
    /// How many numbers replica_counts and loads have, each if it is there; 0 without both.
    pub num_experts: usize,
    /// With loads: in multiples of the mean GPU load, at least 1; without: 0.
    pub imbalance_max: f64,
}

// SAFETY: repr(C), two u32 and nine values of 64 bits.
unsafe impl Growing for dualpipe_unverified_placement {
    const SIZE_V1: usize = 80;
}

/// How bad a finding is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_severity {
    /// Tokens are lost or computed wrongly, or what was asked for is not so.
    DUALPIPE_SEVERITY_ERROR = 1,
    /// Memory or time is wasted.
    DUALPIPE_SEVERITY_WARNING = 2,
}

/// What is wrong. Behind each: the fields of dualpipe_finding that say where, and what its numbers are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_finding_kind {
    /// expert: it is on no live GPU.
    DUALPIPE_FINDING_MISSING = 1,
    /// slot: it holds `value`, which is no expert.
    DUALPIPE_FINDING_NOT_AN_EXPERT = 2,
    /// slot, gpu, expert: the GPU is dead.
    DUALPIPE_FINDING_ON_DEAD_GPU = 3,
    /// expert: it is on `value` GPUs, less than `wanted`.
    DUALPIPE_FINDING_TOO_FEW_GPUS = 4,
    /// expert: it is on `value` nodes, less than `wanted`.
    DUALPIPE_FINDING_TOO_FEW_NODES = 5,
    /// group: it is to be whole, and is on `value` nodes instead of `wanted`, which is 1.
    DUALPIPE_FINDING_SPLIT_GROUP = 6,
    /// slot: its share, `amount`, is negative or not finite, or not 0 though there is no expert on a live GPU.
    DUALPIPE_FINDING_SHARE = 7,
    /// expert: its shares sum to `amount` instead of `limit`, which is 1.
    DUALPIPE_FINDING_SHARE_SUM = 8,
    /// expert: its replica count is `value`, but `wanted` live slots hold it.
    DUALPIPE_FINDING_REPLICA_COUNT = 9,
    /// expert, entry: the entry of its slots is `value`, which does not belong there.
    DUALPIPE_FINDING_WRONG_SLOT = 10,
    /// slot, expert: the slot holds the expert and is not among the expert's slots.
    DUALPIPE_FINDING_UNLISTED = 11,
    /// slot, gpu: the GPU is alive and the slot empty.
    DUALPIPE_FINDING_EMPTY = 12,
    /// gpu, expert: the GPU holds it `value` times; is_avoidable says whether other experts are left for the slot.
    DUALPIPE_FINDING_TWICE = 13,
    /// gpu: it carries `amount` times the mean, more than `limit`.
    DUALPIPE_FINDING_OVERLOADED = 14,
}

/// One thing that is wrong in a layer. Where it is, is DUALPIPE_NONE and 0 in fields that its kind does not name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_finding {
    /// A dualpipe_finding_kind.
    pub kind: u32,
    /// A dualpipe_severity.
    pub severity: u32,
    /// The layer.
    pub layer: u32,
    /// The expert.
    pub expert: u32,
    /// The slot.
    pub slot: u32,
    /// The GPU.
    pub gpu: u32,
    /// The group.
    pub group: u32,
    /// The entry among the expert's slots.
    pub entry: u32,
    /// 0 or 1.
    pub is_avoidable: u32,
    /// 0.
    pub reserved: u32,
    /// What was found, a whole number: as it was given.
    pub value: i64,
    /// What it should have been.
    pub wanted: i64,
    /// What was found, a share or a load.
    pub amount: f64,
    /// What it should have been, or the most it may be.
    pub limit: f64,
}

/// How many findings there were.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_verdict {
    /// Errors; with none the placement can be used.
    pub num_errors: u64,
    /// Warnings.
    pub num_warnings: u64,
    /// Of each kind, `counts` at the number of the kind: all, while the first 64 of a kind are given in detail.
    pub counts: [u64; 16],
}

/// Looks for everything in a placement that is wrong, or worse than it need be: writes how many findings there are,
/// and the first 64 of each kind, layer by layer. Buffers are filled as dualpipe.h says under "Buffers"; NULL without
/// a capacity is enough for a verdict.
///
/// Of the goal, num_layers, num_experts, num_groups, DUALPIPE_GROUPS_WHOLE, min_gpus and min_nodes count.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT where it cannot be told what is meant: numbers of values that do not fit, a
/// load that is negative or not finite. What is wrong with the placement is a finding.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_verify(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    placement: *const dualpipe_unverified_placement,
    verdict: *mut dualpipe_verdict,
    findings: *mut dualpipe_finding,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_verify", || {
        // SAFETY: the caller's.
        let (cluster, goal, wide) = unsafe { read(cluster, goal, placement) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("verdict", verdict) }?;
        // SAFETY: the caller's.
        let list = unsafe { Buffer::new("findings", findings, capacity, "count", count) }?;
        let report = verify_wide(&cluster, &goal, &wide)?;
        list.fill(report.findings().len(), report.findings().iter().map(finding_in_c))?;
        let mut counts = [0; 16];
        Kind::ALL.iter().for_each(|&kind| counts[kind_in_c(kind) as usize] = report.count(kind));
        let (num_errors, num_warnings) = (report.num_errors(), report.num_warnings());
        out.write(dualpipe_verdict { num_errors, num_warnings, counts });
        Ok(())
    })
}

/// The same as a text: a line for each finding, errors first, and for each kind how many more there were. Empty if
/// nothing was found. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_verify_text(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    placement: *const dualpipe_unverified_placement,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_verify_text", || {
        // SAFETY: the caller's.
        let (cluster, goal, wide) = unsafe { read(cluster, goal, placement) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&verify_wide(&cluster, &goal, &wide)?.to_string())
    })
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
unsafe fn read<'a>(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    placement: *const dualpipe_unverified_placement,
) -> Outcome<(Cluster, Goal, Wide<'a>)> {
    // SAFETY: as promised by the caller, also below.
    let (cluster, goal) = unsafe { (read_cluster("cluster", cluster)?, read_goal("goal", goal)?) };
    // SAFETY: as above.
    let given = unsafe { options::read("placement", placement) }?;
    args::zero("placement->reserved", given.reserved)?;
    let num_slots = ("placement->num_slots", given.num_slots);
    let num_experts = ("placement->num_experts", given.num_experts);
    let num_entries = ("placement->num_expert_to_slots", given.num_expert_to_slots);
    // SAFETY: as above.
    let slot_to_expert =
        unsafe { args::slice("placement->slot_to_expert", given.slot_to_expert, num_slots.0, num_slots.1) }?;
    // SAFETY: as above.
    let shares = unsafe { optional("placement->shares", given.shares, num_slots) }?;
    // SAFETY: as above.
    let expert_to_slots =
        unsafe { optional("placement->expert_to_slots", given.expert_to_slots, num_entries) }?;
    // SAFETY: as above.
    let replica_counts = unsafe { optional("placement->replica_counts", given.replica_counts, num_experts) }?;
    // SAFETY: as above.
    let loads = unsafe { optional("placement->loads", given.loads, num_experts) }?;
    if expert_to_slots.is_none() && num_entries.1 != 0 {
        return Err(Failure::argument(num_entries.0, format!("is {}, but there are none", num_entries.1)));
    }
    if loads.is_none() && given.imbalance_max != 0.0 {
        let how = format!("is {}, must be 0 without loads", given.imbalance_max);
        return Err(Failure::argument("placement->imbalance_max", how));
    }
    let limit = loads.map(|loads| LoadLimit { loads, imbalance_max: given.imbalance_max });
    let wide = Wide { slot_to_expert, shares, expert_to_slots, replica_counts, limit };
    Ok((cluster, goal, wide))
}

/// # Safety
/// As of [`args::slice`].
unsafe fn optional<'a, T>(
    name: &str,
    pointer: *const T,
    (count_name, count): (&str, usize),
) -> Outcome<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    unsafe { args::slice(name, pointer, count_name, count) }.map(Some)
}

fn kind_in_c(kind: Kind) -> dualpipe_finding_kind {
    match kind {
        Kind::Missing => DUALPIPE_FINDING_MISSING,
        Kind::NotAnExpert => DUALPIPE_FINDING_NOT_AN_EXPERT,
        Kind::OnDeadGpu => DUALPIPE_FINDING_ON_DEAD_GPU,
        Kind::TooFewGpus => DUALPIPE_FINDING_TOO_FEW_GPUS,
        Kind::TooFewNodes => DUALPIPE_FINDING_TOO_FEW_NODES,
        Kind::SplitGroup => DUALPIPE_FINDING_SPLIT_GROUP,
        Kind::Share => DUALPIPE_FINDING_SHARE,
        Kind::ShareSum => DUALPIPE_FINDING_SHARE_SUM,
        Kind::ReplicaCount => DUALPIPE_FINDING_REPLICA_COUNT,
        Kind::WrongSlot => DUALPIPE_FINDING_WRONG_SLOT,
        Kind::Unlisted => DUALPIPE_FINDING_UNLISTED,
        Kind::Empty => DUALPIPE_FINDING_EMPTY,
        Kind::Twice => DUALPIPE_FINDING_TWICE,
        Kind::Overloaded => DUALPIPE_FINDING_OVERLOADED,
    }
}

fn finding_in_c(finding: &Finding) -> dualpipe_finding {
    let severity = match finding.kind().severity() {
        Severity::Error => DUALPIPE_SEVERITY_ERROR,
        Severity::Warning => DUALPIPE_SEVERITY_WARNING,
    };
    let nowhere = dualpipe_finding {
        kind: kind_in_c(finding.kind()) as u32,
        severity: severity as u32,
        layer: finding.layer as u32,
        expert: DUALPIPE_NONE,
        slot: DUALPIPE_NONE,
        gpu: DUALPIPE_NONE,
        group: DUALPIPE_NONE,
        entry: DUALPIPE_NONE,
        is_avoidable: 0,
        reserved: 0,
        value: 0,
        wanted: 0,
        amount: 0.0,
        limit: 0.0,
    };
    // Experts, slots, GPUs and their numbers are all below 2^32.
    let id = |number: usize| number as u32;
    let int = |number: usize| number as i64;
    match finding.what {
        What::Missing { expert } => dualpipe_finding { expert: id(expert), ..nowhere },
        What::NotAnExpert { slot, value, .. } => dualpipe_finding { slot: id(slot), value, ..nowhere },
        What::OnDeadGpu { slot, gpu, expert } => {
            dualpipe_finding { slot: id(slot), gpu: id(gpu), expert: id(expert), ..nowhere }
        }
        What::TooFewGpus { expert, gpus: found, min_gpus: least }
        | What::TooFewNodes { expert, nodes: found, min_nodes: least } => {
            dualpipe_finding { expert: id(expert), value: int(found), wanted: int(least), ..nowhere }
        }
        What::SplitGroup { group, nodes } => {
            dualpipe_finding { group: id(group), value: int(nodes), wanted: 1, ..nowhere }
        }
        What::Share { slot, share } => dualpipe_finding { slot: id(slot), amount: share, ..nowhere },
        What::ShareSum { expert, sum } => {
            dualpipe_finding { expert: id(expert), amount: sum, limit: 1.0, ..nowhere }
        }
        What::ReplicaCount { expert, count, slots } => {
            dualpipe_finding { expert: id(expert), value: count, wanted: int(slots), ..nowhere }
        }
        What::WrongSlot { expert, entry, slot } => {
            dualpipe_finding { expert: id(expert), entry: id(entry), value: slot, ..nowhere }
        }
        What::Unlisted { slot, expert } => dualpipe_finding { slot: id(slot), expert: id(expert), ..nowhere },
        What::Empty { slot, gpu } => dualpipe_finding { slot: id(slot), gpu: id(gpu), ..nowhere },
        What::Twice { gpu, expert, times, avoidable } => dualpipe_finding {
            gpu: id(gpu),
            expert: id(expert),
            value: int(times),
            is_avoidable: avoidable.into(),
            ..nowhere
        },
        What::Overloaded { gpu, load, limit } => {
            dualpipe_finding { gpu: id(gpu), amount: load, limit, ..nowhere }
        }
    }
}

/// The hash of a placement and the cluster it is for, the same on every machine: ranks that route by different
/// placements compute wrong results without any error, so each hashes its own and they compare
/// (dualpipe_expert_hash_agree).
///
/// slot_to_expert: num_slots numbers, -1 where there is no expert; shares: NULL, or as many. FNV-1a of 64 bits over
/// bytes that docs/trust.md lists.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a number that can be no expert's.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_hash(
    cluster: *const dualpipe_cluster,
    slot_to_expert: *const i64,
    shares: *const f64,
    num_slots: usize,
    hash: *mut u64,
) -> dualpipe_status {
    call("dualpipe_expert_hash", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let shares = unsafe { optional("shares", shares, ("num_slots", num_slots)) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("hash", hash) }?;
        out.write(self::hash(&cluster, &slots, shares));
        Ok(())
    })
}

/// Which ranks have another hash than most. hashes: one for each rank. hash: what most have; of equally frequent ones
/// that of the lowest rank. ranks: who differs, in order. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_hash_agree(
    hashes: *const u64,
    num_ranks: usize,
    hash: *mut u64,
    ranks: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_hash_agree", || {
        args::in_range("num_ranks", num_ranks, 1..=1 << 20)?;
        // SAFETY: the caller's.
        let hashes = unsafe { args::slice("hashes", hashes, "num_ranks", num_ranks) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("hash", hash) }?;
        // SAFETY: the caller's.
        let differing = unsafe { Buffer::new("ranks", ranks, capacity, "count", count) }?;
        let agreement = agree(hashes);
        differing.fill(agreement.differing.len(), agreement.differing.iter().map(|&rank| rank as u32))?;
        out.write(agreement.hash);
        Ok(())
    })
}

/// What is sent to experts and kept of them. Start from DUALPIPE_EXPERT_TRAFFIC_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_expert_traffic {
    /// sizeof(dualpipe_expert_traffic).
    pub size: u32,
    /// Layers whose experts are in memory at the same time, 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// Experts of a token, 1 to num_experts.
    pub top_k: u32,
    /// Numbers of a token's hidden state, 1 to 2^20; 2 bytes each.
    pub hidden: u32,
    /// Tokens that a rank sends in one dispatch, at most; 1 to 2^20.
    pub tokens_per_rank: u32,
    /// Bytes of one expert's weights in one layer, with scales and whatever else lies beside them; at most 2^37.
    pub expert_bytes: u64,
}

// SAFETY: repr(C), six u32 and a u64.
unsafe impl Growing for dualpipe_expert_traffic {
    const SIZE_V1: usize = 32;
}

/// What memory a placement asks for on the GPU that needs most. Start from DUALPIPE_EXPERT_MEMORY_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_expert_memory {
    /// sizeof(dualpipe_expert_memory).
    pub size: u32,
    /// Slots of the fullest live GPU.
    pub slots_max: u32,
    /// Its weights: slots_max * num_layers * expert_bytes.
    pub weight_bytes: u64,
    /// Rows that its experts compute in one layer when every rank sends it all that it can.
    pub rows_max: u64,
    /// The buffers of a low-latency dispatch (DeepEP's), which grow with the slots of the whole cluster: twice the
    /// sum of receive and send, where places = num_gpus * slots_max * tokens_per_rank, receive = places * (16 + 2 *
    /// hidden), and send is the larger of places * 2 * hidden and tokens_per_rank * (16 + 2 * hidden).
    pub low_latency_bytes: u64,
    /// The same with as few slots as hold each expert once: what redundant slots cost is the difference.
    pub low_latency_bytes_without_redundancy: u64,
}

// SAFETY: repr(C), two u32 and four u64.
unsafe impl Growing for dualpipe_expert_memory {
    const SIZE_V1: usize = 40;
}

/// What memory placements on a cluster ask for. It counts messages and weights, not what a library takes besides.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for bytes that do not fit in 64 bits.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_buffers(
    cluster: *const dualpipe_cluster,
    traffic: *const dualpipe_expert_traffic,
    memory: *mut dualpipe_expert_memory,
) -> dualpipe_status {
    call("dualpipe_expert_buffers", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let (given, out) = unsafe { (options::read("traffic", traffic)?, OutStruct::new("memory", memory)?) };
        let traffic = Traffic {
            num_layers: given.num_layers as usize,
            num_experts: given.num_experts as usize,
            expert_bytes: given.expert_bytes,
            hidden: given.hidden as usize,
            tokens_per_rank: given.tokens_per_rank as usize,
            top_k: given.top_k as usize,
        };
        let memory = buffers(&cluster, &traffic)?;
        out.write(dualpipe_expert_memory {
            size: 0,
            slots_max: memory.slots_max as u32,
            weight_bytes: memory.weight_bytes,
            rows_max: memory.rows_max,
            low_latency_bytes: memory.low_latency_bytes,
            low_latency_bytes_without_redundancy: memory.low_latency_bytes_without_redundancy,
        });
        Ok(())
    })
}
