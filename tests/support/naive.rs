//! A schedule checker so simple that it is unlikely to be wrong: the oracle for the real one.

use std::collections::BTreeSet;

use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Op, Pass, StageCopy, Task};
use dualpipe::schedule::{Schedule, Work};

/// Whether the schedule can run: tries it, one op at a time, from the definition.
pub(crate) fn can_run(schedule: &Schedule) -> bool {
    // What has been done: "F", "I" (input gradient) or "W" (weight gradient) of a pass.
    let mut done: BTreeSet<(&str, Pass)> = BTreeSet::new();
    let mut arrived: BTreeSet<StageCopy> = BTreeSet::new();
    let ranks: Vec<Rank> = (0..schedule.num_ranks()).map(|rank| Rank(rank as u32)).collect();
    let mut rest: Vec<Vec<Task>> = ranks.iter().map(|&rank| schedule.tasks(rank)).collect();
    loop {
        let mut moved = false;
        for &rank in &ranks {
            let Some(&task) = rest[rank.index()].first() else { continue };
            let op = match task {
                Task::Op(op) => op,
                Task::ReduceGrads(copy) => {
                    moved |= arrived.insert(copy);
                    let twin = StageCopy { direction: copy.direction.opposite(), ..copy };
                    if arrived.contains(&twin) || schedule.placement().rank_of(twin) == Some(rank) {
                        rest[rank.index()].remove(0);
                        moved = true;
                    }
                    continue;
                }
            };
            let parts = match op {
                Op::F(p) => vec![("F", p)],
                Op::B(p) => vec![("I", p), ("W", p)],
                Op::I(p) => vec![("I", p)],
                Op::W(p) => vec![("W", p)],
                Op::FB(f, b) => vec![("F", f), ("I", b), ("W", b)],
            };
            // All that the op needs must have been done before it, none of it by itself.
            let own_parts_ok = parts.iter().all(|&(part, pass)| {
                let is_ours = schedule.placement().rank_of(pass.copy()) == Some(rank)
                    && pass.microbatch.index() < schedule.microbatches_in(pass.direction);
                is_ours && !done.contains(&(part, pass)) && (part == "F" || schedule.work() == Work::Training)
            });
            if !own_parts_ok {
                return false;
            }
            let ready = parts.iter().all(|&(part, pass)| match part {
                "F" => {
                    pass.stage.0 == 0
                        || done.contains(&("F", Pass { stage: Stage(pass.stage.0 - 1), ..pass }))
                }
                "I" => {
                    let last = pass.stage.index() + 1 == schedule.placement().num_stages();
                    let next = Pass { stage: Stage(pass.stage.0 + 1), ..pass };
                    done.contains(&("F", pass)) && (last || done.contains(&("I", next)))
                }
                _ => done.contains(&("I", pass)) || parts.contains(&("I", pass)),
            });
            if ready {
                done.extend(parts);
                rest[rank.index()].remove(0);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let parts: &[&str] = if schedule.work() == Work::Training { &["F", "I", "W"] } else { &["F"] };
    let complete = (0..schedule.placement().num_directions()).all(|d| {
        let direction = Direction::ALL[d];
        (0..schedule.placement().num_stages()).all(|stage| {
            (0..schedule.microbatches_in(direction)).all(|i| {
                let pass = Pass { direction, stage: Stage(stage as u16), microbatch: Microbatch(i as u32) };
                parts.iter().all(|&part| done.contains(&(part, pass)))
            })
        })
    });
    complete && rest.iter().all(Vec::is_empty)
}
