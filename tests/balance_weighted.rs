//! Placements for weighted shares: against the optimum of small layers, known figures, and what must hold of any.

#[path = "support/data.rs"]
#[allow(dead_code)]
mod data;
#[path = "support/naive_placement.rs"]
#[allow(dead_code)]
mod naive_placement;

use dualpipe::balance::{balance, Cluster, Goal, GroupRule, Loads, Options, Split, EMPTY};
use naive_placement::{best_by_trying_all, imbalance_and_duplicates, num_placements, UNIT};
use proptest::prelude::*;

/// The placement and the shares of `loads`, `[num_steps, num_layers, num_experts]`.
fn place(cluster: &Cluster, goal: &Goal, loads: &[f32], num_steps: usize) -> (Vec<u32>, Vec<f64>) {
    let goal = Goal { split: Split::Weighted, ..*goal };
    let loads = Loads::new(loads, num_steps, goal.num_layers, goal.num_experts).unwrap();
    let plan = balance(cluster, &goal, &loads, None, Options::default()).unwrap();
    (plan.slot_to_expert().to_vec(), plan.shares().to_vec())
}

/// The load of the heaviest GPU of one layer, after checking the placement and its shares.
fn heaviest(cluster: &Cluster, goal: &Goal, loads: &[f32], placed: &(Vec<u32>, Vec<f64>)) -> f64 {
    let (slot_to_expert, shares) = placed;
    let (_, duplicates) = imbalance_and_duplicates(cluster, goal, loads, slot_to_expert);
    // A second replica on a GPU may be cheaper than one on a node where its group is not at home.
    let is_priced = matches!(goal.groups, GroupRule::Priced { .. });
    assert!(is_priced || duplicates == 0, "{loads:?} {slot_to_expert:?}");
    let mut of_gpus = vec![0.0; cluster.num_gpus()];
    let mut sums = vec![0.0; loads.len()];
    for (slot, (&expert, &share)) in slot_to_expert.iter().zip(shares).enumerate() {
        assert!((0.0..=1.0).contains(&share), "slot {slot} has {share}");
        if expert == EMPTY {
            assert_eq!(share, 0.0);
            continue;
        }
        sums[expert as usize] += share;
        of_gpus[cluster.gpu_of_slot()[slot] as usize] += share * f64::from(loads[expert as usize]);
    }
    assert!(sums.iter().all(|sum| (sum - 1.0f64).abs() < 1e-14), "{sums:?}");
    of_gpus.into_iter().fold(0.0, f64::max)
}

/// That of a new placement of one layer.
fn heaviest_placed(cluster: &Cluster, goal: &Goal, loads: &[f32]) -> f64 {
    heaviest(cluster, goal, loads, &place(cluster, goal, loads, 1))
}

#[test]
fn known_figures() {
    for (loads, num_slots, num_gpus, want) in [
        // FlashLB's example: the mean.
        (vec![600., 560., 120., 120., 20., 10., 10., 10.], 16, 8, 181.25),
        // One slot each, nothing to choose: 7 on three GPUs, 2 on one.
        (vec![7., 2.], 4, 4, 7. / 3.),
        // One GPU.
        (vec![3., 4.], 3, 1, 7.),
        // One hot expert, with a GPU on which it is not alone.
        (vec![0., 0., 90., 0.], 6, 3, 30.),
        // 9 has one slot, for all are needed.
        (vec![9., 1., 1., 1.], 4, 2, 10.),
        // Pairs 5 1 and 4 2 are even.
        (vec![5., 1., 4., 2.], 4, 2, 6.),
        // A tree of three on two GPUs, and a pair: 8 4 0 and 5 1.
        (vec![8., 5., 4., 1., 0.], 6, 3, 6.),
        (vec![0., 0., 0.], 6, 3, 0.),
        // More slots than useful.
        (vec![3., 1.], 12, 3, 4. / 3.),
    ] {
        let cluster = Cluster::even(num_slots, num_gpus, 1).unwrap();
        let found = heaviest_placed(&cluster, &Goal::new(1, loads.len()), &loads);
        assert!((found - want).abs() <= 1e-9 * want, "{loads:?}: {found}, not {want}");
    }
}

