//! Runs programs: one executor for each rank, joined by a transport. It never hangs: every wait has a deadline and
//! ends in an error that says rank, instruction and peer.

pub mod boundary;
pub mod device;
pub mod fault;
pub mod rank;
mod record;
mod task;
mod threads;
pub mod transport;

pub use boundary::{Boundaries, DType, TensorSpec};
pub use device::host::Memory;
pub use device::Tensor;
pub use task::{PassTensors, TaskRun, TaskRunner};
pub use threads::{run_ranks, Worker};

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::program::Program;
use crate::timeline::Timeline;
use device::host::{Host, HostWorld};
use fault::{Cause, Fault};
use rank::{Progress, RankMachine};
use transport::Transport;

/// Longest deadline of a wait: a day.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How an executor is to run.
pub struct Options {
    /// What crosses the boundaries.
    pub boundaries: Boundaries,
    /// No single wait for a peer lasts longer; more than the longest task of any rank. At most [`TIMEOUT_MAX`].
    pub timeout: Duration,
    /// The caller's own memory for tensors; by default the executor has its own, reused from step to step.
    pub memory: Option<Box<dyn Memory>>,
}

impl Options {
    /// The executor's own memory, and a minute for every wait.
    pub fn new(boundaries: Boundaries) -> Options {
        Options { boundaries, timeout: Duration::from_secs(60), memory: None }
    }
}

/// Runs one rank's program, step after step, on the thread that calls it.
///
/// Used by one thread at a time. Steps do not allocate once the first has run.
pub struct Executor {
    program: Arc<Program>,
    machine: RankMachine,
    host: Host,
    fault: Option<Fault>,
}

impl Executor {
    /// An executor for `program`. It takes its rank's end of the transport; its buffers are allocated now.
    ///
    /// # Errors
    /// A timeout of 0 or above [`TIMEOUT_MAX`]; no memory.
    pub fn new(
        program: impl Into<Arc<Program>>,
        transport: impl Transport + 'static,
        options: Options,
    ) -> Result<Executor> {
        let Options { boundaries, timeout, memory } = options;
        if timeout.is_zero() || timeout > TIMEOUT_MAX {
            let range = format!("must be more than 0 and at most {TIMEOUT_MAX:?}");
            return Err(Error::argument("executor", "timeout", format!("{timeout:?}"), range));
        }
        let program = program.into();
        let host = Host::new(&program, boundaries, Box::new(transport), memory)?;
        let machine = RankMachine::new(Arc::clone(&program), timeout);
        Ok(Executor { program, machine, host, fault: None })
    }

    /// Whose it is.
    pub fn rank(&self) -> Rank {
        self.program.rank()
    }

    /// What it runs.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Other tensors at the boundaries from the next step on, for example other shapes for its micro-batches. Every
    /// rank must be told the same. Allocates if they are larger than any before.
    pub fn set_boundaries(&mut self, boundaries: Boundaries) -> Result<()> {
        self.host.set_boundaries(boundaries)
    }

    /// Runs one step: every task of the program, in order, each as soon as what it reads is there.
    ///
    /// Returns when all tasks are done and all that was sent has been taken. After an error the executor can only be
    /// dropped, and so can those of all other ranks, which end with an error as well.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`], [`ErrorKind::CallbackFailed`], [`ErrorKind::PeerFailed`], [`ErrorKind::Transport`];
    /// [`ErrorKind::Poisoned`] after any of them.
    pub fn step(&mut self, runner: &mut dyn TaskRunner) -> Result<()> {
        if let Some(fault) = &self.fault {
            return Err(Error::new(ErrorKind::Poisoned, format!("executor: failed before [{fault}]")));
        }
        self.host.start();
        self.machine.restart();
        let mut guarded = AbortOnUnwind { executor: self, is_unwinding: true };
        let ended = guarded.executor.run(runner);
        guarded.is_unwinding = false;
        drop(guarded);
        ended.map_err(|fault| {
            let error = Error::from(fault.clone());
            self.fail(fault);
            error
        })
    }

    fn run(&mut self, runner: &mut dyn TaskRunner) -> std::result::Result<(), Fault> {
        let program = Arc::clone(&self.program);
        loop {
            let mut world = HostWorld { host: &mut self.host, program: &program, runner: &mut *runner };
            match self.machine.advance(&mut world)? {
                Progress::Finished => return Ok(()),
                Progress::Waiting { deadline_ns, .. } => {
                    let transport = self.host.transport();
                    let left_ns = deadline_ns.saturating_sub(transport.now_ns());
                    transport.wait(Duration::from_nanos(left_ns));
                }
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.host.transport().abort(&fault.notice());
        self.host.stop();
        self.fault = Some(fault);
    }

    /// Why the executor failed, if it did.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// What this rank did in its last step. [`Timeline::merge`] joins the ranks'.
    pub fn timeline(&self) -> Timeline {
        self.host.recorder.timeline(&self.program)
    }
}

/// Tells the other ranks when a task panics.
struct AbortOnUnwind<'a> {
    executor: &'a mut Executor,
    is_unwinding: bool,
}

impl Drop for AbortOnUnwind<'_> {
    fn drop(&mut self) {
        if self.is_unwinding {
            let fault = self.executor.machine.fault_of(Cause::Callback("it panicked".to_string()));
            self.executor.fail(fault);
        }
    }
}
