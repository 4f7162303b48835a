//! The trigger: worked examples, and simulations of popularity that stays, changes, and comes and goes.

use dualpipe::balance::trigger::{
    plan_and_judge, should_rebalance, Decision, MovePrice, Planned, Proposal, Reason, Stakes,
};
use dualpipe::balance::{Cluster, EMPTY};

const FREE: Stakes =
    Stakes { expert_seconds: 1.0, horizon: 1, price: MovePrice::Seconds(0.0), standard_errors: 3.0 };

/// One layer of four experts with loads 5, 3, 1, 3 in each of `steps` steps, on two GPUs of two slots.
struct Example {
    cluster: Cluster,
    counts: Vec<u32>,
}

impl Example {
    fn new(steps: usize) -> Example {
        Example { cluster: Cluster::even(4, 2, 1).unwrap(), counts: [5, 3, 1, 3].repeat(steps) }
    }

    /// From loads 8 and 4 to 6 and 6.
    fn proposal(&self) -> Proposal<'_> {
        Proposal {
            cluster: &self.cluster,
            num_layers: 1,
            num_experts: 4,
            counts: &self.counts,
            plan_saw_counts: false,
            current: &[0, 1, 2, 3],
            current_shares: None,
            planned: &[0, 2, 1, 3],
            planned_shares: None,
            stakes: FREE,
        }
    }
}

#[test]
fn the_gain_is_a_share_of_the_steps_time_over_the_horizon() {
    let example = Example::new(8);
    let mut proposal = example.proposal();
    proposal.stakes = Stakes {
        expert_seconds: 0.8,
        horizon: 10,
        price: MovePrice::Bytes { per_expert: 3e9, bandwidth: 2e9 },
        standard_errors: 3.0,
    };
    let decision = should_rebalance(&proposal).unwrap();
    let want = Decision {
        rebalance: true,
        reason: Reason::Worthwhile,
        current_imbalance: 8.0 / 6.0,
        planned_imbalance: 1.0,
        noise_floor: 1.0,
        gain_seconds: 0.8 * 2.0 / 8.0 * 10.0,
        gain_error_seconds: 0.0,
        // Each GPU receives one expert.
        cost_seconds: 1.5,
        moved_replicas: 2,
    };
    assert_eq!(decision, want);
}

#[test]
fn each_reason_not_to_move_has_its_name() {
    let (eight, three) = (Example::new(8), Example::new(3));
    let of = |proposal: Proposal| {
        let decision = should_rebalance(&proposal).unwrap();
        assert_eq!(decision.rebalance, decision.reason == Reason::Worthwhile);
        decision.reason
    };
    let base = eight.proposal();
    assert_eq!(of(base), Reason::Worthwhile);
    assert_eq!(of(Proposal { planned: base.current, ..base }), Reason::SamePlacement);
    assert_eq!(of(Proposal { current: base.planned, planned: base.current, ..base }), Reason::NoGain);
    assert_eq!(of(three.proposal()), Reason::TooFewSteps);
    assert_eq!(of(Proposal { counts: &[], ..base }), Reason::TooFewSteps);
    assert_eq!(of(Proposal { counts: &[0; 32], ..base }), Reason::NoGain);
    assert_eq!(of(Proposal { stakes: Stakes { horizon: 0, ..FREE }, ..base }), Reason::NoGain);
    for (price, reason) in
        [(0.249, Reason::Worthwhile), (0.25, Reason::BelowCost), (1e300, Reason::BelowCost)]
    {
        let stakes = Stakes { price: MovePrice::Seconds(price), ..FREE };
        assert_eq!(of(Proposal { stakes, ..base }), reason, "{price}");
    }
    // The heaviest GPU has 8, 4, 4, 4 now and would have 4, 8, 8, 8. The way back gains, but not for certain.
    let counts: Vec<u32> = [[4, 4, 0, 0], [4, 0, 4, 0], [4, 0, 4, 0], [4, 0, 4, 0]].concat();
    let there = Proposal { counts: &counts, ..base };
    let back = Proposal { current: there.planned, planned: there.current, ..there };
    assert_eq!(of(there), Reason::NoGain);
    let decision = should_rebalance(&back).unwrap();
    assert_eq!(decision.reason, Reason::WithinNoise);
    // Gains of -4, 4, 4, 4: their mean is 2, their variance 16, that of the mean 4, times 3 for Student's t; and 7 is
    // what the step takes now.
    assert!((decision.gain_seconds - 2.0 / 7.0).abs() < 1e-15);
    assert!((decision.gain_error_seconds - 12f64.sqrt() / 7.0).abs() < 1e-15);
    assert_eq!(decision.planned_imbalance, 5.0 / 4.0);
    // GPUs have 20 and 12 in all steps, so that the mean step's heaviest has 5, as the heaviest have in the mean.
    assert_eq!(decision.noise_floor, 1.0);
    // The other placement evens out the sums, 16 and 16, but not the steps.
    assert_eq!(should_rebalance(&there).unwrap().noise_floor, 1.0 + (7.0 - 7.0) / 4.0);
    assert_eq!(of(Proposal { stakes: Stakes { standard_errors: 0.5, ..FREE }, ..back }), Reason::Worthwhile);
}

