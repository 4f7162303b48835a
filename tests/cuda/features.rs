//! What an executor on a device can do besides: several devices, shapes, absent gradients, the caller's memory, times,
//! whole steps as graphs.

use std::ffi::c_void;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cudarc::driver::sys;
use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{CudaLink, DType, Executor, GraphState, Memory, Options, Tensor, TensorSpec};
use dualpipe::ids::{Direction, Microbatch, Stage};
use dualpipe::op::{MessageKind, Pass, StageCopy, Task};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::timeline::{MessageSpan, Span, Timeline};
use dualpipe::ErrorKind;

use crate::flow::{good_step, step, Behaviour, FlowRank, Setup};
use crate::rank_threads::RankThreads;
use crate::standin::{Session, EAGER, LAZY, RANK_LOCAL};

fn training(num_ranks: usize, num_microbatches: usize) -> Schedule {
    dualpipe(num_ranks, num_microbatches, Work::Training).unwrap()
}

#[test]
fn ranks_may_be_on_several_devices() {
    let schedule = training(4, 8);
    for seed in crate::seeds(10) {
        let session = Session::new(seed, LAZY, 4, RANK_LOCAL);
        let setup = Setup { num_devices: 4, ..Setup::new(&session) };
        let (ranks, flow) = setup.inproc(&schedule);
        for _ in 0..2 {
            good_step(&ranks, &flow, &session, "four devices");
        }
        drop(ranks);
        session.assert_clean("four devices");
    }
}

#[test]
fn a_device_that_works_by_itself_ends_steps_that_return_when_it_is_done() {
    for schedule in [training(4, 8), dualpipe_v(2, 5, Work::Training).unwrap()] {
        for seed in crate::seeds(20) {
            let session = Session::new(seed, EAGER, 1, RANK_LOCAL);
            let mut setup = Setup::new(&session);
            setup.cuda.is_stream_ordered = seed % 2 == 0;
            setup.cuda.has_comm_stream = seed % 3 == 0;
            let (ranks, flow) = setup.inproc(&schedule);
            for _ in 0..3 {
                good_step(&ranks, &flow, &session, "eager");
            }
            drop(ranks);
            session.assert_clean("eager");
        }
    }
}

#[test]
fn every_micro_batch_may_have_its_own_shape_and_every_gradient_may_be_absent() {
    let schedule = training(4, 8);
    let f32s = |shape: &[i64]| vec![TensorSpec::new(DType::F32, shape).unwrap()];
    for seed in crate::seeds(10) {
        let session = Session::new(seed, LAZY, 1, RANK_LOCAL);
        let mut setup = Setup::new(&session);
        let copy = StageCopy { direction: Direction::Down, stage: Stage(1) };
        setup.boundaries.set_after(copy, f32s(&[5])).unwrap();
        setup.boundaries.set_microbatch(Direction::Up, Microbatch(2), f32s(&[9, 2])).unwrap();
        setup.boundaries.set_microbatch(Direction::Down, Microbatch(0), f32s(&[0])).unwrap();
        setup.behaviour.is_absent = |pass| pass.microbatch.0 == 3 || pass.stage.0 == 1;
        let (ranks, flow) = setup.inproc(&schedule);
        good_step(&ranks, &flow, &session, "shapes");
        // Other shapes for later steps.
        let mut boundaries = setup.boundaries.clone();
        boundaries.set_microbatch(Direction::Up, Microbatch(1), f32s(&[100])).unwrap();
        let changed = ranks.all(move |_, rank| rank.executor.set_boundaries(boundaries));
        assert!(changed.iter().all(Result::is_ok), "{changed:?}");
        good_step(&ranks, &flow, &session, "other shapes");
        drop(ranks);
        session.assert_clean("shapes");
    }
}

