//! `balance` as a whole: what is asked is what comes, on any number of threads, also from a placement that is there.

#[path = "support/data.rs"]
mod data;
#[path = "support/lognormal.rs"]
mod lognormal;

use dualpipe::balance::{
    balance, deepseek, imbalance, moves, Cluster, Current, ExpertPlan, Goal, GroupRule, Loads, MoveBudget,
    MovePrices, Options, Problem, Split, EMPTY,
};
use dualpipe::ErrorKind;
use lognormal::{lognormal, normal};

const LAYERS: usize = 4;
const EXPERTS: usize = 64;

/// Every load 2 % off, as from one window to the next.
fn with_noise(loads: &[f32], seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    loads.iter().map(|load| (load * (1.0 + 0.02 * normal(&mut random) as f32)).max(0.0)).collect()
}

fn plan(
    cluster: &Cluster,
    goal: &Goal,
    loads: &[f32],
    current: Option<(&[u32], MoveBudget)>,
) -> dualpipe::error::Result<ExpertPlan> {
    let steps = loads.len() / (goal.num_layers * goal.num_experts);
    let loads = Loads::new(loads, steps, goal.num_layers, goal.num_experts)?;
    let current = current.map(|(slot_to_expert, budget)| Current { slot_to_expert, budget });
    balance(cluster, goal, &loads, current, Options::default())
}

fn worst(plan: &ExpertPlan) -> f64 {
    plan.layers().iter().map(|layer| layer.imbalance).fold(0.0, f64::max)
}

