//! Whether the gradients of a stage's two copies are summed: once, when they are final, and in one order on both ranks.

use std::collections::BTreeMap;

use super::messages::NOWHERE;
use super::names::action_name;
use super::report::Faults;
use super::{Finding, Kind};
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Action, Pass, StageCopy, Task};
use crate::schedule::{Schedule, Work};

/// For each copy, by its index in the placement, where its rank reduces it first.
pub(super) type ReducedAt = Vec<u32>;

/// Adds [`Kind::ForeignReduction`], [`Kind::DoubledReduction`], [`Kind::MissingReduction`] and, where those are not,
/// [`Kind::CrossedReductions`]; with `ops_are_right` also [`Kind::PrematureReduction`].
pub(super) fn check(
    schedule: &Schedule,
    actions: &[Vec<Action>],
    ops_are_right: bool,
    faults: &mut Faults,
) -> ReducedAt {
    let mut reduced_at = vec![NOWHERE; schedule.placement().num_copies()];
    for (r, actions) in actions.iter().enumerate() {
        let rank = Rank::from_index(r);
        for (position, action) in actions.iter().enumerate() {
            let &Action::Run(Task::ReduceGrads(copy)) = action else { continue };
            let mut fault = |kind, why: String| {
                faults.add(kind, || {
                    let text = format!("rank {rank}, position {position} ({}): {why}", action_name(action));
                    Finding::new(kind, vec![rank], any_pass(copy), text)
                });
            };
            let index = match schedule.placement().copy_index(copy) {
                Some(index) if is_replicated(schedule, copy, rank) => index,
                _ => {
                    let why =
                        "no copy of this rank whose gradients are to be summed with another's".to_string();
                    fault(Kind::ForeignReduction, why);
                    continue;
                }
            };
            if reduced_at[index] != NOWHERE {
                fault(
                    Kind::DoubledReduction,
                    format!("the first time was at position {}", reduced_at[index]),
                );
                continue;
            }
            reduced_at[index] = position as u32;
        }
        if ops_are_right {
            after_last_weight_gradient(schedule, rank, actions, faults);
        }
    }
    for copy in all_copies(schedule) {
        let (Some(index), Some(rank)) =
            (schedule.placement().copy_index(copy), schedule.placement().rank_of(copy))
        else {
            continue;
        };
        if is_replicated(schedule, copy, rank) && reduced_at[index] == NOWHERE {
            faults.add(Kind::MissingReduction, || {
                let text = format!("rank {rank} has no {}", Task::ReduceGrads(copy));
                Finding::new(Kind::MissingReduction, vec![rank], any_pass(copy), text)
            });
        }
    }
    let kinds = [Kind::ForeignReduction, Kind::DoubledReduction, Kind::MissingReduction];
    if !faults.has_any(&kinds) {
        in_one_order(schedule, &reduced_at, faults);
    }
    reduced_at
}

/// What stands for a copy where a finding names passes.
fn any_pass(copy: StageCopy) -> [Pass; 1] {
    [Pass { direction: copy.direction, stage: copy.stage, microbatch: Microbatch(0) }]
}

fn is_replicated(schedule: &Schedule, copy: StageCopy, rank: Rank) -> bool {
    schedule.work() == Work::Training
        && schedule.placement().rank_of(copy) == Some(rank)
        && schedule.twin(copy).is_some()
}

fn all_copies(schedule: &Schedule) -> impl Iterator<Item = StageCopy> + '_ {
    let directions = &Direction::ALL[..schedule.placement().num_directions()];
    directions.iter().flat_map(|&direction| {
        let stages = 0..schedule.placement().num_stages();
        stages.map(move |stage| StageCopy { direction, stage: Stage(stage as u16) })
    })
}

fn after_last_weight_gradient(schedule: &Schedule, rank: Rank, actions: &[Action], faults: &mut Faults) {
    // Backwards, the first weight gradient of a copy is the last: a reduction that was met before it is right.
    let mut last_weight_gradient: BTreeMap<StageCopy, usize> = BTreeMap::new();
    for (position, action) in actions.iter().enumerate().rev() {
        match action {
            Action::Run(Task::Op(op)) => {
                if let Some(pass) = op.backward_weight() {
                    last_weight_gradient.entry(pass.copy()).or_insert(position);
                }
            }
            Action::Run(Task::ReduceGrads(copy)) if is_replicated(schedule, *copy, rank) => {
                let Some(last) = last_weight_gradient.get(copy) else { continue };
                faults.add(Kind::PrematureReduction, || {
                    let text = format!(
                        "rank {rank}, position {position} ({}): its last weight gradient is at {last}",
                        action_name(action)
                    );
                    Finding::new(Kind::PrematureReduction, vec![rank], any_pass(*copy), text)
                });
            }
            _ => {}
        }
    }
}

/// Where a stage is reduced on the lower of two ranks and on the higher, and the stage.
type Places = (u32, u32, Stage);

/// Each copy is reduced once.
fn in_one_order(schedule: &Schedule, reduced_at: &ReducedAt, faults: &mut Faults) {
    // For each two ranks, the stages that they share.
    let mut shared: BTreeMap<(Rank, Rank), Vec<Places>> = BTreeMap::new();
    for copy in all_copies(schedule).filter(|copy| copy.direction == Direction::Down) {
        let (Some(rank), Some((twin, twin_rank))) = (schedule.placement().rank_of(copy), schedule.twin(copy))
        else {
            continue;
        };
        let index = |copy| schedule.placement().copy_index(copy).map_or(NOWHERE, |index| reduced_at[index]);
        let (own, other) = (index(copy), index(twin));
        if own == NOWHERE || other == NOWHERE || rank == twin_rank {
            continue;
        }
        let (ranks, places) = if rank < twin_rank {
            ((rank, twin_rank), (own, other, copy.stage))
        } else {
            ((twin_rank, rank), (other, own, copy.stage))
        };
        shared.entry(ranks).or_default().push(places);
    }
    for ((low, high), mut stages) in shared {
        stages.sort_unstable();
        let Some(crossed) = stages.windows(2).find(|pair| pair[0].1 > pair[1].1) else { continue };
        let [(low_first, high_last, first), (low_last, high_first, second)] = [crossed[0], crossed[1]];
        faults.add(Kind::CrossedReductions, || {
            let on = |rank, first, first_at, second, second_at| {
                format!("\n  rank {rank}: stage {first} at {first_at}, then stage {second} at {second_at}")
            };
            let text = format!(
                "ranks {low} and {high} wait for each other{}{}",
                on(low, first, low_first, second, low_last),
                on(high, second, high_first, first, high_last)
            );
            Finding::new(Kind::CrossedReductions, vec![low, high], [], text)
        });
    }
}
