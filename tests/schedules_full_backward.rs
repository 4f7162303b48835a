//! The published schedules with full backwards: drawn, refused, checked, and against the published times and memory.

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::error::Result;
use dualpipe::ids::Rank;
use dualpipe::op::Op;
use dualpipe::schedule::{
    chimera, gpipe, interleaved_1f1b, interleaved_overlapped, looped_bfs, one_f_one_b, Schedule, Work,
};
use dualpipe::sim::simulate;
use expect_test::expect;
use Work::{ForwardOnly, Training};

/// One token an op, `STAGE KIND MICROBATCH`.
fn orders(schedule: &Schedule) -> String {
    let line = |rank: usize| {
        let ops: Vec<String> = schedule.order(Rank(rank as u32)).iter().map(|op| op.to_string()).collect();
        format!("{rank}|{}\n", ops.join(" "))
    };
    (0..schedule.num_ranks()).map(line).collect()
}

/// F, B and F&B of one stage. B is cut at any place: nothing here has an I or a W.
#[derive(Clone, Copy, Debug)]
struct Times {
    f: u64,
    b: u64,
    fb: u64,
}

/// F, B and F&B, with pairs from no gain to all that there can be.
const TIMES: [Times; 6] = [
    Times { f: 10, b: 20, fb: 30 },
    Times { f: 10, b: 20, fb: 25 },
    Times { f: 10, b: 20, fb: 20 },
    Times { f: 10, b: 10, fb: 17 },
    Times { f: 1, b: 7, fb: 8 },
    Times { f: 7, b: 3, fb: 9 },
];

fn costs(Times { f, b, fb }: Times) -> Costs {
    let stage = StageCosts {
        forward_ns: f,
        input_ns: b / 2,
        weight_ns: b - b / 2,
        overlapped_ns: fb,
        ..StageCosts::default()
    };
    Costs::new(vec![stage], Link::default()).unwrap()
}

fn makespan(schedule: &Schedule, times: Times) -> u64 {
    simulate(schedule, &costs(times)).unwrap().timeline.makespan_ns()
}

/// How long each rank idles.
fn bubbles(schedule: &Schedule, times: Times) -> Vec<u64> {
    let timeline = simulate(schedule, &costs(times)).unwrap().timeline;
    let busy = timeline.spans.iter().map(|spans| spans.iter().map(|s| s.end_ns - s.start_ns).sum::<u64>());
    busy.map(|busy| timeline.makespan_ns() - busy).collect()
}

fn peak_live(schedule: &Schedule) -> Vec<usize> {
    schedule.check().unwrap().peak_live
}

/// `(P, v, n)` that the depth-first schedules admit.
fn interleaved_sizes() -> impl Iterator<Item = (usize, usize, usize)> {
    let sizes = (1..=16).flat_map(|p| (1..=4).map(move |v| (p, v)));
    sizes.flat_map(|(p, v)| (p..=64).step_by(p).map(move |n| (p, v, n)))
}

/// A selection, for what is simulated over and over.
fn few_interleaved_sizes() -> impl Iterator<Item = (usize, usize, usize)> {
    interleaved_sizes()
        .filter(|&(p, _, n)| [1, 2, 3, 4, 7, 16].contains(&p) && [1, 2, 3, 5].contains(&(n / p)))
}

