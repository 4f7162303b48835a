//! The checks of schedules and programs, against seeded corruptions and a naive oracle.

mod support;

use dualpipe::ids::{Direction, Microbatch, Rank};
use dualpipe::op::{Op, Pass, StageCopy};
use dualpipe::placement::Placement;
use dualpipe::program::{check, lower, Instruction, Program};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::ErrorKind;
use fastrand::Rng;
use support::{family, naive};

fn some_schedule(rng: &mut Rng) -> Schedule {
    let half = rng.usize(1..=4);
    let extra = rng.usize(0..6);
    match rng.usize(0..3) {
        0 => dualpipe(2 * half, 4 * half - 2 + 2 * extra, Work::Training),
        1 => dualpipe_v(half, 2 * half - 1 + extra, Work::Training),
        _ => one_f_one_b(2 * half, 1 + extra, Work::Training),
    }
    .unwrap()
}

fn with_orders(schedule: &Schedule, orders: Vec<Vec<Op>>) -> Schedule {
    let placement = schedule.placement().clone();
    Schedule::new("corrupted", placement, schedule.num_microbatches(), schedule.work(), orders).unwrap()
}

/// A position of some rank, drawn evenly.
fn place(rng: &mut Rng, orders: &[Vec<Op>]) -> (usize, usize) {
    let rank = rng.usize(0..orders.len());
    (rank, rng.usize(0..orders[rank].len()))
}

/// Corruptions after which no schedule can run.
fn corrupt(rng: &mut Rng, schedule: &Schedule) -> Option<(&'static str, Schedule)> {
    let mut orders = schedule.orders().to_vec();
    let (rank, at) = place(rng, &orders);
    let what = match rng.usize(0..5) {
        0 => {
            orders[rank].remove(at);
            "drop"
        }
        1 => {
            let op = orders[rank][at];
            let to = rng.usize(0..=orders[rank].len());
            orders[rank].insert(to, op);
            "duplicate"
        }
        2 => {
            let op = orders[rank].remove(at);
            let other = (rank + 1 + rng.usize(0..orders.len().max(2) - 1)) % orders.len();
            if other == rank {
                return None;
            }
            let to = rng.usize(0..=orders[other].len());
            orders[other].insert(to, op);
            "move to another rank"
        }
        3 => {
            // A forward with its own backward.
            let pass = orders[rank][at].forward()?;
            let backward = orders[rank].iter().position(|op| op.backward_input() == Some(pass))?;
            orders[rank].swap(at, backward);
            "swap"
        }
        _ => {
            orders[rank][at] = match orders[rank][at] {
                Op::F(p) => Op::B(p),
                Op::B(p) => Op::I(p),
                Op::I(p) => Op::W(p),
                Op::W(p) => Op::B(p),
                Op::FB(f, b) => Op::FB(b, f),
            };
            "another op"
        }
    };
    Some((what, with_orders(schedule, orders)))
}

#[test]
fn every_seeded_corruption_is_rejected() {
    let mut rejected = 0;
    let (seeds, all) = support::seeds(4000);
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let schedule = some_schedule(&mut rng);
        let Some((what, corrupted)) = corrupt(&mut rng, &schedule) else { continue };
        let Err(error) = corrupted.check() else { panic!("SEED={seed}: {what} went unnoticed") };
        assert_eq!(error.kind(), ErrorKind::InvalidSchedule);
        let text = error.to_string();
        for part in ["rank ", "position ", "("] {
            assert!(text.contains(part), "SEED={seed}, {what}: no {part:?} in {text}");
        }
        rejected += 1;
    }
    assert!(rejected > 3000 || !all, "only {rejected} corruptions");
}

