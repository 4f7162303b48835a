//! What a placement comes to under given loads: of each GPU, of each node, and away from where groups are at home.
//!
//! An expert's load is shared among its replicas, equally or by the shares of their slots. Only live slots count: a
//! slot that is [`EMPTY`] or on a dead GPU carries nothing, so that a placement made before a failure can be weighed
//! on the cluster that is left of it. Everything is added up in float64, slot by slot, hence the same everywhere.

use super::cluster::{Cluster, EMPTY};
use super::goal::{Goal, EXPERTS_MAX, LAYERS_MAX, PLAN_SLOTS_MAX};
use crate::error::{in_range, Error, Result};

/// The shares of an expert's replicas may miss 1 by so much: what rounding does to sums of many float32 shares.
pub(super) const SHARE_TOLERANCE: f64 = 1e-6;

/// `[num_layers, num_gpus]`: the load of each GPU, which on dead GPUs is 0.
///
/// `slot_to_expert` is `[num_layers, num_slots]`, `shares` likewise (without: an equal split), `loads` is
/// `[num_layers, num_experts]`; the length of `loads` says how many layers there are, 1 to 4096.
/// `O(num_layers * (num_slots + num_experts))`.
///
/// # Errors
///
/// `InvalidArgument`: lengths that do not fit, a load that is negative or not finite, a slot that holds a number that
/// is no expert; an expert that has load and no live slot, or shares on live slots that do not sum to 1 (within 1e-6):
/// the loads of the GPUs always sum to those of the experts. [`verify`](super::verify()) says more.
pub fn gpu_loads(
    cluster: &Cluster,
    num_experts: usize,
    slot_to_expert: &[u32],
    shares: Option<&[f64]>,
    loads: &[f32],
) -> Result<Vec<f64>> {
    let num_layers = check_loads("gpu_loads", num_experts, loads)?;
    let num_slots = num_layers * cluster.num_slots();
    check_len("gpu_loads", "slot_to_expert", slot_to_expert.len(), num_slots)?;
    check_len("gpu_loads", "shares", shares.map_or(num_slots, <[f64]>::len), num_slots)?;
    // There may be more GPUs than slots.
    in_range("gpu_loads", "num_layers * num_gpus", num_layers * cluster.num_gpus(), 1..=PLAN_SLOTS_MAX)?;
    let mut evaluator = Evaluator::new(cluster, num_experts);
    let mut gpu_loads = Vec::with_capacity(num_layers * cluster.num_gpus());
    for (layer, loads) in loads.chunks_exact(num_experts).enumerate() {
        let slots = layer * cluster.num_slots()..(layer + 1) * cluster.num_slots();
        let shares = shares.map(|shares| &shares[slots.clone()]);
        evaluator.check(layer, &slot_to_expert[slots.clone()], shares, loads)?;
        evaluator.evaluate(&slot_to_expert[slots], shares, loads);
        gpu_loads.extend_from_slice(evaluator.gpu_loads());
    }
    Ok(gpu_loads)
}

/// `[num_layers, num_nodes]`: the load of each node, from those of the GPUs, `[num_layers, num_gpus]`.
pub fn node_loads(cluster: &Cluster, gpu_loads: &[f64]) -> Vec<f64> {
    let layers = gpu_loads.chunks_exact(cluster.num_gpus());
    let mut node_loads = vec![0.0; layers.len() * cluster.num_nodes()];
    for (nodes, gpus) in node_loads.chunks_exact_mut(cluster.num_nodes()).zip(layers) {
        for (&node, load) in cluster.node_of_gpu().iter().zip(gpus) {
            nodes[node as usize] += load;
        }
    }
    node_loads
}

/// The heaviest GPU's load / the mean over live GPUs that have slots, of one layer: at least 1, and 1 where there is no
/// load. `gpu_loads` is `[num_gpus]`.
pub fn imbalance(cluster: &Cluster, gpu_loads: &[f64]) -> f64 {
    let (max, sum) = max_and_sum(cluster, gpu_loads);
    ratio(max, sum / cluster.num_live_gpus() as f64)
}

