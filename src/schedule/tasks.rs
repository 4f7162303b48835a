//! A rank's order with the gradient reductions put in.

use super::{Schedule, Work};
use crate::ids::{Direction, Rank};
use crate::op::{StageCopy, Task};

impl Schedule {
    /// The tasks of `rank`: its order, with one REDUCE_GRADS for each parameter copy that has a twin in the other
    /// direction, right after the copy's last weight gradient.
    pub fn tasks(&self, rank: Rank) -> Vec<Task> {
        let order = self.order(rank);
        let copies = self.placement().copies_on(rank);
        let is_replicated = self.placement().num_directions() == 2 && self.work() == Work::Training;
        let last_weight_gradient = |copy: StageCopy| {
            order.iter().rposition(|op| op.backward_weight().is_some_and(|pass| pass.copy() == copy))
        };
        let mut final_at: Vec<(usize, StageCopy)> = Vec::new();
        if is_replicated {
            final_at.extend(copies.iter().filter_map(|&copy| Some((last_weight_gradient(copy)?, copy))));
            // Both ranks of a stage pair must reduce in one order, also where one op ends both copies: by stage.
            final_at.sort_unstable_by_key(|&(position, copy)| (position, copy.stage));
        }
        let mut tasks = Vec::with_capacity(order.len() + final_at.len());
        let mut final_at = final_at.into_iter().peekable();
        for (position, &op) in order.iter().enumerate() {
            tasks.push(Task::Op(op));
            while let Some((_, copy)) = final_at.next_if(|&(at, _)| at == position) {
                tasks.push(Task::ReduceGrads(copy));
            }
        }
        tasks
    }

    /// The copies of `copy`'s stage in the other direction, with which its gradients are summed.
    pub fn twin(&self, copy: StageCopy) -> Option<(StageCopy, Rank)> {
        let twin = StageCopy { direction: Direction::opposite(copy.direction), ..copy };
        Some((twin, self.placement().rank_of(twin)?))
    }
}
