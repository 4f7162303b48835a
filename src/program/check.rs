//! Whether the programs of all ranks can run together.

use std::collections::VecDeque;

use super::{BufferId, Instruction, PassBuffers, Program};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::op::{Message, Op, StageCopy, Task};
use crate::schedule::Schedule;

/// Proves that `programs`, one per rank, do `schedule` and can run together, or says why not: rank, instruction,
/// reason.
///
/// - Each has the tasks of its rank in order, and REDUCE_GRADS in the right places.
/// - Every receive meets exactly one send of the same message, between the two ranks that they name.
/// - Every buffer is filled before it is read or sent, free before it is filled, and freed in the end.
/// - No rank waits for ever, even if it blocks before each task until all that it received and sent since the task
///   before has been taken up by the peers (blocking grouped exchanges); nor, as each wait there is then at most
///   shorter, with asynchronous sends.
///
/// Time: proportional to the number of instructions.
///
/// # Errors
/// [`ErrorKind::InvalidSchedule`].
pub fn check(schedule: &Schedule, programs: &[Program]) -> Result<()> {
    if programs.len() != schedule.num_ranks() {
        let range = format!("must be {}, one per rank", schedule.num_ranks());
        return Err(Error::argument("program", "the number of programs", programs.len(), range));
    }
    let mut matched = vec![0; 2 * schedule.num_passes()];
    let mut exchanges = Vec::with_capacity(programs.len());
    for (rank, program) in programs.iter().enumerate() {
        if program.rank.index() != rank {
            return Err(Error::argument(
                "program",
                format!("programs[{rank}].rank"),
                program.rank,
                "must be its place",
            ));
        }
        exchanges.push(Reader::new(schedule, program).read(&mut matched)?);
    }
    every_message_is_sent_and_received(programs, &exchanges, &matched)?;
    no_deadlock(schedule, programs, &exchanges)
}

const SENT: u8 = 1;
const RECEIVED: u8 = 2;

/// What a rank does with others, in order. Small, because there are many.
#[derive(Clone, Copy)]
struct Exchange {
    /// Where it stands in the program.
    position: u32,
    /// The number of the message or the copy.
    index: u32,
    /// The other rank, below [`RANKS_MAX`](crate::placement::RANKS_MAX).
    peer: u16,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Send,
    Receive,
    /// A task without exchange: the end of a group.
    Task,
    /// The reduction of a copy's gradients together with its twin's.
    Reduce,
}

impl Exchange {
    fn peer(self) -> Rank {
        Rank(self.peer.into())
    }

    /// Which side of a message it is; 0 for a task.
    fn side(self) -> u8 {
        match self.what {
            What::Send => SENT,
            What::Receive => RECEIVED,
            What::Task | What::Reduce => 0,
        }
    }
}

#[cold]
fn invalid(program: &Program, position: usize, why: impl std::fmt::Display) -> Error {
    let instruction = program.instructions.get(position).map_or("end".to_string(), Instruction::to_string);
    let rank = program.rank;
    Error::new(
        ErrorKind::InvalidSchedule,
        format!("{}: rank {rank}, instruction {position} ({instruction}): {why}", program.title),
    )
}

/// Reads one rank's program.
struct Reader<'a> {
    schedule: &'a Schedule,
    program: &'a Program,
    is_full: Vec<bool>,
    exchanges: Vec<Exchange>,
}

