//! Whether every message is sent once and received once, in places that make sense, and in an order that a transport
//! without tags keeps apart.

use std::collections::BTreeMap;

use super::names::{action_name, message_name};
use super::report::Faults;
use super::{all_passes, Finding, Kind, Options, Transport};
use crate::ids::Rank;
use crate::op::{Action, Message, MessageKind, Task};
use crate::schedule::{Schedule, Work};

/// Where no position is.
pub(super) const NOWHERE: u32 = u32::MAX;

/// For each message, by [`Route::index`], where it is sent and received first.
pub(super) struct Ends {
    pub(super) sent_at: Vec<u32>,
    pub(super) received_at: Vec<u32>,
}

/// The way of a message from rank to rank.
#[derive(Clone, Copy)]
pub(super) struct Route {
    /// A number of its own, below twice the schedule's passes.
    pub(super) index: usize,
    pub(super) from: Rank,
    pub(super) to: Rank,
}

impl Route {
    /// The way of `message`; `None` if the schedule has no such message, or has it within a rank.
    pub(super) fn of(schedule: &Schedule, message: Message) -> Option<Route> {
        let Message { kind, pass } = message;
        let placement = schedule.placement();
        let index = kind as usize * schedule.num_passes() + schedule.pass_index(pass)?;
        let reader = match kind {
            MessageKind::Activation => placement.next(pass.copy())?,
            MessageKind::Gradient if schedule.work() == Work::ForwardOnly => return None,
            MessageKind::Gradient => placement.previous(pass.copy())?,
        };
        let (from, to) = (placement.rank_of(pass.copy())?, placement.rank_of(reader)?);
        (from != to).then_some(Route { index, from, to })
    }
}

/// Adds [`Kind::ForeignMessage`], [`Kind::DoubledMessage`], [`Kind::MissingMessage`] and [`Kind::WaitWithoutSend`].
pub(super) fn check_pairs(schedule: &Schedule, actions: &[Vec<Action>], faults: &mut Faults) -> Ends {
    let none = vec![NOWHERE; 2 * schedule.num_passes()];
    let mut ends = Ends { sent_at: none.clone(), received_at: none };
    for (r, actions) in actions.iter().enumerate() {
        let rank = Rank::from_index(r);
        let mut not_waited_for: BTreeMap<Message, usize> = BTreeMap::new();
        for (position, action) in actions.iter().enumerate() {
            let mut fault = |kind, message: Message, why: String| {
                faults.add(kind, || {
                    let text = format!("rank {rank}, position {position} ({}): {why}", action_name(action));
                    Finding::new(kind, vec![rank], [message.pass], text)
                });
            };
            let (message, claimed, side) = match *action {
                Action::Run(_) => continue,
                Action::Send { message, to } => {
                    *not_waited_for.entry(message).or_default() += 1;
                    (message, (rank, to), &mut ends.sent_at)
                }
                Action::Receive { message, from } => (message, (from, rank), &mut ends.received_at),
                Action::WaitSend(message) => {
                    match not_waited_for.get_mut(&message) {
                        Some(sends) if *sends > 0 => *sends -= 1,
                        _ => {
                            let why = "no send before this is still to be waited for".to_string();
                            fault(Kind::WaitWithoutSend, message, why);
                        }
                    }
                    continue;
                }
            };
            let first = match Route::of(schedule, message) {
                None => {
                    let why = "the schedule has no such message from rank to rank".to_string();
                    fault(Kind::ForeignMessage, message, why);
                    continue;
                }
                Some(route) if (route.from, route.to) != claimed => {
                    let why = format!("it goes from rank {} to rank {}", route.from, route.to);
                    fault(Kind::ForeignMessage, message, why);
                    continue;
                }
                Some(route) => &mut side[route.index],
            };
            if *first == NOWHERE {
                *first = position as u32;
            } else {
                fault(Kind::DoubledMessage, message, format!("the first time was at position {first}"));
            }
        }
    }
    each_has_both_ends(schedule, &ends, faults);
    ends
}

fn each_has_both_ends(schedule: &Schedule, ends: &Ends, faults: &mut Faults) {
    for message in all_messages(schedule) {
        let Some(Route { index, from, to }) = Route::of(schedule, message) else { continue };
        let (sent_at, received_at) = (ends.sent_at[index], ends.received_at[index]);
        let why = match (sent_at, received_at) {
            (NOWHERE, NOWHERE) => format!("rank {from} does not send it, nor does rank {to} receive it"),
            (NOWHERE, at) => format!("rank {from} does not send it, rank {to} receives it at position {at}"),
            (at, NOWHERE) => format!("rank {from} sends it at position {at}, rank {to} does not receive it"),
            _ => continue,
        };
        faults.add(Kind::MissingMessage, || {
            let text = format!("{}: {why}", message_name(message));
            Finding::new(Kind::MissingMessage, vec![from, to], [message.pass], text)
        });
    }
}

fn all_messages(schedule: &Schedule) -> impl Iterator<Item = Message> + '_ {
    let kinds = [MessageKind::Activation, MessageKind::Gradient];
    kinds.into_iter().flat_map(|kind| all_passes(schedule).map(move |pass| Message { kind, pass }))
}

