//! Messages that NCCL puts by copy engines, on the stand-in NCCL: `zero_cta`.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dualpipe::execute::{nccl_unique_id, CudaLink, DType, GraphState, NcclOptions, TensorSpec};
use dualpipe::ids::{Direction, Microbatch};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::ErrorKind;

use crate::flow::{good_step, step, Flow, FlowRank, Setup};
use crate::rank_threads::RankThreads;
use crate::standin::{Session, EAGER, LAZY, RANK_LOCAL};

const VERSION: i32 = 23004;
/// NCCL's `ncclInternalError` and `ncclRemoteError`.
const INTERNAL_ERROR: i32 = 3;
const REMOTE_ERROR: i32 = 6;

fn link(schedule: &Schedule) -> impl Fn(usize) -> CudaLink + Clone + Send + 'static {
    let mut options = NcclOptions::new(nccl_unique_id(schedule.placement()).unwrap());
    options.zero_cta = true;
    move |_| CudaLink::nccl(options.clone())
}

fn ranks(setup: &Setup, schedule: &Schedule) -> (RankThreads<FlowRank>, Arc<Flow>) {
    setup.ranks(schedule, link(schedule))
}

/// What each rank says that cannot be made.
fn refusals(setup: &Setup, schedule: &Schedule) -> Vec<(ErrorKind, String)> {
    let made = setup.try_ranks(schedule, link(schedule));
    made.all(|_, rank| rank.as_ref().err().map(|e| (e.kind(), e.to_string())).unwrap())
}

/// No abort wakes a stream that waits for a signal, and the test's own memory is to come back, also if it fails.
struct Waits<'a>(&'a Session);

impl Waits<'_> {
    fn release(&self) {
        // SAFETY: the stand-in's functions may be called at any time.
        unsafe { (self.0.nccl().nccl_standin_release_waits)() };
        self.0.run();
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.release();
        }
    }
}

/// After a fault: what waits for ever was let alone.
fn end(ranks: RankThreads<FlowRank>, waits: Waits<'_>, what: &str) {
    let session = waits.0;
    assert_eq!(session.report(), "", "{what}");
    waits.release();
    drop(ranks);
    // What did not wait races; but nothing was taken from it.
    let report = session.report();
    assert!(report.lines().all(|line| line.starts_with("race: ")), "{what}: {report}");
}

fn f32s(shape: &[i64]) -> Vec<TensorSpec> {
    vec![TensorSpec::new(DType::F32, shape).unwrap()]
}

