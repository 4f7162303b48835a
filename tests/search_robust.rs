//! Costs with a spread, and plans that are robust against it.

use std::ops::ControlFlow;

use dualpipe::cost::{Costs, Link, PairCosts, StageCosts, COST_NS_MAX};
use dualpipe::ids::Stage;
use dualpipe::placement::Placement;
use dualpipe::schedule::{
    chimera, dualpipe, dualpipe_v, gpipe, interleaved_overlapped, zb_h1, zb_v, Schedule, Work,
};
use dualpipe::search::{
    plan_robust, sampled_lower_bounds, sampled_makespans, Effort, Objective, Problem, RobustPlan, Spread,
    Stop, Summary,
};
use dualpipe::sim::{simulate, MemoryCap};
use expect_test::expect;
use proptest::prelude::*;

const SPREAD: Spread = Spread { op_jitter: 0.1, expert_imbalance: 0.2, samples: 32, seed: 7 };

fn costs(forward_ns: u64, input_ns: u64, weight_ns: u64, overlapped_ns: u64) -> Costs {
    let stage = StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..StageCosts::default() };
    Costs::new(vec![stage], Link::default()).unwrap()
}

fn schedules(num_ranks: usize, num_microbatches: usize) -> Vec<Schedule> {
    [
        gpipe(num_ranks, num_microbatches, Work::Training),
        zb_h1(num_ranks, num_microbatches, Work::Training),
        zb_v(num_ranks, num_microbatches, Work::Training),
        dualpipe_v(num_ranks, num_microbatches, Work::Training),
        dualpipe(num_ranks, num_microbatches, Work::Training),
        chimera(num_ranks, num_microbatches, Work::Training),
        interleaved_overlapped(num_ranks, 2, num_microbatches, Work::Training),
    ]
    .into_iter()
    .filter_map(Result::ok)
    .collect()
}

/// F on one rank is all there is: a makespan is what was drawn for it.
fn drawn(costs: &Costs, spread: Spread) -> Vec<f64> {
    let one = gpipe(1, 1, Work::Training).unwrap();
    let makespans = sampled_makespans(&one, costs, &Spread { samples: 1024, ..spread }).unwrap();
    makespans.into_iter().map(|ns| ns as f64).collect()
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

#[test]
fn samples_have_the_mean_and_the_deviation_that_were_asked_for() {
    let alone = |forward_ns| costs(forward_ns, 0, 0, forward_ns);
    let whole = costs(1_000_000, 1_000_000, 1_000_000, 2_000_000);
    let jitter = Spread { op_jitter: 0.1, expert_imbalance: 0.0, samples: 1024, seed: 3 };
    let imbalance = Spread { op_jitter: 0.0, expert_imbalance: 0.1, ..jitter };
    for (costs, spread, mean, deviation) in [
        (alone(1_000_000), jitter, 1e6, 1e5),
        (alone(1_000_000), imbalance, 1e6, 1e5),
        // Independent ones partly cancel, what slows all alike adds up.
        (whole.clone(), jitter, 3e6, 1e5 * 3f64.sqrt()),
        (whole, imbalance, 3e6, 3e5),
    ] {
        let (found_mean, found_deviation) = mean_and_deviation(&drawn(&costs, spread));
        assert!((found_mean / mean - 1.0).abs() < 0.02, "{found_mean} is not about {mean}");
        assert!(
            (found_deviation / deviation - 1.0).abs() < 0.08,
            "{found_deviation} is not about {deviation}"
        );
    }
    // However far they spread, nothing takes less than a tenth or more than ten times as long.
    let wild = Spread { op_jitter: 1.0, expert_imbalance: 1.0, ..jitter };
    let all = drawn(&alone(1000), wild);
    assert!(all.iter().all(|ns| (100.0..=10_000.0).contains(ns)));
    assert!(all.contains(&100.0));
}

#[test]
fn the_same_seed_draws_the_same_samples_on_every_machine() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let costs = costs(10_000, 12_700, 3_800, 16_600);
    let makespans = sampled_makespans(&schedule, &costs, &Spread { samples: 6, ..SPREAD }).unwrap();
    expect!["[211074, 234132, 215832, 209064, 220974, 223260]"].assert_eq(&format!("{makespans:?}"));
    // More samples begin with the same ones; another seed draws others.
    let more = sampled_makespans(&schedule, &costs, &Spread { samples: 9, ..SPREAD }).unwrap();
    assert_eq!(more[..6], makespans);
    let others = sampled_makespans(&schedule, &costs, &Spread { samples: 6, seed: 8, ..SPREAD }).unwrap();
    assert!(others.iter().all(|ns| !makespans.contains(ns)));
}

