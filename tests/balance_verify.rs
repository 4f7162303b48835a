//! `verify` finds every way in which a placement can be wrong, and nothing else.

use dualpipe::balance::verify::{
    agree, buffers, hash, verify_wide, Finding, Kind, LoadLimit, Report, Severity, Traffic, Unverified, What,
    Wide, FINDINGS_PER_KIND,
};
use dualpipe::balance::{gpu_loads, imbalance, verify, Cluster, Goal, GroupRule, EMPTY};
use proptest::prelude::*;

/// 3 GPUs of 2 slots, the last of which is on another node.
fn cluster() -> Cluster {
    Cluster::new(&[2, 2, 2], &[0, 0, 1], &[]).unwrap()
}

fn whats(cluster: &Cluster, goal: &Goal, placement: &Unverified<'_>) -> Vec<What> {
    let report = verify(cluster, goal, placement).unwrap();
    report.findings().iter().map(|finding| finding.what).collect()
}

#[test]
fn every_kind_of_slot_is_told_apart() {
    let dead = Cluster::new(&[2, 2, 2], &[], &[true, false, true]).unwrap();
    let goal = Goal::new(1, 3);
    for (slots, want) in [
        ([0, 1, EMPTY, EMPTY, 2, 0], vec![]),
        ([0, 1, EMPTY, EMPTY, 2, EMPTY], vec![What::Empty { slot: 5, gpu: 2 }]),
        ([0, 1, EMPTY, EMPTY, 2, 3], vec![What::NotAnExpert { slot: 5, value: 3, num_experts: 3 }]),
        (
            [0, 1, EMPTY, u32::MAX - 1, 2, 0],
            vec![What::NotAnExpert { slot: 3, value: 0xFFFF_FFFE, num_experts: 3 }],
        ),
        ([0, 1, EMPTY, 2, 2, 0], vec![What::OnDeadGpu { slot: 3, gpu: 1, expert: 2 }]),
        ([0, 1, 2, 2, 1, 0], {
            let dead = |slot| What::OnDeadGpu { slot, gpu: 1, expert: 2 };
            vec![dead(2), dead(3), What::Missing { expert: 2 }]
        }),
        ([0, 1, EMPTY, EMPTY, 2, 2], vec![What::Twice { gpu: 2, expert: 2, times: 2, avoidable: true }]),
    ] {
        assert_eq!(whats(&dead, &goal, &Unverified::new(&slots)), want, "{slots:?}");
    }
}

#[test]
fn a_second_replica_on_a_gpu_is_unavoidable_where_no_other_expert_may_be_there() {
    let large = Cluster::new(&[4, 2], &[0, 1], &[]).unwrap();
    let twice = |gpu, expert, times, avoidable| vec![What::Twice { gpu, expert, times, avoidable }];
    let free = Goal::new(1, 3);
    for (slots, want) in [
        ([0, 1, 2, 2, 0, 1], twice(0, 2, 2, false)),
        ([2, 1, 2, 2, 0, 1], twice(0, 2, 3, true)),
        ([0, 1, 2, 0, 1, 1], [twice(0, 0, 2, false), twice(1, 1, 2, true)].concat()),
    ] {
        assert_eq!(whats(&large, &free, &Unverified::new(&slots)), want, "{slots:?}");
    }
    // Groups {0, 1} and {2, 3}: GPU 0 may hold no others than 0 and 1.
    let whole = Goal { num_groups: 2, groups: GroupRule::Whole, ..Goal::new(1, 4) };
    let slots = [0, 1, 1, 0, 2, 3];
    let want = [twice(0, 0, 2, false), twice(0, 1, 2, false)].concat();
    assert_eq!(whats(&large, &whole, &Unverified::new(&slots)), want);
    let free = Goal { groups: GroupRule::Free, ..whole };
    let want = [twice(0, 0, 2, true), twice(0, 1, 2, true)].concat();
    assert_eq!(whats(&large, &free, &Unverified::new(&slots)), want);
}

