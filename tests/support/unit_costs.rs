//! Timelines to draw: schedules with round costs.
#![allow(dead_code)] // each test file uses a part of it

use dualpipe::cost::{Costs as StageCosts, Link, StageCosts as OneStage};
use dualpipe::op::Task;
use dualpipe::schedule::Schedule;
use dualpipe::sim::simulate;
use dualpipe::timeline::Timeline;

/// Times in units of `unit_ns`; a full backward lasts `input + weight`.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) unit_ns: u64,
    pub(crate) forward: u64,
    pub(crate) input: u64,
    pub(crate) weight: u64,
    pub(crate) pair: u64,
    /// 0: gradient reductions are not drawn.
    pub(crate) reduce: u64,
    pub(crate) message: u64,
}

/// F, I and W last 1 ms, a pair 3 ms; messages take no time.
pub(crate) const UNIT: Costs =
    Costs { unit_ns: 1_000_000, forward: 1, input: 1, weight: 1, pair: 3, reduce: 0, message: 0 };

pub(crate) fn timeline(schedule: &Schedule, costs: Costs) -> Timeline {
    let stage = OneStage {
        forward_ns: costs.forward * costs.unit_ns,
        input_ns: costs.input * costs.unit_ns,
        weight_ns: costs.weight * costs.unit_ns,
        overlapped_ns: costs.pair * costs.unit_ns,
        ..OneStage::default()
    };
    let link = Link { latency_ns: costs.message * costs.unit_ns, bytes_per_second: None };
    let costs_of_all = StageCosts::new(vec![stage], link).unwrap();
    let mut timeline = simulate(schedule, &costs_of_all).unwrap().timeline;
    for spans in &mut timeline.spans {
        spans.retain(|span| costs.reduce > 0 || matches!(span.task, Task::Op(_)));
        // A reduction delays only its own rank here: good enough for a picture.
        let mut delay_ns = 0;
        for span in spans {
            span.start_ns += delay_ns;
            if matches!(span.task, Task::ReduceGrads(_)) {
                delay_ns += costs.reduce * costs.unit_ns;
            }
            span.end_ns += delay_ns;
        }
    }
    timeline
}
