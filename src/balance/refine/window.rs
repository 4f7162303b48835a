//! Several steps: swaps that make the sum, over the steps, of the heaviest GPU's load less.
//!
//! Starts from a placement for the sum of all steps. Step after step the slots of its heaviest GPU are tried against
//! all others; what a swap does to every other step is known from that step's three heaviest GPUs. The best swap is
//! made. It ends when no step has one, or after so much work. Windows that would take too much room are left as they
//! are.
//!
//! `O(slots of the heaviest GPU * slots * steps)` for a step.

use super::super::cluster::{Cluster, EMPTY};
use super::super::goal::Goal;
use super::super::layout::Layout;

/// Improves layer after layer in the same memory.
pub(super) struct Window<'a> {
    cluster: &'a Cluster,
    effort: usize,
    layout: Layout<'a>,
    num_steps: usize,
    /// `[num_experts, num_steps]`: what one replica carries.
    shares: Vec<f64>,
    /// `[num_gpus, num_steps]`
    gpu_loads: Vec<f64>,
    /// `[num_steps]`: the heaviest GPUs of each, heaviest first.
    tops: Vec<[(f64, usize); 3]>,
    /// The GPUs that hold experts.
    live_gpus: Vec<u32>,
}

/// Loads compared with an effort of 1.
const WORK: usize = 1 << 22;
/// Loads that there is room for.
const ROOM_MAX: usize = 1 << 26;
/// A gain must be more than so much of the whole.
const GAIN_MIN: f64 = 1e-9;

impl<'a> Window<'a> {
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal) -> Window<'a> {
        Window {
            cluster,
            effort: goal.effort,
            layout: Layout::new(cluster, goal),
            num_steps: 0,
            shares: Vec::new(),
            gpu_loads: Vec::new(),
            tops: Vec::new(),
            live_gpus: Vec::with_capacity(cluster.num_live_gpus()),
        }
    }

    /// Improves `slot_to_expert` for `steps`, `total` being their sum.
    pub(super) fn improve(&mut self, steps: &[&[f32]], total: &[f64], slot_to_expert: &mut [u32]) {
        let room = steps.len().saturating_mul(self.cluster.num_gpus() + total.len());
        let holds_experts = |&gpu: &usize| !slot_to_expert[self.cluster.slots(gpu)].contains(&EMPTY);
        self.live_gpus.clear();
        self.live_gpus.extend(self.cluster.live_gpus().filter(holds_experts).map(|gpu| gpu as u32));
        if self.live_gpus.len() < 2 || room > ROOM_MAX {
            return;
        }
        self.start(steps, total, slot_to_expert);
        let mut work = WORK * self.effort;
        let mut without_gain = 0;
        let mut step = 0;
        while without_gain < self.num_steps && work > 0 {
            match self.best_swap(step, &mut work) {
                Some((a, b)) => {
                    self.swap(a, b);
                    work = work.saturating_sub(self.gpu_loads.len());
                    without_gain = 0;
                }
                None => {
                    without_gain += 1;
                    step = (step + 1) % self.num_steps;
                }
            }
        }
        slot_to_expert.copy_from_slice(self.layout.slot_to_expert());
    }

    fn start(&mut self, steps: &[&[f32]], total: &[f64], slot_to_expert: &[u32]) {
        self.layout.start(total, slot_to_expert);
        self.num_steps = steps.len();
        self.shares.clear();
        for expert in 0..total.len() {
            let count = f64::from(self.layout.count(expert as u32).max(1));
            self.shares.extend(steps.iter().map(|loads| f64::from(loads[expert]) / count));
        }
        self.gpu_loads.clear();
        self.gpu_loads.resize(self.cluster.num_gpus() * steps.len(), 0.0);
        for gpu in 0..self.cluster.num_gpus() {
            self.weigh(gpu);
        }
        self.find_tops();
    }

    /// A GPU's loads, anew from its slots.
    fn weigh(&mut self, gpu: usize) {
        let loads = &mut self.gpu_loads[gpu * self.num_steps..][..self.num_steps];
        loads.fill(0.0);
        for &expert in &self.layout.slot_to_expert()[self.cluster.slots(gpu)] {
            if expert != EMPTY {
                let shares = &self.shares[expert as usize * self.num_steps..][..self.num_steps];
                loads.iter_mut().zip(shares).for_each(|(load, share)| *load += share);
            }
        }
    }

    fn find_tops(&mut self) {
        self.tops.clear();
        self.tops.resize(self.num_steps, [(-1.0, usize::MAX); 3]);
        for &gpu in &self.live_gpus {
            let loads = &self.gpu_loads[gpu as usize * self.num_steps..][..self.num_steps];
            for (top, &load) in self.tops.iter_mut().zip(loads) {
                if load > top[2].0 {
                    top[2] = (load, gpu as usize);
                    if load > top[1].0 {
                        top.swap(1, 2);
                    }
                    if load > top[0].0 {
                        top.swap(0, 1);
                    }
                }
            }
        }
    }

    /// The swap of a slot of the step's heaviest GPU that gains most over all steps.
    fn best_swap(&self, step: usize, work: &mut usize) -> Option<(usize, usize)> {
        let (heaviest, gpu) = self.tops[step][0];
        let whole: f64 = self.tops.iter().map(|top| top[0].0).sum();
        let mut least = whole * (1.0 - GAIN_MIN);
        let mut best = None;
        for a in self.cluster.slots(gpu) {
            for &other in &self.live_gpus {
                let other = other as usize;
                let slots = self.cluster.slots(other);
                if other == gpu || *work == 0 {
                    continue;
                }
                *work = work.saturating_sub(slots.len());
                let other_load = self.gpu_loads[other * self.num_steps + step];
                for b in slots {
                    let less = self.share(a, step) - self.share(b, step);
                    if less <= 0.0 || other_load + less >= heaviest {
                        continue;
                    }
                    *work = work.saturating_sub(self.num_steps);
                    let then = self.sum_after(gpu, a, other, b);
                    if then < least && self.layout.may_swap(a, b) {
                        least = then;
                        best = Some((a, b));
                    }
                }
            }
        }
        best
    }

    fn share(&self, slot: usize, step: usize) -> f64 {
        self.shares[self.layout.slot_to_expert()[slot] as usize * self.num_steps + step]
    }

    /// The sum of the heaviest GPUs' loads if two slots are swapped.
    fn sum_after(&self, gpu_a: usize, a: usize, gpu_b: usize, b: usize) -> f64 {
        let heaviest = self.tops.iter().enumerate().map(|(step, top)| {
            let less = self.share(a, step) - self.share(b, step);
            let loads = |gpu: usize| self.gpu_loads[gpu * self.num_steps + step];
            let other = top.iter().find(|top| top.1 != gpu_a && top.1 != gpu_b).map_or(0.0, |top| top.0);
            (loads(gpu_a) - less).max(loads(gpu_b) + less).max(other)
        });
        heaviest.sum()
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.layout.swap(a, b);
        self.weigh(self.layout.gpu(a));
        self.weigh(self.layout.gpu(b));
        self.find_tops();
    }
}
