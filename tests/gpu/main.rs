//! What is checked and measured on a GPU, and on the stand-in driver as far as that goes. See README.md here.
//!
//! ```text
//! gpu check [--small] [--plant MISTAKE] [--timeout SECONDS] [train] [graphs] [faults]
//! gpu figures [--small] [host] [overlap] [step]
//! gpu                     as `cargo test` runs it: both, small, on the stand-in, and every mistake is found
//! ```
//!
//! It prints a report in Markdown; its exit code is not 0 if a check failed.

#[path = "../support/rank_threads.rs"]
mod rank_threads;

mod blas;
mod cargo_test;
mod correct;
mod driver;
mod faults;
mod figures;
mod graphs;
mod hooks;
mod math;
mod memory;
mod mlp;
mod model;
mod numbers;
mod parts;
mod ranks;
mod report;
mod sequential;
mod settings;
mod timed;

use std::process::ExitCode;

use driver::{Gpu, Outcome};
use report::Report;
use settings::Settings;

/// More hardware queues than the default 8: streams that share one wait for each other.
const CONNECTIONS: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "32");

fn run(mode: &str, settings: &Settings) -> Outcome<bool> {
    let gpu = Gpu::open()?;
    // Large sizes would tell nothing more of the stand-in, and take minutes.
    let settings = &Settings { is_small: settings.is_small || gpu.is_standin(), ..settings.clone() };
    let mut report = Report::begin(&gpu, &std::env::args().skip(1).collect::<Vec<_>>().join(" "));
    if mode == "figures" {
        figures::measure(&gpu, settings, &mut report);
    } else {
        if settings.has("train") {
            correct::check(&gpu, settings, &mut report)?;
        }
        if settings.has("graphs") {
            graphs::check(&gpu, settings, &mut report)?;
        }
        if settings.has("faults") {
            faults::check(&gpu, settings, &mut report);
        }
    }
    gpu.synchronize()?;
    if let Some(found) = hooks::report() {
        report.heading("The stand-in driver", &["check", "", ""]);
        let outcome = if found.is_empty() { Ok("nothing found".to_string()) } else { Err(found) };
        report.check("races, misuse, memory", outcome);
    }
    Ok(report.end())
}

fn main() -> ExitCode {
    if std::env::var_os(CONNECTIONS.0).is_none() {
        std::env::set_var(CONNECTIONS.0, CONNECTIONS.1); // no other thread is there yet
    }
    let mode = std::env::args().nth(1).filter(|mode| mode == "check" || mode == "figures");
    let Some(mode) = mode else { return cargo_test::run() };
    let settings = Settings::parse(lexopt::Parser::from_iter(std::env::args().skip(1)));
    let done = settings.map_err(|why| why.to_string()).and_then(|settings| run(&mode, &settings));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("gpu {mode}: {why}");
            ExitCode::FAILURE
        }
    }
}
