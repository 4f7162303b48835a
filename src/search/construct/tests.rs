//! What is made from nothing can run, keeps to any cap that can be kept to, and is good.

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::cost::{Costs, Link, StageCosts};
use crate::error::ErrorKind;
use crate::ids::{Direction, Rank, Stage};
use crate::placement::Placement;
use crate::schedule::{Schedule, Work};
use crate::sim::{lower_bound_ns, simulate, MemoryCap};

fn costs(forward_ns: u64, input_ns: u64, weight_ns: u64, overlapped_ns: u64) -> StageCosts {
    StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..StageCosts::default() }
}

fn problem(placement: Placement, num_microbatches: usize, stage: StageCosts, cap: MemoryCap) -> Problem {
    let costs = Costs::new(vec![stage], Link::default()).unwrap();
    Problem { placement, num_microbatches, costs, cap }
}

fn schedule(problem: &Problem, orders: Vec<Vec<Op>>) -> Schedule {
    let Problem { placement, num_microbatches, .. } = problem;
    Schedule::new("constructed", placement.clone(), *num_microbatches, Work::Training, orders).unwrap()
}

/// Of the best, after it and all others were found to be right.
fn makespan_ns(problem: &Problem, seed: u64, tries: usize) -> u64 {
    let all = construct(problem, seed, tries).unwrap();
    let makespans = all.iter().map(|orders| {
        let schedule = schedule(problem, orders.clone());
        schedule.check().unwrap();
        assert!(problem.cap.admits(&schedule, &problem.costs), "{:?}", schedule.peak_live());
        let makespan = simulate(&schedule, &problem.costs).unwrap().timeline.makespan_ns();
        assert!(makespan >= lower_bound_ns(&schedule, &problem.costs));
        makespan
    });
    let makespans: Vec<u64> = makespans.collect();
    assert!(makespans.is_sorted(), "{makespans:?}");
    for (i, orders) in all.iter().enumerate() {
        assert!(!all[..i].contains(orders), "two are alike");
    }
    makespans[0]
}

fn bidirectional(num_ranks: usize) -> Placement {
    Placement::bidirectional(num_ranks).unwrap()
}

#[test]
fn few_microbatches_take_as_little_as_the_best_known() {
    for (num_microbatches, best) in [(4, 19), (8, 27), (12, 39)] {
        let problem = problem(bidirectional(8), num_microbatches, costs(1, 1, 1, 3), MemoryCap::Unlimited);
        assert_eq!(makespan_ns(&problem, 0, 2), best, "{num_microbatches} micro-batches");
    }
}

#[test]
fn little_memory_costs_little_time() {
    for (cap, at_most) in [(4, 71), (5, 70), (6, 67), (7, 65), (8, 63), (9, 63)] {
        let cap_of_each = MemoryCap::Activations(vec![cap]);
        let found = makespan_ns(&problem(bidirectional(8), 20, costs(1, 1, 1, 3), cap_of_each), 0, 4);
        assert!(found <= at_most, "cap {cap}: {found}");
    }
}

#[test]
fn without_overlap_sixteen_ranks_reach_the_lower_bound() {
    let cap = MemoryCap::Activations(vec![17]);
    assert_eq!(makespan_ns(&problem(bidirectional(16), 32, costs(1, 1, 1, 3), cap), 0, 2), 103);
}

#[test]
fn overlap_is_used_where_it_pays() {
    let problem = problem(bidirectional(8), 20, costs(2, 2, 2, 4), MemoryCap::Activations(vec![9]));
    let best = construct(&problem, 0, 4).unwrap().swap_remove(0);
    let pairs = best.iter().flatten().filter(|op| matches!(op, Op::FB(..))).count();
    assert!(pairs > 40, "{pairs} of 160 forwards are in a pair");
    assert!(makespan_ns(&problem, 0, 4) < 2 * 63, "63 is the least without overlap");
}

