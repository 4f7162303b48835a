//! Trains the ranks of a schedule, each run by an executor on a thread of its own: who computes what in which order
//! is the schedule's, who waits for whom the executor's, the maths the model's.

use std::collections::BTreeMap;
use std::sync::Arc;

use dualpipe::execute::transport::Inproc;
use dualpipe::execute::{
    run_ranks, Boundaries, DType, Executor, GraphState, Options as ExecutorOptions, TensorSpec,
};
use dualpipe::ids::Direction;
use dualpipe::op::StageCopy;
use dualpipe::program::{lower, Program};
use dualpipe::schedule::Schedule;
use dualpipe::timeline::Timeline;
use dualpipe::Error;

use crate::compare::{compare_with_sequential, Comparison, Results};
use crate::exchange::GradientExchange;
use crate::model::{Config, Tensors};
use crate::rank::{Reduction, TrainRank, Trainer};
use crate::text::Batch;
use crate::trainer::RankTrainer;

/// The ranks of a schedule.
pub(crate) struct Pipeline<T: Trainer> {
    schedule: Schedule,
    config: Config,
    ranks: Vec<(Executor, TrainRank<T>)>,
    /// The last step's, and its mean loss.
    batch: Arc<Batch>,
    loss: f64,
}

impl Pipeline<RankTrainer> {
    /// Ranks on threads of the host. Every copy of a stage starts with the weights that `seed` draws.
    ///
    /// # Errors
    /// The library's, if the schedule cannot run.
    pub(crate) fn on_host(
        schedule: Schedule,
        config: Config,
        seed: u64,
    ) -> Result<Pipeline<RankTrainer>, String> {
        Pipeline::new(schedule, config, |program, copies, inproc, options| {
            let transport = inproc.transport(program.rank()).map_err(text)?;
            let trainer = RankTrainer::new(config, copies, seed, Arc::default());
            Ok((Executor::new(program, transport, options).map_err(text)?, trainer))
        })
    }
}

impl<T: Trainer> Pipeline<T> {
    /// A pipeline of ranks that `make` makes: of a rank's program and stage copies, what joins it to the others, and
    /// its executor's options.
    pub(crate) fn new(
        schedule: Schedule,
        config: Config,
        make: impl Fn(Program, &[StageCopy], &Inproc, ExecutorOptions) -> Result<(Executor, T), String>,
    ) -> Result<Pipeline<T>, String> {
        let exchange = Arc::new(GradientExchange::default());
        let inproc = Inproc::new(schedule.num_ranks()).map_err(text)?;
        // What crosses a boundary: the activations of a micro-batch, and back their gradients.
        let shape = [config.num_tokens() as i64, config.width as i64];
        let tensor = TensorSpec::new(DType::F32, shape).map_err(text)?;
        let boundaries = Boundaries::uniform(vec![tensor]).map_err(text)?;
        let batch = Arc::new(Batch::default());
        let ranks = Vec::with_capacity(schedule.num_ranks());
        let mut pipeline = Pipeline { schedule, config, ranks, batch, loss: f64::NAN };
        for program in lower(&pipeline.schedule).map_err(text)? {
            let rank = program.rank();
            let copies = pipeline.schedule.placement().copies_on(rank);
            let options = ExecutorOptions::new(boundaries.clone());
            let (executor, trainer) = make(program, copies, &inproc, options)?;
            let exchange = (T::REDUCTION == Reduction::InTasks).then(|| Arc::clone(&exchange));
            pipeline.ranks.push((executor, TrainRank::new(rank, trainer, exchange)));
        }
        Ok(pipeline)
    }

    /// The mean loss of `batch`; leaves the sums of its gradients in every copy.
    ///
    /// # Errors
    /// The executor's: of the rank that failed. The pipeline is then of no more use.
    pub(crate) fn forward_backward(&mut self, batch: &Arc<Batch>) -> Result<f64, String> {
        self.batch = Arc::clone(batch);
        for (_, rank) in &mut self.ranks {
            rank.trainer.begin_step(Arc::clone(batch))?;
        }
        run_ranks(&mut self.ranks).map_err(text)?;
        if T::REDUCTION == Reduction::AfterTheStep {
            self.reduce_gradients()?;
        }
        // All ranks': their devices are then done with one another's gradients.
        let sums = self.ranks.iter().map(|(_, rank)| rank.trainer.loss_sum());
        let sum: f64 = sums.sum::<Result<f64, String>>()?;
        self.loss = sum / batch.num_microbatches() as f64;
        Ok(self.loss)
    }

