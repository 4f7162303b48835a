//! The planner against all placements of small layers, and against what it promises.

use proptest::prelude::*;

use super::*;

/// A layer with a current placement.
#[derive(Clone, Debug)]
struct Case {
    cluster: Cluster,
    goal: Goal,
    loads: Vec<f32>,
    current: Vec<u32>,
}

impl Case {
    fn plan(&self, budget: MoveBudget) -> Option<(Vec<u32>, MoveCost)> {
        let mut placement = self.current.clone();
        let mut planner = MovePlanner::new(&self.cluster, &self.goal, budget);
        let cost = planner.place(&[&self.loads], &self.current, &mut placement)?;
        Some((placement, cost))
    }

    fn gpu(&self, slot: usize) -> usize {
        self.cluster.gpu_of_slot()[slot] as usize
    }

    fn live_slots(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.cluster.num_slots()).filter(|&slot| self.cluster.is_alive(self.gpu(slot)))
    }

    /// Slots of each expert.
    fn slots(&self, placement: &[u32]) -> Vec<Vec<usize>> {
        let mut slots = vec![Vec::new(); self.goal.num_experts];
        self.live_slots()
            .filter(|&s| placement[s] != EMPTY)
            .for_each(|s| slots[placement[s] as usize].push(s));
        slots
    }

    fn heaviest(&self, placement: &[u32]) -> f64 {
        let slots = self.slots(placement);
        let mut gpus = vec![0.0; self.cluster.num_gpus()];
        for (slots, &load) in slots.iter().zip(&self.loads) {
            slots.iter().for_each(|&slot| gpus[self.gpu(slot)] += f64::from(load) / slots.len() as f64);
        }
        gpus.into_iter().fold(0.0, f64::max)
    }

    /// What is wrong with a placement, but for second replicas on a GPU.
    fn fault(&self, placement: &[u32]) -> Option<String> {
        let node = |slot: usize| self.cluster.node_of_gpu()[self.gpu(slot)];
        let num_different = |places: Vec<u32>| {
            let places: std::collections::BTreeSet<u32> = places.into_iter().collect();
            places.len()
        };
        for (slot, &expert) in placement.iter().enumerate() {
            let is_live = self.cluster.is_alive(self.gpu(slot));
            // Where groups stay whole, a node may have none, and nothing to hold.
            let is_filled = expert != EMPTY || self.goal.groups == GroupRule::Whole;
            if (!is_live && expert != EMPTY) || (is_live && !is_filled) {
                return Some(format!("slot {slot} holds {expert}"));
            }
        }
        let slots = self.slots(placement);
        for (expert, slots) in slots.iter().enumerate() {
            let gpus = num_different(slots.iter().map(|&slot| self.gpu(slot) as u32).collect());
            let nodes = num_different(slots.iter().map(|&slot| node(slot)).collect());
            if gpus < self.goal.min_gpus || nodes < self.goal.min_nodes {
                return Some(format!("expert {expert} is on {gpus} GPUs of {nodes} nodes"));
            }
        }
        if self.goal.groups == GroupRule::Whole {
            let mut homes = vec![EMPTY; self.goal.num_groups];
            for (group, slots) in self.goal.group_of_expert().iter().zip(&slots) {
                for &slot in slots {
                    let home = &mut homes[*group as usize];
                    if *home != EMPTY && *home != node(slot) {
                        return Some(format!("group {group} is on two nodes"));
                    }
                    *home = node(slot);
                }
            }
        }
        None
    }

    fn has_second_replica(&self, placement: &[u32]) -> bool {
        self.slots(placement)
            .iter()
            .any(|slots| slots.windows(2).any(|two| self.gpu(two[0]) == self.gpu(two[1])))
    }

    /// Slots whose expert was not on their GPU.
    fn moves(&self, placement: &[u32]) -> usize {
        let was_there = |slot: usize| {
            self.live_slots().any(|s| self.gpu(s) == self.gpu(slot) && self.current[s] == placement[slot])
        };
        self.live_slots().filter(|&slot| placement[slot] != EMPTY && !was_there(slot)).count()
    }
}

