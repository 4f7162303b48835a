//! One cell of a schedule CSV: an action in torch's words.

use std::fmt;

use super::{Dialect, FIRST_WITH_REDUCTIONS, FIRST_WITH_WAITS};
use crate::ids::{Direction, Microbatch, Stage};
use crate::op::{MessageKind, Op, Pass};
use crate::placement::STAGES_MAX;
use crate::schedule::MICROBATCHES_MAX;

/// An action of torch's. Every pass is of direction 0: torch has no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Compute.
    Op(Op),
    /// `SEND_F`, `SEND_B`: the pass has made the message.
    Send(MessageKind, Pass),
    /// `RECV_F`, `RECV_B`: the pass needs the message.
    Receive(MessageKind, Pass),
    /// `WAIT_SEND_F`, `WAIT_SEND_B`.
    WaitSend(MessageKind, Pass),
    /// Gather the sharded parameters of a stage.
    Unshard(Stage),
    /// Release them.
    Reshard(Stage),
    /// Reduce the gradients of a stage.
    ReduceGrad(Stage),
    /// Wait until they have been.
    WaitReduceGrad(Stage),
}

impl Cell {
    /// The compute that it is.
    pub(super) fn op(self) -> Option<Op> {
        match self {
            Cell::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The action that `text` stands for in `dialect`.
    ///
    /// # Errors
    /// What was expected, to go on after "is …, ".
    pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Cell, String> {
        match text.strip_prefix('(') {
            Some(rest) => parse_pair(rest, dialect),
            None => parse_action(text, dialect),
        }
    }
}

/// The passes that an op is about: of a pair the forward, then the backward.
pub(super) fn passes_of(op: Op) -> impl Iterator<Item = Pass> {
    let passes = match op {
        Op::F(p) | Op::B(p) | Op::I(p) | Op::W(p) => [Some(p), None],
        Op::FB(forward, backward) => [Some(forward), Some(backward)],
    };
    passes.into_iter().flatten()
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = |kind: &MessageKind| match kind {
            MessageKind::Activation => 'F',
            MessageKind::Gradient => 'B',
        };
        match self {
            // The token of an op of direction 0 is torch's.
            Cell::Op(Op::FB(forward, backward)) => {
                write!(f, "({};{})OVERLAP_F_B", Op::F(*forward), Op::B(*backward))
            }
            Cell::Op(op) => write!(f, "{op}"),
            Cell::Send(kind, pass) => write!(f, "{}SEND_{}{}", pass.stage, message(kind), pass.microbatch),
            Cell::Receive(kind, pass) => write!(f, "{}RECV_{}{}", pass.stage, message(kind), pass.microbatch),
            Cell::WaitSend(kind, pass) => {
                write!(f, "{}WAIT_SEND_{}{}", pass.stage, message(kind), pass.microbatch)
            }
            Cell::Unshard(stage) => write!(f, "{stage}UNSHARD"),
            Cell::Reshard(stage) => write!(f, "{stage}RESHARD"),
            Cell::ReduceGrad(stage) => write!(f, "{stage}REDUCE_GRAD"),
            Cell::WaitReduceGrad(stage) => write!(f, "{stage}WAIT_REDUCE_GRAD"),
        }
    }
}

/// What follows the bracket of `(0F3;3B1)OVERLAP_F_B`.
fn parse_pair(text: &str, dialect: Dialect) -> Result<Cell, String> {
    const SHAPE: &str = "must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward";
    let parts = text.strip_suffix(")OVERLAP_F_B").and_then(|parts| parts.split_once(';'));
    let (forward, backward) = parts.filter(|(_, rest)| !rest.contains(';')).ok_or(SHAPE)?;
    if !dialect.has_pairs() {
        return Err(format!(
            "must be two cells, the forward, then the backward: torch {} has no OVERLAP_F_B in format {}; since {}",
            dialect.version,
            dialect.format,
            dialect.first_with_pairs()
        ));
    }
    let part = |text: &str| parse_action(text.trim_matches(BLANK), dialect);
    match (part(forward)?, part(backward)?) {
        (Cell::Op(Op::F(forward)), Cell::Op(Op::B(backward))) => Ok(Cell::Op(Op::FB(forward, backward))),
        _ => Err(SHAPE.into()),
    }
}

/// What may stand around a cell and around the parts of a pair.
pub(super) const BLANK: [char; 2] = [' ', '\t'];

/// `STAGE KIND` or `STAGE KIND MICROBATCH`, without blanks between.
fn parse_action(text: &str, dialect: Dialect) -> Result<Cell, String> {
    let (stage, rest) = leading_number(text, "a stage", STAGES_MAX)?;
    let stage = stage.ok_or_else(|| format!("must begin with a stage, as in {}", examples(dialect)))?;
    let is_kind = |c: char| c.is_ascii_uppercase() || c == '_';
    let (kind, rest) = rest.split_at(rest.find(|c| !is_kind(c)).unwrap_or(rest.len()));
    let kind = Kind::parse(kind, dialect)?;
    let (microbatch, rest) = leading_number(rest, "a micro-batch", MICROBATCHES_MAX as u32)?;
    if !rest.is_empty() {
        let end = text.len() - rest.len();
        return Err(format!("must end after {}: torch takes that and leaves the rest", &text[..end]));
    }
    let stage = Stage(stage as u16);
    match (kind, microbatch) {
        (Kind::OfPass(cell), Some(microbatch)) => {
            let microbatch = Microbatch(microbatch);
            Ok(cell(Pass { direction: Direction::Down, stage, microbatch }))
        }
        (Kind::OfPass(_), None) => Err(format!("must end with a micro-batch, such as {text}0")),
        (Kind::OfStage(cell), None) => Ok(cell(stage)),
        (Kind::OfStage(_), Some(_)) => Err("must have no micro-batch: it is about the whole stage".into()),
    }
}

/// The digits that `text` begins with, which must be a number below `limit`, and what follows.
fn leading_number<'a>(text: &'a str, what: &str, limit: u32) -> Result<(Option<u32>, &'a str), String> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let number = digits.parse().ok().filter(|&number| number < limit);
    let number = number.ok_or_else(|| format!("must have {what} of 0 to {}", limit - 1))?;
    Ok((Some(number), rest))
}

