//! Schedule → programs: where receives, sends and frees go.
//!
//! The schedule is played in rounds ([`crate::schedule::play`]). When a task is done its messages are sent at once,
//! and at the end of the same round each is received on the other side. So receives are posted ahead of their use,
//! and sends and receives stand in one global order: any two ranks send and receive in the same order, and even an
//! exchange that blocks until the peer takes part in it ([`crate::program::check()`]) never deadlocks. PyTorch's
//! `_add_send_recv` puts a peer's receive beside each send for the same reason.
//!
//! Buffers: what was received is kept until the last task that reads it (W or B; F in a forward-only schedule), and
//! belongs to the pass until then. What is to be sent alternates between [`SENDS_IN_FLIGHT`] buffers for each
//! boundary; the wait for an old send is put right before the task that needs its buffer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{check, Buffer, BufferId, Instruction, PassBuffers, Program};
use crate::error::Result;
use crate::ids::{Direction, Rank};
use crate::op::{Message, MessageKind, Op, Pass, Task};
use crate::placement::Placement;
use crate::schedule::{play, Schedule, Work};

/// Outputs of one boundary that may be on their way while the next is made.
pub const SENDS_IN_FLIGHT: usize = 2;

/// The program of every rank, checked.
///
/// Time: proportional to the number of ops.
///
/// # Errors
/// The schedule fails its check.
pub fn lower(schedule: &Schedule) -> Result<Vec<Program>> {
    schedule.check_passes()?;
    let placement = Arc::new(schedule.placement().clone());
    let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    let mut writers: Vec<Writer<'_>> = ranks.map(|rank| Writer::new(schedule, &placement, rank)).collect();
    let mut this_round = 0;
    let mut sent: Vec<(Message, Rank, Rank)> = Vec::new();
    play(schedule, |visit| {
        if visit.round != this_round {
            this_round = visit.round;
            sent.drain(..).for_each(|(message, from, to)| writers[to.index()].receive(message, from));
        }
        writers[visit.rank.index()].run(visit.task, |message, to| sent.push((message, visit.rank, to)));
    })
    .map_err(|stuck| schedule.deadlock(&stuck))?;
    let programs: Vec<Program> = writers.into_iter().map(Writer::finish).collect();
    check(schedule, &programs)?;
    Ok(programs)
}

/// Writes one rank's program down.
struct Writer<'a> {
    schedule: &'a Schedule,
    program: Program,
    /// For each local copy what its boundaries have.
    boundaries: Vec<Boundaries>,
}

/// The buffers of one copy, by [`MessageKind`].
#[derive(Default)]
struct Boundaries {
    /// Free ones for what comes in.
    free: [Vec<BufferId>; 2],
    /// Those of what goes out, the one sent longest ago first.
    in_flight: [VecDeque<BufferId>; 2],
}

