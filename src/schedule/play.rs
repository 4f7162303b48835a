//! Walks a schedule in an order in which it can run: each task after those that it needs.

use super::Schedule;
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass, StageCopy, Task};

/// A task as [`play`] comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who does it.
    pub rank: Rank,
    /// What it does.
    pub task: Task,
    /// In which round. A rank does at most one task in a round, and a task needs only earlier rounds.
    pub round: usize,
}

/// A rank that can go no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Who waits.
    pub rank: Rank,
    /// At which position of its order: before the op there.
    pub position: usize,
    /// The task that cannot start.
    pub task: Task,
    /// What it waits for.
    pub waits_for: Wait,
}

/// What a task needs before it can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A message.
    Message(Message),
    /// An op that the same rank has in a later place.
    OwnOp,
    /// The other copy's REDUCE_GRADS, on this rank.
    Reduction(Rank),
}

/// Calls `visit` for every task, each after all that it depends on, in rounds: every rank that can do its next task
/// does it, then the next round begins. REDUCE_GRADS waits until the other copy of the stage has come to its own.
///
/// Every pass of every op must be one of the schedule's. Ends with the ranks that are stuck, in order of rank, if
/// some wait for ever. Time: proportional to the number of tasks.
pub fn play(schedule: &Schedule, mut visit: impl FnMut(Visit)) -> Result<(), Vec<Stuck>> {
    let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    let tasks: Vec<Vec<Task>> = ranks.clone().map(|rank| schedule.tasks(rank)).collect();
    let mut at = vec![0; schedule.num_ranks()];
    let mut done = Done::new(schedule);
    let (mut this_round, mut next_round) = (Wake::all(schedule), Wake::none(schedule));
    let mut ready = Vec::new();
    for round in 0.. {
        while let Some(rank) = this_round.pop() {
            if let Some(&task) = tasks[rank.index()].get(at[rank.index()]) {
                match done.missing(task) {
                    None => ready.push((rank, task)),
                    Some(_) => done.arrive(task, |twin| next_round.push(twin)),
                }
            }
        }
        if ready.is_empty() && next_round.is_empty() {
            break;
        }
        for (rank, task) in ready.drain(..) {
            visit(Visit { rank, task, round });
            at[rank.index()] += 1;
            done.finish(task, |woken| next_round.push(woken));
            next_round.push(rank);
        }
        std::mem::swap(&mut this_round, &mut next_round);
    }
    let stuck = ranks.filter_map(|rank| {
        let (before, rest) = tasks[rank.index()].split_at(at[rank.index()]);
        let &task = rest.first()?;
        let waits_for = done.missing(task)?;
        let position = before.iter().filter(|task| matches!(task, Task::Op(_))).count();
        Some(Stuck { rank, position, task, waits_for })
    });
    let stuck: Vec<Stuck> = stuck.collect();
    if stuck.is_empty() {
        Ok(())
    } else {
        Err(stuck)
    }
}

/// The ranks to look at in a round, each once.
struct Wake {
    ranks: Vec<Rank>,
    is_in: Vec<bool>,
}

impl Wake {
    fn none(schedule: &Schedule) -> Wake {
        Wake { ranks: Vec::new(), is_in: vec![false; schedule.num_ranks()] }
    }

    fn all(schedule: &Schedule) -> Wake {
        let ranks = (0..schedule.num_ranks()).rev().map(Rank::from_index).collect();
        Wake { ranks, is_in: vec![true; schedule.num_ranks()] }
    }

    fn push(&mut self, rank: Rank) {
        if !std::mem::replace(&mut self.is_in[rank.index()], true) {
            self.ranks.push(rank);
        }
    }

    fn pop(&mut self) -> Option<Rank> {
        let rank = self.ranks.pop()?;
        self.is_in[rank.index()] = false;
        Some(rank)
    }

    fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }
}

