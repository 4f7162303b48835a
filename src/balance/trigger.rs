//! Whether a planned placement is worth moving to.
//!
//! What a step of a layer costs is the load of its heaviest GPU, so the gain is the difference of those loads, in each
//! step that both placements are judged on, summed over layers. Two things make a planned placement look better than
//! it is. The counts of a step are a sample: even with the right popularity of every expert the heaviest of G GPUs
//! lies above the mean in every step, and no placement changes that. And a plan fits the sample that it was made of.
//! So the heaviest GPU is taken step by step, where both placements suffer the same sampling, and not of a window's
//! sums, which hide it; and a plan is judged on steps that it has not seen or, where it has, at a discount (below).
//!
//! The gains of steps vary. Their standard error is that of the means of up to 16 consecutive parts of the window
//! (batch means, which allow for steps that resemble their neighbours: Law and Carson, *A sequential procedure for
//! determining the length of a steady-state simulation*, Operations Research 27(5), 1979), widened by the standard
//! deviation of Student's t with as many degrees of freedom. The rule is then
//!
//! ```text
//! (gain per step - standard_errors * its standard error) * horizon > cost of the move
//! ```
//!
//! A plan that has seen the n steps has evened out their sums. Of independent steps with variance v of a GPU's load,
//! what it leaves within the sample has variance v (1 - 1/n), and in a new step v (1 + 1/n), of which v/n is what it
//! has mistaken for popularity. The excess of the heaviest GPU over the mean grows with the standard deviation, so
//! that the excess seen is multiplied by sqrt((n + 1) / (n - 1)). What is uneven for other reasons is multiplied
//! too, which errs on the side of staying.
//!
//! O(steps * layers * (slots + experts)) for each placement. docs/loads.md has what simulations say of it.

use super::cluster::{Cluster, EMPTY};
use super::evaluate::{check_len, gpu_loads, Evaluator};
use super::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, Result};

/// A move that might be made, and what there is to judge it by.
#[derive(Clone, Copy, Debug)]
pub struct Proposal<'a> {
    /// The GPUs of both placements.
    pub cluster: &'a Cluster,
    /// Layers with experts, 1 to 4096.
    pub num_layers: usize,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: usize,
    /// `[num_steps, num_layers, num_experts]`: tokens in each of the last steps, as counted. At least 4 steps; more
    /// than 16 tell more.
    pub counts: &'a [u32],
    /// Whether the plan was made of these steps. Better that it was made of older ones: [`plan_and_judge`].
    pub plan_saw_counts: bool,
    /// `[num_layers, num_slots]`: the expert in each slot now.
    pub current: &'a [u32],
    /// `[num_layers, num_slots]`: the slots' shares of their experts now; without, equal.
    pub current_shares: Option<&'a [f64]>,
    /// `[num_layers, num_slots]`: the expert in each slot after the move.
    pub planned: &'a [u32],
    /// `[num_layers, num_slots]`: the slots' shares after it; without, equal.
    pub planned_shares: Option<&'a [f64]>,
    /// What the move costs and what it may bring.
    pub stakes: Stakes,
}

/// What a move costs and what it may bring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stakes {
    /// What the experts of all layers take of a step now, as far as it grows with the heaviest GPU's tokens; seconds, 0
    /// to 1e9.
    pub expert_seconds: f64,
    /// Steps that the move has to pay for itself in, 0 to 2^53.
    pub horizon: u64,
    /// What the move costs.
    pub price: MovePrice,
    /// Certainty: by how many standard errors the gain must exceed the cost; 0 to 100. With 3, and a move that costs
    /// nothing, about 1 in 300 proposals that bring nothing is taken; each cost makes it fewer.
    pub standard_errors: f64,
}

/// What a move costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MovePrice {
    /// Seconds that it holds up steps; finite, not negative.
    Seconds(f64),
    /// What GPUs receive: layers one after the other, each as long as its busiest GPU takes. An expert that a GPU has
    /// already costs nothing. Senders and links may take longer; a plan of the transfers has their time.
    Bytes {
        /// Bytes of one expert of one layer, 0 to 1e18.
        per_expert: f64,
        /// Bytes per second that a GPU receives, 1 to 1e18.
        bandwidth: f64,
    },
}

