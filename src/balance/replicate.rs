//! Who gets the redundant slots: each in turn goes to the expert whose replicas carry most.
//!
//! Source: `replicate_experts` of deepseek-ai/EPLB. For the heaviest replica this greedy is optimal: no other
//! counts make it lighter.
//!
//! `O(E + (R - E) log E)` for E experts and R slots.

use super::tournament::{greatest_first, greatest_value, index, Tournament};

/// The replicas of some experts, and the room to find them in.
pub(super) struct Replicas {
    /// `[R]`: the expert of each. The first E are the experts themselves, then the redundant ones as given out.
    pub(super) expert: Vec<u32>,
    /// `[R]`: which replica of its expert each is, from 0.
    pub(super) rank: Vec<u32>,
    /// `[E]`: how many each expert has.
    pub(super) count: Vec<u32>,
    /// `[E]`: the load of one replica, the expert's load divided by its count in float32.
    pub(super) share: Vec<f32>,
    heaviest: Tournament,
}

impl Replicas {
    /// Room for `num_experts` with `num_slots` without allocating later.
    pub(super) fn with_capacity(num_experts: usize, num_slots: usize) -> Replicas {
        Replicas {
            expert: Vec::with_capacity(num_slots),
            rank: Vec::with_capacity(num_slots),
            count: Vec::with_capacity(num_experts),
            share: Vec::with_capacity(num_experts),
            heaviest: Tournament::with_capacity(num_experts),
        }
    }

    /// Fills `num_slots >= loads.len()` slots. Among equally loaded experts the one of the lowest index goes first.
    pub(super) fn replicate(&mut self, loads: &[f32], num_slots: usize) {
        let num_experts = loads.len();
        self.expert.clear();
        self.expert.extend(0..num_experts as u32);
        self.rank.clear();
        self.rank.resize(num_experts, 0);
        self.count.clear();
        self.count.resize(num_experts, 1);
        self.share.clear();
        self.share.extend_from_slice(loads);
        if num_slots == num_experts {
            return;
        }
        let keys = loads.iter().enumerate();
        let mut heaviest = self.heaviest.start(keys.map(|(e, &load)| greatest_first(load, e)));
        for _ in num_experts..num_slots {
            let expert = index(heaviest);
            let count = &mut self.count[expert];
            self.expert.push(expert as u32);
            self.rank.push(*count);
            *count += 1;
            let share = loads[expert] / *count as f32;
            heaviest = self.heaviest.replace(expert, greatest_first(share, expert));
        }
        for (share, &key) in self.share.iter_mut().zip(self.heaviest.keys()) {
            *share = greatest_value(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redundant_slots_go_to_the_heaviest_replica_and_on_ties_to_the_lowest_index() {
        let mut replicas = Replicas::with_capacity(0, 0);
        replicas.replicate(&[2.0, 4.0, 1.0, 4.0], 8);
        // 4 4 → 2 2 2: experts 1, 3, then 0, then 1.
        assert_eq!(replicas.expert, [0, 1, 2, 3, 1, 3, 0, 1]);
        assert_eq!(replicas.rank, [0, 0, 0, 0, 1, 1, 1, 2]);
        assert_eq!(replicas.count, [2, 3, 1, 2]);
        assert_eq!(replicas.share, [1.0, 4.0 / 3.0, 1.0, 2.0]);
    }
}
