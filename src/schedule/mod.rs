//! A schedule: for every rank, the order of its ops. It knows neither time nor messages nor threads.

mod check;
mod chimera;
mod dualpipe;
mod dualpipe_v;
mod gpipe;
mod interleaved_1f1b;
mod interleaved_overlapped;
mod interleaved_zero_bubble;
mod looped_bfs;
mod messages;
mod one_f_one_b;
mod play;
mod tasks;
mod text;
pub mod torch_csv;
mod v_block;
mod v_half;
mod v_min;
mod zb_h1;
mod zb_h2;
mod zb_v;

pub use check::CheckReport;
pub use chimera::chimera;
pub use dualpipe::dualpipe;
pub use dualpipe_v::dualpipe_v;
pub use gpipe::gpipe;
pub use interleaved_1f1b::interleaved_1f1b;
pub use interleaved_overlapped::interleaved_overlapped;
pub use interleaved_zero_bubble::interleaved_zero_bubble;
pub use looped_bfs::looped_bfs;
pub use one_f_one_b::one_f_one_b;
pub use play::{play, Stuck, Visit, Wait};
pub use v_half::v_half;
pub use v_min::v_min;
pub use zb_h1::zb_h1;
pub use zb_h2::zb_h2;
pub use zb_v::zb_v;

use crate::error::{in_range, Error, Result};
use crate::ids::{Direction, Microbatch, Rank};
use crate::op::{Op, Pass};
use crate::placement::Placement;

/// Most micro-batches that a schedule may have.
pub const MICROBATCHES_MAX: usize = 1 << 20;
/// Most passes (parameter copies times micro-batches of their direction) that a schedule may have.
pub const PASSES_MAX: usize = 1 << 22;

/// What a step consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Every micro-batch goes forward and backward.
    Training,
    /// Every micro-batch goes forward: inference or evaluation.
    ForwardOnly,
}

/// For each rank of a placement, the order in which it computes.
///
/// Immutable; share it among threads freely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    name: String,
    placement: Placement,
    num_microbatches: usize,
    /// Of each direction.
    microbatches: [usize; 2],
    work: Work,
    orders: Vec<Vec<Op>>,
}

impl Schedule {
    /// A schedule from its parts. `orders[rank]` may be anything; [`Schedule::check`] says whether it can run.
    ///
    /// `num_microbatches` counts both directions together, 1 to [`MICROBATCHES_MAX`]; direction 0 gets the odd one.
    pub fn new(
        name: impl Into<String>,
        placement: Placement,
        num_microbatches: usize,
        work: Work,
        orders: Vec<Vec<Op>>,
    ) -> Result<Schedule> {
        let name = name.into();
        check_sizes(&name, &placement, num_microbatches)?;
        let num_ranks = placement.num_ranks();
        if orders.len() != num_ranks {
            let range = format!("must be {num_ranks}, one order per rank");
            return Err(Error::argument(&name, "the number of orders", orders.len(), range));
        }
        let microbatches = match placement.num_directions() {
            1 => [num_microbatches, 0],
            _ => [num_microbatches.div_ceil(2), num_microbatches / 2],
        };
        Ok(Schedule { name, placement, num_microbatches, microbatches, work, orders })
    }

    /// The same schedule by another name.
    pub fn renamed(self, name: impl Into<String>) -> Schedule {
        Schedule { name: name.into(), ..self }
    }

    /// The name of the published schedule it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name and sizes, for people.
    pub fn title(&self) -> String {
        let forward_only = if self.work == Work::ForwardOnly { ", forward only" } else { "" };
        let (num_ranks, num_microbatches) = (self.num_ranks(), self.num_microbatches);
        format!("{}, {num_ranks} ranks, {num_microbatches} micro-batches{forward_only}", self.name)
    }

    /// Who holds which stage.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// P.
    pub fn num_ranks(&self) -> usize {
        self.placement.num_ranks()
    }

    /// Micro-batches of a step, both directions together.
    pub fn num_microbatches(&self) -> usize {
        self.num_microbatches
    }

    /// Micro-batches that enter in `direction`.
    pub fn microbatches_in(&self, direction: Direction) -> usize {
        self.microbatches[direction.index()]
    }

    /// Training or forward only.
    pub fn work(&self) -> Work {
        self.work
    }

    /// The order of every rank.
    pub fn orders(&self) -> &[Vec<Op>] {
        &self.orders
    }

    /// The order of `rank`.
    pub fn order(&self, rank: Rank) -> &[Op] {
        &self.orders[rank.index()]
    }

    /// Slots for a table over all passes, indexed by [`Schedule::pass_index`].
    pub fn num_passes(&self) -> usize {
        self.placement.num_copies() * self.microbatches_in(Direction::Down)
    }

    /// A number of its own for each pass; `None` for a pass that this schedule does not have.
    pub fn pass_index(&self, pass: Pass) -> Option<usize> {
        let copy = pass.direction.index() * self.placement.num_stages() + pass.stage.index();
        let is_ours = pass.stage.index() < self.placement.num_stages()
            && pass.microbatch.index() < self.microbatches[pass.direction.index()];
        is_ours.then(|| copy * self.microbatches[0] + pass.microbatch.index())
    }
}

/// The limits that keep every table of a schedule small enough to allocate.
fn check_sizes(name: &str, placement: &Placement, num_microbatches: usize) -> Result<()> {
    in_range(name, "num_microbatches", num_microbatches, 1..=MICROBATCHES_MAX)?;
    let per_direction = num_microbatches.div_ceil(placement.num_directions());
    let limit = PASSES_MAX / placement.num_copies() * placement.num_directions();
    if per_direction * placement.num_copies() > PASSES_MAX {
        let range = format!("must be at most {limit} for {} stages", placement.num_stages());
        return Err(Error::argument(name, "num_microbatches", num_microbatches, range));
    }
    Ok(())
}

impl Microbatch {
    /// The micro-batch of a table's `index`, which [`MICROBATCHES_MAX`] keeps small.
    pub(crate) fn from_index(index: usize) -> Microbatch {
        Microbatch(index as u32)
    }
}
