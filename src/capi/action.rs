//! Actions: what a rank does in a step, with its part in every exchange: a communicating order; and what carries it.
//!
//! A schedule says what runs; where the sends and receives stand between is a runtime's own choice, and a wrong one
//! swaps messages or lets ranks wait for ever. dualpipe_program_actions gives the order of this library's programs;
//! schedule_verify.h proves or refutes one of any other make.

use super::args::{self, Buffer};
use super::guard::call;
use super::handle;
use super::op::{dualpipe_message, dualpipe_message_kind, dualpipe_op, dualpipe_op_kind, dualpipe_pass};
use super::op::{read_op, DUALPIPE_NONE};
use super::program::{dualpipe_program_t, ProgramObject};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::ids::Rank;
use crate::op::{Action, Message, MessageKind, Task};
use crate::placement::Placement;
use crate::verify::{actions_of, Mode, Receives, Transport, ACTIONS_MAX};

use dualpipe_action_kind::*;
use dualpipe_message_kind::*;
use dualpipe_op_kind::*;
use dualpipe_receives::*;
use dualpipe_verify_transport::*;

/// What an action does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_action_kind {
    /// Wait for what the op needs, and run it.
    DUALPIPE_ACTION_RUN = 1,
    /// Start to send a message.
    DUALPIPE_ACTION_SEND = 2,
    /// Receive a message, or post its receive.
    DUALPIPE_ACTION_RECEIVE = 3,
    /// Wait until an earlier send of the message has been taken up.
    DUALPIPE_ACTION_WAIT_SEND = 4,
}

/// One action. As an output, what its kind does not have is DUALPIPE_NONE, in every field; as an input, it is not read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_action {
    /// A dualpipe_action_kind.
    pub kind: u32,
    /// SEND, RECEIVE: the other rank.
    pub peer: u32,
    /// SEND, RECEIVE, WAIT_SEND: what travels. As an input, to_stage may be DUALPIPE_NONE, and copy is not read.
    pub message: dualpipe_message,
    /// RUN: what runs, also REDUCE_GRADS, whose copy is the direction and stage of its backward.
    pub op: dualpipe_op,
}

/// The actions of one rank, in order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_action_order {
    /// num_actions of them, read during the call; NULL if there are none.
    pub actions: *const dualpipe_action,
    /// All ranks together may have at most 67108864.
    pub num_actions: usize,
}

/// How messages travel: bits, to be added up. Without tags, the k-th receive from a rank gets that rank's k-th send, as
/// with NCCL and torch.distributed; with them a receive finds its message by name, as with MPI and this library's own
/// executors.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_verify_transport {
    /// No tags. A send is started and a receive is posted, and neither waits; an op waits for the messages that it
    /// needs, WAIT_SEND until the receive has been posted.
    DUALPIPE_VERIFY_ASYNCHRONOUS = 1,
    /// No tags. A send waits until its receive has been posted.
    DUALPIPE_VERIFY_RENDEZVOUS = 2,
    /// No tags. All sends and receives between two ops are one group, which ends when all of its members have met their
    /// counterparts, as with batch_isend_irecv.
    DUALPIPE_VERIFY_GROUPED = 4,
    /// As ASYNCHRONOUS, with tags.
    DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED = 8,
    /// As RENDEZVOUS, with tags.
    DUALPIPE_VERIFY_RENDEZVOUS_TAGGED = 16,
    /// As GROUPED, with tags.
    DUALPIPE_VERIFY_GROUPED_TAGGED = 32,
}

/// Where the receives of a communicating order stand.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_receives {
    /// Where the caller put them.
    DUALPIPE_RECEIVES_GIVEN = 1,
    /// Where a program has them: on both ranks in the order in which the messages are made.
    DUALPIPE_RECEIVES_LOWERED = 2,
    /// Right before the op that needs the message.
    DUALPIPE_RECEIVES_BEFORE_USE = 3,
    /// Before the first op, those from one rank in the order in which that rank sends.
    DUALPIPE_RECEIVES_AT_START = 4,
}

