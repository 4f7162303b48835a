//! Whatever goes wrong on a device or in a task ends the step on every rank within the deadline, with rank, instruction
//! and stream; the process lives, and new executors run.

use std::time::{Duration, Instant};

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{CudaLink, CudaOptions, Executor};
use dualpipe::ids::Rank;
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe, dualpipe_v, Schedule, Work};
use dualpipe::{Error, ErrorKind};

use crate::flow::{good_step, step, Behaviour, Flow, FlowRank, Setup};
use crate::rank_threads::RankThreads;
use crate::standin::{Session, EAGER};

/// `CUDA_ERROR_ILLEGAL_ADDRESS`, after which a context is lost.
const ILLEGAL_ADDRESS: i32 = 700;
/// `CUDA_ERROR_OUT_OF_MEMORY`, after which it is not.
const OUT_OF_MEMORY: i32 = 2;
const TIMEOUT: Duration = Duration::from_millis(60);

fn schedule() -> Schedule {
    dualpipe(4, 6, Work::Training).unwrap()
}

/// A step that goes wrong somewhere: every rank has an error, in time.
fn failed_step(ranks: &RankThreads<FlowRank>, flow: &Flow, session: &Session, what: &str) -> Vec<Error> {
    let began = Instant::now();
    let errors = step(ranks, flow, session).into_iter().enumerate().map(|(rank, ended)| match ended {
        Ok(()) => panic!("{what}: rank {rank} did not notice"),
        Err(error) => error,
    });
    let errors: Vec<Error> = errors.collect();
    assert!(began.elapsed() < 60 * TIMEOUT, "{what}: {:?}", began.elapsed());
    for (rank, error) in errors.iter().enumerate() {
        let text = error.to_string();
        assert!(text.contains(&format!("rank {rank}, instruction ")), "{what}: {text}");
    }
    // Once more: they say so at once.
    let again = ranks.all(|_, rank| (rank.executor.step(&mut rank.tasks), rank.executor.fault().is_some()));
    for (again, has_fault) in again {
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Poisoned, "{what}");
        assert!(has_fault, "{what}");
    }
    errors
}

