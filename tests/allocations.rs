//! Steps do not allocate once the first has run. A file of its own, because it replaces the global allocator.

#[path = "support/counting.rs"]
mod counting;

use std::sync::atomic::Ordering;
use std::sync::Barrier;
use std::time::Duration;

use counting::{ALLOCATIONS, COUNTS};
use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{Boundaries, DType, Executor, Options, TaskRun, TensorSpec};
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe, Work};

#[test]
fn steps_do_not_allocate_in_the_steady_state() {
    const RANKS: usize = 4;
    let schedule = dualpipe(RANKS, 16, Work::Training).unwrap();
    let tensors = [vec![8, 4], vec![3]].map(|shape| TensorSpec::new(DType::F32, shape).unwrap());
    let boundaries = Boundaries::uniform(tensors.to_vec()).unwrap();
    let inproc = Inproc::new(RANKS).unwrap();
    let barrier = Barrier::new(RANKS);
    std::thread::scope(|scope| {
        for program in lower(&schedule).unwrap() {
            let (transport, barrier) = (inproc.transport(program.rank()).unwrap(), &barrier);
            let options = Options { timeout: Duration::from_secs(30), ..Options::new(boundaries.clone()) };
            scope.spawn(move || {
                let is_first = program.rank().index() == 0;
                let mut executor = Executor::new(program, transport, options).unwrap();
                // Mailboxes and lists reach their size within a few steps.
                for step in 0..40 {
                    barrier.wait();
                    if is_first && step == 30 {
                        COUNTS.store(true, Ordering::Relaxed);
                    }
                    barrier.wait();
                    executor.step(&mut |_: &mut TaskRun<'_>| Ok(())).unwrap();
                }
                barrier.wait();
                if is_first {
                    COUNTS.store(false, Ordering::Relaxed);
                }
                barrier.wait();
            });
        }
    });
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), 0, "allocations in 10 steps of 4 ranks");
}