impl<'a> Reader<'a> {
    fn new(schedule: &'a Schedule, program: &'a Program) -> Reader<'a> {
        let is_free = |instruction: &&Instruction| matches!(instruction, Instruction::Free(_));
        let frees = program.instructions.iter().filter(is_free).count();
        let exchanges = Vec::with_capacity(program.instructions.len() - frees);
        Reader { schedule, program, is_full: vec![false; program.buffers.len()], exchanges }
    }

    /// Checks all that one program can tell, and marks the messages that it sends and receives.
    fn read(mut self, matched: &mut [u8]) -> Result<Vec<Exchange>> {
        let tasks = self.schedule.tasks(self.program.rank);
        let mut tasks = tasks.into_iter();
        for (position, &instruction) in self.program.instructions.iter().enumerate() {
            let read = match instruction {
                Instruction::Receive { message, from, buffer } => set(&mut self.is_full, buffer, true)
                    .and_then(|()| self.exchange(position, message, from, What::Receive, matched)),
                Instruction::Send { message, to, buffer } => expect(&self.is_full, buffer, true)
                    .and_then(|()| self.exchange(position, message, to, What::Send, matched)),
                Instruction::Free(buffer) => set(&mut self.is_full, buffer, false),
                Instruction::Run(task) => match tasks.next() {
                    Some(wanted) if wanted == task => self.run(position, task),
                    Some(wanted) => Err(format!("the schedule has {wanted} here")),
                    None => Err("the schedule has ended".to_string()),
                },
            };
            read.map_err(|why| invalid(self.program, position, why))?;
        }
        let end = self.program.instructions.len();
        if let Some(missing) = tasks.next() {
            return Err(invalid(self.program, end, format!("{missing} is missing")));
        }
        if let Some(i) = self.is_full.iter().position(|&is_full| is_full) {
            return Err(invalid(self.program, end, format!("{} was not freed", BufferId::new(i))));
        }
        Ok(self.exchanges)
    }

    fn run(&mut self, position: usize, task: Task) -> std::result::Result<(), String> {
        let op = match task {
            Task::Op(op) => op,
            Task::ReduceGrads(copy) => {
                let index = self.schedule.placement().copy_index(copy);
                let twin = self.schedule.twin(copy).filter(|&(_, peer)| peer != self.program.rank);
                if let (Some((_, peer)), Some(index)) = (twin, index) {
                    self.push(position, index, peer, What::Reduce);
                }
                return Ok(());
            }
        };
        self.push(position, 0, self.program.rank, What::Task);
        let (read, written) = self.program.reads_and_writes(op);
        for buffer in read.into_iter().flatten() {
            expect(&self.is_full, buffer, true)?;
        }
        for buffer in written.into_iter().flatten() {
            set(&mut self.is_full, buffer, true)?;
        }
        Ok(())
    }

    fn push(&mut self, position: usize, index: usize, peer: Rank, what: What) {
        let (position, index, peer) = (position as u32, index as u32, peer.0 as u16);
        self.exchanges.push(Exchange { position, index, peer, what });
    }

    fn exchange(
        &mut self,
        position: usize,
        message: Message,
        peer: Rank,
        what: What,
        matched: &mut [u8],
    ) -> std::result::Result<(), String> {
        let index = self.schedule.pass_index(message.pass).ok_or("the schedule has no such message")?;
        let index = message.kind as usize * self.schedule.num_passes() + index;
        let placement = self.schedule.placement();
        let reader = StageCopy { stage: message.to_stage(), ..message.pass.copy() };
        let (maker, reader) = (placement.rank_of(message.pass.copy()), placement.rank_of(reader));
        let (own, other) = if what == What::Send { (maker, reader) } else { (reader, maker) };
        if own != Some(self.program.rank) || other != Some(peer) {
            return Err("the placement gives the message other ranks".to_string());
        }
        let side = if what == What::Send { SENT } else { RECEIVED };
        if matched[index] & side != 0 {
            return Err("the same message a second time".to_string());
        }
        matched[index] |= side;
        self.push(position, index, peer, what);
        Ok(())
    }
}

#[inline]
fn expect(is_full: &[bool], buffer: BufferId, wanted: bool) -> std::result::Result<(), String> {
    match is_full.get(buffer.index()) {
        Some(&is_full) if is_full == wanted => Ok(()),
        found => Err(not_as_expected(buffer, found.copied())),
    }
}

#[cold]
fn not_as_expected(buffer: BufferId, is_full: Option<bool>) -> String {
    match is_full {
        Some(true) => format!("{buffer} is still in use"),
        Some(false) => format!("{buffer} is empty"),
        None => format!("there is no {buffer}"),
    }
}

#[inline]
fn set(is_full: &mut [bool], buffer: BufferId, full: bool) -> std::result::Result<(), String> {
    expect(is_full, buffer, !full)?;
    is_full[buffer.index()] = full;
    Ok(())
}

