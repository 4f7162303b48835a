//! Ranks whose tasks are given: what the checks of faults and the figures run.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{
    Boundaries, CudaLink, CudaOptions, DType, Executor, Options, TaskRun, TaskRunner, TensorSpec,
};
use dualpipe::program::{lower, Instruction, Program};
use dualpipe::schedule::Schedule;
use dualpipe::Error;

use crate::driver::{Event, Gpu, Outcome, Stream};
use crate::rank_threads::RankThreads;

/// What a task does, of the rank and the number of the task in the step.
pub(crate) trait Work:
    Fn(&Gpu, &mut TaskRun<'_>, usize, usize) -> Outcome + Send + Sync + 'static
{
}
impl<F: Fn(&Gpu, &mut TaskRun<'_>, usize, usize) -> Outcome + Send + Sync + 'static> Work for F {}

pub(crate) struct TimedRank {
    executor: Executor,
    stream: Stream,
    /// Timed: when the rank's part of a step ends.
    end: Arc<Event>,
}

/// The ranks of a schedule.
pub(crate) struct Timed {
    gpu: Arc<Gpu>,
    ranks: RankThreads<Outcome<TimedRank>>,
    /// Of each rank's program.
    pub(crate) num_instructions: Vec<usize>,
    /// By rank, the instruction of each task.
    pub(crate) tasks: Vec<Vec<usize>>,
    meet: Arc<Barrier>,
}

/// A stream whose first kernel takes so long, and the timed event behind it: what waits for it begins together.
pub(crate) fn gate(gpu: &Gpu, nanoseconds: u64) -> Outcome<(Stream, Arc<Event>)> {
    let (stream, start) = (Stream::new()?, Arc::new(Event::new(true)?));
    gpu.spin(stream.raw(), nanoseconds)?;
    start.record(stream.raw())?;
    Ok((stream, start))
}

/// A rank's step.
pub(crate) struct Ended {
    pub(crate) outcome: Result<(), Error>,
    /// How long the host took.
    pub(crate) host: Duration,
    pub(crate) end: Arc<Event>,
}

struct Runner<'a> {
    gpu: &'a Gpu,
    work: &'a dyn Work,
    rank: usize,
    num_run: usize,
}

impl TaskRunner for Runner<'_> {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Outcome {
        self.num_run += 1;
        (self.work)(self.gpu, run, self.rank, self.num_run - 1)
    }
}

impl Timed {
    /// One tensor of `bytes` at each boundary, steps that return when they are enqueued.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        schedule: &Schedule,
        bytes: usize,
        timeout: Duration,
        options: impl Fn(&mut CudaOptions),
    ) -> Outcome<Timed> {
        let programs = lower(schedule).map_err(|why| why.to_string())?;
        let num_ranks = schedule.num_ranks();
        let inproc = Inproc::new(num_ranks).map_err(|why| why.to_string())?;
        let spec = TensorSpec::new(DType::U8, [bytes as i64]).map_err(|why| why.to_string())?;
        let boundaries = Boundaries::uniform(vec![spec]).map_err(|why| why.to_string())?;
        let tasks_of = |program: &Program| {
            let instructions = program.instructions().iter().enumerate();
            instructions.filter(|(_, i)| matches!(i, Instruction::Run(_))).map(|(at, _)| at).collect()
        };
        let tasks = programs.iter().map(tasks_of).collect();
        let num_instructions = programs.iter().map(|program| program.instructions().len()).collect();
        let mut cuda = CudaOptions::new(0);
        cuda.is_stream_ordered = true;
        options(&mut cuda);
        let here = Arc::clone(gpu);
        let make = move |rank: usize| {
            here.enter()?;
            let (stream, end) = (Stream::new()?, Arc::new(Event::new(true)?));
            // SAFETY: the rank's own stream, which outlives its executor.
            let cuda = unsafe { cuda.clone().with_compute_stream(stream.raw().cast()) };
            let options = Options { timeout, ..Options::new(boundaries.clone()) };
            let (program, link) = (programs[rank].clone(), CudaLink::inproc(&inproc));
            let executor = Executor::on_cuda(program, link, options, &cuda).map_err(|why| why.to_string())?;
            Ok(TimedRank { executor, stream, end })
        };
        let (ranks, meet) = (RankThreads::new(num_ranks, make), Arc::new(Barrier::new(num_ranks)));
        Ok(Timed { gpu: Arc::clone(gpu), ranks, num_instructions, tasks, meet })
    }

    fn all<T: Send + 'static>(
        &self,
        job: impl Fn(usize, &mut TimedRank) -> Outcome<T> + Clone + Send + 'static,
    ) -> Outcome<Vec<T>> {
        let job = move |rank: usize, state: &mut Outcome<TimedRank>| match state {
            Ok(state) => job(rank, state),
            Err(why) => Err(format!("rank {rank} was not made: {why}")),
        };
        self.ranks.all(job).into_iter().collect()
    }

    /// Enqueues a step whose tasks are `work`, on all ranks at once, behind `start`. It is an error only if a rank was
    /// not made.
    pub(crate) fn step(&self, work: Arc<impl Work>, start: Option<&Arc<Event>>) -> Outcome<Vec<Ended>> {
        let (gpu, meet, start) = (Arc::clone(&self.gpu), Arc::clone(&self.meet), start.cloned());
        self.all(move |rank, state| {
            let mut runner = Runner { gpu: &gpu, work: &*work, rank, num_run: 0 };
            let waited = start.as_ref().map_or(Ok(()), |start| start.wait(state.stream.raw()));
            meet.wait();
            let began = Instant::now();
            let outcome = state.executor.step(&mut runner);
            let host = began.elapsed();
            let recorded = state.end.record(state.stream.raw());
            if outcome.is_ok() {
                waited.and(recorded)?;
            }
            Ok(Ended { outcome, host, end: Arc::clone(&state.end) })
        })
    }

    /// Waits until the device is done with the step: for each rank, why it is not.
    pub(crate) fn synchronize(&self, timeout: Duration) -> Outcome<Vec<Result<bool, Error>>> {
        self.all(move |_, state| Ok(state.executor.synchronize(timeout)))
    }

    /// A step that is to be good, to its end.
    pub(crate) fn good_step(&self, work: Arc<impl Work>, start: Option<&Arc<Event>>) -> Outcome<Vec<Ended>> {
        let ended = self.step(work, start)?;
        let synchronized = self.synchronize(Duration::from_secs(60))?;
        for (rank, (ended, done)) in ended.iter().zip(synchronized).enumerate() {
            let named = |why: &Error| format!("rank {rank}: {why}");
            ended.outcome.as_ref().map_err(named)?;
            if !done.map_err(|why| named(&why))? {
                return Err(format!("rank {rank}: the device did not end the step"));
            }
        }
        Ok(ended)
    }
}
