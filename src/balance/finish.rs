//! What follows from where a layer's experts are: replica ranks, counts, and how good that is.

use super::bound::Bounds;
use super::cluster::{Cluster, EMPTY};
use super::evaluate::{ratio, Evaluator};
use super::goal::{Goal, GroupRule};
use super::layers::Layer;
use super::loads::add_up;
use super::plan::{LayerBalance, LayerBound};

/// Finishes layer after layer in the same memory.
pub(super) struct Finisher<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    evaluator: Evaluator<'a>,
    bounds: Bounds,
    group_of_expert: Vec<u32>,
    /// `[num_experts]`: the loads of all steps, and as loads come.
    sums: Vec<f64>,
    summed: Vec<f32>,
}

impl<'a> Finisher<'a> {
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Finisher<'a> {
        Finisher {
            cluster,
            goal,
            evaluator: Evaluator::new(cluster, goal.num_experts),
            bounds: Bounds::new(cluster, goal),
            group_of_expert: goal.group_of_expert(),
            sums: Vec::new(),
            summed: Vec::new(),
        }
    }

    /// Numbers the replicas of every expert in the order of their slots, and weighs the layer under the loads of each
    /// step, if there are any.
    pub(super) fn finish(&mut self, steps: &[&[f32]], layer: &mut Layer<'_>) {
        layer.replica_counts.fill(0);
        for (&expert, replica) in layer.slot_to_expert.iter().zip(&mut *layer.slot_to_replica) {
            *replica = 0;
            if expert != EMPTY {
                let count = &mut layer.replica_counts[expert as usize];
                *replica = *count;
                *count += 1;
            }
        }
        let weights = if layer.weights.is_empty() { None } else { Some(&*layer.weights) };
        let (mut heaviest, mut mean) = (0.0, 0.0);
        let mut least = LayerBound { joint: 0.0, equal: 0.0, node: 0.0 };
        for loads in steps {
            self.evaluator.evaluate(layer.slot_to_expert, weights, loads);
            let (max, sum) = self.evaluator.max_and_sum();
            let mean_of_step = sum / self.cluster.num_live_gpus() as f64;
            let bound = self.bounds.lower_bound(loads);
            heaviest += max;
            mean += mean_of_step;
            least.joint += bound.joint * mean_of_step;
            least.equal += bound.equal * mean_of_step;
            least.node += bound.node * mean_of_step;
        }
        // Sums and quotients of positive numbers: each operation errs by a factor within 1 ± 2^-53.
        let caution = if steps.len() == 1 { 1.0 } else { 1.0 - (4 * steps.len()) as f64 * f64::EPSILON };
        let bound = |least: f64| ratio(least * caution, mean);
        let away = self.away(steps, layer);
        *layer.balance = LayerBalance {
            imbalance: ratio(heaviest, mean),
            away,
            split: self.goal.split,
            bound: LayerBound {
                joint: bound(least.joint),
                equal: bound(least.equal),
                node: bound(least.node),
            },
        };
    }

    fn away(&mut self, steps: &[&[f32]], layer: &Layer<'_>) -> f64 {
        if !matches!(self.goal.groups, GroupRule::Priced { .. }) || steps.is_empty() {
            return 0.0;
        }
        add_up(steps, &mut self.sums);
        self.summed.clear();
        self.summed.extend(self.sums.iter().map(|&sum| sum as f32));
        let weights = if layer.weights.is_empty() { None } else { Some(&*layer.weights) };
        self.evaluator.evaluate(layer.slot_to_expert, weights, &self.summed);
        self.evaluator.away(&self.group_of_expert, layer.slot_to_expert, weights, &self.summed)
    }
}
