//! A rank on a CUDA device: how its steps begin and end, and how it fails.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::context::Context;
use super::events::StepEvents;
use super::graph::{Graph, Member};
use super::memory::DeviceMemory;
use super::step::device_fault;
use super::stream::{Event, Mark, Stream};
use super::watch::{abort, Watch, Watchdog};
use super::CudaOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::execute::boundary::Boundaries;
use crate::execute::device::slots::{Memory, Room, Slots};
use crate::execute::device::{Device, Place};
use crate::execute::fault::{Fault, Notice};
use crate::execute::rank::RankMachine;
use crate::execute::task::TaskRunner;
use crate::execute::transport::stream_ordered::{key, Part, StreamTransport};
use crate::program::{Instruction, Program};
use crate::timeline::{MessageSpan, Source, Span, Timeline};

/// How long a failed or dropped executor waits for its device before it gives its memory up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a waiting host sleeps at most before it looks at the device again.
const SLEEP_MAX: Duration = Duration::from_micros(200);

/// A rank's streams, buffers and its end of the transport.
pub(crate) struct Cuda {
    pub(super) program: Arc<Program>,
    pub(super) context: Arc<Context>,
    pub(super) compute: Stream,
    pub(super) comm: Option<Comm>,
    pub(super) transport: Box<dyn StreamTransport>,
    pub(super) slots: Slots<DeviceMemory>,
    pub(super) buffers: Vec<Buffer>,
    pub(super) events: Arc<StepEvents>,
    pub(super) watch: Arc<Watch>,
    /// When the task that was enqueued last is done.
    pub(super) last_done: Option<Mark>,
    /// Counts steps from 1.
    pub(super) step: u32,
    /// The tensors of the message at hand.
    pub(super) parts: Vec<Part>,
    _watchdog: Watchdog,
    clock: Option<Clock>,
    is_stream_ordered: bool,
    pub(super) state: State,
    timeout: Duration,
    /// Whether what is enqueued now is being captured.
    pub(super) is_capturing: bool,
    pub(super) graph: GraphState,
    pub(super) captured: Option<Arc<Graph>>,
    pub(super) member: Option<Member>,
}

/// The stream that tasks get for expert communication.
pub(super) struct Comm {
    pub(super) stream: Stream,
    /// When a task may begin to use it, and when it has.
    pub(super) fork: Arc<Event>,
    pub(super) join: Arc<Event>,
}

/// How a buffer is used in this step.
#[derive(Clone, Default)]
pub(super) struct Buffer {
    /// When it may be filled by another stream than the compute stream; `None` if at once.
    pub(super) free: Option<Mark>,
    /// At which instruction it was sent last.
    pub(super) sent_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    /// A step has been enqueued and is not known to be done.
    Enqueued,
    Failed,
}

/// How far a step is from being one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphState {
    /// Graphs were not asked for.
    Off,
    /// The next step runs as usual.
    Cold,
    /// The next step is captured.
    Warm,
    /// Steps are launched.
    Captured,
    /// A step could not be captured, for this reason: steps run as usual.
    FellBack(String),
}

impl Room for DeviceMemory {
    fn data(&self) -> NonNull<u8> {
        NonNull::new(std::ptr::without_provenance_mut(self.address() as usize)).unwrap_or(NonNull::dangling())
    }

    fn bytes(&self) -> usize {
        DeviceMemory::bytes(self)
    }
}

fn allocate(context: &Arc<Context>) -> impl FnMut(usize) -> Result<DeviceMemory> + use<'_> {
    |bytes| {
        DeviceMemory::new(context, bytes).map_err(|why| {
            Error::new(ErrorKind::Device, format!("executor: no device memory for {bytes} bytes: {why}"))
        })
    }
}

