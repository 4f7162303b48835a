//! Steps do not allocate once the first has run. A file of its own, because it replaces the global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Barrier;
use std::time::Duration;

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{Boundaries, DType, Executor, Options, TaskRun, TensorSpec};
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe, Work};

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTS.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(data, layout) }
    }
    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(data, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
