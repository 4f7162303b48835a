//! The watchdog of an executor: sees whether the device gets on with the step, and ends it if it does not.
//!
//! The thread that enqueues a step cannot watch it: it may be in the caller's hands by then, or stuck in a driver call
//! because the device's queue is full behind a receive that never ends. A thread of its own looks at the tasks' events
//! in order. When none has ended for longer than the deadline, when the driver or the transport has failed, or when
//! another rank says that it has, the thread puts the fault down with rank, instruction, stream and peer, and has the
//! transport aborted, which also ends what is stuck on the device.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::events::StepEvents;
use super::stream::Event;
use super::sys::DriverResult;
use crate::error::{Error, ErrorKind, Result};
use crate::execute::fault::{Cause, Fault, Notice, StreamName, Wait};
use crate::execute::transport::stream_ordered::Line;
use crate::op::Task;
use crate::program::{Instruction, Program};

/// How often the watchdog looks while a step is under way.
const PERIOD: Duration = Duration::from_millis(5);
/// How long an abort may take before nobody waits for it any more.
pub(crate) const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the thread that enqueues and the one that watches share.
pub(crate) struct Watch {
    program: Arc<Program>,
    events: Arc<StepEvents>,
    line: Arc<dyn Line>,
    timeout: Duration,
    /// By instruction, the step in which its event was last recorded.
    recorded: Vec<AtomicU32>,
    has_fault: AtomicBool,
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    /// The step under way, from 1; 0 if there is none.
    step: u32,
    /// Whether all of it has been enqueued.
    is_enqueued: bool,
    /// Whether it was launched as a graph, whose events tell nothing.
    is_graph: bool,
    /// The first task that is not known to be done.
    cursor: usize,
    last_done: Option<Task>,
    progress: Option<Instant>,
    /// By instruction, what tells that a message has been taken, where a task has to wait for that.
    taken: Vec<Option<Arc<Event>>>,
    fault: Option<Fault>,
    is_over: bool,
}

impl State {
    fn begin(&mut self, step: u32) {
        let (mut taken, fault) = (std::mem::take(&mut self.taken), self.fault.take());
        taken.fill(None);
        *self = State { step, taken, fault, is_over: self.is_over, ..State::default() };
    }
}

