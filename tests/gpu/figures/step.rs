//! A step against its simulation. Tasks are kernels of a fixed duration with one thread, so that ranks that share the
//! device do not slow one another down: what is measured is the schedule, and what the executor adds to it.

use std::sync::Arc;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::execute::TaskRun;
use dualpipe::op::{Op, Task};
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};
use dualpipe::sim::simulate;

use crate::driver::{Event, Gpu, Outcome, Stream};
use crate::memory::Memory;
use crate::report::{spread, Report};
use crate::settings::Settings;
use crate::timed::{gate, Timed};

/// Bytes of the tensor at each boundary.
const BYTES: usize = 1 << 16;

/// Nanoseconds that tasks are busy.
#[derive(Clone, Copy)]
struct Durations {
    forward: u64,
    input: u64,
    weight: u64,
    overlapped: u64,
}

impl Durations {
    /// F : I : W as in DeepSeek's trace, F&B four fifths of F + B.
    fn new(settings: &Settings) -> Durations {
        let unit = if settings.is_small { 200 } else { 10_000 };
        Durations { forward: 100 * unit, input: 163 * unit, weight: 83 * unit, overlapped: 277 * unit }
    }

    fn of(self, op: Op) -> u64 {
        match op {
            Op::F(_) => self.forward,
            Op::B(_) => self.input + self.weight,
            Op::I(_) => self.input,
            Op::W(_) => self.weight,
            Op::FB(..) => self.overlapped,
        }
    }
}

/// The median of what `measure` gives, over some runs.
fn median(count: usize, measure: impl Fn() -> Outcome<f64>) -> Outcome<u64> {
    let values = (0..count).map(|_| measure()).collect::<Outcome<Vec<f64>>>()?;
    Ok(spread(values)[0] as u64)
}

/// How long a task takes alone.
fn alone(gpu: &Gpu, nanoseconds: u64) -> Outcome<u64> {
    let (stream, [begin, end]) = (Stream::new()?, [Event::new(true)?, Event::new(true)?]);
    median(5, || {
        gpu.spin(stream.raw(), 10_000)?; // the host is ahead when the clock starts
        begin.record(stream.raw())?;
        gpu.spin(stream.raw(), nanoseconds)?;
        end.record(stream.raw())?;
        stream.synchronize()?;
        end.ns_since(&begin)
    })
}

/// How long a message takes alone: from the end of a task on one stream over a copy on a second to a third.
fn message(gpu: &Gpu) -> Outcome<u64> {
    let streams = [Stream::new()?, Stream::new()?, Stream::new()?];
    let [from, by, to] = [0, 1, 2].map(|i| streams[i].raw());
    let [written, arrived, read] = [Event::new(true)?, Event::new(true)?, Event::new(true)?];
    let memory = [Memory::zeros(BYTES, &streams[0])?, Memory::zeros(BYTES, &streams[0])?];
    streams[0].synchronize()?;
    median(9, || {
        gpu.spin(from, 200_000)?; // as above
        written.record(from)?;
        written.wait(by)?;
        gpu.copy(memory[1].address(), memory[0].address(), BYTES, by)?;
        arrived.record(by)?;
        arrived.wait(to)?;
        read.record(to)?;
        streams[2].synchronize()?;
        read.ns_since(&written)
    })
}

/// How steps get onto the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// The device begins when all of the step has been enqueued.
    Ahead,
    /// The device begins at once.
    AtOnce,
    /// As one graph.
    Graph,
}

