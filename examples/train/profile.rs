//! From recorded steps to costs: what the simulator is told about this machine.
//!
//! Each cost is the median over all recorded tasks of its kind and stage:
//!
//! 1. F, I and W are those that ran alone. Where a stage never runs I and W apart, half of its B stands for each.
//! 2. The time of F&B of two different stages is shared out in the ratio of their F + B, as the simulator puts it
//!    together again.
//! 3. Messages take no time: between threads they are one copy.

use std::collections::VecDeque;

use dualpipe::cost::{Costs, Link, StageCosts, COST_NS_MAX};
use dualpipe::ids::Stage;
use dualpipe::op::{Op, Task};
use dualpipe::timeline::{Span, Timeline};
use dualpipe::Error;

use crate::model::Config;

/// So many steps are kept, the last ones.
const STEPS_MAX: usize = 50;

/// Steps that have been recorded.
#[derive(Default)]
pub(crate) struct Profile {
    steps: VecDeque<Timeline>,
}

/// `[stage]`: durations of tasks in nanoseconds.
type Samples = Vec<Vec<u64>>;

impl Profile {
    /// Adds a step.
    pub(crate) fn record(&mut self, step: Timeline) {
        if self.steps.len() == STEPS_MAX {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    /// How many steps there are.
    pub(crate) fn num_steps(&self) -> usize {
        self.steps.len()
    }

    /// The step that took neither long nor short: of median makespan.
    pub(crate) fn typical_step(&self) -> Option<&Timeline> {
        let mut steps: Vec<&Timeline> = self.steps.iter().collect();
        steps.sort_by_key(|step| step.makespan_ns());
        steps.get(steps.len() / 2).copied()
    }

    /// The costs of every stage of the model.
    pub(crate) fn costs(&self, config: &Config) -> Result<Costs, Error> {
        let samples = |stages: fn(Op) -> Option<Stage>| {
            let mut samples: Samples = vec![Vec::new(); config.num_stages];
            for (op, ns) in self.ops() {
                if let Some(stage) = stages(op) {
                    samples[stage.index()].push(ns);
                }
            }
            samples.into_iter().map(median).collect::<Vec<_>>()
        };
        let forward = samples(|op| if let Op::F(pass) = op { Some(pass.stage) } else { None });
        let backward = samples(|op| if let Op::B(pass) = op { Some(pass.stage) } else { None });
        let input = samples(|op| if let Op::I(pass) = op { Some(pass.stage) } else { None });
        let weight = samples(|op| if let Op::W(pass) = op { Some(pass.stage) } else { None });
        let mut stages: Vec<StageCosts> = (0..config.num_stages)
            .map(|stage| {
                let half = backward[stage].unwrap_or(0) / 2;
                let costs = StageCosts {
                    forward_ns: forward[stage].unwrap_or(0),
                    input_ns: input[stage].unwrap_or(half),
                    weight_ns: weight[stage].unwrap_or(half),
                    output_bytes: (config.num_tokens() * config.width * size_of::<f32>()) as u64,
                    ..StageCosts::default()
                };
                StageCosts { overlapped_ns: costs.forward_ns + costs.backward_ns(), ..costs }
            })
            .collect();
        self.measure_pairs(&mut stages);
        Costs::new(stages, Link::default())
    }

    /// Sets the time of F&B for the stages that ran in pairs.
    fn measure_pairs(&self, stages: &mut [StageCosts]) {
        let whole_ns = |stage: Stage| stages[stage.index()].overlapped_ns;
        let mut samples: Samples = vec![Vec::new(); stages.len()];
        for (op, ns) in self.ops() {
            if let Op::FB(f, b) = op {
                let (f_costs, b_costs) = (&stages[f.stage.index()], &stages[b.stage.index()]);
                let alone_ns = (f_costs.forward_ns + b_costs.backward_ns()).max(1);
                for stage in [f.stage, b.stage] {
                    let share = u128::from(ns) * u128::from(whole_ns(stage)) / u128::from(alone_ns);
                    samples[stage.index()].push(share as u64);
                }
            }
        }
        for (stage, samples) in stages.iter_mut().zip(samples) {
            let longer_ns = stage.forward_ns.max(stage.backward_ns());
            if let Some(ns) = median(samples) {
                stage.overlapped_ns = ns.clamp(longer_ns, COST_NS_MAX);
            }
        }
    }

    /// All ops and how long they took.
    fn ops(&self) -> impl Iterator<Item = (Op, u64)> + '_ {
        let spans = self.steps.iter().flat_map(|step| step.spans.iter().flatten());
        spans.filter_map(|&Span { task, start_ns, end_ns }| match task {
            Task::Op(op) => Some((op, end_ns.saturating_sub(start_ns))),
            Task::ReduceGrads(_) => None,
        })
    }
}

fn median(mut samples: Vec<u64>) -> Option<u64> {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Work};
    use dualpipe::sim::simulate;

