//! What a verification found: whether a schedule can be trusted, each fault in words, and a smallest counterexample.
//!
//! Findings are in order of what depends on what, then of ranks; a fault is reported for itself, not again for what
//! follows from it: a deadlock is looked for only where each op, message and reduction is there once and in its place.

use std::ffi::c_char;

use super::action::{bits_of_transports, dualpipe_action, receives_in_c, transport_in_c};
use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle::{self, Kind as ObjectKind, Object};
use super::op::{dualpipe_pass, DUALPIPE_NONE};
use super::options::{Growing, OutStruct};
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::placement::Placement;
use crate::verify::{Counterexample, Finding, Kind, Report, Transport};

use dualpipe_schedule_finding_kind::*;

/// What a dualpipe_verification_t points to: nothing that C could look into.
pub struct dualpipe_verification(());

/// What a verification found. It never changes: any number of threads may use it at once. It stays usable after a
/// fork. Free it with dualpipe_verification_free.
pub type dualpipe_verification_t = *mut dualpipe_verification;

/// What sort of fault a finding is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_schedule_finding_kind {
    /// An op of a stage or micro-batch that the schedule does not have, on a rank that does not hold the stage, or a
    /// backward in a forward-only schedule.
    DUALPIPE_SCHEDULE_FINDING_FOREIGN_OP = 1,
    /// A pass without its F, its B or I, or its B or W.
    DUALPIPE_SCHEDULE_FINDING_MISSING_OP = 2,
    /// A second F, backward for the input or backward for the weights of a pass.
    DUALPIPE_SCHEDULE_FINDING_DOUBLED_OP = 3,
    /// An op before one of the same rank that it needs.
    DUALPIPE_SCHEDULE_FINDING_OP_ORDER = 4,
    /// Ops of several ranks that need one another in a circle: a deadlock under any transport.
    DUALPIPE_SCHEDULE_FINDING_DEPENDENCY_CYCLE = 5,
    /// Actions whose ops are not those of the schedule, in its order.
    DUALPIPE_SCHEDULE_FINDING_TASK_ORDER = 6,
    /// A message that the schedule does not have, or has between other ranks.
    DUALPIPE_SCHEDULE_FINDING_FOREIGN_MESSAGE = 7,
    /// A message that is not sent or not received.
    DUALPIPE_SCHEDULE_FINDING_MISSING_MESSAGE = 8,
    /// A message that is sent or received twice.
    DUALPIPE_SCHEDULE_FINDING_DOUBLED_MESSAGE = 9,
    /// A send before the op that makes the message.
    DUALPIPE_SCHEDULE_FINDING_SEND_BEFORE_MADE = 10,
    /// A receive after the op that needs the message.
    DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE = 11,
    /// A WAIT_SEND without an earlier send of its own.
    DUALPIPE_SCHEDULE_FINDING_WAIT_WITHOUT_SEND = 12,
    /// REDUCE_GRADS of a stage that the rank does not hold or that has one copy only, or in a forward-only schedule.
    DUALPIPE_SCHEDULE_FINDING_FOREIGN_REDUCTION = 13,
    /// A replicated stage's copy whose gradients are not reduced.
    DUALPIPE_SCHEDULE_FINDING_MISSING_REDUCTION = 14,
    /// A copy whose gradients are reduced twice.
    DUALPIPE_SCHEDULE_FINDING_DOUBLED_REDUCTION = 15,
    /// A reduction before the copy's last weight gradient.
    DUALPIPE_SCHEDULE_FINDING_PREMATURE_REDUCTION = 16,
    /// Two ranks that reduce the gradients of the stages they share in different orders: each waits for the other.
    DUALPIPE_SCHEDULE_FINDING_CROSSED_REDUCTIONS = 17,
    /// A receive that a transport without tags gives another message than the one it is for.
    DUALPIPE_SCHEDULE_FINDING_FIFO_MISMATCH = 18,
    /// Ranks that wait for one another.
    DUALPIPE_SCHEDULE_FINDING_DEADLOCK = 19,
    /// More kept alive than the cap allows.
    DUALPIPE_SCHEDULE_FINDING_EXCEEDS_CAP = 20,
}

