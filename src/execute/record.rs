//! Records what a rank does in a step, into memory that is there before the step.

use crate::ids::Rank;
use crate::op::{Message, Task};
use crate::program::{Instruction, Program};
use crate::timeline::{MessageSpan, Source, Span, Timeline};

/// The spans of one step of one rank, on the transport's clock.
#[derive(Debug)]
pub(crate) struct Recorder {
    start_ns: u64,
    spans: Vec<Span>,
    messages: Vec<MessageSpan>,
}

impl Recorder {
    pub(crate) fn new(program: &Program) -> Recorder {
        let count =
            |wanted: fn(&Instruction) -> bool| program.instructions().iter().filter(|i| wanted(i)).count();
        Recorder {
            start_ns: 0,
            spans: Vec::with_capacity(count(|i| matches!(i, Instruction::Run(_)))),
            messages: Vec::with_capacity(count(|i| matches!(i, Instruction::Receive { .. }))),
        }
    }

    pub(crate) fn start(&mut self, now_ns: u64) {
        self.start_ns = now_ns;
        self.spans.clear();
        self.messages.clear();
    }

    pub(crate) fn task(&mut self, task: Task, start_ns: u64, end_ns: u64) {
        self.spans.push(Span { task, start_ns: self.relative(start_ns), end_ns: self.relative(end_ns) });
    }

    pub(crate) fn message(&mut self, message: Message, from: Rank, to: Rank, start_ns: u64, end_ns: u64) {
        let (start_ns, end_ns) = (self.relative(start_ns), self.relative(end_ns));
        self.messages.push(MessageSpan { message, from, to, start_ns, end_ns });
    }

    /// What has been recorded since the last start.
    pub(crate) fn timeline(&self, program: &Program) -> Timeline {
        let mut spans = vec![Vec::new(); program.placement().num_ranks()];
        spans[program.rank().index()].clone_from(&self.spans);
        Timeline {
            title: program.title().to_string(),
            source: Source::Recorded,
            origin_ns: self.start_ns,
            placement: program.placement().clone(),
            spans,
            messages: self.messages.clone(),
        }
    }

    /// A sender may have begun its step, and sent, before this rank did.
    fn relative(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.start_ns)
    }
}
