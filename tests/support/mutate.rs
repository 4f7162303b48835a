//! Seeded changes of schedules and of communicating orders, most of them for the worse.

use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Action, Message, MessageKind, Op, Pass, StageCopy, Task};
use dualpipe::schedule::Schedule;
use fastrand::Rng;

fn change_pass(rng: &mut Rng, pass: Pass) -> Pass {
    let other = |rng: &mut Rng, i: u32| if rng.bool() { i + 1 } else { i.saturating_sub(1) };
    match rng.usize(0..5) {
        0 | 1 => Pass { stage: Stage(other(rng, pass.stage.0.into()) as u16), ..pass },
        2 | 3 => Pass { microbatch: Microbatch(other(rng, pass.microbatch.0)), ..pass },
        _ => Pass { direction: pass.direction.opposite(), ..pass },
    }
}

fn change_op(rng: &mut Rng, op: Op) -> Op {
    match op {
        Op::F(p) => Op::F(change_pass(rng, p)),
        Op::B(p) => Op::B(change_pass(rng, p)),
        Op::I(p) => Op::I(change_pass(rng, p)),
        Op::W(p) => Op::W(change_pass(rng, p)),
        Op::FB(f, b) if rng.bool() => Op::FB(change_pass(rng, f), b),
        Op::FB(f, b) => Op::FB(f, change_pass(rng, b)),
    }
}

/// Two places of one list, the first before the second; both the same if it has one only.
fn two_places(rng: &mut Rng, length: usize) -> (usize, usize) {
    let (a, b) = (rng.usize(0..length), rng.usize(0..length));
    (a.min(b), a.max(b))
}

/// One change of the ops of a rank or two.
pub(crate) fn mutate_ops(rng: &mut Rng, schedule: &Schedule, orders: &mut [Vec<Op>]) {
    let rank = rng.usize(0..orders.len());
    let other = rng.usize(0..orders.len());
    let length = orders[rank].len();
    if length < 2 {
        return;
    }
    let at = rng.usize(0..length);
    let (first, second) = two_places(rng, length);
    let order = &mut orders[rank];
    match rng.usize(0..12) {
        0 => drop(order.remove(at)),
        1 => order.insert(first, order[second]),
        2 | 3 => order.swap(at, (at + 1) % length),
        4 => order.swap(first, second),
        5 => {
            let op = order.remove(second);
            order.insert(first, op);
        }
        6 => {
            let op = order.remove(at);
            let to = rng.usize(0..=orders[other].len());
            orders[other].insert(to, op);
        }
        7 => order[at] = change_op(rng, order[at]),
        8 => {
            let (Op::F(p) | Op::B(p) | Op::I(p) | Op::W(p) | Op::FB(p, _)) = order[at];
            order[at] = [Op::F(p), Op::B(p), Op::I(p), Op::W(p)][rng.usize(0..4)];
        }
        9 => split(rng, order, at),
        10 => fuse(rng, order, at),
        _ => swap_on_all_ranks(rng, schedule, orders),
    }
}

/// An op as its parts, in a right order or a wrong one.
fn split(rng: &mut Rng, order: &mut Vec<Op>, at: usize) {
    let mut halves = match order[at] {
        Op::FB(f, b) => [Op::F(f), Op::B(b)],
        Op::B(b) => [Op::I(b), Op::W(b)],
        other => [other, other],
    };
    if rng.usize(0..4) == 0 {
        halves.swap(0, 1);
    }
    order.splice(at..=at, halves);
}

/// An op with a later one that makes a whole of it: I and W, F and B.
fn fuse(rng: &mut Rng, order: &mut Vec<Op>, at: usize) {
    for later in at + 1..order.len() {
        let fused = match (order[at], order[later]) {
            (Op::I(p), Op::W(q)) if p == q => Op::B(p),
            (Op::F(f), Op::B(b)) | (Op::B(b), Op::F(f)) => Op::FB(f, b),
            _ => continue,
        };
        order[later] = fused;
        if rng.usize(0..4) > 0 {
            order.remove(at);
        }
        return;
    }
}

/// Two forwards of one micro-batch after the other change places on some ranks only.
fn swap_on_all_ranks(rng: &mut Rng, schedule: &Schedule, orders: &mut [Vec<Op>]) {
    let per_direction = schedule.microbatches_in(Direction::Down);
    let (a, b) = (rng.u32(0..per_direction as u32), rng.u32(0..per_direction as u32));
    let swapped = |pass: Pass| {
        let number = match pass.microbatch.0 {
            i if i == a => b,
            i if i == b => a,
            i => i,
        };
        Pass { microbatch: Microbatch(number), ..pass }
    };
    let all = rng.bool();
    for order in orders {
        if !all && rng.bool() {
            continue;
        }
        for op in order.iter_mut() {
            *op = match *op {
                Op::F(p) if p.direction == Direction::Down => Op::F(swapped(p)),
                Op::B(p) if p.direction == Direction::Down && all => Op::B(swapped(p)),
                other => other,
            };
        }
    }
}

fn find(rng: &mut Rng, order: &[Action], is_it: impl Fn(&Action) -> bool) -> Option<usize> {
    let places: Vec<usize> = (0..order.len()).filter(|&i| is_it(&order[i])).collect();
    (!places.is_empty()).then(|| places[rng.usize(0..places.len())])
}

fn is_message(action: &Action) -> bool {
    matches!(action, Action::Send { .. } | Action::Receive { .. })
}

