//! Generating, checking, lowering and simulating a schedule, and how that grows with ranks and micro-batches.
//!
//! `cargo bench --bench schedule -- --growth` prints the exponents instead: times are fitted to a·Pˣ at one number of
//! micro-batches and to a·nˣ at one number of ranks, least squares on logarithms, the fastest of some rounds each.

use std::time::{Duration, Instant};

use criterion::{criterion_group, BenchmarkId, Criterion, SamplingMode, Throughput};
use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe_v, interleaved_1f1b, v_half, zb_v, Schedule, Work};
use dualpipe::sim::simulate;

/// The schedules that grow: a name, and how P ranks and n micro-batches make it.
type Kind = (&'static str, fn(usize, usize) -> Schedule);
const KINDS: [Kind; 4] = [
    ("dualpipe_v", |p, n| dualpipe_v(p, n, Work::Training).expect("sizes in range")),
    ("zb_v", |p, n| zb_v(p, n, Work::Training).expect("sizes in range")),
    ("interleaved_1f1b", |p, n| interleaved_1f1b(p, 2, n, Work::Training).expect("sizes in range")),
    ("v_half", |p, n| v_half(p, n, Work::Training).expect("sizes in range")),
];

const RANKS: [usize; 5] = [4, 8, 16, 32, 64];
const MICROBATCHES: [usize; 5] = [64, 128, 256, 512, 1024];
/// While the other one grows.
const RANKS_FIXED: usize = 16;
const MICROBATCHES_FIXED: usize = 512;

/// What can be done with a schedule of a kind, each alone.
#[derive(Clone, Copy)]
enum Step {
    Generate,
    Check,
    Lower,
    Simulate,
}

impl Step {
    const ALL: [Step; 4] = [Step::Generate, Step::Check, Step::Lower, Step::Simulate];

    fn name(self) -> &'static str {
        match self {
            Step::Generate => "generate",
            Step::Check => "check",
            Step::Lower => "lower",
            Step::Simulate => "simulate",
        }
    }
}

/// A schedule and all that its steps need.
struct Case {
    generate: fn(usize, usize) -> Schedule,
    num_ranks: usize,
    num_microbatches: usize,
    schedule: Schedule,
    costs: Costs,
}

impl Case {
    fn new((_, generate): Kind, num_ranks: usize, num_microbatches: usize) -> Case {
        let schedule = generate(num_ranks, num_microbatches);
        Case { generate, num_ranks, num_microbatches, schedule, costs: costs() }
    }

    fn num_ops(&self) -> usize {
        self.schedule.orders().iter().map(Vec::len).sum()
    }

    /// Does a step, and drops what comes of it.
    fn run(&self, step: Step) {
        match step {
            Step::Generate => drop((self.generate)(self.num_ranks, self.num_microbatches)),
            Step::Check => drop(self.schedule.check().expect("a published schedule")),
            Step::Lower => drop(lower(&self.schedule).expect("a published schedule")),
            Step::Simulate => drop(simulate(&self.schedule, &self.costs).expect("a published schedule")),
        }
    }
}

fn costs() -> Costs {
    let stage = StageCosts {
        forward_ns: 1_000_000,
        input_ns: 1_270_000,
        weight_ns: 380_000,
        overlapped_ns: 1_660_000,
        ..StageCosts::default()
    };
    Costs::new(vec![stage], Link::default()).expect("costs in range")
}

fn schedules(c: &mut Criterion) {
    let case = Case::new(KINDS[0], RANKS_FIXED, MICROBATCHES_FIXED);
    let (schedule, costs) = (&case.schedule, &case.costs);
    let title = format!("DualPipeV, 16 ranks, 512 micro-batches, {} ops", case.num_ops());
    let generate = || (case.generate)(case.num_ranks, case.num_microbatches);
    let mut group = c.benchmark_group(title);
    group.bench_function("generate", |b| b.iter(generate));
    group.bench_function("check", |b| b.iter(|| schedule.check()));
    group.bench_function("generate + check + lower", |b| b.iter(|| lower(&generate())));
    group.bench_function("simulate", |b| b.iter(|| simulate(schedule, costs)));
    group.finish();
}

