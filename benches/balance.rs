//! How long DeepSeek's placement takes, beside a sort of the same numbers, which is the least it has to do.
//!
//! Loads are lognormal like those of DeepSeek-V3 (sigma 0.65), from a seed; or, under `recorded`, those in
//! expert_loads_gpqa_58x256.csv, where there is one (tests/support/data.rs).

#[path = "../tests/support/data.rs"]
mod data;

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion};
use dualpipe::balance::{deepseek, lower_bounds, Options, Problem};

/// 58 layers of 256 experts in 8 groups.
fn deepseek_v3(num_slots: usize, num_nodes: usize, num_gpus: usize) -> Problem {
    Problem { num_layers: 58, num_experts: 256, num_slots, num_groups: 8, num_nodes, num_gpus }
}

fn lognormal(num_loads: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(20260217);
    let load = |_| {
        let (radius, angle) = (1.0 - random.f64(), random.f64());
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        (3000.0 * (0.65 * normal).exp()).round() as f32
    };
    (0..num_loads).map(load).collect()
}

fn recorded() -> Option<Vec<f32>> {
    let text = data::optional_data("expert_loads_gpqa_58x256.csv")?;
    text.split([',', '\n'])
        .filter(|number| !number.trim().is_empty())
        .map(|number| number.trim().parse().ok())
        .collect()
}

fn whole_plans(c: &mut Criterion) {
    let of_v3 = lognormal(58 * 256);
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
    let loads = lognormal(1 << 16);
    group.bench_function("1x65536, 262144 slots, 16384 GPUs", |b| {
        b.iter(|| deepseek(&large, black_box(&loads), Options::default()).unwrap())
    });
    group.finish();
}

fn parts(c: &mut Criterion) {
    let loads = lognormal(58 * 288);
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

criterion_group!(benches, whole_plans, parts);
criterion_main!(benches);
