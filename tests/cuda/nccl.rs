//! Ranks joined by NCCL, on the stand-in NCCL: what they compute, in which order, and how they fail.

use std::time::{Duration, Instant};

use dualpipe::execute::{nccl_unique_id, nccl_version, CudaLink, GraphState, NcclOptions};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::ErrorKind;

use crate::flow::{good_step, step, Flow, FlowRank, Setup};
use crate::rank_threads::RankThreads;
use crate::standin::{Session, EAGER, LAZY, RANK_LOCAL};
use std::sync::Arc;

const VERSION: i32 = 22809;
/// NCCL's `ncclInternalError` and `ncclRemoteError`.
const INTERNAL_ERROR: i32 = 3;
const REMOTE_ERROR: i32 = 6;

fn link(schedule: &Schedule) -> impl Fn(usize) -> CudaLink + Clone + Send + 'static {
    let id = nccl_unique_id(schedule.placement()).unwrap();
    move |_| CudaLink::nccl(NcclOptions::new(id.clone()))
}

fn ranks(setup: &Setup, schedule: &Schedule) -> (RankThreads<FlowRank>, Arc<Flow>) {
    setup.ranks(schedule, link(schedule))
}

#[test]
fn every_order_of_the_devices_work_has_the_right_data_over_nccl_too() {
    for schedule in [
        dualpipe(2, 4, Work::Training),
        dualpipe(4, 8, Work::Training),
        dualpipe(8, 14, Work::ForwardOnly),
        dualpipe_v(2, 6, Work::Training),
        one_f_one_b(4, 6, Work::Training),
    ] {
        let schedule = schedule.unwrap();
        for seed in 0..16 {
            let what = format!("{}, seed {seed}", schedule.title());
            // A lazy device would never connect what the hosts wait for.
            let session = Session::with_nccl(seed, EAGER, 8, RANK_LOCAL, VERSION);
            assert_eq!(nccl_version().unwrap(), VERSION as u32);
            let mut setup = Setup::new(&session);
            setup.num_devices = if seed % 2 == 0 { 8 } else { 1 };
            setup.cuda.has_comm_stream = seed % 3 == 0;
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
fn no_wait_can_be_spared_over_nccl() {
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
            flow.step.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
            let is_found = session.report().contains("race") || !flow.wrong.lock().unwrap().is_empty();
            let report = session.report();
            drop(ranks);
            (counts, is_found, report)
        };
        let (counts, is_found, report) = run(None);
        assert!(!is_found, "{report}");
        for (rank, count) in counts.iter().enumerate() {
            for ordinal in 0..*count {
                let (_, is_found, _) = run(Some((rank, ordinal)));
                assert!(
                    is_found,
                    "{}: wait {ordinal} of {count} of rank {rank} can be spared",
                    schedule.title()
                );
            }
        }
    }
}

#[test]
fn shapes_and_absent_gradients_travel_in_headers() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    for seed in 0..8 {
        let session = Session::with_nccl(seed, EAGER, 4, RANK_LOCAL, VERSION);
        let mut setup = Setup::new(&session);
        setup.num_devices = 4;
        setup.cuda.exchanges_shapes = true;
        setup.behaviour.rows = |pass| Some(i64::from(pass.microbatch.0 % 3));
        setup.behaviour.is_absent = |pass| pass.microbatch.0 == 2;
        let (ranks, flow) = ranks(&setup, &schedule);
        for _ in 0..3 {
            good_step(&ranks, &flow, &session, "headers");
        }
        drop(ranks);
        session.assert_clean("headers");
    }
}

#[test]
fn without_headers_an_absent_gradient_is_refused() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
    let mut setup = Setup { timeout: Duration::from_millis(500), ..Setup::new(&session) };
    setup.behaviour.is_absent = |_| true;
    let (ranks, flow) = ranks(&setup, &schedule);
    let errors: Vec<String> = step_errors(&ranks, &flow, &session);
    assert!(
        errors.iter().any(|e| e.contains("gradient 0 is absent, which only exchanges_shapes")),
        "{errors:?}"
    );
}

fn step_errors(ranks: &RankThreads<FlowRank>, flow: &Flow, session: &Session) -> Vec<String> {
    let ended = step(ranks, flow, session);
    ended.into_iter().map(|ended| ended.unwrap_err().to_string()).collect()
}

#[test]
fn a_captured_step_is_launched_over_nccl_too() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    for seed in 0..6 {
        let session = Session::with_nccl(seed, EAGER, 4, 0, VERSION);
        let mut setup = Setup::new(&session);
        setup.num_devices = 4;
        setup.cuda.uses_graph = true;
        let (ranks, flow) = ranks(&setup, &schedule);
        for _ in 0..5 {
            good_step(&ranks, &flow, &session, "graph");
        }
        let states = ranks.all(|_, rank| rank.executor.graph());
        assert!(states.iter().all(|state| *state == GraphState::Captured), "{states:?}");
        drop(ranks);
        session.assert_clean("graph");
    }
}

