//! Executors on threads of one process: what they compute, how they fail, what they cost.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{run_ranks, Boundaries, DType, Executor, Options, PassTensors, TaskRun, TensorSpec};
use dualpipe::ids::{Direction, Microbatch, Rank};
use dualpipe::op::{Pass, StageCopy, Task};
use dualpipe::program::{lower, Instruction};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::timeline::Timeline;
use dualpipe::{Error, ErrorKind};
use support::family;

fn f32s(shape: &[i64]) -> TensorSpec {
    TensorSpec::new(DType::F32, shape).unwrap()
}

fn options(boundaries: &Boundaries) -> Options {
    Options { timeout: Duration::from_millis(2000), ..Options::new(boundaries.clone()) }
}

fn executors(schedule: &Schedule, boundaries: &Boundaries, timeout: Duration) -> Vec<Executor> {
    let inproc = Inproc::new(schedule.num_ranks()).unwrap();
    let programs = lower(schedule).unwrap();
    let executor = |program: dualpipe::program::Program| {
        let transport = inproc.transport(program.rank()).unwrap();
        Executor::new(program, transport, Options { timeout, ..options(boundaries) }).unwrap()
    };
    programs.into_iter().map(executor).collect()
}

/// A number that no other pass has.
fn signature(pass: Pass, is_gradient: bool) -> f32 {
    let Pass { direction, stage, microbatch } = pass;
    (direction.index() * 100_000 + stage.index() * 1_000 + microbatch.index() * 2) as f32
        + is_gradient as u8 as f32
}

/// Fills what it makes with its signature, and expects the neighbours' in what it gets.
struct Checker {
    num_stages: usize,
    gradient_is_absent: fn(Pass) -> bool,
    ran: Vec<Task>,
}

impl Checker {
    fn check(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
        self.ran.push(run.task);
        if let Some(pass) = &mut run.forward {
            self.inputs(pass)?;
            let want = if pass.pass.stage.index() + 1 < self.num_stages { 2 } else { 0 };
            if pass.outputs.len() != want {
                return Err(format!("{} outputs", pass.outputs.len()));
            }
            for tensor in &mut *pass.outputs {
                tensor.as_mut_slice::<f32>().ok_or("no output")?.fill(signature(pass.pass, false));
            }
        }
        if let Some(pass) = &mut run.backward {
            self.inputs(pass)?;
            let mut next = pass.pass;
            next.stage.0 += 1;
            for tensor in pass.output_grads {
                match tensor.as_slice::<f32>() {
                    None if (self.gradient_is_absent)(next) => {}
                    Some(values) if values.iter().all(|&v| v == signature(next, true)) => {}
                    other => return Err(format!("wrong output gradient of {:?}: {other:?}", pass.pass)),
                }
            }
            for tensor in &mut *pass.input_grads {
                tensor.set_present(!(self.gradient_is_absent)(pass.pass));
                if let Some(values) = tensor.as_mut_slice::<f32>() {
                    values.fill(signature(pass.pass, true));
                }
            }
        }
        Ok(())
    }

    fn inputs(&self, pass: &PassTensors<'_>) -> Result<(), String> {
        let want = if pass.pass.stage.0 > 0 { 2 } else { 0 };
        if pass.inputs.len() != want {
            return Err(format!("{} inputs", pass.inputs.len()));
        }
        let mut previous = pass.pass;
        for tensor in pass.inputs {
            previous.stage.0 = pass.pass.stage.0 - 1;
            let values = tensor.as_slice::<f32>().ok_or("no input")?;
            if values.iter().any(|&v| v != signature(previous, false)) {
                return Err(format!("wrong input of {:?}: {values:?}", pass.pass));
            }
        }
        Ok(())
    }
}

fn checkers(schedule: &Schedule, gradient_is_absent: fn(Pass) -> bool) -> Vec<Checker> {
    let num_stages = schedule.placement().num_stages();
    (0..schedule.num_ranks()).map(|_| Checker { num_stages, gradient_is_absent, ran: Vec::new() }).collect()
}

type Step<'a> = Box<dyn FnMut(&mut TaskRun<'_>) -> Result<(), String> + Send + 'a>;

