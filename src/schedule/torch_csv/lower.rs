//! The rows of a schedule with what torch's own lowering puts in: parameters, gradient reductions, messages, waits.
//!
//! Source: `_add_unshard_reshard`, `_add_reduce_grad`, `_add_send_recv` and `_add_wait_send` of
//! `torch/distributed/pipelining/schedules.py` in torch 2.15. For up to three stages on a rank the rows are torch's, to
//! the cell. Deviations:
//!
//! 1. Sharded parameters stay gathered for the whole step, also where torch, with more than three stages on a rank,
//!    releases them between uses.
//! 2. A row that waits is not looked at again until something came that it may have waited for. The rows are the same;
//!    the time does not grow with ranks times rounds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cell::{passes_of, Cell};
use super::Dialect;
use crate::ids::Stage;
use crate::op::{Message, MessageKind, Op, Pass};
use crate::schedule::Schedule;

/// `rows` of the ops of a schedule of one direction that passes its check, in torch's `compute_comms`.
pub(super) fn lower(schedule: &Schedule, rows: &[Vec<Cell>], dialect: Dialect) -> Vec<Vec<Cell>> {
    let mut uses = vec![StageUse::default(); schedule.placement().num_stages()];
    let microbatches = schedule.num_microbatches();
    let rows = rows.iter().map(|row| with_parameters_and_reductions(row, &mut uses, microbatches, dialect));
    let rows: Vec<Vec<Cell>> = rows.collect();
    let mut rows = with_messages(schedule, &rows, dialect);
    if dialect.has_waits() {
        rows.iter_mut().for_each(wait_for_gradients);
    }
    rows
}

/// How the row of its rank uses a stage.
#[derive(Clone, Copy, Default)]
struct StageUse {
    /// Its number among the stages of the row, in the order of their first uses.
    number: Option<usize>,
    /// The position of its last use.
    last: usize,
    /// Its weight gradients so far.
    weight_gradients: usize,
}

/// The row with its stages' parameters gathered before all and released after their last use, and each stage's
/// gradients reduced after the last of its backwards. Before 2.10 torch reduces at the end of the row, for which the
/// parameters must not have been released by the last action. What is not sharded ignores all of it.
fn with_parameters_and_reductions(
    row: &[Cell],
    uses: &mut [StageUse],
    microbatches: usize,
    dialect: Dialect,
) -> Vec<Cell> {
    let mut stages: Vec<Stage> = Vec::new();
    for (position, cell) in row.iter().enumerate() {
        for stage in stages_of(*cell) {
            let stage_use = &mut uses[stage.index()];
            if stage_use.number.is_none() {
                stage_use.number = Some(stages.len());
                stages.push(stage);
            }
            stage_use.last = position;
        }
    }
    let mut result = Vec::with_capacity(row.len() + 4 * stages.len());
    result.extend(stages.iter().map(|&stage| Cell::Unshard(stage)));
    for (position, &cell) in row.iter().enumerate() {
        result.push(cell);
        let Cell::Op(op) = cell else { continue };
        if let Some(pass) = op.backward_weight() {
            let gradients = &mut uses[pass.stage.index()].weight_gradients;
            *gradients += 1;
            if *gradients == microbatches && dialect.has_reductions() {
                result.push(Cell::ReduceGrad(pass.stage));
                result.extend(dialect.has_waits().then_some(Cell::WaitReduceGrad(pass.stage)));
            }
        }
        if position + 1 < row.len() || dialect.has_reductions() {
            let is_over = |stage: &Stage| uses[stage.index()].last == position;
            let mut over: Vec<Stage> = stages_of(cell).filter(is_over).collect();
            over.sort_unstable_by_key(|stage| uses[stage.index()].number);
            over.dedup();
            result.extend(over.into_iter().map(Cell::Reshard));
        }
    }
    result
}

