//! Ranks whose tasks check what they read and write what nobody else writes, so that a wrong order of the device's work
//! is found in the data, besides being found by the stand-in.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{
    Boundaries, CudaLink, CudaOptions, DType, Executor, Options, PassTensors, TaskRun, TaskRunner, Tensor,
    TensorSpec,
};
use dualpipe::op::Pass;
use dualpipe::program::{lower, Program};
use dualpipe::schedule::Schedule;
use dualpipe::Error;

use crate::device::Device;
use crate::features::Pool;
use crate::rank_threads::RankThreads;
use crate::standin::{Access, Session};

/// What the tasks found wrong, and in which step they are.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) wrong: Mutex<Vec<String>>,
    pub(crate) step: AtomicU32,
}

/// The word that fills tensor `index` of what `pass` makes.
fn word(pass: Pass, is_gradient: bool, index: usize, step: u32) -> u32 {
    let Pass { direction, stage, microbatch } = pass;
    let place = (direction.index() * 2 + usize::from(is_gradient)) * 64 + stage.index();
    ((place * 4096 + microbatch.index()) * 8 + index) as u32 * 64 + step % 64
}

/// What a rank's tasks do besides.
#[derive(Clone, Copy)]
pub(crate) struct Behaviour {
    /// Which gradients a pass does not have.
    pub(crate) is_absent: fn(Pass) -> bool,
    /// How many rows of the first dimension what a pass makes has; `None`: as agreed.
    pub(crate) rows: fn(Pass) -> Option<i64>,
    /// A task that fails, by its rank and place.
    pub(crate) fails: Option<(usize, usize)>,
    /// A task that does what cannot be captured.
    pub(crate) spoils_capture: Option<(usize, usize)>,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour { is_absent: |_| false, rows: |_| None, fails: None, spoils_capture: None }
    }
}

/// One rank: its executor and its tasks.
pub(crate) struct FlowRank {
    pub(crate) executor: Executor,
    pub(crate) tasks: FlowTasks,
}

pub(crate) struct FlowTasks {
    pool: Option<Arc<Mutex<Pool>>>,
    pub(crate) device: Device,
    session: Arc<Session>,
    flow: Arc<Flow>,
    rank: usize,
    behaviour: Behaviour,
    /// The executor's memory as far as tasks have seen it: bytes by address.
    seen: BTreeMap<u64, u64>,
    /// Tasks run, over all steps.
    pub(crate) ran: usize,
}

/// Memory that a kernel reads or writes, and what is there.
struct Words {
    address: u64,
    count: usize,
    pass: Pass,
    is_gradient: bool,
    index: usize,
}

impl FlowTasks {
    fn list(&self, tensors: &[Tensor], pass: Pass, is_gradient: bool, words: &mut Vec<Words>) {
        for (index, tensor) in tensors.iter().enumerate() {
            if tensor.is_present() && tensor.bytes() > 0 {
                let address = tensor.data().unwrap().as_ptr().addr() as u64;
                words.push(Words { address, count: tensor.bytes() / 4, pass, is_gradient, index });
            }
        }
    }

