//! Whether the programs of all ranks can run together.

use std::collections::VecDeque;

use super::{BufferId, Instruction, Program};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::op::{Message, Op, Task};
use crate::schedule::{Schedule, Work};

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
    for (rank, program) in programs.iter().enumerate() {
        if program.rank.index() != rank {
            return Err(Error::argument(
                "program",
                format!("programs[{rank}].rank"),
                program.rank,
                "must be its place",
            ));
        }
        tasks_are_the_schedules(schedule, program)?;
        Buffers::new(program).check()?;
    }
    let pairs = Pairs::find(schedule, programs)?;
    no_deadlock(schedule, programs, &pairs)
}

fn invalid(program: &Program, position: usize, why: impl std::fmt::Display) -> Error {
    let instruction = program.instructions.get(position).map_or("end".to_string(), Instruction::to_string);
    let rank = program.rank;
    Error::new(
        ErrorKind::InvalidSchedule,
        format!("{}: rank {rank}, instruction {position} ({instruction}): {why}", program.title),
    )
}

fn tasks_are_the_schedules(schedule: &Schedule, program: &Program) -> Result<()> {
    let mut tasks = schedule.tasks(program.rank).into_iter();
    for (position, instruction) in program.instructions.iter().enumerate() {
        let Instruction::Run(task) = instruction else { continue };
        match tasks.next() {
            Some(wanted) if wanted == *task => {}
            Some(wanted) => {
                return Err(invalid(program, position, format!("the schedule has {wanted} here")))
            }
            None => return Err(invalid(program, position, "the schedule has ended")),
        }
    }
    match tasks.next() {
        None => Ok(()),
        Some(missing) => Err(invalid(program, program.instructions.len(), format!("{missing} is missing"))),
    }
}

/// What is in the buffers of one rank.
struct Buffers<'a> {
    program: &'a Program,
    is_full: Vec<bool>,
}

impl<'a> Buffers<'a> {
    fn new(program: &'a Program) -> Buffers<'a> {
        Buffers { program, is_full: vec![false; program.buffers.len()] }
    }

    fn check(mut self) -> Result<()> {
        for (position, instruction) in self.program.instructions.iter().enumerate() {
            let wrong = |why: String| invalid(self.program, position, why);
            match *instruction {
                Instruction::Receive { buffer, .. } => set(&mut self.is_full, buffer, true).map_err(wrong)?,
                Instruction::Send { buffer, .. } => expect(&self.is_full, buffer, true).map_err(wrong)?,
                Instruction::Free(buffer) => set(&mut self.is_full, buffer, false).map_err(wrong)?,
                Instruction::Run(Task::ReduceGrads(_)) => {}
                Instruction::Run(Task::Op(op)) => {
                    let (read, written) = self.program.reads_and_writes(op);
                    for buffer in read.into_iter().flatten() {
                        expect(&self.is_full, buffer, true).map_err(wrong)?;
                    }
                    for buffer in written.into_iter().flatten() {
                        set(&mut self.is_full, buffer, true).map_err(wrong)?;
                    }
                }
            }
        }
        match self.is_full.iter().position(|&is_full| is_full) {
            None => Ok(()),
            Some(i) => {
                let end = self.program.instructions.len();
                Err(invalid(self.program, end, format!("{} was not freed", BufferId::new(i))))
            }
        }
    }
}

fn expect(is_full: &[bool], buffer: BufferId, wanted: bool) -> std::result::Result<(), String> {
    match is_full.get(buffer.index()) {
        Some(&is_full) if is_full == wanted => Ok(()),
        Some(true) => Err(format!("{buffer} is still in use")),
        Some(false) => Err(format!("{buffer} is empty")),
        None => Err(format!("there is no {buffer}")),
    }
}

fn set(is_full: &mut [bool], buffer: BufferId, full: bool) -> std::result::Result<(), String> {
    expect(is_full, buffer, !full)?;
    is_full[buffer.index()] = full;
    Ok(())
}

impl Program {
    /// The buffers that an op reads and those that it writes.
    pub(crate) fn reads_and_writes(&self, op: Op) -> ([Option<BufferId>; 3], [Option<BufferId>; 2]) {
        let forward = op.forward().map(|pass| self.pass_buffers(pass)).unwrap_or_default();
        let input_grad = op.backward_input().and_then(|pass| self.pass_buffers(pass).input_grad);
        let backward = op.backward_input().or(op.backward_weight());
        let backward = backward.map(|pass| self.pass_buffers(pass)).unwrap_or_default();
        ([forward.input, backward.input, backward.output_grad], [forward.output, input_grad])
    }
}

/// Which messages are sent and received.
struct Pairs {
    num_passes: usize,
}

impl Pairs {
    /// Fails unless every receive has its send and every send its receive.
    fn find(schedule: &Schedule, programs: &[Program]) -> Result<Pairs> {
        let pairs = Pairs { num_passes: schedule.num_passes() };
        let mut sent = vec![None; 2 * pairs.num_passes];
        let mut received = vec![None; 2 * pairs.num_passes];
        for program in programs {
            for (position, instruction) in program.instructions.iter().enumerate() {
                let (table, message, peers) = match *instruction {
                    Instruction::Send { message, to, .. } => (&mut sent, message, (program.rank, to)),
                    Instruction::Receive { message, from, .. } => {
                        (&mut received, message, (from, program.rank))
                    }
                    _ => continue,
                };
                let index = pairs.index(schedule, message);
                let index =
                    index.ok_or_else(|| invalid(program, position, "the schedule has no such message"))?;
                if table[index].replace((peers, program.rank, position)).is_some() {
                    return Err(invalid(program, position, "the same message a second time"));
                }
            }
        }
        for (sent, received) in sent.iter().zip(&received) {
            let (one, why) = match (sent, received) {
                (None, None) => continue,
                (Some(s), Some(r)) if s.0 == r.0 => continue,
                (Some(_), Some(r)) => (r, "the send names other ranks"),
                (Some(s), None) => (s, "nobody receives it"),
                (None, Some(r)) => (r, "nobody sends it"),
            };
            return Err(invalid(&programs[one.1.index()], one.2, why));
        }
        Ok(pairs)
    }

