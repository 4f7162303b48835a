//! Whole runs of many ranks in one thread, over a simulated network: every fault comes from a seed.
//! `SEED=7 cargo test --test simulation` repeats one.

mod support;

use dualpipe::execute::fault::{Cause, Fault};
use dualpipe::ids::Rank;
use dualpipe::op::Task;
use dualpipe::program::{lower, Instruction, Program};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use support::net::{run, run_programs, Faults, PATIENCE_NS};

/// 2 to 16 ranks: what a single untagged queue for each neighbour gets wrong shows from 6 ranks on.
fn some_schedule(seed: u64) -> Schedule {
    let half = 1 + seed as usize % 8;
    match seed / 8 % 3 {
        0 => dualpipe(2 * half, 4 * half, Work::Training),
        1 => dualpipe_v(half, 2 * half + 1, Work::Training),
        _ => one_f_one_b(2 * half, 2 * half + 3, Work::Training),
    }
    .unwrap()
}

#[test]
fn late_doubled_and_reordered_messages_change_nothing() {
    let (seeds, all) = support::seeds(240);
    let mut doubled = 0;
    for seed in seeds {
        let schedule = some_schedule(seed);
        let end = run(&schedule, 2, seed, Faults { doubled: 150, late: 150, ..Faults::default() });
        for (rank, result) in end.results.iter().enumerate() {
            assert_eq!(result, &Some(Ok(())), "SEED={seed}: rank {rank}");
            let tasks = schedule.tasks(Rank(rank as u32));
            assert_eq!(end.ran[rank], [tasks.clone(), tasks].concat(), "SEED={seed}: rank {rank}");
        }
        doubled += end.doubled;
    }
    assert!(doubled > 1000 || !all, "only {doubled} messages were doubled");
}

/// A lost message may only be one that nobody waits for in the end; otherwise every rank gives up in time.
#[test]
fn a_lost_message_hangs_no_rank() {
    let (seeds, all) = support::seeds(240);
    let mut stopped = 0;
    for seed in seeds {
        let end = run(&some_schedule(seed), 1, seed, Faults { lost: 20, ..Faults::default() });
        let faults: Vec<&Fault> = end.results.iter().flatten().filter_map(|r| r.as_ref().err()).collect();
        stopped += usize::from(!faults.is_empty());
        assert!(end.results.iter().all(Option::is_some), "SEED={seed}");
        for fault in faults {
            assert!(fault.peer().is_some(), "SEED={seed}: {fault}");
        }
    }
    assert!(stopped > 100 || !all, "messages were lost in only {stopped} runs");
}

/// Every other rank learns of it, and none outlives the deadline by much, whether or not it is told.
fn all_others_stop(schedule: &Schedule, seed: u64, rank: usize, faults: Faults) {
    let end = run(schedule, 1, seed, faults);
    let what = format!("SEED={seed}, rank {rank} at {:?}{:?}", faults.dies_at, faults.fails_at);
    assert!(end.now_ns < 4 * PATIENCE_NS, "{what}: stopped only at {}", end.now_ns);
    for (other, result) in end.results.iter().enumerate().filter(|&(other, _)| other != rank) {
        let Some(result) = result else { panic!("{what}: rank {other} neither finished nor stopped") };
        if let Err(fault) = result {
            let text = fault.to_string();
            assert!(text.starts_with(&format!("rank {other}, instruction ")), "{what}: {text}");
            assert!(fault.peer().is_some() && text.contains("rank "), "{what}: {text}");
        }
    }
}

#[test]
fn a_rank_that_dies_or_fails_anywhere_stops_all() {
    for schedule in [dualpipe(4, 8, Work::Training), dualpipe_v(4, 8, Work::Training)] {
        let schedule = schedule.unwrap();
        let programs = lower(&schedule).unwrap();
        for (rank, program) in programs.iter().enumerate() {
            for at in 0..program.instructions().len() {
                let seed = (1000 * rank + at) as u64;
                let deaf = at % 2 == 0;
                all_others_stop(
                    &schedule,
                    seed,
                    rank,
                    Faults { dies_at: Some((rank, at)), deaf, ..Faults::default() },
                );
                all_others_stop(
                    &schedule,
                    seed,
                    rank,
                    Faults { fails_at: Some((rank, at)), ..Faults::default() },
                );
            }
            all_others_stop(&schedule, 7, rank, Faults { absent: Some(rank), ..Faults::default() });
        }
    }
}

