//! Which op makes which message, and which needs it.

use super::Schedule;
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass, StageCopy};

impl Schedule {
    /// The messages that `op` needs, each with the rank that makes it: an activation and a gradient.
    pub(crate) fn messages_to(&self, op: Op) -> [Option<(Message, Rank)>; 2] {
        let from = |kind, pass: Pass, copy: Option<StageCopy>| {
            let copy = copy?;
            let pass = Pass { stage: copy.stage, ..pass };
            Some((Message { kind, pass }, self.placement().rank_of(copy)?))
        };
        let (forward, backward) = (op.forward(), op.backward_input());
        [
            forward.and_then(|p| from(MessageKind::Activation, p, self.placement().previous(p.copy()))),
            backward.and_then(|p| from(MessageKind::Gradient, p, self.placement().next(p.copy()))),
        ]
    }

    /// The messages that `op` makes, each with the rank that needs it: an activation and a gradient.
    pub(crate) fn messages_from(&self, op: Op) -> [Option<(Message, Rank)>; 2] {
        let to = |kind, pass, copy: Option<StageCopy>| {
            Some((Message { kind, pass }, self.placement().rank_of(copy?)?))
        };
        let (forward, backward) = (op.forward(), op.backward_input());
        [
            forward.and_then(|p| to(MessageKind::Activation, p, self.placement().next(p.copy()))),
            backward.and_then(|p| to(MessageKind::Gradient, p, self.placement().previous(p.copy()))),
        ]
    }
}
