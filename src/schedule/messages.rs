//! Which op makes which message, and which needs it.

use super::Schedule;
use crate::ids::Rank;
use crate::op::{Message, MessageKind, Op, Pass, StageCopy};

impl Schedule {
    /// The messages that `op` needs, each with the rank that makes it: an activation and a gradient.
    pub(crate) fn messages_to(&self, op: Op) -> [Option<(Message, Rank)>; 2] {
        let from = |kind, pass: Pass, copy: Option<StageCopy>| {
            let pass = Pass { stage: copy?.stage, ..pass };
            Some((Message { kind, pass }, self.placement().rank_of(pass.copy())?))
        };
        let activation = |p: Pass| from(MessageKind::Activation, p, self.placement().previous(p.copy()));
        let gradient = |p: Pass| from(MessageKind::Gradient, p, self.placement().next(p.copy()));
        match op {
            Op::F(p) => [activation(p), None],
            Op::B(p) | Op::I(p) => [None, gradient(p)],
            Op::FB(f, b) => [activation(f), gradient(b)],
            Op::W(_) => [None, None],
        }
    }

    /// The messages that `op` makes, each with the rank that needs it: an activation and a gradient.
    pub(crate) fn messages_from(&self, op: Op) -> [Option<(Message, Rank)>; 2] {
        let to = |kind, pass, copy: Option<StageCopy>| {
            Some((Message { kind, pass }, self.placement().rank_of(copy?)?))
        };
        let activation = |p: Pass| to(MessageKind::Activation, p, self.placement().next(p.copy()));
        let gradient = |p: Pass| to(MessageKind::Gradient, p, self.placement().previous(p.copy()));
        match op {
            Op::F(p) => [activation(p), None],
            Op::B(p) | Op::I(p) => [None, gradient(p)],
            Op::FB(f, b) => [activation(f), gradient(b)],
            Op::W(_) => [None, None],
        }
    }
}