#[test]
fn groups_that_are_to_be_whole_are_on_one_node() {
    // The nodes of the GPUs are not in order, so that each is left and come back to.
    let cluster = Cluster::new(&[2, 2, 2], &[1, 0, 1], &[]).unwrap();
    let whole = Goal { num_groups: 2, groups: GroupRule::Whole, ..Goal::new(1, 4) };
    assert_eq!(whats(&cluster, &whole, &Unverified::new(&[0, 1, 2, 3, 1, 0])), []);
    let slots = [0, 1, 2, 3, 2, 0];
    let split = What::SplitGroup { group: 1, nodes: 2 };
    assert_eq!(whats(&cluster, &whole, &Unverified::new(&slots)), [split]);
    for groups in [GroupRule::Free, GroupRule::Priced { price: 1.0 }] {
        assert_eq!(whats(&cluster, &Goal { groups, ..whole }, &Unverified::new(&slots)), []);
    }
}

#[test]
fn survivability_counts_gpus_and_nodes_not_replicas() {
    let goal = Goal { min_gpus: 2, min_nodes: 2, ..Goal::new(1, 2) };
    assert_eq!(whats(&cluster(), &goal, &Unverified::new(&[0, 1, 0, 1, 0, 1])), []);
    let found = whats(&cluster(), &goal, &Unverified::new(&[0, 0, 1, 0, 1, 1]));
    let few = [What::TooFewNodes { expert: 0, nodes: 1, min_nodes: 2 }];
    assert_eq!(found[2..], few, "{found:?}"); // behind the two that are twice on a GPU
    let found = whats(&cluster(), &Goal { min_nodes: 1, ..goal }, &Unverified::new(&[0, 0, 1, EMPTY, 1, 1]));
    assert_eq!(found.last(), Some(&What::TooFewGpus { expert: 0, gpus: 1, min_gpus: 2 }));
}

#[test]
fn shares_sum_to_one_where_there_are_tokens_to_share() {
    let dead = Cluster::new(&[2, 2, 2], &[], &[true, true, false]).unwrap();
    let goal = Goal::new(1, 3);
    let slots = [0, 1, 2, 0, EMPTY, EMPTY];
    let found = |shares: [f64; 6]| {
        whats(&dead, &goal, &Unverified { shares: Some(&shares), ..Unverified::new(&slots) })
    };
    assert_eq!(found([0.25, 1.0, 1.0, 0.75, 0.0, -0.0]), []);
    assert_eq!(found([0.0, 1.0, 1.0 + 1e-7, 1.0, 0.0, 0.0]), []);
    assert_eq!(found([0.5, 1.0, 1.0, 0.25, 0.0, 0.0]), [What::ShareSum { expert: 0, sum: 0.75 }]);
    assert_eq!(found([0.5, 1.0, 1.0, 0.5, 0.0, 0.5]), [What::Share { slot: 5, share: 0.5 }]);
    assert_eq!(found([1.5, 1.0, 1.0, -0.5, 0.0, 0.0]), [What::Share { slot: 3, share: -0.5 }]);
    let found = found([0.5, f64::NAN, f64::INFINITY, 0.5, f64::NAN, 0.0]);
    let slots: Vec<_> = found.iter().map(|what| matches!(what, What::Share { .. })).collect();
    assert_eq!(slots, [true; 3], "{found:?}");
}

