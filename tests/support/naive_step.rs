//! Part of the naive verifier: plays a step under a transport, action by action, with what travels and where it ends.

use std::collections::{BTreeMap, BTreeSet};

use dualpipe::ids::Rank;
use dualpipe::op::{Action, Message, MessageKind, Pass, StageCopy, Task};
use dualpipe::schedule::Schedule;
use dualpipe::verify::{Mode, Transport};

use super::{
    before, holder, hops, needed_parts, needs_and_makes, parts, passes, replicated, twin, Hops, Orders,
};

/// Whether the step runs to its end under `transport` with the right data everywhere: tried out.
pub(crate) fn step_runs(schedule: &Schedule, orders: &Orders, transport: Transport) -> bool {
    let mut step = Step {
        schedule,
        transport,
        hops: hops(schedule),
        sends: BTreeMap::new(),
        receives: BTreeMap::new(),
        waits: BTreeSet::new(),
        done: BTreeSet::new(),
        reduced: BTreeSet::new(),
    };
    let replicated: BTreeSet<_> = replicated(schedule).into_iter().collect();
    let mut at = vec![0; orders.len()];
    // How far each rank has begun what is at or after its place.
    let mut begun = vec![0; orders.len()];
    loop {
        let mut moved = false;
        for (r, order) in orders.iter().enumerate() {
            let rank = Rank(r as u32);
            if at[r] == order.len() {
                continue;
            }
            if begun[r] == at[r] {
                let is_run = |action: &Action| matches!(action, Action::Run(_));
                let group = match transport.mode {
                    Mode::GroupedBlocking if !is_run(&order[at[r]]) => {
                        order[at[r]..].iter().take_while(|action| !is_run(action)).count()
                    }
                    _ => 1,
                };
                for &action in &order[at[r]..at[r] + group] {
                    if !step.begin(rank, action, &replicated) {
                        return false;
                    }
                }
                begun[r] += group;
                moved = true;
            }
            if order[at[r]..begun[r]].iter().all(|&action| step.may_end(rank, action)) {
                for &action in &order[at[r]..begun[r]] {
                    if !step.end(action) {
                        return false;
                    }
                }
                at[r] = begun[r];
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let all_done = passes(schedule)
        .iter()
        .all(|&pass| needed_parts(schedule).iter().all(|&part| step.done.contains(&(part, pass))));
    let sent: usize = step.sends.values().map(Vec::len).sum();
    at.iter().zip(orders).all(|(&at, order)| at == order.len())
        && all_done
        && sent == step.hops.0.len()
        && step.sends.values().flatten().count() == step.receives.values().flatten().count()
        && (transport.is_tagged || step.sends == step.receives)
        && step.reduced.len() == replicated.len()
        && orders.iter().zip(schedule.orders()).all(|(actions, order)| {
            actions
                .iter()
                .filter_map(|action| match action {
                    Action::Run(Task::Op(op)) => Some(op),
                    _ => None,
                })
                .eq(order)
        })
}

struct Step<'a> {
    schedule: &'a Schedule,
    transport: Transport,
    hops: Hops,
    /// By sender and receiver, what has been sent, and for what receives have been posted.
    sends: BTreeMap<(Rank, Rank), Vec<Message>>,
    receives: BTreeMap<(Rank, Rank), Vec<Message>>,
    waits: BTreeSet<Message>,
    done: BTreeSet<(&'static str, Pass)>,
    reduced: BTreeSet<StageCopy>,
}

impl Step<'_> {
    /// A rank comes to an action; whether that makes sense.
    fn begin(&mut self, rank: Rank, action: Action, replicated: &BTreeSet<(StageCopy, Rank)>) -> bool {
        match action {
            Action::Run(Task::Op(op)) => parts(op).iter().all(|part| {
                holder(self.schedule, part.1) == Some(rank)
                    && part.1.microbatch.index() < self.schedule.microbatches_in(part.1.direction)
                    && needed_parts(self.schedule).contains(&part.0)
                    && !self.done.contains(part)
            }),
            Action::Run(Task::ReduceGrads(copy)) => {
                let is_final = passes(self.schedule)
                    .iter()
                    .filter(|pass| pass.copy() == copy)
                    .all(|&pass| self.done.contains(&("W", pass)));
                replicated.contains(&(copy, rank)) && is_final && self.reduced.insert(copy)
            }
            Action::Send { message, to } => {
                let part = if message.kind == MessageKind::Activation { "F" } else { "I" };
                let list = self.sends.entry((rank, to)).or_default();
                let makes_sense = self.hops.contains(&(rank, to, message))
                    && self.done.contains(&(part, message.pass))
                    && !list.contains(&message);
                list.push(message);
                makes_sense
            }
            Action::Receive { message, from } => {
                let list = self.receives.entry((from, rank)).or_default();
                let makes_sense = self.hops.contains(&(from, rank, message)) && !list.contains(&message);
                list.push(message);
                makes_sense
            }
            Action::WaitSend(message) => {
                self.place_of_send(rank, message).is_some() && self.waits.insert(message)
            }
        }
    }

    fn place_of_send(&self, rank: Rank, message: Message) -> Option<((Rank, Rank), usize)> {
        let mut ours = self.sends.iter().filter(|(ranks, _)| ranks.0 == rank);
        ours.find_map(|(&ranks, list)| Some((ranks, list.iter().position(|&m| m == message)?)))
    }

    /// Whether the receive of `message`, sent at this place, has been posted.
    fn is_taken_up(&self, ranks: (Rank, Rank), place: usize, message: Message) -> bool {
        let Some(posted) = self.receives.get(&ranks) else { return false };
        if self.transport.is_tagged {
            posted.contains(&message)
        } else {
            posted.len() > place
        }
    }

    /// What the posted receive of `message` gets; `None` if nothing yet, or if it is not posted.
    fn received(&self, ranks: (Rank, Rank), message: Message) -> Option<Message> {
        let place = self.receives.get(&ranks)?.iter().position(|&m| m == message)?;
        let sent = self.sends.get(&ranks)?;
        if self.transport.is_tagged {
            sent.contains(&message).then_some(message)
        } else {
            sent.get(place).copied()
        }
    }

    /// Whether a rank may go on from an action that it has come to.
    fn may_end(&self, rank: Rank, action: Action) -> bool {
        match (action, self.transport.mode) {
            (Action::Run(Task::Op(op)), _) => {
                let own = parts(op);
                let local = own.iter().all(|&(part, pass)| {
                    before(self.schedule, part, pass).iter().all(|need| {
                        let is_remote = holder(self.schedule, need.1) != Some(rank);
                        let together = (part, need.0) == ("W", "I") && own.contains(need);
                        is_remote || together || self.done.contains(need)
                    })
                });
                let (needs, _) = needs_and_makes(&self.hops, op);
                local && needs.iter().all(|&(from, to, message)| self.received((from, to), message).is_some())
            }
            (Action::Run(Task::ReduceGrads(copy)), _) => {
                let (twin, other) = twin(self.schedule, copy).unwrap();
                other == rank || self.reduced.contains(&twin)
            }
            (Action::Send { message, .. }, Mode::Rendezvous | Mode::GroupedBlocking)
            | (Action::WaitSend(message), Mode::Asynchronous) => {
                let (ranks, place) = self.place_of_send(rank, message).unwrap();
                self.is_taken_up(ranks, place, message)
            }
            (Action::Receive { message, from }, Mode::GroupedBlocking) => {
                self.received((from, rank), message).is_some()
            }
            _ => true,
        }
    }

    /// A rank goes on; whether it had the right data.
    fn end(&mut self, action: Action) -> bool {
        let Action::Run(Task::Op(op)) = action else { return true };
        let (needs, _) = needs_and_makes(&self.hops, op);
        self.done.extend(parts(op));
        needs.iter().all(|&(from, to, message)| self.received((from, to), message) == Some(message))
    }
}
