//! Executors: run one rank's program, step after step.
//!
//! Life. An executor is created from a program; its rank in the inproc, or its transport, is then its own. It runs
//! steps, by dualpipe_executor_step on the caller's thread or by dualpipe_executor_start on its own. Between steps
//! boundaries may change, and the last step's timeline may be taken. Once a step has failed, on any rank, all ranks'
//! executors tell why (the step's words, dualpipe_executor_fault), and can only be freed.
//!
//! Every rank must be there: a step returns when the rank's tasks are done, which takes the other ranks' tasks. No wait
//! is longer than timeout_ns, so a rank that never comes is an error and no hang.
//!
//! ```c
//! // A step of all ranks of this process from one thread; contexts[r] is what the tasks of rank r get.
//! #include <dualpipe.h>
//!
//! static dualpipe_status step_all(const dualpipe_executor_t *executors, uint32_t num_ranks, dualpipe_task_fn task,
//!                                 void **contexts) {
//!   dualpipe_status first = DUALPIPE_OK;
//!   uint32_t started = 0;
//!   while (first == DUALPIPE_OK && started < num_ranks) {
//!     first = dualpipe_executor_start(executors[started], task, contexts[started]);
//!     started += first == DUALPIPE_OK;
//!   }
//!   for (uint32_t r = 0; r < started; r++) {
//!     dualpipe_status status = dualpipe_executor_wait(executors[r], UINT64_MAX); // its deadlines bound the step
//!     if (first == DUALPIPE_OK) first = status;
//!   }
//!   return first;
//! }
//! ```

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::args::{self, Buffer, Out, UserData};
use super::connect::connect;
use super::cuda::{dualpipe_cuda_options, dualpipe_nccl_options, graph_state};
use super::guard::{call, BusyFlag};
use super::handle::{self, Kind, Object};
use super::memory::{dualpipe_memory, CallerMemory};
use super::op::DUALPIPE_NONE;
use super::options::{self, Growing, OutStruct};
use super::program::{dualpipe_program_t, ProgramObject};
use super::status::dualpipe_status;
use super::status::dualpipe_status::*;
use super::status::{Failure, Outcome};
use super::task::{dualpipe_task, dualpipe_task_fn, CallerTasks, LentTensors};
use super::tensor::DLDataType;
use super::timeline::{dualpipe_timeline_t, TimelineObject};
use super::transport::{dualpipe_inproc_t, dualpipe_transport};
use crate::execute::boundary::{DIMENSIONS_MAX, TENSORS_MAX};
use crate::execute::{Boundaries, DType, Executor, Memory, Options, TensorSpec, Worker, TIMEOUT_MAX};
use crate::ids::{Direction, Microbatch, Stage};
use crate::op::StageCopy;

/// What a dualpipe_executor_t points to: nothing that C could look into.
pub struct dualpipe_executor(());

/// Runs one rank's program. One thread at a time: another gets DUALPIPE_ERROR_BUSY, and so does a callback of its own.
/// After a failed step it can only be asked for its fault and its timeline, and freed. It is useless in a child of
/// fork. Free it with dualpipe_executor_free.
pub type dualpipe_executor_t = *mut dualpipe_executor;

/// One tensor that crosses a boundary between stages: dense, row-major.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_tensor_spec {
    /// Its elements: of 4, 6, 8, 16, 32, 64 or 128 bits.
    pub dtype: DLDataType,
    /// The number of dimensions, 0 to 8.
    pub ndim: u32,
    /// The size of each dimension, at least 0; those from ndim on are not read. A tensor has at most 2^40 bytes.
    pub shape: [i64; 8],
}

