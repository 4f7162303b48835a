//! The first placement: replicas to the experts that need them most, then heaviest first onto the lightest GPU.
//!
//! Sources: `replicate_experts` and `balanced_packing` of deepseek-ai/EPLB, here in float64 and for GPUs of unequal
//! size. The greedy for the counts makes the heaviest replica as light as it can be. The replicas of an expert are
//! placed one after the other, each on another GPU; where free slots are left on too few GPUs, some end up together.
//!
//! `O((experts + slots) log (experts + slots))`.

use std::cmp::Reverse;
use std::collections::binary_heap::{BinaryHeap, PeekMut};

use super::part::Part;

/// The room to spread in.
#[derive(Default)]
pub(super) struct Spreader {
    /// (the bits of a share, expert): the heaviest first, then the lowest number.
    heaviest: BinaryHeap<(u64, Reverse<u32>)>,
    /// The same, sorted.
    experts: Vec<(Reverse<u64>, u32)>,
    /// (the bits of a load, GPU): the lightest first, then the lowest number.
    lightest: BinaryHeap<Reverse<(u64, u32)>>,
    /// GPUs that have just got a replica of the expert at hand.
    taken: Vec<Reverse<(u64, u32)>>,
    /// `[GPUs]`: the next free slot of each.
    free: Vec<u32>,
}

impl Spreader {
    /// How many replicas each expert gets: every spare slot goes to the heaviest replica, as long as its expert is
    /// not on all GPUs.
    pub(super) fn replicate(&mut self, part: &mut Part) {
        let num_experts = part.loads.len();
        part.counts.clear();
        part.counts.resize(num_experts, part.count_min);
        let key = |part: &Part, expert: usize| {
            (part.share_of(expert, part.counts[expert]).to_bits(), Reverse(expert as u32))
        };
        let mut heaviest = std::mem::take(&mut self.heaviest).into_vec();
        heaviest.clear();
        heaviest.extend((0..num_experts).map(|expert| key(part, expert)));
        self.heaviest = BinaryHeap::from(heaviest);
        let mut spare = part.num_slots() - num_experts * part.count_min as usize;
        while spare > 0 {
            let Some(mut first) = self.heaviest.peek_mut() else { return };
            let expert = first.1 .0 as usize;
            if part.counts[expert] as usize >= part.num_gpus() {
                PeekMut::pop(first);
            } else {
                part.counts[expert] += 1;
                *first = key(part, expert);
                spare -= 1;
            }
        }
    }

    /// A placement by the counts.
    pub(super) fn pack(&mut self, part: &mut Part) {
        self.experts.clear();
        for (expert, &count) in part.counts.iter().enumerate() {
            self.experts.push((Reverse(part.share_of(expert, count).to_bits()), expert as u32));
        }
        self.experts.sort_unstable();
        let mut lightest = std::mem::take(&mut self.lightest).into_vec();
        lightest.clear();
        lightest.extend((0..part.num_gpus() as u32).map(|gpu| Reverse((0.0f64.to_bits(), gpu))));
        self.lightest = BinaryHeap::from(lightest);
        self.free.clear();
        self.free.extend((0..part.num_gpus()).map(|gpu| part.slots(gpu).start as u32));
        part.held.clear();
        part.held.resize(part.num_slots(), 0);
        for &(Reverse(share), expert) in &self.experts {
            for _ in 0..part.counts[expert as usize] {
                if self.lightest.is_empty() {
                    self.lightest.extend(self.taken.drain(..));
                }
                let Some(Reverse((load, gpu))) = self.lightest.pop() else { break };
                let slot = self.free[gpu as usize];
                part.held[slot as usize] = expert;
                self.free[gpu as usize] += 1;
                if ((slot + 1) as usize) < part.slots(gpu as usize).end {
                    let load = f64::from_bits(load) + f64::from_bits(share);
                    self.taken.push(Reverse((load.to_bits(), gpu)));
                }
            }
            self.lightest.extend(self.taken.drain(..));
        }
        part.weigh();
    }
}
