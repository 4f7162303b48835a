//! From one placement of experts to the next: which expert is copied from where to where, in rounds.
//!
//! All copies of a round may run at once: no slot is read and written in the same round, none is overwritten while
//! it is an expert's only source, and no GPU or link does more than the options say. Layers do not depend on each
//! other. A GPU that does its own copies round by round, in their order, needs no barrier: what it sends was there
//! before, and what it overwrites it has sent.
//!
//! ```c
//! // What one rank does: it starts the sends and receives of a round together, and waits for them before the next.
//! // Room num_slots + i of a GPU is its staging buffer i.
//! #include <dualpipe.h>
//!
//! static dualpipe_status move_experts(dualpipe_expert_transfers_t transfers, uint32_t rank,
//!                                     dualpipe_expert_copy *copies, size_t capacity,
//!                                     void (*send)(uint32_t layer, uint32_t room, uint32_t to_gpu),
//!                                     void (*receive)(uint32_t layer, uint32_t room, uint32_t from_gpu),
//!                                     void (*copy_within)(uint32_t layer, uint32_t from, uint32_t to),
//!                                     void (*wait)(void)) {
//!   size_t count = 0, i;
//!   dualpipe_status status = dualpipe_expert_transfers_for_gpu(transfers, rank, copies, capacity, &count);
//!   if (status != DUALPIPE_OK) return status;
//!   for (i = 0; i < count; i++) {
//!     const dualpipe_expert_copy *c = &copies[i];
//!     if (c->link == DUALPIPE_LINK_SAME_GPU) copy_within(c->layer, c->from, c->to);
//!     else if (c->from_gpu == rank) send(c->layer, c->from, c->to_gpu);
//!     else receive(c->layer, c->to, c->from_gpu);
//!     if (i + 1 == count || c[1].round != c->round || c[1].layer != c->layer) wait();
//!   }
//!   return DUALPIPE_OK;
//! }
//! ```

use super::args::{self, Buffer, Out};
use super::cluster::{dualpipe_cluster, read_cluster, read_slots, to_c};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::options::{self, Growing, OutStruct};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::transfer::{
    check_transfers, transfers as plan_transfers, ExpertCopy, LayerTransfers, Link, LinkCounts,
    TransferOptions, TransferPlan,
};
use crate::balance::Cluster;

use dualpipe_expert_link::*;

/// What a dualpipe_expert_transfers_t points to: nothing that C could look into.
pub struct dualpipe_expert_transfers(());

/// The copies that lead from one placement to another. They never change: any number of threads may use them at
/// once. They stay usable after a fork. Free them with dualpipe_expert_transfers_free.
pub type dualpipe_expert_transfers_t = *mut dualpipe_expert_transfers;

/// How far an expert is copied.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_expert_link {
    /// Within a GPU.
    DUALPIPE_LINK_SAME_GPU = 0,
    /// Between GPUs of a node.
    DUALPIPE_LINK_SAME_NODE = 1,
    /// Between nodes.
    DUALPIPE_LINK_OTHER_NODE = 2,
}

/// What may happen at once, what an expert consists of, which layers come first. Start from
/// DUALPIPE_EXPERT_TRANSFER_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_expert_transfer_options {
    /// sizeof(dualpipe_expert_transfer_options).
    pub size: u32,
    /// Experts that a GPU sends in a round to other GPUs, at most 2^20. 0 stands for 1.
    pub sends_per_gpu: u32,
    /// Experts that a GPU receives in a round from other GPUs, at most 2^20. 0 stands for 1.
    pub receives_per_gpu: u32,
    /// Experts that go in a round from one node to another, each direction for itself, at most 2^20. 0: no limit.
    pub copies_per_node_link: u32,
    /// Staging buffers, each with room for one expert, that a GPU may use to save rounds, at most 1024. With 0
    /// there are only those without which it cannot be done, at most one on a GPU; 2 bring the rounds near their
    /// least number.
    pub staging_per_gpu: u32,
    /// Tensors of an expert: weights, scales, optimizer state. A copy moves all of them.
    pub num_tensors: u32,
    /// num_layers, or 0: layers are done in their order.
    pub num_gains: u32,
    /// Must be 0.
    pub reserved: u32,
    /// num_tensors numbers: the bytes of each.
    pub tensor_bytes: *const u64,
    /// num_gains finite numbers: what each layer gains; the greatest is done first.
    pub gains: *const f64,
}

