//! examples/cpp_trainer: built by its one command and run, on the CPU and on the stand-in device.

#[path = "support/debian.rs"]
mod debian;
#[path = "support/library.rs"]
mod library;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const SCHEDULES: [&str; 3] = ["dualpipe", "dualpipe_v", "1f1b"];

fn folder() -> PathBuf {
    library::root().join("examples/cpp_trainer")
}

/// The example's own build, with this test's library and every warning an error.
fn build(compiler: Option<&str>, out: &Path) {
    let mut command = Command::new(folder().join("build"));
    command.arg(out).env("DUALPIPE_LIB", library::folder());
    // Less optimized than a user's: it is compiled more than it runs.
    command.env("CXXFLAGS", "-O1 -Wconversion -Wpedantic -Werror");
    if let Some(compiler) = compiler {
        command.env("CXX", compiler);
    }
    library::run(&mut command);
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = library::scratch().join("cpp_trainer");
        build(None, &program);
        program
    })
}

/// The trainer with arguments in one string, without any CUDA.
fn trainer(arguments: &str) -> Command {
    let mut command = Command::new(program());
    command.args(arguments.split_whitespace()).env_remove("LD_LIBRARY_PATH");
    command
}

/// The same on the stand-in driver and cuBLAS.
fn on_device(arguments: &str) -> Command {
    let standins = library::standins();
    library::run(Command::new(library::root().join("tests/cublas_standin/build")).arg(standins));
    let mut command = trainer(arguments);
    command.args(["--device", "cuda"]).env("LD_LIBRARY_PATH", standins);
    command
}

/// What a run that must fail says, and its exit code.
fn failure(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, stdout } = command.output().expect("the trainer starts");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{command:?} did not fail:\n{}", String::from_utf8_lossy(&stdout));
    (status.code().unwrap_or_else(|| panic!("{command:?}: {status}\n{said}")), said)
}

fn loss_lines(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| line.trim_start().starts_with("step ") && line.contains("loss")).collect()
}

fn losses(printed: &str) -> Vec<f64> {
    let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse().ok());
    loss_lines(printed).into_iter().map(|line| number(line).expect("a loss")).collect()
}

fn assert_agrees(printed: &str) {
    assert!(printed.contains("They agree"), "{printed}");
}

/// Compiles and runs one of the example's own tests, a program with one argument, and wants this to be said.
fn run_test(name: &str, wanted: &str) {
    let test = library::scratch().join(name);
    let mut compiler = library::compiler("c++17");
    compiler.args(["-Wconversion", "-O1", "-I"]).arg(library::root().join("bindings/cpp/include"));
    compiler.arg(folder().join(format!("{name}.cpp"))).arg("-o").arg(&test);
    compiler.arg("-L").arg(library::folder()).args(["-ldualpipe", "-pthread"]);
    compiler.arg(format!("-Wl,-rpath,{}", library::folder().display()));
    library::run(&mut compiler);
    let printed = library::run(Command::new(test).arg(library::root().join("docs/executor.md")));
    assert!(printed.contains(wanted), "{printed}");
}

#[test]
fn the_model_s_gradients_are_slopes() {
    run_test("model_test", "model_test: 0 failed");
}

#[test]
fn a_rank_that_fails_is_told_by_its_own_words() {
    run_test("pipeline_test", "pipeline_test: 0 failed");
}

#[test]
fn every_schedule_has_the_gradients_of_a_sequential_run_to_the_bit() {
    for schedule in SCHEDULES {
        for overlap in ["", "--no-overlap"] {
            let size = "--steps 12 --blocks 2 --width 32 --hidden 24 --tokens 32 --rate 10000";
            let printed =
                library::run(&mut trainer(&format!("--schedule {schedule} {overlap} --check {size}")));
            assert_agrees(&printed);
            assert!(printed.contains("and must be equal to the bit"), "{printed}");
            let losses = losses(&printed);
            assert!(losses[losses.len() - 1] < 0.7 * losses[0], "the loss did not fall: {losses:?}");
            assert!(printed.contains("predicted  measured"), "{printed}");
        }
    }
}

#[test]
fn any_number_of_ranks_will_do() {
    for arguments in [
        "--schedule 1f1b --ranks 1",
        "--schedule dualpipe_v --ranks 1 --microbatches 1",
        "--schedule dualpipe --ranks 2 --microbatches 2",
        "--schedule dualpipe_v --ranks 5 --microbatches 11",
        "--schedule dualpipe --ranks 8 --microbatches 14",
    ] {
        let small = "--check --steps 2 --width 16 --hidden 24 --experts 6 --gpus 2 --context 4 --tokens 9";
        assert_agrees(&library::run(&mut trainer(&format!("{arguments} {small}"))));
    }
}

#[test]
fn same_seed_same_bytes() {
    let run = |arguments: &str| {
        let printed = library::run(&mut trainer(&format!("--steps 4 --width 32 {arguments}")));
        loss_lines(&printed).join("\n")
    };
    let first = run("--seed 5");
    assert!(first.contains("step    3   loss "), "{first}");
    assert_eq!(first, run("--seed 5"));
    assert_eq!(first, run("--seed 5 --no-overlap"));
    assert_ne!(first, run("--seed 6"));
}

