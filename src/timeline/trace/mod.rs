//! A timeline as a Chrome trace, for Perfetto (ui.perfetto.dev) and chrome://tracing; the format is Google's "Trace
//! Event Format".
//!
//! Each rank is a process: its thread 0 computes, the others are its messages on their way to a neighbour, as many
//! as travel at once. An arrow leads from a message to the task that consumes it. Times are microseconds, as the
//! format wants them, with nanoseconds behind the point.

mod event;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use serde::Serialize;

use self::event::{message_name, name_threads, Event, COMPUTE};
use super::{MessageSpan, Timeline};
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass, Task};

impl Timeline {
    /// The timeline as a Chrome trace, in JSON. The same timeline gives the same bytes.
    pub fn to_trace(&self) -> String {
        let lanes = lanes(&self.messages);
        let mut events = Vec::new();
        for rank in 0..self.spans.len() {
            let rank = Rank::from_index(rank);
            let count = lanes.counts.get(&rank).copied().unwrap_or(0);
            name_threads(rank, count, &mut events);
            for span in &self.spans[rank.index()] {
                events.push(Event::of_task(rank, span));
            }
        }
        for (message, &lane) in self.messages.iter().zip(&lanes.of_message) {
            events.push(Event::of_message(message, lane));
        }
        let consumers = self.consumers();
        for (id, (message, &lane)) in self.messages.iter().zip(&lanes.of_message).enumerate() {
            if let Some(&start_ns) = consumers.get(&(message.to, message.message)) {
                let name = message_name(message.message.kind);
                let sent = Event::flow("s", name, id, message.from, lane, message.start_ns);
                let used = Event::flow("f", name, id, message.to, COMPUTE, start_ns);
                events.extend([sent, used]);
            }
        }
        let trace = Trace {
            trace_events: events,
            display_time_unit: "ns",
            other_data: OtherData { title: &self.title, source: self.source.name() },
        };
        // Nothing in these types can fail to serialize: no map, no foreign implementation.
        serde_json::to_string(&trace).unwrap_or_default()
    }

    /// When the task starts for which a message came to a rank.
    fn consumers(&self) -> HashMap<(Rank, Message), u64> {
        let mut consumers = HashMap::new();
        for (rank, spans) in self.spans.iter().enumerate() {
            for span in spans {
                let Task::Op(op) = span.task else { continue };
                for message in inputs(op).into_iter().flatten() {
                    consumers.entry((Rank::from_index(rank), message)).or_insert(span.start_ns);
                }
            }
        }
        consumers
    }
}

/// The messages that an op may have waited for.
fn inputs(op: Op) -> [Option<Message>; 2] {
    let from = |kind, pass: Pass, stage: Option<u16>| {
        let stage = crate::ids::Stage(stage?);
        let pass = Pass { stage, ..pass };
        Some(Message { kind, pass })
    };
    [
        op.forward().and_then(|p| from(MessageKind::Activation, p, p.stage.0.checked_sub(1))),
        op.backward_input().and_then(|p| from(MessageKind::Gradient, p, p.stage.0.checked_add(1))),
    ]
}

/// Threads for messages: those that overlap in time are on different ones.
struct Lanes {
    /// The thread of each message.
    of_message: Vec<u32>,
    /// How many such threads a sender has.
    counts: HashMap<Rank, u32>,
}

/// Gives each message, in order of time, the lane of its sender that has been free longest, or a new one.
fn lanes(messages: &[MessageSpan]) -> Lanes {
    let mut by_time: Vec<usize> = (0..messages.len()).collect();
    by_time.sort_by_key(|&i| (messages[i].start_ns, messages[i].end_ns));
    let mut free_at: HashMap<Rank, BinaryHeap<Reverse<(u64, u32)>>> = HashMap::new();
    let mut of_message = vec![0; messages.len()];
    let mut counts = HashMap::new();
    for i in by_time {
        let MessageSpan { from, start_ns, end_ns, .. } = messages[i];
        let free_at = free_at.entry(from).or_default();
        let lane = match free_at.peek() {
            Some(&Reverse((end_ns, lane))) if end_ns <= start_ns => {
                free_at.pop();
                lane
            }
            _ => {
                let count = counts.entry(from).or_insert(0);
                *count += 1;
                COMPUTE + *count
            }
        };
        free_at.push(Reverse((end_ns, lane)));
        of_message[i] = lane;
    }
    Lanes { of_message, counts }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace<'a> {
    trace_events: Vec<Event>,
    display_time_unit: &'static str,
    other_data: OtherData<'a>,
}

#[derive(Serialize)]
struct OtherData<'a> {
    title: &'a str,
    source: &'static str,
}