fn run_checked(
    executors: Vec<Executor>,
    checkers: &mut [Checker],
    steps: usize,
) -> (Vec<Executor>, Result<(), Error>) {
    let mut ended = Ok(());
    let runners = checkers.iter_mut().map(|c| Box::new(|run: &mut TaskRun<'_>| c.check(run)) as Step<'_>);
    let mut ranks: Vec<(Executor, Step<'_>)> = executors.into_iter().zip(runners).collect();
    for _ in 0..steps {
        ended = ended.and_then(|()| run_ranks(&mut ranks));
    }
    (ranks.into_iter().map(|(executor, _)| executor).collect(), ended)
}

#[test]
fn every_schedule_hands_every_tensor_to_the_right_task() {
    for (num_ranks, num_microbatches) in [(1, 4), (2, 4), (3, 7), (4, 8), (6, 12), (8, 16)] {
        for schedule in family(num_ranks, num_microbatches) {
            let boundaries = Boundaries::uniform(vec![f32s(&[3, 5]), f32s(&[17])]).unwrap();
            let executors = executors(&schedule, &boundaries, Duration::from_secs(20));
            let mut checkers = checkers(&schedule, |_| false);
            let (_, ended) = run_checked(executors, &mut checkers, 3);
            ended.unwrap_or_else(|e| panic!("{}: {e}", schedule.title()));
            for (rank, checker) in checkers.iter().enumerate() {
                assert_eq!(checker.ran, schedule.tasks(Rank(rank as u32)).repeat(3), "{}", schedule.title());
            }
        }
    }
}

#[test]
fn shapes_may_differ_by_micro_batch_and_boundary_and_gradients_may_be_absent() {
    let schedule = dualpipe_v(3, 7, Work::Training).unwrap();
    let mut boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[2, 2])]).unwrap();
    for i in 0..7 {
        let length = 1 + 13 * i64::from(i % 3);
        boundaries
            .set_microbatch(Direction::Down, Microbatch(i), vec![f32s(&[length, 2]), f32s(&[])])
            .unwrap();
    }
    let after = StageCopy { direction: Direction::Down, stage: dualpipe::ids::Stage(3) };
    boundaries.set_after(after, vec![f32s(&[9]), f32s(&[0, 4])]).unwrap();
    let executors = executors(&schedule, &boundaries, Duration::from_secs(20));
    let absent = |pass: Pass| pass.microbatch.0 % 2 == 1 && pass.stage.0 == 4;
    let mut checkers = checkers(&schedule, absent);
    let (mut executors, ended) = run_checked(executors, &mut checkers, 2);
    ended.unwrap();
    // And other, larger shapes in later steps.
    let larger = Boundaries::uniform(vec![f32s(&[64, 64]), f32s(&[1000])]).unwrap();
    executors.iter_mut().for_each(|e| e.set_boundaries(larger.clone()).unwrap());
    run_checked(executors, &mut checkers, 2).1.unwrap();
}

#[test]
fn ranks_that_disagree_about_shapes_are_told() {
    let schedule = one_f_one_b(2, 2, Work::ForwardOnly).unwrap();
    let inproc = Inproc::new(2).unwrap();
    let mut shapes = [vec![2, 3], vec![3, 3]].into_iter();
    let executors = lower(&schedule).unwrap().into_iter().map(|program| {
        let boundaries = Boundaries::uniform(vec![f32s(&shapes.next().unwrap()), f32s(&[1])]).unwrap();
        let transport = inproc.transport(program.rank()).unwrap();
        Executor::new(program, transport, options(&boundaries)).unwrap()
    });
    let executors = executors.collect();
    let error = run_checked(executors, &mut checkers(&schedule, |_| false), 1).1.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("tensor 0 has 24 bytes, not 36: does rank 0 have the same shapes?"), "{text}");
    assert!(text.starts_with("rank 1, instruction "), "{text}");
}

/// What may befall rank `rank` at the task with this number.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fails,
    Panics,
}