    fn index(&self, schedule: &Schedule, message: Message) -> Option<usize> {
        Some(message.kind as usize * self.num_passes + schedule.pass_index(message.pass)?)
    }
}

/// Plays the programs with blocking grouped exchanges.
fn no_deadlock(schedule: &Schedule, programs: &[Program], pairs: &Pairs) -> Result<()> {
    // Of each message 1 when its sender and 2 when its receiver has entered its group; of each copy, its reduction.
    let mut entered = vec![0u8; 2 * pairs.num_passes];
    let mut reductions = vec![false; schedule.placement().num_copies()];
    let mut groups = vec![(0, 0); programs.len()];
    let mut queue: VecDeque<Rank> = programs.iter().map(|program| program.rank).collect();
    let mut is_queued = vec![true; programs.len()];
    while let Some(rank) = queue.pop_front() {
        is_queued[rank.index()] = false;
        let program = &programs[rank.index()];
        let (start, end) = &mut groups[rank.index()];
        let mut wake = |peer: Rank| {
            if !std::mem::replace(&mut is_queued[peer.index()], true) {
                queue.push_back(peer);
            }
        };
        loop {
            if *start == *end {
                // Enter the next group: all exchanges up to the next task.
                while let Some((mark, message, peer)) = program.exchange_at(*end) {
                    if let (Some(message), Some(peer)) = (message, peer) {
                        pairs.index(schedule, message).into_iter().for_each(|i| entered[i] |= mark);
                        wake(peer);
                    }
                    *end += 1;
                }
            }
            let is_matched = |&position: &usize| match program.exchange_at(position) {
                Some((_, Some(message), _)) => {
                    pairs.index(schedule, message).is_some_and(|index| entered[index] == 3)
                }
                _ => true,
            };
            *start += (*start..*end).take_while(is_matched).count();
            if *start < *end {
                break;
            }
            match program.instructions.get(*start) {
                None => break,
                Some(Instruction::Run(Task::ReduceGrads(copy))) if schedule.work() == Work::Training => {
                    let index = |copy| schedule.placement().copy_index(copy);
                    let is_new = index(*copy).is_some_and(|i| !std::mem::replace(&mut reductions[i], true));
                    if let Some((twin, peer)) = schedule.twin(*copy) {
                        if is_new {
                            wake(peer);
                        }
                        if !index(twin).is_some_and(|i| reductions[i]) {
                            break;
                        }
                    }
                }
                Some(_) => {}
            }
            *start += 1;
            *end = *start;
        }
    }
    let stuck = programs.iter().zip(&groups).find(|(program, group)| group.0 < program.instructions.len());
    match stuck {
        None => Ok(()),
        Some((program, group)) => {
            Err(invalid(program, group.0, "waits for ever: deadlock with blocking grouped exchanges"))
        }
    }
}

impl Program {
    /// The part of a group that stands at `position`; `None` if a task stands there, or nothing.
    fn exchange_at(&self, position: usize) -> Option<(u8, Option<Message>, Option<Rank>)> {
        match *self.instructions.get(position)? {
            Instruction::Send { message, to, .. } => Some((1, Some(message), Some(to))),
            Instruction::Receive { message, from, .. } => Some((2, Some(message), Some(from))),
            Instruction::Free(_) => Some((0, None, None)),
            Instruction::Run(_) => None,
        }
    }
}
