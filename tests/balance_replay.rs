//! `replay` shows policies the past only, and judges them by what comes next.

use std::cell::{Cell, RefCell};

use dualpipe::balance::replay::{Moves, Placed, Policy, Replay, ReplayOptions};
use dualpipe::balance::{
    balance, deepseek, gpu_loads, replay, Cluster, Current, Goal, GroupRule, MoveBudget, Options, Problem,
    Split, EMPTY,
};
use dualpipe::{Error, ErrorKind};
use proptest::prelude::*;

/// 2 GPUs of 2 slots, each on a node of its own.
fn cluster() -> Cluster {
    Cluster::even(4, 2, 2).unwrap()
}

fn placed(slots: &[u32]) -> Option<Placed> {
    Some(Placed { slot_to_expert: slots.to_vec(), shares: None })
}

fn run(goal: &Goal, loads: &[f32], options: &ReplayOptions<'_>, policies: &mut [Policy<'_>]) -> Replay {
    replay(&cluster(), goal, loads, options, policies).unwrap()
}

#[test]
fn the_steps_after_a_plan_judge_it() {
    // In order, 0 1 | 2 3. What a plan makes of steps 0 and 1 is wrong from step 2 on.
    let loads = [
        [4.0, 4.0, 1.0, 1.0],
        [4.0, 4.0, 1.0, 1.0],
        [4.0, 1.0, 4.0, 1.0],
        [6.0, 2.0, 6.0, 2.0],
        [2.0, 1.0, 1.0, 2.0],
    ];
    let once = RefCell::new(placed(&[0, 2, 1, 3]));
    let mut policies = [
        Policy::none(),
        Policy::new("once", |past, _| {
            let want = if past.step() == 2 { [8.0, 8.0, 2.0, 2.0] } else { [10.0, 3.0, 10.0, 3.0] };
            assert_eq!(past.total(), want);
            Ok(once.borrow_mut().take())
        }),
    ];
    let options = ReplayOptions { expert_bytes: 10, ..ReplayOptions::new(2, 2) };
    let replay = run(&Goal::new(1, 4), &loads.concat(), &options, &mut policies);
    let [none, once] = &replay.runs[..] else { panic!() };
    // GPU 0 carries 5, 8 and then 3, of 5, 8 and 3.
    assert_eq!(none.windows.iter().map(|window| window.imbalance[0]).collect::<Vec<_>>(), [1.0, 1.0]);
    // 8 of 5, 12 of 8, then 3 of 3.
    assert_eq!(once.windows.iter().map(|window| window.imbalance[0]).collect::<Vec<_>>(), [20.0 / 13.0, 1.0]);
    assert_eq!((once.imbalance[0], none.imbalance[0]), (23.0 / 16.0, 1.0));
    assert_eq!(
        once.windows.iter().map(|window| (window.step, window.num_steps)).collect::<Vec<_>>(),
        [(2, 2), (4, 1)]
    );
    assert_eq!(once.windows.iter().map(|window| window.is_new).collect::<Vec<_>>(), [true, false]);
    let moves = Moves { other_node: 2, other_node_bytes: 20, ..Moves::default() };
    assert_eq!((once.moves, once.windows[1].moves), (moves, Moves::default()));
    assert_eq!((none.moves, once.gpu_loads.as_slice()), (Moves::default(), &[3.0, 3.0][..]));
    expect_test::expect![[r#"
        policy  imbalance   worst  bound   away  replans  moves  same node  other node
        none       1.0000  1.0000      -  0.0 %        0      0        0 B         0 B
        once       1.4375  1.4375      -  0.0 %        1      2        0 B        20 B
        imbalance: heaviest GPU / mean in the steps after each plan, mean over layers; worst: of one layer
        moves: from GPU to GPU
    "#]]
    .assert_eq(&replay.to_string());
}

#[test]
fn imbalance_is_of_sums_over_steps() {
    // Each step burdens the other GPU: even in sum, not in any step.
    let loads = [[1.0f32; 4], [3.0, 3.0, 1.0, 1.0], [1.0, 1.0, 5.0, 5.0]];
    let options = ReplayOptions::new(1, 9);
    let replay = run(&Goal::new(1, 4), &loads.concat(), &options, &mut [Policy::none()]);
    assert_eq!(replay.runs[0].imbalance, [(6.0 + 10.0) / (4.0 + 6.0)]);
    assert_eq!(replay.runs[0].gpu_loads, [8.0, 12.0]);
}

#[test]
fn shares_and_groups_are_judged_too() {
    // Experts 0 and 1 are a group, and 2 and 3; expert 1 is on both nodes.
    let goal = Goal { num_groups: 2, groups: GroupRule::Priced { price: 1.0 }, ..Goal::new(1, 3) };
    let loads = [[1.0f32, 1.0, 1.0], [4.0, 4.0, 2.0]].concat();
    let share = |share: f64| {
        let slots = [0, 1, 1, 2];
        let shares = Some(vec![1.0, 1.0 - share, share, 1.0]);
        Policy::new("shares", move |_, _| {
            Ok(Some(Placed { slot_to_expert: slots.to_vec(), shares: shares.clone() }))
        })
    };
    let options = ReplayOptions::new(1, 1);
    let replay = run(&goal, &loads, &options, &mut [share(0.0), share(0.75), share(0.25)]);
    let found: Vec<_> = replay.runs.iter().map(|run| (run.imbalance[0], run.windows[0].away)).collect();
    assert_eq!(found, [(1.6, 0.0), (1.0, 0.3), (1.4, 0.1)]);
}

#[test]
fn bounds_stand_beside_the_imbalance() {
    let loads = [[1.0f32, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0], [6.0, 0.0, 1.0, 1.0]].concat();
    // One slot for each expert: the heaviest is what no placement beats.
    let options = ReplayOptions { with_bounds: true, ..ReplayOptions::new(1, 1) };
    let replay = run(&Goal::new(1, 4), &loads, &options, &mut [Policy::none()]);
    let run = &replay.runs[0];
    let of = |i: usize| (run.windows[i].imbalance[0], run.windows[i].lower_bound[0]);
    assert_eq!((of(0), of(1).0), ((2.0, 1.0), 1.5));
    let is_near = |bound: f64, want: f64| bound <= want && bound > want - 1e-12;
    assert!(is_near(of(1).1, 1.5) && is_near(run.lower_bound[0], 8.0 / 6.0), "{run:?}");
    assert_eq!(run.imbalance[0], 10.0 / 6.0);
}

#[test]
fn a_placement_that_loses_tokens_is_refused() {
    let loads = [1.0; 3 * 2 * 4];
    let goal = Goal::new(2, 4);
    let error = |slots: Vec<u32>, shares: Option<Vec<f64>>| {
        let policy = Policy::new("theirs", |_, _| {
            Ok(Some(Placed { slot_to_expert: slots.clone(), shares: shares.clone() }))
        });
        replay(&cluster(), &goal, &loads, &ReplayOptions::new(2, 1), &mut [policy])
            .err()
            .map(|e| e.to_string())
    };
    for (error, want) in [
        (error([0, 1, 2, 3, 3, 2, 1, 0].to_vec(), None), None),
        (error([0, 1, 2, 3, 3, 2, 1, EMPTY].to_vec(), None), Some("layer 1: expert 0 is on no live GPU")),
        (error([0, 1, 2, 3].to_vec(), None), Some("the length of slot_to_expert is 4, must be 8")),
        (
            error([0, 1, 2, 3, 0, 1, 2, 3].to_vec(), Some([0.5; 8].to_vec())),
            Some("layer 0: the shares of expert 0 sum to 0.5, must be 1"),
        ),
    ] {
        let want = want.map(|want| format!("replay: the placement of `theirs` at step 2: {want}"));
        assert_eq!(error, want);
    }
    let options = ReplayOptions { initial: Some(&[0; 8]), ..ReplayOptions::new(2, 1) };
    let error = replay(&cluster(), &goal, &loads, &options, &mut []).unwrap_err().to_string();
    assert_eq!(error, "replay: the initial placement: layer 0: expert 1 is on no live GPU");
}

#[test]
fn policies_that_do_not_know_a_rule_can_be_compared() {
    let goal = Goal { min_gpus: 2, ..Goal::new(1, 2) };
    let policy = Policy::new("careless", |_, _| Ok(placed(&[0, 0, 1, 1])));
    let loads = [1.0f32, 3.0].repeat(2);
    let replay = run(&goal, &loads, &ReplayOptions::new(1, 1), &mut [Policy::none(), policy]);
    assert_eq!((replay.runs[0].imbalance[0], replay.runs[1].imbalance[0]), (1.0, 1.5));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let goal = Goal::new(1, 4);
    let good = ReplayOptions::new(2, 1);
    let error = |goal: &Goal, num_loads: usize, options: ReplayOptions<'_>| {
        let mut loads = vec![1.0; num_loads];
        loads
            .iter_mut()
            .skip(9)
            .take(1)
            .for_each(|load| *load = if num_loads == 24 { f32::NAN } else { 1.0 });
        replay(&cluster(), goal, &loads, &options, &mut []).unwrap_err().to_string()
    };
    for (error, want) in [
        (error(&goal, 4, good), "num_steps is 1, must be 2 to 65536"),
        (error(&goal, 13, good), "the length of loads is 13, must be 12"),
        (error(&goal, 24, good), "loads[step 2, layer 0, expert 1] is NaN, must be finite and not negative"),
        (error(&goal, 12, ReplayOptions { window: 0, ..good }), "window is 0, must be 1 to 2"),
        (error(&goal, 12, ReplayOptions { window: 3, ..good }), "window is 3, must be 1 to 2"),
        (
            error(&goal, 12, ReplayOptions { every: 0, ..good }),
            "every is 0, must be 1 to 18446744073709551615",
        ),
        (
            error(&goal, 12, ReplayOptions { expert_bytes: (1 << 37) + 1, ..good }),
            "expert_bytes is 137438953473, must be 0 to 137438953472",
        ),
        (error(&Goal::new(0, 4), 12, good), "num_layers is 0, must be 1 to 4096"),
    ] {
        assert_eq!(error, format!("replay: {want}"));
    }
    let mut slots = vec![0; 1 << 20];
    slots[0] = 4;
    let wide = Cluster::new(&slots, &[], &[]).unwrap();
    let error = replay(&wide, &Goal::new(64, 4), &[1.0; 768], &good, &mut []);
    assert!(error.is_ok(), "{error:?}");
    let error = replay(&wide, &Goal::new(65, 4), &[1.0; 780], &good, &mut []).unwrap_err();
    assert_eq!(error.to_string(), "replay: num_layers * num_gpus is 68157440, must be 1 to 67108864");
    let failing = Policy::new("failing", |_, _| Err(Error::new(ErrorKind::Cancelled, "enough")));
    let error = replay(&cluster(), &goal, &[1.0; 12], &good, &mut [failing]).unwrap_err();
    assert_eq!(error.to_string(), "enough");
}

/// What a policy was shown, and placed.
type Shown = Vec<(usize, Vec<f32>, Vec<f32>, Vec<u32>, Option<Placed>)>;

fn recorded(goal: &Goal, loads: &[f32], options: &ReplayOptions<'_>) -> (Shown, Replay) {
    let problem = Problem {
        num_layers: goal.num_layers,
        num_experts: 4,
        num_slots: 4,
        num_groups: 1,
        num_nodes: 1,
        num_gpus: 2,
    };
    let shown = RefCell::new(Shown::new());
    let policy = Policy::new("recorded", |past, current| {
        let plan = deepseek(&problem, &past.total(), Options::default())?;
        let next = (past.step() % 3 > 0).then(|| Placed::from(&plan));
        let held = current.slot_to_expert.clone();
        let window: Vec<f32> = (0..past.window().num_steps())
            .flat_map(|step| (0..goal.num_layers).flat_map(move |layer| past.window().of(step, layer)))
            .copied()
            .collect();
        shown.borrow_mut().push((past.step(), past.loads().to_vec(), window, held, next.clone()));
        Ok(next)
    });
    let replay = run(goal, loads, options, &mut [policy]);
    (shown.into_inner(), replay)
}

proptest! {
    /// Whatever comes, a policy is shown the same, hence places the same; and the windows cover what is judged.
    #[test]
    fn nobody_sees_the_future(
        (num_steps, window, loads, other) in (2usize..12, 1usize..3).prop_flat_map(|(num_steps, num_layers)| {
            let loads = || prop::collection::vec(0u16..100, num_steps * num_layers * 4);
            (Just(num_steps), 1..num_steps, loads(), loads())
        }),
        every in 1usize..14,
        turn in any::<prop::sample::Index>(),
    ) {
        let loads: Vec<f32> = loads.into_iter().map(f32::from).collect();
        let other: Vec<f32> = other.into_iter().map(f32::from).collect();
        let goal = Goal::new(loads.len() / num_steps / 4, 4);
        let len_of_step = goal.num_layers * 4;
        let options = ReplayOptions::new(window, every);
        let (shown, replay) = recorded(&goal, &loads, &options);

        for (step, past, recent, ..) in &shown {
            prop_assert_eq!(past, &loads[..step * len_of_step]);
            prop_assert_eq!(recent, &loads[(step - window) * len_of_step..step * len_of_step]);
        }
        let steps: Vec<usize> = shown.iter().map(|shown| shown.0).collect();
        prop_assert_eq!(steps, (window..num_steps).step_by(every).collect::<Vec<_>>());
        let judged: usize = replay.runs[0].windows.iter().map(|window| window.num_steps).sum();
        prop_assert_eq!(judged, num_steps - window);

        // Another future, from some step on.
        let turn = turn.index(num_steps);
        let turned = [&loads[..turn * len_of_step], &other[turn * len_of_step..]].concat();
        let (shown_before_turn, _) = recorded(&goal, &turned, &options);
        for (before, after) in shown.iter().zip(&shown_before_turn).filter(|(shown, _)| shown.0 <= turn) {
            prop_assert_eq!(before, after);
        }

        // Judged again, step by step, with the placements that were recorded.
        let mut held = (0..len_of_step).map(|slot| (slot % 4) as u32).collect::<Vec<_>>();
        for ((step, .., current, next), window) in shown.iter().zip(&replay.runs[0].windows) {
            prop_assert_eq!(&held, current);
            if let Some(next) = next {
                held = next.slot_to_expert.clone();
            }
            let mut sums = vec![(0.0, 0.0); goal.num_layers];
            for loads in loads.chunks(len_of_step).skip(*step).take(window.num_steps) {
                let gpu_loads = gpu_loads(&cluster(), 4, &held, None, loads).unwrap();
                for (sums, gpus) in sums.iter_mut().zip(gpu_loads.chunks(2)) {
                    sums.0 += gpus[0].max(gpus[1]);
                    sums.1 += (gpus[0] + gpus[1]) / 2.0;
                }
            }
            for (imbalance, (max, mean)) in window.imbalance.iter().zip(sums) {
                let want = if mean > 0.0 { max / mean } else { 1.0 };
                prop_assert!((imbalance - want).abs() < 1e-12);
            }
        }
    }
}

/// Whichever pairs of experts were put together is what is hot next: who adapts always loses.
#[test]
fn an_adversary_beats_who_trusts_the_past() {
    let step = |turned: bool| if turned { [9.0f32, 1.0, 9.0, 1.0] } else { [9.0, 9.0, 1.0, 1.0] };
    let loads: Vec<f32> = (0..12).flat_map(|i| step(i / 2 % 2 == 1)).collect();
    let mut policies = [Policy::none(), Policy::deepseek()];
    let options = ReplayOptions { initial: Some(&[0, 3, 1, 2]), ..ReplayOptions::new(2, 2) };
    let replay = run(&Goal::new(1, 4), &loads, &options, &mut policies);
    assert_eq!(replay.runs[0].imbalance, [1.0]);
    assert_eq!(replay.runs[1].imbalance, [1.8]);
    assert_eq!(replay.runs[1].windows.len(), 5);
}

/// Loads of 8 experts in 2 layers that drift: the hot one moves on by one expert every 2 steps.
fn drifting(num_steps: usize) -> Vec<f32> {
    let load = |step: usize, layer: usize, expert: usize| match (expert + 8 - (step / 2 + layer) % 8) % 8 {
        0 => 40.0,
        1 => 20.0,
        _ => 10.0,
    };
    let layers =
        move |step| (0..2).flat_map(move |layer| (0..8).map(move |expert| load(step, layer, expert)));
    (0..num_steps).flat_map(layers).collect()
}

/// The policies of this library are `balance` and `deepseek` on what is past, from where the experts are.
#[test]
fn built_in_policies_plan_from_the_window() {
    let cluster = Cluster::even(12, 4, 2).unwrap();
    let one = MoveBudget::Moves(1);
    for split in [Split::Equal, Split::Weighted] {
        let goal = Goal { split, ..Goal::new(2, 8) };
        let loads = drifting(8);
        let by_hand = |name: &'static str, budget: MoveBudget| {
            Policy::new(name, move |past, before| {
                let current = Some(Current { slot_to_expert: &before.slot_to_expert, budget });
                let plan = balance(past.cluster(), past.goal(), past.window(), current, Options::default())?;
                Ok(Some(Placed::from(&plan)))
            })
        };
        let mut policies = [
            Policy::refined(),
            by_hand("refined", MoveBudget::Free),
            Policy::few_moves(one),
            by_hand("few moves", one),
            Policy::none(),
            Policy::deepseek(),
        ];
        let options = ReplayOptions { expert_bytes: 1, ..ReplayOptions::new(2, 2) };
        let Replay { runs } = replay(&cluster, &goal, &loads, &options, &mut policies).unwrap();
        assert_eq!((&runs[0], &runs[2]), (&runs[1], &runs[3]));
        assert_ne!(runs[0].windows, runs[2].windows);
        for window in &runs[2].windows {
            assert!(window.moves.between_gpus() <= 2, "one in each layer: {window:?}");
        }
        assert!(runs[5].moves.between_gpus() > runs[2].moves.between_gpus());
        for threads in [0, 3] {
            let options = ReplayOptions { num_threads: threads, ..options };
            let again = replay(&cluster, &goal, &loads, &options, &mut [Policy::refined()]).unwrap();
            assert_eq!(again.runs[0], runs[0]);
        }
    }
}

