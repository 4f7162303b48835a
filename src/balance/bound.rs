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
//! The joint bound also holds where replicas share a load unequally. At the mean too many replicas may be asked for,
//! say by x; raising T past w / (count - 1) gives one up, past w / (count - 2) another. So T is the x-th least of all
//! w / j for j < ⌈w G / W⌉, of which there are fewer than G: `O(E + G)`.
//!
//! Rounding: a bound must never exceed the optimum. All is float64, made of sums, quotients and comparisons of
//! non-negative numbers, so that each operation errs by a factor within 1 ± 2^-53, and fewer than E + R + 16 of
//! them follow each other. A bound is lowered by twice that, and is at least 1, which is exact. No count is taken
//! too high: x <= k for a whole k stays so when x is rounded, hence rounding never raises ⌈w / T⌉.

use super::layers::Layer;
use super::node_bound::NodeBound;
use super::plan::LayerBound;
use super::problem::{total, Problem};
use crate::error::Result;

/// `[num_layers]`: for each layer what no placement can beat. The loads are those of [`deepseek`](super::deepseek()),
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
    /// Where T gives up a replica; as bits, which order positive numbers alike.
    given_up: Vec<u64>,
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
            given_up: Vec::with_capacity(problem.num_gpus),
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
        LayerBound { joint: joint.map_or(1.0, careful), node: node.map_or(1.0, careful) }
    }

    /// The least T at which the slots suffice, or none if they do at the mean.
    fn joint(&mut self, loads: &[f32], mean: f64) -> Option<f64> {
        self.given_up.clear();
        for load in loads.iter().copied().map(f64::from) {
            if load > mean {
                let counts = 1..round_up(load / mean);
                let shares = counts.map(|count| (load / f64::from(count)).to_bits());
                self.given_up.extend(shares);
            }
        }
        let asked = loads.len() + self.given_up.len();
        let nth = asked.checked_sub(self.num_slots + 1)?;
        let (_, &mut share, _) = self.given_up.select_nth_unstable(nth);
        Some(f64::from_bits(share))
    }

    /// Max GPU load / mean GPU load of a layer that has been placed.
    pub(super) fn imbalance(&mut self, layer: &Layer<'_>) -> f64 {
        let loads = layer.loads.iter().zip(&*layer.replica_counts);
        self.shares.clear();
        self.shares.extend(loads.map(|(&load, &count)| f64::from(load) / f64::from(count)));
        let gpus = layer.slot_to_expert.chunks_exact(self.num_slots / self.num_gpus);
        let gpu_loads = gpus.map(|experts| experts.iter().map(|&e| self.shares[e as usize]).sum::<f64>());
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
