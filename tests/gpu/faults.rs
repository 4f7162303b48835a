//! Steps that go wrong end in time, say where, and leave the device good for others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dualpipe::execute::TaskRun;
use dualpipe::schedule::{dualpipe, Work};
use dualpipe::{Error, ErrorKind};

use crate::driver::{Gpu, Outcome};
use crate::report::Report;
use crate::settings::{Plant, Settings};
use crate::timed::Timed;

/// The rank whose task goes wrong, and which.
const FAULTY: (usize, usize) = (2, 7);
/// How much longer than its deadline a rank may take: the watchdog looks every few milliseconds, an abort waits for
/// what it enqueued no longer than the deadline, and hosts are slow.
const SLACK: Duration = Duration::from_secs(2);

/// A step that must fail on every rank: what each said, after how long.
struct Failed {
    errors: Vec<Error>,
    after: Duration,
    /// The faulty rank's instruction.
    instruction: usize,
}

/// Runs a step whose faulty task is `work`, up to each rank's error.
fn fail(
    gpu: &Arc<Gpu>,
    timeout: Duration,
    work: impl Fn(&Gpu, &mut TaskRun<'_>) -> Outcome + Send + Sync + 'static,
) -> Outcome<Failed> {
    let schedule = dualpipe(4, 8, Work::Training).map_err(|why| why.to_string())?;
    let ranks = Timed::new(gpu, &schedule, 256, timeout, |_| {})?;
    let quiet = Arc::new(|_: &Gpu, _: &mut TaskRun<'_>, _: usize, _: usize| Ok(()));
    ranks.good_step(quiet, None)?;
    let task = move |gpu: &Gpu, run: &mut TaskRun<'_>, rank: usize, at: usize| match (rank, at) == FAULTY {
        true => work(gpu, run),
        false => Ok(()),
    };
    let began = Instant::now();
    let ended = ranks.step(Arc::new(task), None)?;
    let synchronized = ranks.synchronize(timeout + SLACK)?;
    let after = began.elapsed();
    let errors = ended.into_iter().zip(synchronized).enumerate().map(|(rank, (ended, done))| {
        match (ended.outcome, done) {
            (Err(why), _) | (Ok(()), Err(why)) => Ok(why),
            (Ok(()), Ok(is_done)) => Err(format!("rank {rank} did not fail: done {is_done}")),
        }
    });
    let errors = errors.collect::<Outcome<_>>()?;
    Ok(Failed { errors, after, instruction: ranks.tasks[FAULTY.0][FAULTY.1] })
}

impl Failed {
    /// Whether all ended in time, each with its rank and instruction, the faulty one with the task at fault. A rank has
    /// an error of `kind`, or passes on what another said; if `has_stream`, with the stream's name.
    fn check(&self, timeout: Duration, kind: ErrorKind, has_stream: bool) -> Outcome<String> {
        if self.after > timeout + SLACK {
            return Err(format!("after {:?}, with a deadline of {timeout:?}", self.after));
        }
        let texts: Vec<String> = self.errors.iter().map(Error::to_string).collect();
        for (rank, (text, error)) in texts.iter().zip(&self.errors).enumerate() {
            let named = match rank == FAULTY.0 {
                true => format!("rank {rank}, instruction {} ", self.instruction),
                false => format!("rank {rank}, instruction "),
            };
            let is_expected = match error.kind() {
                ErrorKind::PeerFailed => text.contains("[rank "),
                own => own == kind,
            };
            if !text.starts_with(&named) || !is_expected || (has_stream && !text.contains(" stream")) {
                return Err(format!("rank {rank} should begin with {named}: {:?}: {text}", error.kind()));
            }
        }
        // Of several ranks that wait equally long any may be the first; a task that fails is the only reason.
        let own = self.errors.iter().filter(|error| error.kind() == kind).count();
        let told = texts[FAULTY.0].split(": ").next().unwrap_or_default();
        let is_passed_on = has_stream || (own == 1 && texts.iter().all(|text| text.contains(told)));
        match own > 0 && is_passed_on {
            true => Ok(format!("all ranks after {} ms; {told}", self.after.as_millis())),
            false => Err(format!("{own} ranks have {kind:?}: {}", texts.join("; "))),
        }
    }
}

/// A new set of executors does a step, while what the failed one left may still be running.
fn runs_clean(gpu: &Arc<Gpu>, settings: &Settings) -> Outcome<String> {
    let schedule = dualpipe(4, 8, Work::Training).map_err(|why| why.to_string())?;
    let ranks = Timed::new(gpu, &schedule, 256, settings.timeout, |_| {})?;
    let quiet = Arc::new(|_: &Gpu, _: &mut TaskRun<'_>, _: usize, _: usize| Ok(()));
    for _ in 0..3 {
        ranks.good_step(Arc::clone(&quiet), None)?;
    }
    let num_ranks = schedule.num_ranks();
    Ok(format!("three steps of {num_ranks} new ranks"))
}

pub(crate) fn check(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) {
    report.heading("Faults: DualPipe, 4 ranks, 8 micro-batches", &["check", "", ""]);
    let is_planted = |plant| settings.plant == Some(plant);
    let fails = !is_planted(Plant::Fault);
    let told = fail(gpu, settings.timeout, move |_, _| if fails { Err("told to".into()) } else { Ok(()) });
    let outcome = told.and_then(|failed| failed.check(settings.timeout, ErrorKind::CallbackFailed, false));
    report.check("a task that fails", outcome);
    report.check("new executors after it", runs_clean(gpu, settings));

    let timeout = Duration::from_millis(if settings.is_small { 200 } else { 1000 });
    let spin = if is_planted(Plant::Spin) { Duration::ZERO } else { 4 * timeout };
    let hung = fail(gpu, timeout, move |gpu, run| {
        let streams = run.streams.ok_or("no streams")?;
        gpu.spin(streams.compute.cast(), spin.as_nanos() as u64)
    });
    let outcome = hung.and_then(|failed| failed.check(timeout, ErrorKind::Timeout, true));
    let name = format!("a kernel of {} ms, with a deadline of {} ms", spin.as_millis(), timeout.as_millis());
    report.check(&name, outcome);
    report.check("new executors after it", runs_clean(gpu, settings));
    report.check("the device after all", gpu.synchronize().map(|()| "synchronized".to_string()));
}