impl Cuda {
    pub(crate) fn new(
        program: Arc<Program>,
        boundaries: Boundaries,
        connect: impl FnOnce(&Arc<Context>) -> Result<Box<dyn StreamTransport>>,
        memory: Option<Box<dyn Memory>>,
        options: &CudaOptions,
        timeout: Duration,
    ) -> Result<Cuda> {
        let context = Context::primary(options.device)?;
        for (name, stream) in
            [("compute_stream", options.compute_stream), ("comm_stream", options.comm_stream)]
        {
            // SAFETY: whoever made the options promised that it is a stream.
            stream.map_or(Ok(()), |stream| unsafe { context.check_stream(name, stream.cast()) })?;
        }
        let stream = |given: Option<_>, key, is_urgent| match given {
            // SAFETY: as above, until the executor is dropped.
            Some(stream) => Ok(unsafe { Stream::borrowed(&context, key, stream) }),
            None => Stream::new(&context, key, is_urgent),
        };
        let compute = stream(options.compute_stream.map(|stream| stream.cast()), key::COMPUTE, false)?;
        let comm = match options.has_comm_stream {
            true => Some(Comm {
                stream: stream(options.comm_stream.map(|stream| stream.cast()), key::COMM, true)?,
                fork: Event::new(&context, false)?,
                join: Event::new(&context, false)?,
            }),
            false => None,
        };
        let place = Place::Cuda(options.device as u32);
        let has_memory = memory.is_some();
        let exchanges = options.exchanges_shapes;
        let slots = Slots::new(&program, place, exchanges, boundaries, memory, allocate(&context))?;
        let transport = connect(&context)?;
        let events =
            Arc::new(StepEvents::new(&context, &program, options.is_timed, has_memory, options.uses_graph)?);
        let watch = Arc::new(Watch::new(&program, &events, transport.line(), timeout));
        let member = options.uses_graph.then(|| {
            let (gather, is_leader) = transport.gather();
            Member::new(&context, gather, is_leader, transport.line(), timeout)
        });
        let member = member.transpose()?;
        let clock = options.is_timed.then(|| Clock::new(&context, || transport.now_ns())).transpose()?;
        let mut cuda = Cuda {
            buffers: vec![Buffer::default(); slots.len()],
            _watchdog: Watchdog::start(Arc::clone(&watch))?,
            is_stream_ordered: options.is_stream_ordered,
            state: State::Idle,
            last_done: None,
            step: 0,
            parts: Vec::new(),
            program,
            context,
            compute,
            comm,
            transport,
            slots,
            events,
            watch,
            clock,
            timeout,
            is_capturing: false,
            graph: if options.uses_graph { GraphState::Cold } else { GraphState::Off },
            captured: None,
            member,
        };
        cuda.reserve()?;
        Ok(cuda)
    }

    fn reserve(&mut self) -> Result<()> {
        let tensors = self.slots.capacities().max().unwrap_or(0);
        self.parts.reserve(tensors);
        self.transport.reserve(self.slots.len(), tensors, self.slots.message_bytes_max())
    }