#[test]
fn deepseeks_policy_needs_equal_gpus() {
    let loads = drifting(4);
    let error = |cluster: &Cluster, goal: Goal| {
        let options = ReplayOptions::new(2, 2);
        let error = replay(cluster, &goal, &loads, &options, &mut [Policy::deepseek()]);
        error.map_or_else(|error| error.to_string(), |_| String::new())
    };
    let goal = Goal::new(2, 8);
    let whole = Goal { num_groups: 4, groups: GroupRule::Whole, ..goal };
    let unlike =
        "deepseek: the cluster has GPUs or nodes that are dead or unlike others, must be of equal ones";
    for (slots, nodes, alive, goal, want) in [
        ([3, 3, 3, 3], [0, 0, 1, 1], [true; 4], goal, ""),
        ([3, 3, 3, 3], [0, 0, 1, 1], [true; 4], whole, ""),
        // Nodes count with groups only.
        ([3, 3, 3, 3], [0, 1, 1, 1], [true; 4], goal, ""),
        ([3, 3, 3, 3], [0, 1, 1, 1], [true; 4], whole, unlike),
        ([3, 3, 3, 3], [0, 0, 1, 1], [true, true, true, false], goal, unlike),
        ([2, 4, 3, 3], [0, 0, 1, 1], [true; 4], goal, unlike),
        (
            [4, 3, 3, 3],
            [0, 0, 1, 1],
            [true; 4],
            goal,
            "deepseek: num_slots is 13, must be a multiple of num_gpus = 4: 12 or 16",
        ),
    ] {
        let cluster = Cluster::new(&slots, &nodes, &alive).unwrap();
        assert_eq!(error(&cluster, goal), want, "{slots:?} {nodes:?} {alive:?}");
    }
}

#[test]
fn progress_counts_plans_and_stops() {
    let cluster = Cluster::even(12, 4, 2).unwrap();
    let (goal, loads) = (Goal::new(2, 8), drifting(8));
    let run = |most: usize| {
        let seen = RefCell::new(Vec::new());
        let calls = Cell::new(0);
        let progress = |done, total| {
            seen.borrow_mut().push((done, total));
            calls.set(calls.get() + 1);
            calls.get() < most
        };
        let options = ReplayOptions { progress: Some(&progress), ..ReplayOptions::new(2, 2) };
        let replayed = replay(&cluster, &goal, &loads, &options, &mut [Policy::none(), Policy::refined()]);
        (replayed.map(drop), seen.into_inner())
    };
    let (outcome, mut seen) = run(usize::MAX);
    assert_eq!(outcome, Ok(()));
    // A planner reports, too, while it plans.
    seen.dedup();
    assert_eq!(seen, [1, 2, 3, 4, 5, 6].map(|done| (done, 6)));
    for most in 1..=8 {
        let (outcome, seen) = run(most);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(seen.len(), most);
    }
}
