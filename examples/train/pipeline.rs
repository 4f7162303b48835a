//! Trains the ranks of a schedule: who computes what in which order is the schedule's, the maths the model's.
//!
//! One thread plays all ranks here, each op after those that it needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dualpipe::ids::{Direction, Rank};
use dualpipe::op::{Message, MessageKind, Op, Pass, StageCopy, Task};
use dualpipe::schedule::{play, Schedule, Visit};

use crate::compare::{compare_with_sequential, Comparison};
use crate::exchange::GradientExchange;
use crate::model::{Config, Tensors};
use crate::text::Batch;
use crate::trainer::{Boundary, CopyTrainer, RankTrainer};

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// The ranks of a schedule.
pub(crate) struct Pipeline {
    schedule: Schedule,
    config: Config,
    trainers: Vec<RankTrainer>,
    exchange: GradientExchange,
    batch: Arc<Batch>,
}

impl Pipeline {
    /// Every copy of a stage starts with the weights that `seed` draws.
    pub(crate) fn new(schedule: Schedule, config: Config, seed: u64) -> Pipeline {
        let batch = Arc::new(Batch::default());
        let trainers = ranks(&schedule).map(|rank| {
            let copies = schedule.placement().copies_on(rank);
            RankTrainer::new(config, copies, seed, Arc::clone(&batch))
        });
        Pipeline {
            trainers: trainers.collect(),
            schedule,
            config,
            exchange: GradientExchange::default(),
            batch,
        }
    }

    /// The mean loss of `batch`; leaves the sums of its gradients in every copy.
    pub(crate) fn forward_backward(&mut self, batch: &Arc<Batch>) -> Result<f64, String> {
        self.batch = Arc::clone(batch);
        for trainer in &mut self.trainers {
            trainer.begin_step(Arc::clone(batch));
        }
        let mut mailbox =
            Mailbox { boundary_len: self.config.num_tokens() * self.config.width, messages: BTreeMap::new() };
        let (schedule, trainers) = (&self.schedule, &mut self.trainers);
        let mut result = Ok(());
        let played = play(schedule, |Visit { rank, task, .. }| {
            // The reductions follow below: alone, the one thread cannot meet itself.
            if let (Task::Op(op), Ok(())) = (task, &result) {
                let ran = mailbox.run(schedule, &mut trainers[rank.index()], op);
                result = ran.map_err(|e| format!("rank {rank}: {op}: {e}"));
            }
        });
        played.map_err(|stuck| format!("the schedule cannot run: {stuck:?}"))?;
        result?;
        self.reduce_gradients()?;
        let sum: f64 = self.trainers.iter().map(RankTrainer::loss_sum).sum();
        Ok(sum / batch.num_microbatches() as f64)
    }

    /// Moves the parameters of every copy against its gradients.
    pub(crate) fn update(&mut self) -> Result<(), String> {
        self.trainers.iter_mut().try_for_each(RankTrainer::update)
    }

    /// The gradients that the last [`Pipeline::forward_backward`] left, against the sequential run's.
    pub(crate) fn compare_with_sequential(&self) -> Result<Comparison, String> {
        let stages = self.copies().filter(|(c, _)| c.direction == Direction::Down);
        let mut stages: Vec<_> = stages.collect();
        stages.sort_unstable_by_key(|(copy, _)| copy.stage);
        let params: Vec<&Tensors> = stages.iter().map(|(_, t)| &t.model.params).collect();
        let grads: Vec<&Tensors> = stages.iter().map(|(_, t)| &t.grads).collect();
        compare_with_sequential(self.config, &params, &grads, &self.batch)
    }

    /// Whether the two copies of each stage have the same parameters, to the bit.
    pub(crate) fn copies_agree(&self) -> bool {
        self.copies().all(|(copy, trainer)| {
            let twin = self.schedule.twin(*copy).map(|(twin, _)| twin);
            let twin = self.copies().find(|(c, _)| Some(*c) == twin);
            twin.is_none_or(|(_, twin)| {
                let params = trainer.model.params.iter();
                params.eq(twin.model.params.iter())
            })
        })
    }

    /// Tokens sent to each expert since the start: `[stage][expert]`, both directions together.
    pub(crate) fn expert_loads(&self) -> Vec<Vec<u64>> {
        let mut loads = vec![vec![0; self.config.num_experts]; self.config.num_stages];
        for (copy, trainer) in self.copies() {
            let sums = &mut loads[copy.stage.index()];
            for (sum, load) in sums.iter_mut().zip(&trainer.expert_loads) {
                *sum += load;
            }
        }
        loads
    }

