//! The executor's own time on the host for a step on a CUDA device: the driver does nothing (benches/null_driver.c),
//! the tasks do nothing.

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{Boundaries, CudaLink, CudaOptions, DType, Executor, Options, TaskRun, TensorSpec};
use dualpipe::program::{lower, Program};
use dualpipe::schedule::{dualpipe, dualpipe_v, Work};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Loaded before the first call of the driver: the loader then finds it under the driver's own name.
fn load_null_driver() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = root.join("target/null_driver/libcuda.so.1");
    std::fs::create_dir_all(root.join("target/null_driver")).expect("target can be written");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&library);
    assert!(compiler.arg(root.join("benches/null_driver.c")).status().expect("a C compiler").success());
    // SAFETY: a library of this project's own.
    std::mem::forget(unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) }.expect("it was built"));
}

/// Time of `steps` steps of all ranks, each on its own thread, after a few to warm up.
fn run(programs: &[Program], steps: u64) -> Duration {
    let boundaries = Boundaries::uniform(vec![TensorSpec::new(DType::F32, [256]).expect("in range")]);
    let boundaries = boundaries.expect("in range");
    let inproc = Inproc::new(programs.len()).expect("in range");
    let barrier = Barrier::new(programs.len());
    std::thread::scope(|scope| {
        let ranks = programs.iter().map(|program| {
            let (link, options) = (CudaLink::inproc(&inproc), Options::new(boundaries.clone()));
            let barrier = &barrier;
            scope.spawn(move || {
                let mut cuda = CudaOptions::new(0);
                cuda.is_stream_ordered = true;
                let executor = Executor::on_cuda(program.clone(), link, options, &cuda);
                let mut executor = executor.expect("the driver does nothing");
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
    load_null_driver();
    for schedule in [dualpipe_v(1, 64, Work::Training), dualpipe(2, 64, Work::Training)] {
        let schedule = schedule.expect("in range");
        let programs = lower(&schedule).expect("a valid schedule");
        let instructions: usize = programs.iter().map(|p| p.instructions().len()).sum();
        let mut group =
            c.benchmark_group(format!("{}, enqueued on a driver that does nothing", schedule.title()));
        // Elements are instructions of one rank: their inverse throughput is what one costs.
        group.throughput(Throughput::Elements((instructions / programs.len()) as u64));
        group.bench_function("step", |b| b.iter_custom(|steps| run(&programs, steps)));
        group.finish();
    }
}

criterion_group!(benches, executors);
criterion_main!(benches);
