//! The events of a step, made before it: one for each instruction that a stream has to tell the end of.

use std::sync::Arc;

use super::context::Context;
use super::memory::PinnedMemory;
use super::stream::{Event, Stream};
use super::sys::DriverResult;
use crate::program::{Instruction, Program};

/// By instruction of the program.
///
/// An event is recorded once in a step, and again only after the whole step is done, here and at the peer that waits
/// for it: a peer that has sent the next step's message has waited for all of this step's.
pub(crate) struct StepEvents {
    /// After a task, when a message has arrived, when it has been sent: what other streams wait for.
    done: Vec<Option<Arc<Event>>>,
    /// When all of the step is done, on the compute stream.
    pub(crate) end: Arc<Event>,
    /// Where side streams join a capture.
    pub(crate) fork: Arc<Event>,
    /// Where the caller gave memory for a receive.
    given: Vec<Option<Arc<Event>>>,
    pub(crate) timing: Option<Timing>,
    /// For each instruction a number that a launched graph sets to 1 when it is done: its events tell nothing.
    flags: Option<PinnedMemory>,
}

/// Events that tell when something happened.
pub(crate) struct Timing {
    /// When the step begins.
    pub(crate) start: Arc<Event>,
    /// Before the first work of a task or a transfer, and after the last.
    begun: Vec<Option<Arc<Event>>>,
    ended: Vec<Option<Arc<Event>>>,
}

impl Timing {
    /// When the work of an instruction began and ended in a step that is done, in nanoseconds from its start.
    pub(crate) fn span(&self, instruction: usize) -> DriverResult<Option<(u64, u64)>> {
        let of = |events: &[Option<Arc<Event>>]| {
            let event = events.get(instruction).and_then(Option::as_ref);
            event.map(|event| event.ns_since(&self.start)).transpose()
        };
        let (begun, ended) = (of(&self.begun)?, of(&self.ended)?);
        Ok(begun.zip(ended).map(|(begun, ended)| (begun.max(0) as u64, ended.max(0) as u64)))
    }
}

impl StepEvents {
    /// `is_timed` if steps are recorded, `has_memory` if the caller brings the memory for what is received, `has_graph`
    /// if steps may be launched as graphs.
    pub(crate) fn new(
        context: &Arc<Context>,
        program: &Program,
        is_timed: bool,
        has_memory: bool,
        has_graph: bool,
    ) -> DriverResult<StepEvents> {
        let per_instruction = |wanted: fn(&Instruction) -> bool, is_timed| {
            let one = |instruction| wanted(instruction).then(|| Event::new(context, is_timed)).transpose();
            program.instructions().iter().map(one).collect::<DriverResult<Vec<_>>>()
        };
        let is_span = |i: &Instruction| matches!(i, Instruction::Run(_) | Instruction::Receive { .. });
        let is_receive = |i: &Instruction| matches!(i, Instruction::Receive { .. });
        let timing = || {
            let start = Event::new(context, true)?;
            Ok(Timing {
                start,
                begun: per_instruction(is_span, true)?,
                ended: per_instruction(is_span, true)?,
            })
        };
        let bytes = program.instructions().len() * size_of::<u32>();
        Ok(StepEvents {
            done: per_instruction(|i| !matches!(i, Instruction::Free(_)), false)?,
            end: Event::new(context, false)?,
            fork: Event::new(context, false)?,
            given: per_instruction(if has_memory { is_receive } else { |_| false }, false)?,
            timing: is_timed.then(timing).transpose()?,
            flags: has_graph.then(|| PinnedMemory::zeroed(context, bytes)).transpose()?,
        })
    }

    /// Of a receive into the caller's memory.
    pub(crate) fn given(&self, instruction: usize) -> &Arc<Event> {
        self.given.get(instruction).and_then(Option::as_ref).unwrap_or(&self.end)
    }

    /// Of anything but a free.
    pub(crate) fn done(&self, instruction: usize) -> &Arc<Event> {
        self.done.get(instruction).and_then(Option::as_ref).unwrap_or(&self.end)
    }

    /// What `instruction` leaves behind besides, in a capture or not.
    pub(crate) fn trace(&self, instruction: usize, is_captured: bool) -> Trace {
        let timed = |events: &Vec<Option<Arc<Event>>>| events.get(instruction).cloned().flatten();
        let address = |flags: &PinnedMemory| flags.address() + (instruction * size_of::<u32>()) as u64;
        Trace {
            begun: self.timing.as_ref().and_then(|timing| timed(&timing.begun)),
            ended: self.timing.as_ref().and_then(|timing| timed(&timing.ended)),
            flag: self.flags.as_ref().filter(|_| is_captured).map(address),
            is_captured,
        }
    }

    /// Takes all flags back: nothing of the next launch is done.
    pub(crate) fn clear_flags(&self) {
        if let Some(flags) = &self.flags {
            // SAFETY: so many bytes; the last launch is done, and the next has not begun.
            unsafe { flags.data().as_ptr().write_bytes(0, flags.bytes()) };
        }
    }

    /// Whether a launched graph has come to the end of `instruction`.
    pub(crate) fn is_flagged(&self, instruction: usize) -> bool {
        let Some(flags) = self.flags.as_ref().filter(|flags| flags.bytes() > instruction * size_of::<u32>())
        else {
            return false;
        };
        // SAFETY: one of the flags, which the device writes at any time: whole words.
        unsafe { flags.data().cast::<u32>().as_ptr().add(instruction).read_volatile() != 0 }
    }
}

/// What an instruction leaves behind for people: when it began and ended, and that it did.
#[derive(Clone)]
pub(crate) struct Trace {
    begun: Option<Arc<Event>>,
    ended: Option<Arc<Event>>,
    flag: Option<u64>,
    is_captured: bool,
}

impl Trace {
    /// Its work on `stream` begins here.
    pub(crate) fn begin(&self, stream: &Stream) -> DriverResult {
        self.record(&self.begun, stream)
    }

    /// Its work on `stream` has ended here.
    pub(crate) fn end(&self, stream: &Stream) -> DriverResult {
        self.record(&self.ended, stream)?;
        // SAFETY: one of the flags, which stay until the executor is dropped, after its streams have been waited for.
        self.flag.map_or(Ok(()), |address| unsafe { stream.set_word(address, 1) })
    }

    fn record(&self, event: &Option<Arc<Event>>, stream: &Stream) -> DriverResult {
        match event {
            None => Ok(()),
            Some(event) if self.is_captured => event.record_at_launch(stream),
            Some(event) => event.record(stream),
        }
    }
}
