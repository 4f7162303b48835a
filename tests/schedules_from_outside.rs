//! Schedules from outside: read back from their text, or of any order on any placement; and all that is made of them.

mod support;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Op, Pass};
use dualpipe::placement::Placement;
use dualpipe::program::lower;
use dualpipe::schedule::{Schedule, Work};
use dualpipe::sim::simulate;
use dualpipe::ErrorKind;
use proptest::prelude::*;

#[test]
fn what_is_written_is_read_back_as_it_was() {
    let mut num_read = 0;
    for num_ranks in [1, 2, 3, 4, 6, 8] {
        for num_microbatches in [1, 2, 4, 9, 16] {
            for schedule in support::family(num_ranks, num_microbatches) {
                let read = Schedule::from_text(schedule.name(), &schedule.to_text()).unwrap();
                assert_eq!(read, schedule, "{}", schedule.title());
                num_read += 1;
            }
        }
    }
    assert!(num_read > 300, "{num_read}");
}

#[test]
fn blanks_and_empty_lines_do_not_matter() {
    let want = Schedule::from_text("any", "0| 0F0 0F1 0B0 0B1\n1| 1F0 1B0 1F1 1B1\n").unwrap();
    let read =
        Schedule::from_text("any", "\r\n 0 |0F0  0F1\t0B0 0B1\r\n\n1|1F0 1B0     1F1 1B1  \n\n").unwrap();
    assert_eq!(read, want);
    assert_eq!((want.num_microbatches(), want.work()), (2, Work::Training));
    // Direction 0 has the odd micro-batch.
    let odd = Schedule::from_text("odd", "0| 0F0 1f0 0F1\n1| 0f0 1F0 1F1").unwrap();
    assert_eq!((odd.num_microbatches(), odd.work()), (3, Work::ForwardOnly));
    assert_eq!(odd.check().unwrap().peak_live, [1, 1]);
    // A rank may be idle.
    assert_eq!(Schedule::from_text("idle", "0| 0F0\n1|\n").unwrap().num_ranks(), 2);
}