#[test]
fn a_task_that_fails_anywhere_is_told_to_all_ranks() {
    let schedule = schedule();
    for rank in 0..4 {
        for at in 0..schedule.tasks(Rank(rank as u32)).len() {
            let what = format!("task {at} of rank {rank}");
            let session = Session::new(at as u64, EAGER, 1, 0);
            let behaviour = Behaviour { fails: Some((rank, at)), ..Behaviour::default() };
            let setup = Setup { behaviour, timeout: Duration::from_secs(5), ..Setup::new(&session) };
            let (ranks, flow) = setup.inproc(&schedule);
            let ended = step(&ranks, &flow, &session);
            let error = ended[rank].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CallbackFailed, "{what}: {error}");
            assert!(error.to_string().contains("told to"), "{what}: {error}");
            for (other, ended) in ended.iter().enumerate().filter(|(other, _)| *other != rank) {
                // A rank that had already enqueued all of its step may see it end well.
                if let Err(error) = ended {
                    assert_eq!(error.kind(), ErrorKind::PeerFailed, "{what}, rank {other}: {error}");
                    assert!(error.to_string().contains("told to"), "{what}, rank {other}: {error}");
                }
            }
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn work_that_never_ends_anywhere_ends_the_step_within_the_deadline() {
    let schedule = schedule();
    let num_ops = count_ops(&schedule, 1);
    for rank in 0..4 {
        for op in 0..num_ops[rank] {
            let what = format!("op {op} of rank {rank}");
            let session = Session::new(op, EAGER, 1, 0);
            let setup = Setup { timeout: TIMEOUT, ..Setup::new(&session) };
            session.hang_op(rank, op);
            let (ranks, flow) = setup.inproc(&schedule);
            let ended = step_of_tasks(&ranks, &flow, &session);
            // Nobody waits for the end of the very last work but its own rank.
            let errors: Vec<&Error> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
            let own = ended[rank].as_ref().unwrap_err();
            let text = own.to_string();
            assert!(text.contains(&format!("rank {rank}, instruction ")), "{what}: {text}");
            assert!(errors.iter().any(|error| error.kind() == ErrorKind::Timeout), "{what}: {errors:?}");
            session.release();
            drop(ranks);
            // The process lives, and so does the device: new executors run.
            let (ranks, flow) = Setup { timeout: Duration::from_secs(20), ..setup }.inproc(&schedule);
            good_step(&ranks, &flow, &session, &what);
            drop(ranks);
        }
    }
}

/// As [`step`], with nothing of the caller's around it.
fn step_of_tasks(ranks: &RankThreads<FlowRank>, flow: &Flow, session: &Session) -> Vec<Result<(), Error>> {
    let began = Instant::now();
    flow.step.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let enqueued = ranks.all(|_, rank| rank.executor.step(&mut rank.tasks));
    session.run();
    let waited = ranks.all(|_, rank| rank.executor.synchronize(Duration::from_secs(20)));
    assert!(began.elapsed() < 60 * TIMEOUT, "{:?}", began.elapsed());
    let both = enqueued.into_iter().zip(waited);
    both.map(|(enqueued, waited)| enqueued.and_then(|()| waited.map(|_| ()))).collect()
}

/// How much work a step of each rank is for its device.
fn count_ops(schedule: &Schedule, num_devices: u32) -> Vec<u64> {
    let session = Session::new(0, EAGER, num_devices, 0);
    let setup = Setup { num_devices: num_devices as usize, ..Setup::new(&session) };
    let (ranks, flow) = setup.inproc(schedule);
    assert!(step_of_tasks(&ranks, &flow, &session).iter().all(Result::is_ok));
    (0..schedule.num_ranks()).map(|rank| session.num_ops(rank)).collect()
}

#[test]
fn a_device_that_is_lost_anywhere_is_told_by_its_rank() {
    let schedule = schedule();
    let num_ops = count_ops(&schedule, 4);
    for rank in 0..4 {
        for op in (0..num_ops[rank]).step_by(3) {
            let what = format!("op {op} of rank {rank}");
            let session = Session::new(op, EAGER, 4, 0);
            let setup = Setup { num_devices: 4, timeout: Duration::from_millis(800), ..Setup::new(&session) };
            session.fail_op(rank, op, ILLEGAL_ADDRESS);
            let (ranks, flow) = setup.inproc(&schedule);
            let ended = step_of_tasks(&ranks, &flow, &session);
            // Whoever enqueues next hears of it first: the rank, its task, or a peer that waits for the lost device.
            let text = ended[rank].as_ref().unwrap_err().to_string();
            let is_told = |text: &str| {
                text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)") && text.contains("lost the device")
            };
            assert!(is_told(&text) || text.contains("launch: 700"), "{what}: {text}");
            session.release();
            drop(ranks);
        }
    }
}

#[test]
fn a_driver_call_that_fails_is_told_with_its_name() {
    let schedule = schedule();
    for function in ["cuEventRecord", "cuStreamWaitEvent", "cuMemcpyAsync"] {
        for ordinal in [0, 1, 7, 20] {
            let what = format!("{function} {ordinal}");
            let session = Session::new(ordinal, EAGER, 1, 0);
            let setup = Setup { timeout: Duration::from_secs(2), ..Setup::new(&session) };
            let (ranks, flow) = setup.inproc(&schedule);
            session.fail_call(function, ordinal, OUT_OF_MEMORY);
            let errors = failed_step(&ranks, &flow, &session, &what);
            let own: Vec<&Error> = errors.iter().filter(|error| error.kind() == ErrorKind::Device).collect();
            assert_eq!(own.len(), 1, "{what}: {errors:?}");
            let text = own[0].to_string();
            assert!(text.contains(&format!("{function}: CUDA_ERROR_OUT_OF_MEMORY (2)")), "{what}: {text}");
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn an_executor_that_cannot_be_made_leaves_nothing() {
    let schedule = dualpipe_v(1, 2, Work::Training).unwrap();
    let functions = [
        "cuMemAlloc",
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuStreamCreateWithPriority",
        "cuDevicePrimaryCtxRetain",
    ];
    for function in functions {
        let mut failed = 0;
        for ordinal in 0..12 {
            let what = format!("{function} {ordinal}");
            let session = Session::new(1, EAGER, 1, 0);
            let mut setup = Setup::new(&session);
            setup.cuda.has_comm_stream = true;
            setup.cuda.is_timed = true;
            setup.cuda.uses_graph = true;
            // The test's own device takes one of each first.
            let is_callers = matches!(function, "cuMemAlloc" | "cuDevicePrimaryCtxRetain");
            session.fail_call(function, ordinal + u64::from(is_callers), OUT_OF_MEMORY);
            let inproc = Inproc::new(1).unwrap();
            let made = setup.try_ranks(&schedule, move |_| CudaLink::inproc(&inproc));
            let error = made.all(|_, rank| rank.as_ref().err().map(|e| (e.kind(), e.to_string()))).remove(0);
            drop(made);
            session.assert_clean(&what);
            let Some((kind, text)) = error else { break };
            assert_eq!(kind, ErrorKind::Device, "{what}: {text}");
            assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{what}: {text}");
            failed += 1;
        }
        assert!(failed > 0, "{function} is never called");
    }
}

#[test]
fn a_device_that_there_is_not_is_refused() {
    let session = Session::new(1, EAGER, 1, 0);
    let program = lower(&dualpipe_v(1, 2, Work::Training).unwrap()).unwrap().remove(0);
    let link = CudaLink::inproc(&Inproc::new(1).unwrap());
    let options = Setup::new(&session).options();
    let error = Executor::on_cuda(program, link, options, &CudaOptions::new(1)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.to_string(), "cuda: device is 1, must be 0 to 0");
    session.assert_clean("no such device");
}
