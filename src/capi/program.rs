//! Programs: one rank's part of a schedule, with receives, sends and frees.
//!
//! A program never changes. Give it to an executor; or read its instructions and run them with a runtime of your own:
//! they say everything, also which buffer holds what, so that a runtime has no decision to take. Buffers are counted,
//! not allocated: there are as many as the schedule needs at once, whatever the number of micro-batches.

use std::sync::Arc;

use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::op::{dualpipe_message, dualpipe_message_kind, dualpipe_op, DUALPIPE_NONE};
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Pass, StageCopy};
use crate::program::{BufferId, Instruction, Program};

use dualpipe_instruction_kind::*;

/// What a dualpipe_program_t points to: nothing that C could look into.
pub struct dualpipe_program(());

/// What one rank does in a step, in order. It never changes: any number of threads may use it at once. It stays usable
/// after a fork. Free it with dualpipe_program_free.
pub type dualpipe_program_t = *mut dualpipe_program;

/// What an instruction does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_instruction_kind {
    /// Post the receive of a message into a buffer. It does not wait.
    DUALPIPE_INSTRUCTION_RECEIVE = 1,
    /// Wait until what the op reads has been received, then run it.
    DUALPIPE_INSTRUCTION_RUN = 2,
    /// Start to send a message from a buffer. It does not wait.
    DUALPIPE_INSTRUCTION_SEND = 3,
    /// The buffer is not needed any more; if it is being sent, wait until it has been.
    DUALPIPE_INSTRUCTION_FREE = 4,
}

/// One instruction. What its kind does not have is DUALPIPE_NONE, in every field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_instruction {
    /// A dualpipe_instruction_kind.
    pub kind: u32,
    /// RECEIVE, SEND: the other rank.
    pub peer: u32,
    /// RECEIVE, SEND, FREE: an index into the program's buffers.
    pub buffer: u32,
    /// RECEIVE, SEND: what travels.
    pub message: dualpipe_message,
    /// RUN: what runs.
    pub op: dualpipe_op,
}

/// A place for what one message carries, used again and again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_program_buffer {
    /// A dualpipe_message_kind.
    pub kind: u32,
    /// The direction of what it holds.
    pub direction: u32,
    /// It holds outputs of this stage, or gradients for them.
    pub stage: u32,
}

/// Where the ops of a pass find what they read and write: indices into the program's buffers, DUALPIPE_NONE at the
/// ends of the model.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_pass_buffers {
    /// The activation from the previous stage: read by F, B, I and W.
    pub input: u32,
    /// The activation for the next stage: written by F.
    pub output: u32,
    /// The gradient from the next stage: read by B, I and W.
    pub output_grad: u32,
    /// The gradient for the previous stage: written by B and I.
    pub input_grad: u32,
}

/// Creates the program of `rank`, 0 to num_ranks - 1. All ranks' programs are made and checked together, the first
/// time that one is asked for: they are complete, and deadlock neither with asynchronous nor with blocking exchanges.
///
/// Errors: DUALPIPE_ERROR_INVALID_SCHEDULE. Time: proportional to the ops of all ranks, the first time.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_create(
    schedule: dualpipe_schedule_t,
    rank: u32,
    program: *mut dualpipe_program_t,
) -> dualpipe_status {
    call("dualpipe_program_create", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        let rank = object.rank(rank)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("program", program) }?;
        let program = Arc::clone(&object.programs()?[rank.index()]);
        out.write(handle::insert(ProgramObject(program))?);
        Ok(())
    })
}

/// Frees a program. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_free(program: dualpipe_program_t) -> dualpipe_status {
    call("dualpipe_program_free", || handle::free::<ProgramObject>("program", program))
}

/// The instructions of a program, in order. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_instructions(
    program: dualpipe_program_t,
    instructions: *mut dualpipe_instruction,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_program_instructions", || {
        let object = handle::get::<ProgramObject>("program", program)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("instructions", instructions, capacity, "count", count) }?;
        let program = object.program();
        let convert = |&instruction| dualpipe_instruction::new(program, instruction);
        out.fill(program.instructions().len(), program.instructions().iter().map(convert))
    })
}