impl Program {
    /// The buffers that an op reads and those that it writes.
    pub(crate) fn reads_and_writes(&self, op: Op) -> ([Option<BufferId>; 3], [Option<BufferId>; 2]) {
        let none = PassBuffers::default();
        let (f, b, makes_grad) = match op {
            Op::F(f) => (self.pass_buffers(f), none, false),
            Op::B(b) | Op::I(b) => (none, self.pass_buffers(b), true),
            Op::W(b) => (none, self.pass_buffers(b), false),
            Op::FB(f, b) => (self.pass_buffers(f), self.pass_buffers(b), true),
        };
        ([f.input, b.input, b.output_grad], [f.output, b.input_grad.filter(|_| makes_grad)])
    }
}

fn every_message_is_sent_and_received(
    programs: &[Program],
    exchanges: &[Vec<Exchange>],
    matched: &[u8],
) -> Result<()> {
    let Some(message) = matched.iter().position(|&sides| sides == SENT || sides == RECEIVED) else {
        return Ok(());
    };
    let is_it = |e: &&Exchange| e.side() != 0 && e.index as usize == message;
    for (program, exchanges) in programs.iter().zip(exchanges) {
        if let Some(exchange) = exchanges.iter().find(is_it) {
            let why = if matched[message] == SENT { "nobody receives it" } else { "nobody sends it" };
            return Err(invalid(program, exchange.position as usize, why));
        }
    }
    Ok(())
}

/// Plays the programs with blocking grouped exchanges.
fn no_deadlock(schedule: &Schedule, programs: &[Program], exchanges: &[Vec<Exchange>]) -> Result<()> {
    let mut groups = Groups {
        entered: vec![0; 2 * schedule.num_passes()],
        reductions: vec![false; schedule.placement().num_copies()],
        at: vec![(0, 0); programs.len()],
        waits: vec![true; programs.len()],
        queue: programs.iter().map(|program| program.rank).collect(),
    };
    while let Some(rank) = groups.queue.pop_front() {
        groups.waits[rank.index()] = false;
        groups.advance(rank, &exchanges[rank.index()]);
        groups.waits[rank.index()] = true;
    }
    for ((program, exchanges), (start, _)) in programs.iter().zip(exchanges).zip(groups.at) {
        if let Some(exchange) = exchanges.get(start) {
            let why = "waits for ever: deadlock with blocking grouped exchanges";
            return Err(invalid(program, exchange.position as usize, why));
        }
    }
    Ok(())
}

/// Where every rank is.
struct Groups {
    /// Of each message the sides that are in a group that their rank has entered.
    entered: Vec<u8>,
    /// The copies whose rank has come to their reduction.
    reductions: Vec<bool>,
    /// Of each rank the rest of its group: the exchanges from the first unmatched to the end.
    at: Vec<(usize, usize)>,
    waits: Vec<bool>,
    queue: VecDeque<Rank>,
}

impl Groups {
    fn advance(&mut self, rank: Rank, exchanges: &[Exchange]) {
        let (mut start, mut end) = self.at[rank.index()];
        loop {
            if start == end {
                // Enter the next group: all messages up to the next task.
                while let Some(exchange) = exchanges.get(end).filter(|e| e.side() != 0) {
                    let entered = &mut self.entered[exchange.index as usize];
                    *entered |= exchange.side();
                    if *entered == SENT | RECEIVED {
                        self.wake(exchange.peer());
                    }
                    end += 1;
                }
            }
            while start < end {
                if self.entered[exchanges[start].index as usize] != SENT | RECEIVED {
                    self.at[rank.index()] = (start, end);
                    return;
                }
                start += 1;
            }
            match exchanges.get(start) {
                Some(reduction) if reduction.what == What::Reduce => {
                    if !std::mem::replace(&mut self.reductions[reduction.index as usize], true) {
                        self.wake(reduction.peer());
                    }
                    let twin = twin_index(reduction.index as usize, self.reductions.len());
                    if !self.reductions[twin] {
                        break;
                    }
                }
                Some(_) => {}
                None => break,
            }
            start += 1;
            end = start;
        }
        self.at[rank.index()] = (start, end);
    }

    fn wake(&mut self, rank: Rank) {
        if std::mem::replace(&mut self.waits[rank.index()], false) {
            self.queue.push_back(rank);
        }
    }
}

/// The other direction's copy of the same stage: all of one direction come before all of the other.
fn twin_index(copy: usize, num_copies: usize) -> usize {
    (copy + num_copies / 2) % num_copies
}