/// How an executor is to run. Start from DUALPIPE_EXECUTOR_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_executor_options {
    /// sizeof(dualpipe_executor_options).
    pub size: u32,
    /// How many tensors cross each boundary, 0 to 32.
    pub num_tensors: u32,
    /// What they are, num_tensors of them. A gradient has the dtype and shape of its activation. All ranks must say the
    /// same.
    pub tensors: *const dualpipe_tensor_spec,
    /// No single wait for a peer lasts longer, in nanoseconds: more than the longest task of any rank, at most a day. 0
    /// is a minute.
    pub timeout_ns: u64,
    /// Joins the ranks of one process. Exactly one of inproc, transport and nccl is not NULL.
    pub inproc: dualpipe_inproc_t,
    /// The caller's own transport, copied.
    pub transport: *const dualpipe_transport,
    /// The caller's own memory for tensors, copied. NULL: the executor has its own, reused from step to step. With
    /// cuda it is memory of the device, used and given back in the order of the compute stream: what allocate gives
    /// may still be in use by what was enqueued there before, what release gets may be used again by what is enqueued
    /// there afterwards.
    pub memory: *const dualpipe_memory,
    /// The CUDA device to run on, copied. NULL: the host.
    pub cuda: *const dualpipe_cuda_options,
    /// NCCL joins the ranks, each in a process of its own. Only with cuda.
    pub nccl: *const dualpipe_nccl_options,
}

// SAFETY: repr(C); u32, u32, pointers and a u64 without gaps; any bits are a value of each.
unsafe impl Growing for dualpipe_executor_options {
    const SIZE_V1: usize = 48;
}
const _: () = assert!(size_of::<dualpipe_executor_options>() == 64 && DIMENSIONS_MAX == 8);

/// Why an executor failed. Start from DUALPIPE_FAULT_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_fault {
    /// sizeof(dualpipe_fault).
    pub size: u32,
    /// 1 if it has failed, 0 if not; then the rest is not to be read.
    pub has_failed: u32,
    /// The rank that stopped: the executor's.
    pub rank: u32,
    /// The other rank that it is about, or DUALPIPE_NONE.
    pub peer: u32,
    /// At which instruction of the program.
    pub instruction: u64,
    /// The dualpipe_status of the step.
    pub status: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); u32s and a u64 without gaps.
unsafe impl Growing for dualpipe_fault {
    const SIZE_V1: usize = 32;
}

/// Creates an executor for `program`. It takes its rank's place in the inproc, or the transport; its buffers are
/// allocated now, with cuda on the device, with its streams and events. With nccl it waits, at most timeout_ns, until
/// all ranks that it has messages with have come. The program may be freed.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the rank's place is taken; DUALPIPE_ERROR_POISONED if a rank of the
/// inproc has failed; with cuda DUALPIPE_ERROR_UNAVAILABLE and DUALPIPE_ERROR_DEVICE, with nccl
/// DUALPIPE_ERROR_TIMEOUT and DUALPIPE_ERROR_TRANSPORT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_create(
    program: dualpipe_program_t,
    options: *const dualpipe_executor_options,
    executor: *mut dualpipe_executor_t,
) -> dualpipe_status {
    call("dualpipe_executor_create", || {
        let object = handle::get::<ProgramObject>("program", program)?;
        let program = object.program();
        // SAFETY: both are the caller's.
        let (given, out) = unsafe { (options::read("options", options)?, Out::new("executor", executor)?) };
        // SAFETY: the caller's.
        let specs = unsafe { read_specs("options->tensors", given.tensors, given.num_tensors) }?;
        let memory: Option<Box<dyn Memory>> = match given.memory.is_null() {
            true => None,
            // SAFETY: the caller's.
            false => Some(Box::new(unsafe { CallerMemory::read("options->memory", given.memory) }?)),
        };
        args::in_range("options->timeout_ns", given.timeout_ns, 0..=TIMEOUT_MAX.as_nanos() as u64)?;
        let boundaries = Boundaries::uniform(specs)?;
        let mut options = Options { memory, ..Options::new(boundaries.clone()) };
        if given.timeout_ns > 0 {
            options.timeout = Duration::from_nanos(given.timeout_ns);
        }
        // SAFETY: the caller's.
        let executor = unsafe { connect(Arc::clone(program), &given, options) }?;
        out.write(handle::insert(ExecutorObject {
            runner: Arc::new(Mutex::new(Runner { executor, tensors: LentTensors::default() })),
            boundaries: Mutex::new(boundaries),
            busy: BusyFlag::default(),
            started: Mutex::new(None),
        })?);
        Ok(())
    })
}

