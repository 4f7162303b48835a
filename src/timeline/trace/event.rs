//! The events of the format.

use serde::Serialize;

use crate::ids::Rank;
use crate::op::{Message, MessageKind};
use crate::timeline::label::{parts, Kind, Part};
use crate::timeline::{MessageSpan, Span};

/// The thread of a rank that computes.
pub(super) const COMPUTE: u32 = 0;

/// An event; the short names are the format's.
#[derive(Serialize)]
pub(super) struct Event {
    name: String,
    /// X: complete; M: metadata; s and f: start and finish of a flow.
    ph: &'static str,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<usize>,
    /// Binding point of a flow's end: `e`, the slice that the event is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<&'static str>,
    /// A colour of chrome://tracing; Perfetto chooses its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    cname: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Args>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Args {
    Name { name: String },
    Index { sort_index: u32 },
    Part(PartArgs),
    Pair { forward: PartArgs, backward: PartArgs },
}

#[derive(Serialize)]
struct PartArgs {
    direction: u8,
    stage: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    microbatch: Option<u32>,
}

impl From<Part> for PartArgs {
    fn from(part: Part) -> PartArgs {
        PartArgs {
            direction: part.copy.direction as u8,
            stage: part.copy.stage.0,
            microbatch: part.microbatch.map(|microbatch| microbatch.0),
        }
    }
}

impl Event {
    fn new(ph: &'static str, name: impl Into<String>, rank: Rank, tid: u32) -> Event {
        Event {
            name: name.into(),
            ph,
            pid: rank.0,
            tid,
            cat: None,
            ts: None,
            dur: None,
            id: None,
            bp: None,
            cname: None,
            args: None,
        }
    }

    pub(super) fn of_task(rank: Rank, span: &Span) -> Event {
        let (first, second) = parts(span.task);
        let (cat, cname) = match (first.kind, second) {
            (_, Some(_)) => ("F&B", "thread_state_iowait"),
            (Kind::F, None) => ("F", "rail_response"),
            (Kind::B, None) => ("B", "rail_animation"),
            (Kind::I, None) => ("I", "rail_idle"),
            (Kind::W, None) => ("W", "rail_load"),
            (Kind::R, None) => ("REDUCE_GRADS", "generic_work"),
        };
        let args = match second {
            None => Args::Part(first.into()),
            Some(second) => Args::Pair { forward: first.into(), backward: second.into() },
        };
        Event {
            cat: Some(cat),
            ts: Some(us(span.start_ns)),
            dur: Some(us(span.end_ns.saturating_sub(span.start_ns))),
            cname: Some(cname),
            args: Some(args),
            ..Event::new("X", span.task.to_string(), rank, COMPUTE)
        }
    }

    pub(super) fn of_message(span: &MessageSpan, lane: u32) -> Event {
        let Message { kind, pass } = span.message;
        let args = PartArgs {
            direction: pass.direction as u8,
            stage: pass.stage.0,
            microbatch: Some(pass.microbatch.0),
        };
        let name = format!("{} {} to rank {}", message_name(kind), pass.microbatch, span.to);
        Event {
            cat: Some("message"),
            ts: Some(us(span.start_ns)),
            dur: Some(us(span.end_ns.saturating_sub(span.start_ns))),
            args: Some(Args::Part(args)),
            ..Event::new("X", name, span.from, lane)
        }
    }

    pub(super) fn flow(ph: &'static str, name: &str, id: usize, rank: Rank, tid: u32, ns: u64) -> Event {
        Event {
            cat: Some("message"),
            ts: Some(us(ns)),
            id: Some(id),
            bp: (ph == "f").then_some("e"),
            ..Event::new(ph, name, rank, tid)
        }
    }
}

pub(super) fn name_threads(rank: Rank, message_lanes: u32, events: &mut Vec<Event>) {
    let mut say = |what: &str, tid, args| {
        events.push(Event { args: Some(args), ..Event::new("M", what, rank, tid) });
    };
    let name = format!("rank {rank}");
    say("process_name", COMPUTE, Args::Name { name });
    let sort_index = rank.0;
    say("process_sort_index", COMPUTE, Args::Index { sort_index });
    for lane in 0..=message_lanes {
        let name = match lane {
            0 => "compute".to_owned(),
            1 => "messages".to_owned(),
            _ => format!("messages {lane}"),
        };
        say("thread_name", COMPUTE + lane, Args::Name { name });
        let sort_index = lane;
        say("thread_sort_index", COMPUTE + lane, Args::Index { sort_index });
    }
}

pub(super) fn message_name(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Activation => "activation",
        MessageKind::Gradient => "gradient",
    }
}

/// Microseconds; exact to the nanosecond up to 2^53 ns, 104 days.
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
