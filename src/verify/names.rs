//! Short names, for texts.

use crate::op::{Action, Message, MessageKind, Op, Pass};

/// Which micro-batch where.
pub(super) fn describe(pass: Pass) -> String {
    let Pass { direction, stage, microbatch } = pass;
    format!("micro-batch {microbatch} of direction {direction} at stage {stage}")
}

/// A message by the op that makes it; a gradient by B, also where I makes it.
pub(super) fn message_name(message: Message) -> String {
    match message.kind {
        MessageKind::Activation => format!("activation {}", Op::F(message.pass)),
        MessageKind::Gradient => format!("gradient {}", Op::B(message.pass)),
    }
}

/// An action with its message by that name.
pub(super) fn action_name(action: &Action) -> String {
    match *action {
        Action::Run(task) => task.to_string(),
        Action::Send { message, to } => format!("SEND {} to rank {to}", message_name(message)),
        Action::Receive { message, from } => format!("RECEIVE {} from rank {from}", message_name(message)),
        Action::WaitSend(message) => format!("WAIT_SEND {}", message_name(message)),
    }
}
