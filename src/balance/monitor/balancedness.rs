//! Balancedness as vLLM logs it: how busy the mean GPU is beside the busiest.
//!
//! With the loads of GPUs per layer it is the sum over layers of the mean, divided by the sum over layers of the
//! greatest: `vllm/distributed/eplb/eplb_state.py`, in the form of pull request #51813 there. Earlier versions of vLLM
//! took mean and maximum over the layers of each rank and summed these over ranks, which differs unless each rank is
//! its layers' busiest in turn. Where layers have equal loads, as when each token passes every layer, it is the
//! inverse of the layers' mean imbalance.

use crate::balance::cluster::Cluster;
use crate::balance::evaluate::gpu_loads;
use crate::error::{Error, Result};

/// Mean GPU load / greatest GPU load, above 0 to 1; 0 where there is no load at all, as in vLLM.
#[derive(Clone, Debug, PartialEq)]
pub struct Balancedness {
    /// Of all layers: the sum of their means / the sum of their greatest.
    pub overall: f64,
    /// `[num_layers]`: of each layer.
    pub layers: Vec<f64>,
}

/// Far more than float32 loads can add up to, far less than what float64 sums can hold.
const LOAD_MAX: f64 = 1e100;

impl Balancedness {
    /// From the load of each GPU, `[num_layers, num_gpus]`. Only live GPUs with slots count.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not a multiple of `num_gpus` loads, a load that is not 0 to 1e100.
    pub fn of_gpu_loads(cluster: &Cluster, gpu_loads: &[f64]) -> Result<Balancedness> {
        let num_gpus = cluster.num_gpus();
        check_multiple("gpu_loads", gpu_loads.len(), num_gpus)?;
        if let Some(index) = gpu_loads.iter().position(|load| !(0.0..=LOAD_MAX).contains(load)) {
            let argument = format!("gpu_loads[layer {}, GPU {}]", index / num_gpus, index % num_gpus);
            let range = format!("must be 0 to {LOAD_MAX:e}");
            return Err(Error::argument("balancedness", argument, format!("{:?}", gpu_loads[index]), range));
        }
        let (mut means, mut maxima) = (0.0, 0.0);
        let mut layers = Vec::with_capacity(gpu_loads.len() / num_gpus);
        for loads in gpu_loads.chunks_exact(num_gpus) {
            let (mut sum, mut max) = (0.0, 0.0f64);
            for gpu in cluster.live_gpus() {
                sum += loads[gpu];
                max = max.max(loads[gpu]);
            }
            let mean = sum / cluster.num_live_gpus() as f64;
            layers.push(ratio(mean, max));
            means += mean;
            maxima += max;
        }
        Ok(Balancedness { overall: ratio(means, maxima), layers })
    }

    /// From what each slot was measured to have got, `[num_layers, num_slots]`, as vLLM has it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not a multiple of the cluster's slots, a negative count.
    pub fn of_slot_counts(cluster: &Cluster, counts: &[i64]) -> Result<Balancedness> {
        let num_slots = cluster.num_slots();
        check_multiple("counts", counts.len(), num_slots)?;
        let mut gpu_loads = Vec::with_capacity(counts.len() / num_slots * cluster.num_gpus());
        for (layer, counts) in counts.chunks_exact(num_slots).enumerate() {
            if let Some(slot) = counts.iter().position(|&count| count < 0) {
                let argument = format!("counts[layer {layer}, slot {slot}]");
                return Err(Error::argument("balancedness", argument, counts[slot], "must not be negative"));
            }
            let of_gpu = |gpu| counts[cluster.slots(gpu)].iter().map(|&count| count as f64).sum::<f64>();
            gpu_loads.extend((0..cluster.num_gpus()).map(of_gpu));
        }
        Balancedness::of_gpu_loads(cluster, &gpu_loads)
    }

    /// From the loads of experts, `[num_layers, num_experts]`, if they are shared as the placement says.
    pub(super) fn of_placement(
        num_experts: usize,
        cluster: &Cluster,
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
        loads: &[f32],
    ) -> Result<Balancedness> {
        let gpu_loads = gpu_loads(cluster, num_experts, slot_to_expert, shares, loads);
        Balancedness::of_gpu_loads(cluster, &gpu_loads.map_err(|error| error.within("balancedness"))?)
    }
}

fn ratio(mean: f64, max: f64) -> f64 {
    // Equal loads may have a mean that is rounded up.
    if max > 0.0 {
        (mean / max).min(1.0)
    } else {
        0.0
    }
}

fn check_multiple(argument: &str, len: usize, of: usize) -> Result<()> {
    if len % of == 0 {
        return Ok(());
    }
    let argument = format!("the number of {argument}");
    Err(Error::argument("balancedness", argument, len, format!("must be a multiple of {of}")))
}
