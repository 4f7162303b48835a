//! What experts are placed on: GPUs with their slots, on nodes; some of them perhaps dead.

use std::ops::Range;

use crate::error::{in_range, Error, Result};

/// What a slot holds that holds no expert: each slot of a dead GPU.
pub const EMPTY: u32 = u32::MAX;

/// GPUs, their slots for the experts of one layer, and their nodes.
///
/// Slots are numbered GPU by GPU, those of dead GPUs too, so that a number means the same slot before and after a
/// failure. A slot of a dead GPU holds nothing ([`EMPTY`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// `[num_gpus + 1]`: GPU g has the slots `first_slot[g] .. first_slot[g + 1]`.
    first_slot: Vec<u32>,
    /// `[num_slots]`
    gpu_of_slot: Vec<u32>,
    /// `[num_gpus]`
    node_of_gpu: Vec<u32>,
    /// `[num_gpus]`
    is_alive: Vec<bool>,
    num_nodes: usize,
    num_live_gpus: usize,
    num_live_slots: usize,
}

pub(super) const SLOTS_MAX: usize = 1 << 20;

impl Cluster {
    /// GPUs as alike as can be: where the slots do not divide, the first GPUs have one more, and so with the GPUs of
    /// nodes. All are alive.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: `num_slots` outside `num_gpus` to 2^20, `num_gpus` outside 1 to 2^20, `num_nodes` outside 1
    /// to `num_gpus`.
    pub fn even(num_slots: usize, num_gpus: usize, num_nodes: usize) -> Result<Cluster> {
        in_range("balance", "num_gpus", num_gpus, 1..=SLOTS_MAX)?;
        in_range("balance", "num_slots", num_slots, num_gpus..=SLOTS_MAX)?;
        in_range("balance", "num_nodes", num_nodes, 1..=num_gpus)?;
        let slots_per_gpu: Vec<u32> = parts(num_slots, num_gpus).map(|part| part.len() as u32).collect();
        let nodes = parts(num_gpus, num_nodes).enumerate();
        let node_of_gpu: Vec<u32> = nodes.flat_map(|(node, gpus)| gpus.map(move |_| node as u32)).collect();
        Cluster::new(&slots_per_gpu, &node_of_gpu, &[])
    }

    /// GPU g has `slots_per_gpu[g]` slots, which may be 0, and is on node `node_of_gpu[g]`; it is alive if
    /// `is_alive[g]`. An empty `node_of_gpu` is one node, an empty `is_alive` says that all are alive.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: no GPU or more than 2^20, no live GPU with a slot, more than 2^20 slots, a node that is not
    /// less than the number of GPUs, lists that are not equally long.
    pub fn new(slots_per_gpu: &[u32], node_of_gpu: &[u32], is_alive: &[bool]) -> Result<Cluster> {
        let num_gpus = in_range("balance", "num_gpus", slots_per_gpu.len(), 1..=SLOTS_MAX)?;
        for (argument, len) in [("node_of_gpu", node_of_gpu.len()), ("is_alive", is_alive.len())] {
            if len != 0 && len != num_gpus {
                let argument = format!("the length of {argument}");
                return Err(Error::argument(
                    "balance",
                    argument,
                    len,
                    format!("must be num_gpus = {num_gpus}"),
                ));
            }
        }
        let mut num_slots = 0usize;
        for &slots in slots_per_gpu {
            num_slots += slots as usize; // at most 2^52
        }
        if num_slots > SLOTS_MAX {
            let range = format!("must be at most {SLOTS_MAX}");
            return Err(Error::argument("balance", "the sum of slots_per_gpu", num_slots, range));
        }
        for (gpu, &node) in node_of_gpu.iter().enumerate() {
            in_range("balance", &format!("node_of_gpu[{gpu}]"), node as usize, 0..=num_gpus - 1)?;
        }
        let mut cluster = Cluster {
            first_slot: vec![0; num_gpus + 1],
            gpu_of_slot: Vec::with_capacity(num_slots),
            node_of_gpu: node_of_gpu.to_vec(),
            is_alive: is_alive.to_vec(),
            num_nodes: node_of_gpu.iter().map(|&node| node as usize + 1).max().unwrap_or(1),
            num_live_gpus: 0,
            num_live_slots: 0,
        };
        cluster.node_of_gpu.resize(num_gpus, 0);
        cluster.is_alive.resize(num_gpus, true);
        for (gpu, &slots) in slots_per_gpu.iter().enumerate() {
            cluster.gpu_of_slot.resize(cluster.gpu_of_slot.len() + slots as usize, gpu as u32);
            cluster.first_slot[gpu + 1] = cluster.gpu_of_slot.len() as u32;
            if cluster.is_alive[gpu] && slots > 0 {
                cluster.num_live_gpus += 1;
                cluster.num_live_slots += slots as usize;
            }
        }
        if cluster.num_live_slots == 0 {
            let range = "must be at least 1: no live GPU has a slot";
            return Err(Error::argument("balance", "the number of live slots", 0, range));
        }
        Ok(cluster)
    }

