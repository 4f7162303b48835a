//! What no placement can beat, and how far from it one is.
//!
//! For a layer with loads w, their sum W, R slots on G GPUs:
//!
//! ```text
//! mean    some GPU carries at least W / G
//! joint   the least T >= W / G with  Σ max(1, ⌈w / T⌉) <= R :
//!         where no GPU carries more than T, no replica does, and an expert needs ⌈w / T⌉ of them
//! node    where groups stay on their node: `node_bound`
//! ```
//!
//! The joint bound also holds where replicas share a load unequally. Where T is infeasible at the mean, it is found
//! without a search: too many replicas are asked for, and T rises past one w / (count - 1) after the other, the
//! least first, until enough of them are given up. Fewer than G experts exceed the mean: `O(E + G log G)`.
//!
//! Rounding: a bound must never exceed the optimum. All is float64, made of sums, quotients and comparisons of
//! non-negative numbers, so that each operation errs by a factor within 1 ± 2^-53, and fewer than E + R + 16 of
//! them follow each other. A bound is lowered by twice that, and is at least 1, which is exact. No count is taken
//! too high: x <= k for a whole k stays so when x is rounded, hence rounding never raises ⌈w / T⌉.

use std::cmp::Reverse;
use std::collections::binary_heap::{BinaryHeap, PeekMut};

use super::layers::Layer;
use super::node_bound::NodeBound;
use super::plan::LayerBound;
use super::problem::{total, Problem};
use crate::error::Result;

/// `[num_layers]`: for each layer what no placement can beat. The loads are those of [`deepseek`](super::deepseek),
/// whose plan has these bounds too.
///
/// # Errors
///
/// `InvalidArgument` if [`Problem::check`] refuses the sizes, or for a load out of range.
pub fn lower_bounds(problem: &Problem, loads: &[f32]) -> Result<Vec<LayerBound>> {
    problem.check()?;
    problem.check_loads(loads)?;
    let mut bounds = Bounds::new(problem);
    let layers = loads.chunks_exact(problem.num_experts);
    Ok(layers.map(|loads| bounds.lower_bound(loads)).collect())
}

/// Room to find the bounds of one layer.
pub(super) struct Bounds {
    num_slots: usize,
    num_gpus: usize,
    /// What every bound is multiplied with, for rounding.
    caution: f64,
    /// (w / (count - 1), expert, count) of the experts above the mean, the least first; the quotient as bits.
    next: BinaryHeap<Reverse<(u64, u32, u32)>>,
    node: Option<NodeBound>,
    /// `[num_experts]`: the load of one replica.
    shares: Vec<f64>,
}

impl Bounds {
    pub(super) fn new(problem: &Problem) -> Bounds {
        let operations = problem.num_experts + problem.num_slots + 16;
        Bounds {
            num_slots: problem.num_slots,
            num_gpus: problem.num_gpus,
            caution: 1.0 - operations as f64 * f64::EPSILON,
            next: BinaryHeap::with_capacity(problem.num_gpus.min(problem.num_experts)),
            node: NodeBound::new(problem),
            shares: Vec::with_capacity(problem.num_experts),
        }
    }

    /// The bounds of a layer of checked loads.
    pub(super) fn lower_bound(&mut self, loads: &[f32]) -> LayerBound {
        let mean = total(loads) / self.num_gpus as f64;
        if mean == 0.0 {
            return LayerBound::MEAN;
        }
        let node = self.node.as_mut().map(|node| node.heaviest_gpu(loads));
        let joint = self.joint(loads, mean);
        let careful = |bound: f64| (bound / mean * self.caution).max(1.0);
        LayerBound {
            joint: joint.map_or(1.0, careful),
            node: node.map_or(1.0, careful),
        }
    }

    /// The least T at which the slots suffice, or none if they do at the mean.
    fn joint(&mut self, loads: &[f32], mean: f64) -> Option<f64> {
        let mut next = std::mem::take(&mut self.next).into_vec();
        next.clear();
        let mut asked = loads.len();
        for (expert, &load) in loads.iter().enumerate() {
            let load = f64::from(load);
            if load > mean {
                let count = round_up(load / mean);
                asked += count as usize - 1;
                next.extend(next_share(load, expert as u32, count));
            }
        }
        self.next = BinaryHeap::from(next);
        let mut least = None;
        for _ in self.num_slots..asked {
            let Some(mut top) = self.next.peek_mut() else {
                break;
            };
            let Reverse((share, expert, count)) = *top;
            least = Some(f64::from_bits(share));
            match next_share(f64::from(loads[expert as usize]), expert, count - 1) {
                Some(next) => *top = next,
                None => drop(PeekMut::pop(top)),
            }
        }
        least
    }

    /// Max GPU load / mean GPU load of a layer that has been placed.
    pub(super) fn imbalance(&mut self, layer: &Layer<'_>) -> f64 {
        let loads = layer.loads.iter().zip(&*layer.replica_counts);
        self.shares.clear();
        self.shares
            .extend(loads.map(|(&load, &count)| f64::from(load) / f64::from(count)));
        let gpus = layer
            .slot_to_expert
            .chunks_exact(self.num_slots / self.num_gpus);
        let gpu_loads = gpus.map(|experts| {
            experts
                .iter()
                .map(|&e| self.shares[e as usize])
                .sum::<f64>()
        });
        let heaviest = gpu_loads.fold(0.0, f64::max);
        let mean = total(layer.loads) / self.num_gpus as f64;
        if mean == 0.0 {
            return 1.0;
        }
        // The heaviest is no lighter than the mean, whatever rounding says.
        (heaviest / mean).max(1.0)
    }
}

/// ⌈quotient⌉, which is less than 2^32; without SSE 4.1 `f64::ceil` is a call.
fn round_up(quotient: f64) -> u32 {
    let down = quotient as u32;
    down + u32::from(f64::from(down) < quotient)
}

/// The T at which an expert with `count` replicas gives one up, if it has one to give.
fn next_share(load: f64, expert: u32, count: u32) -> Option<Reverse<(u64, u32, u32)>> {
    let share = load / f64::from(count.checked_sub(1).filter(|&less| less > 0)?);
    Some(Reverse((share.to_bits(), expert, count)))
}
