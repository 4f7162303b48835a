//! Plays a schedule with made-up costs, so that drawing can be tried without the simulator: an op starts when its
//! rank is free and its inputs are there.
#![allow(
    dead_code,
    reason = "each test file that includes this uses its own part"
)]
#![allow(clippy::expect_used, reason = "only tests use it")]

use std::collections::HashMap;

use dualpipe::ids::Rank;
use dualpipe::op::{Message, MessageKind, Op, Pass, StageCopy, Task};
use dualpipe::schedule::{play, Schedule};
use dualpipe::timeline::{MessageSpan, Source, Span, Timeline};

/// Times in units of `unit_ns`; a full backward lasts `input + weight`.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) unit_ns: u64,
    pub(crate) forward: u64,
    pub(crate) input: u64,
    pub(crate) weight: u64,
    pub(crate) pair: u64,
    /// 0: gradients are not reduced.
    pub(crate) reduce: u64,
    pub(crate) message: u64,
}

/// F, I and W last 1 ms, a pair 3 ms; messages take no time.
pub(crate) const UNIT: Costs = Costs {
    unit_ns: 1_000_000,
    forward: 1,
    input: 1,
    weight: 1,
    pair: 3,
    reduce: 0,
    message: 0,
};

pub(crate) fn timeline(schedule: &Schedule, costs: Costs) -> Timeline {
    let placement = schedule.placement();
    let num_ranks = schedule.num_ranks();
    let mut sent: HashMap<Message, u64> = HashMap::new();
    let mut spans: Vec<Vec<Span>> = vec![Vec::new(); num_ranks];
    let mut messages = Vec::new();
    let tasks: Vec<Vec<Task>> = (0..num_ranks)
        .map(|rank| schedule.tasks(Rank(rank as u32)))
        .collect();
    let mut at = vec![0; num_ranks];
    play(schedule, |rank, _, op| {
        let spans = &mut spans[rank.index()];
        let free = spans.last().map_or(0, |span| span.end_ns);
        let arrival = inputs(schedule, op)
            .iter()
            .map(|input| sent[input])
            .max()
            .unwrap_or(0);
        let start = free.max(arrival);
        let end = start
            + costs.unit_ns
                * match op {
                    Op::F(_) => costs.forward,
                    Op::B(_) => costs.input + costs.weight,
                    Op::I(_) => costs.input,
                    Op::W(_) => costs.weight,
                    Op::FB(..) => costs.pair,
                };
        let mut run = |task, start_ns, end_ns| {
            spans.push(Span {
                task,
                start_ns,
                end_ns,
            })
        };
        run(Task::Op(op), start, end);
        for (kind, pass) in [
            (MessageKind::Activation, op.forward()),
            (MessageKind::Gradient, op.backward_input()),
        ] {
            let Some(pass) = pass else { continue };
            let to = match kind {
                MessageKind::Activation => placement.next(pass.copy()),
                MessageKind::Gradient => placement.previous(pass.copy()),
            };
            let Some(to) = to.and_then(|copy| placement.rank_of(copy)) else {
                continue;
            };
            let message = Message { kind, pass };
            let mut arrived = end;
            if to != rank {
                arrived += costs.message * costs.unit_ns;
                messages.push(MessageSpan {
                    message,
                    from: rank,
                    to,
                    start_ns: end,
                    end_ns: arrived,
                });
            }
            sent.insert(message, arrived);
        }
        let (tasks, at) = (&tasks[rank.index()], &mut at[rank.index()]);
        *at += 1;
        let mut free = end;
        while let Some(Task::ReduceGrads(_)) = tasks.get(*at) {
            if costs.reduce > 0 {
                let end = free + costs.reduce * costs.unit_ns;
                run(tasks[*at], free, end);
                free = end;
            }
            *at += 1;
        }
    })
    .expect("the schedule runs");
    Timeline {
        title: format!(
            "{}, {num_ranks} ranks, {} micro-batches",
            schedule.name(),
            schedule.num_microbatches()
        ),
        source: Source::Simulated,
        placement: placement.clone(),
        spans,
        messages,
    }
}

/// The activations and gradients that `op` cannot start without.
fn inputs(schedule: &Schedule, op: Op) -> Vec<Message> {
    let placement = schedule.placement();
    let at = |pass: Pass, copy: StageCopy| Pass {
        stage: copy.stage,
        ..pass
    };
    let activation = op.forward().and_then(|pass| {
        let pass = at(pass, placement.previous(pass.copy())?);
        let kind = MessageKind::Activation;
        Some(Message { kind, pass })
    });
    let gradient = op.backward_input().and_then(|pass| {
        let pass = at(pass, placement.next(pass.copy())?);
        let kind = MessageKind::Gradient;
        Some(Message { kind, pass })
    });
    [activation, gradient].into_iter().flatten().collect()
}
