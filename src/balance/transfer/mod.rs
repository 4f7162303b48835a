//! From one placement to another: which expert is copied from where to where, in rounds that can be run as they are.
//!
//! | file      | what                                                             |
//! | --------- | ---------------------------------------------------------------- |
//! | `needs`   | what slots wait for; which deadlocks need staging, with a proof  |
//! | `stock`   | who holds and who wants an expert, on a GPU and on a node        |
//! | `staging` | staging buffers: on which GPUs, what is in them                  |
//! | `rounds`  | the schedule of one layer                                        |
//! | `bound`   | fewer rounds than this no schedule has                           |
//! | `check`   | replays a plan and proves it right, or says where it is wrong    |

mod bound;
mod check;
mod needs;
mod rounds;
mod staging;
mod stock;

pub use check::check_transfers;

use super::cluster::{Cluster, EMPTY};
use super::goal::{EXPERTS_MAX, LAYERS_MAX, PLAN_SLOTS_MAX};
use crate::error::{in_range, Error, Result};

/// How far an expert is copied; in the order of what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Link {
    /// Within a GPU.
    SameGpu = 0,
    /// Between GPUs of a node.
    SameNode = 1,
    /// Between nodes.
    OtherNode = 2,
}

/// What may happen at once, what an expert consists of, which layers come first.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferOptions<'a> {
    /// Experts that a GPU sends in a round to other GPUs, 1 to 2^20.
    pub sends_per_gpu: usize,
    /// Experts that a GPU receives in a round from other GPUs, 1 to 2^20.
    pub receives_per_gpu: usize,
    /// Experts that go in a round from one node to another, each direction for itself; 0: no limit. At most 2^20.
    pub copies_per_node_link: usize,
    /// Staging buffers, each with room for one expert, that a GPU may use to save rounds, 0 to 1024. With 0 there are
    /// only those without which it cannot be done, at most one on a GPU; 2 bring the rounds near their least number.
    pub staging_per_gpu: usize,
    /// The bytes of each tensor of an expert: weights, scales, optimizer state. A copy moves all of them.
    pub tensor_bytes: &'a [u64],
    /// `[num_layers]`: what each layer gains, the greatest first; finite. Empty: layers in their order.
    pub gains: &'a [f64],
}

impl Default for TransferOptions<'_> {
    fn default() -> Self {
        TransferOptions {
            sends_per_gpu: 1,
            receives_per_gpu: 1,
            copies_per_node_link: 0,
            staging_per_gpu: 0,
            tensor_bytes: &[],
            gains: &[],
        }
    }
}

/// One copy of an expert, with all its tensors. `from` and `to` below `num_slots` are slots; `num_slots + i` is the
/// staging buffer i of that GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ExpertCopy {
    /// The layer.
    pub layer: u32,
    /// The round of its layer, from 0.
    pub round: u32,
    /// What is copied.
    pub expert: u32,
    /// The GPU that sends.
    pub from_gpu: u32,
    /// The slot or buffer that is read.
    pub from: u32,
    /// The GPU that receives.
    pub to_gpu: u32,
    /// The slot or buffer that is written.
    pub to: u32,
    /// How far.
    pub link: Link,
}

/// A slot whose expert no live slot held: it must be loaded from elsewhere, after the last round of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LostExpert {
    /// The layer.
    pub layer: u32,
    /// What is to be loaded.
    pub expert: u32,
    /// Where to.
    pub slot: u32,
}

/// Copies, by how far they go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Within a GPU.
    pub same_gpu: usize,
    /// Between GPUs of a node.
    pub same_node: usize,
    /// Between nodes.
    pub other_node: usize,
}

/// The copies of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerTransfers {
    /// Which layer.
    pub layer: u32,
    /// Where its copies begin in the list of all.
    pub first_copy: usize,
    /// How many they are.
    pub num_copies: usize,
    /// Rounds.
    pub num_rounds: u32,
    /// No plan for this layer has fewer rounds.
    pub least_rounds: u32,
    /// How far they go.
    pub counts: LinkCounts,
}

/// What a copy is to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// It sends.
    Send,
    /// It receives.
    Receive,
    /// Both: a copy within the GPU.
    Local,
}

/// All copies that lead from one placement to another. Immutable and `Sync`.
///
/// All copies of a round may run at once: no slot or buffer is both read and written, or written twice, in one round.
/// Layers do not depend on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferPlan {
    /// Layer after layer in the order of `layers`, in a layer round after round.
    pub copies: Vec<ExpertCopy>,
    /// `[num_layers]`, in the order in which they are to be done.
    pub layers: Vec<LayerTransfers>,
    /// By layer, then slot.
    pub lost: Vec<LostExpert>,
    /// `[num_gpus]`: staging buffers that each GPU needs.
    pub staging: Vec<u32>,
    /// The bytes of an expert.
    pub bytes_per_expert: u64,
}

/// Sends, receives and copies over a link that may be asked for.
const LIMIT_MAX: usize = 1 << 20;
const STAGING_MAX: usize = 1024;