#[test]
fn stages_of_a_rank_share_the_least_room() {
    let cap = MemoryCap::Activations(vec![2]);
    let problem = problem(Placement::v(2).unwrap(), 2, costs(1, 1, 1, 3), cap);
    let best = construct(&problem, 0, 4).unwrap().swap_remove(0);
    let text = simulate(&schedule(&problem, best), &problem.costs).unwrap().timeline.to_text();
    expect![[r#"
        constructed, 2 ranks, 2 micro-batches (simulated)
        0|F0 .  .  f0 i0 w0 F1 I0 W0 .  .  f1 i1 w1 .  I1 W1 | idle 5 ns
        1|.  F0 f0 .  .  i0 I0 w0 F1 W0 f1 .  .  i1 I1 w1 W1 | idle 5 ns
        makespan 17 ns, bubble 29.4 %, 3 columns = 1 ns
    "#]]
    .assert_eq(&text);
}

#[test]
fn less_than_one_microbatch_of_each_stage_is_refused() {
    let refused = |problem: Problem| {
        let error = construct(&problem, 0, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    };
    let stage = costs(1, 1, 1, 3);
    let caps = MemoryCap::Activations(vec![2, 2, 1, 2]);
    let range = "must be at least 2: one micro-batch on each of the rank's stages of a direction";
    let error = refused(problem(Placement::v(4).unwrap(), 8, stage, caps));
    assert_eq!(error, format!("plan: the memory cap of rank 2 is 1, {range}"));
    // Of two directions one goes after the other.
    makespan_ns(&problem(bidirectional(4), 8, stage, MemoryCap::Activations(vec![1])), 0, 1);

    let stage = StageCosts { activation_bytes: 10, parameter_bytes: 100, ..stage };
    let range =
        "must be at least 110: one micro-batch on each of the rank's stages of a direction and its parameters, in bytes";
    let error = refused(problem(Placement::linear(2).unwrap(), 3, stage, MemoryCap::Bytes(vec![109])));
    assert_eq!(error, format!("plan: the memory cap of rank 0 is 109, {range}"));
}

#[test]
fn a_seed_is_a_way() {
    let problem = problem(bidirectional(4), 10, costs(10, 13, 8, 25), MemoryCap::Activations(vec![5]));
    let found = construct(&problem, 7, 2).unwrap();
    assert_eq!(found, construct(&problem, 7, 2).unwrap());
    assert_ne!(found, construct(&problem, 8, 2).unwrap());
}

#[test]
fn many_ranks_and_microbatches_are_dispatched_once() {
    for cap in [MemoryCap::Unlimited, MemoryCap::Activations(vec![12])] {
        let problem = problem(Placement::v(24).unwrap(), 65, costs(10, 13, 8, 25), cap);
        makespan_ns(&problem, 0, 1);
    }
}

fn any_stage() -> impl Strategy<Value = StageCosts> {
    (0u64..20, 0u64..20, 0u64..20, 0u64..8, 0u64..50, 0u64..50).prop_map(
        |(f, i, w, saved, activation, parameters)| {
            let overlapped = (f + i + w).saturating_sub(saved).max(f).max(i + w);
            let bytes = StageCosts {
                activation_bytes: activation,
                parameter_bytes: parameters,
                ..costs(f, i, w, overlapped)
            };
            StageCosts { output_bytes: activation, ..bytes }
        },
    )
}

/// Any stage on any rank; in two directions, the copies of a stage on two ranks, as gradient reductions need it.
fn any_placement() -> impl Strategy<Value = Placement> {
    let custom = (2usize..6, 1usize..9, any::<bool>(), any::<u64>());
    let custom = custom.prop_map(|(num_ranks, num_stages, two, seed)| {
        let mut random = Random::new(seed);
        let down: Vec<usize> = (0..num_stages).map(|_| random.below(num_ranks)).collect();
        let up = down.iter().map(|rank| (rank + 1 + random.below(num_ranks - 1)) % num_ranks).collect();
        let directions = if two { vec![down, up] } else { vec![down] };
        let ranks = |d: &Vec<usize>| d.iter().map(|&rank| Rank::from_index(rank)).collect();
        Placement::new(num_ranks, &directions.iter().map(ranks).collect::<Vec<Vec<Rank>>>()).unwrap()
    });
    prop_oneof![
        (1usize..7).prop_map(|p| Placement::linear(p).unwrap()),
        (1usize..6).prop_map(|p| Placement::v(p).unwrap()),
        (1usize..4, 1usize..4).prop_map(|(p, v)| Placement::interleaved(p, v).unwrap()),
        (1usize..4).prop_map(|p| bidirectional(2 * p)),
        custom,
    ]
}

/// As much as one micro-batch at a time needs on `rank`.
fn least(placement: &Placement, rank: usize, of_stage: impl Fn(Stage) -> u64) -> u64 {
    let of_direction = |direction| {
        let copies = placement.copies_on(Rank::from_index(rank)).iter();
        copies.filter(|copy| copy.direction == direction).map(|copy| of_stage(copy.stage)).sum()
    };
    Direction::ALL.into_iter().map(of_direction).max().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_problem_that_has_a_schedule_gets_one(
        placement in any_placement(),
        num_microbatches in 2usize..12,
        stages in proptest::collection::vec(any_stage(), 40),
        is_uniform in any::<bool>(),
        latency_ns in 0u64..5,
        kind in 0usize..5,
        spare in proptest::collection::vec(0u64..4, 6),
        seed in any::<u64>(),
    ) {
        let num_stages = if is_uniform { 1 } else { placement.num_stages() };
        let link = Link { latency_ns, bytes_per_second: (latency_ns > 2).then_some(10_000_000_000) };
        let costs = Costs::new(stages[..num_stages].to_vec(), link).unwrap();
        let ranks = 0..placement.num_ranks();
        let activations = |rank: usize, spare: u64| (least(&placement, rank, |_| 1) + spare).max(1) as usize;
        let bytes = |rank: usize, spare: u64| {
            let copies = placement.copies_on(Rank::from_index(rank)).iter();
            let parameters: u64 = copies.map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
            least(&placement, rank, |s| costs.stage(s).activation_bytes) + parameters + spare
        };
        let cap = match kind {
            0 => MemoryCap::Unlimited,
            1 => MemoryCap::Activations(ranks.map(|rank| activations(rank, 0)).collect()),
            2 => MemoryCap::Activations(ranks.map(|rank| activations(rank, spare[rank])).collect()),
            3 => MemoryCap::Bytes(ranks.map(|rank| bytes(rank, 0)).collect()),
            _ => MemoryCap::Bytes(ranks.map(|rank| bytes(rank, 30 * spare[rank])).collect()),
        };
        let problem = Problem { placement, num_microbatches, costs, cap };
        let small = Problem { num_microbatches: num_microbatches.min(3), ..problem.clone() };
        makespan_ns(&problem, seed, 1);
        makespan_ns(&small, seed, 1);
    }
}

#[test]
fn a_single_microbatch_goes_straight() {
    for placement in [Placement::v(3).unwrap(), Placement::linear(4).unwrap()] {
        let problem = problem(placement, 1, costs(1, 1, 1, 3), MemoryCap::Unlimited);
        assert_eq!(makespan_ns(&problem, 0, 1), 2 * problem.placement.num_stages() as u64 + 1);
    }
    let problem = problem(bidirectional(4), 1, costs(1, 1, 1, 3), MemoryCap::Activations(vec![1]));
    let found = construct(&problem, 0, 1).unwrap().swap_remove(0);
    schedule(&problem, found).check().unwrap();
}