#[test]
fn tables_from_elsewhere_are_the_inverse() {
    let goal = Goal::new(1, 4);
    let slots = [0, 1, 2, 3, 0, 1];
    let found = |table: &[i32], counts: [u32; 4]| {
        let given = Unverified {
            expert_to_slots: Some(table),
            replica_counts: Some(&counts),
            ..Unverified::new(&slots)
        };
        whats(&cluster(), &goal, &given)
    };
    let wrong = |expert, entry, slot| What::WrongSlot { expert, entry, slot };
    let unlisted = |slot, expert| What::Unlisted { slot, expert };
    let counts = [2, 2, 1, 1];
    for (table, want) in [
        ([0, 4, 1, 5, 2, -1, 3, -1], vec![]),
        ([4, 0, 5, 1, 2, -1, 3, -1], vec![]),
        ([4, 0, 5, -1, 2, -1, 3, -1], vec![unlisted(1, 1)]),
        ([0, 0, 1, 5, 2, -1, 3, -1], vec![wrong(0, 1, 0), unlisted(4, 0)]),
        ([0, 1, 4, 5, 2, -1, 3, -1], vec![wrong(0, 1, 1), wrong(1, 0, 4), unlisted(1, 1), unlisted(4, 0)]),
        ([0, 4, 1, 5, 2, 6, 3, i32::MIN], vec![wrong(2, 1, 6), wrong(3, 1, i32::MIN.into())]),
        ([0, 4, 1, 5, -1, 2, 3, -1], vec![wrong(2, 1, 2), unlisted(2, 2)]),
    ] {
        assert_eq!(found(&table, counts), want, "{table:?}");
    }
    let count = What::ReplicaCount { expert: 2, count: 7, slots: 1 };
    assert_eq!(found(&[0, 4, 1, 5, 2, -1, 3, -1], [2, 2, 7, 1]), [count]);
    assert_eq!(found(&[], counts).len(), 6);
}

/// Numbers that would be right if they were cut to 32 bits.
#[test]
fn wide_numbers_are_found_as_they_are() {
    let goal = Goal::new(2, 4);
    let good = [0, 1, 2, 3, 0, 1].repeat(2);
    let table = [0, 4, 1, 5, 2, -1, 3, -1].repeat(2);
    let counts = [2, 2, 1, 1].repeat(2);
    let found = |slots: &[i64], table: &[i64], counts: &[i64]| {
        let given = Wide { expert_to_slots: Some(table), replica_counts: Some(counts), ..Wide::new(slots) };
        let report = verify_wide(&cluster(), &goal, &given).unwrap();
        report.findings().iter().map(|finding| (finding.layer, finding.what)).collect::<Vec<_>>()
    };
    assert_eq!(found(&good, &table, &counts), []);
    for wrong in [1 << 32, (1 << 32) + 3, -2, i64::MIN, i64::MAX, u32::MAX.into(), 4] {
        let (mut slots, mut slots_of, mut count) = (good.clone(), table.clone(), counts.clone());
        (slots[6 + 5], slots_of[8 + 2], count[4 + 3]) = (wrong, wrong, wrong);
        let not_an_expert = What::NotAnExpert { slot: 5, value: wrong, num_experts: 4 };
        assert_eq!(found(&slots, &table, &counts)[0], (1, not_an_expert));
        // That 4 is a slot, but expert 0's.
        let wrong_slot = What::WrongSlot { expert: 1, entry: 0, slot: wrong };
        assert_eq!(
            found(&good, &slots_of, &counts)[..],
            [(1, wrong_slot), (1, What::Unlisted { slot: 1, expert: 1 })]
        );
        let wrong_count = What::ReplicaCount { expert: 3, count: wrong, slots: 1 };
        assert_eq!(found(&good, &table, &count)[..], [(1, wrong_count)]);
    }
    let mut empty = good.clone();
    empty[5] = -1;
    let narrow: Vec<u32> = empty.iter().map(|&expert| u32::try_from(expert).unwrap_or(EMPTY)).collect();
    assert_eq!(
        verify_wide(&cluster(), &goal, &Wide::new(&empty)),
        verify(&cluster(), &goal, &Unverified::new(&narrow))
    );
}