impl<'a> Writer<'a> {
    fn new(schedule: &'a Schedule, placement: &Arc<Placement>, rank: Rank) -> Writer<'a> {
        let copies = schedule.placement().copies_on(rank).len();
        let microbatches = Direction::ALL.map(|direction| schedule.microbatches_in(direction));
        let program = Program {
            rank,
            placement: Arc::clone(placement),
            work: schedule.work(),
            title: schedule.title(),
            microbatches,
            instructions: Vec::with_capacity(most_instructions(schedule, rank)),
            buffers: Vec::new(),
            pass_buffers: vec![PassBuffers::default(); copies * microbatches[0]],
        };
        let boundaries = (0..copies).map(|_| Boundaries::default()).collect();
        Writer { schedule, program, boundaries }
    }

    /// Posts the receive of `message`, at the end of the round in which it was sent.
    fn receive(&mut self, message: Message, from: Rank) {
        let reader = Pass { stage: message.to_stage(), ..message.pass };
        let Some((copy, index)) = self.program.locate(reader) else { return };
        let reused = self.boundaries[copy].free[message.kind as usize].pop();
        let buffer = reused.unwrap_or_else(|| self.new_buffer(message));
        self.program.pass_buffers[index].set_read(message.kind, buffer);
        self.program.instructions.push(Instruction::Receive { message, from, buffer });
    }

    /// Runs `task` and sends what it makes, of which it tells `sent`.
    fn run(&mut self, task: Task, mut sent: impl FnMut(Message, Rank)) {
        let Task::Op(op) = task else {
            self.program.instructions.push(Instruction::Run(task));
            return;
        };
        let rank = self.program.rank;
        let made = self.schedule.messages_from(op);
        let buffers = made.map(|made| made.and_then(|(message, to)| self.make_room(message, to == rank)));
        self.program.instructions.push(Instruction::Run(task));
        for (made, buffer) in made.into_iter().zip(buffers) {
            if let (Some((message, to)), Some(buffer)) = (made, buffer) {
                if to != rank {
                    self.program.instructions.push(Instruction::Send { message, to, buffer });
                    sent(message, to);
                }
            }
        }
        self.free_what_was_read(op);
    }

    /// Gives `message` a buffer before it is made: a new one, or the one that was sent longest ago. Within a rank it
    /// is where the other stage reads it, too.
    fn make_room(&mut self, message: Message, is_local: bool) -> Option<BufferId> {
        let (copy, index) = self.program.locate(message.pass)?;
        let kind = message.kind as usize;
        if is_local {
            let reader = Pass { stage: message.to_stage(), ..message.pass };
            let (reader_copy, reader_index) = self.program.locate(reader)?;
            let reused = self.boundaries[reader_copy].free[kind].pop();
            let buffer = reused.unwrap_or_else(|| self.new_buffer(message));
            self.program.pass_buffers[index].set_made(message.kind, buffer);
            self.program.pass_buffers[reader_index].set_read(message.kind, buffer);
            return Some(buffer);
        }
        let in_flight = &mut self.boundaries[copy].in_flight[kind];
        let oldest = if in_flight.len() < SENDS_IN_FLIGHT { None } else { in_flight.pop_front() };
        self.program.instructions.extend(oldest.map(Instruction::Free));
        let buffer = oldest.unwrap_or_else(|| self.new_buffer(message));
        self.boundaries[copy].in_flight[kind].push_back(buffer);
        self.program.pass_buffers[index].set_made(message.kind, buffer);
        Some(buffer)
    }

    fn new_buffer(&mut self, message: Message) -> BufferId {
        let boundary = message.boundary();
        self.program.buffers.push(Buffer { kind: message.kind, boundary });
        BufferId::new(self.program.buffers.len() - 1)
    }

    /// Frees what no later task of the pass reads.
    fn free_what_was_read(&mut self, op: Op) {
        let last_read = match self.schedule.work() {
            Work::Training => op.backward_weight(),
            Work::ForwardOnly => op.forward(),
        };
        let Some((copy, index)) = last_read.and_then(|pass| self.program.locate(pass)) else { return };
        let PassBuffers { input, output_grad, .. } = self.program.pass_buffers[index];
        for (buffer, kind) in [(input, MessageKind::Activation), (output_grad, MessageKind::Gradient)] {
            if let Some(buffer) = buffer {
                self.program.instructions.push(Instruction::Free(buffer));
                self.boundaries[copy].free[kind as usize].push(buffer);
            }
        }
    }

    /// Waits for the last sends.
    fn finish(mut self) -> Program {
        for boundaries in &mut self.boundaries {
            let last = boundaries.in_flight.iter_mut().flat_map(|in_flight| in_flight.drain(..));
            self.program.instructions.extend(last.map(Instruction::Free));
        }
        self.program
    }
}

/// Its tasks, and for each pass to receive, send and free an activation and a gradient.
fn most_instructions(schedule: &Schedule, rank: Rank) -> usize {
    let copies = schedule.placement().copies_on(rank).iter();
    let passes: usize = copies.map(|copy| schedule.microbatches_in(copy.direction)).sum();
    let messages = if schedule.work() == Work::Training { 2 } else { 1 };
    schedule.order(rank).len() + 2 + 4 * messages * passes
}

impl PassBuffers {
    /// The buffer of a message that the pass makes.
    fn set_made(&mut self, kind: MessageKind, buffer: BufferId) {
        match kind {
            MessageKind::Activation => self.output = Some(buffer),
            MessageKind::Gradient => self.input_grad = Some(buffer),
        }
    }

    /// The buffer of a message that the pass reads.
    fn set_read(&mut self, kind: MessageKind, buffer: BufferId) {
        match kind {
            MessageKind::Activation => self.input = Some(buffer),
            MessageKind::Gradient => self.output_grad = Some(buffer),
        }
    }
}
