//! Plays a schedule as a blocking implementation would run it, to find the deadlocks that only blocking has.
//!
//! As in DeepSeek's DualPipe (dualpipe.py, `_commit_and_wait_comm`), a rank exchanges before an op, in one group,
//! what the op needs and what earlier ops made, and waits for the whole group. A group ends when each of its
//! messages is in a group that the peer has entered too. An op that needs no message is not held up; what was made
//! before it goes with the next group, the last with a group at the end. REDUCE_GRADS waits for the other copy of
//! the stage to come to it too, with the sends made so far under way.

use std::collections::VecDeque;

use super::Schedule;
use crate::ids::Rank;
use crate::op::{Message, StageCopy, Task};

/// `Err` tells who waits where for whom, if some rank waits for ever. Every pass must be one of the schedule's.
pub(super) fn play(schedule: &Schedule) -> Result<(), String> {
    let mut world = World {
        schedule,
        sends: vec![false; 2 * schedule.num_passes()],
        receives: vec![false; 2 * schedule.num_passes()],
        reductions: vec![false; schedule.placement().num_copies()],
    };
    let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    let mut blocked: Vec<Blocked> = ranks.clone().map(|rank| Blocked::new(schedule, rank)).collect();
    let mut queue: VecDeque<Rank> = ranks.collect();
    let mut is_queued = vec![true; schedule.num_ranks()];
    while let Some(rank) = queue.pop_front() {
        is_queued[rank.index()] = false;
        blocked[rank.index()].advance(&mut world, |peer| {
            if !std::mem::replace(&mut is_queued[peer.index()], true) {
                queue.push_back(peer);
            }
        });
    }
    let waits = blocked.iter().filter_map(|b| b.why(&world)).take(8).collect::<Vec<_>>();
    if waits.is_empty() {
        return Ok(());
    }
    let waits = waits.join("; ");
    Err(format!("{waits}; none of it can ever come: deadlock with blocking grouped exchanges"))
}

/// What all ranks have entered so far.
struct World<'a> {
    schedule: &'a Schedule,
    sends: Vec<bool>,
    receives: Vec<bool>,
    reductions: Vec<bool>,
}

/// One thing that a rank's current group waits for.
#[derive(Clone, Copy)]
enum Exchange {
    Receive(Message, Rank),
    Send(Message, Rank),
    Reduce(StageCopy, Rank),
}

/// A rank on its way through its tasks.
struct Blocked {
    rank: Rank,
    tasks: Vec<Task>,
    position: usize,
    /// Whether the rank is in the group before `tasks[position]`.
    entered: bool,
    /// The group, and before that what the next group must send.
    group: Vec<Exchange>,
}

impl Blocked {
    fn new(schedule: &Schedule, rank: Rank) -> Blocked {
        Blocked { rank, tasks: schedule.tasks(rank), position: 0, entered: false, group: Vec::new() }
    }

    /// Goes on as far as it can; `wake` names the ranks whose groups this may complete.
    fn advance(&mut self, world: &mut World<'_>, mut wake: impl FnMut(Rank)) {
        loop {
            let task = self.tasks.get(self.position).copied();
            if !self.entered {
                let queued = self.group.len();
                task.into_iter().for_each(|task| world.needs(task, self.rank, &mut self.group));
                self.entered = task.is_none() || self.group.len() > queued;
            }
            if self.entered {
                for &exchange in &self.group {
                    if world.enter(exchange) {
                        wake(exchange.peer());
                    }
                }
                // A reduction is no part of the group: sends under way at the time do not hold it up.
                let is_reduction = |exchange: &Exchange| matches!(exchange, Exchange::Reduce(..));
                let waits_for_all = !self.group.iter().any(is_reduction);
                let holds_up = |e: &Exchange| (waits_for_all || is_reduction(e)) && !world.is_matched(*e);
                if self.group.iter().any(holds_up) {
                    return;
                }
                self.group.retain(|e| !waits_for_all && !is_reduction(e));
                self.entered = false;
            }
            let Some(task) = task else { return };
            world.makes(task, self.rank, &mut self.group);
            self.position += 1;
        }
    }

    /// Why the rank has not come to its end.
    fn why(&self, world: &World<'_>) -> Option<String> {
        let exchange = self.group.iter().find(|&&e| !world.is_matched(e))?;
        let task = self.tasks.get(self.position).map_or("end".to_string(), Task::to_string);
        let waits_for = match exchange {
            Exchange::Receive(message, from) => format!("rank {from} to send the {message}"),
            Exchange::Send(message, to) => format!("rank {to} to receive the {message}"),
            Exchange::Reduce(copy, twin) => {
                format!("rank {twin} to reduce the gradients of stage {}", copy.stage)
            }
        };
        let Blocked { rank, position, .. } = self;
        Some(format!("rank {rank}, position {position} ({task}): waits for {waits_for}"))
    }
}

impl Exchange {
    fn peer(self) -> Rank {
        match self {
            Exchange::Receive(_, peer) | Exchange::Send(_, peer) | Exchange::Reduce(_, peer) => peer,
        }
    }
}

impl World<'_> {
    /// What `task` receives from other ranks, or reduces with one.
    fn needs(&self, task: Task, rank: Rank, group: &mut Vec<Exchange>) {
        let op = match task {
            Task::Op(op) => op,
            Task::ReduceGrads(copy) => {
                group.extend(self.schedule.twin(copy).map(|(_, peer)| Exchange::Reduce(copy, peer)));
                return;
            }
        };
        let [activation, gradient] = self.schedule.messages_to(op);
        for (message, peer) in [activation, gradient].into_iter().flatten().filter(|&(_, peer)| peer != rank)
        {
            group.push(Exchange::Receive(message, peer));
        }
    }

    /// What `task` leaves to be sent to other ranks.
    fn makes(&self, task: Task, rank: Rank, group: &mut Vec<Exchange>) {
        let Task::Op(op) = task else { return };
        for (message, peer) in self.schedule.messages_from(op).into_iter().flatten() {
            if peer != rank {
                group.push(Exchange::Send(message, peer));
            }
        }
    }

    /// `true` if this is new.
    fn enter(&mut self, exchange: Exchange) -> bool {
        let (entered, index) = match exchange {
            Exchange::Receive(message, _) => (&self.receives, self.index(message)),
            Exchange::Send(message, _) => (&self.sends, self.index(message)),
            Exchange::Reduce(copy, _) => (&self.reductions, self.schedule.placement().copy_index(copy)),
        };
        let Some(index) = index.filter(|&i| !entered[i]) else {
            return false;
        };
        match exchange {
            Exchange::Receive(..) => self.receives[index] = true,
            Exchange::Send(..) => self.sends[index] = true,
            Exchange::Reduce(..) => self.reductions[index] = true,
        }
        true
    }

    fn is_matched(&self, exchange: Exchange) -> bool {
        match exchange {
            Exchange::Receive(message, _) => self.index(message).is_some_and(|i| self.sends[i]),
            Exchange::Send(message, _) => self.index(message).is_some_and(|i| self.receives[i]),
            Exchange::Reduce(copy, _) => {
                let twin =
                    self.schedule.twin(copy).and_then(|(twin, _)| self.schedule.placement().copy_index(twin));
                twin.is_some_and(|i| self.reductions[i])
            }
        }
    }

    fn index(&self, message: Message) -> Option<usize> {
        Some(message.kind as usize * self.schedule.num_passes() + self.schedule.pass_index(message.pass)?)
    }
}
