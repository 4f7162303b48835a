//! A verifier so simple that it is unlikely to be wrong: the oracle for the real one. It tries every order out, action
//! by action, straight from the definitions, and shares nothing with the real one but the names of faults.

use std::collections::{BTreeMap, BTreeSet};

use dualpipe::cost::Costs;
use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Action, Message, MessageKind, Op, Pass, StageCopy, Task};
use dualpipe::schedule::{Schedule, Work};
use dualpipe::verify::Kind;

mod naive_step;

pub(crate) use naive_step::step_runs;

type Orders = [Vec<Action>];
/// A message with its sender and its receiver.
type Hop = (Rank, Rank, Message);

/// What an op does: "F", "I" (input gradient) or "W" (weight gradient), and of which pass.
fn parts(op: Op) -> Vec<(&'static str, Pass)> {
    match op {
        Op::F(p) => vec![("F", p)],
        Op::B(p) => vec![("I", p), ("W", p)],
        Op::I(p) => vec![("I", p)],
        Op::W(p) => vec![("W", p)],
        Op::FB(f, b) => vec![("F", f), ("I", b), ("W", b)],
    }
}

fn needed_parts(schedule: &Schedule) -> &'static [&'static str] {
    if schedule.work() == Work::Training {
        &["F", "I", "W"]
    } else {
        &["F"]
    }
}

fn passes(schedule: &Schedule) -> Vec<Pass> {
    let mut passes = Vec::new();
    for &direction in &Direction::ALL[..schedule.placement().num_directions()] {
        for stage in 0..schedule.placement().num_stages() {
            for i in 0..schedule.microbatches_in(direction) {
                passes.push(Pass { direction, stage: Stage(stage as u16), microbatch: Microbatch(i as u32) });
            }
        }
    }
    passes
}

fn holder(schedule: &Schedule, pass: Pass) -> Option<Rank> {
    schedule.placement().rank_of(pass.copy())
}

/// The same micro-batch one stage on, or one back.
fn neighbour(schedule: &Schedule, pass: Pass, by: i32) -> Option<Pass> {
    let stage = i32::from(pass.stage.0) + by;
    let exists = stage >= 0 && stage < schedule.placement().num_stages() as i32;
    exists.then_some(Pass { stage: Stage(stage as u16), ..pass })
}

/// What a part must come after: parts of this pass and of its neighbours.
fn before(schedule: &Schedule, part: &str, pass: Pass) -> Vec<(&'static str, Pass)> {
    match part {
        "F" => neighbour(schedule, pass, -1).map(|p| ("F", p)).into_iter().collect(),
        "I" => [Some(("F", pass)), neighbour(schedule, pass, 1).map(|p| ("I", p))]
            .into_iter()
            .flatten()
            .collect(),
        _ => vec![("F", pass), ("I", pass)],
    }
}

/// The faults of the ops alone.
pub(crate) fn op_faults(schedule: &Schedule) -> BTreeSet<Kind> {
    let all: BTreeSet<Pass> = passes(schedule).into_iter().collect();
    let mut kinds = BTreeSet::new();
    let mut places: BTreeMap<(&str, Pass), Vec<usize>> = BTreeMap::new();
    for (rank, order) in schedule.orders().iter().enumerate() {
        for (position, &op) in order.iter().enumerate() {
            for (part, pass) in parts(op) {
                let fits = all.contains(&pass)
                    && holder(schedule, pass) == Some(Rank(rank as u32))
                    && needed_parts(schedule).contains(&part);
                if fits {
                    places.entry((part, pass)).or_default().push(position);
                } else {
                    kinds.insert(Kind::ForeignOp);
                }
            }
        }
    }
    for &pass in &all {
        for &part in needed_parts(schedule) {
            match places.get(&(part, pass)).map(Vec::len) {
                None => kinds.insert(Kind::MissingOp),
                Some(1) => false,
                Some(_) => kinds.insert(Kind::DoubledOp),
            };
        }
    }
    for (&(part, pass), at) in &places {
        for needed in before(schedule, part, pass) {
            let same_rank = holder(schedule, needed.1) == holder(schedule, pass);
            let Some(needed_at) = places.get(&needed).filter(|_| same_rank) else { continue };
            // B does I and W in one.
            let together = (part, needed.0) == ("W", "I") && at[0] == needed_at[0];
            if at[0] <= needed_at[0] && !together {
                kinds.insert(Kind::OpOrder);
            }
        }
    }
    if kinds.is_empty() && !ops_can_run(schedule) {
        kinds.insert(Kind::DependencyCycle);
    }
    kinds
}