/// Nanoseconds of several steps, from when the device may begin to the end of the last rank.
fn steps(
    gpu: &Arc<Gpu>,
    settings: &Settings,
    schedule: &Schedule,
    durations: Durations,
    how: How,
) -> Outcome<[f64; 3]> {
    let ranks =
        Timed::new(gpu, schedule, BYTES, settings.timeout, |cuda| cuda.uses_graph = how == How::Graph)?;
    let work = move |gpu: &Gpu, run: &mut TaskRun<'_>, _: usize, _: usize| {
        let Task::Op(op) = run.task else { return Ok(()) };
        let streams = run.streams.ok_or("no streams")?;
        gpu.spin(streams.compute.cast(), durations.of(op))
    };
    let (work, num_steps) = (Arc::new(work), if settings.is_small { 2 } else { 15 });
    for _ in 0..3 {
        ranks.good_step(Arc::clone(&work), None)?; // a graph is launched from the third step on
    }
    let mut all = Vec::new();
    for _ in 0..num_steps {
        let wait_ns = if how == How::AtOnce || settings.is_small { 1_000 } else { 30_000_000 };
        let (_gate, start) = gate(gpu, wait_ns)?;
        let ended = ranks.good_step(Arc::clone(&work), Some(&start))?;
        let host = ended.iter().map(|ended| ended.host.as_nanos() as u64).max().unwrap_or(0);
        if how == How::Ahead && !settings.is_small && host > wait_ns {
            return Err(format!("the host took {host} ns and was not ahead"));
        }
        let ends = ended.iter().map(|ended| ended.end.ns_since(&start)).collect::<Outcome<Vec<f64>>>()?;
        all.push(ends.into_iter().fold(0.0, f64::max));
    }
    Ok(spread(all))
}

pub(crate) fn measure(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) {
    let durations = Durations::new(settings);
    let title =
        "A step against its simulation: tasks of a fixed duration with one thread each, 4 ranks on one \
                 device, costs as measured alone; the aim is within 2 %";
    let columns = ["step", "simulated", "measured, median (least to greatest)", "measured / simulated"];
    report.heading(title, &columns);
    let costs = (|| {
        let [forward_ns, input_ns, weight_ns, overlapped_ns] =
            [durations.forward, durations.input, durations.weight, durations.overlapped]
                .map(|ns| alone(gpu, ns));
        let backward_ns = alone(gpu, durations.input + durations.weight)?;
        let (forward_ns, input_ns) = (forward_ns?, input_ns?);
        // B is one task, which a cost model has as the sum of two; what is measured of W alone is only used there.
        let (weight_ns, overlapped_ns) = (weight_ns?, overlapped_ns?.max(forward_ns).max(backward_ns));
        let overlapped_ns = overlapped_ns.max(input_ns + weight_ns);
        let stage = StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, ..StageCosts::default() };
        let link = Link { latency_ns: message(gpu)?, bytes_per_second: None };
        Costs::new(vec![stage], link).map(|costs| (costs, stage, link)).map_err(|why| why.to_string())
    })();
    let (costs, stage, link) = match costs {
        Ok(costs) => costs,
        Err(why) => return report.check("costs", Err(why)),
    };
    let count = if settings.is_small { 8 } else { 20 };
    let made = [
        dualpipe(4, count, Work::Training),
        dualpipe_v(4, count, Work::Training),
        one_f_one_b(4, count, Work::Training),
    ];
    let milliseconds = |ns: f64| format!("{:.3}", ns / 1e6);
    for schedule in made.into_iter().flatten() {
        let hows =
            [(How::Ahead, "enqueued ahead"), (How::AtOnce, "enqueued as it runs"), (How::Graph, "graph")];
        for (how, words) in hows {
            let figure = (|| {
                let simulated = simulate(&schedule, &costs).map_err(|why| why.to_string())?;
                let simulated = simulated.timeline.makespan_ns() as f64;
                let [median, least, greatest] = steps(gpu, settings, &schedule, durations, how)?;
                let range = format!(
                    "{} ({} to {})",
                    milliseconds(median),
                    milliseconds(least),
                    milliseconds(greatest)
                );
                Ok(vec![milliseconds(simulated) + " ms", range + " ms", format!("{:.4}", median / simulated)])
            })();
            report.figure(&format!("{}, {words}", schedule.title()), figure);
        }
    }
    if !report.is_standin {
        let StageCosts { forward_ns, input_ns, weight_ns, overlapped_ns, .. } = stage;
        let latency_ns = link.latency_ns;
        print!("\nAlone: F {forward_ns} ns, I {input_ns}, W {weight_ns}, F&B {overlapped_ns}; ");
        println!("a message of {BYTES} bytes {latency_ns} ns.");
    }
}
