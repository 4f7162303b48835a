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
pub use device::cuda::overlap;
pub use device::cuda::{available as cuda_available, CudaInfo, CudaOptions, GraphState};
pub use device::{Memory, Place, Tensor};
pub use task::{PassTensors, TaskRun, TaskRunner, TaskStreams};
pub use threads::{run_ranks, Worker};
pub use transport::nccl::{nccl_unique_id, nccl_version, NcclOptions};

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::program::Program;
use crate::timeline::Timeline;
use device::cuda::context::Context;
use device::cuda::Cuda;
use device::host::Host;
use device::Device;
use fault::{Cause, Fault};
use rank::RankMachine;
use transport::inproc_cuda::InprocCuda;
use transport::nccl::NcclTransport;
use transport::stream_ordered::StreamTransport;
use transport::{Inproc, Transport};

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

/// What joins the ranks of a pipeline whose tensors are on CUDA devices.
pub struct CudaLink(Link);

enum Link {
    Inproc(Inproc),
    Nccl(NcclOptions),
    Custom(Box<Connect>),
}

/// Makes a transport for a device.
type Connect = dyn FnOnce(&Arc<Context>) -> Box<dyn StreamTransport> + Send;

impl CudaLink {
    /// The ranks are of one process, on one device or several.
    pub fn inproc(inproc: &Inproc) -> CudaLink {
        CudaLink(Link::Inproc(inproc.clone()))
    }

    /// NCCL joins the ranks, of which each is in a process of its own.
    pub fn nccl(options: NcclOptions) -> CudaLink {
        CudaLink(Link::Nccl(options))
    }

    /// A transport that is made when the device is known.
    pub(crate) fn custom(
        connect: impl FnOnce(&Arc<Context>) -> Box<dyn StreamTransport> + Send + 'static,
    ) -> CudaLink {
        CudaLink(Link::Custom(Box::new(connect)))
    }
}

fn check_timeout(timeout: Duration) -> Result<()> {
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        let range = format!("must be more than 0 and at most {TIMEOUT_MAX:?}");
        return Err(Error::argument("executor", "timeout", format!("{timeout:?}"), range));
    }
    Ok(())
}

/// Runs one rank's program, step after step, on the thread that calls it.
///
/// Used by one thread at a time. Steps do not allocate once the first has run.
pub struct Executor {
    program: Arc<Program>,
    machine: RankMachine,
    device: Box<dyn Device>,
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
        check_timeout(timeout)?;
        let program = program.into();
        let host = Host::new(Arc::clone(&program), boundaries, Box::new(transport), memory)?;
        Ok(Executor::on(program, Box::new(host), timeout))
    }

    /// An executor for `program` on a CUDA device, joined to the other ranks by `link`. Buffers, streams and events are
    /// made now. Its steps enqueue; see [`TaskRun`].
    ///
    /// # Errors
    /// As [`Executor::new`]; [`ErrorKind::Unavailable`] without a driver, a device or NCCL; [`ErrorKind::Device`];
    /// [`ErrorKind::Timeout`] if a rank does not come to NCCL.
    pub fn on_cuda(
        program: impl Into<Arc<Program>>,
        link: CudaLink,
        options: Options,
        cuda: &CudaOptions,
    ) -> Result<Executor> {
        let Options { boundaries, timeout, memory } = options;
        check_timeout(timeout)?;
        let with = match () {
            _ if !cuda.uses_graph => None,
            _ if memory.is_some() => Some("memory of the caller's: a graph has the addresses of its capture"),
            _ if cuda.exchanges_shapes => Some("exchanges_shapes: a graph has the shapes of its capture"),
            _ => None,
        };
        if let Some(with) = with {
            return Err(Error::argument("executor", "uses_graph", 1, format!("must be 0 with {with}")));
        }
        let program = program.into();
        let (rank, placement) = (program.rank(), program.placement());
        let exchanges_shapes = cuda.exchanges_shapes;
        if let Link::Nccl(nccl) = &link.0 {
            nccl.check(placement, exchanges_shapes)?;
        }
        let connect = |context: &Arc<Context>| match link.0 {
            Link::Inproc(inproc) => Ok(Box::new(InprocCuda::new(&inproc, rank, context)?) as Box<_>),
            Link::Nccl(nccl) => {
                let nccl = NcclTransport::new(context, placement, rank, &nccl, exchanges_shapes, timeout)?;
                Ok(Box::new(nccl) as Box<_>)
            }
            Link::Custom(connect) => Ok(connect(context)),
        };
        let cuda = Cuda::new(Arc::clone(&program), boundaries, connect, memory, cuda, timeout)?;
        Ok(Executor::on(program, Box::new(cuda), timeout))
    }

    fn on(program: Arc<Program>, device: Box<dyn Device>, timeout: Duration) -> Executor {
        let machine = RankMachine::new(Arc::clone(&program), timeout);
        Executor { program, machine, device, fault: None }
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
        self.device.set_boundaries(boundaries)
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
        self.machine.restart();
        let mut guarded = AbortOnUnwind { executor: self, is_unwinding: true };
        let Executor { machine, device, .. } = &mut *guarded.executor;
        let ended = device.step(machine, runner);
        guarded.is_unwinding = false;
        drop(guarded);
        ended.map_err(|fault| self.failed(fault))
    }

    /// Waits at most `timeout` until the device is done with the last step: `false` if it is not. On the host it always
    /// is.
    ///
    /// # Errors
    /// As [`Executor::step`].
    pub fn synchronize(&mut self, timeout: Duration) -> Result<bool> {
        if let Some(fault) = &self.fault {
            return Err(Error::new(ErrorKind::Poisoned, format!("executor: failed before [{fault}]")));
        }
        self.device.synchronize(timeout).map_err(|fault| self.failed(fault))
    }

    fn failed(&mut self, fault: Fault) -> Error {
        let error = Error::from(fault.clone());
        self.fail(fault);
        error
    }

    fn fail(&mut self, fault: Fault) {
        self.device.fail(&fault.notice());
        self.fault = Some(fault);
    }

    /// How far steps are from being launched as one CUDA graph ([`CudaOptions::uses_graph`]).
    pub fn graph(&self) -> GraphState {
        self.device.graph()
    }

    /// Why the executor failed, if it did.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.clone().or_else(|| self.device.fault())
    }

    /// What this rank did in its last step. [`Timeline::merge`] joins the ranks'.
    ///
    /// # Errors
    /// On a CUDA device: its steps are not timed ([`CudaOptions::is_timed`]), or the last is not done.
    pub fn timeline(&self) -> Result<Timeline> {
        self.device.timeline()
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
