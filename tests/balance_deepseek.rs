//! `balance::deepseek` against results recorded from deepseek-ai/EPLB, and against a plain second implementation.
//!
//! tests/data/eplb_reference_small.json holds five recorded cases, some cut to one layer. The whole recording is
//! compared too, where there is one (tests/support/data.rs).

#[path = "support/data.rs"]
mod data;
#[path = "support/naive_eplb.rs"]
mod naive_eplb;

use dualpipe::balance::{deepseek, lower_bounds, ExpertPlan, Options, Problem};
use dualpipe::ErrorKind;
use naive_eplb::{rebalance_experts, NaiveLayer};
use proptest::prelude::*;

#[derive(serde::Deserialize)]
struct Recorded {
    name: String,
    num_replicas: usize,
    num_groups: usize,
    num_nodes: usize,
    num_gpus: usize,
    weight: Vec<Vec<f32>>,
    phy2log: Vec<Vec<u32>>,
    log2phy: Vec<Vec<Vec<i32>>>,
    logcnt: Vec<Vec<u32>>,
}

impl Recorded {
    fn problem(&self) -> Problem {
        Problem {
            num_layers: self.weight.len(),
            num_experts: self.weight[0].len(),
            num_slots: self.num_replicas,
            num_groups: self.num_groups,
            num_nodes: self.num_nodes,
            num_gpus: self.num_gpus,
        }
    }
}

fn recorded(text: &str) -> Vec<Recorded> {
    serde_json::from_str(text).unwrap()
}

fn assert_recorded(cases: &[Recorded]) {
    for case in cases {
        let name = &case.name;
        let plan = deepseek(&case.problem(), &case.weight.concat(), Options::default()).unwrap();
        assert_eq!(plan.slot_to_expert(), case.phy2log.concat(), "{name}");
        assert_eq!(plan.replica_counts(), case.logcnt.concat(), "{name}");
        let slots = plan.expert_to_slots().unwrap();
        assert_eq!(slots.count_max, case.log2phy[0][0].len(), "{name}");
        assert_same_slots(&slots.slots, &case.log2phy.concat());
        let nothing_to_tie = ["readme", "no redundancy", "one slot per gpu"];
        if nothing_to_tie.iter().any(|case| name.starts_with(case)) {
            assert_eq!(slots.slots, case.log2phy.concat().concat(), "{name}");
        }
        assert_bounded(&plan);
    }
}

/// The replicas of one expert are equally heavy. In which order DeepSeek's code packs them is up to torch's sort,
/// which is not stable on every machine; so an expert's slots are compared as a set. Which slots hold an expert
/// does not depend on it.
fn assert_same_slots(slots: &[i32], recorded: &[Vec<i32>]) {
    let sorted = |slots: &[i32]| {
        let mut slots = slots.to_vec();
        slots.sort_unstable();
        slots
    };
    for (slots, recorded) in slots.chunks(recorded[0].len()).zip(recorded) {
        assert_eq!(sorted(slots), sorted(recorded));
        // Padding is at the end in both.
        assert!(slots.iter().zip(recorded).all(|(a, b)| (*a < 0) == (*b < 0)));
    }
}

fn assert_bounded(plan: &ExpertPlan) {
    for layer in plan.layers() {
        assert!(layer.bound.joint >= 1.0 && layer.bound.node >= 1.0, "{layer:?}");
        assert!(layer.imbalance >= layer.lower_bound(), "{layer:?}");
        assert!(layer.gap() >= 0.0, "{layer:?}");
    }
}

#[test]
fn plans_are_those_of_deepseeks_code() {
    let cases = recorded(&data::data("eplb_reference_small.json"));
    assert_eq!(cases.len(), 5);
    assert_recorded(&cases);
}

#[test]
fn plans_are_those_of_deepseeks_code_in_the_whole_recording() {
    if let Some(text) = data::optional_data("eplb_reference.json") {
        assert_recorded(&recorded(&text));
    }
}

#[test]
fn the_plain_implementation_is_deepseeks_too() {
    for case in recorded(&data::data("eplb_reference_small.json")) {
        for (layer, loads) in case.weight.iter().enumerate() {
            let naive = naive(&case.problem(), loads);
            assert_eq!(naive.slot_to_expert, case.phy2log[layer], "{}", case.name);
            assert_eq!(naive.counts, case.logcnt[layer], "{}", case.name);
        }
    }
}

fn naive(p: &Problem, loads: &[f32]) -> NaiveLayer {
    rebalance_experts(loads, p.num_slots, p.num_groups, p.num_nodes, p.num_gpus)
}

/// Loads of few values, so that there are many ties, and of many values, some of them not whole.
fn load() -> impl Strategy<Value = f32> {
    prop_oneof![
        (0u8..4).prop_map(f32::from),
        0.0f32..1000.0,
        (0u32..=u32::MAX).prop_map(|bits| f32::from_bits(bits % 0x7a00_0000)),
        Just(-0.0),
    ]
}

