//! The lower bound within a memory cap: against the optimum of small cases, against every published schedule, and its
//! gaps to the best makespans known.

#[path = "support/exhaustive.rs"]
mod exhaustive;
mod support;

use std::fmt::Write;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::placement::Placement;
use dualpipe::schedule::{Schedule, Work};
use dualpipe::sim::{lower_bound_ns, lower_bound_within_ns, peak_memory_bytes, simulate, MemoryCap};
use exhaustive::optimal_makespan_ns;
use expect_test::expect;
use proptest::prelude::*;
use support::family;

fn stage(forward_ns: u64, input_ns: u64, weight_ns: u64, overlapped_ns: u64) -> StageCosts {
    StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..StageCosts::default() }
}

fn costs(stages: Vec<StageCosts>, latency_ns: u64) -> Costs {
    Costs::new(stages, Link { latency_ns, bytes_per_second: None }).unwrap()
}

/// The bound that knows nothing of memory.
fn quick_bound_ns(placement: &Placement, num_microbatches: usize, costs: &Costs) -> u64 {
    let orders = vec![Vec::new(); placement.num_ranks()];
    let empty = Schedule::new("empty", placement.clone(), num_microbatches, Work::Training, orders).unwrap();
    lower_bound_ns(&empty, costs)
}

fn small_placements() -> Vec<(&'static str, Placement, usize)> {
    let named = |name, placement: dualpipe::error::Result<Placement>, most| (name, placement.unwrap(), most);
    vec![
        named("linear 1", Placement::linear(1), 3),
        named("linear 2", Placement::linear(2), 3),
        named("linear 3", Placement::linear(3), 3),
        named("V 1", Placement::v(1), 3),
        named("V 2", Placement::v(2), 3),
        named("V 3", Placement::v(3), 2),
        named("bidirectional 2", Placement::bidirectional(2), 3),
        named("bidirectional 3", Placement::bidirectional(3), 3),
        named("interleaved 1 x 3", Placement::interleaved(1, 3), 3),
        named("interleaved 2 x 2", Placement::interleaved(2, 2), 2),
    ]
}