/// Many sizes, a short look at each: about a minute in all.
fn sizes(c: &mut Criterion) {
    let mut sizes: Vec<(usize, usize)> = RANKS.iter().map(|&p| (p, MICROBATCHES_FIXED)).collect();
    sizes.extend(MICROBATCHES.iter().filter(|&&n| n != MICROBATCHES_FIXED).map(|&n| (RANKS_FIXED, n)));
    for kind in KINDS {
        let mut group = c.benchmark_group(kind.0);
        group.sample_size(10).sampling_mode(SamplingMode::Flat).nresamples(1000);
        group.warm_up_time(Duration::from_millis(30)).measurement_time(Duration::from_millis(200));
        for &(num_ranks, num_microbatches) in &sizes {
            let case = Case::new(kind, num_ranks, num_microbatches);
            group.throughput(Throughput::Elements(case.num_ops() as u64));
            for step in Step::ALL {
                let size = format!("P = {num_ranks}, n = {num_microbatches}");
                group.bench_function(BenchmarkId::new(step.name(), size), |b| b.iter(|| case.run(step)));
            }
        }
        group.finish();
    }
}

/// How each step's time grows, as a Markdown table.
fn print_growth() {
    println!("| | | exponent in P | exponent in n | ns an op, P = {RANKS_FIXED}, n = {MICROBATCHES_FIXED} |");
    println!("| --- | --- | --- | --- | --- |");
    for kind in KINDS {
        let by_ranks = RANKS.map(|p| Case::new(kind, p, MICROBATCHES_FIXED));
        let by_microbatches = MICROBATCHES.map(|n| Case::new(kind, RANKS_FIXED, n));
        for step in Step::ALL {
            let (ns_by_ranks, ns_by_microbatches) =
                (fastest_ns(&by_ranks, step), fastest_ns(&by_microbatches, step));
            let (in_ranks, in_microbatches) =
                (exponent(&RANKS, &ns_by_ranks), exponent(&MICROBATCHES, &ns_by_microbatches));
            let fixed = RANKS.iter().position(|&p| p == RANKS_FIXED).expect("one of the sizes");
            let ns_an_op = ns_by_ranks[fixed] / by_ranks[fixed].num_ops() as f64;
            let (name, step) = (kind.0, step.name());
            println!("| {name} | {step} | {in_ranks:.2} | {in_microbatches:.2} | {ns_an_op:.0} |");
        }
    }
}

/// Of each case the fastest of some rounds, the cases in turns.
fn fastest_ns(cases: &[Case], step: Step) -> Vec<f64> {
    const ROUNDS: usize = 15;
    /// Short steps are repeated until they take this long.
    const LEAST: Duration = Duration::from_millis(10);
    let mut fastest = vec![f64::INFINITY; cases.len()];
    for _ in 0..ROUNDS {
        for (case, fastest) in cases.iter().zip(&mut fastest) {
            let (start, mut repeats) = (Instant::now(), 0);
            while repeats == 0 || start.elapsed() < LEAST {
                case.run(step);
                repeats += 1;
            }
            *fastest = fastest.min(start.elapsed().as_nanos() as f64 / f64::from(repeats));
        }
    }
    fastest
}

/// The slope of the straight line through (ln size, ln time) that leaves the least squares.
fn exponent(sizes: &[usize], times: &[f64]) -> f64 {
    let (x, y): (Vec<f64>, Vec<f64>) =
        sizes.iter().zip(times).map(|(&s, t)| ((s as f64).ln(), t.ln())).unzip();
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (x_mean, y_mean) = (mean(&x), mean(&y));
    let with_y: f64 = x.iter().zip(&y).map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let with_x: f64 = x.iter().map(|x| (x - x_mean) * (x - x_mean)).sum();
    with_y / with_x
}

criterion_group!(benches, schedules, sizes);

/// Criterion's own, and one way more.
fn main() {
    if std::env::args().any(|argument| argument == "--growth") {
        return print_growth();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