#[test]
fn loads_have_a_limit() {
    let (goal, slots) = (Goal::new(2, 3), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let loads = [1.0, 1.0, 1.0, 1.0, 2.0, 6.0];
    let found = |imbalance_max| {
        let limit = Some(LoadLimit { loads: &loads, imbalance_max });
        verify(&cluster(), &goal, &Unverified { limit, ..Unverified::new(&slots) })
    };
    // Layer 1: 1.5, 3.5 and 4 of 3 on the average.
    assert_eq!(found(1.4).unwrap().findings(), []);
    let over = |gpu, load: f64, limit| Finding { layer: 1, what: What::Overloaded { gpu, load, limit } };
    assert_eq!(found(1.25).unwrap().findings(), [over(2, 4.0 / 3.0, 1.25)]);
    assert_eq!(found(1.0).unwrap().findings(), [over(1, 3.5 / 3.0, 1.0), over(2, 4.0 / 3.0, 1.0)]);
    assert!(found(1.0).unwrap().is_ok());
    let error = found(f64::NAN).unwrap_err().to_string();
    assert_eq!(error, "verify: imbalance_max is NaN, must be at least 1");
}

#[test]
fn every_finding_is_a_sentence() {
    let num_layers = 100;
    let cluster = Cluster::new(&[2, 2, 2], &[0, 0, 1], &[true, true, false]).unwrap();
    let goal = Goal {
        num_groups: 2,
        groups: GroupRule::Whole,
        min_gpus: 2,
        min_nodes: 2,
        ..Goal::new(num_layers, 4)
    };
    let layers = |layer: &[u32]| layer.repeat(num_layers);
    let slots = layers(&[0, 0, 9, EMPTY, 2, EMPTY]);
    let shares = [0.5, 0.25, 0.0, 0.0, 1.0, -1.0].repeat(num_layers);
    let table = [1, 3, -1, -1, -1, -1, -1, -1].repeat(num_layers);
    let loads = [1.0f32, 2.0, 3.0, 4.0].repeat(num_layers);
    let given = Unverified {
        shares: Some(&shares),
        expert_to_slots: Some(&table),
        replica_counts: Some(&layers(&[1, 0, 0, 0])),
        limit: Some(LoadLimit { loads: &loads, imbalance_max: 1.25 }),
        ..Unverified::new(&slots)
    };
    let report = verify(&cluster, &goal, &given).unwrap();
    expect_test::expect![[r#"
        error: layer 1: slot 2 holds 9, but experts are 0 to 3
        error: layer 1: slot 4 holds expert 2, but its GPU 2 is dead
        error: layer 1: the number of GPUs with expert 0 is 1, must be at least 2
        error: layer 1: the number of nodes with expert 0 is 1, must be at least 2
        error: layer 1: expert 1 is on no live GPU
        error: layer 1: expert 2 is on no live GPU
        error: layer 1: expert 3 is on no live GPU
        error: layer 1: slot 4 has the share 1, but no expert on a live GPU
        error: layer 1: slot 5 has the share -1, must be finite and not negative
        error: layer 1: the shares of expert 0 sum to 0.75, must be 1
        error: layer 1: the replica count of expert 0 is 1, but 2 live slots hold it
        error: layer 1: entry 1 of expert 0's slots is 3, which does not belong there
        error: layer 1: slot 0 holds expert 0, but is not among that expert's slots
        warning: layer 1: slot 3 of the live GPU 1 is empty
        warning: layer 1: GPU 0 holds 2 replicas of expert 0, though other experts are left for it
        warning: layer 1: GPU 0 carries 2.0000 times the mean, must be at most 1.25
    "#]]
    .assert_eq(&of_layer(&report, 1));
    let text = report.to_string();
    assert!(text.contains("\nerror: 236 more: experts on no live GPU\n"), "{text}");
    assert!(text.ends_with("\nwarning: 36 more: GPUs with more load than the limit\n"), "{text}");
    assert_eq!(report.count(Kind::Missing), 300);
    assert_eq!(report.findings().iter().filter(|f| f.kind() == Kind::Missing).count(), FINDINGS_PER_KIND);
    let of_severity = |severity| Kind::ALL.into_iter().filter(move |kind| kind.severity() == severity);
    assert_eq!(report.num_errors(), of_severity(Severity::Error).map(|kind| report.count(kind)).sum::<u64>());
    assert_eq!(report.num_warnings(), 300);
}

fn of_layer(report: &Report, layer: usize) -> String {
    let prefix = format!("layer {layer}: ");
    let text = report.to_string();
    text.lines().filter(|line| line.contains(&prefix)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn kinds_are_at_their_numbers() {
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, number);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let cluster = cluster();
    let slots = [0; 6];
    let error = |goal: Goal, given: Unverified<'_>| verify(&cluster, &goal, &given).unwrap_err().to_string();
    let goal = Goal::new(1, 2);
    let given = Unverified::new(&slots);
    for (error, want) in [
        (error(goal, Unverified::new(&slots[..5])), "the length of slot_to_expert is 5, must be 6"),
        (error(Goal::new(0, 2), given), "num_layers is 0, must be 1 to 4096"),
        (error(Goal::new(1, 65537), given), "num_experts is 65537, must be 1 to 65536"),
        (error(Goal { num_groups: 3, ..goal }, given), "num_groups is 3, must be 1 to 2"),
        (error(goal, Unverified { shares: Some(&[1.0]), ..given }), "the length of shares is 1, must be 6"),
        (
            error(goal, Unverified { replica_counts: Some(&[]), ..given }),
            "the length of replica_counts is 0, must be 2",
        ),
        (
            error(goal, Unverified { expert_to_slots: Some(&[1, 2, 3]), ..given }),
            "the length of expert_to_slots is 3, must be a multiple of num_layers * num_experts = 1 * 2",
        ),
        (
            error(
                goal,
                Unverified {
                    limit: Some(LoadLimit { loads: &[1.0, f32::NAN], imbalance_max: 1.0 }),
                    ..given
                },
            ),
            "loads[layer 0, expert 1] is NaN, must be finite and not negative",
        ),
    ] {
        assert_eq!(error, format!("verify: {want}"));
    }
}

#[test]
fn hashes_are_those_of_another_language() {
    // FNV-1a of bytes that Python's struct packed.
    let even = Cluster::even(4, 2, 1).unwrap();
    let slots = [0, 1, 2, 0];
    assert_eq!(hash(&even, &slots, None), 0xc749_d0bc_9228_1331);
    assert_eq!(hash(&even, &slots, Some(&[0.5, 1.0, 1.0, 0.5])), 0x8ef6_2ff9_b290_c0c0);
    let other = Cluster::new(&[2, 0, 2], &[0, 1, 1], &[true, true, false]).unwrap();
    assert_eq!(hash(&other, &[0, 1, EMPTY, EMPTY], None), 0xf8a4_cfbf_aa90_96ea);
    assert_eq!(hash(&even, &slots, Some(&[0.0; 4])), hash(&even, &slots, Some(&[-0.0; 4])));
}

#[test]
fn the_rank_that_differs_is_named() {
    for (hashes, hash, differing) in [
        (vec![], 0, vec![]),
        (vec![7], 7, vec![]),
        (vec![7, 7, 7, 7], 7, vec![]),
        (vec![7, 7, 9, 7], 7, vec![2]),
        (vec![9, 7, 7, 3, 7], 7, vec![0, 3]),
        (vec![9, 7, 7, 9], 9, vec![1, 2]),
        (vec![1, 9, 7, 7, 9], 9, vec![0, 2, 3]),
    ] {
        let agreement = agree(&hashes);
        assert_eq!((agreement.hash, agreement.differing), (hash, differing), "{hashes:?}");
    }
}

#[test]
fn buffers_grow_with_the_fullest_gpu() {
    let traffic =
        Traffic { num_layers: 2, num_experts: 4, expert_bytes: 100, hidden: 8, tokens_per_rank: 3, top_k: 2 };
    // The dead GPU's 9 slots hold nothing, but it is a rank.
    let cluster = Cluster::new(&[1, 3, 9], &[], &[true, true, false]).unwrap();
    let found = buffers(&cluster, &traffic).unwrap();
    assert_eq!((found.slots_max, found.weight_bytes, found.rows_max), (3, 600, 3 * 3 * 2));
    let found = buffers(&cluster, &Traffic { top_k: 4, ..traffic }).unwrap();
    assert_eq!(found.rows_max, 3 * 3 * 3);
    // 27 places of 32 bytes to receive in and of 16 to send from; without redundancy 18.
    assert_eq!(found.low_latency_bytes, 2 * (27 * 32 + 27 * 16));
    assert_eq!(found.low_latency_bytes_without_redundancy, 2 * (18 * 32 + 18 * 16));
    // One place in all: the header is what makes the dispatch's send buffer the larger.
    let found = buffers(&Cluster::even(1, 1, 1).unwrap(), &Traffic { num_experts: 1, top_k: 1, ..traffic });
    assert_eq!(found.unwrap().low_latency_bytes, 2 * (3 * 32 + 3 * 32));

    let half = 1 << 19;
    let mut slots = vec![1; half];
    slots[0] = half as u32;
    let huge = Cluster::new(&slots, &[], &[]).unwrap();
    let most = Traffic { hidden: 1 << 20, tokens_per_rank: 1 << 20, ..traffic };
    let error = buffers(&huge, &most).unwrap_err().to_string();
    assert_eq!(error, "buffers: low_latency_bytes is 2417860862601295204188160, must be less than 2^64");
}

proptest! {
    /// One wrong number is one finding, at its place; and where nothing is found, loads can be summed up.
    #[test]
    fn a_single_fault_is_found(
        layers in 1usize..4, gpus in 1usize..6, slots_per_gpu in 1usize..5, experts in 1usize..12,
        at in any::<prop::sample::Index>(), value in any::<u32>(),
    ) {
        let cluster = Cluster::even(gpus * slots_per_gpu, gpus, 1).unwrap();
        let goal = Goal::new(layers, experts);
        let slots = layers * cluster.num_slots();
        let mut placed: Vec<u32> = (0..slots).map(|slot| (slot % cluster.num_slots() % experts) as u32).collect();
        let missing = layers * experts.saturating_sub(cluster.num_slots());
        let report = verify(&cluster, &goal, &Unverified::new(&placed)).unwrap();
        prop_assert_eq!(report.num_errors(), missing as u64, "{}", report);

        let loads = vec![1.0; layers * experts];
        let sums = gpu_loads(&cluster, experts, &placed, None, &loads);
        prop_assert_eq!(sums.is_ok(), report.is_ok());
        for loads in sums.unwrap_or_default().chunks(gpus) {
            prop_assert!((loads.iter().sum::<f64>() - experts as f64).abs() < 1e-9);
            prop_assert!(imbalance(&cluster, loads) >= 1.0);
        }

        let at = at.index(slots);
        let was = std::mem::replace(&mut placed[at], value);
        let report = verify(&cluster, &goal, &Unverified::new(&placed)).unwrap();
        let (layer, slot) = (at / cluster.num_slots(), at % cluster.num_slots());
        let held = &placed[layer * cluster.num_slots()..][..cluster.num_slots()];
        if value as usize >= experts {
            let what = match value {
                EMPTY => What::Empty { slot, gpu: slot / slots_per_gpu },
                _ => What::NotAnExpert { slot, value: value.into(), num_experts: experts },
            };
            prop_assert!(report.findings().contains(&Finding { layer, what }), "{}", report);
        }
        let lost = Finding { layer, what: What::Missing { expert: was as usize } };
        prop_assert_eq!(report.findings().contains(&lost), !held.contains(&was));
    }

    /// Whatever is in a placement, it is judged without a panic, and each finding is printed.
    #[test]
    fn anything_is_judged(
        slots in prop::collection::vec(prop_oneof![0u32..5, Just(EMPTY), any::<u32>()], 12),
        shares in prop::collection::vec(prop_oneof![Just(0.5), Just(1.0), any::<f64>()], 12),
        table in prop::collection::vec(prop_oneof![-1i32..7, any::<i32>()], 24),
        counts in prop::collection::vec(any::<u32>(), 8),
        is_alive in prop::collection::vec(any::<bool>(), 2),
    ) {
        let cluster = Cluster::new(&[2, 3, 1], &[1, 0, 1], &[true, is_alive[0], is_alive[1]]).unwrap();
        let goal = Goal { num_groups: 3, groups: GroupRule::Whole, min_gpus: 2, ..Goal::new(2, 4) };
        let given = Unverified {
            slot_to_expert: &slots,
            shares: Some(&shares),
            expert_to_slots: Some(&table),
            replica_counts: Some(&counts),
            limit: Some(LoadLimit { loads: &[1.0; 8], imbalance_max: 1.0 }),
        };
        let report = verify(&cluster, &goal, &given).unwrap();
        let text = report.to_string();
        prop_assert_eq!(text.lines().count() as u64, report.num_errors() + report.num_warnings());
    }
}