/// What a program does, as actions: its instructions without the buffers. Where a buffer is freed that is being sent,
/// its send is waited for. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_actions(
    program: dualpipe_program_t,
    actions: *mut dualpipe_action,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_program_actions", || {
        let object = handle::get::<ProgramObject>("program", program)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("actions", actions, capacity, "count", count) }?;
        let (found, placement) = (actions_of(object.program()), object.program().placement());
        out.fill(found.len(), found.iter().map(|&action| dualpipe_action::new(placement, action)))
    })
}

impl dualpipe_action {
    pub(crate) fn new(placement: &Placement, action: Action) -> dualpipe_action {
        let none = dualpipe_action {
            kind: DUALPIPE_NONE,
            peer: DUALPIPE_NONE,
            message: dualpipe_message::NONE,
            op: dualpipe_op::NONE,
        };
        let travel = |kind: dualpipe_action_kind, message, peer| {
            let message = dualpipe_message::new(placement, message);
            dualpipe_action { kind: kind as u32, peer, message, ..none }
        };
        match action {
            Action::Run(task) => {
                let op = dualpipe_op::new(placement, task);
                dualpipe_action { kind: DUALPIPE_ACTION_RUN as u32, op, ..none }
            }
            Action::Send { message, to } => travel(DUALPIPE_ACTION_SEND, message, to.0),
            Action::Receive { message, from } => travel(DUALPIPE_ACTION_RECEIVE, message, from.0),
            Action::WaitSend(message) => travel(DUALPIPE_ACTION_WAIT_SEND, message, DUALPIPE_NONE),
        }
    }
}

/// The actions of all ranks, of which there are as many; errors call the lists `name[rank]`.
///
/// # Safety
/// The list, and the lists in it, if their bits pass, may be read.
pub(crate) unsafe fn read_action_orders(
    name: &str,
    orders: *const dualpipe_action_order,
    num_ranks: usize,
) -> Outcome<Vec<Vec<Action>>> {
    // SAFETY: the caller's promise.
    let orders = unsafe { args::slice(name, orders, "the number of ranks", num_ranks) }?;
    let mut left = ACTIONS_MAX;
    for (rank, order) in orders.iter().enumerate() {
        args::in_range(format!("{name}[{rank}].num_actions"), order.num_actions, 0..=left)?;
        left -= order.num_actions;
    }
    let read = |(rank, order): (usize, &dualpipe_action_order)| {
        let field = |field: &str| format!("{name}[{rank}].{field}");
        // SAFETY: the caller's promise.
        let actions =
            unsafe { args::slice(field("actions"), order.actions, field("num_actions"), order.num_actions) }?;
        let actions = actions.iter().enumerate();
        let read = |(i, action)| read_action(action, num_ranks, || field(&format!("actions[{i}]")));
        actions.map(read).collect::<Outcome<Vec<Action>>>()
    };
    orders.iter().enumerate().map(read).collect()
}

/// The action that C has as `action`, which the error calls `name()`.
fn read_action(action: &dualpipe_action, num_ranks: usize, name: impl Fn() -> String) -> Outcome<Action> {
    let kinds =
        [DUALPIPE_ACTION_RUN, DUALPIPE_ACTION_SEND, DUALPIPE_ACTION_RECEIVE, DUALPIPE_ACTION_WAIT_SEND];
    let kind = one_of(|| format!("{}.kind", name()), action.kind, kinds, |kind| kind as u32)?;
    let message = || read_message(&action.message, || format!("{}.message", name()));
    let peer = || match action.peer as usize {
        peer if peer < num_ranks => Ok(Rank(action.peer)),
        peer => args::in_range(format!("{}.peer", name()), peer, 0..=num_ranks - 1).map(Rank::from_index),
    };
    Ok(match kind {
        DUALPIPE_ACTION_RUN => Action::Run(read_task(&action.op, || format!("{}.op", name()))?),
        DUALPIPE_ACTION_SEND => Action::Send { message: message()?, to: peer()? },
        DUALPIPE_ACTION_RECEIVE => Action::Receive { message: message()?, from: peer()? },
        DUALPIPE_ACTION_WAIT_SEND => Action::WaitSend(message()?),
    })
}

