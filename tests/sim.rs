//! Simulated times against the published ones, and the lower bound against everything.

mod support;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::ids::Rank;
use dualpipe::op::Op;
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::sim::{simulate, Simulation};
use proptest::prelude::*;
use support::family;
use Work::{ForwardOnly, Training};

/// Costs in hundredths of F.
fn costs(forward: u64, input: u64, weight: u64, overlapped: u64) -> Costs {
    costs_and_latency(forward, input, weight, overlapped, 0)
}

fn costs_and_latency(forward: u64, input: u64, weight: u64, overlapped: u64, latency_ns: u64) -> Costs {
    let stage = StageCosts {
        forward_ns: forward,
        input_ns: input,
        weight_ns: weight,
        overlapped_ns: overlapped,
        ..StageCosts::default()
    };
    Costs::new(vec![stage], Link { latency_ns, bytes_per_second: None }).unwrap()
}

fn run(schedule: dualpipe::error::Result<Schedule>, costs: &Costs) -> Simulation {
    simulate(&schedule.unwrap(), costs).unwrap()
}

/// F, I, W, F&B and the times that they lead to, all in hundredths of F = 1.
#[test]
fn dualpipe_and_1f1b_take_as_long_as_recorded() {
    for (f, i, w, fb, ranks, microbatches, makespan, idle, one_f_one_b_makespan) in [
        (100, 100, 100, 300, 2, 4, 1200, 0, 1500),
        (100, 100, 100, 300, 4, 12, 3800, 200, 4500),
        (100, 100, 100, 300, 8, 20, 6600, 600, 8100),
        (100, 100, 100, 300, 16, 48, 15800, 1400, 18900),
        (100, 100, 100, 250, 4, 12, 3400, 150, 4500),
        (100, 100, 100, 250, 8, 20, 5900, 450, 8100),
        (100, 100, 100, 250, 16, 48, 13900, 1050, 18900),
        (100, 100, 100, 200, 8, 20, 5200, 300, 8100),
        (100, 127, 38, 166, 8, 20, 4781, 570, 7155),
        (100, 127, 38, 166, 16, 48, 11070, 1419, 16695),
        (100, 163, 83, 359, 8, 20, 8031, 994, 9342),
    ] {
        let costs = costs(f, i, w, fb);
        let ours = run(dualpipe(ranks, microbatches, Training), &costs).timeline;
        assert_eq!(ours.makespan_ns(), makespan, "{ranks} ranks, {costs:?}");
        let most_idle = (0..ranks).map(|rank| ours.idle_ns(Rank(rank as u32))).max().unwrap();
        assert_eq!(most_idle, idle, "{ranks} ranks, {costs:?}");
        let folded = run(dualpipe_v(ranks / 2, microbatches / 2, Training), &costs);
        assert_eq!(folded.timeline.makespan_ns(), makespan, "DualPipeV on half the ranks");
        let plain = run(one_f_one_b(ranks, microbatches, Training), &costs).timeline;
        assert_eq!(plain.makespan_ns(), one_f_one_b_makespan);
    }
}

/// The README's (P/2 - 1)(F&B + B - 3W) is exact where F = I = W.
#[test]
fn the_bubble_of_the_middle_ranks_is_the_published_formula() {
    for ranks in [2, 4, 8, 16] {
        for overlapped in [200, 225, 300] {
            let t = run(dualpipe(ranks, 3 * ranks, Training), &costs(100, 100, 100, overlapped)).timeline;
            let formula = (ranks as u64 / 2 - 1) * (overlapped + 200 - 300);
            assert_eq!(t.idle_ns(Rank(ranks as u32 / 2)), formula, "{ranks} ranks, F&B {overlapped}");
        }
    }
}

/// Bounds worked out by hand: facts of P = 8, n = 20, rounded down to whole units.
#[test]
fn the_lower_bound_is_the_one_worked_out_by_hand() {
    for (costs, bound) in [
        (costs(100, 100, 100, 300), 6300),
        (costs(100, 100, 100, 280), 6033),
        (costs(100, 100, 100, 260), 5766),
        (costs(100, 100, 100, 250), 5632),
        (costs(100, 100, 100, 200), 4966),
        (costs(100, 127, 38, 166), 4455),
        (costs(100, 163, 83, 346), 7220),
    ] {
        let simulated = run(dualpipe(8, 20, Training), &costs);
        let difference = simulated.lower_bound_ns.abs_diff(bound);
        assert!(difference <= 1, "{costs:?}: {} instead of {bound}", simulated.lower_bound_ns);
    }
    let p2p = run(dualpipe_v(4, 10, Training), &costs_and_latency(100, 100, 100, 300, 10));
    assert_eq!(p2p.lower_bound_ns, 6330);
}

