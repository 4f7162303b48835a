//! Chrome trace: every task and message, and who waited for which.

use dualpipe::ids::Direction;
use dualpipe::op::{Op, Task};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, Work};
use dualpipe::timeline::{Span, Timeline};
use expect_test::expect;
use serde_json::Value;

use crate::unit_costs::{timeline, Costs, UNIT};
use crate::{empty, pass};

#[test]
fn a_trace_has_every_task_and_an_arrow_for_every_message() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let costs = Costs { unit_ns: 1001, message: 2, reduce: 1, ..UNIT };
    let timeline = timeline(&schedule, costs);
    let trace: Value = serde_json::from_str(&timeline.to_trace()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |phase: &str| events.iter().filter(|e| e["ph"] == phase).collect::<Vec<_>>();
    let (tasks, messages): (Vec<&Value>, Vec<&Value>) = of("X").into_iter().partition(|e| e["tid"] == 0);
    let spans: Vec<&Span> = timeline.spans.iter().flatten().collect();
    assert_eq!(tasks.len(), spans.len());
    for (event, span) in tasks.iter().zip(spans) {
        assert_eq!(event["name"], span.task.to_string());
        assert_eq!(ns(&event["ts"]), span.start_ns);
        assert_eq!(ns(&event["dur"]), span.end_ns - span.start_ns);
    }
    assert_eq!(messages.len(), timeline.messages.len());
    let (starts, finishes) = (of("s"), of("f"));
    assert_eq!(starts.len(), messages.len());
    assert_eq!(finishes.len(), messages.len());
    for ((start, finish), message) in starts.iter().zip(&finishes).zip(&timeline.messages) {
        assert_eq!(start["id"], finish["id"]);
        assert_eq!((&start["pid"], &finish["pid"]), (&message.from.0.into(), &message.to.0.into()));
        assert_eq!(ns(&start["ts"]), message.start_ns);
        assert!(ns(&finish["ts"]) >= message.end_ns);
        let consumer = |e: &&&Value| e["pid"] == finish["pid"] && e["ts"] == finish["ts"];
        assert_eq!(tasks.iter().filter(consumer).count(), 1);
    }
    // Events of one thread must not overlap, or viewers nest them.
    for (i, a) in messages.iter().enumerate() {
        for b in &messages[i + 1..] {
            if a["pid"] == b["pid"] && a["tid"] == b["tid"] {
                let [(a, a_end), (b, b_end)] = [a, b].map(|e| (ns(&e["ts"]), ns(&e["ts"]) + ns(&e["dur"])));
                assert!(a_end <= b || b_end <= a);
            }
        }
    }
}

#[test]
fn a_pair_in_a_trace_names_both_passes() {
    let span = Span {
        task: Task::Op(Op::FB(pass(Direction::Down, 1, 5), pass(Direction::Up, 0, 3))),
        start_ns: 1_234_567,
        end_ns: 1_234_568,
    };
    let timeline =
        Timeline { spans: vec![Vec::new(), vec![span]], ..empty(Placement::bidirectional(2).unwrap()) };
    let trace: Value = serde_json::from_str(&timeline.to_trace()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let event = events.iter().find(|e| e["ph"] == "X").unwrap();
    expect![[r#"{"args":{"backward":{"direction":1,"microbatch":3,"stage":0},"forward":{"direction":0,"microbatch":5,"stage":1}},"cat":"F&B","cname":"thread_state_iowait","dur":0.001,"name":"1F5&0b3","ph":"X","pid":1,"tid":0,"ts":1234.567}"#]].assert_eq(&event.to_string());
}

/// Microseconds of a trace as nanoseconds.
fn ns(us: &Value) -> u64 {
    (us.as_f64().unwrap() * 1000.0).round() as u64
}