#[test]
fn what_a_gpu_has_already_is_not_moved() {
    let cluster = Cluster::new(&[3, 3, 2], &[], &[true, true, false]).unwrap();
    let (current, planned) = ([0, 0, 1, 2, 3, 3, EMPTY, EMPTY], [2, 2, 0, 3, 1, 3, EMPTY, EMPTY]);
    let stakes = Stakes { price: MovePrice::Bytes { per_expert: 10.0, bandwidth: 1.0 }, ..FREE };
    let example = Example::new(4);
    let two_layers = |layer: &[u32]| layer.repeat(2);
    let (current, planned) = (two_layers(&current), two_layers(&planned));
    let proposal = Proposal {
        cluster: &cluster,
        num_layers: 2,
        counts: &example.counts,
        current: &current,
        planned: &planned,
        stakes,
        ..example.proposal()
    };
    let decision = should_rebalance(&proposal).unwrap();
    // In each layer GPU 0 receives expert 2, once for two replicas, and GPU 1 expert 1.
    assert_eq!((decision.moved_replicas, decision.cost_seconds), (4, 20.0));
}

#[test]
fn shares_are_what_the_loads_are_judged_by() {
    // Expert 0 has a replica on each GPU beside loads of 6 and 4, which shares of 3/8 and 5/8 of its 8 even out.
    let example = Example::new(4);
    let slots = [0, 1, 0, 2];
    let proposal = Proposal {
        num_experts: 3,
        counts: &[8, 6, 4].repeat(4),
        current: &slots,
        planned: &slots,
        planned_shares: Some(&[0.375, 1.0, 0.625, 1.0]),
        ..example.proposal()
    };
    let decision = should_rebalance(&proposal).unwrap();
    assert_eq!((decision.current_imbalance, decision.planned_imbalance), (10.0 / 9.0, 1.0));
    assert_eq!((decision.reason, decision.moved_replicas), (Reason::Worthwhile, 0));
}