    fn copies(&self) -> impl Iterator<Item = &(StageCopy, CopyTrainer)> {
        self.trainers.iter().flat_map(RankTrainer::copies)
    }

    fn reduce_gradients(&mut self) -> Result<(), String> {
        let mut reductions = Vec::new();
        for rank in ranks(&self.schedule) {
            for task in self.schedule.tasks(rank) {
                if let Task::ReduceGrads(copy) = task {
                    reductions.push((rank, copy));
                }
            }
        }
        for &(rank, copy) in &reductions {
            let trainer = self.trainers[rank.index()].copy_mut(copy)?;
            self.exchange.give(copy, &trainer.grads);
        }
        for &(rank, copy) in &reductions {
            let trainer = self.trainers[rank.index()].copy_mut(copy)?;
            let (twin, _) = self.schedule.twin(copy).ok_or("the copy has no twin")?;
            let other = self.exchange.take(twin, EXCHANGE_TIMEOUT)?;
            trainer.grads.add(&other);
        }
        Ok(())
    }
}

fn ranks(schedule: &Schedule) -> impl Iterator<Item = Rank> {
    (0..schedule.num_ranks()).map(|rank| Rank(rank as u32))
}

/// Messages on their way.
struct Mailbox {
    boundary_len: usize,
    messages: BTreeMap<Message, Vec<f32>>,
}

/// What a pass reads from one neighbour and writes for the other.
#[derive(Default)]
struct Letters {
    input: Option<Vec<f32>>,
    output: Option<(Message, Vec<f32>)>,
}

impl Letters {
    fn boundary(&mut self) -> Boundary<'_> {
        Boundary {
            input: self.input.as_deref(),
            output: self.output.as_mut().map(|(_, buffer)| &mut buffer[..]),
        }
    }
}

impl Mailbox {
    fn run(&mut self, schedule: &Schedule, trainer: &mut RankTrainer, op: Op) -> Result<(), String> {
        let [mut forward, mut backward] =
            [(op.forward(), MessageKind::Activation), (op.backward_input(), MessageKind::Gradient)].map(
                |(pass, kind)| match pass {
                    Some(pass) => self.letters(schedule, Message { kind, pass }),
                    None => Letters::default(),
                },
            );
        trainer.run(op, forward.boundary(), backward.boundary())?;
        let written = [forward.output, backward.output];
        self.messages.extend(written.into_iter().flatten());
        Ok(())
    }

    /// The letters of the pass that makes `message`.
    fn letters(&mut self, schedule: &Schedule, message: Message) -> Letters {
        let Message { kind, pass } = message;
        let placement = schedule.placement();
        let (before, after) = (placement.previous(pass.copy()), placement.next(pass.copy()));
        let (from, to) = match kind {
            MessageKind::Activation => (before, after),
            MessageKind::Gradient => (after, before),
        };
        let input = from.and_then(|StageCopy { stage, .. }| {
            let pass = Pass { stage, ..pass };
            self.messages.remove(&Message { kind, pass })
        });
        let output = to.map(|_| (message, vec![0.0; self.boundary_len]));
        Letters { input, output }
    }
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
            let mut pipeline = Pipeline::new(schedule, config, 1);
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
                assert!(pipeline.copies_agree(), "{what}, step {step}");
            }
            let loads = sequential.stages().map(|s| s.expert_loads.iter().sum());
            let loads: Vec<u64> = loads.collect();
            let sums = pipeline.expert_loads();
            let sums: Vec<u64> = sums.iter().map(|loads| loads.iter().sum()).collect();
            assert_eq!(sums, loads, "{what}");
        }
    }

    #[test]
    fn a_wrong_gradient_is_noticed() {
        let text = Text::own_sources().unwrap();
        let config = config(4);
        let schedule = dualpipe(4, 6, Work::Training).unwrap();
        let mut pipeline = Pipeline::new(schedule, config, 1);
        let batch = Arc::new(text.batch(&config, 1, 0, 6).unwrap());
        pipeline.forward_backward(&batch).unwrap();
        // Direction 0 is what is compared; its stage 2 lies on rank 2.
        let (copy, _) = pipeline.trainers[2].copies()[0];
        for wrong in [1.0001, f32::NAN] {
            let trainer = pipeline.trainers[2].copy_mut(copy).unwrap();
            for grad in trainer.grads.iter_mut() {
                *grad *= wrong;
            }
            let comparison = pipeline.compare_with_sequential().unwrap();
            assert!(!comparison.is_within_tolerance(), "{comparison}");
            assert!(comparison.to_string().contains("stage 2"), "{comparison}");
        }
    }
}