    /// Sums the gradients of every copy that has a twin with the twin's.
    fn reduce_gradients(&mut self) -> Result<(), String> {
        let give = |(copy, trainer): (StageCopy, &T)| Ok((copy, trainer.give_gradients(copy)?));
        let given = self.copies().map(give).collect::<Result<BTreeMap<_, _>, String>>()?;
        for (executor, rank) in &mut self.ranks {
            for &copy in self.schedule.placement().copies_on(executor.rank()) {
                let twin = self.schedule.twin(copy).and_then(|(twin, _)| given.get(&twin));
                twin.map_or(Ok(()), |twin| rank.trainer.reduce(copy, twin))?;
            }
        }
        Ok(())
    }

    /// Who did what when in the last step.
    pub(crate) fn timeline(&self) -> Result<Timeline, Error> {
        let parts: Result<Vec<Timeline>, Error> =
            self.ranks.iter().map(|(executor, _)| executor.timeline()).collect();
        Timeline::merge(&parts?)
    }

    /// How far steps are from being launches of a graph.
    pub(crate) fn graph(&self) -> GraphState {
        self.ranks.first().map_or(GraphState::Off, |(executor, _)| executor.graph())
    }

    /// What the ranks follow.
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Moves the parameters of every copy against its gradients.
    pub(crate) fn update(&mut self) -> Result<(), String> {
        self.ranks.iter_mut().try_for_each(|(_, rank)| rank.trainer.update())
    }

    /// The loss and gradients that the last [`Pipeline::forward_backward`] left, against the sequential run's.
    pub(crate) fn compare_with_sequential(&self) -> Result<Comparison, String> {
        let mut stages: Vec<_> = self.copies().filter(|(c, _)| c.direction == Direction::Down).collect();
        stages.sort_unstable_by_key(|(copy, _)| copy.stage);
        let all = |of: fn(&T, StageCopy) -> Result<Tensors, String>| {
            stages.iter().map(|(copy, trainer)| of(trainer, *copy)).collect::<Result<Vec<_>, _>>()
        };
        let results = Results { params: all(T::params)?, grads: all(T::grads)?, loss: self.loss };
        compare_with_sequential(self.config, &results, &self.batch, T::TOLERANCE)
    }