    /// The kernel of a pass: checks what it reads, fills what it writes.
    fn launch(
        &self,
        stream: *mut c_void,
        label: &str,
        reads: Vec<Words>,
        writes: Vec<Words>,
    ) -> Result<(), String> {
        let access = |words: &Words, is_write: u32| Access {
            address: words.address,
            num_bytes: words.count as u64 * 4,
            is_write,
            reserved: 0,
        };
        let accesses = reads.iter().map(|w| access(w, 0)).chain(writes.iter().map(|w| access(w, 1)));
        let accesses: Vec<Access> = accesses.collect();
        let (flow, name) = (Arc::clone(&self.flow), label.to_string());
        let run = move || {
            let step = flow.step.load(Ordering::Relaxed);
            for words in &reads {
                // SAFETY: the stand-in's device memory is ordinary memory, there while the executor lives.
                let got = unsafe { std::slice::from_raw_parts(words.address as *const u32, words.count) };
                let want = word(words.pass, words.is_gradient, words.index, step);
                if let Some(got) = got.iter().find(|&&got| got != want) {
                    let pass = words.pass;
                    flow.wrong
                        .lock()
                        .unwrap()
                        .push(format!("{name} read {got:#x} of {pass:?}, not {want:#x}"));
                }
            }
            for words in &writes {
                let fill = word(words.pass, words.is_gradient, words.index, step);
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(words.address as *mut u32, words.count) }.fill(fill);
            }
        };
        match self.session.launch(stream, label, &accesses, run) {
            0 => Ok(()),
            code => Err(format!("launch: {code}")),
        }
    }

    fn pass(
        &mut self,
        stream: *mut c_void,
        label: &str,
        pass: &mut PassTensors<'_>,
        is_forward: bool,
    ) -> Result<(), String> {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let (mut previous, mut next) = (pass.pass, pass.pass);
        previous.stage.0 = previous.stage.0.wrapping_sub(1);
        next.stage.0 += 1;
        self.list(pass.inputs, previous, false, &mut reads);
        self.list(pass.output_grads, next, true, &mut reads);
        if let Some(tensor) =
            pass.output_grads.iter().find(|t| t.is_present() == (self.behaviour.is_absent)(next))
        {
            return Err(format!("{:?}: wrong presence of {tensor:?}", pass.pass));
        }
        let resize = |tensor: &mut Tensor| {
            let Some(rows) = (self.behaviour.rows)(pass.pass) else { return Ok(()) };
            let mut shape = tensor.shape().to_vec();
            shape[0] = rows;
            tensor.set_shape(&shape)
        };
        for tensor in &mut *pass.input_grads {
            tensor.set_present(!(self.behaviour.is_absent)(pass.pass));
            resize(tensor)?;
        }
        pass.outputs.iter_mut().try_for_each(resize)?;
        if let Some(pool) = &self.pool {
            for tensor in pass.outputs.iter_mut().chain(&mut *pass.input_grads).filter(|t| t.is_present()) {
                // SAFETY: there until the pool is dropped, after the executor.
                unsafe { tensor.adopt(pool.lock().unwrap().take(), std::ptr::null_mut()) };
            }
        }
        self.list(pass.outputs, pass.pass, false, &mut writes);
        self.list(pass.input_grads, pass.pass, true, &mut writes);
        if is_forward {
            let rows = |tensor: &Tensor| tensor.shape().first().copied();
            let wrong =
                |t: &&Tensor| (self.behaviour.rows)(previous).is_some_and(|want| rows(t) != Some(want));
            if let Some(tensor) = pass.inputs.iter().find(wrong) {
                return Err(format!("{:?}: wrong shape of {tensor:?}", pass.pass));
            }
        }
        for words in reads.iter().chain(&writes) {
            let bytes = self.seen.entry(words.address).or_default();
            *bytes = (*bytes).max(words.count as u64 * 4);
        }
        self.launch(stream, label, reads, writes)
    }
}

impl FlowTasks {
    /// On both streams something that the tasks before and after need, on the other stream: word `2 i + k % 2` is what
    /// task k writes on stream i, and reads there of task k - 1 on the other.
    fn tie(&self, streams: [*mut c_void; 2]) -> Result<(), String> {
        for (i, stream) in streams.into_iter().enumerate().filter(|(_, stream)| !stream.is_null()) {
            let access = |i: usize, k: usize, is_write: u32| Access {
                address: self.device.scratch + 4 * (2 * i + k % 2) as u64,
                num_bytes: 4,
                is_write,
                reserved: 0,
            };
            let accesses = [access(i, self.ran, 1), access(1 - i, self.ran + 1, 0)];
            match self.session.launch(stream, "tie", &accesses, || {}) {
                0 => {}
                code => return Err(format!("launch: {code}")),
            }
        }
        Ok(())
    }

    /// The caller's own work on the compute stream before and after a step, which the step comes after and before: it
    /// touches what the tasks do.
    pub(crate) fn surround(&self) {
        self.touch(&BTreeMap::new());
    }

    /// Work behind a step that tramples on all memory of the executor's that its tasks have seen: the end of the step
    /// is the end of all use of it.
    pub(crate) fn trample(&self) {
        self.touch(&self.seen);
    }