#[test]
fn shapes_travel_with_the_tensors_if_they_are_to() {
    let schedule = training(4, 8);
    let rows = |pass: dualpipe::op::Pass| Some(i64::from(pass.microbatch.0 % 3));
    let session = Session::new(3, LAZY, 1, RANK_LOCAL);
    let mut setup = Setup::new(&session);
    setup.cuda.exchanges_shapes = true;
    setup.behaviour.rows = rows;
    let (ranks, flow) = setup.inproc(&schedule);
    for _ in 0..2 {
        good_step(&ranks, &flow, &session, "exchanged");
    }
    drop(ranks);
    session.assert_clean("exchanged");
    drop((setup, session));
    // Not asked for, a task that changes a shape is told so.
    let session = Session::new(3, EAGER, 1, RANK_LOCAL);
    let mut setup = Setup::new(&session);
    setup.behaviour.rows = rows;
    let (ranks, flow) = setup.inproc(&schedule);
    let ended = step(&ranks, &flow, &session);
    let first = ended.into_iter().filter_map(Result::err).find(|e| e.kind() == ErrorKind::CallbackFailed);
    let text = first.unwrap().to_string();
    assert!(text.contains("shapes are not exchanged"), "{text}");
}

/// The caller's memory on a device, which tasks take for what they make, too. What comes back is trampled on in the
/// order of the compute stream.
pub(crate) struct Pool {
    session: Arc<Session>,
    stream: *mut c_void,
    free: Vec<NonNull<u8>>,
    all: Vec<NonNull<u8>>,
    in_use: Arc<AtomicUsize>,
}

// SAFETY: its stream is a name.
unsafe impl Send for Pool {}

const POOL_BYTES: usize = 256;

impl Pool {
    pub(crate) fn take(&mut self) -> NonNull<u8> {
        self.in_use.fetch_add(1, Ordering::Relaxed);
        self.free.pop().unwrap_or_else(|| {
            let mut address = 0;
            // SAFETY: writes to a local.
            unsafe { assert_eq!(sys::cuMemAlloc_v2(&mut address, POOL_BYTES), sys::CUresult::CUDA_SUCCESS) };
            let data = NonNull::new(address as usize as *mut u8).unwrap();
            self.all.push(data);
            data
        })
    }

    fn give_back(&mut self, data: NonNull<u8>) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        let address = data.as_ptr().addr() as u64;
        let access =
            crate::standin::Access { address, num_bytes: POOL_BYTES as u64, is_write: 1, reserved: 0 };
        // SAFETY: the stand-in's device memory is ordinary memory, there until the pool is dropped.
        let trample = move || unsafe { (address as *mut u8).write_bytes(0xEE, POOL_BYTES) };
        assert_eq!(self.session.launch(self.stream, "pool", &[access], trample), 0);
        self.free.push(data);
    }
}

/// The pool as the executor's memory.
struct FromPool(Arc<Mutex<Pool>>);

impl Memory for FromPool {
    fn allocate(&mut self, _: &Tensor) -> Result<(NonNull<u8>, *mut c_void), String> {
        Ok((self.0.lock().unwrap().take(), null_mut()))
    }

    fn release(&mut self, data: NonNull<u8>, _: *mut c_void) {
        self.0.lock().unwrap().give_back(data);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for data in &self.all {
            // SAFETY: allocated above.
            let _ = unsafe { sys::cuMemFree_v2(data.as_ptr().addr() as u64) };
        }
    }
}

#[test]
fn the_callers_memory_is_used_in_the_order_of_the_compute_stream() {
    let schedule = one_f_one_b(3, 6, Work::Training).unwrap();
    for seed in crate::seeds(20) {
        let session = Session::new(seed, LAZY, 1, RANK_LOCAL);
        let setup = Setup::new(&session);
        let in_use = Arc::new(AtomicUsize::new(0));
        let (ranks, flow) = with_pools(&setup, &schedule, &in_use);
        for _ in 0..2 {
            good_step(&ranks, &flow, &session, "pool");
            assert_eq!(in_use.load(Ordering::Relaxed), 0, "all of it is given back");
        }
        drop(ranks);
        session.assert_clean("pool");
    }
}