/// What was found, in numbers. Start from DUALPIPE_VERIFICATION_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_verification_info {
    /// sizeof(dualpipe_verification_info).
    pub size: u32,
    /// 1 if all that was asked for holds: there is no finding.
    pub is_valid: u32,
    /// The ranks of the schedule.
    pub num_ranks: u32,
    /// The findings, of each kind the first 8.
    pub num_findings: u32,
    /// The transports that were asked for: bits of dualpipe_verify_transport.
    pub transports: u32,
    /// Those of them under which no finding is a fault.
    pub holds_for: u32,
    /// Whether peak_bytes of dualpipe_verification_rank is known: with costs, and if each pass is there once, in order.
    pub has_bytes: u32,
    /// 0.
    pub reserved: u32,
    /// How many findings there are more, of kinds with more than 8.
    pub num_omitted: u64,
}

// SAFETY: repr(C), eight u32 and a u64.
unsafe impl Growing for dualpipe_verification_info {
    const SIZE_V1: usize = 40;
}

/// What a rank keeps at most.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_verification_rank {
    /// Micro-batch activations alive at once, in the order as it is.
    pub peak_live: u64,
    /// Bytes, parameters included; 0 unless has_bytes of dualpipe_verification_info.
    pub peak_bytes: u64,
}

/// One fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_schedule_finding {
    /// A dualpipe_schedule_finding_kind.
    pub kind: u32,
    /// The transports, of those asked for, under which it is a fault: bits of dualpipe_verify_transport.
    pub transports: u32,
    /// The communicating order that it is about, a dualpipe_receives; DUALPIPE_NONE if the schedule itself is wrong.
    pub receives: u32,
    /// 1 if it has a counterexample: of each kind, and of each set of transports, the first one has.
    pub has_counterexample: u32,
    /// 1 if no micro-batch can be left out of the counterexample; 0 if the search for a smaller one was cut short.
    pub is_smallest: u32,
}

/// How one communicating order fares under one transport, memory and the schedule itself left aside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_verification_trial {
    /// The order, a dualpipe_receives.
    pub receives: u32,
    /// The transport, a dualpipe_verify_transport.
    pub transport: u32,
    /// What is wrong, a dualpipe_schedule_finding_kind; DUALPIPE_NONE if nothing is.
    pub kind: u32,
}

/// Frees a verification. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_free(
    verification: dualpipe_verification_t,
) -> dualpipe_status {
    call("dualpipe_verification_free", || handle::free::<VerificationObject>("verification", verification))
}

/// Writes what was found, in numbers.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_describe(
    verification: dualpipe_verification_t,
    info: *mut dualpipe_verification_info,
) -> dualpipe_status {
    call("dualpipe_verification_describe", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (report, asked) = (&object.report, &object.transports);
        let holding = asked.iter().copied().filter(|&transport| report.holds_for(transport));
        out.write(dualpipe_verification_info {
            size: 0,
            is_valid: report.is_valid().into(),
            num_ranks: report.peak_live.len() as u32,
            num_findings: report.findings.len() as u32,
            transports: bits_of_transports(asked.iter().copied()),
            holds_for: bits_of_transports(holding),
            has_bytes: report.peak_bytes.is_some().into(),
            reserved: 0,
            num_omitted: report.num_omitted as u64,
        });
        Ok(())
    })
}

/// What each rank keeps at most, num_ranks entries. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_ranks(
    verification: dualpipe_verification_t,
    ranks: *mut dualpipe_verification_rank,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_ranks", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("ranks", ranks, capacity, "count", count) }?;
        let live = &object.report.peak_live;
        let bytes = object.report.peak_bytes.iter().flatten().copied().chain(std::iter::repeat(0));
        let of_rank = |(&live, peak_bytes): (&usize, u64)| dualpipe_verification_rank {
            peak_live: live as u64,
            peak_bytes,
        };
        out.fill(live.len(), live.iter().zip(bytes).map(of_rank))
    })
}

