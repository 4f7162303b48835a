//! What a step took: simulated and measured, in words and in pictures.

use std::fs;
use std::path::{Path, PathBuf};

use dualpipe::cost::{Costs, StageCosts};
use dualpipe::ids::{Rank, Stage};
use dualpipe::schedule::Schedule;
use dualpipe::sim::{simulate, Simulation};
use dualpipe::timeline::{svg, Timeline};

use crate::model::Config;
use crate::profile::Profile;

/// The step of a schedule, simulated with the costs of the recorded ones.
pub(crate) struct Report<'a> {
    schedule: &'a Schedule,
    costs: Costs,
    simulation: Simulation,
    measured: &'a Timeline,
    num_steps: usize,
    num_cores: usize,
}

impl<'a> Report<'a> {
    /// # Errors
    /// The library's; there must be a recorded step.
    pub(crate) fn new(
        schedule: &'a Schedule,
        profile: &'a Profile,
        config: &Config,
    ) -> Result<Report<'a>, String> {
        let measured = profile.typical_step().ok_or("no step has been recorded")?;
        let costs = profile.costs(config).map_err(|e| e.to_string())?;
        let simulation = simulate(schedule, &costs).map_err(|e| e.to_string())?;
        let num_cores = num_cores();
        Ok(Report { schedule, costs, simulation, measured, num_steps: profile.num_steps(), num_cores })
    }

    /// Tells it.
    pub(crate) fn print(&self) -> Result<(), String> {
        let Report { simulation, measured, num_steps, num_cores, .. } = self;
        let num_ranks = self.schedule.num_ranks();
        let simulated = &simulation.timeline;
        let peak_live = self.schedule.check().map_err(|e| e.to_string())?.peak_live;
        let median = |of: fn(&StageCosts) -> u64| {
            let stages = (0..self.costs.num_stages()).map(|stage| of(self.costs.stage(Stage(stage as u16))));
            ms(stages.sum::<u64>() / self.costs.num_stages() as u64)
        };
        println!();
        println!("A step, from {num_steps} recorded ones    simulated    measured");
        println!(
            "  makespan                      {:>9}   {:>9}",
            ms(simulated.makespan_ns()),
            ms(measured.makespan_ns())
        );
        println!(
            "  bubble                        {:>7.1} %   {:>7.1} %",
            100.0 * simulated.bubble_share(),
            100.0 * measured.bubble_share()
        );
        println!(
            "  lower bound                   {:>9}   no schedule on these ranks is shorter; gap {:.1} %",
            ms(simulation.lower_bound_ns),
            100.0 * simulation.gap()
        );
        println!(
            "  peak live activations   {}, of {} micro-batches",
            by_rank(&peak_live),
            self.schedule.num_microbatches()
        );
        println!(
            "  task times              F {}, I {}, W {}, F&B {}: medians, mean of the stages",
            median(|stage| stage.forward_ns),
            median(|stage| stage.input_ns),
            median(|stage| stage.weight_ns),
            median(|stage| stage.overlapped_ns)
        );
        println!("  Simulated is a core for each rank, tasks of the measured median times, and messages and");
        println!("  gradient reductions that take none. Measured is the recorded step of median makespan.");
        if num_ranks <= *num_cores {
            println!("  It had {num_cores} cores for {num_ranks} ranks, so the two should be close.");
        } else {
            let work_ns: u64 = (0..num_ranks).map(|rank| simulated.busy_ns(Rank(rank as u32))).sum();
            println!("  {num_ranks} ranks shared {num_cores} cores: {} of tasks take these at least {}, whatever the", ms(work_ns), ms(work_ns / *num_cores as u64));
            println!("  schedule. A rank that waits for a core looks idle, or its task long.");
        }
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
            println!("  {}   {what}", short(path).display());
        }
        Ok(())
    }
}

/// Cores that this process may use.
pub(crate) fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `path` from where the user is, if it is below.
fn short(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).map(Path::to_path_buf).unwrap_or(path)
}

fn ms(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

/// The same for all ranks, or by rank, or from least to most.
fn by_rank(numbers: &[usize]) -> String {
    let (least, most) = (numbers.iter().min().unwrap_or(&0), numbers.iter().max().unwrap_or(&0));
    if least == most {
        return format!("{most} on every rank");
    }
    if numbers.len() > 8 {
        return format!("{least} to {most}");
    }
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    format!("{} on ranks 0 to {}", numbers.join(" "), numbers.len() - 1)
}