fn with_pools(
    setup: &Setup,
    schedule: &Schedule,
    in_use: &Arc<AtomicUsize>,
) -> (RankThreads<FlowRank>, Arc<crate::flow::Flow>) {
    let (inproc, in_use) = (Inproc::new(schedule.num_ranks()).unwrap(), Arc::clone(in_use));
    let make_executor = move |program, options: Options, cuda: &_, session: &Arc<Session>, stream| {
        let (free, all) = (Vec::new(), Vec::new());
        let pool = Pool { session: Arc::clone(session), stream, free, all, in_use: Arc::clone(&in_use) };
        let pool = Arc::new(Mutex::new(pool));
        let options = Options { memory: Some(Box::new(FromPool(Arc::clone(&pool)))), ..options };
        Ok((Executor::on_cuda(program, CudaLink::inproc(&inproc), options, cuda)?, Some(pool)))
    };
    setup.ranks_by(schedule, make_executor)
}

#[test]
fn tasks_and_messages_are_timed_by_events() {
    let schedule = training(4, 8);
    let session = Session::new(1, EAGER, 1, RANK_LOCAL);
    let mut setup = Setup::new(&session);
    setup.cuda.is_timed = true;
    let (ranks, flow) = setup.inproc(&schedule);
    for _ in 0..2 {
        good_step(&ranks, &flow, &session, "timed");
        let parts = ranks.all(|_, rank| rank.executor.timeline().unwrap());
        let timeline = Timeline::merge(&parts).unwrap();
        for (rank, spans) in timeline.spans.iter().enumerate() {
            assert!(spans.iter().all(|span| span.start_ns <= span.end_ns));
            assert!(spans.windows(2).all(|pair| pair[0].end_ns <= pair[1].start_ns + 1_000), "rank {rank}");
            let tasks: Vec<_> = spans.iter().map(|span| span.task).collect();
            assert_eq!(tasks, schedule.tasks(dualpipe::ids::Rank(rank as u32)));
        }
        assert_eq!(timeline.messages.len(), 8 * 2 * 3);
        // What a task reads is there before it begins, on the clock of its device.
        for MessageSpan { message, to, start_ns, end_ns, .. } in &timeline.messages {
            let reader = Pass { stage: message.to_stage(), ..message.pass };
            let is_reader = |span: &&Span| match (span.task, message.kind) {
                (Task::Op(op), MessageKind::Activation) => op.forward() == Some(reader),
                (Task::Op(op), MessageKind::Gradient) => op.backward_input() == Some(reader),
                _ => false,
            };
            let read_by = timeline.spans[to.index()].iter().find(is_reader).unwrap();
            assert!(
                start_ns <= end_ns && *end_ns <= read_by.start_ns + 1_000,
                "{message:?}: {end_ns}, {read_by:?}"
            );
        }
    }
    drop(ranks);
    session.assert_clean("timed");
}

#[test]
fn a_timeline_that_was_not_asked_for_is_refused() {
    let session = Session::new(1, EAGER, 1, 0);
    let (ranks, flow) = Setup::new(&session).inproc(&training(2, 2));
    good_step(&ranks, &flow, &session, "untimed");
    let error = ranks.all(|_, rank| rank.executor.timeline().unwrap_err()).remove(0);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("is_timed"), "{error}");
}

