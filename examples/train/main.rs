//! Trains a small byte-level mixture-of-experts language model on real text; `--help` lists the options.

mod compare;
mod exchange;
mod model;
mod optimizer;
mod options;
mod pipeline;
mod sequential;
mod text;
mod trainer;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use dualpipe::schedule::Schedule;

use crate::model::{Config, EXPERTS_PER_TOKEN};
use crate::options::{Options, HELP};
use crate::pipeline::Pipeline;
use crate::sequential::Sequential;
use crate::text::Text;

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
    let text = match &options.text {
        Some(path) => Text::from_file(path)?,
        None => Text::own_sources()?,
    };
    let schedule = options.schedule().map_err(|e| e.to_string())?;
    let num_stages = schedule.as_ref().map_or(options.num_ranks, |s| s.placement().num_stages());
    let config = Config::small(num_stages);
    println!("text       {}, {} bytes", text.name, text.len());
    println!(
        "model      {num_stages} stages of width {}, {} experts each, {} per token",
        config.width, config.num_experts, EXPERTS_PER_TOKEN
    );
    println!(
        "step       {} micro-batches of {} sequences of {} bytes",
        options.num_microbatches, config.num_sequences, config.sequence
    );
    match schedule {
        Some(schedule) => train_pipeline(options, schedule, config, &text),
        None => train_sequentially(options, config, &text),
    }
}

fn train_pipeline(options: &Options, schedule: Schedule, config: Config, text: &Text) -> Result<(), String> {
    println!("schedule   {} of {} ranks, all played by one thread", schedule.name(), schedule.num_ranks());
    let mut pipeline = Pipeline::new(schedule, config, options.seed);
    let mut progress = Progress::new(options.num_steps);
    for step in 0..options.num_steps {
        let batch = text.batch(&config, options.seed, step, options.num_microbatches)?;
        let loss = pipeline.forward_backward(&Arc::new(batch))?;
        progress.show(step, loss);
        // The last step's gradients are looked at below, with the parameters that they belong to.
        if step + 1 < options.num_steps {
            pipeline.update()?;
        }
    }
    progress.conclude();

    let comparison = pipeline.compare_with_sequential()?;
    println!("gradients  of the last step, against a sequential run's: {comparison}");
    println!("           tolerance: what another order of adding the micro-batches up can change in f32,");
    println!("           2 (n - 1) 2^-24 times the sum of their gradients' magnitudes, n micro-batches");
    if !comparison.is_within_tolerance() {
        return Err("the gradients are not those of the sequential run".into());
    }
    if !pipeline.copies_agree() {
        return Err("the two copies of a stage have drifted apart".into());
    }
    print_loads(pipeline.expert_loads());
    Ok(())
}

fn train_sequentially(options: &Options, config: Config, text: &Text) -> Result<(), String> {
    println!("schedule   none: one rank with all stages");
    let mut sequential = Sequential::new(config, options.seed);
    let mut progress = Progress::new(options.num_steps);
    for step in 0..options.num_steps {
        let batch = text.batch(&config, options.seed, step, options.num_microbatches)?;
        let loss = sequential.forward_backward(&Arc::new(batch))?;
        progress.show(step, loss);
        sequential.update()?;
    }
    progress.conclude();
    let loads = sequential.stages().map(|stage| stage.expert_loads.clone());
    print_loads(loads.collect());
    Ok(())
}

/// `loads[stage][expert]`.
fn print_loads(loads: Vec<Vec<u64>>) {
    println!("experts    tokens by expert, most to least");
    for (stage, mut loads) in loads.into_iter().enumerate() {
        loads.sort_unstable_by(|a, b| b.cmp(a));
        println!("           stage {stage}: {loads:?}");
    }
}

/// A line now and then while it trains.
struct Progress {
    num_steps: usize,
    start: Instant,
    first_loss: Option<f64>,
    last_loss: f64,
}

impl Progress {
    fn new(num_steps: usize) -> Progress {
        Progress { num_steps, start: Instant::now(), first_loss: None, last_loss: 0.0 }
    }

    fn show(&mut self, step: usize, loss: f64) {
        self.first_loss.get_or_insert(loss);
        self.last_loss = loss;
        let every = self.num_steps.div_ceil(8);
        if step % every == 0 || step + 1 == self.num_steps {
            let seconds = self.start.elapsed().as_secs_f64();
            println!("           step {step:4}   loss {loss:.3}   {seconds:5.1} s");
        }
    }

    fn conclude(&self) {
        let (first, last) = (self.first_loss.unwrap_or(0.0), self.last_loss);
        println!("loss       {first:.3} to {last:.3}, in nats per byte");
    }
}
