//! Trains a small byte-level mixture-of-experts language model on real text; `--help` lists the options.

mod model;
mod optimizer;
mod options;
mod sequential;
mod text;
mod trainer;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use crate::model::{Config, EXPERTS_PER_TOKEN};
use crate::options::{Options, ScheduleName, HELP};
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
    let config = Config::small(options.num_ranks);
    println!("text     {}, {} bytes", text.name, text.len());
    println!(
        "model    {} stages of width {}, {} experts each, {} per token",
        config.num_stages, config.width, config.num_experts, EXPERTS_PER_TOKEN
    );
    println!(
        "step     {} micro-batches of {} sequences of {} bytes",
        options.num_microbatches, config.num_sequences, config.sequence
    );
    match options.schedule {
        ScheduleName::Sequential => train_sequentially(options, config, &text),
    }
}

fn train_sequentially(options: &Options, config: Config, text: &Text) -> Result<(), String> {
    let mut sequential = Sequential::new(config, options.seed);
    let matrices = sequential.stages().flat_map(|s| s.model.params.groups());
    let num_parameters: usize = matrices.map(|(_, matrix)| matrix.len()).sum();
    println!("         {num_parameters} parameters");
    let start = Instant::now();
    for step in 0..options.num_steps {
        let batch = text.batch(&config, options.seed, step, options.num_microbatches)?;
        let loss = sequential.forward_backward(&Arc::new(batch))?;
        sequential.update();
        if step % 10 == 0 || step + 1 == options.num_steps {
            let seconds = start.elapsed().as_secs_f64();
            println!("step {step:4}   loss {loss:.3}   {seconds:5.1} s");
        }
    }
    println!("tokens by expert, most to least");
    for (stage, copy) in sequential.stages().enumerate() {
        let mut loads = copy.expert_loads.clone();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        println!("  stage {stage}: {loads:?}");
    }
    Ok(())
}