#[test]
fn every_order_of_the_devices_work_has_the_right_data() {
    for schedule in [
        dualpipe(2, 4, Work::Training),
        dualpipe(4, 8, Work::Training),
        dualpipe(8, 14, Work::ForwardOnly),
        dualpipe_v(2, 6, Work::Training),
        one_f_one_b(4, 6, Work::Training),
    ] {
        let schedule = schedule.unwrap();
        for seed in crate::seeds(16) {
            let what = format!("{}, seed {seed}", schedule.title());
            let session = Session::with_nccl(seed, EAGER, 8, RANK_LOCAL, VERSION);
            let mut setup = Setup::new(&session);
            setup.num_devices = if seed % 2 == 0 { 8 } else { 1 };
            setup.cuda.has_comm_stream = seed % 3 == 0;
            setup.cuda.is_timed = seed % 3 == 1;
            // One that is empty, and one that fills its slot.
            setup.boundaries.set_microbatch(Direction::Down, Microbatch(0), f32s(&[0])).unwrap();
            setup.boundaries.set_microbatch(Direction::Down, Microbatch(1), f32s(&[33])).unwrap();
            let (ranks, flow) = ranks(&setup, &schedule);
            for _ in 0..3 {
                good_step(&ranks, &flow, &session, &what);
            }
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn no_wait_can_be_spared() {
    for schedule in [dualpipe(4, 6, Work::Training), one_f_one_b(3, 5, Work::Training)] {
        let schedule = schedule.unwrap();
        let run = |skipped: Option<(usize, u64)>| {
            let session = Session::with_nccl(1, LAZY, 1, RANK_LOCAL, VERSION);
            // SAFETY: the stand-in's functions may be called at any time.
            unsafe { (session.nccl().nccl_standin_connect_at_first_use)(0) };
            if let Some((rank, ordinal)) = skipped {
                session.skip_wait(rank, ordinal);
            }
            let (ranks, flow) = ranks(&Setup::new(&session), &schedule);
            flow.step.fetch_add(1, Ordering::Relaxed);
            let enqueued = ranks.all(|_, rank| {
                rank.tasks.surround();
                let stepped = rank.executor.step(&mut rank.tasks);
                rank.tasks.surround();
                rank.tasks.trample();
                stepped
            });
            assert!(enqueued.iter().all(Result::is_ok), "{enqueued:?}");
            session.run();
            let counts: Vec<u64> = (0..schedule.num_ranks()).map(|rank| session.num_waits(rank)).collect();
            let report = session.report();
            let is_found = report.contains("race") || !flow.wrong.lock().unwrap().is_empty();
            drop(ranks);
            (counts, is_found, report)
        };
        let (counts, is_found, report) = run(None);
        assert!(!is_found, "{report}");
        for (rank, count) in counts.iter().enumerate() {
            assert!(*count > 0);
            for ordinal in 0..*count {
                let (_, is_found, _) = run(Some((rank, ordinal)));
                let what = schedule.title();
                assert!(is_found, "{what}: wait {ordinal} of {count} of rank {rank} can be spared");
            }
        }
    }
}

#[test]
fn larger_messages_later_have_larger_slots() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    for uses_graph in [false, true] {
        for seed in crate::seeds(6) {
            let what = format!("graph {uses_graph}, seed {seed}");
            let session = Session::with_nccl(seed, EAGER, 4, 0, VERSION);
            let mut setup = Setup { num_devices: 4, ..Setup::new(&session) };
            setup.cuda.uses_graph = uses_graph;
            let (ranks, flow) = ranks(&setup, &schedule);
            // The second is larger for some only, the third for none.
            for (round, size) in [0, 100, 50, 1000].into_iter().enumerate() {
                let mut boundaries = setup.boundaries.clone();
                if round > 0 {
                    boundaries.set_microbatch(Direction::Up, Microbatch(1), f32s(&[size])).unwrap();
                }
                let changed = ranks.all(move |_, rank| rank.executor.set_boundaries(boundaries));
                assert!(changed.iter().all(Result::is_ok), "{what}: {changed:?}");
                for _ in 0..3 {
                    good_step(&ranks, &flow, &session, &what);
                }
            }
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn a_captured_step_is_launched() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    for seed in crate::seeds(6) {
        for version in [VERSION, 22907] {
            let session = Session::with_nccl(seed, EAGER, 4, 0, version);
            let mut setup = Setup { num_devices: 4, ..Setup::new(&session) };
            setup.cuda.uses_graph = true;
            let (ranks, flow) = ranks(&setup, &schedule);
            for _ in 0..5 {
                good_step(&ranks, &flow, &session, "graph");
            }
            let why = "zero_cta in a graph needs NCCL 2.30 or newer, this is 2.29.7";
            let expected = match version {
                VERSION => GraphState::Captured,
                _ => GraphState::FellBack(why.into()),
            };
            assert!(ranks.all(|_, rank| rank.executor.graph()).iter().all(|state| *state == expected));
            drop(ranks);
            session.assert_clean("graph");
        }
    }
}

#[test]
fn a_lost_message_ends_all_ranks_within_the_deadline() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    let timeout = Duration::from_millis(150);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)] {
        for ordinal in 0..6 {
            let what = format!("message {ordinal} from {from} to {to}");
            let session = Session::with_nccl(ordinal, EAGER, 4, 0, VERSION);
            let setup = Setup { num_devices: 4, timeout, ..Setup::new(&session) };
            let (ranks, flow) = ranks(&setup, &schedule);
            let waits = Waits(&session);
            // SAFETY: the stand-in's functions may be called at any time.
            unsafe { (session.nccl().nccl_standin_drop)(from, to, ordinal) };
            let began = Instant::now();
            let ended = step(&ranks, &flow, &session);
            let error = ended[to as usize].as_ref().unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {text}");
            assert!(text.contains(&format!("rank {to}, instruction ")), "{what}: {text}");
            assert!(text.contains(&format!("on the receive stream from rank {from}")), "{what}: {text}");
            assert!(began.elapsed() < 30 * timeout, "{what}: {:?}", began.elapsed());
            end(ranks, waits, &what);
        }
    }
}

#[test]
fn a_task_that_fails_anywhere_ends_all_ranks_within_the_deadline() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    let timeout = Duration::from_millis(150);
    for rank in 0..4 {
        for at in (0..schedule.tasks(dualpipe::ids::Rank(rank as u32)).len()).step_by(3) {
            let what = format!("task {at} of rank {rank}");
            let session = Session::with_nccl(at as u64, EAGER, 4, 0, VERSION);
            let mut setup = Setup { num_devices: 4, timeout, ..Setup::new(&session) };
            setup.behaviour.fails = Some((rank, at));
            let (ranks, flow) = ranks(&setup, &schedule);
            let waits = Waits(&session);
            let began = Instant::now();
            let ended = step(&ranks, &flow, &session);
            assert!(ended[rank].as_ref().unwrap_err().to_string().contains("told to"), "{what}: {ended:?}");
            assert!(began.elapsed() < 30 * timeout, "{what}: {:?}", began.elapsed());
            end(ranks, waits, &what);
        }
    }
}