    fn touch(&self, ranges: &BTreeMap<u64, u64>) {
        let access = |(address, num_bytes), is_write| Access { address, num_bytes, is_write, reserved: 0 };
        let mut accesses: Vec<Access> =
            [0, 1].map(|is_write| access((self.device.scratch, 16), is_write)).to_vec();
        let seen: Vec<(u64, u64)> = ranges.iter().map(|(&address, &bytes)| (address, bytes)).collect();
        accesses.extend(seen.iter().map(|&range| access(range, 1)));
        let trample = move || {
            for &(address, num_bytes) in &seen {
                // SAFETY: the stand-in's device memory is ordinary memory, there while the executor lives.
                unsafe { (address as *mut u8).write_bytes(0xEE, num_bytes as usize) };
            }
        };
        assert_eq!(self.session.launch(self.device.stream(), "caller", &accesses, trample), 0);
    }
}

impl TaskRunner for FlowTasks {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
        let streams = run.streams.ok_or("no streams")?;
        let at = Some((self.rank, self.ran));
        self.ran += 1;
        if self.behaviour.fails == at {
            return Err("told to".into());
        }
        let label = run.task.to_string();
        self.tie([streams.compute, streams.comm])?;
        if let Some(pass) = &mut run.forward {
            self.pass(streams.compute, &label, pass, true)?;
        }
        if let Some(pass) = &mut run.backward {
            // Where there are two streams the backward half of a pair runs beside the forward half.
            let stream = if streams.comm.is_null() { streams.compute } else { streams.comm };
            self.pass(stream, &label, pass, false)?;
        }
        if self.behaviour.spoils_capture == at {
            // SAFETY: a stream of the executor's; it waits, which no capture allows.
            unsafe { cudarc::driver::sys::cuStreamSynchronize(streams.compute.cast()) };
        }
        Ok(())
    }
}

/// An executor, and the pool that its tasks take memory from, if they do.
pub(crate) type Made = (Executor, Option<Arc<Mutex<Pool>>>);

/// Makes a rank's executor.
pub(crate) trait MakeExecutor:
    Fn(Program, Options, &CudaOptions, &Arc<Session>, *mut c_void) -> Result<Made, Error> + Clone + Send + 'static
{
}

impl<F> MakeExecutor for F where
    F: Fn(Program, Options, &CudaOptions, &Arc<Session>, *mut c_void) -> Result<Made, Error>
        + Clone
        + Send
        + 'static
{
}

fn by_link(link: impl Fn(usize) -> CudaLink + Clone + Send + 'static) -> impl MakeExecutor {
    move |program: Program, options: Options, cuda: &CudaOptions, _: &Arc<Session>, _: *mut c_void| {
        let link = link(program.rank().index());
        Ok((Executor::on_cuda(program, link, options, cuda)?, None))
    }
}

/// How the ranks are joined and run.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) session: Arc<Session>,
    pub(crate) boundaries: Boundaries,
    pub(crate) cuda: CudaOptions,
    pub(crate) num_devices: usize,
    pub(crate) timeout: Duration,
    pub(crate) behaviour: Behaviour,
}

impl Setup {
    /// Two tensors at each boundary, all ranks on one device, steps that return when they are enqueued.
    pub(crate) fn new(session: &Arc<Session>) -> Setup {
        let specs = [[4, 3], [2, 8]].map(|shape| TensorSpec::new(DType::F32, shape).unwrap());
        let mut cuda = CudaOptions::new(0);
        cuda.is_stream_ordered = true;
        Setup {
            session: Arc::clone(session),
            boundaries: Boundaries::uniform(specs.to_vec()).unwrap(),
            cuda,
            num_devices: 1,
            timeout: Duration::from_secs(30),
            behaviour: Behaviour::default(),
        }
    }

    pub(crate) fn options(&self) -> Options {
        Options { timeout: self.timeout, ..Options::new(self.boundaries.clone()) }
    }

    /// The ranks of `schedule`, each on a thread of its own, joined in this process.
    pub(crate) fn inproc(&self, schedule: &Schedule) -> (RankThreads<FlowRank>, Arc<Flow>) {
        let inproc = Inproc::new(schedule.num_ranks()).unwrap();
        self.ranks(schedule, move |_| CudaLink::inproc(&inproc))
    }