/// Forward only, the bound n + P - 2 is reached.
#[test]
fn forward_only_dualpipe_is_optimal() {
    for (ranks, microbatches) in [(2, 2), (4, 8), (8, 20), (16, 2), (16, 48)] {
        let ours = run(dualpipe(ranks, microbatches, ForwardOnly), &costs(100, 0, 0, 100));
        assert_eq!(ours.lower_bound_ns, 100 * (microbatches + ranks - 2) as u64);
        assert_eq!(ours.timeline.makespan_ns(), ours.lower_bound_ns, "{ranks} ranks, {microbatches}");
    }
}

/// DeepSeek leaves the middle ranks' first pair apart. Overlapping it wins when an input backward costs what a
/// forward does, and loses when it costs much more.
#[test]
fn the_first_pair_of_the_middle_ranks() {
    for (f, i, w, fb, apart, overlapped) in [
        (100, 100, 100, 300, 6600, 6600),
        (100, 100, 100, 250, 5900, 5850),
        (100, 100, 100, 200, 5200, 5100),
        (100, 163, 83, 359, 8031, 8144),
    ] {
        let schedule = dualpipe(8, 20, Training).unwrap();
        let mut orders = schedule.orders().to_vec();
        for order in &mut orders[3..=4] {
            let b = order.iter().position(|op| matches!(op, Op::B(_))).unwrap();
            if let (Op::F(f), Op::B(c)) = (order[b - 1], order[b]) {
                order.splice(b - 1..=b, [Op::FB(f, c)]);
            }
        }
        let moved = Schedule::new("moved", schedule.placement().clone(), 20, Training, orders).unwrap();
        let costs = costs(f, i, w, fb);
        assert_eq!(simulate(&schedule, &costs).unwrap().timeline.makespan_ns(), apart);
        assert_eq!(simulate(&moved, &costs).unwrap().timeline.makespan_ns(), overlapped);
    }
}

#[test]
fn latency_and_bandwidth_delay_every_message() {
    for (latency_ns, makespan) in [(0, 5900), (5, 6030), (20, 6420)] {
        let t = run(dualpipe(8, 20, Training), &costs_and_latency(100, 100, 100, 250, latency_ns)).timeline;
        assert_eq!(t.makespan_ns(), makespan, "latency {latency_ns}");
        assert!(t.messages.iter().all(|m| m.end_ns - m.start_ns == latency_ns));
        assert_eq!(t.messages.len(), 20 * 7 * 2);
    }
    let stage =
        StageCosts { forward_ns: 100, overlapped_ns: 100, output_bytes: 1000, ..StageCosts::default() };
    let link = Link { latency_ns: 7, bytes_per_second: Some(3_000_000_000) };
    let costs = Costs::new(vec![stage], link).unwrap();
    let t = run(one_f_one_b(2, 1, ForwardOnly), &costs).timeline;
    assert_eq!(t.makespan_ns(), 100 + 7 + 334 + 100, "1000 bytes at 3 GB/s take 333.3 ns, rounded up");
}

#[test]
fn stages_may_differ() {
    let stage = |forward_ns| StageCosts {
        forward_ns,
        input_ns: forward_ns,
        weight_ns: forward_ns,
        overlapped_ns: 2 * forward_ns,
        activation_bytes: forward_ns,
        parameter_bytes: 1000 * forward_ns,
        ..StageCosts::default()
    };
    let costs = Costs::new(vec![stage(100), stage(150)], Link::default()).unwrap();
    let ours = run(one_f_one_b(2, 2, Training), &costs);
    assert_eq!(ours.timeline.makespan_ns(), 100 + 2 * 450 + 200);
    assert_eq!(ours.peak_memory_bytes, [100_000 + 2 * 100, 150_000 + 150]);
    // A pair: 2/3 of its own F and 2/3 of the other's B, but not less than either.
    assert_eq!(costs.pair_ns(dualpipe::ids::Stage(0), dualpipe::ids::Stage(1)), 300, "300 is the B alone");
    let refused = simulate(&dualpipe(4, 8, Training).unwrap(), &costs).unwrap_err().to_string();
    assert_eq!(refused, "costs: the number of stages is 2, must be 1 or 4, the schedule's stages");
}