#[test]
fn small_schedules_by_eye() {
    expect![[r#"
        0|0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3
        1|1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3
        2|2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3
    "#]]
    .assert_eq(&orders(&gpipe(3, 4, Training).unwrap()));
    expect![[r#"
        0|0F0 0F1 0F2 2F0 2F1 2F2 2B2 2B1 2B0 0B2 0B1 0B0
        1|1F0 1F1 1F2 3F0 3F1 3F2 3B2 3B1 3B0 1B2 1B1 1B0
    "#]]
    .assert_eq(&orders(&looped_bfs(2, 2, 3, Training).unwrap()));
    expect![[r#"
        0|0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
        1|1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3
    "#]]
    .assert_eq(&orders(&interleaved_1f1b(2, 2, 4, Training).unwrap()));
    expect![[r#"
        0|0F0 0F1 2F0 2F1 0F2 0F3&2B0 2F2&2B1 2F3&0B0 0B1 2B2 2B3 0B2 0B3
        1|1F0 1F1 3F0 3F1&3B0 1F2&3B1 1F3&1B0 3F2&1B1 3F3&3B2 3B3 1B2 1B3
    "#]]
    .assert_eq(&orders(&interleaved_overlapped(2, 2, 4, Training).unwrap()));
    expect![[r#"
        0|0F0 0F1 3f0 3b0 3f1 3b1 0B0 0B1
        1|1F0 2f0 1F1 2f1 2b0 1B0 2b1 1B1
        2|1f0 2F0 1f1 2F1 2B0 1b0 2B1 1b1
        3|0f0 0f1 3F0 3B0 3F1 3B1 0b0 0b1
    "#]]
    .assert_eq(&orders(&chimera(4, 4, Training).unwrap()));
    expect![[r#"
        0|0F0 0F1 3f0 3b0 3f1 3b1 0B0 0F2 0B1 0F3 3f2 3b2 3f3 3b3 0B2 0F4 0B3 3f4 3b4 0B4
        1|1F0 2f0 1F1 2f1 2b0 1B0 2b1 1B1 1F2 2f2 1F3 2f3 2b2 1B2 2b3 1B3 1F4 2f4 2b4 1B4
        2|1f0 2F0 1f1 2F1 2B0 1b0 2B1 1b1 1f2 2F2 1f3 2F3 2B2 1b2 2B3 1b3 1f4 2F4 2B4 1b4
        3|0f0 0f1 3F0 3B0 3F1 3B1 0b0 0f2 0b1 0f3 3F2 3B2 3F3 3B3 0b2 0f4 0b3 3F4 3B4 0b4
    "#]]
    .assert_eq(&orders(&chimera(4, 10, Training).unwrap()));
}

#[test]
fn small_forward_only_schedules_by_eye() {
    expect![[r#"
        0|0F0 0F1 0F2
        1|1F0 1F1 1F2
    "#]]
    .assert_eq(&orders(&gpipe(2, 3, ForwardOnly).unwrap()));
    expect![[r#"
        0|0F0 0F1 0F2 2F0 2F1 2F2
        1|1F0 1F1 1F2 3F0 3F1 3F2
    "#]]
    .assert_eq(&orders(&looped_bfs(2, 2, 3, ForwardOnly).unwrap()));
    expect![[r#"
        0|0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3
        1|1F0 1F1 3F0 3F1 1F2 1F3 3F2 3F3
    "#]]
    .assert_eq(&orders(&interleaved_1f1b(2, 2, 4, ForwardOnly).unwrap()));
    expect![[r#"
        0|0F0 0F1 3f0 0F2 3f1 3f2
        1|1F0 2f0 1F1 2f1 1F2 2f2
        2|1f0 2F0 1f1 2F1 1f2 2F2
        3|0f0 0f1 3F0 0f2 3F1 3F2
    "#]]
    .assert_eq(&orders(&chimera(4, 6, ForwardOnly).unwrap()));
    let pairs = interleaved_overlapped(2, 2, 4, ForwardOnly).unwrap();
    assert_eq!(pairs.orders(), interleaved_1f1b(2, 2, 4, ForwardOnly).unwrap().orders());
}

/// One case a line: the last refused and the first accepted of each limit.
#[test]
fn a_schedule_refuses_what_it_does_not_admit() {
    let cases: Vec<(Result<Schedule>, &str)> = vec![
        (gpipe(0, 1, Training), "gpipe: num_ranks is 0, must be 1 to 4096"),
        (gpipe(1, 0, Training), "gpipe: num_microbatches is 0, must be 1 to 1048576"),
        (gpipe(1, 1, Training), ""),
        (looped_bfs(0, 1, 1, Training), "looped_bfs: num_ranks is 0, must be 1 to 4096"),
        (looped_bfs(4, 0, 1, Training), "looped_bfs: stages_per_rank is 0, must be 1 to 2048"),
        (looped_bfs(4, 2049, 1, Training), "looped_bfs: stages_per_rank is 2049, must be 1 to 2048"),
        (looped_bfs(4, 1, 0, Training), "looped_bfs: num_microbatches is 0, must be 1 to 1048576"),
        (looped_bfs(4, 2048, 1, Training), ""),
        (interleaved_1f1b(4, 0, 4, Training), "interleaved_1f1b: stages_per_rank is 0, must be 1 to 2048"),
        (
            interleaved_1f1b(4, 2, 3, Training),
            "interleaved_1f1b: num_microbatches is 3, must be a multiple of the 4 ranks: the nearest is 4",
        ),
        (interleaved_1f1b(4, 2, 4, Training), ""),
        (
            interleaved_1f1b(4, 2, 7, ForwardOnly),
            "interleaved_1f1b: num_microbatches is 7, must be a multiple of the 4 ranks: the nearest are 4 and 8",
        ),
        (
            interleaved_1f1b(4, 2, usize::MAX, Training),
            "interleaved_1f1b: num_microbatches is 18446744073709551615, must be 1 to 1048576",
        ),
        (
            interleaved_overlapped(4, 2, 9, Training),
            "interleaved_overlapped: num_microbatches is 9, must be a multiple of the 4 ranks: \
             the nearest are 8 and 12",
        ),
        (interleaved_overlapped(4, 2, 12, Training), ""),
        (chimera(0, 2, Training), "chimera: num_ranks is 0, must be 2 to 4096"),
        (chimera(3, 4, Training), "chimera: num_ranks is 3, must be even and at least 2"),
        (chimera(4, 0, Training), "chimera: num_microbatches is 0, must be 1 to 1048576"),
        (chimera(4, 5, Training), "chimera: num_microbatches is 5, must be even: the nearest are 4 and 6"),
        (chimera(4, 1, ForwardOnly), "chimera: num_microbatches is 1, must be even: the nearest is 2"),
        (chimera(4, 2, Training), ""),
    ];
    for (got, want) in cases {
        assert_eq!(got.err().map(|e| e.to_string()).unwrap_or_default(), want);
    }
}

#[test]
fn every_schedule_that_is_admitted_can_run() {
    let mut checked = 0;
    let mut check = |schedule: Result<Schedule>| {
        let schedule = schedule.unwrap();
        if let Err(why) = schedule.check() {
            panic!("{}: {why}", schedule.title());
        }
        checked += 1;
    };
    for work in [Training, ForwardOnly] {
        for (num_ranks, stages_per_rank, num_microbatches) in interleaved_sizes() {
            check(interleaved_1f1b(num_ranks, stages_per_rank, num_microbatches, work));
            check(interleaved_overlapped(num_ranks, stages_per_rank, num_microbatches, work));
        }
        for num_ranks in 1..=16 {
            for num_microbatches in 1..=64 {
                check(gpipe(num_ranks, num_microbatches, work));
                for stages_per_rank in 1..=3 {
                    check(looped_bfs(num_ranks, stages_per_rank, num_microbatches, work));
                }
                if num_ranks % 2 == 0 && num_microbatches % 2 == 0 {
                    check(chimera(num_ranks, num_microbatches, work));
                }
            }
        }
    }
    assert!(checked > 9_000, "only {checked} schedules");
}

/// The published bubble, (P - 1)(F + B) of a whole rank's work, is on every rank, and exact for any F and B.
#[test]
fn gpipe_idles_as_long_as_1f1b_and_keeps_all_alive() {
    for num_ranks in 1..=9 {
        for num_microbatches in [1, 2, 3, 8, 20] {
            let schedule = gpipe(num_ranks, num_microbatches, Training).unwrap();
            for times @ Times { f, b, .. } in TIMES {
                let bubble = (num_ranks as u64 - 1) * (f + b);
                assert_eq!(bubbles(&schedule, times), vec![bubble; num_ranks], "{}", schedule.title());
                let other = one_f_one_b(num_ranks, num_microbatches, Training).unwrap();
                assert_eq!(makespan(&other, times), makespan(&schedule, times));
            }
            assert_eq!(peak_live(&schedule), vec![num_microbatches; num_ranks]);
        }
    }
}

/// F and B are of one of a rank's v stages, so (P - 1)(F + B) is 1 / v of the bubble of 1F1B.
#[test]
fn interleaving_divides_the_bubble_by_the_stages_of_a_rank() {
    for (num_ranks, stages_per_rank, num_microbatches) in few_interleaved_sizes() {
        let schedule = interleaved_1f1b(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
        for times @ Times { f, b, .. } in TIMES {
            let bubble = (num_ranks as u64 - 1) * (f + b);
            assert_eq!(bubbles(&schedule, times), vec![bubble; num_ranks], "{} {times:?}", schedule.title());
        }
    }
    let whole = Times { f: 40, b: 80, fb: 120 };
    let quarter = Times { f: 10, b: 20, fb: 30 };
    assert_eq!(bubbles(&one_f_one_b(8, 16, Training).unwrap(), whole), vec![840; 8]);
    assert_eq!(bubbles(&interleaved_1f1b(8, 4, 16, Training).unwrap(), quarter), vec![210; 8]);
}

#[test]
fn interleaved_schedules_keep_one_more_alive_than_their_warm_up() {
    for (num_ranks, stages_per_rank, num_microbatches) in few_interleaved_sizes() {
        let most = num_microbatches * stages_per_rank;
        let want = |extra: usize| -> Vec<usize> {
            let warm_up =
                |rank: usize| 2 * (num_ranks - 1 - rank) + (stages_per_rank - 1) * num_ranks + extra;
            (0..num_ranks).map(|rank| (warm_up(rank) + 1).min(most)).collect()
        };
        let schedule = interleaved_1f1b(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
        assert_eq!(peak_live(&schedule), want(0), "{}", schedule.title());
        let schedule =
            interleaved_overlapped(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
        assert_eq!(peak_live(&schedule), want(1), "{}", schedule.title());
    }
}

#[test]
fn after_the_warm_up_every_forward_is_overlapped_with_another_micro_batch() {
    for (num_ranks, stages_per_rank, num_microbatches) in interleaved_sizes() {
        let schedule =
            interleaved_overlapped(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
        for (rank, order) in schedule.orders().iter().enumerate() {
            let warm_up = 2 * (num_ranks - 1 - rank) + (stages_per_rank - 1) * num_ranks + 1;
            let pairs = order.iter().filter(|op| matches!(op, Op::FB(f, b) if f.microbatch != b.microbatch));
            let want = (num_microbatches * stages_per_rank).saturating_sub(warm_up);
            assert_eq!(pairs.count(), want, "rank {rank} of {}", schedule.title());
        }
    }
}

/// Exact for any F, B and F&B of equal stages.
#[test]
fn overlapped_pairs_shorten_all_but_the_warm_up_of_the_last_rank() {
    for (num_ranks, stages_per_rank, num_microbatches) in few_interleaved_sizes() {
        let schedule =
            interleaved_overlapped(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
        for times @ Times { f, b, fb } in TIMES {
            let passes = (num_microbatches * stages_per_rank) as u64;
            let apart = (((stages_per_rank - 1) * num_ranks + 1) as u64).min(passes);
            let want = (num_ranks as u64 - 1 + apart) * (f + b) + (passes - apart) * fb;
            assert_eq!(makespan(&schedule, times), want, "{} {times:?}", schedule.title());
            let longest = bubbles(&schedule, times).into_iter().max();
            assert_eq!(longest, Some((num_ranks as u64 - 1) * (f + b)), "{}", schedule.title());
            if fb == f + b {
                let one_by_one =
                    interleaved_1f1b(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
                assert_eq!(makespan(&one_by_one, times), want, "the extra forward costs no time");
            }
        }
    }
}

/// From n = P on the same bubble as interleaved 1F1B, at any n.
#[test]
fn looped_bfs_divides_the_bubble_and_keeps_all_alive() {
    for num_ranks in [1, 2, 3, 5, 8] {
        for stages_per_rank in 1..=3 {
            for num_microbatches in [1, 2, 4, 7, 8, 9, 17] {
                let schedule = looped_bfs(num_ranks, stages_per_rank, num_microbatches, Training).unwrap();
                let (p, n, v) = (num_ranks as u64, num_microbatches as u64, stages_per_rank as u64);
                for times @ Times { f, b, .. } in TIMES {
                    let bubble = ((v - 1) * p.saturating_sub(n) + p - 1) * (f + b);
                    assert_eq!(bubbles(&schedule, times), vec![bubble; num_ranks], "{}", schedule.title());
                }
                assert_eq!(peak_live(&schedule), vec![num_microbatches * stages_per_rank; num_ranks]);
            }
        }
    }
}

/// The paper's bubble, (P - 2) / (2n + P - 2) of the time if F = B and 2(P - 2) forwards for one unit if B = 2F. Each
/// further unit then adds another P - 2: measured here, not published.
#[test]
fn chimera_has_the_bubbles_of_the_paper() {
    let (equal, double) = (Times { f: 10, b: 10, fb: 20 }, Times { f: 10, b: 20, fb: 30 });
    for num_ranks in (2..=16).step_by(2) {
        for units in [1, 2, 3, 7] {
            let schedule = chimera(num_ranks, units * num_ranks, Training).unwrap();
            let bubble = 10 * (num_ranks as u64 - 2);
            assert_eq!(bubbles(&schedule, equal), vec![bubble; num_ranks], "{}", schedule.title());
            let bubble = bubble * (units as u64 + 1);
            assert_eq!(bubbles(&schedule, double), vec![bubble; num_ranks], "{}", schedule.title());
        }
        for num_microbatches in (2..=3 * num_ranks).step_by(2) {
            let schedule = chimera(num_ranks, num_microbatches, Training).unwrap();
            let units = num_microbatches.div_ceil(num_ranks);
            let last_unit = num_microbatches - (units - 1) * num_ranks;
            let slots = 2 * num_ranks * units + last_unit - 2;
            assert_eq!(makespan(&schedule, equal), 10 * slots as u64, "{}", schedule.title());
        }
    }
}

/// Between P/2 + 1 at the ends and P in the middle, as the paper says.
#[test]
fn chimera_keeps_fewer_alive_towards_the_ends() {
    for num_ranks in (2..=16).step_by(2) {
        let depth = |rank: usize| rank.min(num_ranks - 1 - rank);
        let want: Vec<usize> = (0..num_ranks).map(|rank| num_ranks / 2 + 1 + depth(rank)).collect();
        for units in [1, 2, 5] {
            let schedule = chimera(num_ranks, units * num_ranks, Training).unwrap();
            assert_eq!(peak_live(&schedule), want, "{}", schedule.title());
        }
        let schedule = chimera(num_ranks, 2 * num_ranks - 2, Training).unwrap();
        assert!(peak_live(&schedule).iter().zip(&want).all(|(got, want)| got <= want));
    }
}

#[test]
fn forward_only_every_rank_waits_for_the_first_micro_batch_alone() {
    let times = Times { f: 10, b: 20, fb: 30 };
    for num_ranks in [1, 2, 4, 6] {
        let num_microbatches = 2 * num_ranks;
        let n = num_microbatches as u64;
        for stages_per_rank in 1..=3 {
            let want = 10 * (stages_per_rank as u64 * n + num_ranks as u64 - 1);
            for schedule in [
                looped_bfs(num_ranks, stages_per_rank, num_microbatches, ForwardOnly).unwrap(),
                interleaved_1f1b(num_ranks, stages_per_rank, num_microbatches, ForwardOnly).unwrap(),
            ] {
                assert_eq!(makespan(&schedule, times), want, "{}", schedule.title());
            }
        }
        if num_ranks > 1 {
            for num_microbatches in (2..20).step_by(2) {
                let schedule = chimera(num_ranks, num_microbatches, ForwardOnly).unwrap();
                let want = 10 * (num_microbatches + num_ranks - 2) as u64;
                assert_eq!(makespan(&schedule, times), want, "{}", schedule.title());
            }
        }
    }
}
