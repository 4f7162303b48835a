//! The choice across placements, against published numbers; and costs regrouped for other numbers of stages.

use std::ops::ControlFlow;

use dualpipe::cost::{Costs, Link, PairCosts, StageCosts, COST_NS_MAX};
use dualpipe::error::ErrorKind;
use dualpipe::ids::Stage;
use dualpipe::search::{compare, Candidate, Comparison, Effort, Excess, Setting};
use dualpipe::sim::{simulate, MemoryCap};
use expect_test::expect;
use proptest::prelude::*;

/// Nothing is searched: a plan is what a search would start from.
const NONE: Effort = Effort { iterations: 0, time: None, seed: 1 };

fn stage(forward_ns: u64, input_ns: u64, weight_ns: u64, overlapped_ns: u64) -> StageCosts {
    let bytes = StageCosts {
        output_bytes: 1 << 20,
        activation_bytes: 1 << 30,
        parameter_bytes: 24 << 30,
        ..StageCosts::default()
    };
    StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..bytes }
}

fn setting(num_ranks: usize, num_microbatches: usize, stage: StageCosts, cap: MemoryCap) -> Setting {
    let costs = Costs::new(vec![stage], Link::default()).unwrap();
    Setting { num_ranks, num_microbatches, costs, cap }
}

fn compared(setting: &Setting) -> Comparison {
    compare(setting, &NONE, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

fn find<'a>(comparison: &'a Comparison, name: &str, placement: &str) -> &'a Candidate {
    let is_it = |candidate: &&Candidate| candidate.name == name && candidate.placement == placement;
    comparison.candidates.iter().find(is_it).unwrap()
}

/// 8 ranks, 32 micro-batches, in hundredths of F: the same devices, the same overlap.
#[test]
fn makespans_and_memory_on_equal_devices_are_as_recorded() {
    for (stage, makespans) in [
        (stage(10_000, 12_700, 3_800, 16_600), [677_300, 686_300, 668_500, 639_400, 980_300]),
        (stage(10_000, 10_000, 10_000, 25_000), [890_000, 895_000, 927_500, 883_750, 1_030_000]),
    ] {
        let comparison = compared(&setting(8, 32, stage, MemoryCap::Unlimited));
        let candidates = [
            ("dualpipe", "bidirectional", 9.0, 2),
            ("dualpipe_v", "V", 8.5, 1),
            ("interleaved_overlapped", "interleaved x2", 12.0, 1),
            ("interleaved_overlapped", "interleaved x4", 10.0, 1),
            ("zb_h1", "linear", 8.0, 1),
        ];
        for ((name, placement, activations, copies), makespan_ns) in candidates.into_iter().zip(makespans) {
            let measured = find(&comparison, name, placement).outcome.as_ref().unwrap();
            // Recorded to two digits after the point.
            assert!(measured.makespan_ns.abs_diff(makespan_ns) <= 100, "{name}: {}", measured.makespan_ns);
            assert_eq!(
                (measured.peak_activations, measured.parameter_copies),
                (activations, copies),
                "{name}"
            );
        }
    }
}