/// Whether to move, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Whether the move pays.
    pub rebalance: bool,
    /// What decided.
    pub reason: Reason,
    /// Now: the heaviest GPU's load / the mean, of sums over the judged steps and layers.
    pub current_imbalance: f64,
    /// After the move: the same, as expected of steps that the plan has not seen.
    pub planned_imbalance: f64,
    /// What the planned imbalance would be if only its steps differed, each from their mean: 1 or a little more than
    /// the sampling of tokens makes inevitable, since steps also differ in what they are about.
    pub noise_floor: f64,
    /// What is expected to be saved over the horizon, in seconds; negative if the plan is worse.
    pub gain_seconds: f64,
    /// The standard error of that.
    pub gain_error_seconds: f64,
    /// The price of the move, in seconds.
    pub cost_seconds: f64,
    /// Replicas that GPUs have to receive, in all layers.
    pub moved_replicas: u64,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The gain exceeds the cost, beyond doubt: move.
    Worthwhile,
    /// The placements are the same.
    SamePlacement,
    /// There are too few steps to know how far gains vary.
    TooFewSteps,
    /// The plan is not better.
    NoGain,
    /// The gain is within what chance may bring.
    WithinNoise,
    /// The gain is real and not certain to exceed the cost.
    BelowCost,
}

/// A placement that a planner has made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planned {
    /// `[num_layers, num_slots]`
    pub slot_to_expert: Vec<u32>,
    /// `[num_layers, num_slots]`; `None` if equal.
    pub shares: Option<Vec<f64>>,
}

/// Parts of the window whose means give the standard error.
const BATCHES: usize = 16;
/// Fewer steps say nothing: Student's t needs more than 2 degrees of freedom to have a variance.
const STEPS_MIN: usize = 4;

/// Whether the planned placement is worth moving to, by the rule at the head of `trigger.rs`.
///
/// # Errors
///
/// `InvalidArgument`: sizes out of range, lengths that do not fit, a number that is out of its range, a placement
/// under which the counts do not arrive, as [`gpu_loads`] says.
pub fn should_rebalance(proposal: &Proposal) -> Result<Decision> {
    let num_steps = check(proposal)?;
    let &Proposal { stakes, current, planned, .. } = proposal;
    let moved = moved_replicas(proposal);
    let now = judge(proposal, current, proposal.current_shares)?;
    let then = judge(proposal, planned, proposal.planned_shares)?;

    let steps = num_steps.max(1) as f64;
    let mean: f64 = now.mean_of_steps;
    let optimism = match proposal.plan_saw_counts && num_steps > 1 {
        true => (then.heaviest_mean() - mean).max(0.0) * (((steps + 1.0) / (steps - 1.0)).sqrt() - 1.0),
        false => 0.0,
    };
    let gains: Vec<f64> = now.heaviest.iter().zip(&then.heaviest).map(|(now, then)| now - then).collect();
    let (gain, error) = mean_and_error(&gains);
    // Seconds per token of the heaviest GPU, times the horizon.
    let worth = match now.heaviest_mean() {
        0.0 => 0.0,
        heaviest => stakes.expert_seconds / heaviest * stakes.horizon as f64,
    };
    let over_mean = |load: f64| if mean > 0.0 { (load / mean).max(1.0) } else { 1.0 };
    let mut decision = Decision {
        rebalance: false,
        reason: Reason::SamePlacement,
        current_imbalance: over_mean(now.heaviest_mean()),
        planned_imbalance: over_mean(then.heaviest_mean() + optimism),
        noise_floor: over_mean(mean + then.heaviest_mean() - then.heaviest_of_mean),
        gain_seconds: (gain - optimism) * worth,
        gain_error_seconds: if worth > 0.0 { error * worth } else { 0.0 },
        cost_seconds: 0.0,
        moved_replicas: moved.replicas,
    };
    let is_same = current == planned && proposal.current_shares == proposal.planned_shares;
    decision.decide(&stakes, &moved, is_same, num_steps);
    Ok(decision)
}

/// Plans and judges without letting a plan be judged by what it has seen: `plan` gets the loads of the older half of
/// the steps, `[num_layers, num_experts]` summed, and its plan is judged on the newer half. If such a plan pays, `plan`
/// gets the loads of all steps, and that is the plan to move to, at the cost of its own moves; it comes with the
/// decision.
///
/// The plan that is judged is one that a running engine could have made half a window ago, so that its gain is what
/// engines get: from popularity that lasts, and not from what comes and goes within the window. `proposal.planned`,
/// `planned_shares` and `plan_saw_counts` play no part. The counts must be of at least 8 steps, and a change is
/// noticed once it fills more than half of them.
///
/// # Errors
///
/// As [`should_rebalance`], and what `plan` returns.
pub fn plan_and_judge(
    proposal: &Proposal,
    mut plan: impl FnMut(&[f32]) -> Result<Planned>,
) -> Result<(Decision, Option<Planned>)> {
    let mut proposal =
        Proposal { planned: proposal.current, planned_shares: None, plan_saw_counts: false, ..*proposal };
    let num_steps = check(&proposal)?;
    let per_step = proposal.num_layers * proposal.num_experts;
    let all = proposal.counts;
    let (older, newer) = all.split_at(num_steps / 2 * per_step);
    let trial = plan(&sums(older, per_step))?;
    proposal.counts = newer;
    proposal.planned = &trial.slot_to_expert;
    proposal.planned_shares = trial.shares.as_deref();
    let mut decision = should_rebalance(&proposal)?;
    if !decision.rebalance {
        return Ok((decision, None));
    }
    let best = plan(&sums(all, per_step))?;
    proposal.planned = &best.slot_to_expert;
    proposal.planned_shares = best.shares.as_deref();
    check(&proposal)?;
    // Whether it can carry the load.
    judge(&proposal, proposal.planned, proposal.planned_shares)?;
    let moved = moved_replicas(&proposal);
    let is_same = proposal.current == proposal.planned && proposal.current_shares == proposal.planned_shares;
    decision.decide(&proposal.stakes, &moved, is_same, num_steps - num_steps / 2);
    let best = decision.rebalance.then_some(best);
    Ok((decision, best))
}

