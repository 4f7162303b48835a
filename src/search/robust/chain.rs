//! One chain of the search on samples: orders are changed by one move at a time, each played on all samples.
//!
//! A change is kept if it makes the objective worse by no more than a threshold, drawn anew each time between 0 and a
//! limit that falls to 0: as annealing does, but without exponentials, which differ between machines.

use super::moves;
use super::{values, Judge, Limits};
use crate::random::Random;
use crate::search::spread::{Lanes, Step};

/// The highest limit of thresholds, in mean durations of a step.
const HOTTEST: f64 = 0.15;

pub(super) struct Chain<'a> {
    judge: &'a Judge<'a>,
    limits: &'a Limits,
    lanes: Lanes<'a>,
    random: Random,
    orders: Vec<Vec<Step>>,
    /// What it is searched by.
    value: f64,
    best: Vec<Vec<Step>>,
    /// The value of the best, and its objective.
    best_value: f64,
    best_ns: f64,
    mean_step_ns: f64,
    before: Vec<Step>,
    sorted: Vec<f64>,
}

impl<'a> Chain<'a> {
    /// `orders` must be those of a schedule that keeps to the limits.
    pub(super) fn new(
        judge: &'a Judge<'a>,
        limits: &'a Limits,
        orders: Vec<Vec<Step>>,
        seed: u64,
    ) -> Chain<'a> {
        let mut lanes = Lanes::new(judge.model, &judge.sets[0]);
        let mut sorted = Vec::new();
        let ends_ns = lanes.play(&orders).unwrap_or(&[f64::INFINITY]);
        let (best_ns, value) = values(judge.objective, ends_ns, &mut sorted);
        // As if ranks were never idle: near enough for a temperature.
        let num_steps = orders.iter().map(Vec::len).sum::<usize>().max(1);
        let mean_step_ns = value * orders.len() as f64 / num_steps as f64;
        let best = orders.clone();
        let random = Random::new(seed);
        Chain {
            judge,
            limits,
            lanes,
            random,
            orders,
            value,
            best,
            best_value: value,
            best_ns,
            mean_step_ns,
            before: Vec::new(),
            sorted,
        }
    }

    /// The best so far.
    pub(super) fn best(&self) -> &[Vec<Step>] {
        &self.best
    }

    /// What the best was searched by.
    pub(super) fn best_value(&self) -> f64 {
        self.best_value
    }

    /// The objective of the best.
    pub(super) fn best_ns(&self) -> f64 {
        self.best_ns
    }

    pub(super) fn go_on_from(&mut self, orders: &[Vec<Step>]) {
        self.orders.clone_from_slice(orders);
        if let Some((_, value)) = self.play() {
            self.value = value;
        }
    }

    /// Tries so many changes, from one part of the highest temperature to another.
    pub(super) fn run(&mut self, changes: u64, from: f64, to: f64) {
        for i in 0..changes {
            let temperature = from + (to - from) * (i as f64 / changes as f64);
            self.change(temperature * HOTTEST * self.mean_step_ns);
        }
    }

    fn change(&mut self, limit_ns: f64) {
        let rank = self.random.below(self.orders.len());
        self.before.clone_from(&self.orders[rank]);
        let threshold_ns = self.value + limit_ns * self.random.unit();
        let is_changed = moves::change(self.judge.model, &mut self.orders[rank], &mut self.random)
            && self.limits.admit(rank, &self.orders[rank]);
        let kept = is_changed.then(|| self.play()).flatten().filter(|&(_, value)| value <= threshold_ns);
        let Some((objective_ns, value)) = kept else {
            self.orders[rank].clone_from(&self.before);
            return;
        };
        self.value = value;
        if value < self.best_value && self.judge.schedule(&self.orders).is_some() {
            (self.best_value, self.best_ns) = (value, objective_ns);
            self.best.clone_from(&self.orders);
        }
    }

    /// The objective and the value to search by; `None` if ranks wait for ever.
    fn play(&mut self) -> Option<(f64, f64)> {
        let ends_ns = self.lanes.play(&self.orders)?;
        Some(values(self.judge.objective, ends_ns, &mut self.sorted))
    }
}
