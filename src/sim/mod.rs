//! Plays a schedule against costs: when every op starts and ends, and what it keeps in memory.

mod bound;
mod memory;

pub use bound::{lower_bound_ns, lower_bound_within_ns};
pub use memory::{peak_memory_bytes, MemoryCap};

use crate::cost::Costs;
use crate::error::Result;
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass, Task};
use crate::schedule::{play, Schedule, Visit};
use crate::timeline::{MessageSpan, Source, Span, Timeline};

/// A schedule played against costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// When everything starts and ends. Reducing gradients takes no time.
    pub timeline: Timeline,
    /// `peak_memory_bytes[rank]`: the parameters of its copies and the most activations alive at once.
    pub peak_memory_bytes: Vec<u64>,
    /// No schedule of these micro-batches on this placement can have a shorter makespan.
    pub lower_bound_ns: u64,
}

impl Simulation {
    /// makespan / lower bound - 1: how far the schedule may be from the best. 0 if nothing takes any time.
    pub fn gap(&self) -> f64 {
        match self.lower_bound_ns {
            0 => 0.0,
            bound => self.timeline.makespan_ns() as f64 / bound as f64 - 1.0,
        }
    }
}

/// Every op starts as soon as its rank is free and its messages are there; sends never block.
///
/// Time: proportional to the number of ops.
///
/// # Errors
/// The schedule fails its check, or the costs are of another number of stages.
pub fn simulate(schedule: &Schedule, costs: &Costs) -> Result<Simulation> {
    costs.fit(schedule.placement().num_stages())?;
    schedule.check_passes()?;
    let mut clock = Clock::new(schedule, costs);
    play(schedule, |visit| clock.run(visit)).map_err(|stuck| schedule.deadlock(&stuck))?;
    let timeline = Timeline {
        title: schedule.title(),
        source: Source::Simulated,
        origin_ns: 0,
        placement: schedule.placement().clone(),
        spans: clock.spans,
        messages: clock.messages,
    };
    Ok(Simulation {
        timeline,
        peak_memory_bytes: peak_memory_bytes(schedule, costs),
        lower_bound_ns: lower_bound_ns(schedule, costs),
    })
}

struct Clock<'a> {
    schedule: &'a Schedule,
    costs: &'a Costs,
    /// When each pass's message is there, by [`MessageKind`].
    arrival_ns: [Vec<u64>; 2],
    /// When each rank is free.
    free_ns: Vec<u64>,
    spans: Vec<Vec<Span>>,
    messages: Vec<MessageSpan>,
}

impl<'a> Clock<'a> {
    fn new(schedule: &'a Schedule, costs: &'a Costs) -> Clock<'a> {
        let spans = schedule.orders().iter().map(|order| Vec::with_capacity(order.len() + 2)).collect();
        Clock {
            schedule,
            costs,
            arrival_ns: [vec![0; schedule.num_passes()], vec![0; schedule.num_passes()]],
            free_ns: vec![0; schedule.num_ranks()],
            spans,
            messages: Vec::with_capacity(2 * schedule.num_passes()),
        }
    }

    fn run(&mut self, Visit { rank, task, .. }: Visit) {
        let (start_ns, duration_ns) = match task {
            Task::Op(op) => (self.free_ns[rank.index()].max(self.ready_ns(op)), self.costs.op_ns(op)),
            Task::ReduceGrads(_) => (self.free_ns[rank.index()], 0),
        };
        let end_ns = start_ns + duration_ns;
        self.free_ns[rank.index()] = end_ns;
        self.spans[rank.index()].push(Span { task, start_ns, end_ns });
        if let Task::Op(op) = task {
            for (message, to) in self.schedule.messages_from(op).into_iter().flatten() {
                self.send(message, rank, to, end_ns);
            }
        }
    }

    /// When the messages that `op` needs are there.
    fn ready_ns(&self, op: Op) -> u64 {
        let needed = self.schedule.messages_to(op).into_iter().flatten();
        needed.map(|(message, _)| self.arrival(message.kind, message.pass)).max().unwrap_or(0)
    }

    fn send(&mut self, message: Message, from: Rank, to: Rank, start_ns: u64) {
        let mut end_ns = start_ns;
        if from != to {
            end_ns += self.costs.message_ns(message);
            self.messages.push(MessageSpan { message, from, to, start_ns, end_ns });
        }
        if let Some(index) = self.schedule.pass_index(message.pass) {
            self.arrival_ns[message.kind as usize][index] = end_ns;
        }
    }

    fn arrival(&self, kind: MessageKind, pass: Pass) -> u64 {
        self.schedule.pass_index(pass).map_or(0, |index| self.arrival_ns[kind as usize][index])
    }
}