#[test]
fn a_captured_step_does_what_it_did_before() {
    for schedule in [training(2, 4), training(4, 6), dualpipe_v(2, 5, Work::Training).unwrap()] {
        for seed in crate::seeds(8) {
            let what = format!("{}, seed {seed}", schedule.title());
            // One launch for all ranks: none of them is safe by its own waits alone.
            let session = Session::new(seed, if seed % 3 == 0 { EAGER } else { LAZY }, 1, 0);
            let mut setup = Setup::new(&session);
            setup.cuda.uses_graph = true;
            setup.cuda.has_comm_stream = seed % 2 == 0;
            setup.cuda.is_timed = seed % 3 == 0;
            let (ranks, flow) = setup.inproc(&schedule);
            let ran = |ranks: &RankThreads<FlowRank>| ranks.all(|_, rank| rank.tasks.ran);
            let states = |ranks: &RankThreads<FlowRank>| ranks.all(|_, rank| rank.executor.graph());
            good_step(&ranks, &flow, &session, &what);
            assert!(
                states(&ranks).iter().all(|state| *state == GraphState::Warm),
                "{what}: {:?}",
                states(&ranks)
            );
            good_step(&ranks, &flow, &session, &what);
            assert!(
                states(&ranks).iter().all(|state| *state == GraphState::Captured),
                "{what}: {:?}",
                states(&ranks)
            );
            let before = ran(&ranks);
            for _ in 0..3 {
                good_step(&ranks, &flow, &session, &what);
            }
            assert_eq!(ran(&ranks), before, "{what}: a launched step calls no task");
            // Other boundaries: what was captured is of no use any more.
            let boundaries = setup.boundaries.clone();
            assert!(ranks
                .all(move |_, rank| rank.executor.set_boundaries(boundaries))
                .iter()
                .all(Result::is_ok));
            for _ in 0..3 {
                good_step(&ranks, &flow, &session, &what);
            }
            let once: Vec<usize> = before.iter().map(|ran| ran / 2).collect();
            let want: Vec<usize> = before.iter().zip(once).map(|(ran, once)| ran + 2 * once).collect();
            assert_eq!(ran(&ranks), want, "{what}: run once and captured once more");
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn a_step_that_cannot_be_captured_runs_as_usual_and_says_why() {
    let schedule = training(4, 6);
    for at in [0, 3, 9] {
        let session = Session::new(at as u64, LAZY, 1, 0);
        let mut setup = Setup::new(&session);
        setup.cuda.uses_graph = true;
        let num_tasks = schedule.tasks(dualpipe::ids::Rank(2)).len();
        setup.behaviour = Behaviour { spoils_capture: Some((2, num_tasks + at)), ..Behaviour::default() };
        let (ranks, flow) = setup.inproc(&schedule);
        for _ in 0..4 {
            good_step(&ranks, &flow, &session, "spoiled");
        }
        for state in ranks.all(|_, rank| rank.executor.graph()) {
            let GraphState::FellBack(why) = state else { panic!("{state:?}") };
            assert!(why.contains("cannot be captured"), "{why}");
        }
        drop(ranks);
        session.assert_clean("spoiled");
    }
}

#[test]
fn an_executor_is_dropped_in_the_middle_of_a_step_and_leaves_nothing() {
    let session = Session::new(5, EAGER, 1, RANK_LOCAL);
    for _ in 0..10 {
        let (ranks, flow) = Setup::new(&session).inproc(&training(4, 8));
        flow.step.fetch_add(1, Ordering::Relaxed);
        let enqueued = ranks.all(|_, rank| rank.executor.step(&mut rank.tasks).is_ok());
        assert_eq!(enqueued, [true; 4]);
        drop(ranks);
        session.assert_clean("dropped");
    }
}

#[test]
fn steps_that_are_not_over_are_waited_for() {
    let session = Session::new(5, LAZY, 1, RANK_LOCAL);
    let (ranks, flow) = Setup::new(&session).inproc(&training(2, 4));
    flow.step.fetch_add(1, Ordering::Relaxed);
    ranks.all(|_, rank| rank.executor.step(&mut rank.tasks).unwrap());
    let early = ranks.all(|_, rank| rank.executor.synchronize(Duration::from_millis(5)).unwrap());
    assert_eq!(early, [false, false]);
    let error = ranks.all(|_, rank| rank.executor.timeline().unwrap_err()).remove(0);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    session.run();
    let late = ranks.all(|_, rank| rank.executor.synchronize(Duration::from_secs(5)).unwrap());
    assert_eq!(late, [true, true]);
}
