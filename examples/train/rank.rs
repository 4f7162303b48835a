//! What an executor calls on its rank's thread: the tasks of the schedule, done by the rank's trainer, wherever that
//! computes.

use std::sync::Arc;
use std::time::Duration;

use dualpipe::execute::{TaskRun, TaskRunner};
use dualpipe::ids::Rank;
use dualpipe::op::{Op, StageCopy, Task};

use crate::compare::Tolerance;
use crate::exchange::GradientExchange;
use crate::model::Tensors;
use crate::text::Batch;

/// How long a rank waits for the other copy's gradients.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// When the two copies of a stage sum their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// In their ranks' REDUCE_GRADS, where one waits for the other.
    InTasks,
    /// When all ranks are through with the step; REDUCE_GRADS does nothing. For tasks that must wait for nothing.
    AfterTheStep,
}

/// The stage copies of a rank. On the host (`RankTrainer`) the methods compute, on a device (`GpuTrainer`) they
/// enqueue.
pub(crate) trait Trainer: Send {
    /// The gradients of a copy, for its twin.
    type Gradients: Send;

    /// When copies reduce their gradients.
    const REDUCTION: Reduction;

    /// How its results may differ from those of the sequential run.
    const TOLERANCE: Tolerance;

    /// Starts a step: gradients and loss are zero, and passes speak of the micro-batches of `batch`.
    fn begin_step(&mut self, batch: Arc<Batch>) -> Result<(), String>;

    /// Runs `op` with the tensors, and on a device on the stream, of `run`.
    fn run_op(&mut self, op: Op, run: &mut TaskRun<'_>) -> Result<(), String>;

    /// Gives the gradients of `copy`, which are final now, to its twin.
    fn give_gradients(&self, copy: StageCopy) -> Result<Self::Gradients, String>;

    /// Adds the twin's gradients to those of `copy`.
    ///
    /// The sum of two numbers does not depend on their order: both ranks get the same bits, and so the two copies
    /// of a stage stay the same for ever.
    fn reduce(&mut self, copy: StageCopy, twin: &Self::Gradients) -> Result<(), String>;

    /// Ends a step: moves every parameter against the mean of its gradients over the step's micro-batches.
    ///
    /// Fails if a micro-batch that went forward has not come back.
    fn update(&mut self) -> Result<(), String>;

    /// The losses of the step's micro-batches that ended at this rank, added up. A device is then done with the step.
    fn loss_sum(&self) -> Result<f64, String>;

    /// Tokens that `copy` sent to each expert since the start.
    fn expert_loads(&self, copy: StageCopy) -> Result<Vec<u64>, String>;

    /// The gradients of `copy`, with the twin's once they have been reduced.
    fn grads(&self, copy: StageCopy) -> Result<Tensors, String>;

    /// The parameters of `copy`.
    fn params(&self, copy: StageCopy) -> Result<Tensors, String>;
}

/// Refuses to end a step while micro-batches that went forward still have to run I or W.
pub(crate) fn check_all_came_back(copy: StageCopy, num_i: usize, num_w: usize) -> Result<(), String> {
    let StageCopy { direction, stage } = copy;
    match num_i + num_w {
        0 => Ok(()),
        _ => Err(format!("stage {stage} of direction {direction} still has to run {num_i} I and {num_w} W")),
    }
}

/// For a copy that another rank holds.
pub(crate) fn not_here(StageCopy { direction, stage }: StageCopy) -> String {
    format!("this rank does not hold stage {stage} of direction {direction}")
}

/// Where the gradients of a rank's copies meet those of their twins.
pub(crate) type Exchange<T> = Arc<GradientExchange<<T as Trainer>::Gradients>>;

/// The tasks of one rank.
pub(crate) struct TrainRank<T: Trainer> {
    rank: Rank,
    pub(crate) trainer: T,
    exchange: Option<Exchange<T>>,
}

impl<T: Trainer> TrainRank<T> {
    /// Without an `exchange` REDUCE_GRADS does nothing.
    pub(crate) fn new(rank: Rank, trainer: T, exchange: Option<Exchange<T>>) -> TrainRank<T> {
        TrainRank { rank, trainer, exchange }
    }

    /// Sums the gradients of `copy` with its twin's, on whichever rank that is.
    fn reduce_gradients(&mut self, copy: StageCopy) -> Result<(), String> {
        let Some(exchange) = &self.exchange else { return Ok(()) };
        let twin = StageCopy { direction: copy.direction.opposite(), ..copy };
        exchange.give(copy, self.trainer.give_gradients(copy)?);
        let other = exchange.take(twin, EXCHANGE_TIMEOUT)?;
        self.trainer.reduce(copy, &other)
    }
}

impl<T: Trainer> TaskRunner for TrainRank<T> {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
        let task = run.task;
        let ended = match task {
            Task::ReduceGrads(copy) => self.reduce_gradients(copy),
            Task::Op(op) => self.trainer.run_op(op, run),
        };
        // The executors tell one another; a rank that waits in the exchange would not hear them before its timeout.
        ended.inspect_err(|why| {
            if let Some(exchange) = &self.exchange {
                exchange.close(&format!("rank {}, {task}: {why}", self.rank));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::Config;
    use crate::pipeline::Pipeline;
    use crate::text::Text;
    use crate::trainer::RankTrainer;
    use dualpipe::execute::run_ranks;
    use dualpipe::schedule::{dualpipe, Work};
    use dualpipe::ErrorKind;

    /// Loses the rank's stages before one of its tasks.
    struct Forgetful {
        rank: TrainRank<RankTrainer>,
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
                let pipeline = Pipeline::on_host(schedule.clone(), config, 1).unwrap();
                let ranks = pipeline.into_ranks().into_iter().enumerate();
                let ranks = ranks.map(|(r, (executor, mut inner))| {
                    inner.trainer.begin_step(Arc::clone(&batch)).unwrap();
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
