//! Steps with callbacks that do nothing: what an instruction costs.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{Boundaries, DType, Executor, Options, TaskRun, TensorSpec};
use dualpipe::program::{lower, Program};
use dualpipe::schedule::{dualpipe, Work};

/// Time of `steps` steps of all ranks, each on its own thread, after a few to warm up.
fn run(programs: &[Program], boundaries: &Boundaries, steps: u64) -> Duration {
    let inproc = Inproc::new(programs.len()).expect("in range");
    let barrier = Barrier::new(programs.len());
    std::thread::scope(|scope| {
        let ranks = programs.iter().map(|program| {
            let transport = inproc.transport(program.rank()).expect("each rank once");
            let (options, barrier) = (Options::new(boundaries.clone()), &barrier);
            scope.spawn(move || {
                let mut executor = Executor::new(program.clone(), transport, options).expect("memory");
                let mut step = || executor.step(&mut |_: &mut TaskRun<'_>| Ok(())).expect("no rank fails");
                (0..3).for_each(|_| step());
                barrier.wait();
                let start = Instant::now();
                (0..steps).for_each(|_| step());
                barrier.wait();
                start.elapsed()
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).max().expect("there are ranks")
    })
}

fn executors(c: &mut Criterion) {
    for (ranks, bytes) in [(2, 4), (4, 4), (2, 1 << 20)] {
        let programs =
            lower(&dualpipe(ranks, 64, Work::Training).expect("in range")).expect("a valid schedule");
        let tensor = TensorSpec::new(DType::U8, [bytes]).expect("in range");
        let boundaries = Boundaries::uniform(vec![tensor]).expect("in range");
        let instructions: usize = programs.iter().map(|p| p.instructions().len()).sum();
        let mut group =
            c.benchmark_group(format!("DualPipe, {ranks} ranks, 64 micro-batches, {bytes} bytes"));
        // Elements are instructions of one rank: their inverse throughput is what one costs.
        group.throughput(Throughput::Elements((instructions / ranks) as u64));
        group.bench_function("step", |b| b.iter_custom(|steps| run(&programs, &boundaries, steps)));
        group.finish();
    }
}

criterion_group!(benches, executors);
criterion_main!(benches);