/// The copies that lead from placement `from` to placement `to`, both `[num_layers, num_slots]`, row major.
///
/// `cluster` is as it is now: what `from` has on a dead GPU is not there, and `to` has nothing there. A live slot may
/// be [`EMPTY`] in either; in `to` that says that it does not matter, and it is not written. A slot that holds what it
/// is to hold is not touched. Each GPU, and each node, gets an expert from outside once, and only if it has no replica,
/// except where that would stop everything, or while an expert is in a staging buffer. Without `staging_per_gpu` no
/// GPU has more than one staging buffer, and there is one only if no order of copies does without (proof in
/// docs/moves.md). The rounds are a greedy's; `least_rounds` says how far from the least number they can be at most.
///
/// `O(copies log slots + rounds * GPUs)` a layer; some 70 µs for 288 slots on 32 GPUs of which all change.
///
/// # Errors
///
/// `InvalidArgument`: a size or limit out of its range, placements that are not equally long or not whole layers, an
/// expert that is not less than `num_experts`, one that is to be on a dead GPU, a gain that is not finite, tensors so
/// large that the bytes of all copies might not be countable.
pub fn transfers(
    cluster: &Cluster,
    num_experts: usize,
    from: &[u32],
    to: &[u32],
    options: &TransferOptions<'_>,
) -> Result<TransferPlan> {
    let num_layers = check_placements("transfers", cluster, num_experts, from, to)?;
    let bytes_per_expert = options.check(num_layers, cluster.num_slots())?;
    let mut order: Vec<usize> = (0..num_layers).collect();
    if !options.gains.is_empty() {
        order.sort_by(|&a, &b| options.gains[b].total_cmp(&options.gains[a]));
    }
    let mut rounds = rounds::Rounds::new(cluster, num_experts, options);
    let mut bound = bound::RoundBound::default();
    let mut copies = Vec::new();
    let mut layers = Vec::with_capacity(num_layers);
    let mut lost = Vec::new();
    for layer in order {
        let slots = layer * cluster.num_slots()..(layer + 1) * cluster.num_slots();
        rounds.needs.find(layer as u32, &from[slots.clone()], &to[slots], &mut lost);
        rounds.stock.count(cluster, &rounds.needs);
        let least_rounds = bound.least_rounds(cluster, &rounds.needs, &rounds.stock, options) as u32;
        let first_copy = copies.len();
        let num_rounds = rounds.schedule(layer as u32, &mut copies)?;
        layers.push(LayerTransfers {
            layer: layer as u32,
            first_copy,
            num_copies: copies.len() - first_copy,
            num_rounds,
            least_rounds,
            counts: LinkCounts::of(&copies[first_copy..]),
        });
    }
    lost.sort_unstable_by_key(|lost| (lost.layer, lost.slot));
    Ok(TransferPlan { copies, layers, lost, staging: rounds.buffers.into_needed(), bytes_per_expert })
}

impl TransferPlan {
    /// The copies of the `nth` layer to be done.
    pub fn layer_copies(&self, nth: usize) -> &[ExpertCopy] {
        let layer = &self.layers[nth];
        &self.copies[layer.first_copy..layer.first_copy + layer.num_copies]
    }

    /// The copies of one round of the `nth` layer to be done, none from its last round on. `O(log copies)`.
    pub fn round_copies(&self, nth: usize, round: u32) -> &[ExpertCopy] {
        let copies = self.layer_copies(nth);
        let first = copies.partition_point(|copy| copy.round < round);
        let end = copies.partition_point(|copy| copy.round <= round);
        &copies[first..end]
    }

    /// The copies that are left when so many layers have been done.
    pub fn copies_after(&self, layers_done: usize) -> &[ExpertCopy] {
        let first = self.layers.get(layers_done).map_or(self.copies.len(), |layer| layer.first_copy);
        &self.copies[first..]
    }

    /// What a GPU does, in order: what it sends, receives and copies within itself. `O(copies)`.
    pub fn for_gpu(&self, gpu: usize) -> impl Iterator<Item = (Part, &ExpertCopy)> + '_ {
        self.copies.iter().filter_map(move |copy| {
            match (copy.from_gpu as usize == gpu, copy.to_gpu as usize == gpu) {
                (true, true) => Some((Part::Local, copy)),
                (true, false) => Some((Part::Send, copy)),
                (false, true) => Some((Part::Receive, copy)),
                (false, false) => None,
            }
        })
    }

    /// All copies, by how far they go.
    pub fn counts(&self) -> LinkCounts {
        LinkCounts::of(&self.copies)
    }

    /// The placement when so many layers have been done: those have their part of `to`, others of `from`. What was
    /// lost counts as loaded.
    pub fn placement_after(&self, layers_done: usize, from: &[u32], to: &[u32]) -> Vec<u32> {
        let mut placement = from.to_vec();
        let num_slots = from.len() / self.layers.len();
        for layer in self.layers.iter().take(layers_done) {
            let slots = layer.layer as usize * num_slots..(layer.layer as usize + 1) * num_slots;
            placement[slots.clone()].copy_from_slice(&to[slots]);
        }
        placement
    }
}

