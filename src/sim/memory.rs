//! The bytes that a schedule keeps on each rank.

use crate::cost::{Costs, COST_BYTES_MAX};
use crate::error::{in_range, Error, Result};
use crate::ids::Rank;
use crate::schedule::{Schedule, Work};

/// How much a schedule may keep on each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryCap {
    /// As much as it likes.
    Unlimited,
    /// At most so many micro-batch activations alive at once, as [`Schedule::peak_live`] counts them: of each rank, or
    /// one entry that is every rank's.
    Activations(Vec<usize>),
    /// At most so many bytes, as [`peak_memory_bytes`] counts them, parameters included: of each rank, or one entry.
    Bytes(Vec<u64>),
}

impl MemoryCap {
    /// Fails unless it is a cap for `num_ranks` ranks.
    pub fn fit(&self, num_ranks: usize) -> Result<()> {
        let entries = match self {
            MemoryCap::Unlimited => return Ok(()),
            MemoryCap::Activations(caps) => caps.len(),
            MemoryCap::Bytes(caps) => caps.len(),
        };
        if entries != 1 && entries != num_ranks {
            let range = format!("must be 1 or {num_ranks}, one for each rank");
            return Err(Error::argument("memory cap", "the number of entries", entries, range));
        }
        match self {
            MemoryCap::Unlimited => Ok(()),
            MemoryCap::Activations(caps) => caps.iter().enumerate().try_for_each(|(rank, &cap)| {
                in_range("memory cap", &format!("activations[{rank}]"), cap, 1..=usize::MAX)?;
                Ok(())
            }),
            MemoryCap::Bytes(caps) => caps.iter().enumerate().try_for_each(|(rank, &cap)| {
                in_range("memory cap", &format!("bytes[{rank}]"), cap, 0..=COST_BYTES_MAX)?;
                Ok(())
            }),
        }
    }

    /// The most activations that may be alive on `rank`; `None` if their number is not what is limited.
    pub fn activations(&self, rank: Rank) -> Option<usize> {
        match self {
            MemoryCap::Activations(caps) => Some(caps[rank.index().min(caps.len() - 1)]),
            MemoryCap::Unlimited | MemoryCap::Bytes(_) => None,
        }
    }

    /// The most bytes that `rank` may hold; `None` if they are not what is limited.
    pub fn bytes(&self, rank: Rank) -> Option<u64> {
        match self {
            MemoryCap::Bytes(caps) => Some(caps[rank.index().min(caps.len() - 1)]),
            MemoryCap::Unlimited | MemoryCap::Activations(_) => None,
        }
    }

    /// Whether a schedule that passes its check keeps to it.
    pub fn admits(&self, schedule: &Schedule, costs: &Costs) -> bool {
        let ranks = (0..schedule.num_ranks()).map(Rank::from_index);
        match self {
            MemoryCap::Unlimited => true,
            MemoryCap::Activations(_) => {
                let peaks = schedule.peak_live();
                ranks.zip(peaks).all(|(rank, peak)| self.activations(rank).is_none_or(|cap| peak <= cap))
            }
            MemoryCap::Bytes(_) => {
                let peaks = peak_memory_bytes(schedule, costs);
                ranks.zip(peaks).all(|(rank, peak)| self.bytes(rank).is_none_or(|cap| peak <= cap))
            }
        }
    }
}

/// `[rank]`: the parameters of its copies and the most activations alive at once.
///
/// A micro-batch is alive on a stage from the start of its F to the end of its B or W (forward only: of its F); an
/// overlapped pair begins its forward before its backward ends.
pub fn peak_memory_bytes(schedule: &Schedule, costs: &Costs) -> Vec<u64> {
    (0..schedule.num_ranks()).map(|rank| rank_peak_bytes(schedule, costs, Rank::from_index(rank))).collect()
}

fn rank_peak_bytes(schedule: &Schedule, costs: &Costs, rank: Rank) -> u64 {
    let copies = schedule.placement().copies_on(rank);
    let mut alive: u64 = copies.iter().map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
    let mut peak = alive;
    for op in schedule.order(rank) {
        let forward = op.forward().map_or(0, |pass| costs.stage(pass.stage).activation_bytes);
        alive += forward;
        peak = peak.max(alive);
        alive -= match schedule.work() {
            Work::ForwardOnly => forward,
            Work::Training => op.backward_weight().map_or(0, |p| costs.stage(p.stage).activation_bytes),
        };
    }
    peak
}
