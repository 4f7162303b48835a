//! Routing by trying every split, and by looking at every set of GPUs; placements and steps at random.

#![allow(dead_code)] // not every test uses all of it

use dualpipe::balance::route::{RouteOptions, Router};
use dualpipe::balance::Cluster;
use proptest::prelude::*;

/// A placement of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) cluster: Cluster,
    pub(crate) num_experts: usize,
    pub(crate) slot_to_expert: Vec<u32>,
}

pub(crate) const TOKENS: RouteOptions = RouteOptions { tile: 1, gpu_price: 1, node_price: 8 };

impl Placed {
    /// All GPUs alive, `gpus[g]` the experts of GPU g, `nodes[g]` its node.
    pub(crate) fn new(gpus: &[&[u32]], nodes: &[u32]) -> Placed {
        let slots: Vec<u32> = gpus.iter().map(|gpu| gpu.len() as u32).collect();
        let slot_to_expert = gpus.concat();
        let num_experts = 1 + *slot_to_expert.iter().max().unwrap() as usize;
        Placed { cluster: Cluster::new(&slots, nodes, &[]).unwrap(), num_experts, slot_to_expert }
    }

    pub(crate) fn router(&self) -> Router {
        Router::new(&self.cluster, self.num_experts, &self.slot_to_expert).unwrap()
    }

    pub(crate) fn gpu(&self, slot: usize) -> usize {
        self.cluster.gpu_of_slot()[slot] as usize
    }

    pub(crate) fn node(&self, gpu: usize) -> u32 {
        self.cluster.node_of_gpu()[gpu]
    }

    /// The live slots of an expert.
    pub(crate) fn slots_of(&self, expert: usize) -> Vec<usize> {
        let is_live = |&slot: &usize| self.cluster.is_alive(self.gpu(slot));
        (0..self.slot_to_expert.len())
            .filter(is_live)
            .filter(|&slot| self.slot_to_expert[slot] as usize == expert)
            .collect()
    }

    /// The load of the experts that are on these GPUs only.
    pub(crate) fn captive(&self, gpus: &[u32], loads: &[u64]) -> u64 {
        let is_captive = |expert: &usize| {
            self.slots_of(*expert).iter().all(|&slot| gpus.contains(&(self.gpu(slot) as u32)))
        };
        (0..self.num_experts).filter(is_captive).map(|expert| loads[expert]).sum()
    }

    /// The least heaviest GPU by the theorem: the max over sets of GPUs of captive load / GPUs.
    pub(crate) fn heaviest_by_sets(&self, loads: &[u64]) -> u64 {
        let live: Vec<u32> = self.cluster.live_gpus().map(|gpu| gpu as u32).collect();
        let set = |bits: u32| -> Vec<u32> {
            let is_in = |&(index, _): &(usize, &u32)| bits >> index & 1 == 1;
            live.iter().enumerate().filter(is_in).map(|(_, &gpu)| gpu).collect()
        };
        let sets = (1..1u32 << live.len()).map(set);
        sets.map(|set| self.captive(&set, loads).div_ceil(set.len() as u64)).max().unwrap()
    }

    /// Calls `visit` with the slots' loads of each way to split each expert's load in whole parts.
    pub(crate) fn for_each_split(&self, loads: &[u64], visit: &mut dyn FnMut(&[u64])) {
        self.split_from(0, loads, &mut vec![0; self.slot_to_expert.len()], visit);
    }

    pub(crate) fn split_from(
        &self,
        expert: usize,
        loads: &[u64],
        split: &mut Vec<u64>,
        visit: &mut dyn FnMut(&[u64]),
    ) {
        if expert == loads.len() {
            return visit(split);
        }
        let slots = self.slots_of(expert);
        let Some(&last) = slots.last() else {
            return self.split_from(expert + 1, loads, split, visit);
        };
        // Counts up, the slots but the last being the digits.
        loop {
            let others: u64 = slots[..slots.len() - 1].iter().map(|&slot| split[slot]).sum();
            if others <= loads[expert] {
                split[last] = loads[expert] - others;
                self.split_from(expert + 1, loads, split, visit);
                split[last] = 0;
            }
            let Some(digit) = slots[..slots.len() - 1].iter().position(|&slot| split[slot] < loads[expert])
            else {
                slots.iter().for_each(|&slot| split[slot] = 0);
                return;
            };
            slots[..digit].iter().for_each(|&slot| split[slot] = 0);
            split[slots[digit]] += 1;
        }
    }

    pub(crate) fn gpu_loads(&self, slot_loads: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut loads = vec![0; self.cluster.num_gpus()];
        for (slot, load) in slot_loads.into_iter().enumerate() {
            loads[self.gpu(slot)] += load;
        }
        loads
    }

