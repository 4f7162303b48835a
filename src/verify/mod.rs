//! A verifier for schedules from anywhere: whether every rank's work is complete, in order and within memory, whether
//! every message finds its receive, and under which transports no rank waits for ever. What fails comes with a
//! smallest counterexample.
//!
//! Facts behind the rules: point-to-point messages of NCCL and of torch.distributed's backends for it carry no tags, so
//! that the order of sends and receives between two ranks is all that tells them apart; DeepSeek's DualPipe exchanges
//! in one `batch_isend_irecv` between two tasks and waits for all of it. The modes are those of MPI 4.1, section 3.4:
//! a nonblocking standard send and a synchronous send.
//!
//! What is proved, and of what it is a property:
//!
//! | property                                  | kinds                                              | of            |
//! | ----------------------------------------- | -------------------------------------------------- | ------------- |
//! | each pass once, on its rank               | ForeignOp MissingOp DoubledOp                      | schedule      |
//! | each op after those it needs              | OpOrder DependencyCycle                            | schedule      |
//! | memory                                    | ExceedsCap                                         | schedule, cap |
//! | the actions do the schedule               | TaskOrder                                          | actions       |
//! | each message sent and received once       | ForeignMessage MissingMessage DoubledMessage       | actions       |
//! | sent when made, received when used        | SendBeforeMade ReceiveAfterUse WaitWithoutSend     | actions       |
//! | gradients of both copies summed once      | ForeignReduction MissingReduction DoubledReduction | actions       |
//! | and when they are final                   | PrematureReduction                                 | actions       |
//! | reductions in one order on both ranks     | CrossedReductions                                  | actions       |
//! | k-th send meets k-th receive of two ranks | FifoMismatch                                       | no tags       |
//! | no rank waits for ever                    | Deadlock                                           | mode          |
//!
//! In texts a message goes by the op that makes it: `activation 0F1`; a gradient by B, also where I makes it. Positions
//! and the messages from one rank to another are counted from 0.
//!
//! A fault is reported for itself, not again for what follows from it: a deadlock is looked for only where each op,
//! message and reduction is there once and in its place; DependencyCycle only where the passes are right.

mod counterexample;
mod cycle;
mod deadlock;
mod memory;
mod messages;
mod names;
mod orders;
mod passes;
mod reductions;
mod report;

pub use counterexample::Counterexample;
pub use orders::{actions_of, receive_at_start, receive_before_use};
pub use report::{Finding, Kind, Report, Trial, FINDINGS_PER_KIND_MAX};

use crate::cost::Costs;
use crate::error::{in_range, Error, Result};
use crate::ids::{Direction, Microbatch, Stage};
use crate::op::{Action, Pass, Task};
use crate::program::lower;
use crate::schedule::Schedule;
use crate::sim::{peak_memory_bytes, MemoryCap};
use orders::without_reductions;
use report::Faults;

/// Most ops, and most actions, that can be verified in one go.
pub const ACTIONS_MAX: usize = 1 << 26;

/// When a send or a receive lets its rank go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// A send is started and a receive is posted, and neither waits; a task waits for the messages that it needs,
    /// WAIT_SEND until the receive has been posted. Buffered sends wait for less, and are free of deadlock too.
    Asynchronous,
    /// A send waits until its receive has been posted. Receives are posted and do not wait; a task waits for the
    /// messages that it needs.
    Rendezvous,
    /// All sends and receives between two tasks are one group, which ends when all of its members have met their
    /// counterparts, each of which is in a group that its own rank has come to.
    GroupedBlocking,
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transport {
    /// What blocks.
    pub mode: Mode,
    /// Whether a receive finds its message by name. Without, the k-th receive from a rank gets that rank's k-th send.
    pub is_tagged: bool,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 3] = [Mode::Asynchronous, Mode::Rendezvous, Mode::GroupedBlocking];
}

impl Transport {
    /// All of them, without tags first.
    pub const ALL: [Transport; 6] = [
        Transport { mode: Mode::Asynchronous, is_tagged: false },
        Transport { mode: Mode::Rendezvous, is_tagged: false },
        Transport { mode: Mode::GroupedBlocking, is_tagged: false },
        Transport { mode: Mode::Asynchronous, is_tagged: true },
        Transport { mode: Mode::Rendezvous, is_tagged: true },
        Transport { mode: Mode::GroupedBlocking, is_tagged: true },
    ];
}

/// Where the receives of a communicating order stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Receives {
    /// Where the caller put them.
    Given,
    /// Where [`lower`] puts them: on both ranks in the order in which the messages are made.
    Lowered,
    /// Right before the op that needs the message.
    BeforeUse,
    /// All of them before the first task, those from one rank in the order in which that rank sends.
    AtStart,
}

