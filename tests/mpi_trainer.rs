//! examples/mpi_trainer, in C++ and in C: four processes with every schedule against a sequential run, and what they
//! say when one of them fails or is killed.
//!
//! It needs Open MPI. As root it is installed from Debian's packages if it is missing.

#[path = "support/debian.rs"]
mod debian;
#[path = "support/library.rs"]
mod library;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The two programs.
const PROGRAMS: [&str; 2] = ["trainer", "trainer_c"];
/// No run may last longer, whatever the machine does besides.
const RUN_SECONDS_MAX: &str = "120";

/// Where the programs are; `None`, and the reason is printed, if they cannot be built here.
fn programs() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            if let Err(why) = find_or_install_mpi() {
                debian::say(&format!("tests/mpi_trainer.rs: skipped: {why}"));
                return None;
            }
            let out = library::scratch().join("programs");
            let build = library::root().join("examples/mpi_trainer/build");
            library::run(Command::new(build).arg(&out).env("DUALPIPE_LIB", library::folder()));
            Some(out)
        })
        .as_deref()
}

fn find_or_install_mpi() -> Result<(), String> {
    debian::find_or_install(&["mpicxx", "mpirun"], &["openmpi-bin", "libopenmpi-dev"])?;
    let version = Command::new("mpirun").arg("--version").output().map_err(|e| format!("mpirun: {e}"))?;
    match String::from_utf8_lossy(&version.stdout).contains("Open MPI") {
        true => Ok(()),
        false => Err("mpirun is not Open MPI's, whose options are used here".to_string()),
    }
}

/// What a run printed, and how it ended.
struct Run {
    stdout: String,
    stderr: String,
    /// mpirun's: with recovery always 0.
    is_success: bool,
    time: Duration,
}

impl Run {
    /// The ranks that say this, each of which begins a line with its number.
    fn ranks_saying(&self, what: &str) -> Vec<u32> {
        let says = |line: &&str| line.contains(what);
        let rank = |line: &str| line.split("rank ").nth(1)?.split([':', ',']).next()?.parse().ok();
        let mut ranks: Vec<u32> = self.stderr.lines().filter(says).filter_map(rank).collect();
        ranks.sort_unstable();
        ranks
    }

    #[track_caller]
    fn check(&self, is_fine: bool, what: &str) {
        assert!(is_fine, "{what}, after {:?}:\n{}{}", self.time, self.stdout, self.stderr);
    }
}

/// Runs a program with as many processes; `survives` keeps the others when one dies.
fn mpirun(program: &Path, num_processes: u32, survives: bool, arguments: &[&str]) -> Run {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", RUN_SECONDS_MAX, "mpirun", "--allow-run-as-root", "--oversubscribe"]);
    if survives {
        command.arg("--enable-recovery");
    }
    command.args(["-n", &num_processes.to_string()]).arg(program).args(arguments);
    let start = Instant::now();
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Run {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        is_success: output.status.success(),
        time: start.elapsed(),
    }
}

fn every_schedule_computes_what_a_sequential_run_does(program: &str) {
    let Some(folder) = programs() else { return };
    for schedule in ["dualpipe", "dualpipe_v", "1f1b"] {
        for overlap in [&[][..], &["--no-overlap"]] {
            // There are no pairs in 1F1B.
            if schedule == "1f1b" && !overlap.is_empty() {
                continue;
            }
            let options = ["--schedule", schedule, "--check", "--steps", "3", "--timeout", "60"];
            let run = mpirun(&folder.join(program), 4, false, &[&options[..], overlap].concat());
            let agree = run.is_success && run.stdout.contains("they agree");
            run.check(agree, &format!("{program} {schedule} {overlap:?} does not agree"));
            run.check(run.stdout.contains("Experts on 4 GPUs"), "no placement");
        }
    }
}

#[test]
fn every_schedule_computes_what_a_sequential_run_does_in_cpp() {
    every_schedule_computes_what_a_sequential_run_does("trainer");
}

#[test]
fn every_schedule_computes_what_a_sequential_run_does_in_c() {
    every_schedule_computes_what_a_sequential_run_does("trainer_c");
}

#[test]
fn who_is_killed_is_named_by_all_others() {
    let Some(folder) = programs() else { return };
    for program in PROGRAMS {
        let run = mpirun(&folder.join(program), 4, true, &["--die", "1:10", "--timeout", "2"]);
        // One of them waited for the dead until the deadline, and the others heard of it.
        run.check(
            run.stderr.contains("waited 2.") && run.stderr.contains("from rank 1"),
            "nobody waited for rank 1",
        );
        let said = run.ranks_saying("dualpipe_executor_step: rank ");
        run.check(said == [0, 2, 3], &format!("not each has said once why it stops, but {said:?}"));
        let said = run.ranks_saying("rank 1 does not answer any more");
        run.check(said == [0, 2, 3], &format!("not each has named rank 1, but {said:?}"));
        // Start, deadline, the second in which the roll is called, and what a busy machine adds.
        run.check(run.time < Duration::from_secs(2 + 1 + 20), "too late");
    }
}

#[test]
fn why_a_task_fails_is_said_by_all() {
    let Some(folder) = programs() else { return };
    for program in PROGRAMS {
        let run = mpirun(&folder.join(program), 4, false, &["--fail", "2:9", "--timeout", "60"]);
        run.check(!run.is_success, "a failed run has succeeded");
        let of_others = run.stderr.lines().filter(|line| {
            line.contains("because rank 2 failed")
                && line.contains("the task callback failed")
                && line.contains("--fail")
        });
        run.check(of_others.count() == 3, "not all others say that rank 2 failed, and why");
        run.check(run.stderr.matches("as --fail asks").count() == 4, "not all four have the task's words");
        run.check(run.time < Duration::from_secs(30), "they have waited for the deadline");
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let Some(folder) = programs() else { return };
    for program in PROGRAMS {
        for (num_processes, arguments, words) in [
            (2, &["--schedules", "1f1b"][..], "--schedules: no such option"),
            (
                3,
                &["--ranks", "4"],
                "--ranks 4: there are 3 processes, one is needed for each rank: mpirun -n 4",
            ),
            (3, &["--schedule", "dualpipe"], "num_ranks is 3, must be even and at least 2"),
        ] {
            let run = mpirun(&folder.join(program), num_processes, false, arguments);
            run.check(
                !run.is_success && run.stderr.matches(words).count() == 1,
                &format!("not once {words:?}"),
            );
        }
    }
}
