//! A thread for each rank, which keeps what belongs to the rank: executors are made, used and dropped there.
#![allow(dead_code)] // each test file uses a part of it

use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::JoinHandle;

type Job<S> = Box<dyn FnOnce(usize, &mut Option<S>) + Send>;

/// The ranks, each with a state of its own.
pub(crate) struct RankThreads<S: 'static> {
    threads: Vec<(Sender<Job<S>>, JoinHandle<()>)>,
}

impl<S> RankThreads<S> {
    /// `make` runs on each rank's thread.
    pub(crate) fn new(
        num_ranks: usize,
        make: impl Fn(usize) -> S + Clone + Send + 'static,
    ) -> RankThreads<S> {
        let thread = |rank| {
            let (jobs, todo): (Sender<Job<S>>, Receiver<Job<S>>) = channel();
            let run = move || {
                let mut state = None;
                todo.into_iter().for_each(|job| job(rank, &mut state));
            };
            (jobs, std::thread::Builder::new().name(format!("rank {rank}")).spawn(run).unwrap())
        };
        let ranks = RankThreads { threads: (0..num_ranks).map(thread).collect() };
        ranks.on_all(move |rank, state| *state = Some(make(rank)));
        ranks
    }

    fn on_all<T: Send + 'static>(
        &self,
        job: impl FnOnce(usize, &mut Option<S>) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let results = self.threads.iter().map(|(jobs, _)| {
            let (tell, result) = channel();
            let job = job.clone();
            jobs.send(Box::new(move |rank, state| drop(tell.send(job(rank, state))))).unwrap();
            result
        });
        let results: Vec<_> = results.collect();
        results.into_iter().map(|result| result.recv().expect("a rank's thread panicked")).collect()
    }

    /// Runs `job` on all ranks at once; what each returned.
    pub(crate) fn all<T: Send + 'static>(
        &self,
        job: impl FnOnce(usize, &mut S) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        self.on_all(move |rank, state| job(rank, state.as_mut().unwrap()))
    }
}

impl<S> Drop for RankThreads<S> {
    fn drop(&mut self) {
        for (jobs, thread) in self.threads.drain(..) {
            drop(jobs);
            drop(thread.join());
        }
    }
}