/// The message buffers that a program needs, by their index. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_buffers(
    program: dualpipe_program_t,
    buffers: *mut dualpipe_program_buffer,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_program_buffers", || {
        let object = handle::get::<ProgramObject>("program", program)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("buffers", buffers, capacity, "count", count) }?;
        let buffers = object.program().buffers();
        let convert = |buffer: &crate::program::Buffer| dualpipe_program_buffer {
            kind: dualpipe_message_kind::from(buffer.kind) as u32,
            direction: buffer.boundary.direction as u32,
            stage: buffer.boundary.stage.0.into(),
        };
        out.fill(buffers.len(), buffers.iter().map(convert))
    })
}

/// The buffers of one pass of the program's rank. `microbatch` counts within its direction.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT if the rank does not hold this stage in this direction.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_program_pass_buffers(
    program: dualpipe_program_t,
    direction: u32,
    stage: u32,
    microbatch: u32,
    buffers: *mut dualpipe_pass_buffers,
) -> dualpipe_status {
    call("dualpipe_program_pass_buffers", || {
        let object = handle::get::<ProgramObject>("program", program)?;
        let pass = object.pass(direction, stage, microbatch)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("buffers", buffers) }?;
        let buffers = object.program().pass_buffers(pass);
        out.write(dualpipe_pass_buffers {
            input: index_or_none(buffers.input),
            output: index_or_none(buffers.output),
            output_grad: index_or_none(buffers.output_grad),
            input_grad: index_or_none(buffers.input_grad),
        });
        Ok(())
    })
}

fn index_or_none(buffer: Option<BufferId>) -> u32 {
    buffer.map_or(DUALPIPE_NONE, |buffer| buffer.index() as u32)
}

impl dualpipe_instruction {
    fn new(program: &Program, instruction: Instruction) -> dualpipe_instruction {
        let placement = program.placement();
        let none = dualpipe_instruction {
            kind: DUALPIPE_NONE,
            peer: DUALPIPE_NONE,
            buffer: DUALPIPE_NONE,
            message: dualpipe_message::NONE,
            op: dualpipe_op::NONE,
        };
        let travel = |kind: dualpipe_instruction_kind, message, peer: Rank, buffer| dualpipe_instruction {
            kind: kind as u32,
            peer: peer.0,
            buffer: index_or_none(Some(buffer)),
            message: dualpipe_message::new(placement, message),
            ..none
        };
        match instruction {
            Instruction::Receive { message, from, buffer } => {
                travel(DUALPIPE_INSTRUCTION_RECEIVE, message, from, buffer)
            }
            Instruction::Send { message, to, buffer } => {
                travel(DUALPIPE_INSTRUCTION_SEND, message, to, buffer)
            }
            Instruction::Run(task) => dualpipe_instruction {
                kind: DUALPIPE_INSTRUCTION_RUN as u32,
                op: dualpipe_op::new(placement, task),
                ..none
            },
            Instruction::Free(buffer) => dualpipe_instruction {
                kind: DUALPIPE_INSTRUCTION_FREE as u32,
                buffer: index_or_none(Some(buffer)),
                ..none
            },
        }
    }
}

/// A program that C has a handle of: one of its schedule's.
pub(crate) struct ProgramObject(Arc<Program>);

impl Object for ProgramObject {
    type Opaque = dualpipe_program;
    const KIND: Kind = Kind::Program;
}

impl ProgramObject {
    /// The program.
    pub(crate) fn program(&self) -> &Arc<Program> {
        &self.0
    }

    /// The pass that C calls `direction`, `stage`, `microbatch`, if it is this rank's.
    fn pass(&self, direction: u32, stage: u32, microbatch: u32) -> Outcome<Pass> {
        let (program, placement) = (&self.0, self.0.placement());
        let direction = args::index("direction", direction, placement.num_directions())?;
        let stage = args::index("stage", stage, placement.num_stages())?;
        let copy = StageCopy { direction: Direction::ALL[direction], stage: Stage(stage as u16) };
        let holder = placement.rank_of(copy).filter(|&holder| holder != program.rank());
        if let Some(holder) = holder {
            let how =
                format!("is {stage}, which rank {holder} holds; the program is of rank {}", program.rank());
            return Err(Failure::argument("stage", how));
        }
        let microbatch = args::index("microbatch", microbatch, program.microbatches()[direction].max(1))?;
        Ok(Pass { direction: copy.direction, stage: copy.stage, microbatch: Microbatch(microbatch as u32) })
    }
}