#[test]
fn a_plan_is_judged_by_what_it_has_not_seen() {
    let example = Example::new(9);
    let mut seen = Vec::new();
    let plan = |loads: &[f32]| {
        seen.push(loads.to_vec());
        Ok(Planned { slot_to_expert: vec![0, 2, 1, 3], shares: None })
    };
    let (decision, planned) = plan_and_judge(&example.proposal(), plan).unwrap();
    assert!(decision.rebalance);
    assert_eq!(planned.unwrap().slot_to_expert, [0, 2, 1, 3]);
    let times = |steps: f32| [5.0, 3.0, 1.0, 3.0].map(|load| load * steps).to_vec();
    assert_eq!(seen, [times(4.0), times(9.0)]);

    // The second plan is the one whose moves must pay: two for each GPU, and not one as in the first.
    for (bandwidth, reason) in [(10.0, Reason::Worthwhile), (7.0, Reason::BelowCost)] {
        let mut calls = 0;
        let plan = |_: &[f32]| {
            calls += 1;
            let slots = if calls == 1 { [0, 2, 1, 3] } else { [2, 3, 0, 1] };
            Ok(Planned { slot_to_expert: slots.to_vec(), shares: Some(vec![1.0; 4]) })
        };
        let price = MovePrice::Bytes { per_expert: 1.0, bandwidth };
        let proposal = Proposal { stakes: Stakes { price, ..FREE }, ..example.proposal() };
        let (decision, planned) = plan_and_judge(&proposal, plan).unwrap();
        assert_eq!((decision.reason, planned.is_some()), (reason, decision.rebalance));
        assert_eq!((decision.cost_seconds, decision.moved_replicas), (2.0 / bandwidth, 4));
    }

    let proposal = example.proposal();
    let too_long = |_: &[f32]| Ok(Planned { slot_to_expert: vec![0; 5], shares: None });
    let error = plan_and_judge(&proposal, too_long).unwrap_err().to_string();
    assert_eq!(error, "should_rebalance: the length of planned is 5, must be 4");
    let failure = should_rebalance(&Proposal { num_layers: 0, ..proposal }).unwrap_err();
    assert_eq!(plan_and_judge(&proposal, |_| Err(failure.clone())).unwrap_err(), failure);
}

#[test]
fn what_cannot_be_is_refused() {
    let example = Example::new(4);
    let base = example.proposal();
    let stakes = |change: fn(&mut Stakes)| {
        let mut stakes = FREE;
        change(&mut stakes);
        Proposal { stakes, ..base }
    };
    for (proposal, want) in [
        (Proposal { num_layers: 0, ..base }, "num_layers is 0, must be 1 to 4096"),
        (Proposal { num_experts: 65537, ..base }, "num_experts is 65537, must be 1 to 65536"),
        (
            Proposal { num_experts: 5, ..base },
            "the number of counts is 16, must be a multiple of num_layers * num_experts = 5",
        ),
        (Proposal { current: &[0], ..base }, "the length of current is 1, must be 4"),
        (Proposal { planned: &[0; 8], ..base }, "the length of planned is 8, must be 4"),
        (Proposal { planned_shares: Some(&[]), ..base }, "the length of planned_shares is 0, must be 4"),
        (
            Proposal { planned: &[0, 1, 2, 2], ..base },
            "the number of live slots of layer 0's expert 3 is 0, must be at least 1: it has load",
        ),
        (
            Proposal { planned: &[0, 1, 2, 4], ..base },
            "slot_to_expert[layer 0, slot 3] is 4, must be 0 to 3 or EMPTY",
        ),
        (
            Proposal { current_shares: Some(&[0.5; 4]), ..base },
            "the sum of the live shares of layer 0's expert 0 is 0.5, must be 1",
        ),
        (stakes(|s| s.expert_seconds = f64::NAN), "expert_seconds is NaN, must be 0 to 1000000000"),
        (stakes(|s| s.horizon = u64::MAX), "horizon is 18446744073709551615, must be 0 to 9007199254740992"),
        (stakes(|s| s.standard_errors = -1.0), "standard_errors is -1, must be 0 to 100"),
        (
            stakes(|s| s.price = MovePrice::Bytes { per_expert: 1.0, bandwidth: 0.0 }),
            "bandwidth is 0, must be 1 to 1000000000000000000",
        ),
    ] {
        assert_eq!(should_rebalance(&proposal).unwrap_err().to_string(), format!("should_rebalance: {want}"));
    }
    let negative = stakes(|s| s.price = MovePrice::Seconds(-1.0));
    assert!(should_rebalance(&negative)
        .unwrap_err()
        .to_string()
        .contains("the price in seconds is -1, must be 0 to"));
    let endless = stakes(|s| s.price = MovePrice::Seconds(f64::INFINITY));
    assert!(should_rebalance(&endless).is_err());
}

