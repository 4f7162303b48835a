//! What `cargo test` runs: everything, small, on the stand-in driver; and that every planted mistake is found.

use std::path::Path;
use std::process::{Command, ExitCode, Output};

use crate::blas::column_major;
use crate::figures::{hidden_share, Interval};
use crate::math::Matrix;
use crate::report::spread;
use crate::settings::Plant;

/// Where the stand-in is, built if need be.
fn standin() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = root.join("target/standin");
    let built = Command::new(root.join("tests/cuda_standin/build")).arg(&out).output().expect("bash");
    assert!(built.status.success(), "tests/cuda_standin/build: {}", String::from_utf8_lossy(&built.stderr));
    out.display().to_string()
}

/// This program, on the stand-in.
fn run_again(standin: &str, arguments: &[&str]) -> Output {
    let program = std::env::current_exe().expect("this program's path");
    let mut command = Command::new(program);
    let output = command.args(arguments).env("LD_LIBRARY_PATH", standin).output();
    output.expect("this program runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn shares_and_medians_are_right() {
    let interval = |begin: f64, end: f64| Interval { begin, end };
    let compute = [interval(0.0, 10.0), interval(9.0, 12.0), interval(20.0, 30.0)];
    let comm = [interval(-2.0, 2.0), interval(11.0, 21.0), interval(25.0, 26.0)];
    // Of 15 hidden are 2, 1 and 1, and 1.
    assert!((hidden_share(&compute, &comm) - 5.0 / 15.0).abs() < 1e-12);
    assert_eq!(spread(vec![3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
}

/// That cuBLAS, which has columns side by side, is asked for the right product, by its manual's formula.
fn cublas_is_asked_for_the_right_product() {
    let [rows, columns, depth] = [2_usize, 3, 4];
    let a: Vec<f64> = (0..rows * depth).map(|i| i as f64 + 1.0).collect();
    let b: Vec<f64> = (0..depth * columns).map(|i| 3.0 - i as f64).collect();
    let transposed = |matrix: &[f64], columns: usize| {
        let rows = matrix.len() / columns;
        (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect::<Vec<f64>>()
    };
    let (a_stored, b_stored) = (transposed(&a, depth), transposed(&b, columns));
    let ways_a = [(&a, Matrix::new(0, depth)), (&a_stored, Matrix::new(0, rows).transposed())];
    let ways_b = [(&b, Matrix::new(0, columns)), (&b_stored, Matrix::new(0, depth).transposed())];
    for (a_memory, a_matrix) in ways_a {
        for (b_memory, b_matrix) in ways_b {
            // op(X)(i, j) = X(i, j) or X(j, i), X(i, j) = memory[i + j ld]; C(i, j) = sum op(A)(i, k) op(B)(k, j).
            let at = |memory: &[f64], (is_transposed, leading): (i32, i32), i: usize, j: usize| {
                let (i, j) = if is_transposed == 1 { (j, i) } else { (i, j) };
                memory[i + j * leading as usize]
            };
            let (first, second) = (column_major(b_matrix), column_major(a_matrix));
            for (i, j) in (0..columns).flat_map(|i| (0..rows).map(move |j| (i, j))) {
                let got: f64 =
                    (0..depth).map(|k| at(b_memory, first, i, k) * at(a_memory, second, k, j)).sum();
                let want: f64 = (0..depth).map(|k| a[j * depth + k] * b[k * columns + i]).sum();
                assert_eq!(got, want, "{a_matrix:?} {b_matrix:?}");
            }
        }
    }
}

pub(crate) fn run() -> ExitCode {
    shares_and_medians_are_right();
    cublas_is_asked_for_the_right_product();
    let standin = standin();
    let (mut failed, mut num_run) = (Vec::new(), 0);
    for arguments in [["check", "--small"], ["figures", "--small"]] {
        let output = run_again(&standin, &arguments);
        println!("{}", text(&output));
        num_run += 1;
        if !output.status.success() {
            failed.push(arguments.join(" "));
        }
    }
    for (name, plant) in Plant::ALL {
        let part = match plant {
            Plant::Gradient => "train",
            Plant::Graph => "graphs",
            Plant::Fault | Plant::Spin => "faults",
        };
        let output = run_again(&standin, &["check", "--small", "--plant", name, part]);
        let is_found = !output.status.success() && text(&output).contains("FAILED");
        println!("planted {name}: {}", if is_found { "found" } else { "NOT found" });
        num_run += 1;
        if !is_found {
            println!("{}", text(&output));
            failed.push(format!("planted {name}"));
        }
    }
    // As other tests say it, so that tests/run counts it.
    let num_failed = failed.len();
    let word = if num_failed == 0 { "ok" } else { "FAILED" };
    if num_failed > 0 {
        println!("failed: {}", failed.join("; "));
    }
    println!("test result: {word}. {} passed; {num_failed} failed", num_run - num_failed);
    if num_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