impl Watch {
    pub(crate) fn new(
        program: &Arc<Program>,
        events: &Arc<StepEvents>,
        line: Arc<dyn Line>,
        timeout: Duration,
    ) -> Watch {
        let count = program.instructions().len();
        Watch {
            program: Arc::clone(program),
            events: Arc::clone(events),
            line,
            timeout,
            recorded: (0..count).map(|_| AtomicU32::new(0)).collect(),
            has_fault: AtomicBool::new(false),
            state: Mutex::new(State { taken: vec![None; count], ..State::default() }),
            change: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub(crate) fn begin(&self, step: u32) {
        self.lock().begin(step);
        self.change.notify_all();
    }

    /// A step has been launched as a graph.
    pub(crate) fn launched(&self, step: u32) {
        let mut state = self.lock();
        state.begin(step);
        (state.is_graph, state.is_enqueued) = (true, true);
        self.recorded.iter().for_each(|recorded| recorded.store(step, Ordering::Release));
        self.change.notify_all();
    }

    /// The event of `instruction` has been recorded in this step.
    pub(crate) fn record(&self, instruction: usize, step: u32) {
        self.recorded[instruction].store(step, Ordering::Release);
    }

    /// The message sent at `instruction` has been taken when `event` happens.
    pub(crate) fn record_taken(&self, instruction: usize, event: &Arc<Event>) {
        self.lock().taken[instruction] = Some(Arc::clone(event));
    }

    /// All of the step is enqueued.
    pub(crate) fn enqueued(&self) {
        self.lock().is_enqueued = true;
    }

    /// The step is done, or given up: there is nothing to watch.
    pub(crate) fn rest(&self) {
        self.lock().step = 0;
    }

    /// Whether the watchdog has found a fault.
    pub(crate) fn has_fault(&self) -> bool {
        self.has_fault.load(Ordering::Acquire)
    }

    /// The fault that the watchdog has found. The transport has been aborted by then.
    pub(crate) fn fault(&self) -> Option<Fault> {
        if !self.has_fault() {
            return None;
        }
        self.lock().fault.clone()
    }

    /// A failure that the driver reports for the work at `instruction`.
    fn device_fault(&self, state: &State, instruction: usize, text: String) -> Fault {
        self.fault_at(state, instruction, Some(StreamName::Compute), Cause::Device { wait: None, text })
    }

    fn fault_at(&self, state: &State, at: usize, stream: Option<StreamName>, cause: Cause) -> Fault {
        let instruction = self.program.instructions().get(at);
        Fault {
            rank: self.program.rank(),
            instruction: at,
            text: instruction.map_or("end".to_string(), Instruction::to_string),
            last_done: state.last_done,
            stream,
            cause,
        }
    }

    /// Looks at the step: a fault if there is one.
    fn look(&self, state: &mut State) -> Option<Fault> {
        let now = Instant::now();
        let since = *state.progress.get_or_insert(now);
        match self.advance(state) {
            Ok(true) => state.progress = Some(now),
            Ok(false) => {}
            Err(text) => return Some(self.device_fault(state, state.cursor, text)),
        }
        let wait = || self.pending_wait(state).map(|(wait, _)| wait);
        if let Some((_, text)) = self.line.failure() {
            let (cause, stream) = (Cause::Transport { wait: wait(), text }, self.pending_wait(state));
            return Some(self.fault_at(state, state.cursor, stream.map(|(_, stream)| stream), cause));
        }
        if let Some(notice) = self.line.notice() {
            return Some(self.fault_at(state, state.cursor, None, Cause::Peer { wait: wait(), notice }));
        }
        let waited = now.duration_since(since);
        if !self.is_pending(state) {
            state.progress = Some(now);
        } else if waited > self.timeout {
            return Some(match self.pending_wait(state) {
                Some((wait, stream)) => {
                    self.fault_at(state, state.cursor, Some(stream), Cause::Timeout { wait, waited })
                }
                None => {
                    let stream = Some(StreamName::Compute);
                    self.fault_at(state, state.cursor, stream, Cause::Overdue { waited })
                }
            });
        }
        None
    }

    /// Moves the cursor over what is done; whether it has moved.
    fn advance(&self, state: &mut State) -> std::result::Result<bool, String> {
        let before = state.cursor;
        if state.is_graph {
            is_done(&self.events.end)?; // flags do not tell of failures
        }
        while let Some(instruction) = self.program.instructions().get(state.cursor) {
            if let Instruction::Run(task) = instruction {
                if !self.is_recorded(state, state.cursor) || !self.is_instruction_done(state, state.cursor)? {
                    break;
                }
                state.last_done = Some(*task);
            }
            state.cursor += 1;
        }
        Ok(state.cursor > before)
    }

    fn is_instruction_done(&self, state: &State, at: usize) -> std::result::Result<bool, String> {
        match state.is_graph {
            true => Ok(self.events.is_flagged(at)),
            false => is_done(self.events.done(at)),
        }
    }

    fn is_recorded(&self, state: &State, instruction: usize) -> bool {
        self.recorded[instruction].load(Ordering::Acquire) == state.step
    }

    /// Whether the device has something to do that it has not done.
    fn is_pending(&self, state: &State) -> bool {
        let is_at_end = state.cursor >= self.program.instructions().len();
        if is_at_end {
            return state.is_enqueued && !is_done(&self.events.end).unwrap_or(true);
        }
        self.is_recorded(state, state.cursor)
    }

    /// What the task at the cursor waits for, and where.
    fn pending_wait(&self, state: &State) -> Option<(Wait, StreamName)> {
        let instructions = self.program.instructions();
        let read = match instructions.get(state.cursor) {
            Some(Instruction::Run(Task::Op(op))) => self.program.reads_and_writes(*op).0,
            _ => [None; 3],
        };
        let before = &instructions[..state.cursor.min(instructions.len())];
        for buffer in read.into_iter().flatten() {
            let found = before.iter().enumerate().rev().find_map(|(at, instruction)| match *instruction {
                Instruction::Receive { message, from, buffer: filled } if filled == buffer => {
                    Some((at, Wait { message, peer: from, is_receive: true }))
                }
                _ => None,
            });
            if let Some((at, wait)) = found {
                let is_done = self.is_instruction_done(state, at).unwrap_or(true);
                if self.is_recorded(state, at) && !is_done {
                    return Some((wait, StreamName::ReceiveFrom(wait.peer)));
                }
            }
        }
        self.pending_send(state, before)
    }

    /// What was sent from a buffer that the task at the cursor, or one before it, fills again, and is not taken.
    fn pending_send(&self, state: &State, before: &[Instruction]) -> Option<(Wait, StreamName)> {
        before.iter().enumerate().rev().find_map(|(freed_at, instruction)| {
            let Instruction::Free(freed) = *instruction else { return None };
            before[..freed_at].iter().zip(&state.taken).rev().find_map(|(instruction, taken)| {
                match *instruction {
                    Instruction::Send { message, to, buffer } if buffer == freed => {
                        let is_taken = taken.as_ref().is_none_or(|taken| is_done(taken).unwrap_or(true));
                        (!is_taken).then_some((
                            Wait { message, peer: to, is_receive: false },
                            StreamName::SendTo(to),
                        ))
                    }
                    _ => None,
                }
            })
        })
    }

    /// What the watchdog's thread does.
    fn run(&self) {
        let mut state = self.lock();
        while !state.is_over {
            if state.step == 0 || state.fault.is_some() {
                state = self.change.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if let Some(fault) = self.look(&mut state) {
                let notice = fault.notice();
                state.fault = Some(fault);
                drop(state);
                // Whoever waits for the step is told first, and so are the other ranks by the abort.
                self.has_fault.store(true, Ordering::Release);
                abort(&self.line, &notice);
                state = self.lock();
                continue;
            }
            let waited = self.change.wait_timeout(state, PERIOD);
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}

fn is_done(event: &Event) -> std::result::Result<bool, String> {
    let done: DriverResult<bool> = event.is_done();
    done.map_err(|why| why.to_string())
}

/// Aborts a transport on a thread that nobody needs, and waits for it no longer than [`ABORT_TIMEOUT`].
pub(crate) fn abort(line: &Arc<dyn Line>, notice: &Notice) {
    let (line, notice) = (Arc::clone(line), notice.clone());
    let (tell, done) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        line.abort(&notice);
        // Nobody may be waiting any more.
        let _ = tell.send(());
    };
    if std::thread::Builder::new().name("dualpipe abort".into()).spawn(run).is_ok() {
        let _ = done.recv_timeout(ABORT_TIMEOUT);
    }
}

/// The watchdog's thread, ended when this is dropped.
pub(crate) struct Watchdog {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(watch: Arc<Watch>) -> Result<Watchdog> {
        let name = format!("dualpipe watch {}", watch.program.rank());
        let its = Arc::clone(&watch);
        let thread = std::thread::Builder::new().name(name).spawn(move || its.run()).map_err(|why| {
            Error::new(ErrorKind::Internal, format!("executor: no thread for the watchdog: {why}"))
        })?;
        Ok(Watchdog { watch, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.watch.lock().is_over = true;
        self.watch.change.notify_all();
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}
