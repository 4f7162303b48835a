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
    let mut done = Done {
        schedule,
        flags: vec![0; schedule.num_passes()],
    };
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
        Some(Stuck {
            rank,
            position,
            op,
            waits_for,
        })
    });
    let stuck: Vec<Stuck> = stuck.collect();
    if stuck.is_empty() {
        Ok(())
    } else {
        Err(stuck)
    }
}

const FORWARD: u8 = 1;
const INPUT_GRADIENT: u8 = 2;

/// Which passes have gone forward, and which have their input gradient.
struct Done<'a> {
    schedule: &'a Schedule,
    flags: Vec<u8>,
}

impl Done<'_> {
    /// What `op` still needs: `Some(None)` is a forward of its own rank.
    fn missing(&self, op: Op) -> Option<Option<Message>> {
        let placement = self.schedule.placement();
        if let Some(pass) = op.forward() {
            if let Some(copy) = placement.previous(pass.copy()) {
                let before = Pass {
                    stage: copy.stage,
                    ..pass
                };
                if !self.has(before, FORWARD) {
                    return Some(Some(Message {
                        kind: MessageKind::Activation,
                        pass: before,
                    }));
                }
            }
        }
        if let Some(pass) = op.backward_input() {
            if !self.has(pass, FORWARD) {
                return Some(None);
            }
            if let Some(copy) = placement.next(pass.copy()) {
                let after = Pass {
                    stage: copy.stage,
                    ..pass
                };
                if !self.has(after, INPUT_GRADIENT) {
                    return Some(Some(Message {
                        kind: MessageKind::Gradient,
                        pass: after,
                    }));
                }
            }
        }
        match op {
            Op::W(pass) if !self.has(pass, INPUT_GRADIENT) => Some(None),
            _ => None,
        }
    }

    fn has(&self, pass: Pass, flag: u8) -> bool {
        self.schedule
            .pass_index(pass)
            .is_some_and(|i| self.flags[i] & flag != 0)
    }

    /// Marks `op` done; the ranks that may have waited for it.
    fn finish(&mut self, op: Op) -> [Option<Rank>; 2] {
        let placement = self.schedule.placement();
        let mut mark = |pass: Pass, flag| {
            if let Some(i) = self.schedule.pass_index(pass) {
                self.flags[i] |= flag;
            }
        };
        let next = op.forward().and_then(|pass| {
            mark(pass, FORWARD);
            placement.rank_of(placement.next(pass.copy())?)
        });
        let previous = op.backward_input().and_then(|pass| {
            mark(pass, INPUT_GRADIENT);
            placement.rank_of(placement.previous(pass.copy())?)
        });
        [next, previous]
    }
}