/// Frees an executor. NULL is fine. A step that was started is waited for, which its deadlines bound; other ranks that
/// are in the middle of a step are told that this one is gone.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_free(executor: dualpipe_executor_t) -> dualpipe_status {
    call("dualpipe_executor_free", || handle::free::<ExecutorObject>("executor", executor))
}

/// Other tensors at the boundary after `stage` of `direction`, for every micro-batch, from the next step on. Every rank
/// must be told the same. Allocates if they are larger than any before.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_set_boundary(
    executor: dualpipe_executor_t,
    direction: u32,
    stage: u32,
    tensors: *const dualpipe_tensor_spec,
    num_tensors: u32,
) -> dualpipe_status {
    call("dualpipe_executor_set_boundary", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let _busy = object.busy.enter("executor")?;
        let executor = &mut lock(&object.runner).executor;
        let placement = executor.program().placement();
        let direction = Direction::ALL[args::index("direction", direction, placement.num_directions())?];
        let stage = Stage(args::index("stage", stage, placement.num_stages())? as u16);
        // SAFETY: the caller's.
        let specs = unsafe { read_specs("tensors", tensors, num_tensors) }?;
        object.change(executor, |boundaries| boundaries.set_after(StageCopy { direction, stage }, specs))
    })
}

/// Other tensors for one micro-batch, counted within its direction, at every boundary, from the next step on: for
/// example another sequence length. It overrides dualpipe_executor_set_boundary. Every rank must be told the same.
/// Allocates if they are larger than any before.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_set_microbatch(
    executor: dualpipe_executor_t,
    direction: u32,
    microbatch: u32,
    tensors: *const dualpipe_tensor_spec,
    num_tensors: u32,
) -> dualpipe_status {
    call("dualpipe_executor_set_microbatch", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let _busy = object.busy.enter("executor")?;
        let executor = &mut lock(&object.runner).executor;
        let program = executor.program();
        let index = args::index("direction", direction, program.placement().num_directions())?;
        let microbatches = program.microbatches()[index].max(1);
        let microbatch = Microbatch(args::index("microbatch", microbatch, microbatches)? as u32);
        // SAFETY: the caller's.
        let specs = unsafe { read_specs("tensors", tensors, num_tensors) }?;
        object.change(executor, |boundaries| {
            boundaries.set_microbatch(Direction::ALL[index], microbatch, specs)
        })
    })
}

/// Runs one step on this thread: calls task for every task of the program, in order, each when what it reads is there.
/// Returns when all are done and all that was sent has been taken. It does not allocate once the first step has run.
///
/// On a CUDA device a task only enqueues, on the streams that it is handed; no task waits for another. The step returns
/// when the device is done, or with is_stream_ordered when all of it is enqueued; it then first waits for the end of
/// the step before.
///
/// Errors, each with rank, instruction and peer: DUALPIPE_ERROR_TIMEOUT, DUALPIPE_ERROR_CALLBACK_FAILED,
/// DUALPIPE_ERROR_PEER_FAILED, DUALPIPE_ERROR_TRANSPORT, DUALPIPE_ERROR_DEVICE; DUALPIPE_ERROR_POISONED after any of
/// them. All other ranks end with an error too.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_step(
    executor: dualpipe_executor_t,
    task: dualpipe_task_fn,
    user_data: *mut c_void,
) -> dualpipe_status {
    call("dualpipe_executor_step", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let function = task.ok_or_else(|| Failure::argument("task", "is NULL"))?;
        let _busy = object.busy.enter("executor")?;
        let ended = lock(&object.runner).step(function, UserData(user_data));
        Ok(ended?)
    })
}