/// What to verify besides the schedule, and for what.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// `actions[rank]`: every rank's communicating order. Without it, sends stand right after the op that makes the
    /// message and REDUCE_GRADS as in [`Schedule::tasks`], and each place of the receives is tried: the schedule is
    /// good for a transport if it is with one of them.
    pub actions: Option<&'a [Vec<Action>]>,
    /// The transports to hold for.
    pub transports: &'a [Transport],
    /// Costs to count bytes with; only those of memory matter.
    pub costs: Option<&'a Costs>,
    /// How much each rank may keep. [`MemoryCap::Bytes`] needs costs.
    pub cap: MemoryCap,
    /// Whether to look for counterexamples.
    pub counterexamples: bool,
}

impl Default for Options<'_> {
    /// No actions, all transports, no costs, no cap, with counterexamples.
    fn default() -> Self {
        Options {
            actions: None,
            transports: &Transport::ALL,
            costs: None,
            cap: MemoryCap::Unlimited,
            counterexamples: true,
        }
    }
}

/// Proves what the table above lists, or says what is wrong.
///
/// Time and memory: proportional to the number of ops, actions and passes; finding a counterexample for each kind of
/// fault takes a bounded number of tries more.
///
/// # Errors
/// An argument that makes no sense: another number of ranks, costs of another number of stages, a cap in bytes without
/// costs, more than [`ACTIONS_MAX`] ops or actions. Whatever is wrong with the schedule is in the report.
pub fn verify(schedule: &Schedule, options: &Options<'_>) -> Result<Report> {
    check_sizes(schedule, options)?;
    let mut report = examine(schedule, options);
    if options.counterexamples {
        counterexample::add(schedule, options, &mut report);
    }
    Ok(report)
}

fn check_sizes(schedule: &Schedule, options: &Options<'_>) -> Result<()> {
    let num_ranks = schedule.num_ranks();
    let num_ops = schedule.orders().iter().map(Vec::len).sum();
    in_range("verify", "the number of ops", num_ops, 0..=ACTIONS_MAX)?;
    if let Some(actions) = options.actions {
        if actions.len() != num_ranks {
            let range = format!("must be {num_ranks}, one per rank");
            return Err(Error::argument("verify", "the number of action orders", actions.len(), range));
        }
        let num_actions = actions.iter().map(Vec::len).sum();
        in_range("verify", "the number of actions", num_actions, 0..=ACTIONS_MAX)?;
    }
    options.cap.fit(num_ranks)?;
    if let Some(costs) = options.costs {
        costs.fit(schedule.placement().num_stages())?;
    } else if matches!(options.cap, MemoryCap::Bytes(_)) {
        return Err(Error::argument("verify", "costs", "none", "must be there for a cap in bytes"));
    }
    Ok(())
}

/// The report without counterexamples. Sizes have been checked.
fn examine(schedule: &Schedule, options: &Options<'_>) -> Report {
    let mut faults = Faults::default();
    passes::check(schedule, &mut faults);
    let passes_ok = faults.is_empty();
    if passes_ok {
        let ops_only = without_reductions(schedule);
        if let Some(finding) = deadlock::dependency_cycle(schedule, &ops_only) {
            faults.add(Kind::DependencyCycle, || finding);
        }
        memory::check(schedule, options, &mut faults);
    }
    let mut trials = Vec::new();
    if let Some(actions) = options.actions {
        let is_sound = faults.allow_deadlock_proof();
        let found = order_faults(schedule, actions, options, Receives::Given, passes_ok, is_sound);
        trials.extend(trials_of(&found, options, Receives::Given));
        faults.extend(found);
    } else if faults.allow_deadlock_proof() {
        try_each_place(schedule, options, &mut faults, &mut trials);
    }
    let bytes = |costs| passes_ok.then(|| peak_memory_bytes(schedule, costs));
    Report {
        peak_live: schedule.peak_live(),
        peak_bytes: options.costs.and_then(bytes),
        findings: faults.findings,
        num_omitted: faults.num_omitted,
        trials,
    }
}

