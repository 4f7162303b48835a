//! A rank's order with the gradient reductions put in.
//!
//! A reduction waits for its twin's rank, so where it stands decides whether ranks can wait for one another. Both of
//! these keep that from happening, whatever the order of the ops: a rank reduces when all that it does for other
//! ranks is done, and it reduces its stages in their order. Then the least stage that is still to be reduced has both
//! its ranks on their way to it.

use super::{Schedule, Work};
use crate::ids::{Direction, Rank};
use crate::op::{Op, StageCopy, Task};

impl Schedule {
    /// The tasks of `rank`: its order, with one REDUCE_GRADS for each parameter copy that has a twin in the other
    /// direction, in order of stages: behind the copy's last weight gradient, the rank's last F, B and I, and the
    /// reductions of lesser stages.
    pub fn tasks(&self, rank: Rank) -> Vec<Task> {
        let order = self.order(rank);
        let mut reductions = self.reductions(rank).into_iter().peekable();
        let mut tasks = Vec::with_capacity(order.len() + reductions.len());
        for position in 0..=order.len() {
            while let Some((_, copy)) = reductions.next_if(|&(at, _)| at == position) {
                tasks.push(Task::ReduceGrads(copy));
            }
            tasks.extend(order.get(position).map(|&op| Task::Op(op)));
        }
        tasks
    }

    /// The copies that `rank` reduces, in order, each with the position of its order before which it does.
    fn reductions(&self, rank: Rank) -> Vec<(usize, StageCopy)> {
        if self.placement().num_directions() != 2 || self.work() != Work::Training {
            return Vec::new();
        }
        let order = self.order(rank);
        let behind_last =
            |is_it: &dyn Fn(&Op) -> bool| order.iter().rposition(is_it).map_or(0, |last| last + 1);
        let mut earliest = behind_last(&|op| !matches!(op, Op::W(_)));
        let mut copies = self.placement().copies_on(rank).to_vec();
        copies.sort_unstable_by_key(|copy| (copy.stage, copy.direction));
        let at = |copy: StageCopy| {
            let ends = |op: &Op| op.backward_weight().is_some_and(|pass| pass.copy().stage == copy.stage);
            earliest = earliest.max(behind_last(&ends));
            (earliest, copy)
        };
        copies.into_iter().map(at).collect()
    }

    /// The copies of `copy`'s stage in the other direction, with which its gradients are summed.
    pub fn twin(&self, copy: StageCopy) -> Option<(StageCopy, Rank)> {
        let twin = StageCopy { direction: Direction::opposite(copy.direction), ..copy };
        Some((twin, self.placement().rank_of(twin)?))
    }
}