/// Runs one step like dualpipe_executor_step, but on a thread of the executor's own, and returns at once. task is
/// called on that thread. dualpipe_executor_wait ends it.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_start(
    executor: dualpipe_executor_t,
    task: dualpipe_task_fn,
    user_data: *mut c_void,
) -> dualpipe_status {
    call("dualpipe_executor_start", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let function = task.ok_or_else(|| Failure::argument("task", "is NULL"))?;
        let busy = object.busy.enter("executor")?;
        let mut started = object.started()?;
        if started.as_ref().is_some_and(|started| started.worker.is_busy()) {
            let text = "executor has a started step that has not been waited for";
            return Err(Failure::new(DUALPIPE_ERROR_BUSY, text));
        }
        let runner = Arc::clone(&object.runner);
        if started.is_none() {
            let rank = lock(&runner).executor.rank();
            *started = Some(Started { worker: Worker::new(rank)?, outcome: Arc::default() });
        }
        let Some(Started { worker, outcome }) = started.as_mut() else { return Ok(()) };
        let (user_data, outcome) = (UserData(user_data), Arc::clone(outcome));
        Ok(worker.start(move || {
            let ended = lock(&runner).step(function, user_data);
            *lock(&outcome) = Some(ended);
            drop(busy);
        })?)
    })
}

/// Waits for the step that dualpipe_executor_start began, at most timeout_ns; returns what dualpipe_executor_step would
/// have returned.
///
/// Errors: DUALPIPE_ERROR_TIMEOUT with the text "still running" if it goes on, then wait again;
/// DUALPIPE_ERROR_INVALID_ARGUMENT if no step was started.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_wait(
    executor: dualpipe_executor_t,
    timeout_ns: u64,
) -> dualpipe_status {
    call("dualpipe_executor_wait", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let mut started = object.started()?;
        let Some(Started { worker, outcome }) = started.as_mut().filter(|started| started.worker.is_busy())
        else {
            return Err(Failure::argument("executor", "has no started step to wait for"));
        };
        if !worker.wait(Duration::from_nanos(timeout_ns)) {
            let text = format!("executor is still running after {timeout_ns} ns");
            return Err(Failure::new(DUALPIPE_ERROR_TIMEOUT, text));
        }
        let panicked = || Err(Failure::new(DUALPIPE_ERROR_PANIC, "the step panicked"));
        let ended = lock(outcome).take();
        ended.map_or_else(panicked, |ended| ended.map_err(Failure::from))
    })
}

/// Waits, at most timeout_ns, until the device is done with the last step. On the host it always is.
///
/// Errors: DUALPIPE_ERROR_TIMEOUT with the text "still running" if it is not, then wait again; those of
/// dualpipe_executor_step if the step failed on the device.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_synchronize(
    executor: dualpipe_executor_t,
    timeout_ns: u64,
) -> dualpipe_status {
    call("dualpipe_executor_synchronize", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        let _busy = object.busy.enter("executor")?;
        let timeout = Duration::from_nanos(timeout_ns).min(TIMEOUT_MAX);
        if lock(&object.runner).executor.synchronize(timeout)? {
            return Ok(());
        }
        let text = format!("executor is still running after {timeout_ns} ns");
        Err(Failure::new(DUALPIPE_ERROR_TIMEOUT, text))
    })
}

/// How far the executor is from launching whole steps as CUDA graphs: writes a dualpipe_graph_state, and why a step
/// could not be captured, as a text, which is "" if none was tried or it could.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_graph(
    executor: dualpipe_executor_t,
    state: *mut u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_executor_graph", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("state", state) }?;
        // SAFETY: the caller's.
        let text = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        let _busy = object.busy.enter("executor")?;
        let (state, why) = graph_state(lock(&object.runner).executor.graph());
        text.fill_text(&why)?;
        out.write(state as u32);
        Ok(())
    })
}

/// The timeline of this rank in its last step, which may have failed. dualpipe_timeline_merge joins the ranks'. On a
/// CUDA device it is there if the executor is_timed and the step is known to be done.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_timeline(
    executor: dualpipe_executor_t,
    timeline: *mut dualpipe_timeline_t,
) -> dualpipe_status {
    call("dualpipe_executor_timeline", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("timeline", timeline) }?;
        let _busy = object.busy.enter("executor")?;
        let recorded = lock(&object.runner).executor.timeline()?;
        out.write(handle::insert(TimelineObject::recorded(recorded))?);
        Ok(())
    })
}

