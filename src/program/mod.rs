//! A schedule made executable: for each rank its tasks, with receives, sends and frees put between them.

mod check;
mod lower;

pub use check::check;
pub use lower::{lower, SENDS_IN_FLIGHT};

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::ids::Rank;
use crate::op::{Message, MessageKind, Pass, StageCopy, Task};
use crate::placement::Placement;
use crate::schedule::Work;

/// One instruction of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Post the receive of a message into a buffer. It does not wait.
    Receive {
        /// What is to come.
        message: Message,
        /// The sender.
        from: Rank,
        /// Where it goes.
        buffer: BufferId,
    },
    /// Wait until what the task reads has been received, then run it.
    Run(Task),
    /// Start to send a message. It does not wait.
    Send {
        /// What goes.
        message: Message,
        /// The receiver.
        to: Rank,
        /// Where it is.
        buffer: BufferId,
    },
    /// The buffer is not needed any more; if it is being sent, wait until it has been.
    Free(BufferId),
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instruction::Receive { message, from, buffer } => {
                write!(f, "RECEIVE {message} from rank {from} into {buffer}")
            }
            Instruction::Run(task) => write!(f, "RUN {task}"),
            Instruction::Send { message, to, buffer } => {
                write!(f, "SEND {message} to rank {to} from {buffer}")
            }
            Instruction::Free(buffer) => write!(f, "FREE {buffer}"),
        }
    }
}

/// A place for what one message carries, on one rank; used again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(NonZeroU32);

impl BufferId {
    /// The buffer at `index` of [`Program::buffers`].
    pub fn new(index: usize) -> BufferId {
        // The passes of a schedule are limited to 2^22, so that this neither wraps nor is 0.
        BufferId(NonZeroU32::MIN.saturating_add(index as u32))
    }

    /// The index into [`Program::buffers`].
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for BufferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer {}", self.index())
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Activation or gradient.
    pub kind: MessageKind,
    /// The copy after which the boundary lies: its outputs, or the gradients for them.
    pub boundary: StageCopy,
}

/// Where the tasks of a pass find what they read and write. `None` at the ends of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassBuffers {
    /// The activation from the previous stage: read by F, B, I and W.
    pub input: Option<BufferId>,
    /// The activation for the next stage: written by F.
    pub output: Option<BufferId>,
    /// The gradient from the next stage: read by B, I and W.
    pub output_grad: Option<BufferId>,
    /// The gradient for the previous stage: written by B and I.
    pub input_grad: Option<BufferId>,
}

/// What one rank does in a step, in order.
///
/// Immutable; share it among threads freely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    rank: Rank,
    /// One for all ranks: of their size each, copies would be as many as ranks times stages.
    placement: Arc<Placement>,
    work: Work,
    title: String,
    microbatches: [usize; 2],
    instructions: Vec<Instruction>,
    buffers: Vec<Buffer>,
    /// `pass_buffers[local copy * microbatches[0] + micro-batch]`.
    pass_buffers: Vec<PassBuffers>,
}

impl Program {
    /// Whose it is.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Who holds which stage.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Training or forward only.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Name and sizes of the schedule it was lowered from.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Micro-batches of each direction.
    pub fn microbatches(&self) -> [usize; 2] {
        self.microbatches
    }

    /// What to do, in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The buffers that it needs.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The buffers of a pass of this rank; none for a pass that is not.
    pub fn pass_buffers(&self, pass: Pass) -> PassBuffers {
        self.pass_index(pass).map_or_else(PassBuffers::default, |index| self.pass_buffers[index])
    }

    /// The same program with other instructions, which only [`check()`] can tell whether they can run.
    pub fn with_instructions(&self, instructions: Vec<Instruction>) -> Program {
        Program { instructions, ..self.clone() }
    }

    fn pass_index(&self, pass: Pass) -> Option<usize> {
        Some(self.locate(pass)?.1)
    }

    /// Which of the rank's copies a pass uses, and its place in the table of passes.
    fn locate(&self, pass: Pass) -> Option<(usize, usize)> {
        let (holder, copy) = self.placement.locate(pass.copy())?;
        let is_ours =
            holder == self.rank && pass.microbatch.index() < self.microbatches[pass.direction.index()];
        is_ours.then(|| (copy, copy * self.microbatches[0] + pass.microbatch.index()))
    }
}