    /// Waits for the end of the step that was enqueued, as long as the watchdog is content.
    fn finish(&mut self, deadline: Option<Instant>) -> std::result::Result<bool, Fault> {
        let mut sleep = Duration::ZERO;
        while self.state == State::Enqueued {
            if let Some(fault) = self.watch.fault() {
                return Err(fault);
            }
            // A driver that fails is the watchdog's business, who knows at which instruction.
            if self.events.end.is_done().unwrap_or(false) {
                self.watch.rest();
                self.state = State::Idle;
                break;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            match sleep.is_zero() {
                true => std::thread::yield_now(),
                false => std::thread::sleep(sleep),
            }
            sleep = (sleep + Duration::from_micros(2)).min(SLEEP_MAX);
        }
        if let Some(clock) = &mut self.clock {
            // If it fails the next step will tell.
            let _ = clock.set(|| self.transport.now_ns());
        }
        Ok(true)
    }

    /// Ends all that uses this rank's memory, or gives the memory up.
    fn stop(&mut self) {
        let mut pending = Vec::new();
        self.transport.withdraw(&mut pending);
        let streams = [Some(&self.compute), self.comm.as_ref().map(|comm| &comm.stream)];
        for stream in streams.into_iter().flatten() {
            let last = Event::new(&self.context, false);
            pending.extend(last.ok().filter(|last| last.record(stream).is_ok()));
        }
        if self.state == State::Idle {
            // The step's end came after all that used the memory, here and at the peers.
            pending.clear();
        }
        let began = Instant::now();
        let timeout = DRAIN_TIMEOUT.min(self.timeout);
        let mut are_done = true;
        for event in &pending {
            // An event that fails tells of a context that is lost, where nothing is running any more.
            while !event.is_done().unwrap_or(true) {
                if began.elapsed() >= timeout {
                    are_done = false;
                    break;
                }
                std::thread::sleep(SLEEP_MAX);
            }
        }
        match are_done {
            true => self.slots.release_all(),
            false => {
                // Freeing would wait for the device, perhaps for ever.
                self.slots.leak();
                self.transport.leak();
                std::mem::forget(Arc::clone(&self.events));
            }
        }
        self.watch.rest();
        self.state = State::Failed;
    }

    fn is_over(&self) -> bool {
        self.state == State::Failed
    }
}

impl Device for Cuda {
    fn set_boundaries(&mut self, boundaries: Boundaries) -> Result<()> {
        // Buffers are about to be replaced.
        if !self.finish(Some(Instant::now() + self.timeout)).map_err(Error::from)? {
            let text = format!("executor: the last step is not done after {:?}", self.timeout);
            return Err(Error::new(ErrorKind::Timeout, text));
        }
        // What was captured is of the old ones.
        self.captured = None;
        if self.graph != GraphState::Off {
            self.graph = GraphState::Cold;
        }
        self.slots.set_boundaries(boundaries, allocate(&self.context))?;
        self.reserve()
    }

    fn step(
        &mut self,
        machine: &mut RankMachine,
        runner: &mut dyn TaskRunner,
    ) -> std::result::Result<(), Fault> {
        self.finish(None)?;
        let context = Arc::clone(&self.context);
        let _entered = context.enter().map_err(|why| device_fault(machine, why))?;
        self.step_with_graph(machine, runner)?;
        if !self.is_stream_ordered {
            self.finish(None)?;
        }
        Ok(())
    }

    fn synchronize(&mut self, timeout: Duration) -> std::result::Result<bool, Fault> {
        self.finish(Some(Instant::now() + timeout))
    }

    fn fault(&self) -> Option<Fault> {
        self.watch.fault()
    }

    fn fail(&mut self, notice: &Notice) {
        if !self.watch.has_fault() {
            abort(&self.transport.line(), notice);
        }
        self.stop();
    }

    fn graph(&self) -> GraphState {
        self.graph.clone()
    }

    fn timeline(&self) -> Result<Timeline> {
        let (Some(clock), Some(timing)) = (&self.clock, &self.events.timing) else {
            let text = "executor: its steps are not timed, the option is_timed was not set";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        };
        if self.state == State::Enqueued {
            let text = "executor: the last step is not known to be done, synchronize first";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let rank = self.program.rank();
        let placement = self.program.placement().clone();
        let mut timeline = Timeline {
            title: self.program.title().to_string(),
            source: Source::Recorded,
            origin_ns: 0,
            spans: vec![Vec::new(); placement.num_ranks()],
            messages: Vec::new(),
            placement,
        };
        if self.step == 0 || self.is_over() {
            return Ok(timeline);
        }
        timeline.origin_ns = clock.ns(&timing.start)?;
        for (i, instruction) in self.program.instructions().iter().enumerate() {
            let Some((start_ns, end_ns)) = timing.span(i)? else { continue };
            match *instruction {
                Instruction::Run(task) => {
                    timeline.spans[rank.index()].push(Span { task, start_ns, end_ns });
                }
                Instruction::Receive { message, from, .. } => {
                    timeline.messages.push(MessageSpan { message, from, to: rank, start_ns, end_ns });
                }
                _ => {}
            }
        }
        Ok(timeline)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        if !self.finish(Some(Instant::now() + self.timeout)).unwrap_or(false) {
            let text = "its executor was dropped in the middle of a step".to_string();
            abort(&self.transport.line(), &Notice { rank: self.program.rank(), text });
        }
        self.stop();
    }
}
