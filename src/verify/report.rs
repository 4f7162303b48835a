//! What a verification found.

use super::{Counterexample, Receives, Transport};
use crate::ids::Rank;
use crate::op::Pass;

/// How many findings of one kind a report has at most; the rest is counted.
pub const FINDINGS_PER_KIND_MAX: usize = 8;

/// What sort of fault a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An op of a stage or micro-batch that the schedule does not have, on a rank that does not hold the stage, or a
    /// backward in a forward-only schedule.
    ForeignOp,
    /// A pass without its F, its B or I, or its B or W.
    MissingOp,
    /// A second F, backward for the input or backward for the weights of a pass.
    DoubledOp,
    /// An op before one of the same rank that it needs.
    OpOrder,
    /// Ops of several ranks that need one another in a circle: a deadlock under any transport.
    DependencyCycle,
    /// A communicating order whose ops are not those of the schedule, in its order.
    TaskOrder,
    /// A message that the schedule does not have, or has between other ranks.
    ForeignMessage,
    /// A message that is not sent or not received.
    MissingMessage,
    /// A message that is sent or received twice.
    DoubledMessage,
    /// A send before the op that makes the message.
    SendBeforeMade,
    /// A receive after the op that needs the message.
    ReceiveAfterUse,
    /// A WAIT_SEND without an earlier send of its own.
    WaitWithoutSend,
    /// REDUCE_GRADS of a stage that the rank does not hold or that has one copy only, or in a forward-only schedule.
    ForeignReduction,
    /// A replicated stage's copy whose gradients are not reduced.
    MissingReduction,
    /// A copy whose gradients are reduced twice.
    DoubledReduction,
    /// A reduction before the copy's last weight gradient.
    PrematureReduction,
    /// Two ranks that reduce the gradients of the stages they share in different orders: each waits for the other.
    CrossedReductions,
    /// A receive that a transport without tags gives another message than the one it is for.
    FifoMismatch,
    /// Ranks that wait for one another.
    Deadlock,
    /// More kept alive than the cap allows.
    ExceedsCap,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 20] = [
        Kind::ForeignOp,
        Kind::MissingOp,
        Kind::DoubledOp,
        Kind::OpOrder,
        Kind::DependencyCycle,
        Kind::TaskOrder,
        Kind::ForeignMessage,
        Kind::MissingMessage,
        Kind::DoubledMessage,
        Kind::SendBeforeMade,
        Kind::ReceiveAfterUse,
        Kind::WaitWithoutSend,
        Kind::ForeignReduction,
        Kind::MissingReduction,
        Kind::DoubledReduction,
        Kind::PrematureReduction,
        Kind::CrossedReductions,
        Kind::FifoMismatch,
        Kind::Deadlock,
        Kind::ExceedsCap,
    ];

    /// Whether it can still be told who waits for what, and is not clear without asking.
    fn leaves_deadlock_open(self) -> bool {
        matches!(self, Kind::FifoMismatch | Kind::Deadlock | Kind::ExceedsCap)
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What sort of fault.
    pub kind: Kind,
    /// The ranks that it is about; of a deadlock those in a shortest circle of waits, each waiting for the next.
    pub ranks: Vec<Rank>,
    /// The passes that it is about.
    pub passes: Vec<Pass>,
    /// The transports, of those asked for, under which it is a fault; empty if under any.
    pub transports: Vec<Transport>,
    /// The communicating order that it is about; `None` if the schedule itself is wrong.
    pub receives: Option<Receives>,
    /// The fault for people: one line, and for faults between ranks a drawing of the actions around it.
    pub text: String,
    /// A smaller schedule with the same kind of fault; each kind's first finding has one.
    pub counterexample: Option<Counterexample>,
}

impl Finding {
    pub(super) fn new(
        kind: Kind,
        ranks: Vec<Rank>,
        passes: impl IntoIterator<Item = Pass>,
        text: String,
    ) -> Finding {
        let mut all: Vec<Pass> = passes.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Finding {
            kind,
            ranks,
            passes: all,
            transports: Vec::new(),
            receives: None,
            text,
            counterexample: None,
        }
    }

    /// Whether it is a fault under `transport`.
    pub fn applies_to(&self, transport: Transport) -> bool {
        self.transports.is_empty() || self.transports.contains(&transport)
    }
}

/// How one communicating order fares under one transport, memory and the schedule itself left aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The order.
    pub receives: Receives,
    /// The transport.
    pub transport: Transport,
    /// What is wrong with it, if anything is.
    pub fault: Option<Finding>,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `[rank]`: the most activations alive at once in the orders as they are, as [`Schedule::peak_live`] counts them.
    ///
    /// [`Schedule::peak_live`]: crate::schedule::Schedule::peak_live
    pub peak_live: Vec<usize>,
    /// `[rank]`: the most bytes, parameters included; with costs, and if each pass is there once and in order.
    pub peak_bytes: Option<Vec<u64>>,
    /// What is wrong; empty if everything that was asked for holds. In order of kinds' dependence, then of ranks.
    pub findings: Vec<Finding>,
    /// How many more there are of kinds of which [`FINDINGS_PER_KIND_MAX`] are listed.
    pub num_omitted: usize,
    /// Each communicating order under each transport; empty if the schedule itself is so wrong that it has none.
    pub trials: Vec<Trial>,
}

impl Report {
    /// Whether everything that was asked for holds.
    pub fn is_valid(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether nothing found is a fault under `transport`, one of those asked for.
    pub fn holds_for(&self, transport: Transport) -> bool {
        !self.findings.iter().any(|finding| finding.applies_to(transport))
    }

    /// Every finding's text and counterexample; `""` if there is none.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            text += &format!("{:?}: {}\n", finding.kind, finding.text);
            if let Some(smaller) = &finding.counterexample {
                text += &smaller.to_text();
            }
        }
        if self.num_omitted > 0 {
            text += &format!("and {} more\n", self.num_omitted);
        }
        text
    }
}

/// Collects findings, of each kind only the first few.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) findings: Vec<Finding>,
    pub(super) num_omitted: usize,
    counts: [usize; Kind::ALL.len()],
}

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// Adds what `finding` makes, which is not called for a fault that is only counted.
    pub(super) fn add(&mut self, kind: Kind, finding: impl FnOnce() -> Finding) {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        if *count <= FINDINGS_PER_KIND_MAX {
            self.findings.push(finding());
        } else {
            self.num_omitted += 1;
        }
    }

    pub(super) fn extend(&mut self, other: Faults) {
        self.num_omitted += other.num_omitted;
        for finding in other.findings {
            self.add(finding.kind, || finding);
        }
    }

    pub(super) fn has_any(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|&kind| self.counts[kind as usize] > 0)
    }

    /// Whether each op, message and reduction that was looked at is there once and in its place.
    pub(super) fn allow_deadlock_proof(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.counts[kind as usize] == 0 || kind.leaves_deadlock_open())
    }
}
