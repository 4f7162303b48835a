//! What an executor calls on its rank's thread: the tasks of the schedule, done by the rank's trainer.

use std::sync::Arc;
use std::time::Duration;

use dualpipe::execute::{PassTensors, TaskRun, TaskRunner, Tensor};
use dualpipe::ids::Rank;
use dualpipe::op::{StageCopy, Task};

use crate::exchange::GradientExchange;
use crate::trainer::{Boundary, RankTrainer};

/// How long a rank waits for the other copy's gradients.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// The tasks of one rank.
pub(crate) struct TrainRank {
    rank: Rank,
    pub(crate) trainer: RankTrainer,
    exchange: Arc<GradientExchange>,
}

impl TrainRank {
    pub(crate) fn new(rank: Rank, trainer: RankTrainer, exchange: Arc<GradientExchange>) -> TrainRank {
        TrainRank { rank, trainer, exchange }
    }

    /// Sums the gradients of `copy` with its twin's, on whichever rank that is.
    fn reduce_gradients(&mut self, copy: StageCopy) -> Result<(), String> {
        let twin = StageCopy { direction: copy.direction.opposite(), ..copy };
        let trainer = self.trainer.copy_mut(copy)?;
        self.exchange.give(copy, &trainer.grads);
        let other = self.exchange.take(twin, EXCHANGE_TIMEOUT)?;
        trainer.grads.add(&other);
        Ok(())
    }
}

impl TaskRunner for TrainRank {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
        let ended = match run.task {
            Task::ReduceGrads(copy) => self.reduce_gradients(copy),
            Task::Op(op) => {
                let forward = run.forward.as_mut().map_or(Ok(Boundary::default()), forward_boundary);
                let backward = run.backward.as_mut().map_or(Ok(Boundary::default()), backward_boundary);
                forward.and_then(|forward| self.trainer.run(op, forward, backward?))
            }
        };
        // The executors tell one another; a rank that waits in the exchange would not hear them before its timeout.
        ended.inspect_err(|why| self.exchange.close(&format!("rank {}, {}: {why}", self.rank, run.task)))
    }
}

fn forward_boundary<'a>(pass: &'a mut PassTensors<'_>) -> Result<Boundary<'a>, String> {
    Ok(Boundary { input: read(pass.inputs)?, output: written(pass.outputs)? })
}

fn backward_boundary<'a>(pass: &'a mut PassTensors<'_>) -> Result<Boundary<'a>, String> {
    Ok(Boundary { input: read(pass.output_grads)?, output: written(pass.input_grads)? })
}

/// The one tensor of a boundary; at the ends of the model there is none.
fn read(tensors: &[Tensor]) -> Result<Option<&[f32]>, String> {
    let Some(tensor) = tensors.first() else { return Ok(None) };
    tensor.as_slice().map(Some).ok_or_else(|| "a boundary tensor is not there as f32".into())
}

/// As [`read`], to be written.
fn written(tensors: &mut [Tensor]) -> Result<Option<&mut [f32]>, String> {
    let Some(tensor) = tensors.first_mut() else { return Ok(None) };
    tensor.as_mut_slice().map(Some).ok_or_else(|| "a boundary tensor is not there as f32".into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::Config;
    use crate::pipeline::Pipeline;
    use crate::text::{Batch, Text};
    use dualpipe::execute::run_ranks;
    use dualpipe::schedule::{dualpipe, Work};
    use dualpipe::ErrorKind;

    /// Loses the rank's stages before one of its tasks.
    struct Forgetful {
        rank: TrainRank,
        config: Config,
        batch: Arc<Batch>,
        tasks_left: usize,
    }

    impl TaskRunner for Forgetful {
        fn run(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
            if self.tasks_left == 0 {
                self.rank.trainer = RankTrainer::new(self.config, &[], 1, Arc::clone(&self.batch));
            }
            self.tasks_left = self.tasks_left.wrapping_sub(1);
            self.rank.run(run)
        }
    }

    #[test]
    fn a_task_that_fails_anywhere_is_the_steps_error_and_nobody_hangs() {
        let config = Config { sequence: 4, num_sequences: 1, width: 8, hidden: 4, ..Config::small(4) };
        let schedule = dualpipe(4, 6, Work::Training).unwrap();
        let batch = Arc::new(Text::own_sources().unwrap().batch(&config, 1, 0, 6).unwrap());
        for rank in 0..4 {
            let tasks = schedule.tasks(Rank(rank as u32));
            for (i, task) in tasks.iter().enumerate() {
                let pipeline = Pipeline::new(schedule.clone(), config, 1).unwrap();
                let ranks = pipeline.into_ranks().into_iter().enumerate();
                let ranks = ranks.map(|(r, (executor, mut inner))| {
                    inner.trainer.begin_step(Arc::clone(&batch));
                    let tasks_left = if r == rank { i } else { usize::MAX };
                    (executor, Forgetful { rank: inner, config, batch: Arc::clone(&batch), tasks_left })
                });
                let mut ranks: Vec<_> = ranks.collect();
                let started = Instant::now();
                let error = run_ranks(&mut ranks).unwrap_err();
                assert!(started.elapsed() < EXCHANGE_TIMEOUT / 3, "rank {rank}, {task}");
                assert_eq!(error.kind(), ErrorKind::CallbackFailed, "{error}");
                let text = error.to_string();
                assert!(text.contains("this rank does not hold stage"), "rank {rank}, {task}: {text}");
                assert!(text.contains(&format!("rank {rank}, ")), "rank {rank}, {task}: {text}");
            }
        }
    }
}