    /// GPUs, dead ones too.
    pub fn num_gpus(&self) -> usize {
        self.node_of_gpu.len()
    }

    /// GPUs that are alive and have slots; the mean load is of these.
    pub fn num_live_gpus(&self) -> usize {
        self.num_live_gpus
    }

    /// Nodes, those of dead GPUs too.
    pub fn num_nodes(&self) -> usize {
        self.num_nodes
    }

    /// Slots, those of dead GPUs too.
    pub fn num_slots(&self) -> usize {
        self.gpu_of_slot.len()
    }

    /// Slots of live GPUs.
    pub fn num_live_slots(&self) -> usize {
        self.num_live_slots
    }

    /// The slots of a GPU.
    pub fn slots(&self, gpu: usize) -> Range<usize> {
        self.first_slot[gpu] as usize..self.first_slot[gpu + 1] as usize
    }

    /// `[num_slots]`: the GPU of each slot.
    pub fn gpu_of_slot(&self) -> &[u32] {
        &self.gpu_of_slot
    }

    /// `[num_gpus]`: the node of each GPU.
    pub fn node_of_gpu(&self) -> &[u32] {
        &self.node_of_gpu
    }

    /// Whether a GPU is alive, with or without slots.
    pub fn is_alive(&self, gpu: usize) -> bool {
        self.is_alive[gpu]
    }

    /// The GPUs that are alive and have slots, in order.
    pub fn live_gpus(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.num_gpus()).filter(|&gpu| self.is_alive[gpu] && !self.slots(gpu).is_empty())
    }
}

/// `0 .. num_items` in `num_parts` consecutive parts, the first of which have one item more if they do not divide.
pub(super) fn parts(num_items: usize, num_parts: usize) -> impl Iterator<Item = Range<usize>> {
    let (least, more) = (num_items / num_parts, num_items % num_parts);
    let first = move |part: usize| part * least + part.min(more);
    (0..num_parts).map(move |part| first(part)..first(part + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_divide_goes_to_the_first() {
        let cluster = Cluster::even(10, 4, 3).unwrap();
        assert_eq!(cluster.gpu_of_slot(), [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]);
        assert_eq!(cluster.node_of_gpu(), [0, 0, 1, 2]);
        assert_eq!(cluster.slots(2), 6..8);
        assert_eq!((cluster.num_gpus(), cluster.num_nodes(), cluster.num_live_slots()), (4, 3, 10));
    }

    #[test]
    fn a_dead_gpu_keeps_its_slot_numbers() {
        let cluster = Cluster::new(&[2, 1, 0, 3], &[0, 0, 1, 1], &[true, false, true, true]).unwrap();
        assert_eq!(cluster.num_slots(), 6);
        assert_eq!((cluster.num_live_slots(), cluster.num_live_gpus()), (5, 2));
        assert_eq!(cluster.slots(3), 3..6);
        assert_eq!(cluster.live_gpus().collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |slots: &[u32], nodes: &[u32], alive: &[bool]| {
            Cluster::new(slots, nodes, alive).unwrap_err().to_string()
        };
        for (error, want) in [
            (error(&[], &[], &[]), "num_gpus is 0, must be 1 to 1048576"),
            (
                error(&[0, 0], &[], &[]),
                "the number of live slots is 0, must be at least 1: no live GPU has a slot",
            ),
            (error(&[1, 1], &[0], &[]), "the length of node_of_gpu is 1, must be num_gpus = 2"),
            (error(&[1, 1], &[], &[true]), "the length of is_alive is 1, must be num_gpus = 2"),
            (error(&[1, 1], &[0, 2], &[]), "node_of_gpu[1] is 2, must be 0 to 1"),
            (
                error(&[u32::MAX, 1], &[], &[]),
                "the sum of slots_per_gpu is 4294967296, must be at most 1048576",
            ),
        ] {
            assert_eq!(error, format!("balance: {want}"));
        }
    }
}