    /// Times that differ by stage; a pair of a rank's stages overlaps by the same share.
    fn costs(config: &Config) -> Costs {
        let stage = |stage: usize| {
            let far = stage.min(config.num_stages - 1 - stage) as u64;
            let slow = 1 + stage as u64;
            StageCosts {
                forward_ns: 100_000 * slow,
                input_ns: 110_000 * slow,
                weight_ns: 90_000 * slow,
                overlapped_ns: (240_000 + 30_000 * far) * slow,
                output_bytes: (config.num_tokens() * config.width * 4) as u64,
                ..StageCosts::default()
            }
        };
        Costs::new((0..config.num_stages).map(stage).collect(), Link::default()).unwrap()
    }

    #[test]
    fn the_costs_of_a_simulated_step_are_found_again() {
        for schedule in [dualpipe(4, 12, Work::Training).unwrap(), dualpipe_v(2, 9, Work::Training).unwrap()]
        {
            let config = Config::small(schedule.placement().num_stages());
            let expected = costs(&config);
            let simulated = simulate(&schedule, &expected).unwrap().timeline;
            let mut profile = Profile::default();
            (0..3).for_each(|_| profile.record(simulated.clone()));
            let found = profile.costs(&config).unwrap();
            let again = simulate(&schedule, &found).unwrap().timeline;
            assert_eq!(again.makespan_ns(), simulated.makespan_ns(), "{found:?}");
        }
    }

    #[test]
    fn where_i_and_w_never_run_apart_half_of_b_stands_for_each() {
        let config = Config::small(4);
        let schedule = one_f_one_b(4, 6, Work::Training).unwrap();
        let mut profile = Profile::default();
        profile.record(simulate(&schedule, &costs(&config)).unwrap().timeline);
        let found = profile.costs(&config).unwrap();
        let stage = found.stage(Stage(2));
        assert_eq!([stage.forward_ns, stage.input_ns, stage.weight_ns], [300_000; 3]);
        assert_eq!(stage.overlapped_ns, 900_000);
    }

    #[test]
    fn the_last_steps_are_kept_and_the_typical_one_is_neither_slow_nor_fast() {
        let schedule = one_f_one_b(1, 1, Work::Training).unwrap();
        let config = Config::small(1);
        let step = simulate(&schedule, &costs(&config)).unwrap().timeline;
        let mut profile = Profile::default();
        assert_eq!(profile.typical_step(), None);
        for i in 0..STEPS_MAX as u64 + 9 {
            let mut step = step.clone();
            step.spans[0].last_mut().unwrap().end_ns += i;
            profile.record(step);
        }
        assert_eq!(profile.num_steps(), STEPS_MAX);
        let extra_ns = profile.typical_step().unwrap().makespan_ns() - step.makespan_ns();
        assert_eq!(extra_ns, 9 + STEPS_MAX as u64 / 2);
    }
}
