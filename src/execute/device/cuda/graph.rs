//! A whole step as a CUDA graph: captured once, launched again and again.
//!
//! Ranks that are joined by NCCL capture each their own. Ranks of one process wait for one another's events, which ties
//! their captures together: they capture one graph for all. Rank 0 begins it, the others' streams join by an event;
//! rank 0 ends it when all have come back, and launches it for all.
//!
//! A graph must not be changed by two threads at once, and capturing changes it: while a step is being captured, ranks
//! take turns. So a task must then not wait for another rank's.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::Context;
use super::stream::{Event, Stream};
use super::sys::{self, CUgraphExec, DriverResult};
use crate::execute::rank::Stop;
use crate::execute::transport::stream_ordered::{Line, Posted};

/// How often a waiting rank looks whether another has failed.
const PERIOD: Duration = Duration::from_millis(20);

/// Where the ranks that capture one graph meet.
pub(crate) struct Gather {
    num_ranks: usize,
    turn: Mutex<()>,
    meeting: Mutex<Meeting>,
    change: Condvar,
}

#[derive(Default)]
struct Meeting {
    arrived: usize,
    /// Counts meetings that have been completed.
    round: u64,
    /// What each rank brought to the meeting, and what rank 0 has for all.
    brought: Vec<Arc<Event>>,
    given: Option<Arc<Event>>,
    graph: Option<Arc<Graph>>,
    failure: Option<String>,
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").field("num_ranks", &self.num_ranks).finish_non_exhaustive()
    }
}

/// A graph that can be launched.
pub(crate) struct Graph {
    context: Arc<Context>,
    raw: CUgraphExec,
}

// SAFETY: a name; it is launched by one thread at a time, rank 0's.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: instantiated once, destroyed once; the driver lets a launch that is under way end.
        let _ = unsafe { self.context.driver().cuGraphExecDestroy(self.raw) };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gather {
    /// For so many ranks of this process; one captures alone.
    pub(crate) fn new(num_ranks: usize) -> Gather {
        let (turn, meeting) = (Mutex::new(()), Mutex::new(Meeting::default()));
        Gather { num_ranks, turn, meeting, change: Condvar::new() }
    }

    /// The right to enqueue while a step is being captured.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// A rank cannot go on with the capture, for this reason: no rank is to.
    pub(crate) fn give_up(&self, why: &str) {
        lock(&self.meeting).failure.get_or_insert_with(|| why.to_string());
        self.change.notify_all();
    }

    /// Why a rank has given up, if one has.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.meeting).failure.clone()
    }
}

/// One rank at a [`Gather`].
pub(crate) struct Member {
    gather: Arc<Gather>,
    /// Rank 0, or the only one.
    is_leader: bool,
    line: Arc<dyn Line>,
    timeout: Duration,
    /// Its own, and the leader's for all: where it comes to the others, where they go on.
    own: Arc<Event>,
}

impl Member {
    pub(crate) fn new(
        context: &Arc<Context>,
        gather: Arc<Gather>,
        is_leader: bool,
        line: Arc<dyn Line>,
        timeout: Duration,
    ) -> DriverResult<Member> {
        Ok(Member { gather, is_leader, line, timeout, own: Event::new(context, false)? })
    }

    pub(crate) fn gather(&self) -> &Gather {
        &self.gather
    }