impl Decision {
    fn decide(&mut self, stakes: &Stakes, moved: &Moved, is_same: bool, num_steps: usize) {
        self.moved_replicas = moved.replicas;
        self.cost_seconds = match stakes.price {
            MovePrice::Seconds(seconds) => seconds,
            MovePrice::Bytes { per_expert, bandwidth } => moved.busiest as f64 * per_expert / bandwidth,
        };
        let certain = self.gain_seconds - stakes.standard_errors * self.gain_error_seconds;
        self.reason = match () {
            () if is_same => Reason::SamePlacement,
            () if num_steps < STEPS_MIN => Reason::TooFewSteps,
            () if self.gain_seconds <= 0.0 => Reason::NoGain,
            () if certain <= 0.0 => Reason::WithinNoise,
            () if certain <= self.cost_seconds => Reason::BelowCost,
            () => Reason::Worthwhile,
        };
        self.rebalance = self.reason == Reason::Worthwhile;
    }
}

/// What the steps come to under a placement; loads are summed over layers.
struct Judged {
    /// `[num_steps]`: of the heaviest GPU of each layer.
    heaviest: Vec<f64>,
    /// The same if each step were the mean step.
    heaviest_of_mean: f64,
    /// Of the mean GPU, in the mean step.
    mean_of_steps: f64,
}

impl Judged {
    fn heaviest_mean(&self) -> f64 {
        self.heaviest.iter().sum::<f64>() / self.heaviest.len().max(1) as f64
    }
}

fn judge(proposal: &Proposal, slot_to_expert: &[u32], shares: Option<&[f64]>) -> Result<Judged> {
    let &Proposal { cluster, num_layers, num_experts, counts, .. } = proposal;
    let per_step = num_layers * num_experts;
    let num_steps = counts.len() / per_step;
    let of_sums = gpu_loads(cluster, num_experts, slot_to_expert, shares, &sums(counts, per_step))
        .map_err(|error| error.within("should_rebalance"))?;
    let steps = num_steps.max(1) as f64;
    let heaviest_gpu = |loads: &[f64]| loads.iter().copied().fold(0.0, f64::max);
    let mut judged = Judged {
        heaviest: vec![0.0; num_steps],
        heaviest_of_mean: of_sums.chunks_exact(cluster.num_gpus()).map(heaviest_gpu).sum::<f64>() / steps,
        mean_of_steps: of_sums.iter().sum::<f64>() / cluster.num_live_gpus() as f64 / steps,
    };
    let mut evaluator = Evaluator::new(cluster, num_experts);
    let mut loads = vec![0.0; num_experts];
    for (heaviest, step) in judged.heaviest.iter_mut().zip(counts.chunks_exact(per_step)) {
        for (layer, counts) in step.chunks_exact(num_experts).enumerate() {
            for (load, &count) in loads.iter_mut().zip(counts) {
                *load = count as f32;
            }
            let slots = layer * cluster.num_slots()..(layer + 1) * cluster.num_slots();
            let shares = shares.map(|shares| &shares[slots.clone()]);
            evaluator.evaluate(&slot_to_expert[slots], shares, &loads);
            *heaviest += heaviest_gpu(evaluator.gpu_loads());
        }
    }
    Ok(judged)
}