/// How much of the load of one layer is not on its group's home node, as a share of all load, 0 to 1: what
/// [`GroupRule::Priced`](super::GroupRule::Priced) prices. A group's home is the node that most of its load is on,
/// the lowest of several.
///
/// `slot_to_expert` and `shares` are `[num_slots]`, `loads` is `[num_experts]`.
/// `O(num_slots + num_experts + num_nodes)`.
///
/// # Errors
///
/// `InvalidArgument` as of [`gpu_loads`], and for `goal.num_groups` outside 1 to `num_experts`.
pub fn away(
    cluster: &Cluster,
    goal: &Goal,
    slot_to_expert: &[u32],
    shares: Option<&[f64]>,
    loads: &[f32],
) -> Result<f64> {
    let num_experts = goal.num_experts;
    let num_layers = check_loads("away", num_experts, loads)?;
    in_range("away", "the number of layers", num_layers, 1..=1)?;
    in_range("away", "num_groups", goal.num_groups, 1..=num_experts)?;
    check_len("away", "slot_to_expert", slot_to_expert.len(), cluster.num_slots())?;
    check_len("away", "shares", shares.map_or(cluster.num_slots(), <[f64]>::len), cluster.num_slots())?;
    let mut evaluator = Evaluator::new(cluster, num_experts);
    evaluator.check(0, slot_to_expert, shares, loads).map_err(|error| error.within("away"))?;
    evaluator.evaluate(slot_to_expert, shares, loads);
    Ok(evaluator.away(&goal.group_of_expert(), slot_to_expert, shares, loads))
}