fn stages_of(cell: Cell) -> impl Iterator<Item = Stage> {
    cell.op().into_iter().flat_map(passes_of).map(|pass| pass.stage)
}

/// The rows with a send behind what makes a message, and a receive where the peer's row has come to by then: as early
/// as it is sure not to hang. So two ranks have their messages to one another in one order, as NCCL wants it.
///
/// In each round every row, in the order of the ranks, takes its next cell if it can, also by what rows before it made
/// in the same round.
fn with_messages(schedule: &Schedule, rows: &[Vec<Cell>], dialect: Dialect) -> Vec<Vec<Cell>> {
    let mut result: Vec<Vec<Cell>> = rows.iter().map(|row| Vec::with_capacity(2 * row.len())).collect();
    let mut at = vec![0; rows.len()];
    let mut made = Made { schedule, kinds: vec![0; schedule.num_passes()] };
    let mut turns: BinaryHeap<Reverse<(usize, usize)>> =
        (0..rows.len()).map(|rank| Reverse((0, rank))).collect();
    let mut this_turn = None;
    while let Some(Reverse((round, rank))) = turns.pop() {
        if this_turn.replace((round, rank)) == Some((round, rank)) {
            continue;
        }
        let Some(&cell) = rows[rank].get(at[rank]) else { continue };
        if !made.has_what_it_needs(cell) {
            continue;
        }
        at[rank] += 1;
        turns.push(Reverse((round + 1, rank)));
        result[rank].push(cell);
        let Cell::Op(op) = cell else { continue };
        if dialect.has_waits() {
            result[rank].extend(wait_for_activation(schedule, op));
        }
        for (message, to) in schedule.messages_from(op).into_iter().flatten() {
            made.add(message);
            let peer = to.index();
            if peer != rank {
                let receiver = Pass { stage: message.to_stage(), ..message.pass };
                result[rank].push(Cell::Send(message.kind, message.pass));
                result[peer].push(Cell::Receive(message.kind, receiver));
                turns.push(Reverse((round + usize::from(peer < rank), peer)));
            }
        }
    }
    let has_ended = at.iter().zip(rows).all(|(&at, row)| at == row.len());
    assert!(has_ended, "a schedule that passes its check waits for ever");
    result
}

/// The wait for the activation that a pass sent, to come after its backward: by then the peer has used it, so that the
/// wait is short.
fn wait_for_activation(schedule: &Schedule, op: Op) -> Option<Cell> {
    let pass = op.backward_input()?;
    let placement = schedule.placement();
    let is_sent = placement.rank_of(placement.next(pass.copy())?) != placement.rank_of(pass.copy());
    is_sent.then_some(Cell::WaitSend(MessageKind::Activation, pass))
}

/// The waits for the gradients that a row sends come at its end.
fn wait_for_gradients(row: &mut Vec<Cell>) {
    let wait = |cell: &Cell| match *cell {
        Cell::Send(MessageKind::Gradient, pass) => Some(Cell::WaitSend(MessageKind::Gradient, pass)),
        _ => None,
    };
    let waits: Vec<Cell> = row.iter().filter_map(wait).collect();
    row.extend(waits);
}

/// The messages that have been made.
struct Made<'a> {
    schedule: &'a Schedule,
    /// For each pass a bit per [`MessageKind`].
    kinds: Vec<u8>,
}

impl Made<'_> {
    fn has_what_it_needs(&self, cell: Cell) -> bool {
        let Cell::Op(op) = cell else { return true };
        let needed = self.schedule.messages_to(op).into_iter().flatten();
        let has = |message: Message| {
            let index = self.schedule.pass_index(message.pass);
            index.is_some_and(|index| self.kinds[index] & (1 << message.kind as u8) != 0)
        };
        needed.map(|(message, _)| message).all(has)
    }

    fn add(&mut self, message: Message) {
        if let Some(index) = self.schedule.pass_index(message.pass) {
            self.kinds[index] |= 1 << message.kind as u8;
        }
    }
}
