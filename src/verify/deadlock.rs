//! Whether any rank waits for ever: plays the actions of all ranks under each mode.
//!
//! Every wait is for something that, once done, stays done. So it does not matter in which order the ranks are moved:
//! they all get as far as they can, and where some then stand they stand for ever.

use std::collections::VecDeque;

use super::cycle::{shortest, Sheet, Wait};
use super::messages::{check_pairs, Ends, Route, NOWHERE};
use super::reductions::ReducedAt;
use super::report::Faults;
use super::{Finding, Kind, Mode, Options};
use crate::ids::Rank;
use crate::op::{Action, Message, Task};
use crate::schedule::Schedule;

/// Adds a [`Kind::Deadlock`] for each mode asked for under which some rank waits for ever. Every op, message and
/// reduction is there once and in its place.
pub(super) fn check(
    schedule: &Schedule,
    actions: &[Vec<Action>],
    ends: &Ends,
    reduced_at: &ReducedAt,
    options: &Options<'_>,
    faults: &mut Faults,
) {
    let steps = steps(schedule, actions);
    for mode in Mode::ALL {
        let has_order = |is_tagged| is_tagged || !faults.has_any(&[Kind::FifoMismatch]);
        let of_mode = options.transports.iter().filter(|t| t.mode == mode && has_order(t.is_tagged));
        let transports: Vec<_> = of_mode.copied().collect();
        if transports.is_empty() {
            continue;
        }
        let play = Play::to_the_end(schedule, &steps, mode);
        let waits = play.waits(ends, reduced_at);
        let sheet = Sheet { actions, ops_only: false };
        if let Some(circle) = shortest(&waits) {
            let how = match mode {
                Mode::Asynchronous => "with asynchronous sends",
                Mode::Rendezvous => "with rendezvous sends",
                Mode::GroupedBlocking => "with blocking grouped exchanges",
            };
            faults.add(Kind::Deadlock, || {
                let (ranks, passes, text) = sheet.draw(&circle, how);
                let mut finding = Finding::new(Kind::Deadlock, ranks, passes, text);
                finding.transports = transports;
                finding
            });
        }
    }
}

/// The ops that wait for one another in a circle, if some do. Each pass is there once and in order on its rank.
pub(super) fn dependency_cycle(schedule: &Schedule, ops_only: &[Vec<Action>]) -> Option<Finding> {
    // What an op makes is sent right after it and what it needs is received right before it: then waits for messages
    // are waits for ops, and nothing else waits.
    let ends = check_pairs(schedule, ops_only, &mut Faults::default());
    let steps = steps(schedule, ops_only);
    let waits = Play::to_the_end(schedule, &steps, Mode::Asynchronous).waits(&ends, &ReducedAt::new());
    let circle = shortest(&waits)?;
    let sheet = Sheet { actions: ops_only, ops_only: true };
    let (ranks, passes, text) = sheet.draw(&circle, "whatever the transport");
    Some(Finding::new(Kind::DependencyCycle, ranks, passes, text))
}

/// An action, with what it waits for by number. Small, because there are many.
#[derive(Clone, Copy)]
struct Step {
    act: Act,
    /// The messages that a task needs from other ranks, or the one that is sent, received or waited for; for a
    /// reduction the other rank's copy and its own. [`NOWHERE`] if there is none.
    about: [u32; 2],
    /// The other rank of a message or a reduction; of a task's needs the two ranks. Below
    /// [`RANKS_MAX`](crate::placement::RANKS_MAX).
    peers: [u16; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Compute,
    Reduce,
    Send,
    Receive,
    WaitSend,
}

fn steps(schedule: &Schedule, actions: &[Vec<Action>]) -> Vec<Vec<Step>> {
    let route = |message| Route::of(schedule, message);
    let of_message = |act, message: Message, peer: fn(Route) -> Rank| {
        let (index, peer) =
            route(message).map_or((NOWHERE, 0), |route| (route.index as u32, peer(route).0 as u16));
        Step { act, about: [index, NOWHERE], peers: [peer; 2] }
    };
    let step = |action: &Action| match *action {
        Action::Send { message, .. } => of_message(Act::Send, message, |route| route.to),
        Action::Receive { message, .. } => of_message(Act::Receive, message, |route| route.from),
        Action::WaitSend(message) => of_message(Act::WaitSend, message, |route| route.to),
        Action::Run(Task::Op(op)) => {
            let needs = schedule.messages_to(op).map(|needed| route(needed?.0));
            Step {
                act: Act::Compute,
                about: needs.map(|route| route.map_or(NOWHERE, |route| route.index as u32)),
                peers: needs.map(|route| route.map_or(0, |route| route.from.0 as u16)),
            }
        }
        Action::Run(Task::ReduceGrads(copy)) => {
            let index = |copy| schedule.placement().copy_index(copy).map_or(NOWHERE, |index| index as u32);
            let twin = schedule.twin(copy);
            let peer = twin.map_or(0, |(_, rank)| rank.0 as u16);
            // Within a rank there is nobody to wait for.
            let other_rank = twin.filter(|&(_, rank)| schedule.placement().rank_of(copy) != Some(rank));
            let other = other_rank.map_or(NOWHERE, |(twin, _)| index(twin));
            Step { act: Act::Reduce, about: [other, index(copy)], peers: [peer; 2] }
        }
    };
    actions.iter().map(|actions| actions.iter().map(step).collect()).collect()
}

/// What is waited for: the peer's send or receive of a message, or its reduction of a copy; by number.
#[derive(Clone, Copy)]
enum What {
    Send(u32),
    Receive(u32),
    Reduction(u32),
}

/// All ranks as far as they can go.
struct Play<'a> {
    steps: &'a [Vec<Step>],
    mode: Mode,
    /// Of each message whether its rank has come to the send, and to the receive.
    is_sent: Vec<bool>,
    is_posted: Vec<bool>,
    /// Of each copy whether its rank has come to the reduction.
    is_reduced: Vec<bool>,
    /// Of each rank the steps that it has entered and not ended: one, or what is left of a group.
    at: Vec<(usize, usize)>,
    /// The ranks that may be able to go on, each once.
    queue: VecDeque<usize>,
    is_queued: Vec<bool>,
}

