//! What a step took: simulated and measured, in words and in pictures.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dualpipe::cost::{Costs, StageCosts};
use dualpipe::ids::Stage;
use dualpipe::schedule::Schedule;
use dualpipe::sim::{simulate, Simulation};
use dualpipe::timeline::{svg, Timeline};

use crate::machine::{counted, Machine};
use crate::model::Config;
use crate::profile::Profile;

/// The step of a schedule, simulated with the costs of the recorded ones.
pub(crate) struct Report<'a> {
    schedule: &'a Schedule,
    costs: Costs,
    simulation: Simulation,
    measured: &'a Timeline,
    num_steps: usize,
    machine: Machine,
}

impl<'a> Report<'a> {
    /// # Errors
    /// The library's; there must be a recorded step.
    pub(crate) fn new(
        schedule: &'a Schedule,
        profile: &'a Profile,
        config: &Config,
        machine: Machine,
    ) -> Result<Report<'a>, String> {
        let measured = profile.typical_step().ok_or("no step has been recorded")?;
        let costs = profile.costs(config).map_err(|e| e.to_string())?;
        let simulation = simulate(schedule, &costs).map_err(|e| e.to_string())?;
        Ok(Report { schedule, costs, simulation, measured, num_steps: profile.num_steps(), machine })
    }

    /// Tells it. `sequential` is how long the same step takes one thread alone.
    pub(crate) fn print(&self, sequential: Duration) -> Result<(), String> {
        let Report { simulation, measured, num_steps, .. } = self;
        let simulated = &simulation.timeline;
        println!();
        println!("{:<22} {:>9} {:>11}", format!("A step ({num_steps} recorded)"), "simulated", "measured");
        row("makespan", &ms(simulated.makespan_ns()), &ms(measured.makespan_ns()), "");
        row("bubble", &percent(simulated.bubble_share()), &percent(measured.bubble_share()), "");
        let gap = format!("no schedule is shorter; gap {}", percent(simulation.gap()));
        row("lower bound", &ms(simulation.lower_bound_ns), "", &gap);
        let sequential_ns = sequential.as_nanos() as u64;
        row("sequential run", "", &ms(sequential_ns), &self.shared(sequential_ns));
        self.print_tasks()?;
        let place = match self.machine {
            Machine::Cpu { .. } => "core",
            Machine::Cuda { .. } => "device",
        };
        println!("  Simulated: a {place} for each rank, every task its measured median, messages and");
        println!("  gradient reductions that take no time. Measured: the step of median makespan;");
        match self.machine {
            Machine::Cpu { .. } => println!("  a rank that waits in a reduction counts as busy there."),
            Machine::Cuda { .. } => {
                println!("  gradients are summed after it. Times are of the devices' events.")
            }
        }
        self.print_sharing();
        Ok(())
    }

    /// Beside the sequential run, which one core does in so many nanoseconds.
    fn shared(&self, sequential_ns: u64) -> String {
        let used = match self.machine {
            Machine::Cpu { num_cores } => self.schedule.num_ranks().min(num_cores),
            Machine::Cuda { .. } => return "on 1 core of the CPU".into(),
        };
        match used {
            1 => "on 1 core".into(),
            _ => format!("on 1 core; {used} need about {} or more", ms(sequential_ns / used as u64)),
        }
    }

    /// Says what the step measured has to do with the step simulated.
    fn print_sharing(&self) {
        let num_ranks = self.schedule.num_ranks();
        match self.machine {
            Machine::Cpu { num_cores } if num_ranks <= num_cores => {
                println!("  Each rank had a core of its own: the two are close if no other program runs.");
            }
            Machine::Cpu { num_cores } => {
                let fewer = fewer_ranks(num_cores);
                println!("  Here {num_ranks} ranks shared {num_cores} cores: a rank that waits for a core looks idle, or its");
                println!("  task long. The two can only agree with a core for each: {fewer}.");
            }
            Machine::Cuda { num_devices, .. } if num_ranks <= num_devices => {
                println!("  Each rank had a device of its own: the two are close if no other program runs.");
            }
            Machine::Cuda { num_devices, .. } => {
                let devices = counted(num_devices, "device");
                println!("  Here {num_ranks} ranks shared {devices}: their kernels took turns or ran side by side,");
                println!("  so that tasks took longer than alone.");
            }
        }
    }

    fn print_tasks(&self) -> Result<(), String> {
        let peak_live = self.schedule.check().map_err(|e| e.to_string())?.peak_live;
        let num_stages = self.costs.num_stages();
        let mean = |of: fn(&StageCosts) -> u64| {
            let stages = (0..num_stages).map(|stage| of(self.costs.stage(Stage(stage as u16))));
            ms(stages.sum::<u64>() / num_stages as u64)
        };
        println!("  peak live activations  {}", by_rank(&peak_live));
        println!(
            "  task medians           F {}, I {}, W {}, F&B {}",
            mean(|stage| stage.forward_ns),
            mean(|stage| stage.input_ns),
            mean(|stage| stage.weight_ns),
            mean(|stage| stage.overlapped_ns)
        );
        Ok(())
    }

    /// Writes the pictures, and says where.
    pub(crate) fn write(&self) -> Result<(), String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("train");
        fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        let picture = svg::compare(&[&self.simulation.timeline, self.measured]);
        println!();
        println!("Written");
        for (name, text, what) in [
            ("timeline.svg", picture, "simulated above measured, for a browser"),
            ("trace.json", self.measured.to_trace(), "the measured step, for ui.perfetto.dev"),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            println!("  {:<27} {what}", short(path).display());
        }
        Ok(())
    }
}

/// `path` from where the user is, if it is below.
fn short(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).map(Path::to_path_buf).unwrap_or(path)
}

fn row(name: &str, simulated: &str, measured: &str, note: &str) {
    println!("{}", format!("  {name:<20} {simulated:>9} {measured:>11}   {note}").trim_end());
}

/// A run of this example in which each rank has a core.
fn fewer_ranks(num_cores: usize) -> String {
    match num_cores {
        0 | 1 => "--schedule 1f1b --ranks 1".into(),
        _ => format!("--ranks {}", num_cores / 2 * 2),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn ms(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

/// Micro-batches: the same on all ranks, or by rank, or from least to most.
fn by_rank(numbers: &[usize]) -> String {
    let (least, most) = (numbers.iter().min().unwrap_or(&0), numbers.iter().max().unwrap_or(&0));
    if least == most {
        return format!("{most} micro-batches on every rank");
    }
    if numbers.len() > 8 {
        return format!("{least} to {most} micro-batches");
    }
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    format!("{} micro-batches on ranks 0 to {}", numbers.join(" "), numbers.len() - 1)
}
