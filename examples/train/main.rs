//! Trains a small byte-level mixture-of-experts language model on real text; `--help` lists the options.
//!
//! ```text
//! main       the run from start to end
//! options    the command line                     text       micro-batches
//! model      the stages: F, I and W               trainer    a rank's stages, pass by pass
//! pipeline   executors on threads                 rank       what each of them calls
//! exchange   where gradients are summed           optimizer  Adam
//! sequential the reference run                    compare    gradients against it
//! profile    recorded steps -> costs              report     simulated and measured
//! experts    loads, balanced                      progress   the loss
//! machine    cores or CUDA devices                gpu        the model and its ranks on CUDA devices
//! ```

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod compare;
mod exchange;
mod experts;
mod gpu;
mod machine;
mod model;
mod optimizer;
mod options;
mod pipeline;
mod profile;
mod progress;
mod rank;
mod report;
mod sequential;
mod text;
mod trainer;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dualpipe::execute::GraphState;

use crate::experts::ExpertReport;
use crate::machine::Machine;
use crate::model::{Config, EXPERTS_PER_TOKEN};
use crate::options::{Options, HELP};
use crate::pipeline::Pipeline;
use crate::profile::Profile;
use crate::progress::Progress;
use crate::rank::Trainer;
use crate::report::Report;
use crate::sequential::Sequential;
use crate::text::Text;

/// Steps that are not recorded, while caches and branch predictors learn.
const NUM_COLD_STEPS: usize = 5;

fn main() -> ExitCode {
    let options = match Options::parse(lexopt::Parser::from_env()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("train: {e}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("train: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let machine = Machine::find(options)?;
    let text = match &options.text {
        Some(path) => Text::from_file(path)?,
        None => Text::own_sources()?,
    };
    let schedule = options.schedule().map_err(|e| e.to_string())?;
    let num_stages = schedule.as_ref().map_or(options.num_ranks, |s| s.placement().num_stages());
    let config = Config::small(num_stages);
    println!("Training a byte-level mixture-of-experts language model");
    println!("  text       {}, {} bytes", text.name, text.len());
    println!(
        "  model      {num_stages} stages of width {}, {} experts each, {EXPERTS_PER_TOKEN} per token",
        config.width, config.num_experts
    );
    println!(
        "  step       {} micro-batches of {} sequences of {} bytes",
        options.num_microbatches, config.num_sequences, config.sequence
    );
    println!("  device     {machine}");
    let Some(schedule) = schedule else { return train_sequentially(options, config, &text) };
    let (name, num_ranks, seed) = (schedule.name(), schedule.num_ranks(), options.seed);
    println!("  schedule   {name}, {num_ranks} ranks on threads of their own");
    match machine {
        Machine::Cpu { .. } => {
            let pipeline = Pipeline::on_host(schedule, config, seed)?;
            train_pipeline(options, pipeline, config, machine, &text)
        }
        Machine::Cuda { num_devices, uses_graph, .. } => {
            let pipeline = Pipeline::on_cuda(schedule, config, seed, num_devices, uses_graph)?;
            train_pipeline(options, pipeline, config, machine, &text)
        }
    }
}

fn train_pipeline<T: Trainer>(
    options: &Options,
    mut pipeline: Pipeline<T>,
    config: Config,
    machine: Machine,
    text: &Text,
) -> Result<(), String> {
    let mut profile = Profile::default();
    let mut progress = Progress::new(options.num_steps);
    for step in 0..options.num_steps {
        let batch = text.batch(&config, options.seed, step, options.num_microbatches)?;
        let loss = pipeline.forward_backward(&Arc::new(batch))?;
        progress.show(loss);
        let is_last = step + 1 == options.num_steps;
        if step >= NUM_COLD_STEPS || is_last {
            profile.record(pipeline.timeline().map_err(|e| e.to_string())?);
        }
        // The last step's gradients are looked at below, with the parameters that they belong to.
        if !is_last {
            pipeline.update()?;
        }
    }
    progress.conclude();
    if let GraphState::FellBack(why) = pipeline.graph() {
        println!("  Steps could not be captured as a graph, and ran as usual: {why}");
    }
    let sequential = print_comparison(&pipeline)?;
    let report = Report::new(pipeline.schedule(), &profile, &config, machine)?;
    report.print(sequential)?;
    ExpertReport::new(&pipeline.expert_loads()?)?.print();
    report.write()
}

/// Compares the last step with the sequential run's, of which it returns the time; they must be the same but for
/// rounding.
fn print_comparison<T: Trainer>(pipeline: &Pipeline<T>) -> Result<Duration, String> {
    let comparison = pipeline.compare_with_sequential()?;
    println!();
    println!("Loss and gradients of the last step, against those of a sequential run on the CPU");
    println!("  {comparison}");
    println!("{}", T::TOLERANCE);
    if !comparison.is_within_tolerance() {
        return Err("the loss or the gradients are not those of the sequential run".into());
    }
    if !pipeline.copies_agree()? {
        return Err("the two copies of a stage have drifted apart".into());
    }
    Ok(comparison.sequential)
}

fn train_sequentially(options: &Options, config: Config, text: &Text) -> Result<(), String> {
    println!("  schedule   none: one rank with all stages");
    let mut sequential = Sequential::new(config, options.seed);
    let mut progress = Progress::new(options.num_steps);
    for step in 0..options.num_steps {
        let batch = text.batch(&config, options.seed, step, options.num_microbatches)?;
        let loss = sequential.forward_backward(&Arc::new(batch))?;
        progress.show(loss);
        sequential.update()?;
    }
    progress.conclude();
    let loads = sequential.stages().map(|stage| stage.expert_loads.clone());
    ExpertReport::new(&loads.collect::<Vec<_>>())?.print();
    Ok(())
}