// SAFETY: repr(C), eight u32 and two pointers.
unsafe impl Growing for dualpipe_expert_transfer_options {
    const SIZE_V1: usize = 48;
}

/// Transfers as a whole. Start from DUALPIPE_EXPERT_TRANSFERS_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_expert_transfers_info {
    /// sizeof(dualpipe_expert_transfers_info).
    pub size: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// GPUs.
    pub num_gpus: u32,
    /// Slots of a layer: rooms from this number on are staging buffers.
    pub num_slots: u32,
    /// Rounds of all layers, one after the other.
    pub num_rounds: u64,
    /// No plan for these layers has fewer.
    pub least_rounds: u64,
    /// Copies.
    pub num_copies: u64,
    /// Experts that must be loaded from elsewhere: dualpipe_expert_transfers_lost has them.
    pub num_lost: u64,
    /// Staging buffers of all GPUs together.
    pub num_staging: u64,
    /// The bytes of an expert.
    pub bytes_per_expert: u64,
    /// The bytes copied within GPUs.
    pub same_gpu_bytes: u64,
    /// The bytes that go between GPUs of a node.
    pub same_node_bytes: u64,
    /// The bytes that go between nodes.
    pub other_node_bytes: u64,
}

// SAFETY: repr(C), four u32 and nine u64.
unsafe impl Growing for dualpipe_expert_transfers_info {
    const SIZE_V1: usize = 88;
}

/// The copies of one layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_expert_layer_transfers {
    /// Which layer.
    pub layer: u32,
    /// Its rounds.
    pub num_rounds: u32,
    /// No plan for this layer has fewer rounds.
    pub least_rounds: u32,
    /// Its copies: the sum of the next three.
    pub num_copies: u32,
    /// Copies within a GPU.
    pub same_gpu: u32,
    /// Copies between GPUs of a node.
    pub same_node: u32,
    /// Copies between nodes.
    pub other_node: u32,
    /// Its experts that must be loaded from elsewhere.
    pub num_lost: u32,
    /// Where its copies begin among all.
    pub first_copy: u64,
}

/// One copy of an expert, with all its tensors. from and to are rooms: below num_slots a slot, num_slots + i the
/// staging buffer i of that GPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_expert_copy {
    /// The layer.
    pub layer: u32,
    /// The round of its layer, from 0.
    pub round: u32,
    /// What is copied.
    pub expert: u32,
    /// The GPU that sends.
    pub from_gpu: u32,
    /// The room that is read.
    pub from: u32,
    /// The GPU that receives.
    pub to_gpu: u32,
    /// The room that is written.
    pub to: u32,
    /// A dualpipe_expert_link: how far.
    pub link: u32,
}

/// A slot whose expert no live slot held: it must be loaded from elsewhere, after the last round of its layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dualpipe_lost_expert {
    /// The layer.
    pub layer: u32,
    /// What is to be loaded.
    pub expert: u32,
    /// Where to.
    pub slot: u32,
}

/// The copies that lead from placement `from` to placement `to`: num_layers rows of the cluster's slots each, the
/// expert in each slot or -1, num_slots numbers in all.
///
/// cluster is as it is now: what `from` has on a dead GPU is not there, and `to` must have -1 there. In a live slot of
/// `to` -1 says that it does not matter: it is not written. A slot that holds what it is to hold is not touched. The
/// staging buffers are the fewest with which it can be done, or more if options->staging_per_gpu allows it. Each GPU
/// and each node gets an expert from outside once, and only if it has no replica, except where that would stop
/// everything. Time: about proportional to the slots.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_create(
    cluster: *const dualpipe_cluster,
    num_experts: u32,
    from: *const i64,
    to: *const i64,
    num_slots: usize,
    options: *const dualpipe_expert_transfer_options,
    transfers: *mut dualpipe_expert_transfers_t,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_create", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        let of_layer = cluster.num_slots();
        if num_slots == 0 || num_slots % of_layer != 0 {
            let how = format!("is {num_slots}, must be a multiple of the cluster's {of_layer}");
            return Err(Failure::argument("num_slots", how));
        }
        // SAFETY: the caller's.
        let from = unsafe { read_slots("from", from, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let to = unsafe { read_slots("to", to, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let limits = unsafe { Limits::read("options", options) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("transfers", transfers) }?;
        let num_experts = num_experts as usize;
        let plan = plan_transfers(&cluster, num_experts, &from, &to, &limits.options())?;
        out.write(handle::insert(TransfersObject { plan, cluster, num_experts, from, to, limits })?);
        Ok(())
    })
}

/// Frees transfers. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_free(
    transfers: dualpipe_expert_transfers_t,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_free", || handle::free::<TransfersObject>("transfers", transfers))
}

