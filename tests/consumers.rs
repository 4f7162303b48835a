//! Programs in C, C++ and Python use the library as a user would: by its header, its SONAME and nothing else.
//!
//! Every file of tests/c and tests/cpp is a program of its own; a new one is found by itself. `--nocapture` tells how
//! many there were in each standard. A program whose name begins with "cuda" runs twice: as the machine is, and on the
//! stand-in driver and NCCL.

#[path = "support/library.rs"]
mod library;

use std::path::PathBuf;
use std::process::Command;

/// The files of a folder of tests/ with an extension, in order.
fn programs(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = library::root().join("tests").join(folder);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = files.map(|file| file.expect("a file").path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    assert!(!files.is_empty(), "{} has no .{extension}", folder.display());
    files.sort();
    files
}

fn compile_and_run_all(standard: &str, folder: &str, extension: &str) {
    let sources = programs(folder, extension);
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

#[test]
fn the_example_at_the_head_of_the_header_runs() {
    let header = std::fs::read_to_string(library::include().join("dualpipe.h")).expect("include/dualpipe.h");
    let lines = header.lines().map(|line| line.strip_prefix(" *").unwrap_or(line));
    let lines = lines.skip_while(|line| !line.starts_with(" #include <dualpipe.h>"));
    let mut example = String::new();
    for line in lines {
        example += line;
        example.push('\n');
        if line == " }" && example.contains("main(") {
            break;
        }
    }
    let source = library::scratch().join("example.c");
    std::fs::write(&source, example).expect("scratch");
    let printed = library::run(&mut Command::new(library::compile("c99", &source)));
    assert!(printed.contains(" us, bubble "), "{printed}");
}
