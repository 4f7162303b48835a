//! Whether each pass is there: once, on its rank, and after what it needs of the same rank.

use super::names::describe;
use super::report::Faults;
use super::{all_passes, Finding, Kind};
use crate::ids::{Rank, Stage};
use crate::op::{Op, Pass};
use crate::schedule::{Schedule, Work};

/// Adds [`Kind::ForeignOp`], [`Kind::DoubledOp`], [`Kind::MissingOp`] and [`Kind::OpOrder`].
pub(super) fn check(schedule: &Schedule, faults: &mut Faults) {
    let first_at = each_once(schedule, faults);
    in_order(schedule, &first_at, faults);
}

/// A part of a pass's life, as an index into [`FirstAt`].
#[derive(Clone, Copy)]
enum Part {
    Forward,
    Input,
    Weight,
}

impl Part {
    const ALL: [Part; 3] = [Part::Forward, Part::Input, Part::Weight];

    fn name(self) -> &'static str {
        match self {
            Part::Forward => "F",
            Part::Input => "backward for the input",
            Part::Weight => "backward for the weights",
        }
    }
}

/// `[pass]`: the positions, on the rank that holds its stage, where each [`Part`] is done for the first time.
type FirstAt = Vec<[u32; 3]>;
const NEVER: u32 = u32::MAX;

fn parts(op: Op) -> impl Iterator<Item = (Part, Pass)> {
    let passes = [op.forward(), op.backward_input(), op.backward_weight()];
    Part::ALL.into_iter().zip(passes).filter_map(|(part, pass)| Some((part, pass?)))
}

fn each_once(schedule: &Schedule, faults: &mut Faults) -> FirstAt {
    let mut first_at = vec![[NEVER; 3]; schedule.num_passes()];
    for (r, order) in schedule.orders().iter().enumerate() {
        let rank = Rank::from_index(r);
        for (position, &op) in order.iter().enumerate() {
            let mut fault = |kind, pass, why: &str| {
                faults.add(kind, || {
                    let text = format!("rank {rank}, position {position} ({op}): {why}");
                    Finding::new(kind, vec![rank], [pass], text)
                });
            };
            if let Some((pass, why)) = foreign(schedule, rank, op) {
                fault(Kind::ForeignOp, pass, &why);
            }
            for (part, pass) in parts(op) {
                if foreign_part(schedule, rank, part, pass).is_some() {
                    continue;
                }
                let Some(index) = schedule.pass_index(pass) else { continue };
                match &mut first_at[index][part as usize] {
                    first if *first == NEVER => *first = position as u32,
                    first => {
                        let why =
                            format!("the {} of {} was at position {first}", part.name(), describe(pass));
                        fault(Kind::DoubledOp, pass, &why);
                    }
                }
            }
        }
    }
    let num_parts = if schedule.work() == Work::Training { 3 } else { 1 };
    for pass in all_passes(schedule) {
        let Some(index) = schedule.pass_index(pass) else { continue };
        for part in &Part::ALL[..num_parts] {
            if first_at[index][*part as usize] == NEVER {
                faults.add(Kind::MissingOp, || {
                    let rank = schedule.placement().rank_of(pass.copy()).unwrap_or(Rank(0));
                    let text = format!("rank {rank} has no {} of {}", part.name(), describe(pass));
                    Finding::new(Kind::MissingOp, vec![rank], [pass], text)
                });
            }
        }
    }
    first_at
}

/// The pass for which `op` does not belong on `rank`, and why.
fn foreign(schedule: &Schedule, rank: Rank, op: Op) -> Option<(Pass, String)> {
    parts(op).find_map(|(part, pass)| Some((pass, foreign_part(schedule, rank, part, pass)?)))
}

fn foreign_part(schedule: &Schedule, rank: Rank, part: Part, pass: Pass) -> Option<String> {
    let placement = schedule.placement();
    match placement.rank_of(pass.copy()) {
        None => {
            let (stages, directions) = (placement.num_stages(), placement.num_directions());
            Some(format!("no such stage: there are {stages} in {directions} direction(s)"))
        }
        Some(holder) if holder != rank => Some(format!("{} belongs to rank {holder}", describe(pass))),
        Some(_) if schedule.pass_index(pass).is_none() => {
            let n = schedule.microbatches_in(pass.direction);
            Some(format!("no such micro-batch: direction {} has {n}", pass.direction))
        }
        Some(_) if schedule.work() == Work::ForwardOnly && !matches!(part, Part::Forward) => {
            Some("a backward in a schedule that only goes forward".to_string())
        }
        Some(_) => None,
    }
}

/// Each backward after its F, each W not before its I; and what one stage needs of a stage on the same rank.
fn in_order(schedule: &Schedule, first_at: &FirstAt, faults: &mut Faults) {
    let placement = schedule.placement();
    for pass in all_passes(schedule) {
        let Some(index) = schedule.pass_index(pass) else { continue };
        let [forward, input, weight] = first_at[index];
        let Some(rank) = placement.rank_of(pass.copy()) else { continue };
        let mut fault = |late: u32, early: u32, what: &str| {
            faults.add(Kind::OpOrder, || {
                let op = schedule.order(rank)[early as usize];
                let text = format!(
                    "rank {rank}, position {early} ({op}): needs the {what}, which the rank has at position {late}"
                );
                Finding::new(Kind::OpOrder, vec![rank], [pass], text)
            });
        };
        let done = |position: u32| position != NEVER;
        if done(forward) && done(input) && input <= forward {
            fault(forward, input, "F of the same pass");
        }
        if done(forward) && done(weight) && weight <= forward && weight != input {
            fault(forward, weight, "F of the same pass");
        }
        if done(input) && done(weight) && weight < input {
            fault(input, weight, "backward for the input of the same pass");
        }
        let here = |stage: Stage| {
            let other = Pass { stage, ..pass };
            let index = schedule.pass_index(other).filter(|_| placement.rank_of(other.copy()) == Some(rank));
            index.map(|index| first_at[index])
        };
        if let Some([needed, ..]) = placement.previous(pass.copy()).and_then(|copy| here(copy.stage)) {
            if done(forward) && done(needed) && forward < needed {
                fault(needed, forward, "output of the previous stage, of the same rank");
            }
        }
        if let Some([_, needed, _]) = placement.next(pass.copy()).and_then(|copy| here(copy.stage)) {
            if done(input) && done(needed) && input < needed {
                fault(needed, input, "gradient from the next stage, of the same rank");
            }
        }
    }
}
