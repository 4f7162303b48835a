//! The words of schedules, programs and timelines in C: passes, ops and messages.
//!
//! An op is what a rank does at once; a pass is what it does it to: a micro-batch at a stage. An F has a forward pass,
//! a B, I or W a backward pass, an FB both, of two micro-batches in opposite directions or at two stages of the rank.
//!
//! These are plain values: copy them, compare their fields, keep them. What is not there is DUALPIPE_NONE.

use super::args;
use super::status::Outcome;
use crate::ids::{Direction, Microbatch, Stage};
use crate::op::{Message, Op, Pass, StageCopy, Task};
use crate::placement::{Placement, STAGES_MAX};
use crate::schedule::MICROBATCHES_MAX;

use dualpipe_op_kind::*;

/// Stands for "there is none" in a field that is a number.
pub const DUALPIPE_NONE: u32 = u32::MAX;

/// What an op does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_op_kind {
    /// Forward.
    DUALPIPE_OP_F = 1,
    /// Full backward: for the input and for the weights.
    DUALPIPE_OP_B = 2,
    /// Backward for the input.
    DUALPIPE_OP_I = 3,
    /// Backward for the weights.
    DUALPIPE_OP_W = 4,
    /// F of one micro-batch and B of another, run as an overlapped pair.
    DUALPIPE_OP_FB = 5,
    /// Every weight gradient of a parameter copy is final on this rank: sum it with those of the other copies of its
    /// stage. Not part of a schedule's order; programs and timelines have it.
    DUALPIPE_OP_REDUCE_GRADS = 6,
}

/// One micro-batch at one stage. All four fields are DUALPIPE_NONE where there is no pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_pass {
    /// Where the micro-batch entered: 0, stage 0 is at rank 0; 1, stage 0 is at the last rank.
    pub direction: u32,
    /// The stage, 0 to num_stages - 1.
    pub stage: u32,
    /// The micro-batch, counted within its direction; DUALPIPE_NONE in a reduction, which is of all.
    pub microbatch: u32,
    /// Which of its rank's parameter copies it uses: in DualPipe the direction; in DualPipeV 0 on the way down and 1
    /// on the way back. Written, never read.
    pub copy: u32,
}

/// One compute step of one rank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_op {
    /// A dualpipe_op_kind.
    pub kind: u32,
    /// What goes forward: of F and FB.
    pub forward: dualpipe_pass,
    /// What goes backward: of B, I, W and FB; and the copy that REDUCE_GRADS is about.
    pub backward: dualpipe_pass,
}

/// What a message carries.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_message_kind {
    /// The output of a forward, for the next stage.
    DUALPIPE_MESSAGE_ACTIVATION = 1,
    /// The gradient for an input, for the previous stage.
    DUALPIPE_MESSAGE_GRADIENT = 2,
}

/// What one stage hands to its neighbour. All fields are DUALPIPE_NONE where there is no message.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_message {
    /// A dualpipe_message_kind.
    pub kind: u32,
    /// The stage that it goes to.
    pub to_stage: u32,
    /// The pass that made it.
    pub pass: dualpipe_pass,
}

impl dualpipe_pass {
    pub(crate) const NONE: dualpipe_pass = dualpipe_pass {
        direction: DUALPIPE_NONE,
        stage: DUALPIPE_NONE,
        microbatch: DUALPIPE_NONE,
        copy: DUALPIPE_NONE,
    };

    pub(crate) fn new(placement: &Placement, pass: Pass) -> dualpipe_pass {
        let microbatch = pass.microbatch.0;
        dualpipe_pass { microbatch, ..dualpipe_pass::of_copy(placement, pass.copy()) }
    }

    /// The pass, if its numbers are within what any schedule may have; the error calls it `name()`.
    pub(super) fn read(&self, name: impl Fn() -> String) -> Outcome<Pass> {
        for (field, value, most) in [
            ("direction", self.direction, 1),
            ("stage", self.stage, STAGES_MAX - 1),
            ("microbatch", self.microbatch, MICROBATCHES_MAX as u32 - 1),
        ] {
            if value > most {
                args::in_range(format!("{}.{field}", name()), value, 0..=most)?;
            }
        }
        let direction = if self.direction == 0 { Direction::Down } else { Direction::Up };
        Ok(Pass { direction, stage: Stage(self.stage as u16), microbatch: Microbatch(self.microbatch) })
    }