/// Runs the schedule with one rank meeting its fate; what the others say.
fn others_after(
    schedule: &Schedule,
    rank: usize,
    task: usize,
    fate: Fate,
    timeout: Duration,
) -> Vec<Option<String>> {
    let boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[1])]).unwrap();
    let executors = executors(schedule, &boundaries, timeout);
    let checkers = checkers(schedule, |_| false);
    std::thread::scope(|scope| {
        let threads =
            executors.into_iter().zip(checkers).enumerate().map(|(r, (mut executor, mut checker))| {
                scope.spawn(move || {
                    let mut tasks = 0;
                    let step = std::panic::AssertUnwindSafe(|| {
                        executor.step(&mut |run: &mut TaskRun<'_>| {
                            tasks += 1;
                            match fate {
                                _ if r != rank || tasks <= task => checker.check(run),
                                Fate::Fails => Err("as planned".into()),
                                Fate::Panics => std::panic::panic_any("as planned"),
                            }
                        })
                    });
                    match std::panic::catch_unwind(step) {
                        Ok(result) => result.err().map(|e| e.to_string()),
                        Err(_) => Some("panicked".to_string()),
                    }
                })
            });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// At every task of every rank of 4: the others stop, say why, and a new set of executors runs clean.
#[test]
fn a_callback_that_fails_or_panics_anywhere_stops_all_ranks_in_time() {
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<&str>() != Some(&"as planned") {
            eprintln!("{info}");
        }
    }));
    for schedule in [dualpipe(4, 6, Work::Training).unwrap(), dualpipe_v(4, 7, Work::Training).unwrap()] {
        for rank in 0..4 {
            for task in 0..schedule.tasks(Rank(rank as u32)).len() {
                let fate = if task % 2 == 0 { Fate::Fails } else { Fate::Panics };
                let started = Instant::now();
                let said = others_after(&schedule, rank, task, fate, Duration::from_secs(30));
                assert!(started.elapsed() < Duration::from_secs(20), "rank {rank}, task {task}");
                for (other, text) in said.iter().enumerate() {
                    // A rank that was through may have finished.
                    let Some(text) = text else { continue };
                    if other == rank {
                        assert!(text.contains("as planned") || text == "panicked", "{text}");
                    } else {
                        assert!(text.starts_with(&format!("rank {other}, instruction ")), "{text}");
                        assert!(text.contains(&format!("rank {rank} failed")), "{text}");
                    }
                }
                assert!(said[rank].is_some(), "rank {rank} fails at task {task}");
            }
        }
        let boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[1])]).unwrap();
        let fresh = executors(&schedule, &boundaries, Duration::from_secs(20));
        run_checked(fresh, &mut checkers(&schedule, |_| false), 1).1.unwrap();
    }
}