/// What the heaviest GPU carries at least after each number of moves: every slot is given every expert.
fn best_by_trying_all(case: &Case) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; case.cluster.num_slots() + 1];
    let mut placement = vec![0; case.cluster.num_slots()];
    loop {
        if case.fault(&placement).is_none() && !case.has_second_replica(&placement) {
            let best = &mut best[case.moves(&placement)];
            *best = best.min(case.heaviest(&placement));
        }
        let Some(slot) = placement.iter().position(|&e| (e as usize) + 1 < case.goal.num_experts) else {
            break;
        };
        placement[..slot].fill(0);
        placement[slot] += 1;
    }
    for moves in 1..best.len() {
        best[moves] = best[moves].min(best[moves - 1]);
    }
    best
}

#[test]
fn the_best_for_each_number_of_moves_by_hand() {
    let case = Case {
        cluster: Cluster::even(4, 2, 1).unwrap(),
        goal: Goal::new(1, 4),
        loads: vec![9.0, 6.0, 3.0, 2.0],
        current: vec![0, 1, 2, 3],
    };
    // 15 | 5; no single slot can change; 9 2 | 6 3 after an exchange of two.
    assert_eq!(best_by_trying_all(&case), [15.0, 15.0, 11.0, 11.0, 11.0]);
    let case = Case { loads: vec![12.0, 2.0, 4.0], goal: Goal::new(1, 3), current: vec![0, 1, 2, 1], ..case };
    // 13 | 5; 0 takes the place of the second 1: 6 2 | 4 6.
    assert_eq!(best_by_trying_all(&case)[..2], [13.0, 10.0]);
}

/// Small layers without anything wrong, and how often the planner does the best there is.
#[test]
fn few_moves_are_often_the_best_and_never_too_many() {
    let (mut tried, mut optimal, mut worst) = (0, 0, 1.0f64);
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (num_slots, num_gpus) = [(6, 3), (6, 2), (7, 3), (7, 4)][random.usize(0..4)];
        let num_experts = random.usize(3..=if num_slots == 7 { 4 } else { 5 });
        let mut case = Case {
            cluster: Cluster::even(num_slots, num_gpus, 1).unwrap(),
            goal: Goal::new(1, num_experts),
            loads: (0..num_experts).map(|_| random.u32(1..100) as f32).collect(),
            current: vec![EMPTY; num_slots],
        };
        // What the repair makes of nothing is a valid placement, well balanced for other loads.
        let loads =
            std::mem::replace(&mut case.loads, (0..num_experts).map(|_| random.u32(1..100) as f32).collect());
        case.current = case.plan(MoveBudget::Moves(0)).unwrap().0;
        case.loads = loads;
        let best = best_by_trying_all(&case);
        if case.has_second_replica(&case.current) {
            continue;
        }
        for most in 0..=4 {
            let (placement, cost) = case.plan(MoveBudget::Moves(most)).unwrap();
            assert_eq!(case.fault(&placement), None);
            assert_eq!((cost.moves, cost.forced), (case.moves(&placement), 0));
            assert!(cost.moves <= most);
            let heaviest = case.heaviest(&placement);
            assert!(heaviest >= best[cost.moves] - 1e-9 && heaviest <= best[0] + 1e-9);
            // No changed slot could have stayed as it was.
            for slot in (0..num_slots).filter(|&slot| placement[slot] != case.current[slot]) {
                let mut undone = placement.clone();
                undone[slot] = case.current[slot];
                let is_valid = case.fault(&undone).is_none() && !case.has_second_replica(&undone);
                let is_cheaper = case.moves(&undone) < cost.moves;
                assert!(
                    !is_valid || !is_cheaper || case.heaviest(&undone) > heaviest + 1e-9,
                    "{case:?} {placement:?}"
                );
            }
            tried += 1;
            optimal += usize::from(heaviest <= best[most] + 1e-9);
            worst = worst.max(heaviest / best[most]);
        }
    }
    assert!(tried > 350 && optimal * 100 >= tried * 85, "{optimal} of {tried} optimal, worst {worst}");
}