/// Arbitrary swaps may or may not leave a schedule that can run: the check says what the oracle says.
#[test]
fn the_check_agrees_with_a_naive_one_on_random_swaps() {
    let (mut valid, mut invalid) = (0, 0);
    let (seeds, all) = support::seeds(600);
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let schedule = some_schedule(&mut rng);
        let mut orders = schedule.orders().to_vec();
        for _ in 0..rng.usize(1..=2) {
            let (rank, at) = place(&mut rng, &orders);
            let to = (at + rng.usize(1..4)).min(orders[rank].len() - 1);
            orders[rank].swap(at, to);
        }
        let swapped = with_orders(&schedule, orders);
        let can_run = naive::can_run(&swapped);
        let checked = swapped.check();
        assert_eq!(checked.is_ok(), can_run, "SEED={seed}: {checked:?}");
        if can_run {
            lower(&swapped).unwrap_or_else(|e| panic!("SEED={seed}: {e}"));
            valid += 1;
        } else {
            invalid += 1;
        }
    }
    assert!(valid > 50 && invalid > 50 || !all, "{valid} valid, {invalid} not");
}

/// The oracle itself, by hand.
#[test]
fn the_naive_check_knows_a_good_schedule_from_a_bad_one() {
    let good = one_f_one_b(2, 2, Work::Training).unwrap();
    assert!(naive::can_run(&good));
    let mut orders = good.orders().to_vec();
    orders[1].swap(0, 1);
    assert!(!naive::can_run(&with_orders(&good, orders)));
}

#[test]
fn a_rejection_says_rank_position_op_and_why() {
    let schedule = one_f_one_b(2, 2, Work::Training).unwrap();
    let orders = schedule.orders();
    let changed = |change: &dyn Fn(&mut Vec<Vec<Op>>)| {
        let mut orders = orders.to_vec();
        change(&mut orders);
        with_orders(&schedule, orders).check().unwrap_err().to_string()
    };
    // 0|F0 F1 B0 B1   1|F0 B0 F1 B1
    for (text, want) in [
        (
            changed(&|o| o[1].truncate(3)),
            "corrupted: rank 1, position 3 (end): no B or I for micro-batch 1 of direction 0 at stage 1",
        ),
        (
            changed(&|o| o[0].push(orders[0][0])),
            "corrupted: rank 0, position 4 (0F0): this F is done twice (micro-batch 0 of direction 0 at stage 0)",
        ),
        (
            changed(&|o| o[1].push(orders[0][0])),
            "corrupted: rank 1, position 4 (0F0): micro-batch 0 of direction 0 at stage 0 belongs to rank 0",
        ),
        (
            changed(&|o| o[1].swap(0, 1)),
            "corrupted: rank 1, position 0 (1B0): this backward comes before its F (micro-batch 0 of direction 0 at stage 1)",
        ),
        (
            changed(&|o| { o[0].swap(1, 2); o[1].swap(1, 2) }),
            "corrupted: rank 0, position 1 (0B0): waits for the gradient of micro-batch 0 from stage 1 to 0 in direction 0; rank 1, position 1 (1F1): waits for the activation of micro-batch 1 from stage 0 to 1 in direction 0; none of it can ever come: deadlock",
        ),
    ] {
        assert_eq!(text, want);
    }
}

#[test]
fn every_schedule_lowers_to_programs_that_can_run() {
    for num_ranks in 1..=16 {
        for num_microbatches in (1..=34).chain([48, 64]) {
            for schedule in family(num_ranks, num_microbatches) {
                let programs = lower(&schedule).unwrap_or_else(|e| panic!("{e}"));
                let reductions = |program: &Program| {
                    let is_reduction = |i: &&Instruction| i.to_string().contains("REDUCE_GRADS");
                    program.instructions().iter().filter(is_reduction).count()
                };
                let has_twins = schedule.placement().num_directions() == 2;
                let replicated = has_twins && schedule.work() == Work::Training;
                assert!(programs.iter().all(|p| reductions(p) == if replicated { 2 } else { 0 }));
            }
        }
    }
}