#[test]
fn a_call_that_fails_is_told_in_nccls_words() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    for (function, ordinal) in [("ncclPutSignal", 1), ("ncclWaitSignal", 0), ("ncclSignal", 2)] {
        let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
        let setup = Setup { num_devices: 2, timeout: Duration::from_millis(300), ..Setup::new(&session) };
        let (ranks, flow) = ranks(&setup, &schedule);
        let waits = Waits(&session);
        let name = std::ffi::CString::new(function).unwrap();
        // SAFETY: as above.
        unsafe { (session.nccl().nccl_standin_fail_call)(name.as_ptr(), ordinal, INTERNAL_ERROR) };
        let errors: Vec<String> = step(&ranks, &flow, &session)
            .into_iter()
            .filter_map(|e| e.err().map(|e| e.to_string()))
            .collect();
        assert!(errors.iter().any(|e| e.contains(&format!("{function}: internal error"))), "{errors:?}");
        end(ranks, waits, function);
    }
}

#[test]
fn an_asynchronous_error_is_told_in_nccls_words() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    for ordinal in [0, 3, 9, 14] {
        let session = Session::with_nccl(ordinal, EAGER, 4, 0, VERSION);
        let setup = Setup { num_devices: 4, timeout: Duration::from_millis(300), ..Setup::new(&session) };
        let (ranks, flow) = ranks(&setup, &schedule);
        let waits = Waits(&session);
        // SAFETY: as above.
        unsafe { (session.nccl().nccl_standin_async_error)(2, ordinal, REMOTE_ERROR) };
        let ended = step(&ranks, &flow, &session);
        let text = ended[2].as_ref().unwrap_err().to_string();
        assert!(text.contains("rank 2, instruction") && text.contains("remote process"), "{text}");
        end(ranks, waits, "asynchronous error");
    }
}

#[test]
fn what_cannot_be_registered_leaves_nothing() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    for (function, kind) in [
        ("ncclMemAlloc", ErrorKind::Device),
        ("ncclCommWindowRegister", ErrorKind::Transport),
        ("ncclCommInitRankConfig", ErrorKind::Transport),
    ] {
        for ordinal in 0..4 {
            let what = format!("{function} {ordinal}");
            let session = Session::with_nccl(ordinal, EAGER, 2, 0, VERSION);
            let setup = Setup { num_devices: 2, timeout: Duration::from_millis(200), ..Setup::new(&session) };
            let name = std::ffi::CString::new(function).unwrap();
            // SAFETY: as above.
            unsafe { (session.nccl().nccl_standin_fail_call)(name.as_ptr(), ordinal, INTERNAL_ERROR) };
            let errors = refusals(&setup, &schedule);
            let text = format!("{function}: internal error");
            assert!(errors.iter().any(|e| e.0 == kind && e.1.contains(&text)), "{what}: {errors:?}");
            session.assert_clean(&what);
        }
    }
}

#[test]
fn windows_that_nccl_does_not_have_are_told() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
    // SAFETY: as above.
    unsafe { (session.nccl().nccl_standin_offer_windows)(0) };
    let setup = Setup { num_devices: 2, ..Setup::new(&session) };
    for (kind, text) in refusals(&setup, &schedule) {
        assert_eq!(kind, ErrorKind::Unavailable);
        assert!(text.contains("NCCL cannot put there: zero_cta needs NVLink"), "{text}");
    }
    session.assert_clean("no windows");
}

#[test]
fn an_nccl_that_cannot_put_is_refused() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 2, 0, 22809);
    for (kind, text) in refusals(&Setup::new(&session), &schedule) {
        assert_eq!(kind, ErrorKind::Unavailable);
        assert_eq!(text, "nccl: zero_cta needs NCCL 2.29 or newer, this is 2.28.9");
    }
    session.assert_clean("too old");
}

#[test]
fn shapes_are_not_exchanged() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
    let mut setup = Setup::new(&session);
    setup.cuda.exchanges_shapes = true;
    for (kind, text) in refusals(&setup, &schedule) {
        assert_eq!(kind, ErrorKind::InvalidArgument);
        assert_eq!(text, "nccl: zero_cta is 1, must be 0 with exchanges_shapes");
    }
    session.assert_clean("exchanged shapes");
}