#[test]
fn a_bad_text_is_refused_with_its_place() {
    let long = "x".repeat(200);
    for (text, want) in [
        ("", "the number of ops is 0, must be at least 1"),
        ("0|\n", "the number of ops is 0, must be at least 1"),
        ("0F0 0B0", "line 1, column 1 is \"0F0 0B0\", must be a rank and its ops, such as 0| 0F0 0B0"),
        ("1| 0F0", "line 1, column 1 is \"1\", must be 0: ranks stand in order"),
        ("0| 0F0\n\n0| 1F0", "line 3, column 1 is \"0\", must be 1: ranks stand in order"),
        ("0| 0F0 0X0", "line 1, column 8 is \"0X0\", must be STAGE KIND MICROBATCH"),
        ("0| 0F0  0F", "line 1, column 9 is \"0F\", must be STAGE KIND MICROBATCH"),
        ("0| F0", "is \"F0\", must be STAGE"),
        ("0| 0F0x", "is \"0F0x\", must be STAGE"),
        ("0| 0FF0", "is \"0FF0\", must be STAGE"),
        ("0| 0", "is \"0\", must be STAGE"),
        ("0| 0é0", "is \"0é0\", must be STAGE"),
        ("0| -1F0", "is \"-1F0\", must be STAGE"),
        ("0| 0F+1", "is \"0F+1\", must be STAGE"),
        ("0| 0B0&0F1", "is \"0B0&0F1\", must be STAGE"),
        ("0| 0F0&0I1", "is \"0F0&0I1\", must be STAGE"),
        ("0| 0F0&0B1&0B2", "must be STAGE"),
        ("0| 0F0&", "must be STAGE"),
        ("0| é 8192F0", "line 1, column 4 is \"é\", must be STAGE"),
        ("0| 8192F0", "is \"8192F0\", must have a stage of 0 to 8191"),
        ("0| 99999999999999999999F0", "must have a stage of 0 to 8191"),
        ("0| 0F1048576", "is \"0F1048576\", must have a micro-batch of 0 to 1048575"),
        ("0| 0F0\n1| 0B0", "line 2, column 4 is \"0B0\", must be on rank 0, which has stage 0 of direction 0"),
        ("0| 1F0", "stage 0 of direction 0 is nowhere, must have an op"),
        ("0| 0f0", "the number of micro-batches in direction 0 is 0, must be as many as in direction 1, 1, or one more"),
        ("0| 0F0 0F1 0F2 0f0", "micro-batches in direction 0 is 3, must be as many as in direction 1, 1, or one more"),
        ("0| 0F0 0f1", "micro-batches in direction 0 is 1, must be as many as in direction 1, 2, or one more"),
        ("0| 0F0 1F0 0f0", "the number of stages in direction 1 is 1, must be 2"),
        (long.as_str(), "is \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", must be a rank"),
    ] {
        let error = Schedule::from_text("x", text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(want), "{text:?}: {error}");
    }
    let many = (0..4097).map(|rank| format!("{rank}|\n")).collect::<String>();
    let error = Schedule::from_text("x", &many).unwrap_err().to_string();
    assert!(
        error.contains("line 4097, column 1 is \"4096\", must not be there: there are at most 4096 ranks")
    );
}

#[test]
fn what_a_text_lacks_is_found_by_the_check() {
    for (text, want) in [
        ("0| 0F0 0B0\n1| 1F0", "short: rank 1, position 1 (end): no B or I for micro-batch 0"),
        ("0| 0F0 0B0 0F1\n1| 1F0 1B0", "rank 0, position 3 (end): no B or I for micro-batch 1"),
        ("0| 0F0 1B0 1F0 0B0", "rank 0, position 1 (1B0): this backward comes before its F"),
        ("0| 0B0 0F0 2F0 2B0\n1| 1F0 1B0", "rank 0, position 0 (0B0)"),
        ("0| 0F0 2F0 2B0 0B0\n1| 1F0 1B0", "ok"),
        ("0| 0F0 2F0 0B0 2B0\n1| 1F0 1B0", "deadlock"),
    ] {
        let schedule = Schedule::from_text("short", text).unwrap();
        let said = schedule.check().map_or_else(|error| error.to_string(), |_| "ok".into());
        assert!(said.contains(want), "{text:?}: {said}");
        // Whoever uses it without a check is told the same.
        let costs = costs(schedule.placement().num_stages());
        assert_eq!(simulate(&schedule, &costs).map_or_else(|e| e.to_string(), |_| "ok".into()), said);
        assert_eq!(lower(&schedule).map_or_else(|e| e.to_string(), |_| "ok".into()), said);
    }
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in "[0-3|&FBIWfb é\n\r]{0,60}") {
        if let Ok(schedule) = Schedule::from_text("any", &text) {
            prop_assert_eq!(&Schedule::from_text("any", &schedule.to_text()).unwrap(), &schedule);
            let _ = (schedule.check(), lower(&schedule).is_ok());
        }
    }

    /// Stages anywhere, also several neighbours on a rank, ranks without any, and an order nobody would publish.
    #[test]
    fn any_order_that_can_be_is_checked_lowered_simulated_and_drawn(seed in 0u64..1 << 40) {
        let schedule = any_schedule(&mut fastrand::Rng::with_seed(seed));
        let is_unidirectional = schedule.placement().num_directions() == 1;
        let checked = schedule.check();
        match &checked {
            // Which copy of a stage is reduced first may differ from rank to rank.
            Err(error) => prop_assert!(!is_unidirectional && error.to_string().contains("to reduce"), "{}", error),
            Ok(report) => prop_assert_eq!(report.peak_live.len(), schedule.num_ranks()),
        }
        prop_assert_eq!(lower(&schedule).is_ok(), checked.is_ok());
        let read = Schedule::from_text(schedule.name(), &schedule.to_text()).unwrap();
        prop_assert_eq!(read.orders(), schedule.orders());
        prop_assert_eq!(read.placement(), schedule.placement());
        if checked.is_ok() {
            let played = simulate(&schedule, &costs(schedule.placement().num_stages())).unwrap();
            prop_assert!(played.timeline.makespan_ns() >= played.lower_bound_ns && played.lower_bound_ns > 0);
            prop_assert!(!played.timeline.to_text().is_empty() && !played.timeline.to_trace().is_empty());
            prop_assert!(roxmltree::Document::parse(&played.timeline.to_svg()).is_ok());
        }
    }
}