    /// Whether the two copies of each stage have the same parameters, to the bit.
    pub(crate) fn copies_agree(&self) -> Result<bool, String> {
        for (copy, trainer) in self.copies() {
            let twin = self.schedule.twin(copy).map(|(twin, _)| twin);
            let Some((twin, other)) = self.copies().find(|(c, _)| Some(*c) == twin) else { continue };
            if !trainer.params(copy)?.iter().eq(other.params(twin)?.iter()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tokens sent to each expert since the start: `[stage][expert]`, both directions together.
    pub(crate) fn expert_loads(&self) -> Result<Vec<Vec<u64>>, String> {
        let mut loads = vec![vec![0; self.config.num_experts]; self.config.num_stages];
        for (copy, trainer) in self.copies() {
            let sums = &mut loads[copy.stage.index()];
            for (sum, load) in sums.iter_mut().zip(trainer.expert_loads(copy)?) {
                *sum += load;
            }
        }
        Ok(loads)
    }

    /// The ranks, for a test to play with.
    #[cfg(test)]
    pub(crate) fn into_ranks(mut self) -> Vec<(Executor, TrainRank<T>)> {
        std::mem::take(&mut self.ranks)
    }

    /// All stage copies, each with the trainer that holds it.
    fn copies(&self) -> impl Iterator<Item = (StageCopy, &T)> {
        let placement = self.schedule.placement();
        self.ranks.iter().flat_map(|(executor, rank)| {
            placement.copies_on(executor.rank()).iter().map(|&copy| (copy, &rank.trainer))
        })
    }
}

impl<T: Trainer> Drop for Pipeline<T> {
    /// Executors compute on streams of the trainers, and a graph of theirs holds kernels of all: they go first.
    fn drop(&mut self) {
        let (executors, ranks): (Vec<_>, Vec<_>) = self.ranks.drain(..).unzip();
        drop(executors);
        drop(ranks);
    }
}

fn text(error: Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequential::Sequential;
    use crate::text::Text;
    use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Work};

    /// Small, so that many sizes can be tried.
    fn config(num_stages: usize) -> Config {
        Config { sequence: 6, width: 8, num_heads: 2, num_experts: 4, hidden: 6, ..Config::small(num_stages) }
    }

    fn schedules() -> Vec<Schedule> {
        let make = |(make, num_ranks, num_microbatches): (Make, _, _)| {
            make(num_ranks, num_microbatches, Work::Training).unwrap()
        };
        type Make = fn(usize, usize, Work) -> dualpipe::error::Result<Schedule>;
        let sizes: [(Make, usize, usize); 10] = [
            (dualpipe, 2, 2),
            (dualpipe, 4, 6),
            (dualpipe, 4, 12),
            (dualpipe, 8, 14),
            (dualpipe_v, 1, 1),
            (dualpipe_v, 2, 3),
            (dualpipe_v, 4, 9),
            (one_f_one_b, 1, 1),
            (one_f_one_b, 3, 2),
            (one_f_one_b, 4, 7),
        ];
        sizes.into_iter().map(make).collect()
    }

    #[test]
    fn every_schedule_has_the_gradients_of_the_sequential_run() {
        let text = Text::own_sources().unwrap();
        for schedule in schedules() {
            let config = config(schedule.placement().num_stages());
            let num_microbatches = schedule.num_microbatches();
            let what = format!("{} of {}", schedule.name(), schedule.num_ranks());
            let mut pipeline = Pipeline::on_host(schedule, config, 1).unwrap();
            let mut sequential = Sequential::new(config, 1);
            for step in 0..3 {
                let batch = text.batch(&config, 1, step, num_microbatches).unwrap();
                let batch = Arc::new(batch);
                let loss = pipeline.forward_backward(&batch).unwrap();
                let expected = sequential.forward_backward(&batch).unwrap();
                assert!((loss - expected).abs() < 1e-4, "{what}: {loss}, {expected}");
                let comparison = pipeline.compare_with_sequential().unwrap();
                assert!(comparison.is_within_tolerance(), "{what}: {comparison}");
                pipeline.update().unwrap();
                sequential.update().unwrap();
                assert!(pipeline.copies_agree().unwrap(), "{what}, step {step}");
            }
            let loads = sequential.stages().map(|s| s.expert_loads.iter().sum());
            let loads: Vec<u64> = loads.collect();
            let sums = pipeline.expert_loads().unwrap();
            let sums: Vec<u64> = sums.iter().map(|loads| loads.iter().sum()).collect();
            assert_eq!(sums, loads, "{what}");
        }
    }

    #[test]
    fn a_wrong_gradient_is_noticed() {
        let text = Text::own_sources().unwrap();
        let config = config(4);
        let schedule = dualpipe(4, 6, Work::Training).unwrap();
        let mut pipeline = Pipeline::on_host(schedule, config, 1).unwrap();
        let batch = Arc::new(text.batch(&config, 1, 0, 6).unwrap());
        pipeline.forward_backward(&batch).unwrap();
        // Direction 0 is what is compared; its stage 2 lies on rank 2.
        let (copy, _) = pipeline.ranks[2].1.trainer.copies()[0];
        for wrong in [1.0001, f32::NAN] {
            let trainer = pipeline.ranks[2].1.trainer.copy_mut(copy).unwrap();
            for grad in trainer.grads.iter_mut() {
                *grad *= wrong;
            }
            let comparison = pipeline.compare_with_sequential().unwrap();
            assert!(!comparison.is_within_tolerance(), "{comparison}");
            assert!(comparison.to_string().contains("stage 2"), "{comparison}");
        }
    }
}
