//! Walks a schedule in an order in which it can run: each op after those that it needs.

use super::Schedule;
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass};

/// A rank that can go no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Who waits.
    pub rank: Rank,
    /// At which position of its order.
    pub position: usize,
    /// The op there.
    pub op: Op,
    /// The message that never comes; `None` if it is the rank's own forward that comes too late.
    pub waits_for: Option<Message>,
}

/// Calls `visit(rank, position, op)` for every op, each after all it depends on, as if sends never blocked.
///
/// Every pass of every op must be one of the schedule's. Ends with the ranks that are stuck, in order of rank, if
/// some wait for ever. Time: proportional to the number of ops.
pub fn play(schedule: &Schedule, mut visit: impl FnMut(Rank, usize, Op)) -> Result<(), Vec<Stuck>> {
    let num_ranks = schedule.num_ranks();
    let mut done = Done { schedule, flags: vec![0; schedule.num_passes()] };
    let mut position = vec![0; num_ranks];
    let mut is_queued = vec![true; num_ranks];
    let mut queue: Vec<Rank> = (0..num_ranks).rev().map(Rank::from_index).collect();
    while let Some(rank) = queue.pop() {
        is_queued[rank.index()] = false;
        let order = schedule.order(rank);
        let at = &mut position[rank.index()];
        while let Some(&op) = order.get(*at) {
            if done.missing(op).is_some() {
                break;
            }
            visit(rank, *at, op);
            *at += 1;
            for woken in done.finish(op).into_iter().flatten() {
                if woken != rank && !is_queued[woken.index()] {
                    is_queued[woken.index()] = true;
                    queue.push(woken);
                }
            }
        }
    }
    let stuck = (0..num_ranks).map(Rank::from_index).filter_map(|rank| {
        let position = position[rank.index()];
        let &op = schedule.order(rank).get(position)?;
        let waits_for = done.missing(op)?;
        Some(Stuck { rank, position, op, waits_for })
    });
    let stuck: Vec<Stuck> = stuck.collect();
    if stuck.is_empty() {
        Ok(())
    } else {
        Err(stuck)
    }
}

/// Which passes have gone forward, and which have their input gradient: a bit per [`MessageKind`].
struct Done<'a> {
    schedule: &'a Schedule,
    flags: Vec<u8>,
}

impl Done<'_> {
    /// What `op` still needs: `Some(None)` is an op of its own rank.
    fn missing(&self, op: Op) -> Option<Option<Message>> {
        let comes = |&(message, _): &(Message, Rank)| !self.has(message.kind, message.pass);
        if let Some((message, _)) = self.schedule.messages_to(op).into_iter().flatten().find(comes) {
            return Some(Some(message));
        }
        let own = match op {
            Op::F(_) => true,
            Op::B(pass) | Op::I(pass) | Op::FB(_, pass) => self.has(MessageKind::Activation, pass),
            Op::W(pass) => self.has(MessageKind::Gradient, pass),
        };
        (!own).then_some(None)
    }

    fn has(&self, kind: MessageKind, pass: Pass) -> bool {
        self.schedule.pass_index(pass).is_some_and(|i| self.flags[i] & (1 << kind as u8) != 0)
    }

    /// Marks `op` done; the ranks that may have waited for it.
    fn finish(&mut self, op: Op) -> [Option<Rank>; 2] {
        let passes = [(MessageKind::Activation, op.forward()), (MessageKind::Gradient, op.backward_input())];
        for (kind, pass) in passes {
            if let Some(i) = pass.and_then(|pass| self.schedule.pass_index(pass)) {
                self.flags[i] |= 1 << kind as u8;
            }
        }
        self.schedule.messages_from(op).map(|made| Some(made?.1))
    }
}