impl<'a> Play<'a> {
    fn to_the_end(schedule: &Schedule, steps: &'a [Vec<Step>], mode: Mode) -> Play<'a> {
        let (messages, num_ranks) = (2 * schedule.num_passes(), steps.len());
        let mut play = Play {
            steps,
            mode,
            is_sent: vec![false; messages],
            is_posted: vec![false; messages],
            is_reduced: vec![false; schedule.placement().num_copies()],
            at: vec![(0, 0); num_ranks],
            queue: (0..num_ranks).collect(),
            is_queued: vec![true; num_ranks],
        };
        while let Some(rank) = play.queue.pop_front() {
            play.is_queued[rank] = false;
            play.advance(rank);
        }
        play
    }

    fn advance(&mut self, rank: usize) {
        let steps = &self.steps[rank];
        let (mut start, mut end) = self.at[rank];
        loop {
            if start == end {
                end = self.enter(steps, start);
            }
            while start < end && self.needs(&steps[start]).next().is_none() {
                start += 1;
            }
            if start < end || start == steps.len() {
                break;
            }
        }
        self.at[rank] = (start, end);
    }

    /// Comes to the step at `start`, or to the whole group that begins there; its end.
    fn enter(&mut self, steps: &[Step], start: usize) -> usize {
        let is_task = |step: &Step| matches!(step.act, Act::Compute | Act::Reduce);
        let rest = &steps[start..];
        let length = match self.mode {
            Mode::GroupedBlocking => rest.iter().position(is_task).unwrap_or(rest.len()).max(1),
            Mode::Asynchronous | Mode::Rendezvous => 1,
        };
        for step in rest.iter().take(length) {
            let [first, second] = step.about;
            let reached = match step.act {
                Act::Send => self.is_sent.get_mut(first as usize),
                Act::Receive => self.is_posted.get_mut(first as usize),
                Act::Reduce => self.is_reduced.get_mut(second as usize),
                Act::Compute | Act::WaitSend => None,
            };
            if let Some(reached) = reached {
                *reached = true;
                self.wake(step.peers[0].into());
            }
        }
        (start + length).min(steps.len())
    }

    /// What a step still waits for, with the rank that is to do it.
    fn needs<'b>(&'b self, step: &'b Step) -> impl Iterator<Item = (What, usize)> + 'b {
        let mode = self.mode;
        step.about.into_iter().zip(step.peers).filter_map(move |(index, peer)| {
            let i = index as usize;
            // An index that is nowhere is in no table: nothing to wait for.
            let posted = || self.is_posted.get(i) == Some(&false);
            let sent = || self.is_sent.get(i) == Some(&false);
            let what = match (step.act, mode) {
                (Act::Compute, _) if sent() => What::Send(index),
                (Act::Send, Mode::Rendezvous | Mode::GroupedBlocking) if posted() => What::Receive(index),
                (Act::Receive, Mode::GroupedBlocking) if sent() => What::Send(index),
                (Act::WaitSend, Mode::Asynchronous) if posted() => What::Receive(index),
                (Act::Reduce, _) if index == step.about[0] && self.is_reduced.get(i) == Some(&false) => {
                    What::Reduction(index)
                }
                _ => return None,
            };
            Some((what, peer.into()))
        })
    }

    fn wake(&mut self, rank: usize) {
        if !std::mem::replace(&mut self.is_queued[rank], true) {
            self.queue.push_back(rank);
        }
    }

    /// What each rank waits for, first things first; nothing for a rank that has come to its end.
    fn waits(&self, ends: &Ends, reduced_at: &ReducedAt) -> Vec<Vec<Wait>> {
        let of_rank = |(rank, &(start, end)): (usize, &(usize, usize))| {
            let left = (start..end).zip(&self.steps[rank][start..end]);
            let waits = left.flat_map(|(position, step)| {
                self.needs(step).map(move |(what, peer)| {
                    let done_at = match what {
                        What::Send(index) => ends.sent_at[index as usize],
                        What::Receive(index) => ends.received_at[index as usize],
                        What::Reduction(index) => reduced_at[index as usize],
                    };
                    Wait { position, peer, done_at: done_at as usize }
                })
            });
            waits.collect()
        };
        self.at.iter().enumerate().map(of_rank).collect()
    }
}