/// Each message of a step of 4 ranks in turn.
#[test]
fn any_one_message_that_never_comes_stops_all() {
    for schedule in [dualpipe(4, 8, Work::Training), dualpipe_v(4, 8, Work::Training)] {
        let schedule = schedule.unwrap();
        let posted = run(&schedule, 1, 0, Faults::default()).posted;
        for number in 0..posted {
            let end = run(&schedule, 1, number, Faults { loses: Some(number), ..Faults::default() });
            assert!(end.now_ns < 4 * PATIENCE_NS, "message {number}: stopped only at {}", end.now_ns);
            let results: Vec<Result<(), Fault>> = end.results.into_iter().map(Option::unwrap).collect();
            let faults: Vec<&Fault> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert!(!faults.is_empty(), "message {number}: nobody noticed");
            assert!(faults.iter().all(|fault| fault.peer().is_some()), "message {number}: {faults:?}");
        }
    }
}

/// Sends and receives stand in one order between any two ranks: even a transport that tells messages apart by nothing
/// but their order will do. If receives stood right before their use instead, activations and gradients would be
/// mistaken for one another, from 6 ranks on and never below.
#[test]
fn without_tags_only_receives_in_the_order_of_sends_will_do() {
    let untagged = Faults { untagged: true, ..Faults::default() };
    for num_ranks in [2, 4, 6, 8, 12, 16] {
        let schedule = dualpipe(num_ranks, 2 * num_ranks, Work::Training).unwrap();
        let programs = lower(&schedule).unwrap();
        let before_use: Vec<Program> = programs.iter().map(receives_before_use).collect();
        for seed in 0..8 {
            let went_well = |programs: &[Program]| {
                let end = run_programs(programs.to_vec(), 1, seed, untagged);
                end.results.iter().all(|result| result == &Some(Ok(())))
            };
            assert!(went_well(&programs), "SEED={seed}: {num_ranks} ranks");
            assert_eq!(went_well(&before_use), num_ranks < 6, "SEED={seed}: {num_ranks} ranks");
        }
    }
}

/// The program with each receive put off until the task that needs it.
fn receives_before_use(program: &Program) -> Program {
    let (mut put_off, mut instructions) = (Vec::new(), Vec::new());
    for &instruction in program.instructions() {
        match instruction {
            Instruction::Receive { buffer, .. } => put_off.push((buffer, instruction)),
            Instruction::Run(Task::Op(op)) => {
                let passes = [op.forward(), op.backward_input().or(op.backward_weight())];
                let buffers = passes.into_iter().flatten().map(|pass| program.pass_buffers(pass));
                let read: Vec<_> = buffers.flat_map(|b| [b.input, b.output_grad]).flatten().collect();
                let (now, later) = put_off.into_iter().partition(|(buffer, _)| read.contains(buffer));
                put_off = later;
                let now: Vec<(_, Instruction)> = now;
                instructions.extend(now.into_iter().map(|(_, receive)| receive));
                instructions.push(instruction);
            }
            other => instructions.push(other),
        }
    }
    assert!(put_off.is_empty());
    program.with_instructions(instructions)
}

#[test]
fn a_failing_task_is_said_by_the_rank_that_failed_and_passed_on_by_the_others() {
    let schedule = one_f_one_b(3, 3, Work::Training).unwrap();
    let end = run(&schedule, 1, 5, Faults { fails_at: Some((1, 1)), ..Faults::default() });
    let faults: Vec<Fault> = end.results.into_iter().map(|r| r.unwrap().unwrap_err()).collect();
    assert_eq!(faults[1].cause, Cause::Callback("as planned".into()));
    let want = "rank 1, instruction 1 (RUN 1F0): the task callback failed: as planned; nothing done yet";
    assert_eq!(faults[1].to_string(), want);
    for other in [0, 2] {
        assert_eq!(faults[other].peer(), Some(Rank(1)));
        assert!(faults[other].to_string().contains(want), "{}", faults[other]);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (seeds, _) = support::seeds(40);
    for seed in seeds {
        let faults = Faults { lost: 5, doubled: 50, late: 50, ..Faults::default() };
        let once = run(&some_schedule(seed), 2, seed, faults);
        assert_eq!(once, run(&some_schedule(seed), 2, seed, faults), "SEED={seed}");
    }
}

/// What a rank runs is its schedule, whatever the network does.
#[test]
fn reductions_come_last_of_their_copy() {
    let end = run(&dualpipe(2, 4, Work::Training).unwrap(), 1, 1, Faults::default());
    assert!(end.ran.iter().all(|tasks| matches!(tasks.last(), Some(Task::ReduceGrads(_)))));
}