/// Adds [`Kind::SendBeforeMade`] and [`Kind::ReceiveAfterUse`]. The actions do the schedule.
pub(super) fn check_places(schedule: &Schedule, actions: &[Vec<Action>], faults: &mut Faults) {
    let mut is_made = vec![false; 2 * schedule.num_passes()];
    let mut is_used = vec![false; 2 * schedule.num_passes()];
    for (r, actions) in actions.iter().enumerate() {
        let rank = Rank::from_index(r);
        let ours = |message, from, to| {
            Route::of(schedule, message).filter(|route| (route.from, route.to) == (from, to))
        };
        for (position, action) in actions.iter().enumerate() {
            let (kind, message, why) = match *action {
                Action::Run(Task::Op(op)) => {
                    for (message, to) in schedule.messages_from(op).into_iter().flatten() {
                        ours(message, rank, to).into_iter().for_each(|route| is_made[route.index] = true);
                    }
                    for (message, from) in schedule.messages_to(op).into_iter().flatten() {
                        ours(message, from, rank).into_iter().for_each(|route| is_used[route.index] = true);
                    }
                    continue;
                }
                Action::Send { message, to } => match ours(message, rank, to) {
                    Some(route) if !is_made[route.index] => {
                        (Kind::SendBeforeMade, message, "it is made only later")
                    }
                    _ => continue,
                },
                Action::Receive { message, from } => match ours(message, from, rank) {
                    Some(route) if is_used[route.index] => {
                        (Kind::ReceiveAfterUse, message, "the op that needs it is before this")
                    }
                    _ => continue,
                },
                Action::Run(Task::ReduceGrads(_)) | Action::WaitSend(_) => continue,
            };
            faults.add(kind, || {
                let text = format!("rank {rank}, position {position} ({}): {why}", action_name(action));
                Finding::new(kind, vec![rank], [message.pass], text)
            });
        }
    }
}

/// Adds a [`Kind::FifoMismatch`] for each two ranks of which one does not receive in the order in which the other
/// sends. Every message has both of its ends.
pub(super) fn check_fifo(
    schedule: &Schedule,
    actions: &[Vec<Action>],
    options: &Options<'_>,
    faults: &mut Faults,
) {
    let mut numbers = vec![NOWHERE; 2 * schedule.num_passes()];
    for (rank, actions) in actions.iter().enumerate() {
        let mut sent: BTreeMap<Rank, u32> = BTreeMap::new();
        for action in actions {
            let &Action::Send { message, to } = action else { continue };
            let Some(route) = Route::of(schedule, message) else { continue };
            debug_assert_eq!(route.from.index(), rank);
            let next = sent.entry(to).or_default();
            numbers[route.index] = *next;
            *next += 1;
        }
    }
    let untagged: Vec<Transport> = options.transports.iter().copied().filter(|t| !t.is_tagged).collect();
    for (r, received) in actions.iter().enumerate() {
        let rank = Rank::from_index(r);
        // By sender: how many have been received, and the first place where another message was meant.
        let mut by_sender: BTreeMap<Rank, (u32, Option<u32>)> = BTreeMap::new();
        for action in received {
            let &Action::Receive { message, from } = action else { continue };
            let Some(route) = Route::of(schedule, message) else { continue };
            let (next, first_wrong) = by_sender.entry(from).or_default();
            if numbers[route.index] != *next {
                first_wrong.get_or_insert(*next);
            }
            *next += 1;
        }
        for (from, (_, first_wrong)) in by_sender {
            let Some(number) = first_wrong else { continue };
            faults.add(Kind::FifoMismatch, || {
                let mut finding = mismatch(actions, from, rank, number as usize);
                finding.transports.clone_from(&untagged);
                finding
            });
        }
    }
}

/// The finding for the `number`-th message from one rank to another, counted from 0, which is not the one that is
/// received as such.
fn mismatch(actions: &[Vec<Action>], from: Rank, to: Rank, number: usize) -> Finding {
    let sends = actions[from.index()].iter().enumerate().filter_map(|(position, action)| match *action {
        Action::Send { message, to: receiver } if receiver == to => Some((position, message)),
        _ => None,
    });
    let receives = actions[to.index()].iter().enumerate().filter_map(|(position, action)| match *action {
        Action::Receive { message, from: sender } if sender == from => Some((position, message)),
        _ => None,
    });
    let (sends, receives): (Vec<_>, Vec<_>) = (sends.collect(), receives.collect());
    let ((_, sent), (_, wanted)) = (sends[number], receives[number]);
    let mut text = format!(
        "message {number} of rank {from} to rank {to} is {}, received as {}: swapped silently\n",
        message_name(sent),
        message_name(wanted)
    );
    let last = sends.iter().position(|&(_, message)| message == wanted).unwrap_or(number).max(number);
    let lists = [
        (format!("rank {from} sends"), &sends, "<-- comes"),
        (format!("rank {to} receives"), &receives, "<-- is meant"),
    ];
    for (head, list, mark) in lists {
        text += &format!("  {head}\n");
        for (i, (position, message)) in list.iter().enumerate() {
            // The neighbours of the message that comes, and where the one that is meant is sent.
            if i + 1 < number || (i > number + 1 && i != last) {
                continue;
            }
            let mark = if i == number { format!("  {mark}") } else { String::new() };
            text += &format!("    {i:>4}, at {position:>4}: {}{mark}\n", message_name(*message));
        }
    }
    Finding::new(Kind::FifoMismatch, vec![from, to], [sent.pass, wanted.pass], text.trim_end().to_string())
}