#[test]
fn the_table_of_a_small_comparison() {
    let mut comparison =
        compared(&setting(4, 8, stage(10_000, 10_000, 10_000, 25_000), MemoryCap::Activations(vec![5])));
    comparison.candidates.retain(|candidate| !candidate.is_planned());
    for candidate in &mut comparison.candidates {
        if let Ok(measured) = &mut candidate.outcome {
            measured.lower_bound_ns = 200_000;
        }
    }
    expect![[r#"
        4 ranks, 8 micro-batches, at most 5 on each rank (activations)
        schedule                 placement       makespan    gap  bubble  parameters  activations    messages  excess
                                                       us                      / GiB        / GiB       / MiB
        interleaved_overlapped   interleaved x4   238.750  19.4%    7.9%  1x / 24.00  5.00 / 5.00  64 / 64.00
        dualpipe                 bidirectional    240.000  20.0%    6.2%  2x / 48.00  5.00 / 5.00  16 / 16.00
        dualpipe_v               V                245.000  22.5%    8.4%  1x / 24.00  4.50 / 4.50  32 / 32.00
        interleaved_zero_bubble  interleaved x4   247.500  23.8%    3.0%  1x / 24.00  4.00 / 4.00  64 / 64.00
        interleaved_zero_bubble  interleaved x3   250.014  25.0%    4.0%  1x / 24.00  4.00 / 4.00  48 / 48.00
        interleaved_zero_bubble  interleaved x2   255.000  27.5%    5.9%  1x / 24.00  4.00 / 4.00  32 / 32.00
        zb_v                     V                255.000  27.5%    5.9%  1x / 24.00  4.00 / 4.00  32 / 32.00
        interleaved_1f1b         interleaved x4   262.500  31.2%    8.6%  1x / 24.00  4.75 / 4.75  64 / 64.00
        v_half                   V                265.000  32.5%    9.4%  1x / 24.00  3.00 / 3.00  32 / 32.00
        zb_h1                    linear           270.000  35.0%   11.1%  1x / 24.00  4.00 / 4.00  16 / 16.00
        interleaved_1f1b         interleaved x3   270.003  35.0%   11.1%  1x / 24.00  5.00 / 5.00  48 / 48.00
        v_min                    V                295.000  47.5%   18.6%  1x / 24.00  2.00 / 2.00  32 / 32.00
        chimera                  bidirectional    300.000  50.0%   20.0%  2x / 48.00  4.00 / 4.00  16 / 16.00
        1f1b                     linear           330.000  65.0%   27.3%  1x / 24.00  4.00 / 4.00  16 / 16.00
        interleaved_overlapped   interleaved x3   245.012  22.5%   10.2%  1x / 24.00  5.33 / 5.33  48 / 48.00    0.33
        interleaved_overlapped   interleaved x2   257.500  28.8%   14.6%  1x / 24.00  6.00 / 6.00  32 / 32.00    1.00
        looped_bfs               interleaved x4   262.500  31.2%    8.6%  1x / 24.00  8.00 / 8.00  64 / 64.00    3.00
        zb_h2                    linear           270.000  35.0%   11.1%  1x / 24.00  7.00 / 7.00  16 / 16.00    2.00
        looped_bfs               interleaved x3   270.014  35.0%   11.1%  1x / 24.00  8.00 / 8.00  48 / 48.00    3.00
        looped_bfs               interleaved x2   285.000  42.5%   15.8%  1x / 24.00  8.00 / 8.00  32 / 32.00    3.00
        interleaved_1f1b         interleaved x2   285.000  42.5%   15.8%  1x / 24.00  5.50 / 5.50  32 / 32.00    0.50
        gpipe                    linear           330.000  65.0%   27.3%  1x / 24.00  8.00 / 8.00  16 / 16.00    3.00
    "#]].assert_eq(&comparison.to_text());
}

#[test]
fn what_does_not_admit_the_sizes_is_listed_with_its_own_reason() {
    let comparison = compared(&setting(3, 7, stage(100, 100, 100, 300), MemoryCap::Unlimited));
    let reason =
        |name, placement| find(&comparison, name, placement).outcome.as_ref().unwrap_err().to_string();
    assert_eq!(reason("dualpipe", "bidirectional"), "dualpipe: num_ranks is 3, must be even and at least 2");
    assert!(reason("interleaved_1f1b", "interleaved x2").contains("num_microbatches is 7"));
    let text = comparison.to_text();
    assert!(text.contains("not possible:\n"), "{text}");
    assert!(text.contains("  dualpipe on bidirectional: dualpipe: num_ranks is 3, must be even"), "{text}");
    // 6 slices make 6 or 12 stages, not 9.
    let six = Costs::new(vec![stage(100, 100, 100, 300); 6], Link::default()).unwrap();
    let comparison =
        compared(&Setting { costs: six, ..setting(3, 6, stage(1, 1, 1, 3), MemoryCap::Unlimited) });
    let three = find(&comparison, "looped_bfs", "interleaved x3").outcome.as_ref().unwrap_err().to_string();
    assert!(three.contains("cut the model into is 9, must divide 6"), "{three}");
    assert!(find(&comparison, "looped_bfs", "interleaved x4").outcome.is_ok());
}

#[test]
fn candidates_that_fit_come_first_and_excess_is_in_the_units_of_the_cap() {
    let stage = stage(10_000, 10_000, 10_000, 25_000);
    let comparison = compared(&setting(8, 32, stage, MemoryCap::Activations(vec![9])));
    let excess = |name, placement| find(&comparison, name, placement).outcome.as_ref().unwrap().excess;
    assert_eq!(excess("dualpipe", "bidirectional"), None);
    assert_eq!(excess("gpipe", "linear"), Some(Excess::Activations(23.0)));
    assert_eq!(excess("interleaved_overlapped", "interleaved x2"), Some(Excess::Activations(3.0)));
    let (best, measured) = comparison.best().unwrap();
    assert!(measured.excess.is_none() && measured.makespan_ns <= 890_000, "{}", best.name);

    // Two copies of the parameters, 48 GiB, leave 2 GiB: DualPipe's 9 activations are 7 too many.
    let comparison = compared(&setting(8, 32, stage, MemoryCap::Bytes(vec![50 << 30])));
    let excess = |name, placement| find(&comparison, name, placement).outcome.as_ref().unwrap().excess;
    assert_eq!(excess("dualpipe", "bidirectional"), Some(Excess::Bytes(7 << 30)));
    assert_eq!(excess("dualpipe_v", "V"), None);
}

#[test]
fn a_chain_of_stages_sends_one_message_each_way_for_each_micro_batch() {
    let comparison = compared(&setting(4, 8, stage(100, 100, 100, 300), MemoryCap::Unlimited));
    let sent = |name, placement| {
        let measured = find(&comparison, name, placement).outcome.as_ref().unwrap();
        (measured.sent_messages, measured.sent_bytes)
    };
    // An inner rank sends an activation on and a gradient back.
    assert_eq!(sent("1f1b", "linear"), (16, 16 << 20));
    assert_eq!(sent("interleaved_1f1b", "interleaved x2"), (32, 32 << 20));
    // Down and up the V, each with both; half of the micro-batches in each direction.
    assert_eq!(sent("dualpipe_v", "V"), (32, 32 << 20));
    assert_eq!(sent("dualpipe", "bidirectional"), (16, 16 << 20));
}

#[test]
fn stopped_the_rest_is_listed_as_not_made() {
    let setting = setting(4, 8, stage(100, 100, 100, 300), MemoryCap::Unlimited);
    let effort = Effort { iterations: 1000, ..NONE };
    let mut calls = 0;
    let comparison = compare(&setting, &effort, &mut |_, all| {
        assert_eq!(all, 6000);
        calls += 1;
        ControlFlow::Break(())
    });
    let comparison = comparison.unwrap();
    assert_eq!(calls, 1);
    assert!(find(&comparison, "planned", "linear").outcome.is_ok());
    let last = find(&comparison, "planned", "bidirectional").outcome.as_ref().unwrap_err();
    assert_eq!(last.kind(), ErrorKind::Cancelled);
    assert!(find(&comparison, "dualpipe", "bidirectional").outcome.is_ok());
}

#[test]
fn bad_settings_are_refused() {
    let good = setting(4, 8, stage(100, 100, 100, 300), MemoryCap::Unlimited);
    let error = |setting: Setting| {
        compare(&setting, &NONE, &mut |_, _| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let of_stages = |n| Costs::new(vec![stage(1, 1, 1, 3); n], Link::default()).unwrap();
    for (setting, want) in [
        (Setting { num_ranks: 0, ..good.clone() }, "compare: num_ranks is 0, must be 1 to 4096"),
        (Setting { num_microbatches: 0, ..good.clone() }, "compare: num_microbatches is 0, must be 1 to 1048576"),
        (
            Setting { num_microbatches: 1 << 20, ..good.clone() },
            "compare: num_ranks times num_microbatches is 4194304, must be 1 to 262144",
        ),
        (
            Setting { costs: of_stages(6), ..good.clone() },
            "compare: the number of stages with costs is 6, must be 1 or a multiple of 4, the number of ranks",
        ),
        (
            Setting { cap: MemoryCap::Activations(vec![4; 3]), ..good.clone() },
            "compare: the number of entries is 3, must be 1 or 4, one for each rank",
        ),
    ] {
        assert_eq!(error(setting), want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_candidate_is_as_it_says(
        ranks in 1usize..5, n in 1usize..10, slices in 0usize..4, f in 1u64..50, i in 1u64..50, w in 1u64..50,
        overlap in 0u64..50, cap in 1usize..8, latency_ns in 0u64..20,
    ) {
        let one = stage(f, i, w, f.max(i + w) + overlap);
        let link = Link { latency_ns, bytes_per_second: None };
        let costs = Costs::new(vec![one; (slices * ranks).max(1)], link).unwrap();
        let setting = Setting { num_ranks: ranks, num_microbatches: n, costs, cap: MemoryCap::Activations(vec![cap]) };
        let comparison = compared(&setting);
        let mut last = (false, 0);
        for candidate in &comparison.candidates {
            let Ok(measured) = &candidate.outcome else { continue };
            let key = (measured.excess.is_some(), measured.makespan_ns);
            prop_assert!(last <= key);
            last = key;
            let report = measured.schedule.check().unwrap();
            let stages = measured.schedule.placement().num_stages();
            let per_rank = stages.div_ceil(ranks);
            let peak = report.peak_live.into_iter().max().unwrap();
            prop_assert_eq!(measured.peak_activations, peak as f64 / per_rank as f64);
            prop_assert_eq!(measured.excess.is_none(), peak <= cap * per_rank);
            let given = if setting.costs.num_stages() == 1 { ranks } else { setting.costs.num_stages() };
            let costs = setting.costs.regrouped(given, stages).unwrap();
            prop_assert_eq!(measured.makespan_ns, simulate(&measured.schedule, &costs).unwrap().timeline.makespan_ns());
            prop_assert!(measured.lower_bound_ns <= measured.makespan_ns);
            let planned = find(&comparison, "planned", &candidate.placement).outcome.as_ref();
            if let (Ok(planned), None) = (planned, measured.excess) {
                prop_assert!(planned.makespan_ns <= measured.makespan_ns);
            }
        }
    }

    #[test]
    fn regrouping_keeps_every_sum(
        times in prop::collection::vec((0u64..1000, 0u64..1000, 0u64..1000, 0u64..1000, 0u64..1000), 1..7),
        parts in 1usize..6,
    ) {
        let stages: Vec<StageCosts> = times.iter().map(|&(f, i, w, extra, bytes)| StageCosts {
            output_bytes: 7, activation_bytes: bytes, parameter_bytes: 3 * bytes,
            ..stage(f, i, w, f.max(i + w) + extra)
        }).collect();
        let n = stages.len();
        let costs = Costs::new(stages, Link::default()).unwrap();
        let finer = costs.regrouped(n, n * parts).unwrap();
        let totals: [fn(&StageCosts) -> u64; 6] = [
            |s| s.forward_ns,
            |s| s.input_ns,
            |s| s.weight_ns,
            |s| s.overlapped_ns,
            |s| s.activation_bytes,
            |s| s.parameter_bytes,
        ];
        for total in totals {
            for whole in 0..n {
                let all = (whole * parts..(whole + 1) * parts).map(|part| total(finer.stage(Stage(part as u16))));
                prop_assert_eq!(all.clone().sum::<u64>(), total(costs.stage(Stage(whole as u16))));
                prop_assert!(all.clone().max().unwrap() - all.min().unwrap() <= 2);
            }
        }
        // And put together again, it is what it was.
        prop_assert_eq!(finer.regrouped(n * parts, n).unwrap(), costs.regrouped(n, n).unwrap());
        let one = finer.regrouped(n * parts, 1).unwrap();
        prop_assert_eq!(one.stage(Stage(0)).forward_ns, times.iter().map(|t| t.0).sum::<u64>());
    }
}

#[test]
fn regrouping_refuses_what_it_cannot_know() {
    let costs = Costs::new(vec![stage(100, 100, 100, 300); 4], Link::default()).unwrap();
    let error = |costs: &Costs, from, to| costs.regrouped(from, to).unwrap_err().to_string();
    assert_eq!(
        error(&costs, 4, 6),
        "costs: the number of stages to cut the model into is 6, must divide 4, the stages that costs are given of, or \
         be a multiple"
    );
    assert_eq!(
        error(&costs, 8, 4),
        "costs: the number of stages is 4, must be 1 or 8, the schedule's stages"
    );
    assert_eq!(
        error(&costs, 4, 0),
        "costs: the number of stages to cut the model into is 0, must be 1 to 8192"
    );
    let pair = PairCosts { forward: Stage(0), backward: Stage(1), overlapped_ns: 250 };
    let with_pair = costs.with_pairs(vec![pair]).unwrap();
    assert_eq!(
        error(&with_pair, 4, 2),
        "costs: the pair of stages 0 and 1 is given, which says nothing of 2 stages instead of 4"
    );
    assert_eq!(with_pair.regrouped(4, 4).unwrap(), with_pair);
    let long = Costs::new(vec![stage(COST_NS_MAX, 0, 0, COST_NS_MAX); 2], Link::default()).unwrap();
    assert!(error(&long, 2, 1).contains("stages[0].forward_ns is 2000000000000"));
}