fn costs(num_stages: usize) -> Costs {
    let stage = |i: u64| StageCosts {
        forward_ns: 900 + i,
        input_ns: 1000,
        weight_ns: 800,
        overlapped_ns: 2000 + i,
        output_bytes: 64,
        ..Default::default()
    };
    let link = Link { latency_ns: 10, bytes_per_second: Some(1_000_000_000) };
    Costs::new((0..num_stages as u64).map(stage).collect(), link).unwrap()
}

/// A schedule made by doing, again and again, anything that can be done.
fn any_schedule(random: &mut fastrand::Rng) -> Schedule {
    let (num_ranks, num_stages, num_directions) =
        (random.usize(1..6), random.usize(1..7), random.usize(1..3));
    let num_microbatches = random.usize(num_directions..9);
    let mut stages = || (0..num_stages).map(|_| Rank(random.u32(0..num_ranks as u32))).collect();
    let rank_of: Vec<Vec<Rank>> = (0..num_directions).map(|_| stages()).collect();
    let placement = Placement::new(num_ranks, &rank_of).unwrap();
    let work = if random.u8(0..4) == 0 { Work::ForwardOnly } else { Work::Training };
    let empty = vec![Vec::new(); num_ranks];
    let empty = Schedule::new("any", placement.clone(), num_microbatches, work, empty).unwrap();
    let mut open: Vec<Op> = Vec::new();
    for direction in &Direction::ALL[..num_directions] {
        for microbatch in (0..empty.microbatches_in(*direction)).map(|i| Microbatch(i as u32)) {
            open.push(Op::F(Pass { direction: *direction, stage: Stage(0), microbatch }));
        }
    }
    let mut orders = vec![Vec::new(); num_ranks];
    while !open.is_empty() {
        let op = open.swap_remove(random.usize(0..open.len()));
        let rank = |op: Op| {
            let pass = op.forward().or(op.backward_input()).or(op.backward_weight()).unwrap();
            placement.rank_of(pass.copy()).unwrap()
        };
        let partner = open.iter().position(|&other| match (op, other) {
            (Op::F(_), Op::B(_)) => rank(op) == rank(other),
            _ => false,
        });
        let mut done = vec![op];
        match (op, partner) {
            (Op::F(f), Some(i)) if random.bool() => {
                let b = open.swap_remove(i);
                orders[rank(op).index()].push(Op::FB(f, b.backward_input().unwrap()));
                done.push(b);
            }
            _ => orders[rank(op).index()].push(op),
        }
        for op in done {
            let mut backward = |pass: Pass| open.push([Op::B(pass), Op::I(pass)][random.usize(0..2)]);
            match op {
                Op::F(p) if p.stage.index() + 1 < num_stages => {
                    open.push(Op::F(Pass { stage: Stage(p.stage.0 + 1), ..p }));
                }
                Op::F(p) if work == Work::Training => backward(p),
                Op::B(p) | Op::I(p) => {
                    if p.stage.0 > 0 {
                        backward(Pass { stage: Stage(p.stage.0 - 1), ..p });
                    }
                    if matches!(op, Op::I(_)) {
                        open.push(Op::W(p));
                    }
                }
                _ => {}
            }
        }
    }
    Schedule::new("any", placement, num_microbatches, work, orders).unwrap()
}