/// The mean of consecutive batches' means, and its standard error; infinite where there are too few.
fn mean_and_error(gains: &[f64]) -> (f64, f64) {
    let num_batches = gains.len().min(BATCHES);
    if num_batches == 0 {
        return (0.0, f64::INFINITY);
    }
    let batch = |i: usize| &gains[i * gains.len() / num_batches..(i + 1) * gains.len() / num_batches];
    let mean_of = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let means: Vec<f64> = (0..num_batches).map(|i| mean_of(batch(i))).collect();
    let mean = mean_of(&means);
    if num_batches < STEPS_MIN {
        return (mean, f64::INFINITY);
    }
    let freedom = num_batches as f64 - 1.0;
    let variance = means.iter().map(|batch| (batch - mean) * (batch - mean)).sum::<f64>() / freedom;
    (mean, (variance / num_batches as f64 * freedom / (freedom - 2.0)).sqrt())
}

struct Moved {
    replicas: u64,
    /// Replicas that the busiest GPU of a layer receives, summed over layers.
    busiest: u64,
}

/// What GPUs do not have yet.
fn moved_replicas(proposal: &Proposal) -> Moved {
    let &Proposal { cluster, current, planned, .. } = proposal;
    let mut moved = Moved { replicas: 0, busiest: 0 };
    let num_slots = cluster.num_slots();
    let mut wanted = Vec::new();
    for (current, planned) in current.chunks_exact(num_slots).zip(planned.chunks_exact(num_slots)) {
        let mut busiest = 0;
        for gpu in cluster.live_gpus() {
            let mut held = current[cluster.slots(gpu)].to_vec();
            held.sort_unstable();
            wanted.clear();
            wanted.extend_from_slice(&planned[cluster.slots(gpu)]);
            wanted.sort_unstable();
            wanted.dedup();
            let is_new = |expert: &&u32| **expert != EMPTY && held.binary_search(expert).is_err();
            let received = wanted.iter().filter(is_new).count() as u64;
            moved.replicas += received;
            busiest = received.max(busiest);
        }
        moved.busiest += busiest;
    }
    moved
}

/// `[num_layers, num_experts]`: sums over steps.
fn sums(counts: &[u32], per_step: usize) -> Vec<f32> {
    let mut sums = vec![0.0; per_step];
    for step in counts.chunks_exact(per_step) {
        for (sum, &count) in sums.iter_mut().zip(step) {
            *sum += f64::from(count);
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The number of steps.
fn check(proposal: &Proposal) -> Result<usize> {
    const WHAT: &str = "should_rebalance";
    let &Proposal { cluster, num_layers, num_experts, counts, stakes, .. } = proposal;
    in_range(WHAT, "num_layers", num_layers, 1..=LAYERS_MAX)?;
    in_range(WHAT, "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    let per_step = num_layers * num_experts;
    if counts.len() % per_step != 0 {
        let range = format!("must be a multiple of num_layers * num_experts = {per_step}");
        return Err(Error::argument(WHAT, "the number of counts", counts.len(), range));
    }
    let num_slots = num_layers * cluster.num_slots();
    check_len(WHAT, "current", proposal.current.len(), num_slots)?;
    check_len(WHAT, "current_shares", proposal.current_shares.map_or(num_slots, <[f64]>::len), num_slots)?;
    check_len(WHAT, "planned", proposal.planned.len(), num_slots)?;
    check_len(WHAT, "planned_shares", proposal.planned_shares.map_or(num_slots, <[f64]>::len), num_slots)?;
    in_range(WHAT, "expert_seconds", stakes.expert_seconds, 0.0..=1e9)?;
    in_range(WHAT, "horizon", stakes.horizon, 0..=1 << 53)?;
    in_range(WHAT, "standard_errors", stakes.standard_errors, 0.0..=100.0)?;
    match stakes.price {
        MovePrice::Seconds(seconds) => {
            in_range(WHAT, "the price in seconds", seconds, 0.0..=f64::MAX)?;
        }
        MovePrice::Bytes { per_expert, bandwidth } => {
            in_range(WHAT, "per_expert", per_expert, 0.0..=1e18)?;
            in_range(WHAT, "bandwidth", bandwidth, 1.0..=1e18)?;
        }
    }
    Ok(counts.len() / per_step)
}

#[cfg(test)]
mod tests {
    use super::mean_and_error;

    #[test]
    fn the_standard_error_is_that_of_batch_means_widened() {
        // Four batches of one: mean 2.5, variance 5/3, of the mean 5/12, times 3 / (3 - 2).
        assert_eq!(mean_and_error(&[1.0, 2.0, 3.0, 4.0]), (2.5, 1.25f64.sqrt()));
        // 32 steps that go in pairs, one up and one down: batches of two do not vary.
        let pairs: Vec<f64> = (0..32).map(|i| if i % 2 == 0 { 3.0 } else { 1.0 }).collect();
        assert_eq!(mean_and_error(&pairs), (2.0, 0.0));
        assert_eq!(mean_and_error(&[1.0, 3.0]), (2.0, f64::INFINITY));
    }
}
