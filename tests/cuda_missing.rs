//! What is said where there is no CUDA, or not enough of it. A process of its own: a driver, once found, stays.

use std::path::Path;
use std::process::Command;

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{
    cuda_available, nccl_unique_id, nccl_version, Boundaries, CudaLink, CudaOptions, Executor,
};
use dualpipe::execute::{overlap::Overlap, Options};
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe, Work};
use dualpipe::ErrorKind;

/// A library of this name with the functions in `source`, in a folder of its own.
fn library(folder: &str, name: &str, source: &str) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("source.c");
    std::fs::write(&file, source).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(&file).status();
    assert!(built.unwrap().success());
    folder
}

/// Runs one of the tests below in a process of its own, with this environment.
fn run(test: &str, variable: &str, value: &Path) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(variable, value);
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn has_driver() -> bool {
    cuda_available().is_ok()
}

#[test]
fn without_a_driver_everything_says_so_and_nothing_panics() {
    if has_driver() {
        return; // the machine has one: then the other tests here speak
    }
    let is_unavailable = |kind: ErrorKind, text: String| {
        assert_eq!(kind, ErrorKind::Unavailable, "{text}");
        assert!(text.starts_with("cuda: "), "{text}");
    };
    let error = cuda_available().unwrap_err();
    is_unavailable(error.kind(), error.to_string());
    let error = Overlap::new(0).err().unwrap();
    is_unavailable(error.kind(), error.to_string());
    let program = lower(&dualpipe(2, 2, Work::Training).unwrap()).unwrap().remove(0);
    let options = Options::new(Boundaries::uniform(Vec::new()).unwrap());
    let link = CudaLink::inproc(&Inproc::new(2).unwrap());
    let error = Executor::on_cuda(program, link, options, &CudaOptions::new(0)).err().unwrap();
    is_unavailable(error.kind(), error.to_string());
}

#[test]
fn a_driver_that_is_too_old_is_told_from_none() {
    let folder = library("old_driver", "libcuda.so.1", "int cuInit(unsigned flags) { return flags != 0; }\n");
    run("the_driver_is_too_old", "LD_LIBRARY_PATH", &folder);
}

#[test]
#[ignore = "run by a_driver_that_is_too_old_is_told_from_none"]
fn the_driver_is_too_old() {
    let text = cuda_available().unwrap_err().to_string();
    assert!(text.contains("libcuda.so.1 has no cu") && text.contains("too old"), "{text}");
}

#[test]
fn the_nccl_that_was_chosen_is_the_one_that_is_loaded() {
    run("there_is_no_such_nccl", "DUALPIPE_NCCL_LIB", Path::new("/nowhere/libnccl.so.2"));
    let folder =
        library("old_nccl", "libnccl.so.2", "int ncclGetVersion(int *version) { return *version = 0; }\n");
    run("the_nccl_is_too_old", "DUALPIPE_NCCL_LIB", &folder.join("libnccl.so.2"));
}

#[test]
#[ignore = "run by the_nccl_that_was_chosen_is_the_one_that_is_loaded"]
fn there_is_no_such_nccl() {
    let schedule = dualpipe(2, 2, Work::Training).unwrap();
    for error in [nccl_version().unwrap_err(), nccl_unique_id(schedule.placement()).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("/nowhere/libnccl.so.2") && text.contains("DUALPIPE_NCCL_LIB"), "{text}");
    }
}

#[test]
#[ignore = "run by the_nccl_that_was_chosen_is_the_one_that_is_loaded"]
fn the_nccl_is_too_old() {
    let error = nccl_version().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("has no nccl"), "{error}");
}