#[test]
fn a_summary_counts_places_from_the_shortest() {
    let of = |count: u64| Summary::of(&(1..=count).rev().collect::<Vec<u64>>());
    assert_eq!(of(100), Summary { mean_ns: 51, p95_ns: 95, min_ns: 1, max_ns: 100 });
    let places = [1, 2, 19, 20, 21, 64].map(|count| of(count).p95_ns);
    assert_eq!(places, [1, 2, 19, 19, 20, 61]);
    assert_eq!(Summary::of(&[u64::MAX, u64::MAX]).mean_ns, u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn without_a_spread_each_sample_is_the_simulation(
        ranks in 1usize..5, n in 1usize..12, seed: u64, latency_ns in 0u64..500,
        times in prop::collection::vec((0u64..1000, 0u64..1000, 0u64..1000, 0u64..2000), 8),
        pair_ns in 2000u64..4000,
    ) {
        for schedule in schedules(ranks, n) {
            let stages = schedule.placement().num_stages();
            let stage = |s: usize| {
                let (f, i, w, extra) = times[s % times.len()];
                StageCosts {
                    forward_ns: f,
                    input_ns: i,
                    weight_ns: w,
                    overlapped_ns: f.max(i + w) + extra,
                    ..StageCosts::default()
                }
            };
            let link = Link { latency_ns, bytes_per_second: None };
            let costs = Costs::new((0..stages).map(stage).collect(), link).unwrap();
            let pair = PairCosts { forward: Stage(0), backward: Stage(stages as u16 - 1), overlapped_ns: pair_ns };
            let costs = costs.with_pairs(vec![pair]).unwrap();
            let nothing = Spread { op_jitter: 0.0, expert_imbalance: 0.0, samples: 3, seed };
            let makespan_ns = simulate(&schedule, &costs).unwrap().timeline.makespan_ns();
            prop_assert_eq!(sampled_makespans(&schedule, &costs, &nothing).unwrap(), vec![makespan_ns; 3]);
        }
    }

    #[test]
    fn no_schedule_is_below_the_bound_of_any_sample(
        ranks in 1usize..5, n in 1usize..12, seed: u64, latency_ns in 0u64..500, f in 1u64..1000, i in 0u64..1000,
        w in 0u64..1000, overlap in 0.0f64..1.2, op_jitter in 0.0f64..0.5, expert_imbalance in 0.0f64..0.5,
    ) {
        let overlapped_ns = f.max(i + w) + (overlap * f.min(i + w) as f64) as u64;
        let stage = StageCosts { forward_ns: f, input_ns: i, weight_ns: w, overlapped_ns, ..StageCosts::default() };
        let costs = Costs::new(vec![stage], Link { latency_ns, bytes_per_second: None }).unwrap();
        let spread = Spread { op_jitter, expert_imbalance, samples: 5, seed };
        for schedule in schedules(ranks, n) {
            let makespans = sampled_makespans(&schedule, &costs, &spread).unwrap();
            let bounds = sampled_lower_bounds(schedule.placement(), n, &costs, &spread).unwrap();
            prop_assert!(
                bounds.iter().zip(&makespans).all(|(bound, makespan)| bound <= makespan),
                "{}: {:?} {:?}", schedule.title(), bounds, makespans
            );
        }
    }
}

fn problem(costs: Costs) -> Problem {
    let cap = MemoryCap::Activations(vec![5]);
    Problem { placement: Placement::bidirectional(4).unwrap(), num_microbatches: 8, costs, cap }
}

fn planned(problem: &Problem, objective: Objective, iterations: u64) -> RobustPlan {
    let effort = Effort { iterations, time: None, seed: 5 };
    plan_robust(problem, &SPREAD, objective, &effort, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_robust_plan_says_what_it_takes_and_is_never_worse_than_the_start_on_its_samples() {
    for (costs, placement, n) in [
        (costs(10_000, 10_000, 10_000, 30_000), Placement::bidirectional(4).unwrap(), 8),
        (costs(10_000, 12_700, 3_800, 16_600), Placement::v(3).unwrap(), 7),
        (costs(10_000, 10_000, 10_000, 25_000), Placement::linear(3).unwrap(), 5),
    ] {
        let cap = MemoryCap::Activations(vec![6]);
        let problem = Problem { placement, num_microbatches: n, costs: costs.clone(), cap: cap.clone() };
        for objective in [Objective::Mean, Objective::P95] {
            let plan = planned(&problem, objective, 40_000);
            assert_eq!(plan.schedule.check().unwrap().peak_live, plan.peak_live);
            assert!(cap.admits(&plan.schedule, &costs));
            let value = objective.of(&plan.robust.samples);
            assert!(plan.lower_bound_ns <= value && value <= objective.of(&plan.start.samples));
            let (_, published) = plan.published.as_ref().unwrap();
            assert!(value <= objective.of(&published.samples));
            // Anybody can repeat it: the samples, then as many others of the same seed.
            let twice = Spread { samples: 2 * SPREAD.samples, ..SPREAD };
            let makespans = sampled_makespans(&plan.schedule, &costs, &twice).unwrap();
            let (samples, held_out) = makespans.split_at(SPREAD.samples);
            assert_eq!(
                (plan.robust.samples, plan.robust.held_out),
                (Summary::of(samples), Summary::of(held_out))
            );
            let simulation = simulate(&plan.schedule, &costs).unwrap();
            assert_eq!(plan.robust.nominal_ns, simulation.timeline.makespan_ns());
            assert!(plan.iterations <= 40_000);
        }
    }
}

#[test]
fn without_overlap_a_robust_plan_beats_dualpipe_on_samples_that_it_never_saw() {
    let problem = problem(costs(10_000, 10_000, 10_000, 30_000));
    let spread = Spread { samples: 96, ..SPREAD };
    let others = Spread { samples: 1024, seed: 99, ..SPREAD };
    let dualpipe = dualpipe(4, 8, Work::Training).unwrap();
    let published = Summary::of(&sampled_makespans(&dualpipe, &problem.costs, &others).unwrap());
    for objective in [Objective::Mean, Objective::P95] {
        let effort = Effort { iterations: 1_000_000, time: None, seed: 5 };
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let plan = plan_robust(&problem, &spread, objective, &effort, go_on).unwrap();
        let robust = Summary::of(&sampled_makespans(&plan.schedule, &problem.costs, &others).unwrap());
        let (robust, published) = (objective.of(&robust), objective.of(&published));
        assert!(robust < published, "{objective:?}: {robust} is not below {published}");
    }
}

#[test]
fn a_robust_plan_does_not_depend_on_threads() {
    let problem = problem(costs(10_000, 10_000, 10_000, 25_000));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| planned(&problem, Objective::Mean, 100_000))
    };
    let (one, two) = (on(1), on(2));
    assert_eq!(one.schedule, two.schedule);
    assert_eq!((one.robust, one.iterations, one.stop), (two.robust, two.iterations, two.stop));
}

#[test]
fn stopped_it_returns_the_best_so_far() {
    let problem = problem(costs(10_000, 10_000, 10_000, 30_000));
    let effort = Effort { iterations: 1_000_000, time: None, seed: 5 };
    for stop_at in [0, 600_000] {
        let mut last = 0;
        let plan = plan_robust(&problem, &SPREAD, Objective::Mean, &effort, &mut |done, all| {
            assert!(done >= last && all == 1_000_000, "{done} after {last} of {all}");
            last = done;
            if done >= stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let plan = plan.unwrap();
        assert_eq!(plan.stop, Stop::Cancelled);
        assert!(plan.iterations < 1_000_000);
        assert!(plan.robust.samples.mean_ns <= plan.start.samples.mean_ns);
        plan.schedule.check().unwrap();
    }
}

#[test]
fn bad_spreads_are_refused() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let good = costs(100, 100, 100, 300);
    let error = |spread: Spread| sampled_makespans(&schedule, &good, &spread).unwrap_err().to_string();
    for (spread, want) in [
        (Spread { op_jitter: f64::NAN, ..SPREAD }, "spread: op_jitter is NaN, must be 0 to 1"),
        (Spread { op_jitter: -0.1, ..SPREAD }, "spread: op_jitter is -0.1, must be 0 to 1"),
        (
            Spread { expert_imbalance: f64::INFINITY, ..SPREAD },
            "spread: expert_imbalance is inf, must be 0 to 1",
        ),
        (Spread { samples: 0, ..SPREAD }, "spread: samples is 0, must be 1 to 1024"),
        (Spread { samples: 1025, ..SPREAD }, "spread: samples is 1025, must be 1 to 1024"),
    ] {
        assert_eq!(error(spread), want);
        let problem = problem(good.clone());
        let effort = Effort { iterations: 10, time: None, seed: 1 };
        let robust = plan_robust(&problem, &spread, Objective::Mean, &effort, &mut |_, _| panic!("it began"));
        assert_eq!(robust.unwrap_err().to_string(), want);
    }
    let large = gpipe(64, 1024, Work::Training).unwrap();
    assert_eq!(
        sampled_makespans(&large, &good, &Spread { samples: 1024, ..SPREAD }).unwrap_err().to_string(),
        "spread: samples is 1024, must be at most 256 for 65536 passes"
    );
    let long = costs(COST_NS_MAX, 0, 0, COST_NS_MAX);
    let error =
        sampled_makespans(&gpipe(32, 32, Work::Training).unwrap(), &long, &SPREAD).unwrap_err().to_string();
    assert!(
        error.starts_with("spread: the time of all ops and messages in ns is 1024000000000000"),
        "{error}"
    );
    let forward_only = gpipe(2, 2, Work::ForwardOnly).unwrap();
    let error = sampled_makespans(&forward_only, &good, &SPREAD).unwrap_err().to_string();
    assert!(error.contains("must be a schedule for training"), "{error}");
    let few = Costs::new(vec![StageCosts::default(); 3], Link::default()).unwrap();
    assert!(sampled_makespans(&schedule, &few, &SPREAD).is_err());
}