#[test]
fn costs_out_of_range_are_refused() {
    let good =
        StageCosts { forward_ns: 1, input_ns: 1, weight_ns: 1, overlapped_ns: 2, ..Default::default() };
    let free = Link::default();
    for (stage, link, want) in [
        (good, free, None),
        (StageCosts { overlapped_ns: 1, ..good }, free,
            Some("costs: stages[0].overlapped_ns is 1, must be at least 2, the longer of F and B (3 without overlap)")),
        (StageCosts { forward_ns: 1 << 40, ..good }, free,
            Some("costs: stages[0].forward_ns is 1099511627776, must be 0 to 1000000000000")),
        (StageCosts { activation_bytes: u64::MAX, ..good }, free,
            Some("costs: stages[0].activation_bytes is 18446744073709551615, must be 0 to 1125899906842624")),
        (good, Link { latency_ns: u64::MAX, ..free },
            Some("costs: latency_ns is 18446744073709551615, must be 0 to 1000000000000")),
        (good, Link { bytes_per_second: Some(0), ..free }, Some("costs: bytes_per_second is 0, must be at least 1")),
        (StageCosts { output_bytes: 1 << 50, ..good }, Link { bytes_per_second: Some(1), ..free },
            Some("costs: stages[0].output_bytes is 1125899906842624, takes longer than 1000000000000 ns at the given bytes_per_second")),
    ] {
        let got = Costs::new(vec![stage], link).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(got.err().as_deref(), want);
    }
    assert!(Costs::new(Vec::new(), free).is_err());
}

fn any_stage() -> impl Strategy<Value = StageCosts> {
    (0u64..50, 0u64..50, 0u64..50, 0u64..=100).prop_map(|(forward_ns, input_ns, weight_ns, overlap)| {
        let (longer, whole) = (forward_ns.max(input_ns + weight_ns), forward_ns + input_ns + weight_ns);
        let overlapped_ns = longer + (whole - longer) * overlap / 100;
        StageCosts {
            forward_ns,
            input_ns,
            weight_ns,
            overlapped_ns,
            activation_bytes: 1,
            ..Default::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Whatever the stages cost.
    #[test]
    fn no_schedule_beats_the_lower_bound(
        num_ranks in 1usize..=8,
        extra in 0usize..=20,
        stages in prop::collection::vec(any_stage(), 24),
        latency_ns in 0u64..20,
    ) {
        for schedule in family(num_ranks, (2 * num_ranks).max(2) - 2 + extra) {
            let stages = stages[..schedule.placement().num_stages()].to_vec();
            let costs = Costs::new(stages, Link { latency_ns, bytes_per_second: None }).unwrap();
            let ours = simulate(&schedule, &costs).unwrap();
            prop_assert!(ours.lower_bound_ns <= ours.timeline.makespan_ns(), "{}", schedule.name());
            let live = schedule.check().unwrap().peak_live;
            let live: Vec<u64> = live.iter().map(|&n| n as u64).collect();
            prop_assert_eq!(ours.peak_memory_bytes, live, "an activation is one byte here");
        }
    }

    /// The general form of the published formula, for F <= I and W <= I (docs/schedules.md).
    #[test]
    fn the_middle_ranks_idle_as_the_general_formula_says(
        half in 2u64..=8,
        f in 1u64..100,
        more_i in 0u64..100,
        w_part in 0u64..=100,
        overlap in 0u64..=100,
    ) {
        let (i, m) = (f + more_i, half - 1);
        let w = i * w_part / 100;
        let overlapped = f.max(i + w) + (f + i + w - f.max(i + w)) * overlap / 100;
        let ranks = 2 * half as usize;
        let t = run(dualpipe(ranks, 3 * ranks, Training), &costs(f, i, w, overlapped)).timeline;
        let formula = (m * overlapped + (m * f).max((m * i).saturating_sub(f))) as i64 - (2 * m * w) as i64;
        prop_assert_eq!(t.idle_ns(Rank(half as u32)) as i64, formula, "P {}, {} {} {} {}", ranks, f, i, w, overlapped);
    }
}
