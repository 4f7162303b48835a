//! What a `compute_comms` file has besides compute: whether torch takes it, and what it means for the pipeline.

use super::cell::Cell;
use super::read::{wrong_cell, wrong_row, Placed};
use super::Dialect;
use crate::error::Result;
use crate::ids::{Direction, Rank, Stage};
use crate::op::{Action, Message, MessageKind, Pass, StageCopy, Task};
use crate::schedule::Schedule;

/// Every cell is about a stage of its row, every message between two ranks, and what this version demands of
/// reductions and waits is kept. Whether each message has its two sides is not looked at.
pub(super) fn check_communication(schedule: &Schedule, rows: &[Vec<Placed>], dialect: Dialect) -> Result<()> {
    let mut sends =
        Sends { schedule, seen: vec![0; if dialect.has_waits() { schedule.num_passes() } else { 0 }] };
    for (row, rank) in rows.iter().zip((0..).map(Rank::from_index)) {
        for &placed in row {
            let must = wrong_stage(schedule, rank, placed.cell);
            if let Some(must) = must.or_else(|| wrong_message(schedule, placed.cell)) {
                return Err(wrong_cell(rank, placed, must));
            }
        }
        if dialect.has_reductions() {
            check_reductions(schedule, rank, row, dialect)?;
        }
        if dialect.has_waits() {
            sends.check(rank, row)?;
        }
    }
    Ok(())
}

/// What each rank does, less what is about the ranks that share a stage. The rows have passed their check.
pub(super) fn actions_of(schedule: &Schedule, rows: &[Vec<Placed>]) -> Vec<Vec<Action>> {
    let action_of = |placed: &Placed| match placed.cell {
        Cell::Op(op) => Some(Action::Run(Task::Op(op))),
        cell => {
            let Transfer { message, from, to } = Transfer::of(schedule, cell)?;
            match cell {
                Cell::Receive(..) => Some(Action::Receive { message, from }),
                Cell::WaitSend(..) => Some(Action::WaitSend(message)),
                _ => Some(Action::Send { message, to }),
            }
        }
    };
    rows.iter().map(|row| row.iter().filter_map(action_of).collect()).collect()
}

/// A message with its two ranks.
struct Transfer {
    message: Message,
    from: Rank,
    to: Rank,
}

impl Transfer {
    /// The one that a cell is about; `None` if there is no stage on the other side.
    fn of(schedule: &Schedule, cell: Cell) -> Option<Transfer> {
        let placement = schedule.placement();
        let message = match cell {
            Cell::Send(kind, pass) | Cell::WaitSend(kind, pass) => Message { kind, pass },
            Cell::Receive(kind, pass) => {
                let sender = match kind {
                    MessageKind::Activation => placement.previous(pass.copy())?,
                    MessageKind::Gradient => placement.next(pass.copy())?,
                };
                Message { kind, pass: Pass { stage: sender.stage, ..pass } }
            }
            _ => return None,
        };
        let rank_of = |stage| placement.rank_of(copy_of(stage));
        Some(Transfer { message, from: rank_of(message.pass.stage)?, to: rank_of(message.to_stage())? })
    }
}

fn copy_of(stage: Stage) -> StageCopy {
    StageCopy { direction: Direction::Down, stage }
}

/// What is wrong with the stage that a cell names.
fn wrong_stage(schedule: &Schedule, rank: Rank, cell: Cell) -> Option<String> {
    let stage = match cell {
        Cell::Op(_) => return None,
        Cell::Send(_, pass) | Cell::Receive(_, pass) | Cell::WaitSend(_, pass) => pass.stage,
        Cell::Unshard(stage) | Cell::Reshard(stage) => stage,
        Cell::ReduceGrad(stage) | Cell::WaitReduceGrad(stage) => stage,
    };
    let holder = match schedule.placement().rank_of(copy_of(stage)) {
        Some(holder) if holder == rank => return None,
        Some(holder) => format!("stage {stage} is on rank {holder}"),
        None => format!("no rank computes stage {stage}"),
    };
    let receives = "; a receive names the stage that receives";
    let receives = if matches!(cell, Cell::Receive(..)) { receives } else { "" };
    Some(format!("must be about a stage of this rank: {holder}{receives}"))
}

/// What is wrong with the message that a cell is about.
fn wrong_message(schedule: &Schedule, cell: Cell) -> Option<String> {
    let (Cell::Send(_, pass) | Cell::Receive(_, pass) | Cell::WaitSend(_, pass)) = cell else { return None };
    let microbatches = schedule.num_microbatches();
    if pass.microbatch.index() >= microbatches {
        let last = microbatches - 1;
        return Some(format!("must be about a micro-batch that is computed, which are 0 to {last}"));
    }
    match Transfer::of(schedule, cell) {
        None => Some("must not be: it would cross an end of the model".into()),
        Some(Transfer { from, to, .. }) if from == to => Some(format!(
            "must not be: both stages are on rank {from}, where torch hands over without a message"
        )),
        Some(_) => None,
    }
}