#[test]
fn a_rank_that_never_shows_up_is_a_timeout_for_the_others() {
    let schedule = dualpipe(4, 6, Work::Training).unwrap();
    for rank in 0..4 {
        let boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[1])]).unwrap();
        let timeout = Duration::from_millis(150);
        let mut executors = executors(&schedule, &boundaries, timeout);
        let absent = executors.remove(rank);
        let mut checkers = checkers(&schedule, |_| false);
        checkers.remove(rank);
        let started = Instant::now();
        let errors: Vec<Error> = std::thread::scope(|scope| {
            let threads = executors.iter_mut().zip(&mut checkers).map(|(executor, checker)| {
                scope.spawn(move || {
                    executor.step(&mut |run: &mut TaskRun<'_>| checker.check(run)).unwrap_err()
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(started.elapsed() < 20 * timeout, "{:?}", started.elapsed());
        assert!(errors.iter().any(|e| e.kind() == ErrorKind::Timeout), "{errors:?}");
        for error in &errors {
            assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::PeerFailed), "{error}");
            assert!(error.to_string().contains(", instruction "), "{error}");
        }
        let names_it = |e: &Error| e.to_string().contains(&format!("from rank {rank}"));
        assert!(errors.iter().any(names_it), "nobody names rank {rank}: {errors:?}");
        // Poisoned from then on, and said so.
        let again = executors[0].step(&mut |_: &mut TaskRun<'_>| Ok(())).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Poisoned);
        drop(absent);
    }
}

#[test]
fn a_rank_that_leaves_in_the_middle_is_noticed_at_once() {
    let schedule = one_f_one_b(3, 4, Work::Training).unwrap();
    let boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[1])]).unwrap();
    let mut executors = executors(&schedule, &boundaries, Duration::from_secs(60));
    drop(executors.remove(1));
    let mut checkers = checkers(&schedule, |_| false);
    let started = Instant::now();
    let error = executors[1].step(&mut |run: &mut TaskRun<'_>| checkers[2].check(run)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PeerFailed);
    assert!(error.to_string().contains("rank 1 is gone, waited for the activation"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn the_recorded_timeline_is_of_the_simulated_ones_type() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let boundaries = Boundaries::uniform(vec![f32s(&[4]), f32s(&[1])]).unwrap();
    let executors = executors(&schedule, &boundaries, Duration::from_secs(20));
    let (executors, ended) = run_checked(executors, &mut checkers(&schedule, |_| false), 2);
    ended.unwrap();
    let parts: Vec<Timeline> = executors.iter().map(|executor| executor.timeline().unwrap()).collect();
    let merged = Timeline::merge(&parts).unwrap();
    for (rank, spans) in merged.spans.iter().enumerate() {
        let tasks: Vec<Task> = spans.iter().map(|span| span.task).collect();
        assert_eq!(tasks, schedule.tasks(Rank(rank as u32)));
        assert!(spans.windows(2).all(|pair| pair[0].end_ns <= pair[1].start_ns), "one after the other");
    }
    assert_eq!(merged.messages.len(), 8 * 3 * 2);
    assert!(merged.messages.iter().all(|m| m.start_ns <= m.end_ns));
    assert!(merged.to_svg().contains("measured"));
}

#[test]
fn an_end_is_handed_out_once() {
    let inproc = Inproc::new(2).unwrap();
    let first = inproc.transport(Rank(1)).unwrap();
    let text = inproc.transport(Rank(1)).unwrap_err().to_string();
    assert_eq!(text, "inproc: rank is 1, which another executor has");
    let text = inproc.transport(Rank(2)).unwrap_err().to_string();
    assert_eq!(text, "inproc: rank is 2, must be 0 to 1");
    drop(first);
    for (num_ranks, ok) in [(0, false), (1, true), (4096, true), (4097, false)] {
        assert_eq!(Inproc::new(num_ranks).is_ok(), ok, "{num_ranks}");
    }
}

#[test]
fn boundaries_out_of_range_are_refused() {
    let float = |shape: &[i64]| TensorSpec::new(DType::F32, shape).map(|_| ()).map_err(|e| e.to_string());
    for (shape, want) in [
        (vec![2, -1], Err("boundary: shape[1] is -1, must be 0 to 1099511627776")),
        (
            vec![1 << 40],
            Err("boundary: shape[0] is 1099511627776, makes the tensor larger than 1099511627776 bytes"),
        ),
        (vec![1 << 20, 1 << 18], Ok(())),
        (
            vec![i64::MAX, i64::MAX],
            Err("boundary: shape[0] is 9223372036854775807, must be 0 to 1099511627776"),
        ),
        (vec![1; 8], Ok(())),
        (vec![1; 9], Err("boundary: the number of dimensions is 9, must be 0 to 8")),
    ] {
        assert_eq!(float(&shape), want.map_err(String::from));
    }
    assert!(Boundaries::uniform(vec![f32s(&[1]); 32]).is_ok());
    assert!(Boundaries::uniform(vec![f32s(&[1]); 33]).is_err());
    assert!(TensorSpec::new(DType { code: 2, bits: 33, lanes: 1 }, [1]).is_err());
    let schedule = one_f_one_b(1, 1, Work::Training).unwrap();
    let program: Arc<_> = lower(&schedule).unwrap().remove(0).into();
    let boundaries = Boundaries::uniform(vec![f32s(&[1])]).unwrap();
    for (timeout, ok) in [
        (Duration::ZERO, false),
        (Duration::from_nanos(1), true),
        (Duration::from_secs(86_400), true),
        (Duration::from_secs(86_401), false),
    ] {
        let transport = Inproc::new(1).unwrap().transport(Rank(0)).unwrap();
        let made =
            Executor::new(Arc::clone(&program), transport, Options { timeout, ..options(&boundaries) });
        assert_eq!(made.is_ok(), ok, "{timeout:?}");
    }
}

/// The buffers of a rank do not grow with the number of micro-batches.
#[test]
fn buffers_are_reused() {
    let buffers = |n| lower(&dualpipe(8, n, Work::Training).unwrap()).unwrap()[3].buffers().len();
    assert_eq!(buffers(20), buffers(200));
    let program = &lower(&one_f_one_b(4, 64, Work::ForwardOnly).unwrap()).unwrap()[1];
    let receives = program.instructions().iter().filter(|i| matches!(i, Instruction::Receive { .. })).count();
    assert_eq!(receives, 64);
    assert!(program.buffers().len() <= 4, "{}", program.buffers().len());
}