/// Some ranks wait for a send before they do anything else.
pub(crate) fn wait_for_each_send(rng: &mut Rng, orders: &mut [Vec<Action>]) {
    let all = rng.bool();
    for order in orders {
        if !all && rng.bool() {
            continue;
        }
        order.retain(|action| !matches!(action, Action::WaitSend(_)));
        *order = order
            .iter()
            .flat_map(|&action| match action {
                Action::Send { message, .. } => vec![action, Action::WaitSend(message)],
                _ => vec![action],
            })
            .collect();
    }
}

/// One change of the communicating orders.
pub(crate) fn mutate_actions(rng: &mut Rng, schedule: &Schedule, orders: &mut [Vec<Action>]) {
    let rank = rng.usize(0..orders.len());
    let num_ranks = orders.len() as u32;
    let order = &mut orders[rank];
    if order.len() < 2 {
        return;
    }
    let is_send = |action: &Action| matches!(action, Action::Send { .. });
    let is_receive = |action: &Action| matches!(action, Action::Receive { .. });
    let is_reduction = |action: &Action| matches!(action, Action::Run(Task::ReduceGrads(_)));
    let is_wait = |action: &Action| matches!(action, Action::WaitSend(_));
    let at = rng.usize(0..order.len());
    let pick = rng.usize(0..24);
    let wanted: &dyn Fn(&Action) -> bool = match pick {
        0 | 1 => &is_send,
        2..=4 => &is_receive,
        5..=9 => &is_message,
        10..=15 => &is_reduction,
        16..=18 => &is_wait,
        _ => &|_| true,
    };
    let Some(chosen) = find(rng, order, wanted) else { return };
    let move_to = |order: &mut Vec<Action>, to: usize| {
        let action = order.remove(chosen);
        order.insert(to.min(order.len()), action);
    };
    match pick {
        // Neighbouring sends or receives change places.
        0 | 2 => {
            let next = (chosen + 1..order.len()).find(|&i| wanted(&order[i]));
            next.into_iter().for_each(|next| order.swap(chosen, next));
        }
        1 => move_to(order, rng.usize(0..=at)),
        3 => move_to(order, (chosen + rng.usize(1..8)).min(order.len() - 1)),
        4 => move_to(order, rng.usize(0..=chosen)),
        5 => drop(order.remove(chosen)),
        6 => order.insert(at, order[chosen]),
        7 => {
            let peer = Rank(rng.u32(0..num_ranks + 1));
            order[chosen] = match order[chosen] {
                Action::Send { message, .. } => Action::Send { message, to: peer },
                Action::Receive { message, .. } => Action::Receive { message, from: peer },
                other => other,
            };
        }
        8 => {
            let change = |rng: &mut Rng, message: Message| {
                if rng.bool() {
                    return Message { pass: change_pass(rng, message.pass), ..message };
                }
                let kind = match message.kind {
                    MessageKind::Activation => MessageKind::Gradient,
                    MessageKind::Gradient => MessageKind::Activation,
                };
                Message { kind, ..message }
            };
            order[chosen] = match order[chosen] {
                Action::Send { message, to } => Action::Send { message: change(rng, message), to },
                Action::Receive { message, from } => Action::Receive { message: change(rng, message), from },
                other => other,
            };
        }
        // A message with both of its ends.
        9 => {
            let (Action::Send { message, .. } | Action::Receive { message, .. }) = order[chosen] else {
                return;
            };
            let is_end = |action: &Action| match action {
                Action::Send { message: m, .. } | Action::Receive { message: m, .. } => *m == message,
                _ => false,
            };
            let twice = rng.bool();
            for order in orders {
                let Some(end) = order.iter().position(is_end) else { continue };
                if twice {
                    order.insert(end, order[end]);
                } else {
                    order.remove(end);
                }
            }
        }
        10 => drop(order.remove(chosen)),
        11 => order.insert(rng.usize(0..=order.len()), order[chosen]),
        12 | 13 => move_to(order, at),
        14 => {
            let other = find(rng, order, is_reduction).unwrap();
            order.swap(chosen, other);
        }
        15 => {
            let Action::Run(Task::ReduceGrads(copy)) = order[chosen] else { return };
            let stage = Stage(rng.usize(0..=schedule.placement().num_stages()) as u16);
            let changed = if rng.bool() {
                StageCopy { stage, ..copy }
            } else {
                StageCopy { direction: copy.direction.opposite(), ..copy }
            };
            order[chosen] = Action::Run(Task::ReduceGrads(changed));
        }
        16 => drop(order.remove(chosen)),
        17 => order.insert(at, order[chosen]),
        18 => move_to(order, at),
        19 => order.swap(at, chosen),
        20 => move_to(order, at),
        // A wait right after its send.
        21 => {
            let Some(send) = find(rng, order, is_send) else { return };
            let Action::Send { message, .. } = order[send] else { return };
            order.insert(if rng.usize(0..4) > 0 { send + 1 } else { send }, Action::WaitSend(message));
        }
        22 => {
            let stage = Stage(rng.usize(0..schedule.placement().num_stages()) as u16);
            let copy = StageCopy { direction: Direction::Down, stage };
            order.insert(at, Action::Run(Task::ReduceGrads(copy)));
        }
        _ => {
            let (last, next) = (order.len() - 1, rng.usize(0..4));
            order.swap(at, (at + next).min(last));
        }
    }
}