#[test]
fn threads_and_progress_change_nothing_and_progress_can_stop() {
    let cluster = Cluster::even(72, 8, 2).unwrap();
    let values = lognormal(LAYERS * EXPERTS, 1);
    let loads = Loads::new(&values, 1, LAYERS, EXPERTS).unwrap();
    for split in [Split::Equal, Split::Weighted] {
        let goal = Goal { split, ..Goal::new(LAYERS, EXPERTS) };
        let alone = balance(&cluster, &goal, &loads, None, Options::default()).unwrap();
        for num_threads in [0, 2, 3, 4096] {
            let mut seen = Vec::new();
            let mut progress = |done: usize, total: usize| {
                seen.push((done, total));
                true
            };
            let options = Options { num_threads, progress: Some(&mut progress) };
            assert_eq!(balance(&cluster, &goal, &loads, None, options).unwrap(), alone);
            assert_eq!(seen.last(), Some(&(LAYERS, LAYERS)));
        }
        let mut stop = |_: usize, _: usize| false;
        let options = Options { num_threads: 1, progress: Some(&mut stop) };
        let error = balance(&cluster, &goal, &loads, None, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn what_a_plan_says_of_itself_is_so() {
    let cluster = Cluster::new(&[3, 9, 9, 9, 0, 9, 9, 9, 9], &[0, 0, 0, 1, 1, 1, 2, 2, 2], &[]).unwrap();
    let values = lognormal(LAYERS * EXPERTS, 2);
    for split in [Split::Equal, Split::Weighted] {
        let goal = Goal { split, ..Goal::new(LAYERS, EXPERTS) };
        let plan = plan(&cluster, &goal, &values, None).unwrap();
        let shares = plan.shares();
        let gpu_loads =
            dualpipe::balance::gpu_loads(&cluster, EXPERTS, plan.slot_to_expert(), Some(&shares), &values);
        let gpu_loads = gpu_loads.unwrap();
        for (layer, balanced) in plan.layers().iter().enumerate() {
            let of_layer = &gpu_loads[layer * cluster.num_gpus()..][..cluster.num_gpus()];
            assert!((imbalance(&cluster, of_layer) - balanced.imbalance).abs() < 1e-9);
            assert!(balanced.imbalance >= balanced.lower_bound() && balanced.gap() < 0.02, "{balanced:?}");
            let slots = plan.slots_of_layer(layer);
            for expert in 0..EXPERTS {
                let held = slots.iter().filter(|&&held| held as usize == expert).count();
                assert_eq!(held as u32, plan.replica_counts()[layer * EXPERTS + expert]);
            }
        }
        let again = ExpertPlan::from_slots(
            &cluster,
            &goal,
            plan.slot_to_expert(),
            match split {
                Split::Equal => None,
                Split::Weighted => Some(&shares),
            },
            Some(&Loads::new(&values, 1, LAYERS, EXPERTS).unwrap()),
        );
        assert_eq!(again.unwrap(), plan);
    }
}

#[test]
fn few_moves_are_enough_after_noise() {
    let recorded = data::optional_data("expert_loads_gpqa_58x256.csv").map(|text| {
        let numbers = text.split([',', '\n']).filter(|number| !number.trim().is_empty());
        numbers.map(|number| number.trim().parse().unwrap()).collect::<Vec<f32>>()
    });
    let values = recorded.unwrap_or_else(|| lognormal(12 * 256, 3));
    let num_layers = values.len() / 256;
    let cluster = Cluster::even(288, 32, 1).unwrap();
    let goal = Goal::new(num_layers, 256);
    let before = plan(&cluster, &goal, &values, None).unwrap();
    assert!(worst(&before) < 1.0004);
    let noisy = with_noise(&values, 5);

    let problem =
        Problem { num_layers, num_experts: 256, num_slots: 288, num_groups: 1, num_nodes: 1, num_gpus: 32 };
    let again = deepseek(&problem, &noisy, Options::default()).unwrap();
    let count =
        |next: &ExpertPlan| moves(&cluster, 256, before.slot_to_expert(), next.slot_to_expert()).unwrap();
    assert!(count(&again).iter().all(|cost| cost.moves > 240));

    let ten = plan(&cluster, &goal, &noisy, Some((before.slot_to_expert(), MoveBudget::Moves(10)))).unwrap();
    assert!(count(&ten).iter().all(|cost| cost.moves <= 10));
    assert!(worst(&ten) <= 1.01, "{}", worst(&ten));
    let target = MoveBudget::Target { imbalance: 1.01, prices: MovePrices::default() };
    let reached = plan(&cluster, &goal, &noisy, Some((before.slot_to_expert(), target))).unwrap();
    assert!(worst(&reached) <= 1.01 && count(&reached).iter().all(|cost| cost.moves <= 10));
    for (layer, cost) in count(&ten).iter().enumerate() {
        let slots = before.slots_of_layer(layer).iter().zip(ten.slots_of_layer(layer));
        // Slots that stay keep their index: no more differ than are moved, or move within their GPU.
        assert!(slots.filter(|(from, to)| from != to).count() <= cost.moves + cost.same_gpu);
    }
}

#[test]
fn where_single_moves_end_a_placement_made_anew_is_taken_if_it_may_be() {
    let cluster = Cluster::even(80, 40, 1).unwrap();
    let goal = Goal::new(LAYERS, EXPERTS);
    let before = plan(&cluster, &goal, &lognormal(LAYERS * EXPERTS, 6), None).unwrap();
    let others = lognormal(LAYERS * EXPERTS, 7);
    let best = plan(&cluster, &goal, &others, None).unwrap();
    let all = plan(&cluster, &goal, &others, Some((before.slot_to_expert(), MoveBudget::Moves(80)))).unwrap();
    for (all, best) in all.layers().iter().zip(best.layers()) {
        assert!(all.imbalance <= best.imbalance * 1.0101, "{all:?} {best:?}");
    }
    let free = plan(&cluster, &goal, &others, Some((before.slot_to_expert(), MoveBudget::Free))).unwrap();
    for (free, best) in free.layers().iter().zip(best.layers()) {
        assert!((free.imbalance - best.imbalance).abs() < 1e-9);
    }
}

#[test]
fn a_failed_gpu_is_survived() {
    let even = Cluster::even(72, 8, 4).unwrap();
    let goal = Goal { min_gpus: 1, ..Goal::new(LAYERS, EXPERTS) };
    let values = lognormal(LAYERS * EXPERTS, 8);
    let before = plan(&even, &goal, &values, None).unwrap();
    let mut alive = [true; 8];
    alive[3] = false;
    let slots: Vec<u32> = vec![9; 8];
    // 63 slots for 64 experts: too few.
    let broken = Cluster::new(&slots, even.node_of_gpu(), &alive).unwrap();
    let error =
        plan(&broken, &goal, &values, Some((before.slot_to_expert(), MoveBudget::Moves(4)))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "balance: the number of live slots is 63, must be at least 64 for 64 experts, min_gpus 1 and min_nodes 1"
    );
    let wide = Cluster::even(96, 8, 4).unwrap();
    let before = plan(&wide, &goal, &values, None).unwrap();
    let broken = Cluster::new(&[12; 8], wide.node_of_gpu(), &alive).unwrap();
    let after = plan(&broken, &goal, &values, Some((before.slot_to_expert(), MoveBudget::Moves(4)))).unwrap();
    for layer in 0..LAYERS {
        let slots = after.slots_of_layer(layer);
        assert!(slots[36..48].iter().all(|&expert| expert == EMPTY));
        assert!((0..EXPERTS as u32).all(|expert| slots.contains(&expert)));
    }
}

#[test]
fn every_expert_is_on_as_many_nodes_as_asked_and_groups_stay_whole() {
    let cluster = Cluster::even(160, 16, 4).unwrap();
    let values = lognormal(LAYERS * EXPERTS, 9);
    let spread = Goal { min_nodes: 2, ..Goal::new(LAYERS, EXPERTS) };
    let nodes_of = |plan: &ExpertPlan, layer: usize, is_one: &dyn Fn(u32) -> bool| {
        let slots = plan.slots_of_layer(layer).iter().enumerate().filter(|(_, &expert)| is_one(expert));
        let nodes = slots.map(|(slot, _)| cluster.node_of_gpu()[cluster.gpu_of_slot()[slot] as usize]);
        let mut nodes: Vec<u32> = nodes.collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    };
    let plan_spread = plan(&cluster, &spread, &values, None).unwrap();
    let whole = Goal { num_groups: 7, groups: GroupRule::Whole, ..Goal::new(LAYERS, EXPERTS) };
    let plan_whole = plan(&cluster, &whole, &values, None).unwrap();
    // 64 experts in 7 groups: one of 10, six of 9.
    let group_of = |expert: u32| if expert < 10 { 0 } else { 1 + (expert - 10) / 9 };
    for layer in 0..LAYERS {
        for expert in 0..EXPERTS as u32 {
            assert!(nodes_of(&plan_spread, layer, &|held| held == expert) >= 2);
        }
        for group in 0..7 {
            assert_eq!(nodes_of(&plan_whole, layer, &|held| held != EMPTY && group_of(held) == group), 1);
        }
        assert!(plan_whole.layers()[layer].gap() < 0.01, "{:?}", plan_whole.layers()[layer]);
    }
}

#[test]
fn a_window_is_balanced_step_by_step() {
    // Two kinds of steps that have different experts busy: their sum says nothing of that.
    let cluster = Cluster::even(8, 4, 1).unwrap();
    let goal = Goal::new(1, 8);
    let steps: [[f32; 8]; 2] = [[8., 8., 8., 8., 1., 1., 1., 1.], [1., 1., 1., 1., 8., 8., 8., 8.]];
    let window = plan(&cluster, &goal, &steps.concat(), None).unwrap();
    assert!(window.layers()[0].imbalance < 1.0 + 1e-9, "{window:?}");
    assert!(window.layers()[0].bound.joint <= 1.0 + 1e-9);
}

#[test]
fn what_cannot_be_is_refused_with_its_numbers() {
    let cluster = Cluster::even(12, 4, 2).unwrap();
    let goal = Goal::new(1, 8);
    let loads = [1.0; 8];
    let current = [0u32, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3];
    let from = |goal: &Goal, current: &[u32], budget| plan(&cluster, goal, &loads, Some((current, budget)));
    let prices = MovePrices { same_node: -1.0, other_node: 1.0 };
    for (result, want) in [
        (
            plan(&cluster, &Goal::new(1, 13), &[1.0; 13], None),
            "the number of live slots is 12, must be at least 13 for 13 experts, min_gpus 1 and min_nodes 1",
        ),
        (plan(&cluster, &Goal { min_gpus: 5, ..goal }, &loads, None), "min_gpus is 5, must be 1 to 4"),
        (plan(&cluster, &Goal { min_nodes: 3, ..goal }, &loads, None), "min_nodes is 3, must be 1 to 2"),
        (plan(&cluster, &Goal { num_groups: 9, ..goal }, &loads, None), "num_groups is 9, must be 1 to 8"),
        (plan(&cluster, &Goal { effort: 0, ..goal }, &loads, None), "effort is 0, must be 1 to 1000"),
        (
            plan(&cluster, &Goal { groups: GroupRule::Priced { price: f64::NAN }, ..goal }, &loads, None),
            "price is NaN, must be finite and not negative",
        ),
        (
            plan(&cluster, &Goal { groups: GroupRule::Whole, min_nodes: 2, ..goal }, &loads, None),
            "min_nodes is 2, must be 1 where each group stays on one node",
        ),
        (
            from(&goal, &current[..11], MoveBudget::Free),
            "the number of current slots is 11, must be 12 to 12",
        ),
        (
            from(&goal, &current, MoveBudget::Price { most: f64::INFINITY, prices: MovePrices::default() }),
            "the price of all moves is inf, must be finite and at least 0",
        ),
        (
            from(&goal, &current, MoveBudget::Target { imbalance: 0.5, prices: MovePrices::default() }),
            "the imbalance to reach is 0.5, must be finite and at least 1",
        ),
        (
            from(&goal, &current, MoveBudget::Price { most: 1.0, prices }),
            "the price of moves within a node is -1, must be finite and at least 0",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), format!("balance: {want}"));
    }
    let other = Loads::new(&loads, 1, 2, 4).unwrap();
    let error = balance(&cluster, &goal, &other, None, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "balance: num_layers of the loads is 2, must be the goal's, 1");
    let lost = ExpertPlan::from_slots(&cluster, &goal, &[0; 12], None, None).unwrap_err();
    assert!(lost.to_string().starts_with("balance: slot_to_expert cannot be used: layer 0: "), "{lost}");
}
