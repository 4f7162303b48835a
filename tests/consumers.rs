//! Programs in C, C++ and Python use the library as a user would: by its header, its SONAME and nothing else.
//!
//! Every file of tests/c and tests/cpp is a program of its own; a new one is found by itself. `--nocapture` tells how
//! many there were in each standard. A program whose name begins with "cuda" runs twice: as the machine is, and on the
//! stand-in driver and NCCL.

#[path = "support/library.rs"]
mod library;

use std::process::Command;

fn compile_and_run_all(standard: &str, folder: &str, extension: &str) {
    let folder = library::root().join("tests").join(folder);
    let sources = library::files(&folder, extension);
    assert!(!sources.is_empty(), "{} has no .{extension}", folder.display());
    for source in &sources {
        let program = library::compile(standard, source);
        library::run(&mut Command::new(&program));
        if source.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("cuda")) {
            // The argument says that there must be a driver.
            library::run(Command::new(&program).arg("standin").env("LD_LIBRARY_PATH", library::standins()));
        }
    }
    println!("\n{standard}: {} passed, 0 failed", sources.len());
}

#[test]
fn c99() {
    compile_and_run_all("c99", "c", "c");
}

#[test]
fn c17() {
    compile_and_run_all("c17", "c", "c");
}

#[test]
fn cpp11() {
    compile_and_run_all("c++11", "cpp", "cpp");
}

#[test]
fn cpp20() {
    compile_and_run_all("c++20", "cpp", "cpp");
}

#[test]
fn python() {
    let library = library::folder().join(library::soname());
    let consumer = library::root().join("tests/python/consumer.py");
    let mut python = Command::new("python3");
    library::run(python.args(["-W", "error"]).arg(consumer).arg(library).arg(env!("CARGO_PKG_VERSION")));
}

/// What is indented in a section of dualpipe.h, from the first line that is C.
fn example_in_the_header(section: &str) -> String {
    let header = std::fs::read_to_string(library::include().join("dualpipe.h")).expect("include/dualpipe.h");
    let lines = header.lines().skip_while(|line| !line.starts_with(&format!(" * {section}")));
    let lines = lines.skip_while(|line| !line.starts_with(" *     #"));
    let lines = lines.map_while(|line| if line == " *" { Some("") } else { line.strip_prefix(" *     ") });
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn run_example_in_the_header(section: &str, name: &str) -> String {
    let source = library::scratch().join(name);
    std::fs::write(&source, example_in_the_header(section)).expect("scratch");
    library::run(&mut Command::new(library::compile("c99", &source)))
}

#[test]
fn the_first_program_in_the_header_runs() {
    let printed = run_example_in_the_header("3. A first program", "first.c");
    assert!(printed.contains(" us, bubble "), "{printed}");
}

#[test]
fn the_trainer_in_the_header_trains() {
    let printed = run_example_in_the_header("8. A trainer", "trainer.c");
    let losses = printed.lines().filter_map(|line| {
        let (_, rest) = line.split_once(": loss ")?;
        rest.split_once(", sequentially ")?.0.parse::<f64>().ok()
    });
    let losses: Vec<f64> = losses.collect();
    assert!(losses.len() == 4 && losses.is_sorted_by(|before, after| before > after), "{printed}");
}

#[test]
fn the_manual_says_how_to_take_the_trainer_from_the_header() {
    let manual = std::fs::read_to_string(library::root().join("docs/c.md")).expect("docs/c.md");
    let command = manual.lines().find_map(|line| line.strip_suffix(" > trainer.c")).expect("the command");
    let cut = library::run(Command::new("sh").arg("-c").arg(command).current_dir(library::root()));
    assert_eq!(cut.trim(), example_in_the_header("8. A trainer").trim());
}