/// Evaluates layer after layer in the same memory.
///
/// Trusts its caller: slices are as long as the cluster and the experts say. A slot with a number that is no expert
/// carries nothing, and so does an expert without a slot.
pub(super) struct Evaluator<'a> {
    cluster: &'a Cluster,
    /// `[num_experts]`: live replicas of each.
    replica_counts: Vec<u32>,
    /// `[num_gpus]`
    gpu_loads: Vec<f64>,
    /// Room for [`Evaluator::away`].
    by_group: Vec<u32>,
    first_of_group: Vec<u32>,
    /// `[num_nodes]`
    group_on_node: Vec<f64>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(cluster: &'a Cluster, num_experts: usize) -> Evaluator<'a> {
        Evaluator {
            cluster,
            replica_counts: vec![0; num_experts],
            gpu_loads: vec![0.0; cluster.num_gpus()],
            by_group: Vec::new(),
            first_of_group: Vec::new(),
            group_on_node: Vec::new(),
        }
    }

    /// Computes the load of each GPU. `slot_to_expert` and `shares` are `[num_slots]`, `loads` is `[num_experts]`.
    /// `O(num_slots + num_experts)`.
    pub(super) fn evaluate(&mut self, slot_to_expert: &[u32], shares: Option<&[f64]>, loads: &[f32]) {
        if shares.is_none() {
            self.count_replicas(slot_to_expert);
        }
        for gpu in 0..self.cluster.num_gpus() {
            let mut sum = 0.0;
            if self.cluster.is_alive(gpu) {
                for slot in self.cluster.slots(gpu) {
                    sum += self.load_of_slot(slot, slot_to_expert, shares, loads);
                }
            }
            self.gpu_loads[gpu] = sum;
        }
    }

    /// `[num_gpus]`: what [`Evaluator::evaluate`] found.
    pub(super) fn gpu_loads(&self) -> &[f64] {
        &self.gpu_loads
    }

    /// The heaviest GPU's load, and the sum of all.
    pub(super) fn max_and_sum(&self) -> (f64, f64) {
        max_and_sum(self.cluster, &self.gpu_loads)
    }

    /// As [`away`], of what was last evaluated. `group_of_expert` is `[num_experts]`, not descending.
    pub(super) fn away(
        &mut self,
        group_of_expert: &[u32],
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
        loads: &[f32],
    ) -> f64 {
        self.sort_slots_by_group(group_of_expert, slot_to_expert);
        self.group_on_node.clear();
        self.group_on_node.resize(self.cluster.num_nodes(), 0.0);
        let node_of_slot =
            |slot: u32| self.cluster.node_of_gpu()[self.cluster.gpu_of_slot()[slot as usize] as usize];
        let (mut all, mut away) = (0.0, 0.0);
        for group in self.first_of_group.windows(2) {
            let slots = &self.by_group[group[0] as usize..group[1] as usize];
            let mut of_group = 0.0;
            for &slot in slots {
                let load = self.load_of_slot(slot as usize, slot_to_expert, shares, loads);
                self.group_on_node[node_of_slot(slot) as usize] += load;
                of_group += load;
            }
            let mut at_home = 0.0f64;
            for &slot in slots {
                at_home = at_home.max(self.group_on_node[node_of_slot(slot) as usize]);
            }
            for &slot in slots {
                self.group_on_node[node_of_slot(slot) as usize] = 0.0;
            }
            all += of_group;
            // The two sums have different orders, so that their difference may be a rounding error below 0.
            away += (of_group - at_home).max(0.0);
        }
        if all > 0.0 {
            away / all
        } else {
            0.0
        }
    }

    /// A counting sort of the live slots that hold an expert; slots of a group stay in order.
    fn sort_slots_by_group(&mut self, group_of_expert: &[u32], slot_to_expert: &[u32]) {
        let num_groups = group_of_expert.last().map_or(0, |&group| group as usize + 1);
        let group_of_slot =
            |slot: usize| match self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize) {
                true => group_of_expert.get(slot_to_expert[slot] as usize).map(|&group| group as usize),
                false => None,
            };
        // Shifted by two, so that what is filled in below turns the ends into the beginnings.
        self.first_of_group.clear();
        self.first_of_group.resize(num_groups + 2, 0);
        for group in (0..slot_to_expert.len()).filter_map(group_of_slot) {
            self.first_of_group[group + 2] += 1;
        }
        for group in 2..num_groups + 2 {
            self.first_of_group[group] += self.first_of_group[group - 1];
        }
        self.by_group.clear();
        self.by_group.resize(self.first_of_group[num_groups + 1] as usize, 0);
        for slot in 0..slot_to_expert.len() {
            if let Some(group) = group_of_slot(slot) {
                let next = &mut self.first_of_group[group + 1];
                self.by_group[*next as usize] = slot as u32;
                *next += 1;
            }
        }
        self.first_of_group.truncate(num_groups + 1);
    }

    /// What a slot of a live GPU carries.
    fn load_of_slot(
        &self,
        slot: usize,
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
        loads: &[f32],
    ) -> f64 {
        let expert = slot_to_expert[slot] as usize;
        match (loads.get(expert), shares) {
            (None, _) => 0.0,
            (Some(&load), Some(shares)) => f64::from(load) * shares[slot],
            (Some(&load), None) => f64::from(load) / f64::from(self.replica_counts[expert]),
        }
    }

    fn count_replicas(&mut self, slot_to_expert: &[u32]) {
        self.replica_counts.fill(0);
        for gpu in self.cluster.live_gpus() {
            for &expert in &slot_to_expert[self.cluster.slots(gpu)] {
                if let Some(count) = self.replica_counts.get_mut(expert as usize) {
                    *count += 1;
                }
            }
        }
    }

    /// Whether all of the load arrives somewhere.
    fn check(
        &self,
        layer: usize,
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
        loads: &[f32],
    ) -> Result<()> {
        let num_experts = loads.len();
        let mut arrives = vec![0.0; num_experts];
        for (slot, &expert) in slot_to_expert.iter().enumerate() {
            if expert != EMPTY && expert as usize >= num_experts {
                let argument = format!("slot_to_expert[layer {layer}, slot {slot}]");
                let range = format!("must be 0 to {} or EMPTY", num_experts - 1);
                return Err(Error::argument("gpu_loads", argument, expert, range));
            }
            if expert == EMPTY || !self.cluster.is_alive(self.cluster.gpu_of_slot()[slot] as usize) {
                continue;
            }
            let share = shares.map_or(1.0, |shares| shares[slot]);
            if !(share >= 0.0 && share.is_finite()) {
                let argument = format!("shares[layer {layer}, slot {slot}]");
                return Err(Error::argument("gpu_loads", argument, share, "must be finite and not negative"));
            }
            arrives[expert as usize] += share;
        }
        for (expert, (&load, &arrives)) in loads.iter().zip(&arrives).enumerate() {
            if load > 0.0 && shares.is_none() && arrives == 0.0 {
                let argument = format!("the number of live slots of layer {layer}'s expert {expert}");
                return Err(Error::argument("gpu_loads", argument, 0, "must be at least 1: it has load"));
            }
            if load > 0.0 && shares.is_some() && (arrives - 1.0).abs() > SHARE_TOLERANCE {
                let argument = format!("the sum of the live shares of layer {layer}'s expert {expert}");
                return Err(Error::argument("gpu_loads", argument, arrives, "must be 1"));
            }
        }
        Ok(())
    }
}

