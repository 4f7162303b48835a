//! How long placing takes, and how good it is: DeepSeek's policy beside a sort of the same numbers, which is the
//! least it has to do; refined, weighted and few-moves placements with their imbalance and its bound, printed before
//! the times.
//!
//! Loads are lognormal like those of DeepSeek-V3 (sigma 0.65), from a seed; or, under `recorded`, those in
//! expert_loads_gpqa_58x256.csv, where there is one (tests/support/data.rs).

#[path = "../tests/support/data.rs"]
mod data;
#[path = "../tests/support/lognormal.rs"]
mod lognormal;

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion};
use dualpipe::balance::{
    balance, deepseek, lower_bounds, moves, Cluster, Current, ExpertPlan, Goal, GroupRule, Loads, MoveBudget,
    Options, Problem, Split,
};
use lognormal::{lognormal, normal};

/// 58 layers of 256 experts in 8 groups.
fn deepseek_v3(num_slots: usize, num_nodes: usize, num_gpus: usize) -> Problem {
    Problem { num_layers: 58, num_experts: 256, num_slots, num_groups: 8, num_nodes, num_gpus }
}

const SEED: u64 = 20260217;

fn recorded() -> Option<Vec<f32>> {
    let text = data::optional_data("expert_loads_gpqa_58x256.csv")?;
    text.split([',', '\n'])
        .filter(|number| !number.trim().is_empty())
        .map(|number| number.trim().parse().ok())
        .collect()
}

fn whole_plans(c: &mut Criterion) {
    let of_v3 = lognormal(58 * 256, SEED);
    let of_csv = recorded();
    let mut group = c.benchmark_group("deepseek");
    for (name, problem) in [
        ("58x256, 288 slots, 4 nodes, 32 GPUs", deepseek_v3(288, 4, 32)),
        ("58x256, 288 slots, 32 GPUs, global", deepseek_v3(288, 3, 32)),
        ("58x256, 288 slots, 144 GPUs, global", deepseek_v3(288, 18, 144)),
        ("58x256, 320 slots, 320 GPUs, global", deepseek_v3(320, 40, 320)),
    ] {
        let mut bench = |name: String, loads: &[f32], num_threads| {
            group.bench_function(name, |b| {
                b.iter(|| {
                    let options = Options { num_threads, progress: None };
                    deepseek(&problem, black_box(loads), options).unwrap()
                })
            });
        };
        bench(name.to_string(), &of_v3, 1);
        bench(format!("{name}, all threads"), &of_v3, 0);
        if let Some(loads) = &of_csv {
            bench(format!("{name}, recorded"), loads, 1);
        }
    }
    let large = Problem {
        num_layers: 1,
        num_experts: 1 << 16,
        num_slots: 1 << 18,
        num_groups: 1,
        num_nodes: 1,
        num_gpus: 1 << 14,
    };
    let loads = lognormal(1 << 16, SEED);
    group.bench_function("1x65536, 262144 slots, 16384 GPUs", |b| {
        b.iter(|| deepseek(&large, black_box(&loads), Options::default()).unwrap())
    });
    group.finish();
}

fn parts(c: &mut Criterion) {
    let loads = lognormal(58 * 288, SEED);
    let mut keys = Vec::new();
    for per_sort in [72, 288] {
        c.bench_function(&format!("sort only, 58x288 in parts of {per_sort}"), |b| {
            b.iter(|| {
                for part in black_box(&loads).chunks(per_sort) {
                    keys.clear();
                    let key = |(i, load): (usize, &f32)| (u64::from(!load.to_bits()) << 32) | i as u64;
                    keys.extend(part.iter().enumerate().map(key));
                    keys.sort_unstable();
                    black_box(&keys);
                }
            })
        });
    }
    let loads = &loads[..58 * 256];
    for (name, problem) in [
        ("bounds only, 288 slots, 4 nodes, 32 GPUs", deepseek_v3(288, 4, 32)),
        ("bounds only, 288 slots, 2 nodes, 32 GPUs", deepseek_v3(288, 2, 32)),
        ("bounds only, 288 slots, 144 GPUs", deepseek_v3(288, 18, 144)),
    ] {
        c.bench_function(name, |b| b.iter(|| lower_bounds(&problem, black_box(loads)).unwrap()));
    }
    let plan = deepseek(&deepseek_v3(288, 4, 32), loads, Options::default()).unwrap();
    c.bench_function("expert_to_slots, 288 slots", |b| {
        b.iter(|| black_box(&plan).expert_to_slots().unwrap())
    });
}

/// Slots, GPUs, groups that stay whole, nodes.
const SIZES: [(usize, usize, usize, usize); 6] =
    [(288, 32, 1, 1), (288, 32, 8, 4), (320, 40, 1, 1), (288, 72, 1, 1), (320, 160, 1, 1), (288, 144, 1, 1)];

fn goal(num_layers: usize, num_experts: usize, num_groups: usize, split: Split) -> Goal {
    let groups = if num_groups > 1 { GroupRule::Whole } else { GroupRule::Free };
    Goal { num_groups, groups, split, ..Goal::new(num_layers, num_experts) }
}

/// Means over the layers: imbalance, lower bound.
fn quality(plan: &ExpertPlan) -> [f64; 2] {
    let mean =
        |of: &dyn Fn(usize) -> f64| (0..plan.num_layers()).map(of).sum::<f64>() / plan.num_layers() as f64;
    [mean(&|layer| plan.layers()[layer].imbalance), mean(&|layer| plan.layers()[layer].lower_bound())]
}