const GPUS: usize = 8;
const SLOTS: usize = 40;
const EXPERTS: usize = 32;
/// Per step: 128 for each GPU, as in decoding; what sampling adds to the heaviest is some 8 % of the mean here.
const TOKENS: usize = 1024;
const STEPS: usize = 32;

/// A window of steps whose tokens choose experts at random, by popularity.
fn window(popularity: &[f64], rng: &mut fastrand::Rng) -> Vec<u32> {
    let sum: f64 = popularity.iter().sum();
    let mut expert_of = Vec::new();
    let mut up_to = 0.0;
    for (expert, share) in popularity.iter().enumerate() {
        up_to += share / sum * 16384.0;
        expert_of.resize(up_to.round() as usize, expert);
    }
    let mut counts = vec![0; STEPS * EXPERTS];
    for step in counts.chunks_exact_mut(EXPERTS) {
        for _ in 0..TOKENS {
            step[expert_of[rng.usize(..expert_of.len())]] += 1;
        }
    }
    counts
}

/// Log-normal, as measured popularity is.
fn popularity(rng: &mut fastrand::Rng) -> Vec<f64> {
    changed(&[1.0; EXPERTS], 0.65, rng)
}

fn changed(popularity: &[f64], by: f64, rng: &mut fastrand::Rng) -> Vec<f64> {
    let mut normal = || (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    popularity.iter().map(|share| share * (by * normal()).exp()).collect()
}

/// Replicas to the experts with the most load for each, then the heaviest to the lightest GPU.
fn plan(loads: &[f32]) -> Vec<u32> {
    let mut replicas = [1.0f32; EXPERTS];
    for _ in EXPERTS..SLOTS {
        let load = |expert: usize| loads[expert] / replicas[expert];
        let heaviest =
            (0..EXPERTS).fold(0, |best, expert| if load(expert) > load(best) { expert } else { best });
        replicas[heaviest] += 1.0;
    }
    let one_each = (0..EXPERTS).flat_map(|expert| vec![expert; replicas[expert] as usize]);
    let mut by_load: Vec<(f32, usize)> =
        one_each.map(|expert| (loads[expert] / replicas[expert], expert)).collect();
    by_load.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut gpus = vec![(0.0f32, Vec::new()); GPUS];
    for (load, expert) in by_load {
        let free = gpus.iter_mut().filter(|(_, held)| held.len() < SLOTS / GPUS);
        let lightest = free.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        lightest.0 += load;
        lightest.1.push(expert as u32);
    }
    gpus.into_iter().flat_map(|(_, held)| held).collect()
}

fn sum(counts: &[u32]) -> Vec<f32> {
    let sum = |expert| counts.iter().skip(expert).step_by(EXPERTS).sum::<u32>() as f32;
    (0..EXPERTS).map(sum).collect()
}

/// The decisions of one trial: the placement was planned of `old`, the window is `new`.
struct Trial {
    held_out: Decision,
    discounted: Decision,
    /// As if the plan had not seen the window.
    naive: Decision,
    /// What the plan of the window is worth on `future`.
    truth: Decision,
}

fn trial(old: &[u32], new: &[u32], future: &[u32]) -> Trial {
    let cluster = Cluster::even(SLOTS, GPUS, 1).unwrap();
    let (current, planned) = (plan(&sum(old)), plan(&sum(new)));
    let proposal = Proposal {
        cluster: &cluster,
        num_layers: 1,
        num_experts: EXPERTS,
        counts: new,
        plan_saw_counts: false,
        current: &current,
        current_shares: None,
        planned: &planned,
        planned_shares: None,
        stakes: FREE,
    };
    let planner = |loads: &[f32]| Ok(Planned { slot_to_expert: plan(loads), shares: None });
    Trial {
        held_out: plan_and_judge(&proposal, planner).unwrap().0,
        discounted: should_rebalance(&Proposal { plan_saw_counts: true, ..proposal }).unwrap(),
        naive: should_rebalance(&proposal).unwrap(),
        truth: should_rebalance(&Proposal { counts: future, ..proposal }).unwrap(),
    }
}

/// Trials with popularity that changes by a factor of e to the power of `change` times a normal number.
fn trials(change: f64, num: usize) -> Vec<Trial> {
    let mut rng = fastrand::Rng::with_seed(20);
    let mut trial = || {
        let before = popularity(&mut rng);
        let after = changed(&before, change, &mut rng);
        trial(&window(&before, &mut rng), &window(&after, &mut rng), &window(&after, &mut rng))
    };
    (0..num).map(|_| trial()).collect()
}

fn fired(trials: &[Trial], decision: fn(&Trial) -> &Decision) -> usize {
    trials.iter().filter(|trial| decision(trial).rebalance).count()
}

fn mean_gain(trials: &[Trial], decision: fn(&Trial) -> &Decision) -> f64 {
    trials.iter().map(|trial| decision(trial).gain_seconds).sum::<f64>() / trials.len() as f64
}

#[test]
fn noise_is_not_chased_even_if_moving_is_free() {
    let trials = trials(0.0, 300);
    // The fresh plan looks better than the one that is as good ...
    let looks_better = trials.iter().filter(|trial| trial.naive.gain_seconds > 0.0).count();
    assert!(looks_better > 150, "{looks_better}");
    // ... and is not taken.
    assert!(fired(&trials, |trial| &trial.held_out) <= 3);
    assert!(fired(&trials, |trial| &trial.discounted) <= 3);
    // Nor is there anything to take: sampling alone makes most of what is uneven.
    let floor = trials.iter().map(|trial| trial.truth.noise_floor).sum::<f64>() / 300.0;
    assert!((1.07..1.09).contains(&floor), "{floor}");
}

#[test]
fn a_change_of_popularity_is_seen() {
    let trials = trials(0.5, 100);
    assert!(fired(&trials, |trial| &trial.held_out) >= 95);
    assert!(fired(&trials, |trial| &trial.discounted) >= 98);
}

#[test]
fn a_plan_that_saw_the_steps_is_discounted_by_what_it_fitted() {
    for change in [0.0, 0.2] {
        let trials = trials(change, 300);
        let naive = mean_gain(&trials, |trial| &trial.naive);
        let discounted = mean_gain(&trials, |trial| &trial.discounted);
        let truth = mean_gain(&trials, |trial| &trial.truth);
        // By some 0.3 % of a step's time, of which the discount leaves next to nothing.
        assert!(naive - truth > 0.0015, "{change}: {naive} {truth}");
        assert!((discounted - truth).abs() < 0.001, "{change}: {discounted} {truth}");
    }
}

#[test]
fn a_change_that_has_gone_is_not_chased() {
    let mut rng = fastrand::Rng::with_seed(21);
    let (mut looks_better, mut is_known_worse) = (0, 0);
    for _ in 0..50 {
        let usual = popularity(&mut rng);
        let passing = changed(&usual, 0.5, &mut rng);
        let old = window(&usual, &mut rng);
        let half = STEPS / 2 * EXPERTS;
        let gone = [&window(&passing, &mut rng)[half..], &window(&usual, &mut rng)[half..]].concat();
        let trial = trial(&old, &gone, &gone);
        assert!(!trial.held_out.rebalance);
        looks_better += usize::from(trial.naive.gain_seconds > 0.0);
        is_known_worse += usize::from(trial.held_out.reason == Reason::NoGain);
    }
    assert!(looks_better > 40 && is_known_worse > 45, "{looks_better} {is_known_worse}");
}