/// GPUs of 1 to 3 slots on up to 2 nodes, some dead; experts in groups; loads.
#[derive(Clone, Debug)]
struct Small {
    cluster: Cluster,
    goal: Goal,
    loads: Vec<u64>,
}

/// Only placements that can be tried all.
fn small(rng: &mut fastrand::Rng) -> Small {
    loop {
        let num_gpus = rng.usize(1..=4);
        let two_each = rng.bool();
        let num_experts = rng.usize(1..=7);
        let slots =
            |rng: &mut fastrand::Rng| if two_each { 2 } else { rng.u32(1..=3).min(num_experts as u32) };
        let slots: Vec<u32> = (0..num_gpus).map(|_| slots(rng)).collect();
        let nodes: Vec<u32> = (0..num_gpus as u32).map(|_| rng.u32(0..2.min(num_gpus as u32))).collect();
        let alive: Vec<bool> = (0..num_gpus).map(|_| rng.f32() < 0.9).collect();
        let Ok(cluster) = Cluster::new(&slots, &nodes, &alive) else { continue };
        let most = [10, 1000, 20][rng.usize(..3)];
        let loads: Vec<u64> = (0..num_experts).map(|_| UNIT * rng.u64(0..most) * rng.u64(0..3)).collect();
        let groups = [GroupRule::Free, GroupRule::Whole][usize::from(rng.f32() < 0.2)];
        let min_gpus = if rng.f32() < 0.2 { 2 } else { 1 };
        let num_groups = rng.usize(1..=num_experts);
        let goal = Goal { num_groups, groups, min_gpus, ..Goal::new(1, num_experts) };
        let can_be_tried = num_placements(&cluster, num_experts) < 20_000.0 && cluster.num_live_slots() <= 8;
        if can_be_tried && goal.check(&cluster).is_ok() {
            return Small { cluster, goal, loads };
        }
    }
}

#[test]
fn small_layers_are_near_the_optimum_and_never_below() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut optimal, mut all, mut worst) = (0, 0, 0.0f64);
    while all < 300 {
        let Small { cluster, goal, loads } = small(&mut rng);
        let Some(best) = best_by_trying_all(&cluster, &goal, &loads, false) else { continue };
        let floats: Vec<f32> = loads.iter().map(|&load| load as f32).collect();
        let found = heaviest_placed(&cluster, &goal, &floats);
        let gap = if best.weighted > 0.0 { found / best.weighted - 1.0 } else { found };
        assert!(gap > -1e-9, "{found} is less than {best:?}: {goal:?} {cluster:?} {loads:?}");
        all += 1;
        optimal += usize::from(gap < 1e-9);
        worst = worst.max(gap);
    }
    assert!(optimal >= all - 5, "{optimal} of {all}");
    assert!(worst < 0.25, "{worst}");
}

