//! The pictures of the documentation are drawn by the library: `UPDATE_EXPECT=1 cargo test --test pictures` draws anew.

#[path = "support/lognormal.rs"]
#[allow(dead_code)] // only the loads are needed
mod lognormal;

use dualpipe::balance::heat_map::{heat_map, Panel};
use dualpipe::balance::{balance, deepseek, gpu_loads, Cluster, Goal, Loads, Options, Problem};
use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, dualpipe_v, Work};
use dualpipe::search::{self, memory_time_front, Caps, Effort};
use dualpipe::sim::{simulate, MemoryCap};
use expect_test::expect_file;
use lognormal::lognormal;
use std::ops::ControlFlow;

/// A forward and an input backward take a millisecond, a weight backward too, and a pair two and a half.
fn costs() -> Costs {
    let stage = StageCosts {
        forward_ns: 1_000_000,
        input_ns: 1_000_000,
        weight_ns: 1_000_000,
        overlapped_ns: 2_500_000,
        ..StageCosts::default()
    };
    Costs::new(vec![stage], Link::default()).unwrap()
}

#[test]
fn the_pictures_of_the_documentation_are_current() {
    let dualpipe = simulate(&dualpipe(8, 20, Work::Training).unwrap(), &costs()).unwrap();
    expect_file!["../docs/dualpipe-8x20.svg"].assert_eq(&dualpipe.timeline.to_svg());
    let folded = simulate(&dualpipe_v(4, 10, Work::Training).unwrap(), &costs()).unwrap();
    expect_file!["../docs/dualpipe_v-4x10.svg"].assert_eq(&folded.timeline.to_svg());
}

/// DualPipe's placement on 8 ranks, 20 micro-batches: few changes at each cap, as many on every machine.
#[test]
fn the_picture_of_memory_and_time_is_current() {
    let problem = search::Problem {
        placement: Placement::bidirectional(8).unwrap(),
        num_microbatches: 20,
        costs: costs(),
        cap: MemoryCap::Unlimited,
    };
    let effort = Effort { iterations: 5_000, time: None, seed: 0 };
    let caps = Caps::Activations((3..=10).collect());
    let front = memory_time_front(&problem, &caps, &effort, &mut |_, _| ControlFlow::Continue(())).unwrap();
    expect_file!["../docs/memory-time.svg"].assert_eq(&front.to_svg());
}

/// Twelve layers like DeepSeek-V3's, from a seed: experts in order, as DeepSeek's policy places them, and refined.
#[test]
fn the_picture_of_expert_loads_is_current() {
    let (num_layers, num_experts, num_slots, num_gpus) = (12, 256, 288, 72);
    let loads = lognormal(num_layers * num_experts, 3);
    let cluster = Cluster::even(num_slots, num_gpus, 1).unwrap();
    let of_gpus = |slots: &[u32]| gpu_loads(&cluster, num_experts, slots, None, &loads).unwrap();
    let in_order: Vec<u32> =
        (0..num_layers * num_slots).map(|slot| (slot % num_slots % num_experts) as u32).collect();
    let problem = Problem { num_layers, num_experts, num_slots, num_groups: 1, num_nodes: 1, num_gpus };
    let exact = deepseek(&problem, &loads, Options::default()).unwrap();
    let goal = Goal::new(num_layers, num_experts);
    let of_step = Loads::new(&loads, 1, num_layers, num_experts).unwrap();
    let refined = balance(&cluster, &goal, &of_step, None, Options::default()).unwrap();
    let panels = [
        ("experts in order", of_gpus(&in_order)),
        ("DeepSeek's policy", of_gpus(exact.slot_to_expert())),
        ("refined", of_gpus(refined.slot_to_expert())),
    ];
    let panels = panels.each_ref().map(|(title, loads)| Panel { title, cluster: &cluster, loads });
    expect_file!["../docs/expert-loads.svg"].assert_eq(&heat_map(&panels).unwrap());
}
