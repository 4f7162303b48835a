//! Placements and counts as other engines have them: vllm-ascend's expert map, SGLang's counts of slots.
//!
//! ```c
//! // Reads what vllm-ascend's expert_map_record_path wrote: experts of slots, to plan from, and the slots of each
//! // GPU for a dualpipe_cluster.
//! #include <dualpipe.h>
//!
//! static dualpipe_status read_map(const char *text, size_t num_bytes, int64_t *experts, size_t num_slots,
//!                                 uint32_t *slots_per_gpu, size_t num_gpus) {
//!   size_t count = 0;
//!   dualpipe_status status = dualpipe_expert_map_read_slots(text, num_bytes, experts, num_slots, &count);
//!   if (status == DUALPIPE_OK)
//!     status = dualpipe_expert_map_read_gpus(text, num_bytes, slots_per_gpu, num_gpus, &count);
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer};
use super::cluster::{dualpipe_cluster, read_cluster, read_slots, to_c};
use super::guard::call;
use super::status::dualpipe_status;
use crate::balance::history::{logical_loads, FilePlacement};

/// The expert in each slot of an expert map, a text of num_bytes bytes, which needs no NUL: a row for each layer,
/// slots GPU by GPU. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT with the place: what is not such a text, lacks a layer or a device or has
/// one twice, has devices with other numbers of experts in other layers, an expert of 65536 or more.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_map_read_slots(
    text: *const c_char,
    num_bytes: usize,
    experts: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_map_read_slots", || {
        // SAFETY: the caller's.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("experts", experts, capacity, "count", count) }?;
        let experts = FilePlacement::from_ascend(text)?.slot_to_expert;
        out.fill(experts.len(), experts.into_iter().map(to_c))
    })
}

/// How many slots each GPU has in every layer of an expert map. Buffers are filled as dualpipe.h says under
/// "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_map_read_gpus(
    text: *const c_char,
    num_bytes: usize,
    slots_per_gpu: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_map_read_gpus", || {
        // SAFETY: the caller's.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("slots_per_gpu", slots_per_gpu, capacity, "count", count) }?;
        let slots = FilePlacement::from_ascend(text)?.slots_per_gpu;
        out.fill(slots.len(), slots)
    })
}

/// Writes an expert map: slot_to_expert has rows of the cluster's slots, a row for each layer, in all num_slots.
/// UTF-8; a NUL ends it; the length is without the NUL.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a slot without an expert, for which the map has no word.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_map_write(
    cluster: *const dualpipe_cluster,
    slot_to_expert: *const i64,
    num_slots: usize,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_map_write", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&FilePlacement::new(&cluster, &slots)?.to_ascend()?)
    })
}

/// Tokens of slots as loads of their experts, as of SGLang's global_physical_count and last_physical_to_logical_map:
/// for each step num_layers rows of slots, in all num_counts, become as many rows of num_experts numbers.
///
/// slot_to_expert: num_layers rows of the slots' experts, the same in all steps, in all num_slots; -1 where there is
/// none and no token. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_logical_loads(
    num_layers: u32,
    num_experts: u32,
    slot_to_expert: *const i64,
    num_slots: usize,
    counts: *const i64,
    num_counts: usize,
    loads: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_logical_loads", || {
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let counts = unsafe { args::slice("counts", counts, "num_counts", num_counts) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("loads", loads, capacity, "count", count) }?;
        let loads = logical_loads(num_layers as usize, num_experts as usize, &slots, counts)?;
        out.fill(loads.len(), loads)
    })
}
