//! Training on devices against training on the host. The devices are the stand-in driver's, which finds races.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dualpipe::execute::GraphState;
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};

use super::tests::standin::{Session, EAGER};
use crate::model::Config;
use crate::pipeline::Pipeline;
use crate::text::Text;

const NUM_STEPS: usize = 4;
/// Of a loss after some steps, a share of it. Steps move parameters apart: where a gradient is next to nothing, the
/// smallest difference turns the optimizer.
const TOLERANCE: f64 = 1e-6;

fn config(num_stages: usize) -> Config {
    Config { sequence: 6, width: 8, num_heads: 2, num_experts: 4, hidden: 6, ..Config::small(num_stages) }
}

/// Always the same: no change of the sources may bring two experts' scores so close that rounding decides.
fn text() -> Text {
    Text::from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE")).unwrap()
}

/// Trains on the stand-in and on the host, and compares each step.
fn compare(schedule: Schedule, seed: u64, num_devices: usize, uses_graph: bool) {
    let what = format!("{}, {num_devices} devices, graph {uses_graph}", schedule.name());
    let session = Session::new(seed, EAGER, num_devices as u32, 0);
    let config = config(schedule.placement().num_stages());
    let num_microbatches = schedule.num_microbatches();
    let mut host = Pipeline::on_host(schedule.clone(), config, 1).unwrap();
    let mut gpu = Pipeline::on_cuda(schedule, config, 1, num_devices, uses_graph).unwrap();
    for step in 0..NUM_STEPS {
        let what = format!("{what}, step {step}");
        let batch = Arc::new(text().batch(&config, 1, step, num_microbatches).unwrap());
        let want = host.forward_backward(&batch).unwrap();
        let got = gpu.forward_backward(&batch).unwrap();
        assert!((got - want).abs() <= TOLERANCE * want, "{what}: {got}, not {want}");
        let comparison = gpu.compare_with_sequential().unwrap();
        assert!(comparison.is_within_tolerance(), "{what}: {comparison}");
        let timeline = gpu.timeline().unwrap();
        let num_tasks: usize = timeline.spans.iter().map(Vec::len).sum();
        let want: usize = host.timeline().unwrap().spans.iter().map(Vec::len).sum();
        assert_eq!(num_tasks, want, "{what}");
        host.update().unwrap();
        gpu.update().unwrap();
        assert!(gpu.copies_agree().unwrap(), "{what}");
    }
    let visits = |loads: Vec<Vec<u64>>| loads.iter().map(|loads| loads.iter().sum()).collect::<Vec<u64>>();
    assert_eq!(visits(gpu.expert_loads().unwrap()), visits(host.expert_loads().unwrap()), "{what}");
    let graph = if uses_graph { GraphState::Captured } else { GraphState::Off };
    assert_eq!(gpu.graph(), graph, "{what}");
    drop(gpu);
    session.assert_clean(&what);
}

fn schedules() -> [Schedule; 3] {
    [
        dualpipe(4, 8, Work::Training).unwrap(),
        dualpipe_v(2, 5, Work::Training).unwrap(),
        one_f_one_b(3, 4, Work::Training).unwrap(),
    ]
}

#[test]
fn training_on_devices_is_training_on_the_host() {
    for (seed, schedule) in schedules().into_iter().enumerate() {
        for num_devices in [1, 3] {
            compare(schedule.clone(), seed as u64, num_devices, false);
        }
    }
}

#[test]
fn training_by_launches_of_a_graph_is_training_on_the_host() {
    for (seed, schedule) in schedules().into_iter().enumerate() {
        for num_devices in [1, 3] {
            compare(schedule.clone(), seed as u64, num_devices, true);
        }
    }
}

/// Also in the second step, while it is captured.
#[test]
fn a_driver_that_fails_is_the_runs_error_and_nobody_hangs() {
    for (ordinal, uses_graph) in [(0, false), (100, false), (1000, false), (500, true), (1500, true)] {
        let what = format!("launch {ordinal}, graph {uses_graph}");
        let session = Session::new(ordinal, EAGER, 2, 0);
        let schedule = dualpipe(4, 6, Work::Training).unwrap();
        let config = config(4);
        let batch = Arc::new(text().batch(&config, 1, 0, 6).unwrap());
        let mut gpu = Pipeline::on_cuda(schedule, config, 1, 2, uses_graph).unwrap();
        // CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        session.fail_call("cuLaunchKernel", ordinal, 701);
        let started = Instant::now();
        let error = (0..3).find_map(|_| gpu.forward_backward(&batch).err());
        assert!(
            error.is_some_and(|error| error.contains("cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")),
            "{what}"
        );
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        drop(gpu);
        session.assert_clean(&what);
    }
}