    /// The least heaviest GPU by trying all; a slot's load counts in tiles.
    pub(crate) fn heaviest_by_trying_all(&self, loads: &[u64], tile: u64) -> u64 {
        let mut best = u64::MAX;
        self.for_each_split(loads, &mut |split| {
            let loads = self.gpu_loads(split.iter().map(|load| load.div_ceil(tile) * tile));
            best = best.min(*loads.iter().max().unwrap());
        });
        best
    }

    /// The least price of those splits that have the least heaviest GPU, `sent[gpu][expert]`.
    pub(crate) fn price_by_trying_all(&self, sent: &[Vec<u32>], options: &RouteOptions) -> u64 {
        let total = |expert: usize| sent.iter().map(|counts| u64::from(counts[expert])).sum();
        let totals: Vec<u64> = (0..self.num_experts).map(total).collect();
        let heaviest = self.heaviest_by_sets(&totals);
        let mut best = u64::MAX;
        self.for_each_split(&totals, &mut |split| {
            if self.gpu_loads(split.iter().copied()).iter().all(|&load| load <= heaviest) {
                let mut kept = [0, 0];
                for expert in 0..self.num_experts {
                    let carried = |is_at: &dyn Fn(usize) -> bool| -> u64 {
                        let slots = self.slots_of(expert).into_iter().filter(|&slot| is_at(self.gpu(slot)));
                        slots.map(|slot| split[slot]).sum()
                    };
                    let sent_from = |is_at: &dyn Fn(usize) -> bool| -> u64 {
                        let gpus = (0..sent.len()).filter(|&gpu| is_at(gpu));
                        gpus.map(|gpu| u64::from(sent[gpu][expert])).sum()
                    };
                    for gpu in 0..sent.len() {
                        kept[0] += carried(&|g| g == gpu).min(sent_from(&|g| g == gpu));
                    }
                    for node in 0..self.cluster.num_nodes() as u32 {
                        let is_at = |gpu: usize| self.node(gpu) == node;
                        kept[1] += carried(&is_at).min(sent_from(&is_at));
                    }
                }
                best = best.min(price(totals.iter().sum(), kept, options));
            }
        });
        best
    }
}

/// Of `total` tokens, `kept` of which stay on their GPU and on their node.
pub(crate) fn price(total: u64, kept: [u64; 2], options: &RouteOptions) -> u64 {
    u64::from(options.gpu_price) * (total - kept[0]) + u64::from(options.node_price) * (total - kept[1])
}

/// Up to `gpus` GPUs on up to 3 nodes, some dead, some without slots, experts at random, no expert without a GPU.
pub(crate) fn placements(gpus: usize, slots_each: u32, experts: u32) -> impl Strategy<Value = Placed> {
    (1..=gpus, 1..=experts)
        .prop_flat_map(move |(num_gpus, num_experts)| {
            let slots = prop::collection::vec(0..=slots_each, num_gpus);
            let nodes = prop::collection::vec(0..3.min(num_gpus as u32), num_gpus);
            let alive = prop::collection::vec(prop::bool::weighted(0.8), num_gpus);
            let held = prop::collection::vec(0..num_experts, num_gpus * slots_each as usize);
            (slots, nodes, alive, held, Just(num_experts))
        })
        .prop_map(|(slots, nodes, alive, held, num_experts)| {
            let cluster = Cluster::new(&slots, &nodes, &alive).ok()?;
            let slot_to_expert: Vec<u32> = (0..cluster.num_slots()).map(|slot| held[slot]).collect();
            Some(Placed { cluster, num_experts: num_experts as usize, slot_to_expert })
        })
        .prop_filter_map("no live slot", |placed| placed)
}

/// A placement, and what each GPU sends to each expert that has a GPU: mostly little.
pub(crate) fn steps(
    gpus: usize,
    slots_each: u32,
    experts: u32,
    most: u32,
) -> impl Strategy<Value = (Placed, Vec<Vec<u32>>)> {
    placements(gpus, slots_each, experts).prop_flat_map(move |placed| {
        let count = prop_oneof![3 => Just(0), 5 => 0..=most];
        let of_gpu = prop::collection::vec(count, placed.num_experts);
        let sent = prop::collection::vec(of_gpu, placed.cluster.num_gpus());
        (Just(placed), sent).prop_map(|(placed, mut sent)| {
            for expert in (0..placed.num_experts).filter(|&expert| placed.slots_of(expert).is_empty()) {
                sent.iter_mut().for_each(|counts| counts[expert] = 0);
            }
            (placed, sent)
        })
    })
}

pub(crate) fn totals(sent: &[Vec<u32>]) -> Vec<u32> {
    let total = |expert: usize| sent.iter().map(|counts| counts[expert]).sum();
    (0..sent[0].len()).map(total).collect()
}