/// What has been done so far.
struct Done<'a> {
    schedule: &'a Schedule,
    /// For each pass a bit per [`MessageKind`]: it has gone forward, it has its input gradient.
    passes: Vec<u8>,
    /// The copies whose rank has come to its REDUCE_GRADS.
    reductions: Vec<bool>,
}

impl<'a> Done<'a> {
    fn new(schedule: &'a Schedule) -> Done<'a> {
        let reductions = vec![false; schedule.placement().num_copies()];
        Done { schedule, passes: vec![0; schedule.num_passes()], reductions }
    }

    /// What `task` still needs.
    fn missing(&self, task: Task) -> Option<Wait> {
        let op = match task {
            Task::Op(op) => op,
            Task::ReduceGrads(copy) => {
                let (twin, rank) = self.schedule.twin(copy)?;
                let is_here = self.schedule.placement().rank_of(copy) == Some(rank) || self.has_arrived(twin);
                return (!is_here).then_some(Wait::Reduction(rank));
            }
        };
        match op {
            Op::F(pass) => self.missing_activation(pass),
            Op::B(pass) | Op::I(pass) => self.missing_gradient(pass),
            Op::W(pass) => (!self.has(MessageKind::Gradient, pass)).then_some(Wait::OwnOp),
            Op::FB(f, b) => self.missing_activation(f).or_else(|| self.missing_gradient(b)),
        }
    }

    fn missing_activation(&self, pass: Pass) -> Option<Wait> {
        let pass = Pass { stage: self.schedule.placement().previous(pass.copy())?.stage, ..pass };
        let kind = MessageKind::Activation;
        (!self.has(kind, pass)).then_some(Wait::Message(Message { kind, pass }))
    }

    fn missing_gradient(&self, pass: Pass) -> Option<Wait> {
        if !self.has(MessageKind::Activation, pass) {
            return Some(Wait::OwnOp);
        }
        let pass = Pass { stage: self.schedule.placement().next(pass.copy())?.stage, ..pass };
        let kind = MessageKind::Gradient;
        (!self.has(kind, pass)).then_some(Wait::Message(Message { kind, pass }))
    }

    fn has(&self, kind: MessageKind, pass: Pass) -> bool {
        self.schedule.pass_index(pass).is_some_and(|i| self.passes[i] & (1 << kind as u8) != 0)
    }

    fn mark(&mut self, kind: MessageKind, pass: Pass) {
        if let Some(i) = self.schedule.pass_index(pass) {
            self.passes[i] |= 1 << kind as u8;
        }
    }

    fn has_arrived(&self, copy: StageCopy) -> bool {
        self.schedule.placement().copy_index(copy).is_some_and(|i| self.reductions[i])
    }

    /// A rank waits at `task`: tells the twin of a reduction, once.
    fn arrive(&mut self, task: Task, wake: impl FnOnce(Rank)) {
        let Task::ReduceGrads(copy) = task else { return };
        let (index, twin) = (self.schedule.placement().copy_index(copy), self.schedule.twin(copy));
        if let (Some(index), Some((_, rank))) = (index, twin) {
            if !std::mem::replace(&mut self.reductions[index], true) {
                wake(rank);
            }
        }
    }

    /// Marks `task` done and wakes the ranks that may have waited for it.
    fn finish(&mut self, task: Task, mut wake: impl FnMut(Rank)) {
        let Task::Op(op) = task else { return self.arrive(task, wake) };
        match op {
            Op::F(pass) => self.mark(MessageKind::Activation, pass),
            Op::B(pass) | Op::I(pass) => self.mark(MessageKind::Gradient, pass),
            Op::W(_) => {}
            Op::FB(f, b) => {
                self.mark(MessageKind::Activation, f);
                self.mark(MessageKind::Gradient, b);
            }
        }
        let [activation, gradient] = self.schedule.messages_from(op);
        activation.into_iter().for_each(|(_, rank)| wake(rank));
        gradient.into_iter().for_each(|(_, rank)| wake(rank));
    }
}
