//! Counting moves, and the curve of imbalance against moves; that plans keep their budgets is tested with the planner.

use dualpipe::balance::{move_curve, moves, transfers, Cluster, Goal, Loads, MoveCost, MovePoint, EMPTY};
use proptest::prelude::*;

#[test]
fn moves_are_counted_by_where_the_nearest_replica_is() {
    // Two GPUs of two slots on each of two nodes.
    let cluster = Cluster::even(8, 4, 2).unwrap();
    let from = [0, 1, 2, 3, 4, 5, 6, 7];
    for (to, [same_gpu, same_node, other_node]) in [
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0]),
        // Within a GPU.
        ([1, 0, 2, 3, 4, 5, 6, 7], [2, 0, 0]),
        // 0 and 2 change places on a node, 3 and 4 between nodes.
        ([2, 1, 0, 4, 3, 5, 6, 7], [0, 2, 2]),
        // Twice on a GPU it did not have it on: both are moves, though a transfer plan copies the second there.
        ([0, 1, 0, 0, 4, 5, 6, 7], [0, 2, 0]),
    ] {
        let want = MoveCost {
            moves: same_node + other_node,
            same_node,
            other_node,
            same_gpu,
            price: (same_node + other_node) as f64,
            ..Default::default()
        };
        assert_eq!(moves(&cluster, 8, &from, &to).unwrap(), [want], "{to:?}");
    }
}

#[test]
fn what_was_on_a_dead_gpu_only_is_lost() {
    let cluster = Cluster::new(&[2, 2, 2], &[0, 0, 1], &[true, false, true]).unwrap();
    let cost = moves(&cluster, 5, &[0, 1, 2, 1, 3, 0], &[2, 1, EMPTY, EMPTY, 1, 0]).unwrap()[0];
    // 2 is lost, 1 comes from GPU 0 of the other node.
    assert_eq!((cost.moves, cost.lost, cost.other_node, cost.same_node), (2, 1, 1, 0));
}

#[test]
fn a_curve_by_hand() {
    let cluster = Cluster::even(6, 3, 1).unwrap();
    // 16 | 4 | 10 of a mean of 10. 6 for 2 is 12 | 8 | 10. Then 5 5 and 6 4 and 2 8 cannot be done from there, but
    // 10 | 10 | 10 with 10 0, 6 4 and 8 2.
    let loads = [10.0, 6.0, 2.0, 2.0, 5.0, 5.0];
    let curve = |max_moves| {
        let loads = Loads::new(&loads, 1, 1, 6).unwrap();
        move_curve(&cluster, &Goal::new(1, 6), loads, &[0, 1, 2, 3, 4, 5], max_moves).unwrap().remove(0)
    };
    let points = [MovePoint { moves: 0, imbalance: 1.6 }, MovePoint { moves: 2, imbalance: 1.2 }];
    assert_eq!(curve(0), points[..1]);
    assert_eq!(curve(1), points[..1]);
    assert_eq!(curve(2), points);
    assert_eq!(curve(6), points);
}

#[test]
fn what_cannot_be_is_refused() {
    let cluster = Cluster::even(4, 2, 1).unwrap();
    let loads = Loads::new(&[1.0, 2.0, 3.0], 1, 1, 3).unwrap();
    let error = |current: &[u32], max_moves| {
        move_curve(&cluster, &Goal::new(1, 3), loads, current, max_moves).unwrap_err().to_string()
    };
    assert_eq!(
        error(&[0, 1, 2], 4),
        "move_curve: the length of current is 3, must be num_layers * num_slots = 1 * 4"
    );
    assert_eq!(
        error(&[0, 1, 2, 3], 4),
        "move_curve: current[layer 0, slot 3] is 3, must be less than num_experts = 3, or 4294967295 for none"
    );
    assert_eq!(error(&[0, 1, 2, 0], 1 << 21), "move_curve: max_moves is 2097152, must be 0 to 1048576");
    let two_layers = Loads::new(&[1.0; 6], 1, 2, 3).unwrap();
    assert_eq!(
        move_curve(&cluster, &Goal::new(1, 3), two_layers, &[0, 1, 2, 0], 4).unwrap_err().to_string(),
        "move_curve: num_layers of the loads is 2, must be the goal's, 1"
    );
    assert_eq!(
        moves(&cluster, 3, &[0, 1, 2, 0], &[0]).unwrap_err().to_string(),
        "moves: the length of to is 1, must be the length of from, 4"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn each_point_of_a_curve_has_more_moves_and_less_imbalance(
        loads in prop::collection::vec(1u32..1000, 12), redundant in 0usize..6, max_moves in 0usize..20,
    ) {
        let loads: Vec<f32> = loads.iter().map(|&load| load as f32).collect();
        let cluster = Cluster::even(12 + redundant, 4, 2).unwrap();
        let current: Vec<u32> = (0..12 + redundant as u32).map(|slot| slot % 12).collect();
        let goal = Goal::new(1, 12);
        let loads = Loads::new(&loads, 1, 1, 12).unwrap();
        let curve = &move_curve(&cluster, &goal, loads, &current, max_moves).unwrap()[0];
        prop_assert_eq!(curve[0].moves, 0);
        for two in curve.windows(2) {
            prop_assert!(two[0].moves < two[1].moves && two[0].imbalance > two[1].imbalance);
        }
        prop_assert!(curve.iter().all(|point| point.moves <= max_moves && point.imbalance >= 1.0));
    }

    /// With one slot on a GPU every copy of a transfer plan is a move, and every move a copy.
    #[test]
    fn moves_are_what_transfers_copy(seed in any::<u64>(), num_gpus in 1usize..13) {
        let mut random = fastrand::Rng::with_seed(seed);
        let cluster = Cluster::even(12, num_gpus, 2.min(num_gpus)).unwrap();
        let mut place = || -> Vec<u32> {
            let mut experts: Vec<u32> = (0..12).map(|slot| slot % 9).collect();
            random.shuffle(&mut experts);
            experts
        };
        let (from, to) = (place(), place());
        let cost = moves(&cluster, 9, &from, &to).unwrap()[0];
        prop_assert_eq!(cost.moves + cost.same_gpu, (0..12).filter(|&slot| from[slot] != to[slot]).count());
        let copies = transfers(&cluster, 9, &from, &to, &Default::default()).unwrap().copies;
        let remote = copies.iter().filter(|copy| copy.from_gpu != copy.to_gpu).count();
        if num_gpus == 12 {
            prop_assert_eq!(remote, cost.moves);
        }
    }
}