#[test]
fn every_lost_message_ends_all_ranks_within_the_deadline() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    let timeout = Duration::from_millis(400);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)] {
        for ordinal in 0..6 {
            let what = format!("message {ordinal} from {from} to {to}");
            let session = Session::with_nccl(ordinal, EAGER, 4, 0, VERSION);
            let setup = Setup { num_devices: 4, timeout, ..Setup::new(&session) };
            let (ranks, flow) = ranks(&setup, &schedule);
            // SAFETY: the stand-in's functions may be called at any time.
            unsafe { (session.nccl().nccl_standin_drop)(from, to, ordinal * 2) };
            let began = Instant::now();
            let ended = step(&ranks, &flow, &session);
            assert!(began.elapsed() < 20 * timeout, "{what}: {:?}", began.elapsed());
            // NCCL tells the others nothing: each that depends on the message finds out by its own deadline.
            let error = ended[to as usize].as_ref().unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {text}");
            assert!(text.contains(&format!("rank {to}, instruction ")), "{what}: {text}");
            assert!(text.contains(&format!("from rank {from}")), "{what}: {text}");
            assert!(text.contains(&format!("on the receive stream from rank {from}")), "{what}: {text}");
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn an_asynchronous_error_is_told_in_nccls_words() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    for ordinal in [0, 3, 9, 14] {
        let session = Session::with_nccl(ordinal, EAGER, 4, 0, VERSION);
        let setup = Setup { num_devices: 4, timeout: Duration::from_secs(2), ..Setup::new(&session) };
        let (ranks, flow) = ranks(&setup, &schedule);
        // SAFETY: as above.
        unsafe { (session.nccl().nccl_standin_async_error)(2, ordinal, REMOTE_ERROR) };
        let errors = step_errors(&ranks, &flow, &session);
        assert!(errors[2].contains("rank 2, instruction"), "{errors:?}");
        assert!(errors[2].contains("remote process"), "{errors:?}");
        drop(ranks);
        session.assert_clean("asynchronous error");
    }
}

#[test]
fn a_call_that_fails_is_told_in_nccls_words() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    for (function, ordinal) in [("ncclSend", 1), ("ncclRecv", 2), ("ncclGroupEnd", 3)] {
        let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
        let setup = Setup { num_devices: 2, timeout: Duration::from_millis(300), ..Setup::new(&session) };
        let (ranks, flow) = ranks(&setup, &schedule);
        let name = std::ffi::CString::new(function).unwrap();
        // SAFETY: as above.
        unsafe { (session.nccl().nccl_standin_fail_call)(name.as_ptr(), ordinal, INTERNAL_ERROR) };
        let errors = step_errors(&ranks, &flow, &session);
        assert!(errors.iter().any(|e| e.contains("internal error")), "{function}: {errors:?}");
        drop(ranks);
        session.assert_clean(function);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_within_the_deadline() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 4, 0, VERSION);
    // SAFETY: as above.
    unsafe { (session.nccl().nccl_standin_hang_init)(1) };
    let setup = Setup { num_devices: 4, timeout: Duration::from_millis(200), ..Setup::new(&session) };
    let began = Instant::now();
    let made = setup.try_ranks(&schedule, link(&schedule));
    let errors = made.all(|_, rank| rank.as_ref().err().map(|e| (e.kind(), e.to_string())));
    assert!(began.elapsed() < Duration::from_secs(10));
    for (rank, error) in errors.iter().enumerate() {
        let (kind, text) = error.as_ref().unwrap();
        assert_eq!(*kind, ErrorKind::Timeout, "{text}");
        assert!(text.contains(&format!("rank {rank} waited for rank ")), "{text}");
    }
    drop(made);
    session.assert_clean("nobody came");
}

#[test]
fn an_abort_that_hangs_holds_nobody() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 2, 0, VERSION);
    let setup = Setup { num_devices: 2, timeout: Duration::from_millis(200), ..Setup::new(&session) };
    let (ranks, flow) = ranks(&setup, &schedule);
    // SAFETY: as above.
    unsafe {
        (session.nccl().nccl_standin_drop)(0, 1, 2);
        (session.nccl().nccl_standin_hang_abort)(1);
    }
    let began = Instant::now();
    step_errors(&ranks, &flow, &session);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // SAFETY: as above.
    unsafe { (session.nccl().nccl_standin_hang_abort)(0) };
    drop(ranks);
}

#[test]
fn several_ranks_on_one_device_are_explained_where_nccl_refuses_them() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    for version in [VERSION, 23004] {
        let session = Session::with_nccl(1, EAGER, 1, 0, version);
        // SAFETY: as above.
        unsafe { (session.nccl().nccl_standin_forbid_same_device)(1) };
        let setup = Setup { timeout: Duration::from_millis(500), ..Setup::new(&session) };
        let made = setup.try_ranks(&schedule, link(&schedule));
        let errors: Vec<_> = made.all(|_, rank| rank.as_ref().err().map(ToString::to_string));
        let text = errors.into_iter().flatten().next().unwrap();
        assert!(text.contains("NCCL_MULTI_RANK_GPU_ENABLE=1"), "{text}");
        drop(made);
        session.assert_clean("one device");
    }
}

#[test]
fn an_id_of_another_length_is_refused() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    let session = Session::with_nccl(1, EAGER, 1, 0, VERSION);
    let setup = Setup::new(&session);
    let made = setup.try_ranks(&schedule, |_| CudaLink::nccl(NcclOptions::new(vec![0; 128])));
    for error in made.all(|_, rank| rank.as_ref().err().map(ToString::to_string)) {
        let text = error.unwrap();
        assert!(text.contains("the length of unique_id is 128, must be 768 for the 6 links"), "{text}");
    }
    drop(made);
    session.assert_clean("wrong id");
}
