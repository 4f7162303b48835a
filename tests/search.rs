//! The planner: never worse than what is published, within memory, the same everywhere, and good at what is known.

use std::ops::ControlFlow;
use std::time::Duration;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::placement::Placement;
use dualpipe::schedule::{
    chimera, dualpipe, dualpipe_v, gpipe, interleaved_1f1b, interleaved_overlapped, interleaved_zero_bubble,
    looped_bfs, one_f_one_b, v_half, v_min, zb_h1, zb_h2, zb_v, Schedule, Work,
};
use dualpipe::search::{plan, Effort, Plan, Problem, Stop};
use dualpipe::sim::{peak_memory_bytes, simulate, MemoryCap};
use expect_test::expect;
use proptest::prelude::*;

fn effort(iterations: u64) -> Effort {
    Effort { iterations, time: None, seed: 7 }
}

fn go_on(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// F, I, W, F&B of every stage, in nanoseconds.
fn costs(f: u64, i: u64, w: u64, fb: u64) -> Costs {
    let stage =
        StageCosts { forward_ns: f, input_ns: i, weight_ns: w, overlapped_ns: fb, ..StageCosts::default() };
    Costs::new(vec![stage], Link::default()).unwrap()
}

fn activations(cap: usize) -> MemoryCap {
    MemoryCap::Activations(vec![cap])
}

fn bidirectional(num_ranks: usize, num_microbatches: usize, costs: Costs, cap: MemoryCap) -> Problem {
    Problem { placement: Placement::bidirectional(num_ranks).unwrap(), num_microbatches, costs, cap }
}

/// The published schedules of these sizes that a placement admits.
fn published(placement: &Placement, n: usize) -> Vec<Schedule> {
    let p = placement.num_ranks();
    let v = placement.num_stages() / p;
    let work = Work::Training;
    let all = [
        dualpipe(p, n, work),
        chimera(p, n, work),
        dualpipe_v(p, n, work),
        zb_v(p, n, work),
        v_half(p, n, work),
        v_min(p, n, work),
        gpipe(p, n, work),
        one_f_one_b(p, n, work),
        zb_h1(p, n, work),
        zb_h2(p, n, work),
        looped_bfs(p, v, n, work),
        interleaved_1f1b(p, v, n, work),
        interleaved_overlapped(p, v, n, work),
        interleaved_zero_bubble(p, v, n, work),
    ];
    all.into_iter().filter_map(Result::ok).filter(|schedule| schedule.placement() == placement).collect()
}

/// What must be true of every plan.
fn check_plan(problem: &Problem, plan: &Plan) {
    let schedule = &plan.schedule;
    let report = schedule.check().unwrap();
    let simulation = simulate(schedule, &problem.costs).unwrap();
    assert_eq!(schedule.placement(), &problem.placement);
    assert_eq!(schedule.num_microbatches(), problem.num_microbatches);
    assert_eq!(plan.makespan_ns, simulation.timeline.makespan_ns());
    assert_eq!(plan.peak_live, report.peak_live);
    assert_eq!(plan.peak_memory_bytes, peak_memory_bytes(schedule, &problem.costs));
    assert!(problem.cap.admits(schedule, &problem.costs), "{}", schedule.to_text());
    assert!(plan.lower_bound_ns <= plan.makespan_ns && plan.makespan_ns <= plan.start_makespan_ns);
    if plan.stop == Stop::Optimal {
        assert_eq!(plan.makespan_ns, plan.lower_bound_ns);
    }
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        (1usize..=6).prop_map(Placement::linear),
        (1usize..=5).prop_map(Placement::v),
        (1usize..=4).prop_map(|half| Placement::bidirectional(2 * half)),
        (1usize..=4, 2usize..=3).prop_map(|(p, v)| Placement::interleaved(p, v)),
    ]
    .prop_map(Result::unwrap)
}

fn stage() -> impl Strategy<Value = StageCosts> {
    (1u64..9, 0u64..9, 0u64..9, 0u64..=100, 0u64..5, 1u64..9).prop_map(
        |(f, i, w, percent, output, activation)| {
            let longer = f.max(i + w);
            StageCosts {
                forward_ns: f,
                input_ns: i,
                weight_ns: w,
                overlapped_ns: longer + (f + i + w - longer) * percent / 100,
                output_bytes: output,
                activation_bytes: activation,
                parameter_bytes: 10,
            }
        },
    )
}