/// What stands between the numbers of an action.
enum Kind {
    OfPass(fn(Pass) -> Cell),
    OfStage(fn(Stage) -> Cell),
}

impl Kind {
    fn parse(name: &str, dialect: Dialect) -> Result<Kind, String> {
        use MessageKind::{Activation, Gradient};
        let kind = match name {
            "F" => Kind::OfPass(|pass| Cell::Op(Op::F(pass))),
            "B" => Kind::OfPass(|pass| Cell::Op(Op::B(pass))),
            "I" => Kind::OfPass(|pass| Cell::Op(Op::I(pass))),
            "W" => Kind::OfPass(|pass| Cell::Op(Op::W(pass))),
            "SEND_F" => Kind::OfPass(|pass| Cell::Send(Activation, pass)),
            "SEND_B" => Kind::OfPass(|pass| Cell::Send(Gradient, pass)),
            "RECV_F" => Kind::OfPass(|pass| Cell::Receive(Activation, pass)),
            "RECV_B" => Kind::OfPass(|pass| Cell::Receive(Gradient, pass)),
            "WAIT_SEND_F" => Kind::OfPass(|pass| Cell::WaitSend(Activation, pass)),
            "WAIT_SEND_B" => Kind::OfPass(|pass| Cell::WaitSend(Gradient, pass)),
            "UNSHARD" => Kind::OfStage(Cell::Unshard),
            "RESHARD" => Kind::OfStage(Cell::Reshard),
            "REDUCE_GRAD" => Kind::OfStage(Cell::ReduceGrad),
            "WAIT_REDUCE_GRAD" => Kind::OfStage(Cell::WaitReduceGrad),
            _ => return Err(format!("must be an action of torch's, such as {}", examples(dialect))),
        };
        let version = dialect.version;
        if name.starts_with("WAIT") && version < FIRST_WITH_WAITS {
            return Err(format!(
                "must not be: torch {version} does not know {name} and reads it as W; since {FIRST_WITH_WAITS}"
            ));
        }
        if name == "REDUCE_GRAD" && version < FIRST_WITH_REDUCTIONS {
            return Err(format!(
                "must not be: torch {version} does not know {name}; since {FIRST_WITH_REDUCTIONS}"
            ));
        }
        if name.len() > 1 && !dialect.has_communication() {
            return Err(format!(
                "must not be in format {}, for which torch puts in the communication; it belongs in compute_comms",
                dialect.format
            ));
        }
        Ok(kind)
    }
}

/// One of each sort of cell that the dialect has.
fn examples(dialect: Dialect) -> String {
    let mut examples = String::from("2F0, 2I0, 2W0, 2B0");
    if dialect.has_pairs() {
        examples += ", (0F3;3B1)OVERLAP_F_B";
    }
    if dialect.has_communication() {
        examples += ", 2SEND_F0, 2RECV_B0, 2UNSHARD, 2RESHARD";
    }
    if dialect.has_reductions() {
        examples += ", 2REDUCE_GRAD";
    }
    if dialect.has_waits() {
        examples += ", 2WAIT_SEND_F0, 2WAIT_REDUCE_GRAD";
    }
    examples
}