#[test]
fn experts_are_placed_by_their_measured_loads() {
    let printed = library::run(&mut trainer("--steps 6 --width 32 --hidden 32"));
    let table = printed.split("Experts on 4 GPUs").nth(1).expect("a placement");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 4, "a row for each layer: {table}");
    for row in rows {
        let words: Vec<f64> =
            row.split_whitespace().take(4).map(|word| word.parse().expect("a number")).collect();
        let [_, in_order, balanced, bound] = words[..] else { panic!("{row}") };
        assert!(in_order > balanced && balanced >= bound && bound >= 1.0, "{row}");
        let slots = row.split_whitespace().skip(4).filter(|word| *word != "|").count();
        assert_eq!(slots, 12, "8 experts and a spare slot on each of 4 GPUs: {row}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let short = library::scratch().join("short.txt");
    std::fs::write(&short, "a text of 27 bytes, no more").expect("scratch");
    let short = format!("--data {}", short.display());
    let cases = [
        ("--ranks 0", "--ranks 0: not a number from 1 to 64"),
        ("--ranks four", "--ranks four: not a number from 1 to 64"),
        ("--ranks", "--ranks: needs a value"),
        ("--ranks 3", "num_ranks is 3, must be even and at least 2"),
        ("--microbatches 4", "num_microbatches is 4, must be even and at least 6 for 4 ranks"),
        ("--schedule zigzag", "--schedule zigzag: not one of dualpipe, dualpipe_v, 1f1b"),
        ("--device tpu", "--device tpu: not one of cpu, cuda"),
        ("--seed 18446744073709551616", "not a number from 0 to 18446744073709551615"),
        ("--context 5", "--context 5: does not divide --width 64"),
        ("--gpus 3", "--gpus 3: does not divide --experts 8"),
        ("--faster", "--faster: no such option; --help lists them"),
        ("--data /nowhere/text", "--data /nowhere/text: No such file or directory"),
        ("--data /", "--data /: is a directory, not a file"),
        (&short, "27 bytes, a micro-batch needs at least 72 (--context 8, --tokens 64)"),
    ];
    for (arguments, words) in cases {
        let (code, said) = failure(&mut trainer(arguments));
        assert_eq!(code, 2, "{arguments}: {said}");
        assert!(said.starts_with("cpp_trainer: ") && said.contains(words), "{arguments}: {said}");
    }
}

#[test]
fn the_readme_has_every_option() {
    let help = library::run(&mut trainer("--help"));
    let readme = std::fs::read_to_string(folder().join("README.md")).expect("README.md");
    let options: Vec<&str> = help.split([' ', ',']).filter(|word| word.starts_with("--")).collect();
    assert!(options.len() > 15, "{help}");
    for option in options {
        assert!(readme.contains(option), "README.md does not have {option}");
    }
}

#[test]
fn on_the_stand_in_device_every_schedule_agrees_with_the_cpu() {
    let size = "--check --steps 2 --blocks 2 --width 16 --hidden 12 --tokens 16 --context 4";
    for schedule in SCHEDULES {
        for overlap in ["", "--no-overlap"] {
            let arguments = format!("--schedule {schedule} --ranks 2 --microbatches 6 {overlap} {size}");
            let device = library::run(&mut on_device(&arguments));
            assert_agrees(&device);
            let host = library::run(&mut trainer(&arguments));
            let pairs = losses(&device).into_iter().zip(losses(&host));
            for (device, host) in pairs {
                assert!(
                    (device - host).abs() < 1e-4,
                    "{arguments}: loss {device} on the device, {host} here"
                );
            }
        }
    }
}

#[test]
fn on_the_stand_in_device_four_ranks_train() {
    let printed = library::run(&mut on_device("--check --steps 2 --width 16 --hidden 12 --tokens 16"));
    assert_agrees(&printed);
}

#[test]
fn the_device_says_what_is_missing() {
    let (code, said) = failure(&mut on_device("--device-index 1"));
    assert_eq!((code, said.as_str()), (2, "cpp_trainer: --device-index 1: there are devices 0 to 0\n"));
    let (code, said) = failure(&mut on_device("--kernels /nowhere"));
    assert_eq!((code, said.as_str()), (2, "cpp_trainer: --kernels: cannot read /nowhere/elementwise.ptx\n"));

    // A folder with the driver alone.
    let driver = library::scratch().join("driver");
    std::fs::create_dir_all(&driver).expect("scratch");
    let _ = std::fs::remove_file(driver.join("libcuda.so.1"));
    std::os::unix::fs::symlink(library::standins().join("libcuda.so.1"), driver.join("libcuda.so.1"))
        .expect("a link");
    let mut without_cublas = trainer("--device cuda");
    let output = without_cublas.env("LD_LIBRARY_PATH", driver).output().expect("the trainer starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let has_its_own = said.contains("cublasCreate: "); // which does not know the stand-in driver
    if !has_its_own {
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("cannot load libcublas.so.13, libcublas.so.12"), "{said}");
        assert!(said.contains("install cuBLAS 12 or newer"), "{said}");
    }

    let output = trainer("--device cuda --steps 1").output().expect("the trainer starts");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let is_said = ["libcuda.so.1 was not found", "device", "libcublas"].iter().any(|w| said.contains(w));
        assert!(is_said, "{said}");
    } // else it has a device, too
}

#[test]
fn clang_builds_it_too() {
    if let Err(why) = debian::find_or_install(&["clang++"], &["clang"]) {
        return debian::say(&format!("tests/cpp_trainer.rs: without clang: {why}"));
    }
    build(Some("clang++"), &library::scratch().join("cpp_trainer-clang"));
}