    /// Waits until all ranks are here, after `bring` has put down what this one has; the last to come runs nothing.
    fn meet(&self, bring: impl FnOnce(&mut Meeting)) -> Posted<MutexGuard<'_, Meeting>> {
        let deadline = Instant::now() + self.timeout;
        let mut meeting = lock(&self.gather.meeting);
        bring(&mut meeting);
        meeting.arrived += 1;
        if meeting.arrived == self.gather.num_ranks {
            (meeting.arrived, meeting.round) = (0, meeting.round + 1);
            self.gather.change.notify_all();
            return Ok(meeting);
        }
        let round = meeting.round;
        while meeting.round == round {
            if let Some(notice) = self.line.notice() {
                return Err(Stop::Transport(format!(
                    "rank {} failed during a capture [{}]",
                    notice.rank, notice.text
                )));
            }
            if Instant::now() >= deadline {
                let (came, all) = (meeting.arrived, self.gather.num_ranks);
                let text =
                    format!("{came} of {all} ranks came to a captured step: does each ask for graphs?");
                return Err(Stop::Transport(text));
            }
            let waited = self.gather.change.wait_timeout(meeting, PERIOD);
            meeting = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(meeting, _)| meeting);
        }
        Ok(meeting)
    }

    /// Begins to capture what is enqueued on `compute`, and on what waits for it.
    pub(crate) fn begin(&self, compute: &Stream) -> Posted<()> {
        drop(self.meet(|_| {})?);
        let driver = compute.context().driver();
        let mut given = None;
        if self.is_leader {
            // SAFETY: the stream lives.
            let begun = unsafe { driver.cuStreamBeginCapture_v2(compute.raw(), sys::CAPTURE_THREAD_LOCAL) };
            match begun.and_then(|()| self.own.record(compute)) {
                Ok(()) => given = Some(Arc::clone(&self.own)),
                Err(why) => self.gather.give_up(&why.to_string()),
            }
        }
        let meeting = self.meet(|meeting| {
            if self.is_leader {
                (meeting.given, meeting.graph) = (given, None);
                meeting.brought.clear();
            }
        })?;
        let given = meeting.given.clone().filter(|_| !self.is_leader);
        drop(meeting);
        if let Some(given) = given {
            let _turn = self.gather.turn();
            // Another rank's first task may have spoiled it already: then there is nothing left to join.
            if self.gather.failure().is_none() {
                if let Err(why) = given.wait_in(compute) {
                    self.gather.give_up(&why.to_string());
                }
            }
        }
        Ok(())
    }

    /// Ends the capture: what was enqueued as a graph, or why there is none.
    pub(crate) fn end(&self, compute: &Stream) -> Posted<Result<Arc<Graph>, String>> {
        if !self.is_leader && self.gather.failure().is_none() {
            let _turn = self.gather.turn();
            if let Err(why) = self.own.record(compute) {
                self.gather.give_up(&why.to_string());
            }
        }
        drop(self.meet(|meeting| {
            if !self.is_leader {
                meeting.brought.push(Arc::clone(&self.own));
            }
        })?);
        if self.is_leader {
            match self.instantiate(compute) {
                Ok(graph) => lock(&self.gather.meeting).graph = Some(Arc::new(graph)),
                Err(why) => self.gather.give_up(&why.to_string()),
            }
        }
        let meeting = self.meet(|_| {})?;
        let ended = match (&meeting.failure, &meeting.graph) {
            (None, Some(graph)) => Ok(Arc::clone(graph)),
            (failure, _) => Err(failure.clone().unwrap_or_default()),
        };
        drop(meeting);
        // All have read it before any begins anew.
        let mut meeting = self.meet(|_| {})?;
        meeting.failure = None;
        Ok(ended)
    }

    fn instantiate(&self, compute: &Stream) -> DriverResult<Graph> {
        let context = compute.context();
        let driver = context.driver();
        let brought = std::mem::take(&mut lock(&self.gather.meeting).brought);
        let joined = match self.gather.failure() {
            None => brought.iter().try_for_each(|event| event.wait_in(compute)),
            Some(_) => Ok(()),
        };
        let mut graph = std::ptr::null_mut();
        // Ended in any case: the stream is the caller's.
        // SAFETY: the stream lives; writes to a local.
        let ended = unsafe { driver.cuStreamEndCapture(compute.raw(), &mut graph) };
        let mut raw = std::ptr::null_mut();
        let made = joined.and(ended).and_then(|()| {
            // SAFETY: a graph that was just captured; writes to a local.
            unsafe { driver.cuGraphInstantiateWithFlags(&mut raw, graph, 0) }
        });
        if !graph.is_null() {
            // SAFETY: captured above, destroyed once; what was instantiated does not need it.
            let _ = unsafe { driver.cuGraphDestroy(graph) };
        }
        made.map(|()| Graph { context: Arc::clone(context), raw })
    }

    /// Gives the capture up after a failure, so that the caller's stream is free of it.
    pub(crate) fn abandon(&self, compute: &Stream) {
        if self.is_leader {
            let mut graph = std::ptr::null_mut();
            let driver = compute.context().driver();
            // SAFETY: the stream lives; writes to a local; the graph is destroyed once.
            unsafe {
                let _ = driver.cuStreamEndCapture(compute.raw(), &mut graph);
                if !graph.is_null() {
                    let _ = driver.cuGraphDestroy(graph);
                }
            }
        }
    }

    /// Launches the graph when all ranks' compute streams have come to here; they go on when it is done.
    pub(crate) fn launch(&self, graph: &Graph, compute: &Stream) -> Posted<()> {
        if !self.is_leader {
            self.own.record(compute)?;
        }
        let mut meeting = self.meet(|meeting| {
            if !self.is_leader {
                meeting.brought.push(Arc::clone(&self.own));
            }
        })?;
        let brought = if self.is_leader { std::mem::take(&mut meeting.brought) } else { Vec::new() };
        drop(meeting);
        if self.is_leader {
            brought.iter().try_for_each(|event| event.wait_in(compute))?;
            // SAFETY: both live.
            unsafe { compute.context().driver().cuGraphLaunch(graph.raw, compute.raw()) }?;
            self.own.record(compute)?;
        }
        let meeting = self.meet(|meeting| {
            if self.is_leader {
                meeting.given = Some(Arc::clone(&self.own));
            }
        })?;
        let given = meeting.given.clone().filter(|_| !self.is_leader);
        drop(meeting);
        given.map_or(Ok(()), |given| given.wait_in(compute))?;
        Ok(())
    }
}

/// Whether `stream` is still being captured: something that a task did may have spoiled it.
pub(crate) fn is_capturing(stream: &Stream) -> DriverResult<bool> {
    /// `CU_STREAM_CAPTURE_STATUS_ACTIVE`.
    const ACTIVE: u32 = 1;
    let mut status = 0;
    // SAFETY: the stream lives; writes to a local.
    unsafe { stream.context().driver().cuStreamIsCapturing(stream.raw(), &mut status) }?;
    Ok(status == ACTIVE)
}
