//! Training steps on the pipeline, against the same without one and against f64 on the host.

use std::sync::Arc;

use dualpipe::schedule::{dualpipe, dualpipe_v, Schedule, Work};

use crate::blas::Blas;
use crate::driver::{Gpu, Outcome};
use crate::math::Number;
use crate::mlp::Sizes;
use crate::model::{Model, Reference};
use crate::numbers::{distance, same_bits, CopyNumbers};
use crate::ranks::{Pipeline, Way};
use crate::report::Report;
use crate::sequential::Sequential;
use crate::settings::{Plant, Settings};

pub(crate) fn schedules() -> Outcome<[Schedule; 2]> {
    let made = [dualpipe(4, 10, Work::Training), dualpipe_v(4, 9, Work::Training)];
    let [first, second] = made.map(|schedule| schedule.map_err(|why| why.to_string()));
    Ok([first?, second?])
}

pub(crate) fn sizes(settings: &Settings, number: Number) -> Sizes {
    let [tokens, width, hidden] = if settings.is_small { [4, 8, 16] } else { [64, 128, 256] };
    Sizes { tokens, width, hidden, number }
}

/// How far a step's gradients may be from those of f64, in the Euclidean norm.
///
/// f32: every sum rounds once for each of its terms, by at most 2^-24 of what it is then: to first order no more than
/// that times all terms on the longest way, four products of a stage and the sum over rows and micro-batches. Weights
/// are such that a stage hardly amplifies what comes in.
///
/// bf16: that is nothing beside the rounding of every tensor, by at most 2^-8: seven for each stage, four for the ends.
/// They have nothing to do with one another and add up as the root of their number; twice that is allowed.
fn tolerance(model: &Model) -> f64 {
    let Sizes { tokens, width, hidden, number } = model.sizes;
    let num_stages = model.weights.len();
    match number {
        Number::F32 => {
            let terms = num_stages * 2 * (width + hidden) + tokens * model.schedule.num_microbatches();
            terms as f64 * 2.0_f64.powi(-24)
        }
        Number::Bf16 => 2.0 * 2.0_f64.powi(-8) * ((7 * num_stages + 4) as f64).sqrt(),
    }
}

/// All ways of one schedule with one type of numbers.
struct Case<'a> {
    gpu: &'a Arc<Gpu>,
    settings: &'a Settings,
    model: Arc<Model>,
    reference: Reference,
    has_blas: bool,
}

impl Case<'_> {
    /// Two steps without a pipeline; the first is near what f64 gives.
    fn sequential(&self) -> Outcome<([Vec<CopyNumbers>; 2], String)> {
        let sequential = Sequential::new(self.gpu, &self.model, self.has_blas)?;
        let steps = [sequential.step(true)?, sequential.step(true)?];
        let (far, limit) = (distance(&steps[0], &self.reference), tolerance(&self.model));
        let text = format!("{far:.1e} from f64, at most {limit:.1e}");
        match far <= limit {
            true => Ok((steps, text)),
            false => Err(text),
        }
    }

    /// The same two steps on the pipeline: the same bits.
    fn pipeline(&self, has_comm_stream: bool, want: &[Vec<CopyNumbers>; 2]) -> Outcome<String> {
        let is_wrong = self.settings.plant == Some(Plant::Gradient);
        let way = Way { has_blas: self.has_blas, has_comm_stream, uses_graph: false, is_wrong };
        let pipeline = Pipeline::new(self.gpu, &self.model, way, self.settings.timeout)?;
        let mut count = 0;
        let mut far = 0.0;
        for (step, want) in want.iter().enumerate() {
            pipeline.step()?;
            pipeline.update()?;
            let got = pipeline.numbers()?;
            if step == 0 {
                far = distance(&got, &self.reference);
            }
            count +=
                same_bits(&got, want).map_err(|why| format!("step {step}: {why}; {far:.1e} from f64"))?;
        }
        if far > tolerance(&self.model) {
            return Err(format!("{far:.1e} from f64"));
        }
        let twins = match self.model.schedule.placement().num_directions() {
            2 => 2 * self.model.copies().len(),
            _ => 0,
        };
        let num_reductions = pipeline.num_reductions()?;
        match num_reductions == twins {
            true => Ok(format!("{count} numbers of two steps, each bit the same")),
            false => Err(format!("{num_reductions} tasks to reduce gradients in two steps, not {twins}")),
        }
    }
}

/// Runs all cases.
pub(crate) fn check(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) -> Outcome {
    let title =
        "Training steps: a residual layer of two products and SiLU for each stage, 4 ranks as threads";
    report.heading(title, &["check", "", ""]);
    let mut multipliers = vec![(false, "our kernels")];
    let blas = if gpu.is_standin() { Err("the stand-in has none".to_string()) } else { Blas::new() };
    match blas {
        Ok(blas) => {
            println!("| cuBLAS | {} | |", blas.version());
            multipliers.push((true, "cuBLAS"));
        }
        Err(why) => println!("| cuBLAS | not checked | {why} |"),
    }
    for schedule in schedules()? {
        for number in [Number::F32, Number::Bf16] {
            let model = Model::new(schedule.clone(), sizes(settings, number), 7);
            for &(has_blas, multiplier) in &multipliers {
                let reference = Reference::new(&model);
                let case = Case { gpu, settings, model: Arc::clone(&model), reference, has_blas };
                let name = format!("{}, {}, {multiplier}", schedule.title(), number.name());
                let (want, text) = match case.sequential() {
                    Ok((want, text)) => (want, Ok(text)),
                    Err(why) => {
                        report.check(&format!("{name}, without a pipeline"), Err(why));
                        continue;
                    }
                };
                report.check(&format!("{name}, without a pipeline"), text);
                report.check(&format!("{name}, pipeline"), case.pipeline(false, &want));
                report.check(&format!("{name}, pipeline, F beside B"), case.pipeline(true, &want));
            }
        }
    }
    Ok(())
}