/// What is wrong, fault by fault. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_findings(
    verification: dualpipe_verification_t,
    findings: *mut dualpipe_schedule_finding,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_findings", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("findings", findings, capacity, "count", count) }?;
        let found = &object.report.findings;
        out.fill(found.len(), found.iter().map(|finding| object.finding_in_c(finding)))
    })
}

/// The ranks that a finding is about; of a deadlock those in a shortest circle of waits, each waiting for the next.
/// `finding` is its index. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_finding_ranks(
    verification: dualpipe_verification_t,
    finding: u32,
    ranks: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_finding_ranks", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let of = object.finding(finding)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("ranks", ranks, capacity, "count", count) }?;
        out.fill(of.ranks.len(), of.ranks.iter().map(|rank| rank.0))
    })
}

/// The passes that a finding is about; of a reduction, micro-batch 0 stands for all. `copy` is DUALPIPE_NONE where the
/// schedule has no such stage. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_finding_passes(
    verification: dualpipe_verification_t,
    finding: u32,
    passes: *mut dualpipe_pass,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_finding_passes", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let of = object.finding(finding)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("passes", passes, capacity, "count", count) }?;
        let passes = of.passes.iter().map(|&pass| dualpipe_pass::new(&object.placement, pass));
        out.fill(of.passes.len(), passes)
    })
}

/// A finding in words: a line, and for faults between ranks a drawing of the actions around it. A NUL ends it; the
/// length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_finding_text(
    verification: dualpipe_verification_t,
    finding: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_finding_text", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let of = object.finding(finding)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&of.text)
    })
}

/// The counterexample of a finding as a schedule, of kind DUALPIPE_KIND_CUSTOM: the one that was verified with most
/// micro-batches left out and the others numbered anew, and the same kind of fault. `finding` is the finding's index.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without one.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_counterexample(
    verification: dualpipe_verification_t,
    finding: u32,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_verification_counterexample", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let smaller = object.counterexample(finding)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("schedule", schedule) }?;
        out.write(handle::insert(ScheduleObject::custom(smaller.schedule.clone()))?);
        Ok(())
    })
}

/// The communicating order of a rank in the counterexample of a finding: none if none was given. Buffers are filled as
/// dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without a counterexample.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_counterexample_actions(
    verification: dualpipe_verification_t,
    finding: u32,
    rank: u32,
    actions: *mut dualpipe_action,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_counterexample_actions", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let smaller = object.counterexample(finding)?;
        let rank = args::index("rank", rank, object.report.peak_live.len())?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("actions", actions, capacity, "count", count) }?;
        let of_rank = smaller.actions.as_ref().map_or(&[][..], |actions| &actions[rank]);
        let in_c = of_rank.iter().map(|&action| dualpipe_action::new(&object.placement, action));
        out.fill(of_rank.len(), in_c)
    })
}

/// The counterexample of a finding in words: which micro-batches it has, its orders and its fault. A NUL ends it; the
/// length is without the NUL.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a finding without one.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_counterexample_text(
    verification: dualpipe_verification_t,
    finding: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_counterexample_text", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        let smaller = object.counterexample(finding)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&smaller.to_text())
    })
}

/// Each communicating order under each transport that was asked for: without `orders`, which places of the receives
/// would do. None if the schedule itself is so wrong that it has no order. Buffers are filled as dualpipe.h says under
/// "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_trials(
    verification: dualpipe_verification_t,
    trials: *mut dualpipe_verification_trial,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_trials", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("trials", trials, capacity, "count", count) }?;
        let trials = &object.report.trials;
        let in_c = trials.iter().map(|trial| dualpipe_verification_trial {
            receives: receives_in_c(trial.receives) as u32,
            transport: transport_in_c(trial.transport) as u32,
            kind: trial.fault.as_ref().map_or(DUALPIPE_NONE, |fault| kind_in_c(fault.kind) as u32),
        });
        out.fill(trials.len(), in_c)
    })
}

/// All findings and their counterexamples in words; empty if nothing was found. A NUL ends it; the length is without
/// the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_verification_to_text(
    verification: dualpipe_verification_t,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_verification_to_text", || {
        let object = handle::get::<VerificationObject>("verification", verification)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&object.report.to_text())
    })
}

