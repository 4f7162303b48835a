//! The events of a step, made before it: one for each instruction that a stream has to tell the end of.

use std::sync::Arc;

use super::context::Context;
use super::stream::Event;
use super::sys::DriverResult;
use crate::program::{Instruction, Program};

/// By instruction of the program.
///
/// An event is recorded once in a step, and again only after the whole step is done, here and at the peer that waits
/// for it: a peer that has sent the next step's message has waited for all of this step's.
pub(crate) struct StepEvents {
    /// Before the first work of a task or a copy; only if steps are timed.
    begun: Vec<Option<Arc<Event>>>,
    /// After a task, when a message has arrived, when it has been sent.
    done: Vec<Option<Arc<Event>>>,
    /// When a step begins and when all of it is done, on the compute stream.
    pub(crate) start: Arc<Event>,
    pub(crate) end: Arc<Event>,
    /// Where the caller gave memory for a receive.
    given: Vec<Option<Arc<Event>>>,
}

impl StepEvents {
    /// `has_memory` if the caller brings the memory for what is received.
    pub(crate) fn new(
        context: &Arc<Context>,
        program: &Program,
        is_timed: bool,
        has_memory: bool,
    ) -> DriverResult<StepEvents> {
        let per_instruction = |wanted: fn(&Instruction) -> bool, is_timed| {
            let one = |instruction| wanted(instruction).then(|| Event::new(context, is_timed)).transpose();
            program.instructions().iter().map(one).collect::<DriverResult<Vec<_>>>()
        };
        let is_span = |i: &Instruction| matches!(i, Instruction::Run(_) | Instruction::Receive { .. });
        let is_receive = |i: &Instruction| matches!(i, Instruction::Receive { .. });
        Ok(StepEvents {
            begun: per_instruction(if is_timed { is_span } else { |_| false }, is_timed)?,
            done: per_instruction(|i| !matches!(i, Instruction::Free(_)), is_timed)?,
            start: Event::new(context, is_timed)?,
            end: Event::new(context, is_timed)?,
            given: per_instruction(if has_memory { is_receive } else { |_| false }, false)?,
        })
    }

    pub(crate) fn begun(&self, instruction: usize) -> Option<&Arc<Event>> {
        self.begun.get(instruction).and_then(Option::as_ref)
    }

    /// Of a receive into the caller's memory.
    pub(crate) fn given(&self, instruction: usize) -> &Arc<Event> {
        self.given.get(instruction).and_then(Option::as_ref).unwrap_or(&self.end)
    }

    /// Of anything but a free.
    pub(crate) fn done(&self, instruction: usize) -> &Arc<Event> {
        self.done.get(instruction).and_then(Option::as_ref).unwrap_or(&self.end)
    }
}