/// Transfers as a whole: rounds, copies, bytes by how far they go, staging buffers, what is lost.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_describe(
    transfers: dualpipe_expert_transfers_t,
    info: *mut dualpipe_expert_transfers_info,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_describe", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let TransfersObject { plan, cluster, .. } = &*object;
        let sum = |of: fn(&LayerTransfers) -> u32| plan.layers.iter().map(|layer| u64::from(of(layer))).sum();
        let [same_gpu_bytes, same_node_bytes, other_node_bytes] = plan.counts().bytes(plan);
        out.write(dualpipe_expert_transfers_info {
            size: 0,
            num_layers: plan.layers.len() as u32,
            num_gpus: cluster.num_gpus() as u32,
            num_slots: cluster.num_slots() as u32,
            num_rounds: sum(|layer| layer.num_rounds),
            least_rounds: sum(|layer| layer.least_rounds),
            num_copies: plan.copies.len() as u64,
            num_lost: plan.lost.len() as u64,
            num_staging: plan.staging.iter().map(|&buffers| u64::from(buffers)).sum(),
            bytes_per_expert: plan.bytes_per_expert,
            same_gpu_bytes,
            same_node_bytes,
            other_node_bytes,
        });
        Ok(())
    })
}

/// The layers in the order in which they are to be done, num_layers entries. Buffers are filled as dualpipe.h says
/// under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_layers(
    transfers: dualpipe_expert_transfers_t,
    layers: *mut dualpipe_expert_layer_transfers,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_layers", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("layers", layers, capacity, "count", count) }?;
        let plan = &object.plan;
        out.fill(plan.layers.len(), plan.layers.iter().map(|layer| layer_to_c(plan, layer)))
    })
}

fn layer_to_c(plan: &TransferPlan, layer: &LayerTransfers) -> dualpipe_expert_layer_transfers {
    let LinkCounts { same_gpu, same_node, other_node } = layer.counts;
    let first_lost = plan.lost.partition_point(|lost| lost.layer < layer.layer);
    let end = plan.lost.partition_point(|lost| lost.layer <= layer.layer);
    dualpipe_expert_layer_transfers {
        layer: layer.layer,
        num_rounds: layer.num_rounds,
        least_rounds: layer.least_rounds,
        // At most two for each of 2^20 slots.
        num_copies: layer.num_copies as u32,
        same_gpu: same_gpu as u32,
        same_node: same_node as u32,
        other_node: other_node as u32,
        num_lost: (end - first_lost) as u32,
        first_copy: layer.first_copy as u64,
    }
}

/// All copies: layer after layer in the order of dualpipe_expert_transfers_layers, in a layer round after round.
/// Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_copies(
    transfers: dualpipe_expert_transfers_t,
    copies: *mut dualpipe_expert_copy,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_copies", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("copies", copies, capacity, "count", count) }?;
        out.fill(object.plan.copies.len(), object.plan.copies.iter().map(copy_to_c))
    })
}

/// What a GPU does, in order: the copies that it sends (from_gpu is `gpu`), receives (to_gpu is `gpu`) and does
/// within itself (both are). Buffers are filled as dualpipe.h says under "Buffers". Time: proportional to all
/// copies.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_for_gpu(
    transfers: dualpipe_expert_transfers_t,
    gpu: u32,
    copies: *mut dualpipe_expert_copy,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_for_gpu", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        let gpu = args::index("gpu", gpu, object.cluster.num_gpus())?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("copies", copies, capacity, "count", count) }?;
        let copies = object.plan.for_gpu(gpu).map(|(_, copy)| copy_to_c(copy));
        out.fill(object.plan.for_gpu(gpu).count(), copies)
    })
}

fn copy_to_c(copy: &ExpertCopy) -> dualpipe_expert_copy {
    let &ExpertCopy { layer, round, expert, from_gpu, from, to_gpu, to, link } = copy;
    let link = match link {
        Link::SameGpu => DUALPIPE_LINK_SAME_GPU,
        Link::SameNode => DUALPIPE_LINK_SAME_NODE,
        Link::OtherNode => DUALPIPE_LINK_OTHER_NODE,
    } as u32;
    dualpipe_expert_copy { layer, round, expert, from_gpu, from, to_gpu, to, link }
}