fn ops_can_run(schedule: &Schedule) -> bool {
    let mut done = BTreeSet::new();
    let mut at = vec![0; schedule.num_ranks()];
    loop {
        let mut moved = false;
        for (rank, order) in schedule.orders().iter().enumerate() {
            let Some(&op) = order.get(at[rank]) else { continue };
            let own = parts(op);
            let ready = own.iter().all(|&(part, pass)| {
                before(schedule, part, pass).iter().all(|need| done.contains(need) || own.contains(need))
            });
            if ready {
                done.extend(own);
                at[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            return at.iter().zip(schedule.orders()).all(|(&at, order)| at == order.len());
        }
    }
}

/// Every message that must go from rank to rank, with sender and receiver.
fn hops(schedule: &Schedule) -> Hops {
    let mut hops = Hops::default();
    for pass in passes(schedule) {
        for &part in needed_parts(schedule) {
            let (kind, by) = match part {
                "F" => (MessageKind::Activation, 1),
                "I" => (MessageKind::Gradient, -1),
                _ => continue,
            };
            let Some(reader) = neighbour(schedule, pass, by) else { continue };
            if let (Some(from), Some(to)) = (holder(schedule, pass), holder(schedule, reader)) {
                if from != to {
                    hops.0.insert(Message { kind, pass }, (from, to));
                }
            }
        }
    }
    hops
}

#[derive(Default)]
struct Hops(BTreeMap<Message, (Rank, Rank)>);

impl Hops {
    fn contains(&self, &(from, to, message): &Hop) -> bool {
        self.0.get(&message) == Some(&(from, to))
    }

    fn iter(&self) -> impl Iterator<Item = Hop> + '_ {
        self.0.iter().map(|(&message, &(from, to))| (from, to, message))
    }
}

/// The messages that an op needs from other ranks, and those that it makes for others.
fn needs_and_makes(hops: &Hops, op: Op) -> (Vec<Hop>, Vec<Hop>) {
    let of = |part: &str, pass: Pass| {
        let kind = if part == "F" { MessageKind::Activation } else { MessageKind::Gradient };
        let by: i32 = if part == "F" { -1 } else { 1 };
        let maker = Pass { stage: Stage((i32::from(pass.stage.0) + by) as u16), ..pass };
        (Message { kind, pass: maker }, Message { kind, pass })
    };
    let find = |message: Message| hops.0.get(&message).map(|&(from, to)| (from, to, message));
    let io: Vec<_> = parts(op).into_iter().filter(|(part, _)| *part != "W").collect();
    let needs = io.iter().flat_map(|&(part, pass)| find(of(part, pass).0)).collect();
    let makes = io.iter().flat_map(|&(part, pass)| find(of(part, pass).1)).collect();
    (needs, makes)
}

fn twin(schedule: &Schedule, copy: StageCopy) -> Option<(StageCopy, Rank)> {
    let other = if copy.direction == Direction::Down { Direction::Up } else { Direction::Down };
    let twin = StageCopy { direction: other, ..copy };
    schedule.placement().rank_of(twin).map(|rank| (twin, rank))
}

/// Every copy whose gradients must be reduced, with its rank.
fn replicated(schedule: &Schedule) -> Vec<(StageCopy, Rank)> {
    if schedule.placement().num_directions() == 1 || schedule.work() == Work::ForwardOnly {
        return Vec::new();
    }
    let stages = 0..schedule.placement().num_stages();
    let copies = stages.flat_map(|stage| {
        Direction::ALL.map(|direction| StageCopy { direction, stage: Stage(stage as u16) })
    });
    copies.map(|copy| (copy, schedule.placement().rank_of(copy).unwrap())).collect()
}

/// What is wrong with the actions, who waits for whom left aside. `ops_ok`: the schedule has no [`op_faults`] but
/// perhaps a cycle.
pub(crate) fn action_faults(schedule: &Schedule, orders: &Orders, ops_ok: bool) -> BTreeSet<Kind> {
    let mut kinds = BTreeSet::new();
    let hops = hops(schedule);
    let ran: Vec<Vec<Op>> = orders
        .iter()
        .map(|order| {
            let ops = order.iter().filter_map(|action| match action {
                Action::Run(Task::Op(op)) => Some(*op),
                _ => None,
            });
            ops.collect()
        })
        .collect();
    if ran != schedule.orders() {
        kinds.insert(Kind::TaskOrder);
    }
    let ops_ok = ops_ok && ran == schedule.orders();
    let mut sends: BTreeMap<Hop, usize> = BTreeMap::new();
    let mut receives: BTreeMap<Hop, usize> = BTreeMap::new();
    let mut sent_in_order: BTreeMap<(Rank, Rank), Vec<Message>> = BTreeMap::new();
    let mut received_in_order = sent_in_order.clone();
    let mut reduced: Vec<(StageCopy, Rank, usize)> = Vec::new();
    for (r, order) in orders.iter().enumerate() {
        let rank = Rank(r as u32);
        let (mut made, mut used) = (BTreeSet::new(), BTreeSet::new());
        for (i, &action) in order.iter().enumerate() {
            match action {
                Action::Run(Task::Op(op)) => {
                    let (needs, makes) = needs_and_makes(&hops, op);
                    made.extend(makes);
                    used.extend(needs);
                }
                Action::Run(Task::ReduceGrads(copy)) => {
                    let ends_too_early = order[i..].iter().any(|later| match later {
                        Action::Run(Task::Op(op)) => {
                            parts(*op).iter().any(|(part, pass)| *part == "W" && pass.copy() == copy)
                        }
                        _ => false,
                    });
                    if !replicated(schedule).contains(&(copy, rank)) {
                        kinds.insert(Kind::ForeignReduction);
                    } else if ends_too_early && ops_ok {
                        kinds.insert(Kind::PrematureReduction);
                    }
                    reduced.push((copy, rank, i));
                }
                Action::Send { message, to } => {
                    let hop = (rank, to, message);
                    *sends.entry(hop).or_default() += 1;
                    sent_in_order.entry((rank, to)).or_default().push(message);
                    if ops_ok && hops.contains(&hop) && !made.contains(&hop) {
                        kinds.insert(Kind::SendBeforeMade);
                    }
                }
                Action::Receive { message, from } => {
                    let hop = (from, rank, message);
                    *receives.entry(hop).or_default() += 1;
                    received_in_order.entry((from, rank)).or_default().push(message);
                    if ops_ok && hops.contains(&hop) && used.contains(&hop) {
                        kinds.insert(Kind::ReceiveAfterUse);
                    }
                }
                Action::WaitSend(message) => {
                    let count = |is_it: &dyn Fn(&Action) -> bool| {
                        order[..=i].iter().filter(|action| is_it(action)).count()
                    };
                    let sends = count(&|a| matches!(a, Action::Send { message: m, .. } if *m == message));
                    let waits = count(&|a| matches!(a, Action::WaitSend(m) if *m == message));
                    if waits > sends {
                        kinds.insert(Kind::WaitWithoutSend);
                    }
                }
            }
        }
    }
    let mut pairs_ok = true;
    for (hop, count) in sends.iter().chain(&receives) {
        if !hops.contains(hop) {
            kinds.insert(Kind::ForeignMessage);
            pairs_ok = false;
        } else if *count > 1 {
            kinds.insert(Kind::DoubledMessage);
            pairs_ok = false;
        }
    }
    if hops.iter().any(|hop| !sends.contains_key(&hop) || !receives.contains_key(&hop)) {
        kinds.insert(Kind::MissingMessage);
        pairs_ok = false;
    }
    if pairs_ok && sent_in_order != received_in_order {
        kinds.insert(Kind::FifoMismatch);
    }
    let wanted = replicated(schedule);
    let times = |copy| reduced.iter().filter(|(c, r, _)| (*c, *r) == copy).count();
    if wanted.iter().any(|&copy| times(copy) == 0) {
        kinds.insert(Kind::MissingReduction);
    }
    if wanted.iter().any(|&copy| times(copy) > 1) {
        kinds.insert(Kind::DoubledReduction);
    }
    let all_once = [Kind::ForeignReduction, Kind::MissingReduction, Kind::DoubledReduction]
        .iter()
        .all(|k| !kinds.contains(k));
    if all_once {
        // Where rank `of` reduces the stage that it shares with `other`.
        let place = |of: Rank, other: Rank, stage: Stage| {
            reduced.iter().find_map(|&(copy, rank, at)| {
                let shares = rank == of && copy.stage == stage && twin(schedule, copy).unwrap().1 == other;
                shares.then_some(at)
            })
        };
        let ranks: Vec<Rank> = (0..orders.len()).map(|r| Rank(r as u32)).collect();
        let stages: Vec<Stage> = (0..schedule.placement().num_stages()).map(|s| Stage(s as u16)).collect();
        for (&a, &b) in ranks.iter().flat_map(|a| ranks.iter().map(move |b| (a, b))).filter(|(a, b)| a != b) {
            for (&s, &t) in stages.iter().flat_map(|s| stages.iter().map(move |t| (s, t))) {
                let (on_a, on_b) = ((place(a, b, s), place(a, b, t)), (place(b, a, s), place(b, a, t)));
                if let ((Some(s_a), Some(t_a)), (Some(s_b), Some(t_b))) = (on_a, on_b) {
                    if s_a < t_a && s_b > t_b {
                        kinds.insert(Kind::CrossedReductions);
                    }
                }
            }
        }
    }
    kinds
}

/// Receives right before use, sends right after their ops: as the definition says.
pub(crate) fn receive_before_use(schedule: &Schedule) -> Vec<Vec<Action>> {
    let hops = hops(schedule);
    let order = |rank: Rank| {
        let mut actions = Vec::new();
        for task in schedule.tasks(rank) {
            let Task::Op(op) = task else {
                actions.push(Action::Run(task));
                continue;
            };
            let (needs, makes) = needs_and_makes(&hops, op);
            actions.extend(needs.iter().map(|&(from, _, message)| Action::Receive { message, from }));
            actions.push(Action::Run(task));
            actions.extend(makes.iter().map(|&(_, to, message)| Action::Send { message, to }));
        }
        actions
    };
    (0..schedule.num_ranks()).map(|rank| order(Rank(rank as u32))).collect()
}

/// The peak of each rank, by looking at all that is alive at each op: a count, or bytes with costs.
pub(crate) fn peaks(schedule: &Schedule, costs: Option<&Costs>) -> Vec<u64> {
    let size = |pass: Pass| costs.map_or(1, |costs| costs.stage(pass.stage).activation_bytes);
    let peak = |(rank, order): (usize, &Vec<Op>)| {
        let copies = schedule.placement().copies_on(Rank(rank as u32)).iter();
        let parameters: u64 =
            copies.map(|copy| costs.map_or(0, |costs| costs.stage(copy.stage).parameter_bytes)).sum();
        let last = if schedule.work() == Work::Training { "W" } else { "F" };
        let mut peak = parameters;
        for now in 0..order.len() {
            let begun: BTreeSet<Pass> =
                order[..=now].iter().flat_map(|&op| parts(op)).filter(|p| p.0 == "F").map(|p| p.1).collect();
            let ended: BTreeSet<Pass> =
                order[..now].iter().flat_map(|&op| parts(op)).filter(|p| p.0 == last).map(|p| p.1).collect();
            peak = peak.max(parameters + begun.difference(&ended).map(|&pass| size(pass)).sum::<u64>());
        }
        peak
    };
    schedule.orders().iter().enumerate().map(peak).collect()
}