/// Without given actions: each place of the receives in turn. What fails with all of them is a fault.
fn try_each_place(schedule: &Schedule, options: &Options<'_>, faults: &mut Faults, trials: &mut Vec<Trial>) {
    let lowered = lower(schedule).ok().map(|programs| programs.iter().map(actions_of).collect());
    let orders: [(Receives, Option<Vec<Vec<Action>>>); 3] = [
        (Receives::Lowered, lowered),
        (Receives::BeforeUse, Some(receive_before_use(schedule))),
        (Receives::AtStart, Some(receive_at_start(schedule))),
    ];
    for (receives, actions) in orders {
        // A schedule whose reductions block cannot be lowered; the other places show why.
        let Some(actions) = actions else { continue };
        let found = order_faults(schedule, &actions, options, receives, true, true);
        trials.extend(trials_of(&found, options, receives));
    }
    for &transport in options.transports {
        let of_it = || trials.iter().filter(|trial| trial.transport == transport);
        if of_it().any(|trial| trial.fault.is_none()) {
            continue;
        }
        let Some(fault) = of_it().find_map(|trial| trial.fault.clone()) else { continue };
        if !faults.findings.contains(&fault) {
            faults.add(fault.kind, || fault);
        }
    }
}

/// How each transport fares with an order in which these faults were found.
fn trials_of<'a>(
    found: &'a Faults,
    options: &'a Options<'_>,
    receives: Receives,
) -> impl Iterator<Item = Trial> + 'a {
    options.transports.iter().map(move |&transport| {
        let fault = found.findings.iter().find(|finding| finding.applies_to(transport));
        Trial { receives, transport, fault: fault.cloned() }
    })
}

/// What is wrong with a communicating order.
fn order_faults(
    schedule: &Schedule,
    actions: &[Vec<Action>],
    options: &Options<'_>,
    receives: Receives,
    passes_ok: bool,
    is_sound: bool,
) -> Faults {
    let mut faults = Faults::default();
    let does_schedule = does_schedule(schedule, actions, &mut faults);
    let ends = messages::check_pairs(schedule, actions, &mut faults);
    let messages_ok = !faults.has_any(&[Kind::ForeignMessage, Kind::MissingMessage, Kind::DoubledMessage]);
    let meets = reductions::check(schedule, actions, passes_ok && does_schedule, &mut faults);
    if passes_ok && does_schedule {
        messages::check_places(schedule, actions, &mut faults);
    }
    if messages_ok && options.transports.iter().any(|transport| !transport.is_tagged) {
        messages::check_fifo(schedule, actions, options, &mut faults);
    }
    if is_sound && faults.allow_deadlock_proof() {
        deadlock::check(schedule, actions, &ends, &meets, options, &mut faults);
    }
    for finding in &mut faults.findings {
        finding.receives = Some(receives);
    }
    faults
}

/// Whether the actions run the ops of the schedule in its order.
fn does_schedule(schedule: &Schedule, actions: &[Vec<Action>], faults: &mut Faults) -> bool {
    for ((r, order), actions) in schedule.orders().iter().enumerate().zip(actions) {
        let mut wanted = order.iter();
        let mut ran = actions.iter().enumerate().filter_map(|(position, action)| match action {
            Action::Run(Task::Op(op)) => Some((position, op)),
            _ => None,
        });
        let why = loop {
            match (ran.next(), wanted.next()) {
                (None, None) => break None,
                (Some((_, ran)), Some(wanted)) if ran == wanted => {}
                (Some((position, ran)), Some(wanted)) => {
                    break Some((position, *ran, format!("runs {ran} where the schedule has {wanted}")))
                }
                (Some((position, ran)), None) => {
                    break Some((position, *ran, format!("runs {ran} after the end of the schedule")))
                }
                (None, Some(wanted)) => {
                    break Some((actions.len(), *wanted, format!("ends before {wanted}")))
                }
            }
        };
        if let Some((position, op, why)) = why {
            let rank = crate::ids::Rank::from_index(r);
            let passes = [op.forward(), op.backward_input(), op.backward_weight()];
            faults.add(Kind::TaskOrder, || {
                let text = format!("rank {rank}, position {position}: {why}");
                Finding::new(Kind::TaskOrder, vec![rank], passes.into_iter().flatten(), text)
            });
        }
    }
    !faults.has_any(&[Kind::TaskOrder])
}

/// Every pass of the schedule, in order of (direction, stage, micro-batch).
fn all_passes(schedule: &Schedule) -> impl Iterator<Item = Pass> + '_ {
    let directions = &Direction::ALL[..schedule.placement().num_directions()];
    directions.iter().flat_map(move |&direction| {
        (0..schedule.placement().num_stages()).flat_map(move |stage| {
            (0..schedule.microbatches_in(direction)).map(move |microbatch| Pass {
                direction,
                stage: Stage(stage as u16),
                microbatch: Microbatch::from_index(microbatch),
            })
        })
    })
}
