//! Communicating orders: of a program, and of a schedule with its receives in one place or another.

use crate::ids::Rank;
use crate::op::{Action, Message, Task};
use crate::program::{Instruction, Program};
use crate::schedule::Schedule;

/// What `program` does with others, as actions: a buffer that is being sent is waited for where it is freed.
pub fn actions_of(program: &Program) -> Vec<Action> {
    let mut in_flight: Vec<Option<Message>> = vec![None; program.buffers().len()];
    let mut actions = Vec::with_capacity(program.instructions().len());
    for &instruction in program.instructions() {
        match instruction {
            Instruction::Receive { message, from, .. } => actions.push(Action::Receive { message, from }),
            Instruction::Run(task) => actions.push(Action::Run(task)),
            Instruction::Send { message, to, buffer } => {
                if let Some(sent) = in_flight.get_mut(buffer.index()) {
                    *sent = Some(message);
                }
                actions.push(Action::Send { message, to });
            }
            Instruction::Free(buffer) => {
                let sent = in_flight.get_mut(buffer.index()).and_then(Option::take);
                actions.extend(sent.map(Action::WaitSend));
            }
        }
    }
    actions
}

/// `[rank]`: each op between the receives of what it needs and the sends of what it makes, and REDUCE_GRADS as in
/// [`Schedule::tasks`].
pub fn receive_before_use(schedule: &Schedule) -> Vec<Vec<Action>> {
    let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    ranks.map(|rank| between_messages(schedule, rank, schedule.tasks(rank).into_iter())).collect()
}

/// `[rank]`: all receives, those from one rank in the order in which it sends; then each op with the sends of what it
/// makes, and REDUCE_GRADS as in [`Schedule::tasks`].
pub fn receive_at_start(schedule: &Schedule) -> Vec<Vec<Action>> {
    let before_use = receive_before_use(schedule);
    let mut orders = vec![Vec::new(); schedule.num_ranks()];
    for (rank, actions) in before_use.iter().enumerate() {
        for action in actions {
            if let &Action::Send { message, to } = action {
                orders[to.index()].push(Action::Receive { message, from: Rank::from_index(rank) });
            }
        }
    }
    for (order, actions) in orders.iter_mut().zip(before_use) {
        order.extend(actions.into_iter().filter(|action| !matches!(action, Action::Receive { .. })));
    }
    orders
}

/// `[rank]`: as [`receive_before_use`], with no reductions.
pub(super) fn without_reductions(schedule: &Schedule) -> Vec<Vec<Action>> {
    let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    ranks
        .map(|rank| between_messages(schedule, rank, schedule.order(rank).iter().copied().map(Task::Op)))
        .collect()
}

fn between_messages(schedule: &Schedule, rank: Rank, tasks: impl Iterator<Item = Task>) -> Vec<Action> {
    let mut actions = Vec::with_capacity(3 * schedule.order(rank).len());
    for task in tasks {
        let Task::Op(op) = task else {
            actions.push(Action::Run(task));
            continue;
        };
        let others = |(_, peer): &(Message, Rank)| *peer != rank;
        let needed = schedule.messages_to(op).into_iter().flatten().filter(others);
        actions.extend(needed.map(|(message, from)| Action::Receive { message, from }));
        actions.push(Action::Run(task));
        let made = schedule.messages_from(op).into_iter().flatten().filter(others);
        actions.extend(made.map(|(message, to)| Action::Send { message, to }));
    }
    actions
}
