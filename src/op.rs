//! The words of a schedule: passes, ops, tasks and messages, each with a one-token name.
//!
//! A token is `STAGE KIND MICROBATCH` as in PyTorch's schedules (`2F0`), with a small kind letter in direction 1
//! (`2f0`); an overlapped pair is `2F3&5b1`.

use std::fmt;

use crate::ids::{Direction, Microbatch, Rank, Stage};

/// A parameter copy: one stage in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageCopy {
    /// The direction whose micro-batches this copy serves.
    pub direction: Direction,
    /// The stage.
    pub stage: Stage,
}

/// One micro-batch at one stage: what an F, B, I or W works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// Where the micro-batch entered.
    pub direction: Direction,
    /// The stage it is at.
    pub stage: Stage,
    /// Its number within the direction.
    pub microbatch: Microbatch,
}

impl Pass {
    /// The parameter copy that the pass uses.
    pub fn copy(self) -> StageCopy {
        StageCopy { direction: self.direction, stage: self.stage }
    }
}

/// One compute step of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Forward.
    F(Pass),
    /// Full backward: for the input and for the weights.
    B(Pass),
    /// Backward for the input.
    I(Pass),
    /// Backward for the weights.
    W(Pass),
    /// A forward and a full backward of two micro-batches, run as an overlapped pair.
    FB(Pass, Pass),
}

impl Op {
    /// The pass that this op runs forward.
    pub fn forward(self) -> Option<Pass> {
        match self {
            Op::F(f) | Op::FB(f, _) => Some(f),
            Op::B(_) | Op::I(_) | Op::W(_) => None,
        }
    }

    /// The pass whose input gradient this op computes.
    pub fn backward_input(self) -> Option<Pass> {
        match self {
            Op::B(b) | Op::I(b) | Op::FB(_, b) => Some(b),
            Op::F(_) | Op::W(_) => None,
        }
    }

    /// The pass whose weight gradient this op computes.
    pub fn backward_weight(self) -> Option<Pass> {
        match self {
            Op::B(b) | Op::W(b) | Op::FB(_, b) => Some(b),
            Op::F(_) | Op::I(_) => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = |kind: char, p: &Pass| {
            let kind = if p.direction == Direction::Up { kind.to_ascii_lowercase() } else { kind };
            format!("{}{kind}{}", p.stage, p.microbatch)
        };
        f.pad(&match self {
            Op::F(p) => token('F', p),
            Op::B(p) => token('B', p),
            Op::I(p) => token('I', p),
            Op::W(p) => token('W', p),
            Op::FB(p, q) => format!("{}&{}", token('F', p), token('B', q)),
        })
    }
}

/// What a rank's compute callback is handed: an op, or the reduction of a replicated stage's gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Compute of the schedule.
    Op(Op),
    /// Every weight gradient of this parameter copy is final on this rank: sum it with the other copies' of its stage.
    ReduceGrads(StageCopy),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Op(op) => op.fmt(f),
            Task::ReduceGrads(copy) => f.pad(&format!("REDUCE_GRADS {}/{}", copy.direction, copy.stage)),
        }
    }
}

/// One step of a rank's communicating order: a task, or its part in an exchange with another rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Compute, or reduce gradients.
    Run(Task),
    /// Start to send a message.
    Send {
        /// What goes.
        message: Message,
        /// The receiver.
        to: Rank,
    },
    /// Receive a message.
    Receive {
        /// What comes.
        message: Message,
        /// The sender.
        from: Rank,
    },
    /// Wait until an earlier send of this message has been taken up.
    WaitSend(Message),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Run(task) => task.fmt(f),
            Action::Send { message, to } => f.pad(&format!("SEND {message} to rank {to}")),
            Action::Receive { message, from } => f.pad(&format!("RECEIVE {message} from rank {from}")),
            Action::WaitSend(message) => f.pad(&format!("WAIT_SEND {message}")),
        }
    }
}

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// The output of a forward, for the next stage.
    Activation = 0,
    /// The gradient for an input, for the previous stage.
    Gradient = 1,
}

/// What one stage hands to its neighbour. `pass` is the one that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// Activation or gradient.
    pub kind: MessageKind,
    /// The pass that made it.
    pub pass: Pass,
}

impl Message {
    /// The stage it goes to: the next for an activation, the previous for a gradient.
    pub fn to_stage(self) -> Stage {
        match self.kind {
            MessageKind::Activation => Stage(self.pass.stage.0.wrapping_add(1)),
            MessageKind::Gradient => Stage(self.pass.stage.0.wrapping_sub(1)),
        }
    }

    /// The copy after which the boundary lies that it crosses, forward or back.
    pub fn boundary(self) -> StageCopy {
        let stage = match self.kind {
            MessageKind::Activation => self.pass.stage,
            MessageKind::Gradient => self.to_stage(),
        };
        StageCopy { direction: self.pass.direction, stage }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            MessageKind::Activation => "activation",
            MessageKind::Gradient => "gradient",
        };
        f.pad(&format!(
            "{kind} of micro-batch {} from stage {} to {} in direction {}",
            self.pass.microbatch,
            self.pass.stage,
            self.to_stage(),
            self.pass.direction
        ))
    }
}