fn read_task(op: &dualpipe_op, name: impl Fn() -> String) -> Outcome<Task> {
    let kinds = [
        DUALPIPE_OP_F,
        DUALPIPE_OP_B,
        DUALPIPE_OP_I,
        DUALPIPE_OP_W,
        DUALPIPE_OP_FB,
        DUALPIPE_OP_REDUCE_GRADS,
    ];
    match one_of(|| format!("{}.kind", name()), op.kind, kinds, |kind| kind as u32)? {
        DUALPIPE_OP_REDUCE_GRADS => {
            let of_any_microbatch = dualpipe_pass { microbatch: 0, ..op.backward };
            let pass = of_any_microbatch.read(|| format!("{}.backward", name()))?;
            Ok(Task::ReduceGrads(pass.copy()))
        }
        _ => read_op(op, name).map(Task::Op),
    }
}

fn read_message(message: &dualpipe_message, name: impl Fn() -> String) -> Outcome<Message> {
    let kinds = [DUALPIPE_MESSAGE_ACTIVATION, DUALPIPE_MESSAGE_GRADIENT];
    let kind = match one_of(|| format!("{}.kind", name()), message.kind, kinds, |kind| kind as u32)? {
        DUALPIPE_MESSAGE_ACTIVATION => MessageKind::Activation,
        DUALPIPE_MESSAGE_GRADIENT => MessageKind::Gradient,
    };
    let pass = message.pass.read(|| format!("{}.pass", name()))?;
    let read = Message { kind, pass };
    let to_stage = u32::from(read.to_stage().0);
    if message.to_stage != to_stage && message.to_stage != DUALPIPE_NONE {
        let must = match kind {
            MessageKind::Activation => format!("must be {to_stage}, the next stage"),
            MessageKind::Gradient if pass.stage.0 == 0 => "must be DUALPIPE_NONE: there is none".into(),
            MessageKind::Gradient => format!("must be {to_stage}, the previous stage"),
        };
        let argument = format!("{}.to_stage", name());
        return Err(Failure::argument(argument, format!("is {}, {must}", message.to_stage)));
    }
    Ok(read)
}

/// As [`args::one_of`], but `name` is asked for only if it is needed.
fn one_of<T: Copy + std::fmt::Debug, const N: usize>(
    name: impl Fn() -> String,
    value: u32,
    known: [T; N],
    number: fn(T) -> u32,
) -> Outcome<T> {
    match known.into_iter().find(|&known| number(known) == value) {
        Some(found) => Ok(found),
        None => args::one_of(&name(), value, known.map(|known| (number(known), known))),
    }
}

/// The transports of some bits; 0 stands for all.
pub(crate) fn read_transports(name: &str, bits: u32) -> Outcome<Vec<Transport>> {
    let bit = |&transport: &Transport| transport_in_c(transport) as u32;
    let all: u32 = Transport::ALL.iter().map(bit).sum();
    args::in_range(name, bits, 0..=all)?;
    let is_asked = |transport: &Transport| bits == 0 || bits & bit(transport) != 0;
    Ok(Transport::ALL.into_iter().filter(is_asked).collect())
}

pub(crate) fn bits_of_transports(transports: impl Iterator<Item = Transport>) -> u32 {
    transports.map(|transport| transport_in_c(transport) as u32).sum()
}

pub(crate) fn transport_in_c(transport: Transport) -> dualpipe_verify_transport {
    match (transport.mode, transport.is_tagged) {
        (Mode::Asynchronous, false) => DUALPIPE_VERIFY_ASYNCHRONOUS,
        (Mode::Rendezvous, false) => DUALPIPE_VERIFY_RENDEZVOUS,
        (Mode::GroupedBlocking, false) => DUALPIPE_VERIFY_GROUPED,
        (Mode::Asynchronous, true) => DUALPIPE_VERIFY_ASYNCHRONOUS_TAGGED,
        (Mode::Rendezvous, true) => DUALPIPE_VERIFY_RENDEZVOUS_TAGGED,
        (Mode::GroupedBlocking, true) => DUALPIPE_VERIFY_GROUPED_TAGGED,
    }
}

pub(crate) fn receives_in_c(receives: Receives) -> dualpipe_receives {
    match receives {
        Receives::Given => DUALPIPE_RECEIVES_GIVEN,
        Receives::Lowered => DUALPIPE_RECEIVES_LOWERED,
        Receives::BeforeUse => DUALPIPE_RECEIVES_BEFORE_USE,
        Receives::AtStart => DUALPIPE_RECEIVES_AT_START,
    }
}
