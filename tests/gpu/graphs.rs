//! Steps launched as a graph, against the same steps enqueued one by one.

use std::sync::Arc;

use dualpipe::execute::GraphState;

use crate::correct::{schedules, sizes};
use crate::driver::{Gpu, Outcome};
use crate::math::Number;
use crate::model::Model;
use crate::numbers::{same_bits, CopyNumbers};
use crate::ranks::{Pipeline, Way};
use crate::report::Report;
use crate::settings::{Plant, Settings};

/// The first is enqueued, the second captured, the others launched.
const NUM_STEPS: usize = 5;

/// What each of several steps made; weights move in between.
fn steps(
    gpu: &Arc<Gpu>,
    model: &Arc<Model>,
    way: Way,
    settings: &Settings,
) -> Outcome<Vec<Vec<CopyNumbers>>> {
    let pipeline = Pipeline::new(gpu, model, way, settings.timeout)?;
    let mut all = Vec::new();
    for step in 0..NUM_STEPS {
        pipeline.step()?;
        pipeline.update()?;
        if way.uses_graph && settings.plant == Some(Plant::Graph) && step == 2 {
            pipeline.update()?;
        }
        all.push(pipeline.numbers()?);
    }
    let states = pipeline.graphs()?;
    match states.iter().find(|&state| way.uses_graph && *state != GraphState::Captured) {
        Some(state) => Err(format!("a rank did not launch its steps: {state:?}")),
        None => Ok(all),
    }
}

pub(crate) fn check(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) -> Outcome {
    let title = "Steps launched as one CUDA graph against steps enqueued one by one";
    report.heading(title, &["check", "", ""]);
    for schedule in schedules()? {
        for (number, has_comm_stream) in [(Number::F32, false), (Number::Bf16, true)] {
            let model = Model::new(schedule.clone(), sizes(settings, number), 8);
            let both = [false, true].map(|uses_graph| {
                let way = Way { uses_graph, has_comm_stream, ..Way::default() };
                steps(gpu, &model, way, settings)
            });
            let [eager, graph] = both;
            let outcome = eager.and_then(|eager| {
                let graph = graph?;
                let each = graph.iter().zip(&eager).enumerate();
                let counts = each.map(|(step, (graph, eager))| {
                    same_bits(graph, eager).map_err(|why| format!("step {step}: {why}"))
                });
                let count = counts.sum::<Outcome<usize>>()?;
                Ok(format!("{count} numbers of {NUM_STEPS} steps, each bit the same"))
            });
            let beside = if has_comm_stream { ", F beside B" } else { "" };
            report.check(&format!("{}, {}{beside}", schedule.title(), number.name()), outcome);
        }
    }
    Ok(())
}