impl Link {
    pub(super) fn between(cluster: &Cluster, from_gpu: usize, to_gpu: usize) -> Link {
        let node = cluster.node_of_gpu();
        match from_gpu == to_gpu {
            true => Link::SameGpu,
            false if node[from_gpu] == node[to_gpu] => Link::SameNode,
            false => Link::OtherNode,
        }
    }
}

impl LinkCounts {
    /// Counts copies: of a round, a layer, or any other part of a plan.
    pub fn of(copies: &[ExpertCopy]) -> LinkCounts {
        let mut counts = LinkCounts::default();
        for copy in copies {
            match copy.link {
                Link::SameGpu => counts.same_gpu += 1,
                Link::SameNode => counts.same_node += 1,
                Link::OtherNode => counts.other_node += 1,
            }
        }
        counts
    }

    /// All copies.
    pub fn all(&self) -> usize {
        self.same_gpu + self.same_node + self.other_node
    }

    /// Bytes within GPUs, within nodes and between nodes, of counts that are part of a plan.
    pub fn bytes(&self, plan: &TransferPlan) -> [u64; 3] {
        [self.same_gpu, self.same_node, self.other_node].map(|copies| copies as u64 * plan.bytes_per_expert)
    }
}

impl TransferOptions<'_> {
    /// The bytes of an expert.
    fn check(&self, num_layers: usize, num_slots: usize) -> Result<u64> {
        in_range("transfers", "sends_per_gpu", self.sends_per_gpu, 1..=LIMIT_MAX)?;
        in_range("transfers", "receives_per_gpu", self.receives_per_gpu, 1..=LIMIT_MAX)?;
        in_range("transfers", "copies_per_node_link", self.copies_per_node_link, 0..=LIMIT_MAX)?;
        in_range("transfers", "staging_per_gpu", self.staging_per_gpu, 0..=STAGING_MAX)?;
        if !self.gains.is_empty() && self.gains.len() != num_layers {
            let range = format!("must be num_layers = {num_layers}");
            return Err(Error::argument("transfers", "the number of gains", self.gains.len(), range));
        }
        if let Some(layer) = self.gains.iter().position(|gain| !gain.is_finite()) {
            let argument = format!("gains[{layer}]");
            return Err(Error::argument("transfers", argument, self.gains[layer], "must be finite"));
        }
        // Each slot is written once, perhaps by way of a buffer.
        let most_copies = (2 * num_layers * num_slots).max(1) as u64;
        let bytes = self.tensor_bytes.iter().try_fold(0u64, |sum, &bytes| sum.checked_add(bytes));
        match bytes {
            Some(bytes) if bytes <= u64::MAX / most_copies => Ok(bytes),
            _ => {
                let bytes = bytes.map_or("2^64 or more".to_owned(), |bytes| bytes.to_string());
                let range = format!("must be at most {} for {most_copies} copies", u64::MAX / most_copies);
                Err(Error::argument("transfers", "the sum of tensor_bytes", bytes, range))
            }
        }
    }
}

/// The number of layers of two placements.
pub(super) fn check_placements(
    what: &str,
    cluster: &Cluster,
    num_experts: usize,
    from: &[u32],
    to: &[u32],
) -> Result<usize> {
    in_range(what, "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    let num_slots = cluster.num_slots();
    let num_layers = from.len() / num_slots;
    let most = LAYERS_MAX.min(PLAN_SLOTS_MAX / num_slots);
    if from.is_empty() || from.len() % num_slots != 0 || num_layers > most {
        let range = format!("must be num_layers * {num_slots} slots, for 1 to {most} layers");
        return Err(Error::argument(what, "the length of from", from.len(), range));
    }
    if to.len() != from.len() {
        let range = format!("must be the length of from, {}", from.len());
        return Err(Error::argument(what, "the length of to", to.len(), range));
    }
    for (name, placement) in [("from", from), ("to", to)] {
        for (layer, slots) in placement.chunks_exact(num_slots).enumerate() {
            let is_wrong = |&expert: &u32| expert != EMPTY && expert as usize >= num_experts;
            if let Some(slot) = slots.iter().position(is_wrong) {
                let argument = format!("{name}[layer {layer}, slot {slot}]");
                let range = format!("must be less than num_experts = {num_experts}, or 4294967295 for none");
                return Err(Error::argument(what, argument, slots[slot], range));
            }
        }
    }
    let dead_gpus = (0..cluster.num_gpus()).filter(|&gpu| !cluster.is_alive(gpu));
    for slot in dead_gpus.flat_map(|gpu| cluster.slots(gpu)) {
        for (layer, slots) in to.chunks_exact(num_slots).enumerate() {
            if slots[slot] != EMPTY {
                let argument = format!("to[layer {layer}, slot {slot}]");
                return Err(Error::argument(
                    what,
                    argument,
                    slots[slot],
                    "must be 4294967295: its GPU is dead",
                ));
            }
        }
    }
    Ok(num_layers)
}