/// `max / mean`, at least 1; 1 where there is no load.
pub(super) fn ratio(max: f64, mean: f64) -> f64 {
    if mean > 0.0 {
        (max / mean).max(1.0)
    } else {
        1.0
    }
}

fn max_and_sum(cluster: &Cluster, gpu_loads: &[f64]) -> (f64, f64) {
    let live = cluster.live_gpus().filter_map(|gpu| gpu_loads.get(gpu));
    live.fold((0.0, 0.0), |(max, sum), &load| (load.max(max), sum + load))
}

/// How many layers `loads` has.
pub(super) fn check_loads(what: &str, num_experts: usize, loads: &[f32]) -> Result<usize> {
    in_range(what, "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    let num_layers = in_range(what, "the number of layers", loads.len() / num_experts, 1..=LAYERS_MAX)?;
    check_len(what, "loads", loads.len(), num_layers * num_experts)?;
    match loads.iter().position(|load| !(0.0..=f32::MAX).contains(load)) {
        None => Ok(num_layers),
        Some(i) => Err(Error::argument(
            what,
            format!("loads[layer {}, expert {}]", i / num_experts, i % num_experts),
            format!("{:?}", loads[i]),
            "must be finite and not negative",
        )),
    }
}

/// Whether a slice is as long as it must be.
pub(super) fn check_len(what: &str, argument: &str, len: usize, must_be: usize) -> Result<()> {
    if len == must_be {
        return Ok(());
    }
    Err(Error::argument(what, format!("the length of {argument}"), len, format!("must be {must_be}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_of_live_replicas() {
        // GPU 1 is dead, so that expert 0 has two replicas left of three.
        let cluster = Cluster::new(&[2, 2, 1, 0], &[0, 0, 1, 1], &[true, false, true, true]).unwrap();
        let slots = [0, 1, 0, EMPTY, 0];
        let loads = gpu_loads(&cluster, 2, &slots, None, &[6.0, 4.0]).unwrap();
        assert_eq!(loads, [7.0, 0.0, 3.0, 0.0]);
        assert_eq!(node_loads(&cluster, &loads), [7.0, 3.0]);
        assert_eq!(imbalance(&cluster, &loads), 7.0 / 5.0);
        assert_eq!(imbalance(&cluster, &[0.0; 4]), 1.0);
        // Two layers, by shares.
        let (slots, shares) = ([slots, slots].concat(), [0.5, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let loads = gpu_loads(&cluster, 2, &slots, Some(&shares), &[6.0, 4.0, 8.0, 2.0]).unwrap();
        assert_eq!(loads, [7.0, 0.0, 3.0, 0.0, 2.0, 0.0, 8.0, 0.0]);
        assert_eq!(node_loads(&cluster, &loads), [7.0, 3.0, 2.0, 8.0]);
    }

    #[test]
    fn away_is_what_is_not_on_the_node_with_most_of_its_group() {
        // Groups {0, 1, 2} and {3, 4}; nodes {0, 2} and {1}: not consecutive.
        let cluster = Cluster::new(&[2, 3, 1], &[0, 1, 0], &[]).unwrap();
        let goal = Goal { num_groups: 2, ..Goal::new(1, 5) };
        let loads = [4.0, 2.0, 6.0, 3.0, 1.0];
        // Node 0: 0, 3, 0 (4 + 3); node 1: 1, 2, 4 (8 + 1). Away: 4 of group 0 and 1 of group 1.
        let slots = [0, 3, 1, 2, 4, 0];
        assert_eq!(away(&cluster, &goal, &slots, None, &loads).unwrap(), 5.0 / 16.0);
        // A quarter of expert 3 moves to where the rest of its group is not.
        let slots = [0, 3, 1, 2, 3, 4];
        let shares = [1.0, 0.75, 1.0, 1.0, 0.25, 1.0];
        assert_eq!(away(&cluster, &goal, &slots, Some(&shares), &loads).unwrap(), 4.75 / 16.0);
        assert_eq!(away(&cluster, &goal, &slots, None, &[0.0; 5]).unwrap(), 0.0);
    }

    #[test]
    fn load_that_arrives_nowhere_is_refused() {
        let cluster = Cluster::new(&[2, 1], &[], &[true, false]).unwrap();
        let error = |slots: &[u32], shares: Option<&[f64]>, loads: &[f32]| {
            gpu_loads(&cluster, 2, slots, shares, loads).err().map(|error| error.to_string())
        };
        for (error, want) in [
            (error(&[0, 0, 0], None, &[1.0, 0.0]), None),
            (
                error(&[0, 1, 9], None, &[1.0, 0.0]),
                Some("slot_to_expert[layer 0, slot 2] is 9, must be 0 to 1 or EMPTY"),
            ),
            (
                error(&[0, 0, 1], None, &[1.0, 2.0]),
                Some("the number of live slots of layer 0's expert 1 is 0, must be at least 1: it has load"),
            ),
            (
                error(&[0, 1, 1], Some(&[1.0, 0.5, 0.5]), &[1.0, 2.0]),
                Some("the sum of the live shares of layer 0's expert 1 is 0.5, must be 1"),
            ),
            (
                error(&[0, 1, 1], Some(&[1.0, f64::NAN, 0.0]), &[1.0, 2.0]),
                Some("shares[layer 0, slot 1] is NaN, must be finite and not negative"),
            ),
            (error(&[0, 1], None, &[1.0, 2.0]), Some("the length of slot_to_expert is 2, must be 3")),
            (error(&[0, 1, 1], Some(&[1.0]), &[1.0, 2.0]), Some("the length of shares is 1, must be 3")),
            (error(&[0, 1, 1], None, &[1.0, 2.0, 3.0]), Some("the length of loads is 3, must be 2")),
            (error(&[0, 1, 1], None, &[]), Some("the number of layers is 0, must be 1 to 4096")),
            (
                error(&[0, 1, 1], None, &[1.0, -2.0]),
                Some("loads[layer 0, expert 1] is -2.0, must be finite and not negative"),
            ),
        ] {
            assert_eq!(error, want.map(|want| format!("gpu_loads: {want}")));
        }
    }

    #[test]
    fn gpus_without_slots_are_bounded() {
        let mut slots = vec![0; 1 << 20];
        slots[0] = 1;
        let cluster = Cluster::new(&slots, &[], &[]).unwrap();
        let error = gpu_loads(&cluster, 1, &[0; 65], None, &[1.0; 65]).unwrap_err();
        let want = "gpu_loads: num_layers * num_gpus is 68157440, must be 1 to 67108864";
        assert_eq!(error.to_string(), want);
    }
}
