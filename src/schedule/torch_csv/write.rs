//! A schedule as a CSV for torch.

use std::fmt::Write as _;

use super::cell::Cell;
use super::lower::lower;
use super::{Dialect, Format, TorchVersion, WHAT};
use crate::error::{Error, Result};
use crate::ids::{Rank, Stage};
use crate::op::Op;
use crate::schedule::{Schedule, Work};

/// `schedule` as the CSV that `_PipelineScheduleRuntime._load_csv(path, format)` of torch `version` loads.
///
/// Pairs stay pairs in `compute_only` from 2.9 and in `compute_comms` from 2.10; before, torch has none and they are
/// forward, then backward. `compute_comms` has the sends and receives, the gathering and releasing of sharded
/// parameters (UNSHARD before the first action, RESHARD after a stage's last one), from 2.10 the gradient
/// reductions, from 2.15 the waits.
///
/// Time: proportional to the length of the text, times the logarithm of the ranks for `compute_comms`.
///
/// # Errors
/// - [`InvalidArgument`](crate::ErrorKind::InvalidArgument): a version before [`TorchVersion::OLDEST`], or for
///   `compute_comms` after [`TorchVersion::NEWEST`]; and schedules that torch does not run: of two directions, of
///   inference, with a rank that holds no stage, or with a last stage that takes micro-batches out of their order.
/// - [`InvalidSchedule`](crate::ErrorKind::InvalidSchedule): the schedule fails its [`check`](Schedule::check).
pub fn write_csv(schedule: &Schedule, version: TorchVersion, format: Format) -> Result<String> {
    let dialect = Dialect::new(version, format)?;
    refuse_what_torch_does_not_run(schedule)?;
    schedule.check()?;
    let rows = schedule.orders().iter().map(|order| compute_row(order, dialect));
    let rows: Vec<Vec<Cell>> = rows.collect();
    Ok(if dialect.has_communication() { text_of(&lower(schedule, &rows, dialect)) } else { text_of(&rows) })
}

fn refuse_what_torch_does_not_run(schedule: &Schedule) -> Result<()> {
    let name = schedule.name();
    if schedule.placement().num_directions() != 1 {
        let range =
            "of two directions: each stage is on two ranks, while torch's pipelining has each stage on one \
                     rank; \"dualpipe_v\" is DualPipe folded onto half as many ranks";
        return Err(Error::argument(WHAT, "schedule", name, range));
    }
    if schedule.work() == Work::ForwardOnly {
        let range = "forward_only, which torch does not load; eval() of one for training does";
        return Err(Error::argument(WHAT, "schedule", name, range));
    }
    let mut ranks = (0..schedule.num_ranks()).map(Rank::from_index);
    if let Some(rank) = ranks.find(|&rank| schedule.placement().copies_on(rank).is_empty()) {
        let range = format!("with no stage on rank {rank}, while torch has one or more on each rank");
        return Err(Error::argument(WHAT, "schedule", name, range));
    }
    refuse_losses_out_of_order(schedule)
}

fn refuse_losses_out_of_order(schedule: &Schedule) -> Result<()> {
    let last = Stage(schedule.placement().num_stages() as u16 - 1);
    let forwards = schedule.orders().iter().flatten().filter_map(|op| op.forward());
    let forwards: Vec<_> = forwards.filter(|f| f.stage == last).map(|f| f.microbatch).collect();
    match forwards.windows(2).find(|two| two[0] > two[1]) {
        Some(two) => {
            let range = format!(
                "with the forwards of stage {last} out of order, {} before {}; torch takes losses in order",
                two[0], two[1]
            );
            Err(Error::argument(WHAT, "schedule", schedule.name(), range))
        }
        None => Ok(()),
    }
}

fn compute_row(order: &[Op], dialect: Dialect) -> Vec<Cell> {
    let mut row = Vec::with_capacity(order.len());
    for &op in order {
        match op {
            Op::FB(forward, backward) if !dialect.has_pairs() => {
                row.extend([Cell::Op(Op::F(forward)), Cell::Op(Op::B(backward))]);
            }
            _ => row.push(Cell::Op(op)),
        }
    }
    row
}

fn text_of(rows: &[Vec<Cell>]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                text.push(',');
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell}");
        }
        text.push('\n');
    }
    text
}