proptest! {
    #[test]
    fn with_two_slots_each_and_one_expert_more_than_gpus_all_gpus_are_equally_loaded(
        loads in prop::collection::vec(prop_oneof![0u32..10, 0u32..1000], 2..20),
        more_gpus in 0usize..9,
    ) {
        let num_gpus = loads.len() - 1 + more_gpus;
        let cluster = Cluster::even(2 * num_gpus, num_gpus, 1).unwrap();
        let loads: Vec<f32> = loads.into_iter().map(|load| load as f32).collect();
        let mean = loads.iter().map(|&load| f64::from(load)).sum::<f64>() / num_gpus as f64;
        let found = heaviest_placed(&cluster, &Goal::new(1, loads.len()), &loads);
        prop_assert!((found - mean).abs() <= 1e-9 * mean, "{found} {mean}");
    }

    #[test]
    fn what_was_asked_holds_of_any_placement(
        gpus in prop::collection::vec((1u32..5, 0u32..3, prop::bool::weighted(0.8)), 3..12),
        loads in prop::collection::vec(prop_oneof![1 => Just(0.0f32), 5 => 0.1f32..9.0, 1 => 0.0f32..100.0], 1..20),
        num_groups in 1usize..5,
        rule in prop::sample::select(vec![GroupRule::Free, GroupRule::Whole, GroupRule::Priced { price: 0.5 }]),
        min_gpus in 1usize..3,
    ) {
        let slots: Vec<u32> = gpus.iter().map(|gpu| gpu.0.min(loads.len() as u32)).collect();
        let nodes: Vec<u32> = gpus.iter().map(|gpu| gpu.1).collect();
        let alive: Vec<bool> = gpus.iter().map(|gpu| gpu.2).collect();
        let cluster = Cluster::new(&slots, &nodes, &alive);
        prop_assume!(cluster.is_ok());
        let cluster = cluster.unwrap();
        let num_groups = num_groups.min(loads.len());
        let free = Goal { split: Split::Weighted, ..Goal::new(1, loads.len()) };
        let goal = Goal { num_groups, groups: rule, min_gpus, ..free };
        prop_assume!(goal.check(&cluster).is_ok());
        let values = Loads::new(&loads, 1, 1, loads.len()).unwrap();
        // Unequal GPUs may leave no placement.
        if let Ok(plan) = balance(&cluster, &goal, &values, None, Options::default()) {
            let placed = (plan.slot_to_expert().to_vec(), plan.shares().to_vec());
            heaviest(&cluster, &goal, &loads, &placed);
        }
    }
}

#[test]
fn a_window_is_placed_as_its_sum_and_a_layer_whatever_was_before_it() {
    for (num_slots, num_gpus) in [(24, 12), (32, 8)] {
        let cluster = Cluster::even(num_slots, num_gpus, 1).unwrap();
        let goal = Goal::new(1, 20);
        let a: Vec<f32> = (0..20).map(|e| ((e * 7) % 11 * e) as f32).collect();
        let b: Vec<f32> = (0..20).map(|e| ((e * 5) % 13 + 2 * e) as f32).collect();
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let of_sum = place(&cluster, &goal, &sum, 1);
        assert_eq!(place(&cluster, &goal, &[&a[..], &b].concat(), 2), of_sum);
        let (slots, shares) = place(&cluster, &Goal { num_layers: 2, ..goal }, &[&a[..], &sum].concat(), 1);
        assert_eq!((&slots[num_slots..], &shares[num_slots..]), (&of_sum.0[..], &of_sum.1[..]));
    }
}

/// The least T >= mean at which the slots suffice, times the GPUs: no routing of any placement is better.
fn joint_bound(loads: &[f32], num_slots: usize, num_gpus: usize) -> f64 {
    let mean = loads.iter().map(|&load| f64::from(load)).sum::<f64>() / num_gpus as f64;
    let suffice = |most: f64| {
        let counts = loads.iter().map(|&load| (f64::from(load) / most).ceil().max(1.0));
        counts.sum::<f64>() <= num_slots as f64
    };
    let (mut least, mut most) = (mean, mean * num_gpus as f64);
    for _ in 0..60 {
        let middle = (least + most) / 2.0;
        match suffice(middle) {
            true => most = middle,
            false => least = middle,
        }
    }
    most
}

#[test]
fn real_loads_are_within_a_hundredth_of_the_bound() {
    let Some(text) = data::optional_data("expert_loads_gpqa_58x256.csv") else {
        return;
    };
    let layers: Vec<Vec<f32>> =
        text.lines().map(|line| line.split(',').map(|load| load.trim().parse().unwrap()).collect()).collect();
    for (num_slots, num_gpus) in [(288, 32), (288, 72), (320, 160), (288, 144)] {
        let cluster = Cluster::even(num_slots, num_gpus, 1).unwrap();
        let goal = Goal::new(1, 256);
        let (mut found, mut bound) = (0.0, 0.0);
        for loads in &layers {
            let sum: f64 = loads.iter().map(|&load| f64::from(load)).sum();
            found += heaviest_placed(&cluster, &goal, loads) / sum;
            bound += joint_bound(loads, num_slots, num_gpus) / sum;
        }
        assert!(found <= 1.01 * bound, "{num_slots} slots on {num_gpus} GPUs: {}", found / bound);
    }
}
