//! The C++ header is all of the C one, compiles everywhere, and does what it says.
//!
//! Every file of tests/cpp/hpp with a main is a program of its own; a new one is found by itself.

#[path = "support/debian.rs"]
mod debian;
#[path = "support/library.rs"]
mod library;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `#include <dualpipe.hpp>` is found in.
fn include() -> PathBuf {
    library::root().join("bindings/cpp/include")
}

/// The headers, dualpipe.hpp first.
fn headers() -> Vec<PathBuf> {
    let mut headers = vec![include().join("dualpipe.hpp")];
    headers.extend(library::files(&include().join("dualpipe"), "hpp"));
    headers
}

/// The compiler that the programs are made with.
fn default_compiler() -> String {
    std::env::var("CXX").unwrap_or("c++".into())
}

/// The compilers of this machine, each with what it calls the standards.
fn compilers() -> Vec<(String, [&'static str; 3])> {
    let mut compilers = vec![(default_compiler(), ["c++17", "c++20", "c++2b"])];
    match debian::find_or_install(&["clang++"], &["clang"]) {
        Ok(()) => compilers.push(("clang++".into(), compilers[0].1)),
        Err(why) => debian::say(&format!("tests/cpp_header.rs: without clang: {why}")),
    }
    compilers
}

/// A compiler with every warning an error.
fn compiler(compiler: &str, standard: &str) -> Command {
    let mut command = Command::new(compiler);
    command.arg(format!("-std={standard}"));
    command.args(["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic-errors"]);
    command.arg("-I").arg(library::include()).arg("-I").arg(include());
    command
}

/// Compiles a program and links it with the library.
fn compile(standard: &str, options: &[&str], sources: &[&Path]) -> PathBuf {
    let name = sources[0].file_stem().expect("a file").to_string_lossy().into_owned();
    let program = library::scratch().join(format!("{name}-{standard}{}", options.join("")));
    let folder = library::folder();
    let mut command = compiler(&default_compiler(), standard);
    command.args(["-g", "-pthread"]).args(options).args(sources).arg("-o").arg(&program);
    command.arg("-L").arg(folder).arg("-ldualpipe").arg(format!("-Wl,-rpath,{}", folder.display()));
    library::run(&mut command);
    program
}

fn run_all(standard: &str, options: &[&str]) {
    let sources = library::files(&library::root().join("tests/cpp/hpp"), "cpp");
    let is_half = |source: &Path| source.to_string_lossy().ends_with("_other.cpp");
    let mut num_programs = 0;
    for source in sources.iter().filter(|source| !is_half(source)) {
        let other = PathBuf::from(source.to_string_lossy().replace(".cpp", "_other.cpp"));
        let mut parts = vec![source.as_path()];
        parts.extend(sources.iter().filter(|path| **path == other).map(PathBuf::as_path));
        let program = compile(standard, options, &parts);
        library::run(&mut Command::new(&program));
        if source.file_stem().is_some_and(|name| name == "cuda") {
            // The argument says that there must be a driver.
            library::run(Command::new(&program).arg("standin").env("LD_LIBRARY_PATH", library::standins()));
        }
        num_programs += 1;
    }
    assert!(num_programs > 0);
    println!("\n{standard}: {num_programs} passed, 0 failed");
}

#[test]
fn every_header_compiles_alone() {
    let scratch = library::scratch();
    for header in headers() {
        let source = scratch.join("alone.cpp");
        let name = header.strip_prefix(include()).expect("in the folder").display().to_string();
        std::fs::write(&source, format!("#include <{name}>\n")).expect("scratch");
        library::run(compiler(&default_compiler(), "c++17").arg("-fsyntax-only").arg(&source));
    }
}

#[test]
fn the_header_compiles_twice_in_every_standard_and_kind_with_every_compiler() {
    let source = library::scratch().join("twice.cpp");
    std::fs::write(&source, "#include <dualpipe.hpp>\n#include <dualpipe.hpp>\n").expect("scratch");
    for (name, standards) in compilers() {
        for standard in standards {
            for kind in ["-fexceptions", "-fno-exceptions"] {
                library::run(compiler(&name, standard).args(["-fsyntax-only", kind]).arg(&source));
            }
        }
    }
}

#[test]
fn programs_run_in_cpp17() {
    run_all("c++17", &[]);
}

#[test]
fn programs_run_in_cpp23_under_the_sanitizers() {
    run_all("c++2b", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
}

#[test]
fn a_program_without_exceptions_runs() {
    let source = library::root().join("tests/cpp/hpp/results.cpp");
    library::run(&mut Command::new(compile("c++20", &["-fno-exceptions"], &[&source])));
}

/// The examples of the README and of the header itself.
#[test]
fn the_examples_run() {
    let readme = std::fs::read_to_string(library::root().join("README.md")).expect("README.md");
    let readme = readme.split("```cpp\n").nth(1).and_then(|rest| rest.split("```").next());
    let header = std::fs::read_to_string(&headers()[0]).expect("dualpipe.hpp");
    let header = header.lines().filter_map(|line| line.strip_prefix("///     "));
    let header = header.collect::<Vec<_>>().join("\n") + "\n";
    for (name, example) in [("readme", readme.expect("a C++ example")), ("header", &header)] {
        let source = library::scratch().join(format!("{name}.cpp"));
        std::fs::write(&source, example).expect("scratch");
        // An example need not mind its conversions.
        let (program, folder) = (source.with_extension(""), library::folder());
        let mut command = compiler(&default_compiler(), "c++17");
        command.arg("-Wno-conversion").arg(&source).arg("-o").arg(&program);
        command.arg("-L").arg(folder).arg("-ldualpipe").arg(format!("-Wl,-rpath,{}", folder.display()));
        library::run(&mut command);
        assert_eq!(library::run(&mut Command::new(program)), "59.0 us, bubble 7.0 %\n");
    }
}

/// What the C headers declare and the C++ ones have to have.
struct Declared {
    functions: BTreeSet<String>,
    constants: BTreeSet<String>,
    structs: BTreeSet<String>,
}

fn declared_in_c() -> Declared {
    let functions = library::functions_in_headers().into_iter().map(|(name, _)| name).collect();
    let (mut constants, mut structs) = (BTreeSet::new(), BTreeSet::new());
    for header in library::files(&library::include().join("dualpipe"), "h") {
        let text = std::fs::read_to_string(&header).expect("a header");
        for line in text.lines() {
            if let Some((name, _)) = line.trim().split_once(" = ") {
                constants.extend(name.starts_with("DUALPIPE_").then(|| name.to_string()));
            }
            // What handles point to has no body.
            let name = line.strip_prefix("typedef struct dualpipe_").and_then(|rest| rest.strip_suffix(" {"));
            structs.extend(name.map(|name| format!("dualpipe_{name}")));
        }
    }
    Declared { functions, constants, structs }
}

/// The words of the C++ headers' code, without the comments.
fn words_of_cpp() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for header in headers() {
        let text = std::fs::read_to_string(&header).expect("a header");
        for line in text.lines() {
            let code = line.split("//").next().unwrap_or_default();
            let names = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.extend(names.filter(|word| !word.is_empty()).map(String::from));
        }
    }
    words
}

#[test]
fn nothing_of_the_c_header_is_missing() {
    let (c, cpp) = (declared_in_c(), words_of_cpp());
    assert!(
        c.functions.len() > 40 && c.constants.len() > 40 && c.structs.len() > 20,
        "the C headers are read"
    );
    let all = c.functions.iter().chain(&c.constants).chain(&c.structs);
    let missing: Vec<&String> = all.filter(|name| !cpp.contains(*name)).collect();
    assert!(missing.is_empty(), "dualpipe.hpp lacks {missing:?}");
}

/// Of a struct that a class stands for, rather than derives from, every field has to be there.
#[test]
fn no_field_of_a_struct_is_missing() {
    let cpp = words_of_cpp();
    for (header, name) in [
        ("task.h", "dualpipe_tensor"),
        ("task.h", "dualpipe_task_pass"),
        ("task.h", "dualpipe_task"),
        ("executor.h", "dualpipe_executor_options"),
        ("cuda.h", "dualpipe_nccl_options"),
        ("cost.h", "dualpipe_costs"),
        ("cluster.h", "dualpipe_cluster"),
        ("memory.h", "dualpipe_memory"),
        ("expert_transfer.h", "dualpipe_expert_transfer_options"),
        ("transport.h", "dualpipe_transport"),
    ] {
        let text = std::fs::read_to_string(library::include().join("dualpipe").join(header)).expect(header);
        let body = text.split(&format!("typedef struct {name} {{\n")).nth(1).expect(name);
        let body = body.split(&format!("}} {name};")).next().unwrap_or_default();
        let lines = body.lines().filter(|line| !line.trim_start().starts_with(['*', '/']));
        let fields = lines.filter_map(|line| line.strip_suffix(';')?.rsplit([' ', '*']).next());
        let known = |field: &str| ["size", "reserved", "reserved2"].contains(&field);
        let missing: Vec<&str> = fields.filter(|field| !known(field) && !cpp.contains(*field)).collect();
        assert!(missing.is_empty(), "dualpipe.hpp has no {missing:?} of {name}");
    }
}

/// A function or class that a user may call says what it does.
#[test]
fn every_entry_is_documented() {
    let mut bare = Vec::new();
    for header in headers() {
        let text = std::fs::read_to_string(&header).expect("a header");
        assert!(text.starts_with("/// "), "{} does not say what it is", header.display());
        let mut before = "";
        let mut is_inner = false;
        for line in text.lines() {
            let code = line.trim();
            is_inner |= code == "private:" || code.starts_with("namespace detail");
            is_inner &= !(line.starts_with("};") || code.starts_with("} // namespace"));
            let is_entry = ["class ", "struct ", "enum class ", "static Result", "Result<", "inline Result"]
                .iter()
                .any(|start| code.starts_with(start))
                && !code.ends_with(';');
            let is_said = before.starts_with("///") || before.starts_with("template <");
            if is_entry && !is_inner && !is_said {
                bare.push(format!("{}: {code}", header.display()));
            }
            before = code;
        }
    }
    assert!(bare.is_empty(), "without a comment: {bare:#?}");
}
