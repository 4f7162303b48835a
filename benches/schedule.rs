//! Generating, checking, lowering and simulating a schedule.

use criterion::{criterion_group, criterion_main, Criterion};
use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe_v, Schedule, Work};
use dualpipe::sim::simulate;

fn generate() -> Schedule {
    dualpipe_v(16, 512, Work::Training).expect("16 ranks and 512 micro-batches are in range")
}

fn schedules(c: &mut Criterion) {
    let schedule = generate();
    let ops: usize = schedule.orders().iter().map(Vec::len).sum();
    let mut group = c.benchmark_group(format!("DualPipeV, 16 ranks, 512 micro-batches, {ops} ops"));
    group.bench_function("generate", |b| b.iter(generate));
    group.bench_function("check", |b| b.iter(|| schedule.check()));
    group.bench_function("generate + check + lower", |b| b.iter(|| lower(&generate())));
    let stage = StageCosts {
        forward_ns: 1_000_000,
        input_ns: 1_270_000,
        weight_ns: 380_000,
        overlapped_ns: 1_660_000,
        ..StageCosts::default()
    };
    let costs = Costs::new(vec![stage], Link::default()).expect("costs in range");
    group.bench_function("simulate", |b| b.iter(|| simulate(&schedule, &costs)));
    group.finish();
}

criterion_group!(benches, schedules);
criterion_main!(benches);