    fn of_copy(placement: &Placement, copy: StageCopy) -> dualpipe_pass {
        dualpipe_pass {
            direction: copy.direction as u32,
            stage: copy.stage.0.into(),
            microbatch: DUALPIPE_NONE,
            copy: placement.local_index(copy).map_or(DUALPIPE_NONE, |index| index as u32),
        }
    }
}

impl dualpipe_op {
    pub(crate) const NONE: dualpipe_op =
        dualpipe_op { kind: DUALPIPE_NONE, forward: dualpipe_pass::NONE, backward: dualpipe_pass::NONE };

    pub(crate) fn new(placement: &Placement, task: Task) -> dualpipe_op {
        let (forward, backward) = match task {
            Task::Op(op) => (op.forward(), op.backward_input().or(op.backward_weight())),
            Task::ReduceGrads(_) => (None, None),
        };
        let pass =
            |pass: Option<Pass>| pass.map_or(dualpipe_pass::NONE, |pass| dualpipe_pass::new(placement, pass));
        let backward = match task {
            Task::Op(_) => pass(backward),
            Task::ReduceGrads(copy) => dualpipe_pass::of_copy(placement, copy),
        };
        let kind = match task {
            Task::Op(Op::F(_)) => DUALPIPE_OP_F,
            Task::Op(Op::B(_)) => DUALPIPE_OP_B,
            Task::Op(Op::I(_)) => DUALPIPE_OP_I,
            Task::Op(Op::W(_)) => DUALPIPE_OP_W,
            Task::Op(Op::FB(..)) => DUALPIPE_OP_FB,
            Task::ReduceGrads(_) => DUALPIPE_OP_REDUCE_GRADS,
        };
        dualpipe_op { kind: kind as u32, forward: pass(forward), backward }
    }
}

/// The op that C has as `op`, which the error calls `name()`. Only the passes that its kind has are read, and of them
/// all but `copy`.
pub(crate) fn read_op(op: &dualpipe_op, name: impl Fn() -> String) -> Outcome<Op> {
    let in_order = [DUALPIPE_OP_F, DUALPIPE_OP_B, DUALPIPE_OP_I, DUALPIPE_OP_W, DUALPIPE_OP_FB];
    let kind = match in_order.into_iter().find(|&kind| kind as u32 == op.kind) {
        Some(kind) => kind,
        None => args::one_of(&format!("{}.kind", name()), op.kind, in_order.map(|kind| (kind as u32, kind)))?,
    };
    let forward = || op.forward.read(|| format!("{}.forward", name()));
    let backward = || op.backward.read(|| format!("{}.backward", name()));
    Ok(match kind {
        DUALPIPE_OP_F => Op::F(forward()?),
        DUALPIPE_OP_B => Op::B(backward()?),
        DUALPIPE_OP_I => Op::I(backward()?),
        DUALPIPE_OP_FB => Op::FB(forward()?, backward()?),
        _ => Op::W(backward()?),
    })
}

impl dualpipe_message {
    pub(crate) const NONE: dualpipe_message =
        dualpipe_message { kind: DUALPIPE_NONE, to_stage: DUALPIPE_NONE, pass: dualpipe_pass::NONE };

    pub(crate) fn new(placement: &Placement, message: Message) -> dualpipe_message {
        dualpipe_message {
            kind: dualpipe_message_kind::from(message.kind) as u32,
            to_stage: message.to_stage().0.into(),
            pass: dualpipe_pass::new(placement, message.pass),
        }
    }
}

impl From<crate::op::MessageKind> for dualpipe_message_kind {
    fn from(kind: crate::op::MessageKind) -> dualpipe_message_kind {
        match kind {
            crate::op::MessageKind::Activation => dualpipe_message_kind::DUALPIPE_MESSAGE_ACTIVATION,
            crate::op::MessageKind::Gradient => dualpipe_message_kind::DUALPIPE_MESSAGE_GRADIENT,
        }
    }
}