/// One REDUCE_GRAD for each stage, after its last weight gradient, and where the dialect has waits, each waited for
/// before the next and before the end.
fn check_reductions(schedule: &Schedule, rank: Rank, row: &[Placed], dialect: Dialect) -> Result<()> {
    let copies = schedule.placement().copies_on(rank);
    let mut stages = vec![Reduction::default(); copies.len()];
    let local = |stage| schedule.placement().local_index(copy_of(stage));
    for &placed in row {
        let pass = placed.cell.op().and_then(|op| op.backward_weight());
        if let Some(local) = pass.and_then(|pass| local(pass.stage)) {
            stages[local].last_gradient = Some(placed);
        }
    }
    let mut pending: Option<(Placed, Stage)> = None;
    for &placed in row {
        let must = match placed.cell {
            Cell::ReduceGrad(stage) => {
                let must = local(stage).and_then(|local| stages[local].reduce(placed, pending));
                pending = dialect.has_waits().then_some((placed, stage));
                must
            }
            Cell::WaitReduceGrad(stage) => match pending.take() {
                Some((_, reduced)) if reduced == stage => None,
                _ => Some(format!("must come after {} and be there once", Cell::ReduceGrad(stage))),
            },
            _ => None,
        };
        if let Some(must) = must {
            return Err(wrong_cell(rank, placed, must));
        }
    }
    if let Some((placed, stage)) = pending {
        let must = format!("must have {} after it in its row", Cell::WaitReduceGrad(stage));
        return Err(wrong_cell(rank, placed, must));
    }
    let missing = stages.iter().position(|stage| stage.last_gradient.is_some() && !stage.is_reduced);
    if let Some(local) = missing {
        let why = format!(
            "has no {}, without which torch {} does not reduce its gradients",
            Cell::ReduceGrad(copies[local].stage),
            dialect.version
        );
        return Err(wrong_row(rank, why));
    }
    Ok(())
}

/// What a row does with the gradients of one stage.
#[derive(Clone, Copy, Default)]
struct Reduction {
    last_gradient: Option<Placed>,
    is_reduced: bool,
}

impl Reduction {
    /// Takes the REDUCE_GRAD at `placed`, while the row has yet to wait for `pending`; what is wrong with it.
    fn reduce(&mut self, placed: Placed, pending: Option<(Placed, Stage)>) -> Option<String> {
        if std::mem::replace(&mut self.is_reduced, true) {
            return Some("must be there once: the row has reduced these gradients".into());
        }
        let Some(Placed { column, cell }) = self.last_gradient else {
            return Some("must come after a backward: the row has no weight gradient of the stage".into());
        };
        if column > placed.column {
            let column = column + 1;
            return Some(format!(
                "must come after the stage's last weight gradient, {cell} in column {column}"
            ));
        }
        pending.map(|(_, stage)| format!("must come after {}", Cell::WaitReduceGrad(stage)))
    }
}

/// What has been sent and waited for.
struct Sends<'a> {
    schedule: &'a Schedule,
    /// For each pass a bit per [`MessageKind`] that it was sent, and [`WAITED`] bits on that it was waited for.
    seen: Vec<u8>,
}

/// How far the bits of the waits are from those of the sends.
const WAITED: u8 = 2;

impl Sends<'_> {
    /// Each send of a row is there once and has one wait, after it.
    fn check(&mut self, rank: Rank, row: &[Placed]) -> Result<()> {
        for &placed in row {
            let must = match placed.cell {
                Cell::Send(kind, pass) if !self.add(pass, kind as u8) => {
                    Some("must be there once: the row has sent it".into())
                }
                Cell::WaitSend(kind, pass) if !self.has(pass, kind as u8) => {
                    Some(format!("must come after {}", Cell::Send(kind, pass)))
                }
                Cell::WaitSend(kind, pass) if !self.add(pass, WAITED + kind as u8) => {
                    Some("must be there once: the row has waited for it".into())
                }
                _ => None,
            };
            if let Some(must) = must {
                return Err(wrong_cell(rank, placed, must));
            }
        }
        for &placed in row {
            let Cell::Send(kind, pass) = placed.cell else { continue };
            if !self.has(pass, WAITED + kind as u8) {
                let must = format!("must have {} after it in its row", Cell::WaitSend(kind, pass));
                return Err(wrong_cell(rank, placed, must));
            }
        }
        Ok(())
    }

    /// Sets a bit of a pass; whether it was not set before.
    fn add(&mut self, pass: Pass, bit: u8) -> bool {
        let is_new = !self.has(pass, bit);
        if let Some(index) = self.schedule.pass_index(pass) {
            self.seen[index] |= 1 << bit;
        }
        is_new
    }

    fn has(&self, pass: Pass, bit: u8) -> bool {
        self.schedule.pass_index(pass).is_some_and(|index| self.seen[index] & (1 << bit) != 0)
    }
}
