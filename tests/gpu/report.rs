//! The report: Markdown on standard output, and whether a check has failed.

use crate::driver::{driver_version, Gpu, Outcome};

/// Longest reason of a failure, in characters.
const TEXT_MAX: usize = 800;

/// What the run asked for, and what came of it.
pub(crate) struct Report {
    pub(crate) is_standin: bool,
    num_checks: usize,
    failed: Vec<String>,
}

impl Report {
    /// Prints what all that follows was measured on.
    pub(crate) fn begin(gpu: &Gpu, command: &str) -> Report {
        let version = driver_version();
        let [num_processors, kilohertz] = gpu.shape();
        let name = &gpu.name;
        println!(
            "`{command}`: {name}, driver of CUDA {}.{}, {num_processors} multiprocessors, at most {} MHz.\n",
            version / 1000,
            version % 1000 / 10,
            kilohertz / 1000
        );
        Report { is_standin: gpu.is_standin(), num_checks: 0, failed: Vec::new() }
    }

    pub(crate) fn heading(&self, title: &str, columns: &[&str]) {
        println!("\n{title}\n\n| {} |\n|{}", columns.join(" | "), " --- |".repeat(columns.len()));
    }

    /// A row of a table of checks: how it is good, or why not.
    pub(crate) fn check(&mut self, name: &str, outcome: Outcome<String>) {
        self.num_checks += 1;
        match outcome {
            Ok(text) => println!("| {name} | ok | {text} |"),
            Err(why) => {
                let why: String = why.replace(['\n', '|'], " ").chars().take(TEXT_MAX).collect();
                println!("| {name} | **FAILED** | {why} |");
                self.failed.push(name.to_string());
            }
        }
    }

    /// A row of a table of figures: those that a device's speed decides mean nothing on the stand-in.
    pub(crate) fn figure(&mut self, name: &str, figure: Outcome<Vec<String>>) {
        match figure {
            Ok(_) if self.is_standin => println!("| {name} | stand-in: no figure |"),
            Ok(cells) => println!("| {name} | {} |", cells.join(" | ")),
            Err(why) => self.check(name, Err(why)),
        }
    }

    /// A row with a count, which is the same on any driver.
    pub(crate) fn count(&mut self, name: &str, cells: &[String]) {
        println!("| {name} | {} |", cells.join(" | "));
    }

    /// Whether all is well; says so.
    pub(crate) fn end(self) -> bool {
        match self.failed.is_empty() {
            true => println!("\n{} checks, none failed.", self.num_checks),
            false => println!("\n{} checks, FAILED: {}.", self.num_checks, self.failed.join("; ")),
        }
        self.failed.is_empty()
    }
}

/// The middle one, the least and the greatest; zeros of nothing.
pub(crate) fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    [at(values.len() / 2), at(0), at(values.len().saturating_sub(1))]
}
