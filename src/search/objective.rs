//! What a search minimises.

use super::critical::{CriticalPath, Place};
use super::evaluate::Clock;
use super::model::{Model, Words};
use crate::random::Random;

/// What some words cost: less by goal, then by guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost {
    /// What is wanted: as little as possible of it.
    pub(super) goal: u64,
    /// What annealing goes by: the goal and what is likely to lead to less of it.
    pub(super) guide: u64,
}

/// What a search minimises.
pub(super) trait Objective: Send {
    /// The cost of these words. `None`, or any, if its guide is above `threshold`; `None` if the words cannot run.
    fn cost(&mut self, model: &Model, words: &Words, threshold: u64) -> Option<Cost>;

    /// Finds steps that a change must touch to lower the cost: [`Objective::critical`] gives them.
    fn find_critical(&mut self, model: &Model, words: &Words, random: &mut Random);

    /// Those found last: rank and position.
    fn critical(&self) -> &[Place];

    /// How much the guide grows if all takes a nanosecond longer.
    fn per_ns(&self) -> u64;
}

/// The makespan, and with as much weight the mean of when each rank is done: most changes leave the makespan as it
/// is, and those that let other ranks end sooner lead on to better ones.
pub(super) struct Makespan {
    clock: Clock,
    critical: CriticalPath,
    num_ranks: u64,
}

impl Makespan {
    pub(super) fn new(model: &Model) -> Makespan {
        Makespan {
            clock: Clock::new(model),
            critical: CriticalPath::new(),
            num_ranks: model.num_ranks() as u64,
        }
    }
}

impl Objective for Makespan {
    fn cost(&mut self, model: &Model, words: &Words, threshold: u64) -> Option<Cost> {
        let limit_ns = threshold / self.num_ranks;
        let length = self.clock.length(model, words, limit_ns)?;
        let guide = length.makespan_ns.saturating_mul(self.num_ranks).saturating_add(length.sum_of_ends_ns);
        Some(Cost { goal: length.makespan_ns, guide })
    }

    fn find_critical(&mut self, model: &Model, words: &Words, random: &mut Random) {
        self.critical.find(&mut self.clock, model, words, |n| random.below(n));
    }

    fn critical(&self) -> &[Place] {
        self.critical.path()
    }

    fn per_ns(&self) -> u64 {
        2 * self.num_ranks
    }
}
