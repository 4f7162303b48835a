//! When the ranks end that follow given orders.

use std::collections::VecDeque;

use super::lines::{Lines, Step};

impl Lines {
    /// When each rank ends if every step starts as soon as its rank is free and its message is there; of steps that
    /// were dispatched.
    pub(super) fn play(&self, steps: &[Vec<Step>]) -> Vec<u64> {
        let mut activations: Vec<VecDeque<u64>> = vec![VecDeque::new(); self.stops.len()];
        let mut gradients = activations.clone();
        for (stop, activations) in self.stops.iter().zip(&mut activations) {
            if stop.previous.is_none() {
                activations.extend(std::iter::repeat_n(0, self.microbatches[stop.line]));
            }
        }
        let mut at = vec![0; steps.len()];
        let mut free_ns = vec![0u64; steps.len()];
        let mut ready: Vec<usize> = (0..steps.len()).collect();
        while let Some(rank) = ready.pop() {
            while let Some(&step) = steps[rank].get(at[rank]) {
                let (f, b, weight_ns) = match step {
                    Step::F(f) => (Some(f as usize), None, 0),
                    Step::I(b) => (None, Some(b as usize), 0),
                    Step::W(b) => (None, None, self.stops[b as usize].weight_ns),
                    Step::FB(f, b) => (Some(f as usize), Some(b as usize), 0),
                };
                let arrivals = [f.map(|f| activations[f].front()), b.map(|b| gradients[b].front())];
                if arrivals.contains(&Some(None)) {
                    break;
                }
                let arrival = arrivals.into_iter().flatten().flatten().copied().max().unwrap_or(0);
                let duration = match (f, b) {
                    (Some(f), Some(b)) => self.together_ns(f, b),
                    (Some(f), None) => self.stops[f].forward_ns,
                    (None, Some(b)) => self.stops[b].input_ns,
                    (None, None) => weight_ns,
                };
                let end = free_ns[rank].max(arrival) + duration;
                free_ns[rank] = end;
                at[rank] += 1;
                if let Some(f) = f {
                    activations[f].pop_front();
                    match self.stops[f].next {
                        None => gradients[f].push_back(end),
                        Some((next, hop)) => {
                            activations[next].push_back(end + hop);
                            ready.push(self.stops[next].rank);
                        }
                    }
                }
                if let Some(b) = b {
                    gradients[b].pop_front();
                    if let Some((previous, hop)) = self.stops[b].previous {
                        gradients[previous].push_back(end + hop);
                        ready.push(self.stops[previous].rank);
                    }
                }
            }
        }
        free_ns
    }
}
