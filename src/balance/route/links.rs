//! Which GPUs an expert is on: the live slots of a placement, sorted by expert.
//!
//! A link is an expert on a GPU, whatever the number of its slots there. `O(experts + slots)`.

use std::ops::Range;

use super::super::cluster::{Cluster, EMPTY};

/// The links of a placement, expert by expert, those of an expert by node and then by GPU.
pub(in super::super) struct Links {
    /// The slots of live GPUs, by node and then in order.
    live_slots: Vec<u32>,
    /// `[num_experts + 1]`: expert e has the links `first_link[e] .. first_link[e + 1]`.
    first_link: Vec<u32>,
    /// `[links]`: the GPU of each.
    gpu: Vec<u32>,
    /// `[links + 1]`: link l has `slots[first_slot[l] .. first_slot[l + 1]]`.
    first_slot: Vec<u32>,
    slots: Vec<u32>,
    /// `[num_experts + 1]`: where an expert's slots begin in `slots`; while sorting, where its next one goes.
    expert_slots: Vec<u32>,
}

impl Links {
    /// Room for the links of any placement on `cluster`.
    pub(in super::super) fn new(cluster: &Cluster, num_experts: usize) -> Links {
        let slots = cluster.live_gpus().flat_map(|gpu| cluster.slots(gpu));
        let mut live_slots: Vec<u32> = slots.map(|slot| slot as u32).collect();
        let node = |slot: u32| cluster.node_of_gpu()[cluster.gpu_of_slot()[slot as usize] as usize];
        live_slots.sort_by_key(|&slot| node(slot));
        let room = live_slots.len();
        Links {
            live_slots,
            first_link: Vec::with_capacity(num_experts + 1),
            gpu: Vec::with_capacity(room),
            first_slot: Vec::with_capacity(room + 1),
            slots: Vec::with_capacity(room),
            expert_slots: Vec::with_capacity(num_experts + 1),
        }
    }

    /// Takes in a placement, whose experts are less than `num_experts` or [`EMPTY`].
    pub(in super::super) fn read(&mut self, cluster: &Cluster, num_experts: usize, slot_to_expert: &[u32]) {
        let held = |slot: u32| Some(slot_to_expert[slot as usize]).filter(|&expert| expert != EMPTY);
        self.expert_slots.clear();
        self.expert_slots.resize(num_experts + 1, 0);
        for expert in self.live_slots.iter().filter_map(|&slot| held(slot)) {
            self.expert_slots[expert as usize + 1] += 1;
        }
        for expert in 0..num_experts {
            self.expert_slots[expert + 1] += self.expert_slots[expert];
        }
        self.slots.clear();
        self.slots.resize(self.expert_slots[num_experts] as usize, 0);
        for &slot in &self.live_slots {
            if let Some(expert) = held(slot) {
                let place = &mut self.expert_slots[expert as usize];
                self.slots[*place as usize] = slot;
                *place += 1;
            }
        }
        // Each place has moved on to where the next expert's slots begin.
        self.first_link.clear();
        self.first_link.push(0);
        self.gpu.clear();
        self.first_slot.clear();
        let mut begin = 0;
        for &end in &self.expert_slots[..num_experts] {
            let mut gpu_before = EMPTY;
            for place in begin..end {
                let gpu = cluster.gpu_of_slot()[self.slots[place as usize] as usize];
                if gpu != gpu_before {
                    self.gpu.push(gpu);
                    self.first_slot.push(place);
                    gpu_before = gpu;
                }
            }
            begin = end;
            self.first_link.push(self.gpu.len() as u32);
        }
        self.first_slot.push(begin);
    }

    pub(in super::super) fn num_experts(&self) -> usize {
        self.first_link.len() - 1
    }

    pub(in super::super) fn len(&self) -> usize {
        self.gpu.len()
    }

    /// The links of an expert.
    pub(in super::super) fn of(&self, expert: usize) -> Range<usize> {
        self.first_link[expert] as usize..self.first_link[expert + 1] as usize
    }

    pub(in super::super) fn gpu(&self, link: usize) -> usize {
        self.gpu[link] as usize
    }

    /// The slots of a link, in order.
    pub(in super::super) fn slots(&self, link: usize) -> &[u32] {
        &self.slots[self.first_slot[link] as usize..self.first_slot[link + 1] as usize]
    }

    /// The slots of an expert, in the order of its links.
    pub(in super::super) fn slots_of(&self, expert: usize) -> &[u32] {
        &self.slots[self.places_of(expert)]
    }

    /// Where an expert's slots are among those of all.
    pub(in super::super) fn places_of(&self, expert: usize) -> Range<usize> {
        let links = self.of(expert);
        self.first_slot[links.start] as usize..self.first_slot[links.end] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_sorted_by_expert_node_and_gpu_and_hold_no_dead_slot() {
        let cluster = Cluster::new(&[3, 2, 2, 1], &[1, 0, 1, 0], &[true, true, false, true]).unwrap();
        let mut links = Links::new(&cluster, 4);
        // GPU 0: 1 1 2, GPU 1: 2 EMPTY, GPU 2, dead: 0 1, GPU 3: 1.
        links.read(&cluster, 4, &[1, 1, 2, 2, EMPTY, 0, 1, 1]);
        let of = |expert: usize| -> Vec<(usize, &[u32])> {
            links.of(expert).map(|link| (links.gpu(link), links.slots(link))).collect()
        };
        assert_eq!(of(0), []);
        assert_eq!(of(1), [(3, &[7][..]), (0, &[0, 1][..])]);
        assert_eq!(of(2), [(1, &[3][..]), (0, &[2][..])]);
        assert_eq!(of(3), []);
        assert_eq!(links.slots_of(1), [7, 0, 1]);
        assert_eq!((links.len(), links.num_experts()), (4, 4));
    }
}