fn planning(c: &mut Criterion) {
    let values = recorded().unwrap_or_else(|| lognormal(58 * 256, SEED));
    let loads = Loads::new(&values, 1, 58, 256).unwrap();
    let threads = |num_threads| Options { num_threads, progress: None };
    println!("mean of 58 layers                      DeepSeek    refined      bound   weighted      bound");
    for (num_slots, num_gpus, num_groups, num_nodes) in SIZES {
        let cluster = Cluster::even(num_slots, num_gpus, num_nodes).unwrap();
        let problem =
            Problem { num_layers: 58, num_experts: 256, num_slots, num_groups, num_nodes, num_gpus };
        let [exact, _] = quality(&deepseek(&problem, &values, threads(0)).unwrap());
        let of = |split| {
            let goal = goal(58, 256, num_groups, split);
            quality(&balance(&cluster, &goal, &loads, None, threads(0)).unwrap())
        };
        let ([equal, equal_bound], [weighted, bound]) = (of(Split::Equal), of(Split::Weighted));
        let name = format!("{num_slots} slots, {num_gpus} GPUs, {num_groups} groups");
        println!("{name:<35} {exact:>11.5}{equal:>11.5}{equal_bound:>11.5}{weighted:>11.5}{bound:>11.5}");
    }
    let mut group = c.benchmark_group("planning 58x256");
    group.sample_size(10);
    for (num_slots, num_gpus, num_groups, num_nodes) in SIZES {
        let cluster = Cluster::even(num_slots, num_gpus, num_nodes).unwrap();
        for (name, split) in [("refined", Split::Equal), ("weighted", Split::Weighted)] {
            for num_threads in [1, 2] {
                let goal = goal(58, 256, num_groups, split);
                let name = format!(
                    "{name}, {num_slots} slots, {num_gpus} GPUs, {num_groups} groups, {num_threads} threads"
                );
                group.bench_function(name, |b| {
                    b.iter(|| {
                        balance(&cluster, &goal, black_box(&loads), None, threads(num_threads)).unwrap()
                    })
                });
            }
        }
    }
    group.finish();
}

/// The loads change by 2 % each; what is moved, and what comes of it.
fn few_moves(c: &mut Criterion) {
    let values = recorded().unwrap_or_else(|| lognormal(58 * 256, SEED));
    let cluster = Cluster::even(288, 32, 1).unwrap();
    let goal = Goal::new(58, 256);
    let before = Loads::new(&values, 1, 58, 256).unwrap();
    let plan = balance(&cluster, &goal, &before, None, Options::default()).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let noisy: Vec<f32> =
        values.iter().map(|load| (load * (1.0 + 0.02 * normal(&mut random) as f32)).max(0.0)).collect();
    let loads = Loads::new(&noisy, 1, 58, 256).unwrap();
    let moved = |next: &ExpertPlan| {
        let costs = moves(&cluster, 256, plan.slot_to_expert(), next.slot_to_expert()).unwrap();
        let worst = next.layers().iter().map(|layer| layer.imbalance).fold(0.0, f64::max);
        let moves = costs.iter().map(|cost| cost.moves);
        format!(
            "{} to {} moves a layer, imbalance at most {worst:.5}",
            moves.clone().min().unwrap(),
            moves.max().unwrap()
        )
    };
    let problem = Problem {
        num_layers: 58,
        num_experts: 256,
        num_slots: 288,
        num_groups: 1,
        num_nodes: 1,
        num_gpus: 32,
    };
    println!("DeepSeek's again: {}", moved(&deepseek(&problem, &noisy, Options::default()).unwrap()));
    let mut group = c.benchmark_group("few moves 58x288, 32 GPUs");
    group.sample_size(10);
    for (name, budget) in [("10 moves", MoveBudget::Moves(10)), ("free", MoveBudget::Free)] {
        let current = Some(Current { slot_to_expert: plan.slot_to_expert(), budget });
        let again = || balance(&cluster, &goal, black_box(&loads), current, Options::default()).unwrap();
        println!("{name}: {}", moved(&again()));
        group.bench_function(name, |b| b.iter(again));
    }
    group.finish();
}

/// How the time grows: one thread, a refined placement of one layer, and of many.
fn growth(c: &mut Criterion) {
    let mut group = c.benchmark_group("growth of refined");
    group.sample_size(10);
    for (num_layers, num_experts, num_slots, num_gpus) in [
        (1, 64, 72, 8),
        (1, 256, 288, 32),
        (1, 512, 576, 64),
        (1, 1024, 1152, 128),
        (1, 2048, 4096, 512),
        (1, 2048, 8192, 1024),
        (1, 2048, 8192, 4096),
        (16, 256, 288, 32),
        (64, 256, 288, 32),
        (256, 256, 288, 32),
    ] {
        let values = lognormal(num_layers * num_experts, SEED);
        let loads = Loads::new(&values, 1, num_layers, num_experts).unwrap();
        let cluster = Cluster::even(num_slots, num_gpus, 1).unwrap();
        let goal = Goal::new(num_layers, num_experts);
        let name = format!("{num_layers}x{num_experts}, {num_slots} slots, {num_gpus} GPUs");
        group.bench_function(name, |b| {
            b.iter(|| balance(&cluster, &goal, black_box(&loads), None, Options::default()).unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, whole_plans, parts, planning, few_moves, growth);
criterion_main!(benches);