/// The staging buffers that each GPU needs, num_gpus numbers. Buffers are filled as dualpipe.h says under
/// "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_staging(
    transfers: dualpipe_expert_transfers_t,
    staging: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_staging", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("staging", staging, capacity, "count", count) }?;
        out.fill(object.plan.staging.len(), object.plan.staging.iter().copied())
    })
}

/// What must be loaded from elsewhere, by layer and slot. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_lost(
    transfers: dualpipe_expert_transfers_t,
    lost: *mut dualpipe_lost_expert,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_lost", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("lost", lost, capacity, "count", count) }?;
        let lost = object.plan.lost.iter();
        let lost =
            lost.map(|lost| dualpipe_lost_expert { layer: lost.layer, expert: lost.expert, slot: lost.slot });
        out.fill(object.plan.lost.len(), lost)
    })
}

/// The placement when the first layers_done layers have been done, what was lost being loaded: num_layers rows of
/// the cluster's slots, -1 where there is no expert. What remains after a failure is planned from this one. Buffers
/// are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_placement_after(
    transfers: dualpipe_expert_transfers_t,
    layers_done: u32,
    experts: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_placement_after", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        let num_layers = object.plan.layers.len();
        let layers_done = args::in_range("layers_done", layers_done as usize, 0..=num_layers)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("experts", experts, capacity, "count", count) }?;
        let placement = object.plan.placement_after(layers_done, &object.from, &object.to);
        out.fill(placement.len(), placement.into_iter().map(to_c))
    })
}

/// Proves transfers right by replaying them: every copy reads what is there since an earlier round, nothing is read
/// and written in the same round, no limit is passed, and in the end every slot holds what it should.
///
/// Errors: DUALPIPE_ERROR_INVALID_SCHEDULE, with the first fault; it would be a defect of the library.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_transfers_check(
    transfers: dualpipe_expert_transfers_t,
) -> dualpipe_status {
    call("dualpipe_expert_transfers_check", || {
        let object = handle::get::<TransfersObject>("transfers", transfers)?;
        let TransfersObject { plan, cluster, num_experts, from, to, limits } = &*object;
        Ok(check_transfers(plan, cluster, *num_experts, from, to, &limits.options())?)
    })
}

/// Options that own their lists.
struct Limits {
    sends_per_gpu: usize,
    receives_per_gpu: usize,
    copies_per_node_link: usize,
    staging_per_gpu: usize,
    tensor_bytes: Vec<u64>,
    gains: Vec<f64>,
}

impl Limits {
    /// # Safety
    /// The caller of the entry point promises what dualpipe.h says under "Ownership".
    unsafe fn read(argument: &str, pointer: *const dualpipe_expert_transfer_options) -> Outcome<Limits> {
        // SAFETY: as promised by the caller, also below.
        let given = unsafe { options::read(argument, pointer) }?;
        let field = |name: &str| format!("{argument}->{name}");
        args::zero(&field("reserved"), given.reserved)?;
        let (bytes, num_tensors) = (given.tensor_bytes, given.num_tensors as usize);
        // SAFETY: as above.
        let bytes = unsafe { args::slice(field("tensor_bytes"), bytes, field("num_tensors"), num_tensors) }?;
        let (gains, num_gains) = (given.gains, given.num_gains as usize);
        // SAFETY: as above.
        let gains = unsafe { args::slice(field("gains"), gains, field("num_gains"), num_gains) }?;
        Ok(Limits {
            sends_per_gpu: given.sends_per_gpu.max(1) as usize,
            receives_per_gpu: given.receives_per_gpu.max(1) as usize,
            copies_per_node_link: given.copies_per_node_link as usize,
            staging_per_gpu: given.staging_per_gpu as usize,
            tensor_bytes: bytes.to_vec(),
            gains: gains.to_vec(),
        })
    }

    fn options(&self) -> TransferOptions<'_> {
        TransferOptions {
            sends_per_gpu: self.sends_per_gpu,
            receives_per_gpu: self.receives_per_gpu,
            copies_per_node_link: self.copies_per_node_link,
            staging_per_gpu: self.staging_per_gpu,
            tensor_bytes: &self.tensor_bytes,
            gains: &self.gains,
        }
    }
}

/// Transfers that C has a handle of.
struct TransfersObject {
    plan: TransferPlan,
    cluster: Cluster,
    num_experts: usize,
    from: Vec<u32>,
    to: Vec<u32>,
    limits: Limits,
}

impl Object for TransfersObject {
    type Opaque = dualpipe_expert_transfers;
    const KIND: Kind = Kind::ExpertTransfers;
}
