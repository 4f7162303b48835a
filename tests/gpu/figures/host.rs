//! What the host spends on an instruction: tasks that do nothing, one small tensor at each boundary.

use std::sync::Arc;

use dualpipe::execute::TaskRun;
use dualpipe::schedule::{dualpipe, one_f_one_b, Schedule, Work};

use super::microseconds;
use crate::driver::{Gpu, Outcome};
use crate::hooks::num_calls;
use crate::report::{spread, Report};
use crate::settings::Settings;
use crate::timed::Timed;

/// Driver functions that the figure of calls is made of.
const CALLS: [&str; 7] = [
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuMemcpyAsync",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
    "cuStreamIsCapturing",
    "cuGraphLaunch",
];

struct Measured {
    /// Of a step: the slowest rank's host.
    host: [f64; 3],
    /// Of the slowest rank, of an instruction.
    per_instruction: f64,
    /// Driver calls of a step, by all ranks: of each function, and of all others but queries.
    calls: Option<Vec<u64>>,
    num_instructions: usize,
}

fn count_calls() -> Option<Vec<u64>> {
    let mut calls = CALLS.iter().map(|name| num_calls(Some(name))).collect::<Option<Vec<u64>>>()?;
    // How often somebody looks whether the device is done says nothing of the program.
    let queries = num_calls(Some("cuEventQuery"))?;
    let others = num_calls(None)? - queries - calls.iter().sum::<u64>();
    calls.push(others);
    Some(calls)
}

fn steps(gpu: &Arc<Gpu>, schedule: &Schedule, uses_graph: bool, settings: &Settings) -> Outcome<Measured> {
    let ranks = Timed::new(gpu, schedule, 64, settings.timeout, |cuda| cuda.uses_graph = uses_graph)?;
    let nothing = Arc::new(|_: &Gpu, _: &mut TaskRun<'_>, _: usize, _: usize| Ok(()));
    for _ in 0..3 {
        ranks.good_step(Arc::clone(&nothing), None)?; // a graph is launched from the third step on
    }
    let before = count_calls();
    let num_steps = if settings.is_small { 3 } else { 200 };
    let mut host = Vec::new();
    for _ in 0..num_steps {
        let ended = ranks.good_step(Arc::clone(&nothing), None)?;
        host.push(ended.iter().map(|ended| ended.host.as_nanos() as f64).fold(0.0, f64::max));
    }
    let after = count_calls();
    let calls = before.zip(after).map(|(before, after)| {
        // The end of each rank's step is recorded here, not by the library.
        let own = |i: usize| if i == 0 { num_steps * ranks.num_instructions.len() as u64 } else { 0 };
        let each = before.iter().zip(after).enumerate();
        each.map(|(i, (before, after))| (after - before - own(i)).div_ceil(num_steps)).collect()
    });
    let longest = ranks.num_instructions.iter().copied().max().unwrap_or(1);
    let host = spread(host);
    let num_instructions = ranks.num_instructions.iter().sum();
    Ok(Measured { host, per_instruction: host[0] / longest as f64, calls, num_instructions })
}

pub(crate) fn measure(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) {
    let made = [
        one_f_one_b(1, 64, Work::Training),
        dualpipe(2, 64, Work::Training),
        dualpipe(4, 64, Work::Training),
    ];
    let title =
        "The host's time: tasks that do nothing, one tensor of 64 bytes at each boundary, steps that return \
                 when they are enqueued; the slowest rank";
    report.heading(title, &["step", "a step, median (least to greatest)", "an instruction of a rank"]);
    let mut counts = Vec::new();
    for schedule in made.into_iter().flatten() {
        for uses_graph in [false, true] {
            let measured = steps(gpu, &schedule, uses_graph, settings);
            let how = if uses_graph { "launched as a graph" } else { "enqueued" };
            let name = format!("{}, {how}", schedule.title());
            let cells = measured.map(|measured| {
                let cells = vec![microseconds(measured.host), format!("{:.0} ns", measured.per_instruction)];
                counts.push((name.clone(), measured));
                cells
            });
            report.figure(&name, cells);
        }
    }
    if counts.iter().all(|(_, measured)| measured.calls.is_none()) {
        println!("\nDriver calls are counted on the stand-in only: `cargo test --test gpu`.");
        return;
    }
    let title = "Driver calls of a step, all ranks, without cuEventQuery: counted on the stand-in";
    let columns = [&["step", "instructions", "calls of an instruction"], &CALLS[..], &["others"]].concat();
    report.heading(title, &columns);
    for (name, measured) in counts {
        let calls = measured.calls.unwrap_or_default();
        let all = calls.iter().sum::<u64>() as f64;
        let mut cells = vec![measured.num_instructions.to_string()];
        cells.push(format!("{:.2}", all / measured.num_instructions as f64));
        cells.extend(calls.iter().map(u64::to_string));
        report.count(&name, &cells);
    }
}
