//! The built libdualpipe.so in a folder that a linker and a loader understand, and the compilers that use it.
#![allow(dead_code)] // each test file uses a part of it

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that cargo built beside this test.
pub(crate) fn built() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let library = test.parent().expect("and a folder").join("libdualpipe.so");
    assert!(library.exists(), "{} is missing: build with `cargo test`", library.display());
    library
}

/// What `#include <dualpipe.h>` is found in.
pub(crate) fn include() -> PathBuf {
    root().join("include")
}

/// The files of a folder with an extension, in order.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = files.map(|file| file.expect("a file").path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// A folder of this test file's own, empty at the start.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let test = std::env::current_exe().expect("this test has a path");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test.file_stem().expect("and a name"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("target/tmp can be written");
        folder
    })
}

/// A folder with libdualpipe.so, for the linker, and the name in it that the loader will ask for.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = scratch().join("lib");
        std::fs::create_dir_all(&folder).expect("target/tmp can be written");
        std::fs::copy(built(), folder.join(soname())).expect("the library can be copied");
        std::os::unix::fs::symlink(soname(), folder.join("libdualpipe.so")).expect("and linked");
        folder
    })
}

/// The name that programs linked with this version look for: each minor version below 1.0 may break the ABI.
pub(crate) fn soname() -> String {
    match env!("CARGO_PKG_VERSION_MAJOR") {
        "0" => concat!("libdualpipe.so.0.", env!("CARGO_PKG_VERSION_MINOR")).to_string(),
        major => format!("libdualpipe.so.{major}"),
    }
}

/// Runs a command; what it wrote to stdout. Panics with all that it wrote if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// The languages that the header must be readable in.
pub(crate) const STANDARDS: [&str; 4] = ["c99", "c17", "c++11", "c++20"];

/// A compiler of a standard, with every warning an error.
pub(crate) fn compiler(standard: &str) -> Command {
    let (variable, default) = if standard.contains("++") { ("CXX", "c++") } else { ("CC", "cc") };
    let mut command = Command::new(std::env::var_os(variable).unwrap_or(default.into()));
    command.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-I"]);
    command.arg(include());
    command
}

/// Compiles a program of one file and links it with the library.
pub(crate) fn compile(standard: &str, source: &Path) -> PathBuf {
    let name = source.file_stem().expect("a file").to_string_lossy().into_owned();
    let program = scratch().join(format!("{name}-{standard}"));
    let mut command = compiler(standard);
    command.arg("-O1").arg("-g").arg(source).arg("-o").arg(&program);
    command.arg("-L").arg(folder()).args(["-ldualpipe", "-pthread", "-ldl"]);
    command.arg(format!("-Wl,-rpath,{}", folder().display()));
    run(&mut command);
    program
}

/// A folder with the stand-in libcuda.so.1 and libnccl.so.2, for a program that looks for them with `LD_LIBRARY_PATH`.
pub(crate) fn standins() -> &'static Path {
    static STANDINS: OnceLock<PathBuf> = OnceLock::new();
    STANDINS.get_or_init(|| {
        let out = root().join("target/standin");
        for which in ["cuda_standin", "nccl_standin"] {
            run(Command::new(root().join("tests").join(which).join("build")).arg(&out));
        }
        out
    })
}

/// Every function that the headers declare, in order, each with its header.
pub(crate) fn functions_in_headers() -> Vec<(String, String)> {
    let umbrella = std::fs::read_to_string(include().join("dualpipe.h")).expect("include/dualpipe.h");
    let headers = umbrella.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
    let mut functions = Vec::new();
    for header in headers {
        let text = std::fs::read_to_string(include().join(header)).expect(header);
        for line in text.lines().filter(|line| !line.starts_with([' ', '/', '#', '*', '}'])) {
            let name = line.split('(').next().and_then(|before| before.rsplit([' ', '*']).next());
            let name = name.filter(|name| line.contains('(') && name.starts_with("dualpipe_"));
            functions.extend(name.map(|name| (name.to_string(), header.to_string())));
        }
    }
    functions
}

/// The names of a function's parameters, from its declaration in a header.
pub(crate) fn parameters(header: &str, function: &str) -> Vec<String> {
    let text = std::fs::read_to_string(include().join(header)).expect(header);
    let call = format!("{function}(");
    let mut found = text.match_indices(&call).map(|(at, name)| at + name.len());
    let is_code = |at: usize| !text[..at].lines().last().unwrap_or_default().starts_with([' ', '/', '#']);
    let at = found.find(|&at| is_code(at)).expect("the function is declared");
    let list = text[at..].split(");").next().unwrap_or_default();
    let list = list.split(',').filter(|parameter| *parameter != "void");
    list.filter_map(|parameter| parameter.rsplit([' ', '*']).next()).map(String::from).collect()
}