/// Whether and why an executor failed. The words are the step's dualpipe_last_error.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_executor_fault(
    executor: dualpipe_executor_t,
    fault: *mut dualpipe_fault,
) -> dualpipe_status {
    call("dualpipe_executor_fault", || {
        let object = handle::get::<ExecutorObject>("executor", executor)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("fault", fault) }?;
        let _busy = object.busy.enter("executor")?;
        let executor = &lock(&object.runner).executor;
        let fault = executor.fault();
        let status = fault.as_ref().map_or(DUALPIPE_OK, |f| crate::Error::from(f.clone()).kind().into());
        out.write(dualpipe_fault {
            size: 0,
            has_failed: fault.is_some().into(),
            rank: executor.rank().0,
            peer: fault.as_ref().and_then(|fault| fault.peer()).map_or(DUALPIPE_NONE, |peer| peer.0),
            instruction: fault.as_ref().map_or(0, |fault| fault.instruction as u64),
            status: status as u32,
            reserved: 0,
        });
        Ok(())
    })
}

/// # Safety
/// The pointer, if its bits pass, is one to `count` specifications.
unsafe fn read_specs(
    argument: &str,
    specs: *const dualpipe_tensor_spec,
    count: u32,
) -> Outcome<Vec<TensorSpec>> {
    let count = args::in_range("num_tensors", count as usize, 0..=TENSORS_MAX)?;
    // SAFETY: the caller's promise.
    let specs = unsafe { args::slice(argument, specs, "num_tensors", count) }?;
    let spec = |(i, spec): (usize, &dualpipe_tensor_spec)| {
        let ndim = args::in_range(format!("{argument}[{i}].ndim"), spec.ndim as usize, 0..=DIMENSIONS_MAX)?;
        let dtype = DType { code: spec.dtype.code, bits: spec.dtype.bits, lanes: spec.dtype.lanes };
        let made = TensorSpec::new(dtype, &spec.shape[..ndim]);
        made.map_err(|e| Failure::new(e.kind().into(), format!("{argument}[{i}]: {e}")))
    };
    specs.iter().enumerate().map(spec).collect()
}

/// An executor that C has a handle of.
struct ExecutorObject {
    runner: Arc<Mutex<Runner>>,
    boundaries: Mutex<Boundaries>,
    busy: BusyFlag,
    started: Mutex<Option<Started>>,
}

/// An executor with what it needs to call back.
struct Runner {
    executor: Executor,
    tensors: LentTensors,
}

impl Runner {
    fn step(
        &mut self,
        function: unsafe extern "C-unwind" fn(*mut c_void, *const dualpipe_task) -> i32,
        user_data: UserData,
    ) -> crate::error::Result<()> {
        let (program, tensors) = (Arc::clone(self.executor.program()), &mut self.tensors);
        self.executor.step(&mut CallerTasks { function, user_data, program, tensors })
    }
}

/// The executor's own thread, and how the last step that it ran has ended.
struct Started {
    worker: Worker,
    outcome: Arc<Mutex<Option<crate::error::Result<()>>>>,
}

impl Object for ExecutorObject {
    type Opaque = dualpipe_executor;
    const KIND: Kind = Kind::Executor;
    const OWNS_THREADS: bool = true;
}

impl ExecutorObject {
    /// The thread of the executor's own. Whoever waits for its step holds this.
    fn started(&self) -> Outcome<MutexGuard<'_, Option<Started>>> {
        self.started.try_lock().map_err(|_| {
            Failure::new(DUALPIPE_ERROR_BUSY, "executor is in use: its started step is being waited for")
        })
    }

    /// Changes what crosses the boundaries, or nothing if that fails.
    fn change(
        &self,
        executor: &mut Executor,
        change: impl FnOnce(&mut Boundaries) -> crate::error::Result<()>,
    ) -> Outcome {
        let mut boundaries = lock(&self.boundaries);
        let mut changed = boundaries.clone();
        change(&mut changed)?;
        executor.set_boundaries(changed.clone())?;
        *boundaries = changed;
        Ok(())
    }
}

/// Nothing that panics leaves one of these in a bad state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