/// Every small placement, with up to 3 micro-batches, some costs and some caps.
#[test]
fn no_small_case_has_a_schedule_below_the_bound() {
    let all_costs = [
        costs(vec![stage(1, 1, 1, 3)], 0),
        costs(vec![stage(2, 2, 2, 5)], 0),
        costs(vec![stage(2, 2, 2, 4)], 1),
        costs(vec![stage(3, 4, 1, 5)], 0),
    ];
    let caps = [MemoryCap::Unlimited, MemoryCap::Activations(vec![3]), MemoryCap::Activations(vec![2])];
    let mut table = format!("{:20}{:>6}{:>18}{:>18}\n", "", "cases", "bound = optimum", "quick = optimum");
    for (name, placement, most) in small_placements() {
        let (mut cases, mut reached, mut reached_by_quick) = (0, 0, 0);
        for n in 1..=most {
            for costs in &all_costs {
                for cap in &caps {
                    let Some(optimum) = optimal_makespan_ns(&placement, n, costs, cap) else { continue };
                    let bound = lower_bound_within_ns(&placement, n, costs, cap);
                    assert!(bound <= optimum, "{name}, {n}, {costs:?}, {cap:?}: {bound} > {optimum}");
                    cases += 1;
                    reached += usize::from(bound == optimum);
                    reached_by_quick += usize::from(quick_bound_ns(&placement, n, costs) == optimum);
                }
            }
        }
        writeln!(table, "{name:20}{cases:6}{reached:18}{reached_by_quick:18}").unwrap();
    }
    expect![[r#"
                             cases   bound = optimum   quick = optimum
        linear 1                36                36                36
        linear 2                36                36                18
        linear 3                36                36                14
        V 1                     36                36                 9
        V 2                     36                30                14
        V 3                     24                24                12
        bidirectional 2         36                36                18
        bidirectional 3         36                36                14
        interleaved 1 x 3       24                18                 6
        interleaved 2 x 2       24                24                13
    "#]]
    .assert_eq(&table);
}

/// Uneven stages, messages, bytes: drawn by seed.
#[test]
fn no_random_small_case_has_a_schedule_below_the_bound() {
    let placements = small_placements();
    let (seeds, _) = support::seeds(200);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let (name, placement, _) = &placements[random.usize(..placements.len())];
        let n = random.usize(1..=2);
        let longest = if random.bool() { 3 } else { 20 };
        let mut one = || {
            let [f, i, w] = [(); 3].map(|()| random.u64(0..=longest));
            let overlapped_ns = random.u64(f.max(i + w)..=f + i + w + 1);
            StageCosts { activation_bytes: random.u64(1..4), ..stage(f, i, w, overlapped_ns) }
        };
        let stages = (0..placement.num_stages()).map(|_| one()).collect();
        let costs = costs(stages, random.u64(0..=longest));
        let cap = match random.u8(0..3) {
            0 => MemoryCap::Unlimited,
            1 => MemoryCap::Activations((0..placement.num_ranks()).map(|_| random.usize(1..5)).collect()),
            _ => MemoryCap::Bytes(vec![random.u64(2..8)]),
        };
        let bound = lower_bound_within_ns(placement, n, &costs, &cap);
        assert!(bound >= quick_bound_ns(placement, n, &costs), "seed {seed}: below the quick bound");
        if let Some(optimum) = optimal_makespan_ns(placement, n, &costs, &cap) {
            assert!(bound <= optimum, "seed {seed}: {name}, {n}, {costs:?}, {cap:?}: {bound} > {optimum}");
        }
    }
}

/// The oracle is no better than it should be: it never beats work on one rank, and schedules never beat it.
#[test]
fn no_published_schedule_beats_the_exhaustive_search() {
    for (ranks, n) in [(1, 1), (1, 2), (2, 2), (2, 3), (3, 2)] {
        for costs in [costs(vec![stage(2, 2, 1, 4)], 1), costs(vec![stage(1, 2, 1, 4)], 0)] {
            for schedule in family(ranks, n).into_iter().filter(|s| s.work() == Work::Training) {
                if schedule.num_passes() > 12 {
                    continue;
                }
                let cap = MemoryCap::Activations(schedule.peak_live());
                let optimum = optimal_makespan_ns(schedule.placement(), n, &costs, &cap).unwrap();
                let makespan = simulate(&schedule, &costs).unwrap().timeline.makespan_ns();
                assert!(optimum <= makespan, "{}: {optimum} > {makespan}", schedule.title());
            }
        }
    }
    let alone = costs(vec![stage(3, 2, 1, 6)], 0);
    let one_rank = Placement::linear(1).unwrap();
    assert_eq!(optimal_makespan_ns(&one_rank, 3, &alone, &MemoryCap::Unlimited), Some(18));
    let two_live = MemoryCap::Activations(vec![1]);
    let v = Placement::v(1).unwrap();
    assert_eq!(optimal_makespan_ns(&v, 1, &alone, &two_live), None, "both stages hold the only micro-batch");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Each within its own peak, which is the tightest cap that it keeps to.
    #[test]
    fn no_published_schedule_beats_the_bound(
        ranks in 1usize..5,
        microbatches in 1usize..9,
        times in prop::collection::vec((0u64..50, 0u64..50, 0u64..50, 0u64..=100, 1u64..5), 40),
        latency_ns in 0u64..20,
        is_even: bool,
    ) {
        for schedule in family(ranks, microbatches).iter().filter(|s| s.work() == Work::Training) {
            let placement = schedule.placement();
            let stages = if is_even { 1 } else { placement.num_stages() };
            let stages = times.iter().take(stages).map(|&(f, i, w, percent, bytes)| {
                let (least, most) = (f.max(i + w), f + i + w);
                let overlapped_ns = least + (most - least) * percent / 100;
                StageCosts { activation_bytes: bytes, ..stage(f, i, w, overlapped_ns) }
            });
            let costs = costs(stages.collect(), latency_ns);
            let makespan = simulate(schedule, &costs).unwrap().timeline.makespan_ns();
            let caps = [
                MemoryCap::Activations(schedule.peak_live()),
                MemoryCap::Bytes(peak_memory_bytes(schedule, &costs)),
            ];
            for cap in caps {
                let bound = lower_bound_within_ns(placement, microbatches, &costs, &cap);
                prop_assert!(bound <= makespan, "{}: {} > {}", schedule.title(), bound, makespan);
            }
        }
    }
}

#[test]
fn less_memory_never_lowers_the_bound() {
    let placement = Placement::bidirectional(4).unwrap();
    for costs in [costs(vec![stage(10, 10, 10, 24)], 0), costs(vec![stage(10, 13, 4, 17)], 2)] {
        let within = |cap: &MemoryCap| lower_bound_within_ns(&placement, 8, &costs, cap);
        let mut before = within(&MemoryCap::Unlimited);
        assert!(before >= quick_bound_ns(&placement, 8, &costs));
        for cap in (1..=9).rev() {
            let bound = within(&MemoryCap::Activations(vec![cap]));
            assert!(bound >= before, "{cap}: {bound} < {before}");
            before = bound;
        }
    }
}

/// With unlike caps that no rank comes up to, both directions are looked at; with one cap, one stands for both.
#[test]
fn a_mirror_image_has_the_bound_of_the_whole() {
    for (ranks, n, costs) in [
        (4, 8, costs(vec![stage(10, 10, 10, 24)], 0)),
        (3, 6, costs(vec![stage(10, 13, 4, 17)], 3)),
        (5, 4, costs((1..6).map(|s| stage(s, 2 * s, s, 3 * s)).collect(), 1)),
    ] {
        let placement = Placement::bidirectional(ranks).unwrap();
        let one_cap = MemoryCap::Activations(vec![100]);
        let unlike = MemoryCap::Activations((0..ranks).map(|rank| 100 + rank).collect());
        let bounds = [one_cap, unlike].map(|cap| lower_bound_within_ns(&placement, n, &costs, &cap));
        assert_eq!(bounds[0], bounds[1], "{ranks} ranks");
    }
}

#[test]
fn a_cap_that_no_schedule_keeps_has_an_answer_all_the_same() {
    let costs = costs(vec![StageCosts { activation_bytes: 10, parameter_bytes: 5, ..stage(1, 1, 1, 2) }], 0);
    let v = Placement::v(2).unwrap();
    for cap in [MemoryCap::Activations(vec![1]), MemoryCap::Bytes(vec![15]), MemoryCap::Bytes(vec![3])] {
        assert_eq!(optimal_makespan_ns(&v, 2, &costs, &cap), None);
        assert!(lower_bound_within_ns(&v, 2, &costs, &cap) >= quick_bound_ns(&v, 2, &costs), "{cap:?}");
    }
}

/// Up to sizes at which only the quick bound is left.
#[test]
fn any_size_has_a_bound() {
    let costs = costs(vec![stage(1000, 1000, 1000, 2000)], 7);
    for (placement, n) in [
        (Placement::linear(4096), 1000),
        (Placement::bidirectional(512), 1024),
        (Placement::interleaved(8, 1024), 8),
        (Placement::v(64), 200),
        (Placement::linear(1), 1 << 16),
    ] {
        let placement = placement.unwrap();
        let bound = lower_bound_within_ns(&placement, n, &costs, &MemoryCap::Activations(vec![64]));
        assert!(bound >= quick_bound_ns(&placement, n, &costs));
    }
}

/// The best makespans known, as docs/bounds.md has them; times in F.
#[test]
fn gaps_to_the_best_makespans_known() {
    const UNIT: f64 = 10_000.0;
    let ns = |units: f64| (units * UNIT).round() as u64;
    let of = |f: f64, i: f64, w: f64, pair: f64| stage(ns(f), ns(i), ns(w), ns(pair));
    let even = |pair| vec![of(1.0, 1.0, 1.0, pair)];
    let uneven = |slow: &[usize], by: f64| -> Vec<StageCosts> {
        let share = |s: usize| if slow.contains(&s) { by } else { 1.0 };
        (0..8).map(|s| of(share(s), share(s), share(s), 2.0 * share(s))).collect()
    };
    let both = |ranks| Placement::bidirectional(ranks).unwrap();
    let v = || Placement::v(4).unwrap();
    let cases = [
        ("F&B 3", both(8), 20, even(3.0), 0.0, 9, 63.0),
        ("I 1.63, W .83, F&B 3.46", both(8), 20, vec![of(1.0, 1.63, 0.83, 3.46)], 0.0, 9, 73.09),
        ("F&B 2.6", both(8), 20, even(2.6), 0.0, 9, 58.8),
        ("F&B 2.5", both(8), 20, even(2.5), 0.0, 9, 58.0),
        ("F&B 2", both(8), 20, even(2.0), 0.0, 9, 51.0),
        ("I 1.27, W .38, F&B 1.66", both(8), 20, vec![of(1.0, 1.27, 0.38, 1.66)], 0.0, 9, 46.86),
        ("V, p2p .3, F&B 3", v(), 10, even(3.0), 0.3, 9, 64.7),
        ("V, p2p .3, F&B 2.5", v(), 10, even(2.5), 0.3, 9, 61.6),
        ("V, last stage +50 %", v(), 10, uneven(&[7], 1.5), 0.0, 9, 60.333),
        ("V, middle stages +40 %", v(), 10, uneven(&[3, 4], 1.4), 0.0, 9, 68.8),
        ("16 ranks, F&B 3", both(16), 32, even(3.0), 0.0, 17, 103.0),
        ("n = 4", both(8), 4, even(3.0), 0.0, 9, 19.0),
        ("n = 8", both(8), 8, even(3.0), 0.0, 9, 27.0),
        ("n = 12", both(8), 12, even(3.0), 0.0, 9, 39.0),
        ("cap 4", both(8), 20, even(3.0), 0.0, 4, 71.0),
        ("cap 5", both(8), 20, even(3.0), 0.0, 5, 68.0),
        ("cap 6", both(8), 20, even(3.0), 0.0, 6, 65.0),
        ("cap 7", both(8), 20, even(3.0), 0.0, 7, 64.0),
        ("cap 8", both(8), 20, even(3.0), 0.0, 8, 63.0),
    ];
    let mut table = format!("{:26}{:>7}{:>9}{:>9}{:>9}\n", "", "best", "quick", "bound", "gap");
    let mut gaps = Vec::new();
    for (name, placement, n, stages, latency, cap, best) in cases {
        let costs = costs(stages, ns(latency));
        let quick = quick_bound_ns(&placement, n, &costs) as f64 / UNIT;
        let cap = MemoryCap::Activations(vec![cap]);
        let bound = lower_bound_within_ns(&placement, n, &costs, &cap) as f64 / UNIT;
        assert!(bound <= best, "{name}: {bound} > {best}");
        let gap = 100.0 * (best / bound - 1.0);
        writeln!(table, "{name:26}{best:7.2}{quick:9.2}{bound:9.2}{gap:7.2} %").unwrap();
        gaps.push(gap);
    }
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    writeln!(table, "{:51}{mean:7.2} %", "mean").unwrap();
    assert!(mean < 3.0);
    expect![[r#"
                                     best    quick    bound      gap
        F&B 3                       63.00    63.00    63.00   0.00 %
        I 1.63, W .83, F&B 3.46     73.09    72.20    73.09   0.00 %
        F&B 2.6                     58.80    57.67    58.20   1.03 %
        F&B 2.5                     58.00    56.33    57.00   1.75 %
        F&B 2                       51.00    49.67    51.00   0.00 %
        I 1.27, W .38, F&B 1.66     46.86    44.55    46.47   0.84 %
        V, p2p .3, F&B 3            64.70    63.90    64.70   0.00 %
        V, p2p .3, F&B 2.5          61.60    57.98    59.20   4.05 %
        V, last stage +50 %         60.33    56.00    58.99   2.27 %
        V, middle stages +40 %      68.80    66.20    67.80   1.47 %
        16 ranks, F&B 3            103.00   103.00   103.00   0.00 %
        n = 4                       19.00    17.00    19.00   0.00 %
        n = 8                       27.00    27.00    27.00   0.00 %
        n = 12                      39.00    39.00    39.00   0.00 %
        cap 4                       71.00    63.00    71.00   0.00 %
        cap 5                       68.00    63.00    68.00   0.00 %
        cap 6                       65.00    63.00    65.00   0.00 %
        cap 7                       64.00    63.00    64.00   0.00 %
        cap 8                       63.00    63.00    63.00   0.00 %
        mean                                                  0.60 %
    "#]]
    .assert_eq(&table);
}
