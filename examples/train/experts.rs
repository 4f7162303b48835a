//! The loads that the trained router gives its experts, and how GPUs could share them.

use dualpipe::balance::{deepseek, ExpertPlan, Options, Problem};

const NUM_GPUS: usize = 8;
/// Slots for replicas on each GPU, besides those for the experts themselves.
const REDUNDANT_SLOTS: usize = 2;
/// More stages are summed up.
const ROWS_MAX: usize = 8;

/// What can be said of `loads[stage][expert]`, tokens sent to each expert.
pub(crate) struct ExpertReport {
    /// `[stage]`: the imbalance where every GPU has as many experts, in order.
    in_order: Vec<f64>,
    plan: ExpertPlan,
}

impl ExpertReport {
    /// Balances the experts of each stage.
    pub(crate) fn new(loads: &[Vec<u64>]) -> Result<ExpertReport, String> {
        let num_experts = loads.first().map_or(0, Vec::len);
        let problem = Problem {
            num_layers: loads.len(),
            num_experts,
            num_slots: num_experts + NUM_GPUS * REDUNDANT_SLOTS,
            num_groups: 1,
            num_nodes: 1,
            num_gpus: NUM_GPUS,
        };
        let all: Vec<f32> = loads.iter().flatten().map(|&load| load as f32).collect();
        let plan = deepseek(&problem, &all, Options::default()).map_err(|e| e.to_string())?;
        let in_order = loads.iter().map(|loads| imbalance_in_order(loads)).collect();
        Ok(ExpertReport { in_order, plan })
    }

    pub(crate) fn print(&self) {
        let (num_experts, num_gpus) = (self.plan.num_experts(), self.plan.cluster().num_gpus());
        let stages: Vec<[f64; 3]> = self
            .in_order
            .iter()
            .zip(self.plan.layers())
            .map(|(&in_order, layer)| [in_order, layer.imbalance, layer.lower_bound()])
            .collect();
        println!();
        println!("Experts, by tokens since the first step: the fullest of {num_gpus} GPUs / mean");
        println!("             in order   balanced   lower bound");
        let row = |name: &str, [in_order, balanced, bound]: [f64; 3]| {
            println!("  {name:<10} {in_order:8.2}   {balanced:8.3}      {bound:8.3}");
        };
        if stages.len() <= ROWS_MAX {
            for (stage, &columns) in stages.iter().enumerate() {
                row(&format!("stage {stage}"), columns);
            }
        } else {
            let worst = [0, 1, 2].map(|i| stages.iter().map(|columns| columns[i]).fold(0.0, f64::max));
            row("worst", worst);
        }
        println!(
            "  In order: {} experts to a GPU. Balanced: DeepSeek's EPLB, {REDUNDANT_SLOTS} more slots on each.",
            num_experts / num_gpus
        );
    }
}

/// Max GPU load / mean GPU load, where each GPU has the next experts in order.
fn imbalance_in_order(loads: &[u64]) -> f64 {
    let gpus = loads.chunks(loads.len().div_ceil(NUM_GPUS).max(1)).map(|experts| experts.iter().sum::<u64>());
    let mean = loads.iter().sum::<u64>() as f64 / NUM_GPUS as f64;
    gpus.max().map_or(1.0, |most| most as f64 / mean.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_even_out_what_the_order_does_not() {
        let mut loads = vec![10; 16];
        assert_eq!(imbalance_in_order(&loads), 1.0);
        loads[3] = 170;
        // 180 of 320 tokens for the GPU of experts 2 and 3.
        assert_eq!(imbalance_in_order(&loads), 4.5);
        let report = ExpertReport::new(&[loads.clone(), vec![1; 16]]).unwrap();
        assert_eq!(report.in_order, [4.5, 1.0]);
        for (layer, in_order) in report.plan.layers().iter().zip(&report.in_order) {
            assert!(layer.imbalance <= *in_order && layer.imbalance < 1.2, "{layer:?}");
            assert!(layer.imbalance >= layer.lower_bound(), "{layer:?}");
        }
    }
}