fn case() -> impl Strategy<Value = Case> {
    let gpus = prop::collection::vec((1u32..5, 0u32..2, 0u32..5), 1..6);
    (gpus, 1usize..9, any::<u64>(), 0u32..6).prop_map(|(gpus, num_experts, seed, kind)| {
        let slots: Vec<u32> = gpus.iter().map(|gpu| gpu.0).chain([num_experts as u32]).collect();
        let nodes: Vec<u32> = gpus.iter().map(|gpu| gpu.1).chain([0]).collect();
        let alive: Vec<bool> = gpus.iter().map(|gpu| gpu.2 > 0).chain([true]).collect();
        let cluster = Cluster::new(&slots, &nodes, &alive).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut goal = Goal::new(1, num_experts);
        match kind {
            4 if cluster.num_live_gpus() > 1 && cluster.num_live_slots() >= 2 * num_experts => {
                goal.min_gpus = 2
            }
            5 => (goal.num_groups, goal.groups) = (random.usize(1..=num_experts), GroupRule::Whole),
            _ => {}
        }
        let loads = (0..num_experts).map(|_| random.u32(0..1000) as f32).collect();
        let mut current: Vec<u32> =
            (0..cluster.num_slots()).map(|_| random.u32(0..num_experts as u32 + 1)).collect();
        current.iter_mut().filter(|e| **e as usize == num_experts).for_each(|expert| *expert = EMPTY);
        Case { cluster, goal, loads, current }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// From anything, with dead GPUs, empty slots, missing experts, second replicas, broken groups.
    #[test]
    fn every_plan_is_valid_and_within_its_budget(case in case(), most in 0usize..8) {
        let budget = MoveBudget::Moves(most);
        let planned = case.plan(budget);
        // Only spreading and groups may be too much for a repair.
        prop_assert!(planned.is_some() || case.goal.min_gpus > 1 || case.goal.groups == GroupRule::Whole);
        if let Some((placement, cost)) = planned {
            prop_assert_eq!(case.fault(&placement), None);
            prop_assert_eq!(cost.moves, case.moves(&placement));
            prop_assert!(cost.moves <= most.max(cost.forced));
            // With nothing forced, the current placement was there to stay.
            let is_full = case.live_slots().all(|slot| case.current[slot] != EMPTY);
            let is_spread = case.goal.min_gpus.max(case.goal.min_nodes) == 1;
            let has_few = is_spread || !case.has_second_replica(&case.current);
            let is_valid = case.fault(&case.current).is_none() && has_few;
            if is_full && is_valid {
                prop_assert_eq!(cost.forced, 0);
                prop_assert!(case.heaviest(&placement) <= case.heaviest(&case.current) * (1.0 + 1e-9));
            }
            // What stays on its GPU keeps its slot.
            for slot in case.live_slots() {
                let was = case.current[slot];
                let is_misplaced = |s: usize| placement[s] == was && case.current[s] != was;
                let own = case.cluster.slots(case.gpu(slot));
                let lost = was != EMPTY && placement[slot] != was && own.clone().any(is_misplaced);
                prop_assert!(!lost, "slot {} of {:?}", slot, placement);
            }
        }
    }

    #[test]
    fn a_target_is_reached_for_no_more_than_by_a_budget(case in case(), tenths in 0u32..10) {
        let imbalance = 1.0 + f64::from(tenths) / 10.0;
        let target = MoveBudget::Target { imbalance, prices: MovePrices::default() };
        if let (Some((placement, cost)), Some((stay, forced))) = (case.plan(target), case.plan(MoveBudget::Moves(0))) {
            let mean = case.loads.iter().sum::<f32>() as f64 / case.cluster.num_live_gpus() as f64;
            if case.heaviest(&stay) <= imbalance * mean * (1.0 - 1e-9) {
                prop_assert_eq!(cost.moves, forced.moves, "there was nothing to do");
            } else {
                prop_assert!(case.heaviest(&placement) <= case.heaviest(&stay) * (1.0 + 1e-9));
            }
        }
    }

    #[test]
    fn renumbering_keeps_the_most_and_no_load_changes(case in case(), seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut fresh: Vec<u32> = case.current.clone();
        random.shuffle(&mut fresh);
        let mut clean = |slot: usize| match case.cluster.is_alive(case.gpu(slot)) {
            true => random.u32(0..case.goal.num_experts as u32),
            false => EMPTY,
        };
        (0..fresh.len()).for_each(|slot| fresh[slot] = clean(slot));
        let mut renumbered = fresh.clone();
        let case = Case { goal: Goal::new(1, case.goal.num_experts), ..case };
        let mut planner = MovePlanner::new(&case.cluster, &case.goal, MoveBudget::Free);
        let cost = planner.renumber(&case.current, &mut renumbered);
        let gpus: Vec<usize> = case.cluster.live_gpus().collect();
        let sets = |placement: &[u32]| {
            let sets = gpus.iter().map(|&gpu| {
                let mut set = placement[case.cluster.slots(gpu)].to_vec();
                set.sort_unstable();
                set
            });
            let mut sets: Vec<Vec<u32>> = sets.collect();
            sets.sort();
            sets
        };
        prop_assert_eq!(sets(&renumbered), sets(&fresh));
        prop_assert_eq!(cost.moves, case.moves(&renumbered));
        prop_assert_eq!(cost.moves, fewest_moves_by_trying_all(&case, &gpus, &fresh, &mut vec![]));
    }
}

/// Over all ways to number the sets of experts of `fresh`.
fn fewest_moves_by_trying_all(case: &Case, gpus: &[usize], fresh: &[u32], becomes: &mut Vec<usize>) -> usize {
    if becomes.len() == gpus.len() {
        let mut placement = vec![EMPTY; fresh.len()];
        for (&gpu, &becomes) in gpus.iter().zip(becomes.iter()) {
            placement[case.cluster.slots(becomes)].copy_from_slice(&fresh[case.cluster.slots(gpu)]);
        }
        return case.moves(&placement);
    }
    let size = case.cluster.slots(gpus[becomes.len()]).len();
    let mut fewest = usize::MAX;
    for &gpu in gpus {
        if !becomes.contains(&gpu) && case.cluster.slots(gpu).len() == size {
            becomes.push(gpu);
            fewest = fewest.min(fewest_moves_by_trying_all(case, gpus, fresh, becomes));
            becomes.pop();
        }
    }
    fewest
}

#[test]
fn nodes_that_mean_something_are_renumbered_as_a_whole() {
    let cluster = Cluster::even(4, 4, 2).unwrap();
    let mut goal = Goal::new(1, 4);
    (goal.num_groups, goal.groups) = (2, GroupRule::Whole);
    let mut planner = MovePlanner::new(&cluster, &goal, MoveBudget::Free);
    // Node 1 has become node 0 and the other way round, and so have its GPUs.
    let mut placement = vec![3, 2, 1, 0];
    assert_eq!(planner.renumber(&[0, 1, 2, 3], &mut placement).moves, 0);
    assert_eq!(placement, [0, 1, 2, 3]);
    // 0 and 2 are on one node: all together could stay, but not with 0 and 2 on one node.
    let mut placement = vec![0, 2, 1, 3];
    assert_eq!(planner.renumber(&[0, 1, 2, 3], &mut placement).moves, 2);
}

#[test]
fn prices_decide_where_from() {
    // GPU 0 is too heavy by the same on both: an exchange with GPU 1, on its node, or GPU 2.
    let cluster = Cluster::new(&[2, 2, 2, 2], &[0, 0, 1, 1], &[]).unwrap();
    let goal = Goal::new(1, 8);
    let case = Case {
        cluster,
        goal,
        loads: vec![20.0, 12.0, 14.0, 10.0, 14.0, 10.0, 14.0, 10.0],
        current: vec![0, 1, 2, 3, 4, 5, 6, 7],
    };
    let target = |same_node, other_node| MoveBudget::Target {
        imbalance: 30.0 / 26.0,
        prices: MovePrices { same_node, other_node },
    };
    let (near, far) = (case.plan(target(1.0, 5.0)).unwrap().1, case.plan(target(5.0, 1.0)).unwrap().1);
    assert_eq!((near.same_node, near.other_node, near.price), (2, 0, 2.0));
    assert_eq!((far.same_node, far.other_node, far.price), (0, 2, 2.0));
    let dear = MoveBudget::Price { most: 1.9, prices: MovePrices::default() };
    assert_eq!(case.plan(dear).unwrap().0, case.current);
}

#[test]
fn what_a_failure_takes_is_replaced_and_little_else() {
    // GPU 1 dies with the only replica of 3; 2 has one left, on GPU 2 beside the second replica of 0.
    let case = Case {
        cluster: Cluster::new(&[2, 2, 2], &[], &[true, false, true]).unwrap(),
        goal: Goal::new(1, 4),
        loads: vec![4.0, 3.0, 2.0, 1.0],
        current: vec![0, 1, 2, 3, 0, 2],
    };
    let (placement, cost) = case.plan(MoveBudget::Moves(0)).unwrap();
    assert_eq!(placement, [3, 1, EMPTY, EMPTY, 0, 2]);
    assert_eq!((cost.moves, cost.forced, cost.lost), (1, 1, 1));
}