/// A verification that C has a handle of.
pub(crate) struct VerificationObject {
    pub(super) report: Report,
    /// Those that were asked for.
    pub(crate) transports: Vec<Transport>,
    /// Of the schedule that was verified, and of all counterexamples.
    pub(crate) placement: Placement,
}

impl Object for VerificationObject {
    type Opaque = dualpipe_verification;
    const KIND: ObjectKind = ObjectKind::Verification;
}

impl VerificationObject {
    fn finding(&self, finding: u32) -> Outcome<&Finding> {
        match self.report.findings.len() {
            0 => Err(Failure::argument("finding", format!("is {finding}, but nothing was found"))),
            count => Ok(&self.report.findings[args::index("finding", finding, count)?]),
        }
    }

    fn counterexample(&self, finding: u32) -> Outcome<&Counterexample> {
        let smaller = self.finding(finding)?.counterexample.as_ref();
        let none = || Failure::argument("finding", format!("is {finding}, which has no counterexample"));
        smaller.ok_or_else(none)
    }

    fn finding_in_c(&self, finding: &Finding) -> dualpipe_schedule_finding {
        let transports = self.transports.iter().copied().filter(|&asked| finding.applies_to(asked));
        let smaller = finding.counterexample.as_ref();
        dualpipe_schedule_finding {
            kind: kind_in_c(finding.kind) as u32,
            transports: bits_of_transports(transports),
            receives: finding.receives.map_or(DUALPIPE_NONE, |receives| receives_in_c(receives) as u32),
            has_counterexample: smaller.is_some().into(),
            is_smallest: smaller.is_some_and(|smaller| smaller.is_smallest).into(),
        }
    }
}

fn kind_in_c(kind: Kind) -> dualpipe_schedule_finding_kind {
    match kind {
        Kind::ForeignOp => DUALPIPE_SCHEDULE_FINDING_FOREIGN_OP,
        Kind::MissingOp => DUALPIPE_SCHEDULE_FINDING_MISSING_OP,
        Kind::DoubledOp => DUALPIPE_SCHEDULE_FINDING_DOUBLED_OP,
        Kind::OpOrder => DUALPIPE_SCHEDULE_FINDING_OP_ORDER,
        Kind::DependencyCycle => DUALPIPE_SCHEDULE_FINDING_DEPENDENCY_CYCLE,
        Kind::TaskOrder => DUALPIPE_SCHEDULE_FINDING_TASK_ORDER,
        Kind::ForeignMessage => DUALPIPE_SCHEDULE_FINDING_FOREIGN_MESSAGE,
        Kind::MissingMessage => DUALPIPE_SCHEDULE_FINDING_MISSING_MESSAGE,
        Kind::DoubledMessage => DUALPIPE_SCHEDULE_FINDING_DOUBLED_MESSAGE,
        Kind::SendBeforeMade => DUALPIPE_SCHEDULE_FINDING_SEND_BEFORE_MADE,
        Kind::ReceiveAfterUse => DUALPIPE_SCHEDULE_FINDING_RECEIVE_AFTER_USE,
        Kind::WaitWithoutSend => DUALPIPE_SCHEDULE_FINDING_WAIT_WITHOUT_SEND,
        Kind::ForeignReduction => DUALPIPE_SCHEDULE_FINDING_FOREIGN_REDUCTION,
        Kind::MissingReduction => DUALPIPE_SCHEDULE_FINDING_MISSING_REDUCTION,
        Kind::DoubledReduction => DUALPIPE_SCHEDULE_FINDING_DOUBLED_REDUCTION,
        Kind::PrematureReduction => DUALPIPE_SCHEDULE_FINDING_PREMATURE_REDUCTION,
        Kind::CrossedReductions => DUALPIPE_SCHEDULE_FINDING_CROSSED_REDUCTIONS,
        Kind::FifoMismatch => DUALPIPE_SCHEDULE_FINDING_FIFO_MISMATCH,
        Kind::Deadlock => DUALPIPE_SCHEDULE_FINDING_DEADLOCK,
        Kind::ExceedsCap => DUALPIPE_SCHEDULE_FINDING_EXCEEDS_CAP,
    }
}
