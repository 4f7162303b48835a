//! A schedule from a CSV of torch's.

use super::cell::{passes_of, Cell, BLANK};
use super::communication::{actions_of, check_communication};
use super::{quoted, Dialect, Format, TorchVersion, WHAT};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::op::{Action, Op, Pass};
use crate::placement::{Placement, RANKS_MAX};
use crate::schedule::{Schedule, Work};

/// What a CSV of torch's says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchCsv {
    schedule: Schedule,
    actions: Option<Vec<Vec<Action>>>,
}

impl TorchCsv {
    /// What each rank computes. Its name is "torch csv"; the stages are where their rows are, and there is one
    /// micro-batch more than the highest number. [`Schedule::check`] says whether it can run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// `[rank]`: of a `compute_comms`, the ops with the sends, receives and waits of their messages among them, as the
    /// file has them, which may be in no order that can run. UNSHARD, RESHARD, REDUCE_GRAD and WAIT_REDUCE_GRAD are
    /// left out: they are about the ranks that share a stage, not about those of the pipeline.
    pub fn actions(&self) -> Option<&[Vec<Action>]> {
        self.actions.as_deref()
    }

    /// The schedule alone.
    pub fn into_schedule(self) -> Schedule {
        self.schedule
    }
}

/// The schedule that torch `version` runs when it loads `text` by `_load_csv(path, format)`.
///
/// Every cell must be one that this version takes for what it says; the module's text has the dialects. Lines may end
/// with CR LF; blanks around a cell, and quotes, do not matter; a cell may be empty in `compute_only`. Any placement
/// that has each stage on one rank. That torch takes its losses to come in the order of their micro-batches is not
/// looked at here: the schedule itself is sound without.
///
/// Time and memory: proportional to the length of the text and the number of passes.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], with row and column (from 1, as editors and spreadsheets count; the rank is from 0)
/// and the cell:
/// - a version or a format that [`write_csv`](super::write_csv) refuses too;
/// - no rows, a row that computes nothing, more than [`RANKS_MAX`] rows;
/// - a cell that is no action, or none that the version knows, or of a number that is out of range;
/// - a stage that is computed on two ranks, or none although a later one is; no backward anywhere;
/// - communication of a stage or a micro-batch that the row does not compute, past the ends of the model, or within a
///   rank;
/// - REDUCE_GRAD from 2.10: not exactly once for each stage, after its last weight gradient;
/// - WAIT_SEND_F and WAIT_SEND_B in 2.15: not exactly once after each send, which is itself there once;
///   WAIT_REDUCE_GRAD: not before the next reduction of the rank, or its row's end.
pub fn read_csv(text: &str, version: TorchVersion, format: Format) -> Result<TorchCsv> {
    let dialect = Dialect::new(version, format)?;
    let rows = parse_rows(text, dialect)?;
    let placement = placement_of(&rows)?;
    refuse_forwards_only(&rows)?;
    let orders = rows.iter().map(|row| row.iter().filter_map(|placed| placed.cell.op()).collect()).collect();
    let schedule = Schedule::new(WHAT, placement, num_microbatches(&rows), Work::Training, orders)?;
    check_communication(&schedule, &rows, dialect)?;
    let actions = dialect.has_communication().then(|| actions_of(&schedule, &rows));
    Ok(TorchCsv { schedule, actions })
}

/// A cell and where it is.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    /// From 0, with the blank cells.
    pub(super) column: u32,
    pub(super) cell: Cell,
}

/// The error for a cell of the row of `rank`, which `must` be otherwise.
pub(super) fn wrong_cell(rank: Rank, placed: Placed, must: impl std::fmt::Display) -> Error {
    wrong(rank, placed.column as usize, &placed.cell.to_string(), must)
}

fn wrong(rank: Rank, column: usize, text: &str, must: impl std::fmt::Display) -> Error {
    let place = format!("row {}, column {} (rank {rank})", rank.0 + 1, column + 1);
    Error::argument(WHAT, place, quoted(text), must)
}