    /// The ranks of `schedule`, each on a thread of its own, joined by whatever `link` gives each.
    pub(crate) fn ranks(
        &self,
        schedule: &Schedule,
        link: impl Fn(usize) -> CudaLink + Clone + Send + 'static,
    ) -> (RankThreads<FlowRank>, Arc<Flow>) {
        let flow = Arc::new(Flow::default());
        let make = self.maker(schedule, &flow, by_link(link));
        (RankThreads::new(schedule.num_ranks(), move |rank| make(rank).unwrap()), flow)
    }

    /// As [`Setup::ranks`], with executors that `make` makes, of a program, options, and the rank's stream.
    pub(crate) fn ranks_by(
        &self,
        schedule: &Schedule,
        make: impl MakeExecutor,
    ) -> (RankThreads<FlowRank>, Arc<Flow>) {
        let flow = Arc::new(Flow::default());
        let make = self.maker(schedule, &flow, make);
        (RankThreads::new(schedule.num_ranks(), move |rank| make(rank).unwrap()), flow)
    }

    /// As [`Setup::ranks`], where executors may fail to be made.
    pub(crate) fn try_ranks(
        &self,
        schedule: &Schedule,
        link: impl Fn(usize) -> CudaLink + Clone + Send + 'static,
    ) -> RankThreads<Result<FlowRank, Error>> {
        let make = self.maker(schedule, &Arc::default(), by_link(link));
        RankThreads::new(schedule.num_ranks(), make)
    }

    fn maker(
        &self,
        schedule: &Schedule,
        flow: &Arc<Flow>,
        make_executor: impl MakeExecutor,
    ) -> impl Fn(usize) -> Result<FlowRank, Error> + Clone + Send + 'static {
        let programs: Arc<[Program]> = lower(schedule).unwrap().into();
        let (setup, flow) = (self.clone(), Arc::clone(flow));
        move |rank: usize| {
            setup.session.set_rank(rank);
            let mut cuda = setup.cuda.clone();
            cuda.device = rank % setup.num_devices;
            let device = Device::new(cuda.device);
            // SAFETY: it outlives the executor, which is dropped first.
            let cuda = unsafe { cuda.with_compute_stream(device.stream()) };
            let program = programs[rank].clone();
            let (executor, pool) =
                make_executor(program, setup.options(), &cuda, &setup.session, device.stream())?;
            let (session, flow) = (Arc::clone(&setup.session), Arc::clone(&flow));
            let tasks = FlowTasks {
                pool,
                device,
                session,
                flow,
                rank,
                behaviour: setup.behaviour,
                seen: BTreeMap::new(),
                ran: 0,
            };
            Ok(FlowRank { executor, tasks })
        }
    }
}

/// Enqueues a step on all ranks, lets the device run it in the order of its seed, and waits for its end.
pub(crate) fn step(ranks: &RankThreads<FlowRank>, flow: &Flow, session: &Session) -> Vec<Result<(), Error>> {
    flow.step.fetch_add(1, Ordering::Relaxed);
    let enqueued = ranks.all(|_, rank| {
        rank.tasks.surround();
        let stepped = rank.executor.step(&mut rank.tasks);
        rank.tasks.surround();
        stepped
    });
    session.run();
    let waited = ranks.all(|_, rank| rank.executor.synchronize(Duration::from_secs(20)));
    let both = enqueued.into_iter().zip(waited);
    both.map(|(enqueued, waited)| {
        enqueued?;
        assert!(waited?, "the device did not end the step");
        Ok(())
    })
    .collect()
}

/// As [`step`], without faults and with the right data.
pub(crate) fn good_step(ranks: &RankThreads<FlowRank>, flow: &Flow, session: &Session, what: &str) {
    for (rank, ended) in step(ranks, flow, session).into_iter().enumerate() {
        assert_eq!(ended.map_err(|e| e.to_string()), Ok(()), "{what}, rank {rank}: {}", session.report());
    }
    let wrong = flow.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{what}: {:?}", &wrong[..wrong.len().min(3)]);
}