/// A problem of any kind with its loads.
fn problem() -> impl Strategy<Value = (Problem, Vec<f32>)> {
    let sizes = (1usize..4, 1usize..4, 1usize..5, 1usize..6, 1usize..5, 1usize..5, 0usize..3);
    let shape = sizes.prop_map(|(layers, nodes, per_node, size, gpus, spare, apart)| {
        let num_groups = nodes * per_node;
        let num_experts = num_groups * size;
        let num_gpus = nodes * gpus;
        Problem {
            num_layers: layers,
            num_experts,
            num_slots: num_experts.next_multiple_of(num_gpus) + (spare - 1) * num_gpus,
            num_groups,
            // Now and then the nodes do not divide the groups.
            num_nodes: if apart == 0 { num_groups + 1 } else { nodes },
            num_gpus,
        }
    });
    shape.prop_flat_map(|problem| {
        let few = prop::collection::vec((0u8..3).prop_map(f32::from), size(&problem));
        let many = prop::collection::vec(load(), size(&problem));
        (Just(problem), prop_oneof![few, many])
    })
}

fn size(problem: &Problem) -> usize {
    problem.num_layers * problem.num_experts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn plans_are_those_of_the_plain_implementation((problem, loads) in problem()) {
        let plan = deepseek(&problem, &loads, Options::default()).unwrap();
        let (slots, experts) = (problem.num_slots, problem.num_experts);
        for (layer, loads) in loads.chunks(experts).enumerate() {
            let planned = NaiveLayer {
                slot_to_expert: plan.slot_to_expert()[layer * slots..][..slots].to_vec(),
                slot_to_replica: plan.slot_to_replica()[layer * slots..][..slots].to_vec(),
                counts: plan.replica_counts()[layer * experts..][..experts].to_vec(),
            };
            prop_assert_eq!(planned, naive(&problem, loads));
        }
    }

    #[test]
    fn every_replica_has_its_slot_and_no_plan_beats_its_bound((problem, loads) in problem()) {
        let plan = deepseek(&problem, &loads, Options::default()).unwrap();
        assert_bounded(&plan);
        let bounds: Vec<_> = plan.layers().iter().map(|layer| layer.bound).collect();
        prop_assert_eq!(bounds, lower_bounds(&problem, &loads).unwrap());
        let table = plan.expert_to_slots().unwrap();
        for (i, slots) in table.slots.chunks(table.count_max).enumerate() {
            let (layer, expert) = (i / problem.num_experts, i % problem.num_experts);
            let count = plan.replica_counts()[i] as usize;
            for (replica, &slot) in slots.iter().enumerate() {
                prop_assert_eq!(slot >= 0, replica < count);
                if slot >= 0 {
                    let at = layer * problem.num_slots + slot as usize;
                    prop_assert_eq!(plan.slot_to_expert()[at] as usize, expert);
                    prop_assert_eq!(plan.slot_to_replica()[at] as usize, replica);
                }
            }
        }
        let counts = plan.replica_counts().chunks(problem.num_experts);
        for counts in counts {
            prop_assert_eq!(counts.iter().sum::<u32>() as usize, problem.num_slots);
        }
    }
}

fn many_layers() -> (Problem, Vec<f32>) {
    let problem = Problem {
        num_layers: 101,
        num_experts: 64,
        num_slots: 80,
        num_groups: 8,
        num_nodes: 2,
        num_gpus: 16,
    };
    let mut random = fastrand::Rng::with_seed(1);
    let loads = (0..size(&problem)).map(|_| random.u32(0..5000) as f32);
    (problem, loads.collect())
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (problem, loads) = many_layers();
    let alone = deepseek(&problem, &loads, Options::default()).unwrap();
    for num_threads in [0, 2, 3, 64, 4096] {
        let mut never_stop = |_, _| true;
        for reported in [false, true] {
            let options = Options { num_threads, progress: reported.then_some(&mut never_stop) };
            assert_eq!(deepseek(&problem, &loads, options).unwrap(), alone);
        }
    }
}

#[test]
fn progress_is_reported_to_the_end_and_can_stop() {
    let (mut problem, loads) = many_layers();
    // Few layers between two reports.
    (problem.num_slots, problem.num_gpus) = (8192, 2);
    let caller = std::thread::current().id();
    for num_threads in [1, 2] {
        let mut reports = Vec::new();
        let mut progress = |done, total| {
            assert_eq!(std::thread::current().id(), caller);
            reports.push((done, total));
            true
        };
        let options = Options { num_threads, progress: Some(&mut progress) };
        deepseek(&problem, &loads, options).unwrap();
        assert_eq!(reports[0], (2 * num_threads, 101));
        assert_eq!(reports.last(), Some(&(101, 101)));
        assert!(reports.windows(2).all(|pair| pair[0].0 < pair[1].0));

        let mut stop_at_four = |done, _| done < 4;
        let options = Options { num_threads, progress: Some(&mut stop_at_four) };
        let error = deepseek(&problem, &loads, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.to_string(), "balance: cancelled after 4 of 101 layers");
    }
}