fn problem() -> impl Strategy<Value = Problem> {
    let of = |placement: Placement| {
        let num_stages = placement.num_stages();
        let stages =
            prop_oneof![prop::collection::vec(stage(), 1), prop::collection::vec(stage(), num_stages),];
        let cap = prop_oneof![
            Just(MemoryCap::Unlimited),
            (3usize..12).prop_map(activations),
            (60u64..200).prop_map(|bytes| MemoryCap::Bytes(vec![bytes])),
        ];
        (Just(placement), 1usize..=12, stages, 0u64..3, cap)
    };
    placement().prop_flat_map(of).prop_map(|(placement, num_microbatches, stages, latency_ns, cap)| {
        let link = Link { latency_ns, bytes_per_second: Some(1_000_000_000) };
        Problem { placement, num_microbatches, costs: Costs::new(stages, link).unwrap(), cap }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_plan_is_right_and_never_worse_than_a_published_schedule_that_fits(
        problem in problem(), seed in 0u64..4, iterations in 0u64..600
    ) {
        let effort = Effort { iterations, time: None, seed };
        let published = published(&problem.placement, problem.num_microbatches);
        let fitting: Vec<&Schedule> =
            published.iter().filter(|schedule| problem.cap.admits(schedule, &problem.costs)).collect();
        match plan(&problem, &effort, &mut go_on) {
            Ok(plan) => {
                check_plan(&problem, &plan);
                prop_assert!(plan.iterations <= iterations);
                let makespan_ns = |s: &&Schedule| simulate(s, &problem.costs).unwrap().timeline.makespan_ns();
                match fitting.iter().map(makespan_ns).min() {
                    Some(best) => {
                        prop_assert_eq!(plan.start_makespan_ns, best);
                        prop_assert!(fitting.iter().any(|schedule| schedule.name() == plan.started_from));
                    }
                    None => prop_assert_eq!(plan.started_from, "constructed"),
                }
            }
            Err(error) => prop_assert!(fitting.is_empty(), "{}", error),
        }
    }
}

#[test]
fn what_is_known_is_reached() {
    let trace = costs(100, 127, 38, 166);
    for (problem, iterations, best) in [
        (bidirectional(8, 20, costs(10, 10, 10, 30), activations(9)), 20_000, 630),
        (bidirectional(8, 20, costs(10, 10, 10, 20), activations(9)), 40_000, 510),
        (bidirectional(8, 20, costs(10, 10, 10, 25), activations(9)), 60_000, 585),
        (bidirectional(8, 20, trace, activations(9)), 40_000, 4763),
        (bidirectional(8, 4, costs(10, 10, 10, 30), activations(9)), 20_000, 190),
        (bidirectional(8, 8, costs(10, 10, 10, 30), activations(9)), 20_000, 270),
        (bidirectional(8, 12, costs(10, 10, 10, 30), activations(9)), 20_000, 390),
        (bidirectional(8, 20, costs(10, 10, 10, 30), activations(8)), 20_000, 630),
        (bidirectional(8, 20, costs(10, 10, 10, 30), activations(4)), 20_000, 710),
    ] {
        let plan = plan(&problem, &effort(iterations), &mut go_on).unwrap();
        check_plan(&problem, &plan);
        assert!(plan.makespan_ns <= best, "{} of {best}", plan.makespan_ns);
    }
}

#[test]
fn a_plan_that_one_can_follow() {
    let problem = bidirectional(4, 8, costs(2, 2, 2, 4), activations(5));
    let plan = plan(&problem, &effort(20_000), &mut go_on).unwrap();
    expect![[r#"
        0| 0F0 0F1 0F2 3f0 3i0 3w0 3f1 0F3&3b1 3f2&0B0 3b2 3f3&0B1 0I2 3i3 0W2 3w3 0B3
        1| 1F0 2f0 1F1 2f1 1F2&2b0 2f2&1B0 1F3&2b1 2f3&1B1 2i2 1I2 2w2 1W2 2i3 1I3 2w3 1W3
        2| 1f0 2F0 1f1 2F1 1f2&2B0 2F2&1b0 1f3&2B1 2F3&1b1 2I2 1i2 2W2 1w2 2I3 1i3 2W3 1w3
        3| 0f0 0f1 0f2 3F0 3I0 3W0 3F1 0f3&3B1 3F2&0b0 3B2 3F3&0b1 0i2 3I3 0w2 3W3 0b3
    "#]]
    .assert_eq(&plan.schedule.to_text());
    expect!["42 from dualpipe 44, bound 42, Optimal after 0"].assert_eq(&format!(
        "{} from {} {}, bound {}, {:?} after {}",
        plan.makespan_ns,
        plan.started_from,
        plan.start_makespan_ns,
        plan.lower_bound_ns,
        plan.stop,
        plan.iterations
    ));
}

#[test]
fn odd_and_few_microbatches_are_planned_too() {
    for num_microbatches in [1, 2, 3, 5, 7, 13] {
        let problem = bidirectional(6, num_microbatches, costs(10, 12, 8, 24), MemoryCap::Unlimited);
        let plan = plan(&problem, &effort(2000), &mut go_on).unwrap();
        check_plan(&problem, &plan);
        let even = num_microbatches % 2 == 0;
        assert_eq!(plan.started_from, if even { "chimera" } else { "constructed" }, "{num_microbatches}");
    }
}

#[test]
fn threads_do_not_change_a_plan_but_the_seed_does() {
    let problem = bidirectional(6, 13, costs(10, 13, 7, 22), activations(7));
    let on = |num_threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| plan(&problem, &Effort { iterations: 30_000, time: None, seed }, &mut go_on)).unwrap()
    };
    let (one, two, other) = (on(1, 5), on(2, 5), on(2, 6));
    assert_eq!(one.schedule, two.schedule);
    assert_eq!(one.iterations, two.iterations);
    assert_ne!(one.schedule, other.schedule);
}

#[test]
fn a_plan_that_is_stopped_is_the_best_so_far() {
    let problem = bidirectional(8, 20, costs(10, 10, 10, 25), activations(9));
    let mut seen = Vec::new();
    let total = 1_000_000_000;
    let mut stop_soon = |done, of| {
        seen.push((done, of));
        if seen.len() > 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let plan = plan(&problem, &effort(total), &mut stop_soon).unwrap();
    check_plan(&problem, &plan);
    assert_eq!(plan.stop, Stop::Cancelled);
    assert!(plan.makespan_ns < plan.start_makespan_ns);
    assert_eq!(seen[0].0, 0);
    assert_eq!(seen.last().map(|&(done, _)| done), Some(plan.iterations));
    assert!(seen.windows(2).all(|w| w[0].0 < w[1].0) && seen.iter().all(|&(_, of)| of == total));
}

#[test]
fn no_iterations_and_no_time_give_the_start() {
    let problem = bidirectional(8, 20, costs(10, 16, 8, 30), activations(9));
    let none = plan(&problem, &effort(0), &mut go_on).unwrap();
    check_plan(&problem, &none);
    assert_eq!((none.stop, none.iterations), (Stop::Iterations, 0));
    let no_time = Effort { time: Some(Duration::ZERO), ..effort(u64::MAX) };
    let no_time = plan(&problem, &no_time, &mut go_on).unwrap();
    assert_eq!((no_time.stop, no_time.iterations), (Stop::Time, 0));
    assert_eq!(no_time.schedule, none.schedule);
}

#[test]
fn many_steps_do_not_make_a_round_long() {
    let problem = bidirectional(16, 512, costs(10, 10, 10, 25), activations(17));
    let mut calls = Vec::new();
    let mut count = |done, _| {
        calls.push(done);
        ControlFlow::Continue(())
    };
    let plan = plan(&problem, &effort(500), &mut count).unwrap();
    check_plan(&problem, &plan);
    assert_eq!(plan.iterations, 500);
    assert!(calls.len() > 2, "{calls:?}");
}

#[test]
fn what_cannot_be_planned_is_said() {
    let good = bidirectional(4, 8, costs(1, 1, 1, 3), MemoryCap::Unlimited);
    let two_stages = Costs::new(vec![StageCosts::default(); 2], Link::default()).unwrap();
    for (problem, want) in [
        (
            Problem { num_microbatches: 0, ..good.clone() },
            "plan: num_microbatches is 0, must be 1 to 1048576",
        ),
        (
            Problem { num_microbatches: 1 << 21, ..good.clone() },
            "plan: num_microbatches is 2097152, must be 1 to 1048576",
        ),
        (
            Problem { costs: two_stages, ..good.clone() },
            "plan: the number of stages is 2, must be 1 or 4, the schedule's stages",
        ),
        (
            Problem { cap: MemoryCap::Activations(vec![4; 3]), ..good.clone() },
            "plan: the number of entries is 3, must be 1 or 4, one for each rank",
        ),
        (
            Problem { cap: MemoryCap::Activations(vec![4, 4, 0, 4]), ..good.clone() },
            "plan: activations[2] is 0, must be 1 to 18446744073709551615",
        ),
    ] {
        let error = plan(&problem, &effort(100), &mut go_on).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
}
