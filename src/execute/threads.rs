//! Ranks on threads of their own.

use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Executor, TaskRunner};
use crate::error::{Error, ErrorKind, Result};

/// Runs one step of several ranks of this process, each on a thread of its own, and returns when all have ended.
///
/// # Errors
/// The first rank's, in order, that failed by itself; otherwise the first one's that another rank stopped.
pub fn run_ranks<R: TaskRunner + Send>(ranks: &mut [(Executor, R)]) -> Result<()> {
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let steps = ranks.iter_mut().map(|(executor, runner)| scope.spawn(|| executor.step(runner)));
        let steps: Vec<_> = steps.collect();
        let join = |step: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            step.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        steps.into_iter().map(join).collect()
    });
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    errors.sort_by_key(|error| error.kind() == ErrorKind::PeerFailed);
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// What a worker is asked to do.
type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs the steps of one rank, so that the caller's is free meanwhile.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    is_busy: bool,
}

impl Worker {
    /// A thread named after `rank`.
    pub fn new(rank: crate::ids::Rank) -> Result<Worker> {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        let run = move || {
            for job in todo {
                job();
                if tell.send(()).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("dualpipe rank {rank}")).spawn(run);
        let thread = thread.map_err(|why| {
            Error::new(ErrorKind::Internal, format!("executor: no thread for rank {rank}: {why}"))
        })?;
        Ok(Worker { jobs: Some(jobs), done, thread: Some(thread), is_busy: false })
    }

    /// Runs `job` on the thread and returns at once.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] before the last job's end has been waited for.
    pub fn start(&mut self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        if self.is_busy {
            return Err(Error::new(
                ErrorKind::Busy,
                "executor: the step that was started has not been waited for",
            ));
        }
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Box::new(job)).is_ok());
        if !sent {
            return Err(Error::new(ErrorKind::Internal, "executor: the worker thread has ended"));
        }
        self.is_busy = true;
        Ok(())
    }

    /// Waits until the job is done: `false` if it is not within `timeout`, or if there is none.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if !self.is_busy {
            return false;
        }
        let done = match self.done.recv_timeout(timeout) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        self.is_busy = false;
        done
    }

    /// Whether a job has been started and not been waited for.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }
}

impl Drop for Worker {
    /// Waits for the job's end: its waits have deadlines. A job that drops its own worker is not waited for.
    fn drop(&mut self) {
        self.jobs = None;
        let is_own = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !is_own(thread)) {
            drop(thread.join());
        }
    }
}