/// The error for the row of `rank` as a whole.
pub(super) fn wrong_row(rank: Rank, why: impl std::fmt::Display) -> Error {
    invalid(format!("row {} (rank {rank}) {why}", rank.0 + 1))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("{WHAT}: {why}"))
}

fn parse_rows(text: &str, dialect: Dialect) -> Result<Vec<Vec<Placed>>> {
    if text.is_empty() {
        return Err(invalid("the text is empty, must have a row for each rank".into()));
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let lines = text.split('\n').count();
    if lines > RANKS_MAX as usize {
        return Err(Error::argument(
            WHAT,
            "the number of rows",
            lines,
            format!("must be at most {RANKS_MAX}"),
        ));
    }
    let mut rows = Vec::with_capacity(lines);
    for (r, line) in text.split('\n').enumerate() {
        let rank = Rank::from_index(r);
        let row = parse_row(line.strip_suffix('\r').unwrap_or(line), rank, dialect)?;
        if row.iter().all(|placed| placed.cell.op().is_none()) {
            return Err(wrong_row(rank, "computes nothing, while torch has one or more stages on each rank"));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn parse_row(line: &str, rank: Rank, dialect: Dialect) -> Result<Vec<Placed>> {
    let mut row = Vec::new();
    for (column, whole) in line.split(',').enumerate() {
        let unquoted = whole.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let text = unquoted.unwrap_or(whole).trim_matches(BLANK);
        if text.is_empty() {
            if dialect.has_communication() && !line.is_empty() {
                let must = format!("must not be blank in format {}", dialect.format);
                return Err(wrong(rank, column, whole, must));
            }
            continue;
        }
        let cell = Cell::parse(text, dialect).map_err(|must| wrong(rank, column, whole, must))?;
        let column =
            u32::try_from(column).map_err(|_| wrong(rank, column, whole, "must not be: too many columns"))?;
        row.push(Placed { column, cell });
    }
    Ok(row)
}

/// Every pass of every op, with its place.
fn passes(rows: &[Vec<Placed>]) -> impl Iterator<Item = (Rank, Placed, Pass)> + '_ {
    rows.iter().enumerate().flat_map(|(rank, row)| {
        row.iter().flat_map(move |&placed| {
            let passes = placed.cell.op().into_iter().flat_map(passes_of);
            passes.map(move |pass| (Rank::from_index(rank), placed, pass))
        })
    })
}

/// Each stage on the rank whose row computes it.
fn placement_of(rows: &[Vec<Placed>]) -> Result<Placement> {
    let num_stages = passes(rows).map(|(.., pass)| pass.stage.index() + 1).max().unwrap_or(0);
    let mut rank_of: Vec<Option<Rank>> = vec![None; num_stages];
    for (rank, placed, pass) in passes(rows) {
        let other = *rank_of[pass.stage.index()].get_or_insert(rank);
        if other != rank {
            let must = format!(
                "must be of another stage: stage {} is on rank {other}, and torch has each stage on one rank. A \
                 schedule of two directions, with each stage on two, cannot be a CSV; \"dualpipe_v\" is DualPipe \
                 folded onto half as many ranks",
                pass.stage
            );
            return Err(wrong_cell(rank, placed, must));
        }
    }
    if let Some(stage) = rank_of.iter().position(Option::is_none) {
        return Err(invalid(format!(
            "stage {stage} is on no rank, while stages 0 to {} must be there: there is a stage {0}",
            num_stages - 1
        )));
    }
    Placement::new(rows.len(), &[rank_of.into_iter().flatten().collect()])
}

fn num_microbatches(rows: &[Vec<Placed>]) -> usize {
    passes(rows).map(|(.., pass)| pass.microbatch.index() + 1).max().unwrap_or(0)
}

fn refuse_forwards_only(rows: &[Vec<Placed>]) -> Result<()> {
    let mut ops = rows.iter().flatten().filter_map(|placed| placed.cell.op());
    if ops.all(|op| matches!(op, Op::F(_))) {
        let why = "there are forwards only, which torch does not load; eval() of one for training does";
        return Err(invalid(why.into()));
    }
    Ok(())
}
