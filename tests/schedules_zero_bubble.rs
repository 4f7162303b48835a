//! The zero-bubble schedules: drawn, at their edges, all of them checked, and against the published bubbles and
//! memories.

mod support;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::error::Result;
use dualpipe::schedule::{
    dualpipe_v, interleaved_zero_bubble, one_f_one_b, v_half, v_min, zb_h1, zb_h2, zb_v, Schedule, Work,
};
use dualpipe::sim::simulate;
use expect_test::expect;
use support::order_line;
use Work::{ForwardOnly, Training};

type Make = fn(usize, usize, Work) -> Result<Schedule>;

fn interleaved_2(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    interleaved_zero_bubble(num_ranks, 2, num_microbatches, work)
}

fn interleaved_3(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    interleaved_zero_bubble(num_ranks, 3, num_microbatches, work)
}

const ALL: [Make; 7] = [zb_h1, zb_h2, interleaved_2, interleaved_3, zb_v, v_half, v_min];

fn orders(schedule: &Schedule) -> String {
    let lines = schedule.orders().iter().enumerate();
    lines.map(|(rank, order)| format!("{rank}|{}\n", order_line(schedule, order))).collect()
}

/// Capitals: a rank's first stage; small letters: its second.
#[test]
fn small_schedules_by_eye() {
    expect![[r#"
        0|F0 F1 F2 F3 I0 W0 F4 I1 W1 I2 W2 I3 W3 I4 W4
        1|F0 F1 F2 I0 F3 I1 W0 F4 I2 W1 I3 W2 I4 W3 W4
        2|F0 F1 I0 F2 I1 F3 I2 W0 F4 I3 W1 I4 W2 W3 W4
        3|F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 W2 W3 W4
    "#]]
    .assert_eq(&orders(&zb_h1(4, 5, Training).unwrap()));
    expect![[r#"
        0|F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5
        1|F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 I4 W2 I5 W3 W4 W5
        2|F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 W2 W3 W4 W5
    "#]]
    .assert_eq(&orders(&zb_h2(3, 6, Training).unwrap()));
    expect![[r#"
        0|F0 F1 f0 f1 i0 w0 F2 i1 w1 F3 I0 W0 f2 I1 W1 f3 i2 w2 i3 w3 I2 W2 I3 W3
        1|F0 F1 f0 i0 f1 i1 w0 F2 I0 w1 F3 I1 W0 f2 i2 W1 f3 i3 w2 I2 w3 I3 W2 W3
    "#]]
    .assert_eq(&orders(&interleaved_zero_bubble(2, 2, 4, Training).unwrap()));
    expect![[r#"
        0|F0 F1 F2 F3 F4 f0 i0 w0 f1 i1 w1 f2 i2 w2 I0 W0 f3 i3 w3 I1 W1 f4 i4 w4 I2 W2 I3 W3 I4 W4
        1|F0 F1 F2 f0 F3 f1 i0 w0 f2 i1 w1 F4 I0 W0 f3 i2 w2 I1 W1 f4 i3 w3 I2 i4 I3 W2 I4 W3 w4 W4
        2|F0 f0 F1 f1 F2 f2 i0 w0 F3 I0 W0 f3 i1 w1 F4 I1 W1 f4 i2 w2 I2 i3 I3 i4 I4 W2 w3 w4 W3 W4
    "#]]
    .assert_eq(&orders(&zb_v(3, 5, Training).unwrap()));
    expect![[r#"
        0|F0 F1 f0 i0 F2 w0 f1 i1 w1 I0 F3 W0 f2 i2 w2 I1 F4 W1 f3 i3 w3 I2 W2 f4 i4 I3 w4 W3 I4 W4
        1|F0 f0 F1 i0 f1 w0 F2 I0 i1 W0 f2 w1 F3 I1 i2 W1 f3 w2 F4 I2 i3 W2 f4 w3 I3 i4 W3 w4 I4 W4
        2|F0 f0 F1 f1 i0 I0 w0 F2 W0 f2 i1 I1 w1 F3 W1 f3 i2 I2 w2 F4 W2 f4 i3 I3 w3 W3 i4 I4 w4 W4
    "#]]
    .assert_eq(&orders(&v_half(3, 5, Training).unwrap()));
    expect![[r#"
        0|F0 F1 F2 f0 i0 w0 f1 I0 i1 W0 w1 f2 F3 I1 i2 W1 w2 f3 F4 I2 i3 W2 w3 f4 i4 I3 w4 W3 I4 W4
        1|F0 F1 F2 f0 i0 w0 f1 I0 W0 i1 f2 w1 I1 F3 W1 i2 f3 w2 I2 F4 W2 i3 f4 w3 I3 i4 W3 w4 I4 W4
        2|F0 f0 F1 f1 i0 I0 w0 F2 W0 f2 i1 I1 w1 W1 F3 f3 i2 I2 w2 W2 F4 f4 i3 I3 w3 W3 i4 I4 w4 W4
    "#]]
    .assert_eq(&orders(&v_min(3, 5, Training).unwrap()));
}

#[test]
fn forwards_alone_run_in_the_order_of_their_placement() {
    for (num_ranks, num_microbatches) in [(1, 3), (4, 2), (5, 10)] {
        let forwards = |make: Make| make(num_ranks, num_microbatches, ForwardOnly).unwrap();
        for make in [zb_h1, zb_h2] as [Make; 2] {
            assert_eq!(forwards(make).orders(), forwards(one_f_one_b).orders());
        }
        for make in [zb_v, v_half, v_min] as [Make; 3] {
            assert_eq!(forwards(make).orders(), forwards(dualpipe_v).orders());
        }
    }
    expect![[r#"
        0|F0 F1 f0 f1 F2 F3 f2 f3
        1|F0 F1 f0 f1 F2 F3 f2 f3
    "#]]
    .assert_eq(&orders(&interleaved_zero_bubble(2, 2, 4, ForwardOnly).unwrap()));
}

/// One case a line: the last refused and the first accepted of each limit.
#[test]
fn a_schedule_refuses_what_it_cannot_fill() {
    let interleaved = |num_ranks, stages_per_rank, num_microbatches| {
        interleaved_zero_bubble(num_ranks, stages_per_rank, num_microbatches, Training)
    };
    let cases = [
        (zb_h1(0, 1, Training), "zb_h1: num_ranks is 0, must be 1 to 4096"),
        (zb_h1(4097, 1, Training), "zb_h1: num_ranks is 4097, must be 1 to 4096"),
        (zb_h1(3, 0, Training), "zb_h1: num_microbatches is 0, must be 1 to 1048576"),
        (zb_h1(3, 1, Training), ""),
        (zb_h2(0, 1, Training), "zb_h2: num_ranks is 0, must be 1 to 4096"),
        (zb_h2(3, usize::MAX, Training), "zb_h2: num_microbatches is 18446744073709551615, must be 1 to 1048576"),
        (zb_h2(3, 1, Training), ""),
        (zb_v(0, 1, Training), "zb_v: num_ranks is 0, must be 1 to 4096"),
        (zb_v(3, 0, Training), "zb_v: num_microbatches is 0, must be 1 to 1048576"),
        (zb_v(3, 1, Training), ""),
        (v_half(usize::MAX, 1, Training), "v_half: num_ranks is 18446744073709551615, must be 1 to 4096"),
        (v_half(16, 1 << 20, Training), "v_half: num_microbatches is 1048576, must be at most 131072 for 32 stages"),
        (v_half(3, 1, Training), ""),
        (v_min(3, 0, ForwardOnly), "v_min: num_microbatches is 0, must be 1 to 1048576"),
        (v_min(3, 1, ForwardOnly), ""),
        (interleaved(0, 2, 4), "interleaved_zero_bubble: num_ranks is 0, must be 1 to 4096"),
        (interleaved(4, 0, 4), "interleaved_zero_bubble: stages_per_rank is 0, must be 1 to 2048"),
        (interleaved(4, 2, 0), "interleaved_zero_bubble: num_microbatches is 0, must be 1 to 1048576"),
        (
            interleaved(4, 2, 9),
            "interleaved_zero_bubble: num_microbatches is 9, must divide into its 2 rounds, as 8 or 10 would, \
             for 4 ranks",
        ),
        (
            interleaved(4, 2, 14),
            "interleaved_zero_bubble: num_microbatches is 14, must divide into its 3 rounds, as 12 or 15 would, \
             for 4 ranks",
        ),
        (interleaved(4, 2, 1), ""),
        (interleaved(4, 2, 7), ""),
        (interleaved(4, 2, 10), ""),
    ];
    for (got, want) in cases {
        assert_eq!(got.err().map_or(String::new(), |e| e.to_string()), want);
    }
}

#[test]
fn every_zero_bubble_schedule_that_is_admitted_can_run() {
    let mut checked = 0;
    for (num_ranks, num_microbatches) in (1..=16).flat_map(|p| (1..=64).map(move |n| (p, n))) {
        for make in ALL {
            for work in [Training, ForwardOnly] {
                // A third of the long ones.
                if num_ranks > 8 && num_microbatches > 16 && (num_ranks + num_microbatches) % 3 != 0 {
                    continue;
                }
                let Ok(schedule) = make(num_ranks, num_microbatches, work) else { continue };
                if let Err(why) = schedule.check() {
                    panic!("{num_ranks} ranks, {num_microbatches} micro-batches, {work:?}: {why}");
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 8_000, "only {checked} schedules");
}

/// What the ranks idle when each stage's F, I and W last as given.
struct Idle {
    /// Of each rank, in the whole step.
    whole: Vec<u64>,
    /// Of each rank, between its first op and its last.
    inner: Vec<u64>,
}

fn idle(schedule: &Schedule, (forward_ns, input_ns, weight_ns): (u64, u64, u64)) -> Idle {
    let overlapped_ns = forward_ns + input_ns + weight_ns;
    let stage = StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..StageCosts::default() };
    let costs = Costs::new(vec![stage], Link::default()).unwrap();
    let timeline = simulate(schedule, &costs).unwrap().timeline;
    let busy = |rank: usize| -> u64 { timeline.spans[rank].iter().map(|s| s.end_ns - s.start_ns).sum() };
    let extent = |rank: usize| {
        let spans = &timeline.spans[rank];
        spans[spans.len() - 1].end_ns - spans[0].start_ns
    };
    let ranks = 0..schedule.num_ranks();
    Idle {
        whole: ranks.clone().map(|rank| timeline.makespan_ns() - busy(rank)).collect(),
        inner: ranks.map(|rank| extent(rank) - busy(rank)).collect(),
    }
}

fn most(of_ranks: &[u64]) -> u64 {
    of_ranks.iter().copied().max().unwrap()
}

/// F, I and W with W no longer than the others.
const SHORT_WEIGHTS: [(u64, u64, u64); 4] = [(10, 10, 10), (10, 13, 8), (10, 8, 8), (10, 20, 3)];

/// ZB-H1, arXiv 2401.10241, section 2: (P - 1)(F + I - W). The interleaved one meets the same, in its shorter stages.
#[test]
fn zb_h1_and_the_interleaved_one_idle_by_the_formula() {
    for costs in SHORT_WEIGHTS {
        let (f, i, w) = costs;
        for num_ranks in 1..=16 {
            let want = vec![(num_ranks as u64 - 1) * (f + i - w); num_ranks];
            for num_microbatches in [num_ranks, num_ranks + 1, 2 * num_ranks] {
                let schedule = zb_h1(num_ranks, num_microbatches, Training).unwrap();
                assert_eq!(idle(&schedule, costs).whole, want, "{num_ranks} ranks, {num_microbatches}");
                if num_microbatches % num_ranks == 0 {
                    for make in [interleaved_2, interleaved_3] {
                        let schedule = make(num_ranks, num_microbatches, Training).unwrap();
                        assert_eq!(
                            idle(&schedule, costs).whole,
                            want,
                            "{num_ranks} ranks, {num_microbatches}"
                        );
                    }
                }
            }
        }
    }
}

/// ZB-H2, arXiv 2401.10241, section 2: (P - 1)(F + I - 2W). Published of ZB-V is 0 for F = I = W; it meets the same
/// formula for other F = I.
#[test]
fn zb_h2_and_zb_v_idle_by_the_formula() {
    for costs in SHORT_WEIGHTS.into_iter().chain([(10, 10, 4)]) {
        let (f, i, w) = costs;
        for num_ranks in 1..=16 {
            let want = (num_ranks as u64 - 1) * (f + i - 2 * w);
            for num_microbatches in [2 * num_ranks - 1, 2 * num_ranks, 3 * num_ranks] {
                let makes: &[Make] = if f == i { &[zb_h2, zb_v] } else { &[zb_h2] };
                for make in makes {
                    let schedule = make(num_ranks, num_microbatches, Training).unwrap();
                    assert_eq!(most(&idle(&schedule, costs).inner), want, "{}", schedule.title());
                }
            }
        }
    }
}

/// Two thirds and half of what 1F1B idles: not published figures, but what these orders reach.
#[test]
fn v_min_and_v_half_idle_less_than_1f1b() {
    for num_ranks in 1..=16 {
        for num_microbatches in [1, 2, 3, num_ranks, 2 * num_ranks, 3 * num_ranks + 1] {
            let unit = |make: Make| {
                let schedule = make(num_ranks, num_microbatches, Training).unwrap();
                most(&idle(&schedule, (1, 1, 1)).whole)
            };
            // A stage of the V placement is half as long.
            let of_1f1b = 2 * unit(one_f_one_b);
            assert!(3 * unit(v_min) <= 2 * of_1f1b, "{num_ranks} ranks, {num_microbatches} micro-batches");
            if 2 * num_microbatches >= num_ranks {
                assert!(2 * unit(v_half) <= of_1f1b, "{num_ranks} ranks, {num_microbatches} micro-batches");
            }
        }
        // Costs a little apart do not make V-Half's bubble grow with the micro-batches.
        let bubble = |n: usize| most(&idle(&v_half(num_ranks, n, Training).unwrap(), (10, 13, 8)).whole);
        assert_eq!(bubble(3 * num_ranks + 2), bubble(6 * num_ranks + 2), "{num_ranks} ranks");
    }
}

/// The constants 2 and 8/3 of V-Half and V-Min are what these orders need beyond the published P/2 and P/3.
#[test]
fn peak_live_is_what_the_zero_bubble_papers_say() {
    for num_ranks in 1..=16 {
        let peaks = |make: Make| make(num_ranks, 3 * num_ranks, Training).unwrap().peak_live();
        assert_eq!(peaks(zb_h1), vec![num_ranks; num_ranks], "P on every rank");
        assert_eq!(peaks(zb_h2), vec![2 * num_ranks - 1; num_ranks], "2P - 1 on every rank");
        assert_eq!(peaks(interleaved_2), vec![2 * num_ranks; num_ranks], "(V - 1)P + P");
        assert_eq!(peaks(interleaved_3), vec![3 * num_ranks; num_ranks], "(V - 1)P + P");
        assert_eq!(peaks(zb_v), vec![2 * num_ranks; num_ranks], "2P half ranks");
        for num_microbatches in [1, num_ranks, 3 * num_ranks] {
            let peak = |make: Make| {
                make(num_ranks, num_microbatches, Training).unwrap().peak_live().into_iter().max().unwrap()
            };
            assert!(peak(v_half) <= num_ranks + 2, "half of 2P, and 2");
            assert!(3 * peak(v_min) <= 2 * num_ranks + 8, "a third of 2P, and 8/3");
        }
    }
}