#[test]
fn a_program_by_eye() {
    let programs = lower(&dualpipe(2, 2, Work::Training).unwrap()).unwrap();
    let lines: String = programs[0].instructions().iter().map(|i| format!("{i}\n")).collect();
    expect_test::expect![[r#"
        RUN 0F0
        SEND activation of micro-batch 0 from stage 0 to 1 in direction 0 to rank 1 from buffer 0
        RECEIVE activation of micro-batch 0 from stage 0 to 1 in direction 1 from rank 1 into buffer 1
        RUN 1f0
        RUN 1b0
        SEND gradient of micro-batch 0 from stage 1 to 0 in direction 1 to rank 1 from buffer 2
        FREE buffer 1
        RECEIVE gradient of micro-batch 0 from stage 1 to 0 in direction 0 from rank 1 into buffer 3
        RUN 0I0
        RUN 0W0
        FREE buffer 3
        RUN REDUCE_GRADS 0/0
        RUN REDUCE_GRADS 1/1
        FREE buffer 0
        FREE buffer 2
    "#]]
    .assert_eq(&lines);
}

/// Every single change of a program's instructions, but for those that change nothing of what must hold.
#[test]
fn a_corrupted_program_is_rejected() {
    for schedule in [dualpipe(4, 6, Work::Training).unwrap(), dualpipe_v(2, 4, Work::Training).unwrap()] {
        let programs = lower(&schedule).unwrap();
        for rank in 0..programs.len() {
            for at in 0..programs[rank].instructions().len() {
                let instruction = programs[rank].instructions()[at];
                let mut dropped = programs[rank].instructions().to_vec();
                dropped.remove(at);
                let mut doubled = programs[rank].instructions().to_vec();
                doubled.insert(at, instruction);
                let mut late = dropped.clone();
                late.push(instruction);
                for (what, instructions) in [("drop", dropped), ("duplicate", doubled), ("last", late)] {
                    let rest = &programs[rank].instructions()[at + 1..];
                    let only_frees_follow = rest.iter().all(|i| matches!(i, Instruction::Free(_)));
                    let last_may_be_last =
                        what == "last" && (only_frees_follow || matches!(instruction, Instruction::Free(_)));
                    let mut programs = programs.clone();
                    programs[rank] = programs[rank].with_instructions(instructions);
                    let checked = check(&schedule, &programs);
                    assert!(checked.is_err() || last_may_be_last, "rank {rank}: {what} {at} ({instruction})");
                }
            }
        }
    }
}

/// Two copies on one rank, a copy without micro-batches, weight gradients in opposite orders: no reduction waits for
/// ever.
#[test]
fn reductions_never_wait_for_one_another() {
    for (num_ranks, num_microbatches) in [(1usize, 1usize), (1, 4), (2, 1), (3, 1), (3, 5), (4, 1), (4, 3)] {
        let placement = Placement::bidirectional(num_ranks).unwrap();
        let orders: Vec<Vec<Op>> = (0..num_ranks)
            .map(|rank| {
                let mut backwards = Vec::new();
                let mut weights = Vec::new();
                let mut forwards = Vec::new();
                for &copy in placement.copies_on(Rank(rank as u32)) {
                    let in_direction = match copy.direction {
                        Direction::Down => num_microbatches.div_ceil(2),
                        Direction::Up => num_microbatches / 2,
                    };
                    for i in 0..in_direction {
                        let StageCopy { direction, stage } = copy;
                        let pass = Pass { direction, stage, microbatch: Microbatch(i as u32) };
                        forwards.push(Op::F(pass));
                        backwards.push(Op::I(pass));
                        weights.push(Op::W(pass));
                    }
                }
                if rank >= num_ranks / 2 {
                    weights.reverse();
                }
                forwards.into_iter().chain(backwards).chain(weights).collect()
            })
            .collect();
        let schedule =
            Schedule::new("crossing", placement, num_microbatches, Work::Training, orders).unwrap();
        assert!(naive::can_run(&schedule), "{}", schedule.title());
        schedule.check().unwrap();
        lower(&schedule).unwrap();
    }
}
