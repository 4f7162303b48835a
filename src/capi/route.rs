//! Routing one step: how many tokens of each expert go to each of its replicas, and which token goes where.
//!
//! A router knows a placement. From a step's counts it makes quotas, with which the heaviest GPU is as light as can
//! be: exactly, and with the GPUs that prove it (the bottleneck). From quotas every rank finds the slot of each of
//! its tokens for itself, and all find the same: nothing is sent but the counts.
//!
//! ```c
//! // What a rank does in a step, for one layer. counts: [num_gpus, num_experts], the tokens that each rank has for
//! // each expert, gathered from all of them; topk: [tokens, top_k], this rank's choices. Choice i goes to slots[i].
//! #include <dualpipe.h>
//!
//! static dualpipe_status map_tokens(dualpipe_router_t router, uint32_t layer, uint32_t rank,
//!                                   const uint32_t *counts, size_t num_counts, uint32_t quotas[288],
//!                                   const int64_t *topk, size_t num_choices, int32_t *slots) {
//!   dualpipe_route_options options = DUALPIPE_ROUTE_OPTIONS_INIT;
//!   dualpipe_routing routing = DUALPIPE_ROUTING_INIT;
//!   size_t count = 0;
//!   dualpipe_status status =
//!       dualpipe_router_route_from(router, layer, &options, counts, num_counts, quotas, 288, &count, &routing);
//!   if (status == DUALPIPE_OK) // of all quotas, those of this rank's tokens
//!     status = dualpipe_router_source_quotas(router, layer, rank, 1, quotas, 288, &count);
//!   if (status == DUALPIPE_OK)
//!     status = dualpipe_router_slots_by_quotas(router, layer, quotas, 288, NULL, 0, topk, sizeof *topk,
//!                                              num_choices, slots, num_choices, &count);
//!   return status;
//! }
//! ```

use super::args::{self, Buffer, Out};
use super::balance::{dualpipe_expert_plan_t, PlanObject};
use super::cluster::{dualpipe_cluster, read_cluster, read_slots};
use super::guard::call;
use super::handle;
use super::options::{self, Growing, OutStruct};
use super::router_object::{LayerRouter, Placement, RouterObject};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::route::RouteOptions;
use crate::balance::EMPTY;

/// What a dualpipe_router_t points to: nothing that C could look into.
pub struct dualpipe_router(());

/// Routes the tokens of a step, of any layer of a placement. One thread at a time: a second gets
/// DUALPIPE_ERROR_BUSY; so give each thread its own. It stays usable after a fork. Free it with
/// dualpipe_router_free.
///
/// The first call for a layer makes what is needed for it; later ones allocate nothing. Steps do not influence each
/// other.
pub type dualpipe_router_t = *mut dualpipe_router;

/// What a router routes on. Start from DUALPIPE_ROUTER_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_router_info {
    /// sizeof(dualpipe_router_info).
    pub size: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// Logical experts of a layer.
    pub num_experts: u32,
    /// Slots of a layer, on all GPUs together.
    pub num_slots: u32,
    /// GPUs.
    pub num_gpus: u32,
    /// Nodes.
    pub num_nodes: u32,
}

// SAFETY: repr(C), six u32.
unsafe impl Growing for dualpipe_router_info {
    const SIZE_V1: usize = 24;
}

/// What is to be kept small besides the heaviest GPU, which comes first. Start from DUALPIPE_ROUTE_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_route_options {
    /// sizeof(dualpipe_route_options).
    pub size: u32,
    /// A slot's load counts as a whole number of so many tokens, the rows of a tile of its matrix product; at most
    /// 65536. 0 stands for 1.
    pub tile: u32,
    /// For dualpipe_router_route_from: the price of a token that leaves its sender's GPU, at most 1000. If both
    /// prices are 0 they stand for 1 and 8.
    pub gpu_price: u32,
    /// Likewise, the price that comes on top for a token that leaves its sender's node.
    pub node_price: u32,
    /// 1: senders play no part in the quotas of slots, and both prices must be 0. Otherwise 0.
    pub ignore_senders: u32,
}

// SAFETY: repr(C), five u32.
unsafe impl Growing for dualpipe_route_options {
    const SIZE_V1: usize = 20;
}

/// How a step is routed. Start from DUALPIPE_ROUTING_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_routing {
    /// sizeof(dualpipe_routing).
    pub size: u32,
    /// GPUs of the bottleneck: dualpipe_router_bottleneck says which.
    pub num_bottleneck_gpus: u32,
    /// The heaviest GPU's load: tokens, or tiles times the tokens of a tile. No whole-numbered routing has a
    /// lighter one.
    pub heaviest: u64,
    /// What no routing can beat, even of parts of tokens or tiles: bottleneck_load / num_bottleneck_gpus. heaviest
    /// is less than one token (one tile) above it.
    pub bound: f64,
    /// The load of the experts that are on GPUs of the bottleneck only. It stays there however it is routed:
    /// another replica helps only where it takes some of this load elsewhere.
    pub bottleneck_load: u64,
    /// Tokens that stay on their sender's GPU; 0 after dualpipe_router_route.
    pub tokens_on_gpu: u64,
    /// Tokens that stay on their sender's node, or GPU; 0 after dualpipe_router_route.
    pub tokens_on_node: u64,
}

// SAFETY: repr(C), two u32, four u64 and an f64.
unsafe impl Growing for dualpipe_routing {
    const SIZE_V1: usize = 48;
}

/// A router for all layers of a plan. The plan may be freed before it.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_create(
    plan: dualpipe_expert_plan_t,
    router: *mut dualpipe_router_t,
) -> dualpipe_status {
    call("dualpipe_router_create", || {
        let plan = &handle::get::<PlanObject>("plan", plan)?.0;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("router", router) }?;
        out.write(handle::insert(RouterObject::new(Placement {
            cluster: plan.cluster().clone(),
            num_experts: plan.num_experts(),
            slot_to_expert: plan.slot_to_expert().to_vec(),
            shares: plan.shares().into_owned(),
        }))?);
        Ok(())
    })
}

/// A router for a placement from anywhere: slot_to_expert has the expert in each slot, num_layers (1 to 4096) rows
/// of the cluster's slots, num_slots in all; -1 where there is none. What slots of dead GPUs hold does not matter.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_create_from_slots(
    cluster: *const dualpipe_cluster,
    num_experts: u32,
    slot_to_expert: *const i64,
    num_slots: usize,
    router: *mut dualpipe_router_t,
) -> dualpipe_status {
    call("dualpipe_router_create_from_slots", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        let num_experts = args::in_range("num_experts", num_experts as usize, 1..=EXPERTS_MAX)?;
        let of_layer = cluster.num_slots();
        if num_slots % of_layer != 0 || !(1..=LAYERS_MAX).contains(&(num_slots / of_layer)) {
            let how = format!(
                "is {num_slots}, must be a multiple of the cluster's {of_layer}, 1 to {LAYERS_MAX} times"
            );
            return Err(Failure::argument("num_slots", how));
        }
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("router", router) }?;
        let is_wrong = |&expert: &u32| expert != EMPTY && expert as usize >= num_experts;
        if let Some(slot) = slots.iter().position(is_wrong) {
            let how = format!("is {}, must be -1 to {}", slots[slot], num_experts - 1);
            return Err(Failure::argument(format!("slot_to_expert[{slot}]"), how));
        }
        let shares = vec![1.0; num_slots]; // all alike
        let placement = Placement { cluster, num_experts, slot_to_expert: slots, shares };
        out.write(handle::insert(RouterObject::new(placement))?);
        Ok(())
    })
}

const LAYERS_MAX: usize = 4096;
const EXPERTS_MAX: usize = 1 << 16;

/// Frees a router. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_free(router: dualpipe_router_t) -> dualpipe_status {
    call("dualpipe_router_free", || {
        if router.is_null() {
            return Ok(());
        }
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        handle::free::<RouterObject>("router", router)
    })
}

/// The sizes of a router's placement.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_describe(
    router: dualpipe_router_t,
    info: *mut dualpipe_router_info,
) -> dualpipe_status {
    call("dualpipe_router_describe", || {
        let object = handle::get::<RouterObject>("router", router)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let Placement { cluster, num_experts, .. } = &object.placement;
        out.write(dualpipe_router_info {
            size: 0,
            num_layers: object.placement.num_layers() as u32,
            num_experts: *num_experts as u32,
            num_slots: cluster.num_slots() as u32,
            num_gpus: cluster.num_gpus() as u32,
            num_nodes: cluster.num_nodes() as u32,
        });
        Ok(())
    })
}

/// Routes a step of which the totals are known: counts has the tokens of each expert, num_counts = num_experts.
/// Writes the tokens that each slot gets, num_slots numbers: those of an expert's slots add up to the expert's.
/// Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if more than 2^32 - 1 tokens are sent, or any to an expert that no
/// live GPU has.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_route(
    router: dualpipe_router_t,
    layer: u32,
    options: *const dualpipe_route_options,
    counts: *const u32,
    num_counts: usize,
    quotas: *mut u32,
    capacity: usize,
    count: *mut usize,
    routing: *mut dualpipe_routing,
) -> dualpipe_status {
    call("dualpipe_router_route", || {
        // SAFETY: the caller's.
        let out = || unsafe { Buffer::new("quotas", quotas, capacity, "count", count) };
        // SAFETY: the caller's.
        unsafe { route(router, layer, options, (counts, num_counts), out, routing, Senders::Unknown) }
    })
}

/// Routes a step of which the senders are known: counts has num_gpus rows of num_experts numbers, the tokens that
/// each GPU sends to each expert, num_counts = num_gpus * num_experts. Of all splits with the least heaviest GPU it
/// takes one of the least price (dualpipe_route_options). Otherwise as dualpipe_router_route; what of the quotas
/// each GPU sends has dualpipe_router_source_quotas.
///
/// Errors: as dualpipe_router_route; and more than 2^28 quotas of senders.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_route_from(
    router: dualpipe_router_t,
    layer: u32,
    options: *const dualpipe_route_options,
    counts: *const u32,
    num_counts: usize,
    quotas: *mut u32,
    capacity: usize,
    count: *mut usize,
    routing: *mut dualpipe_routing,
) -> dualpipe_status {
    call("dualpipe_router_route_from", || {
        // SAFETY: the caller's.
        let out = || unsafe { Buffer::new("quotas", quotas, capacity, "count", count) };
        // SAFETY: the caller's.
        unsafe { route(router, layer, options, (counts, num_counts), out, routing, Senders::Known) }
    })
}

#[derive(Clone, Copy)]
enum Senders {
    Unknown,
    Known,
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
unsafe fn route(
    router: dualpipe_router_t,
    layer: u32,
    options: *const dualpipe_route_options,
    (counts, num_counts): (*const u32, usize),
    quotas: impl FnOnce() -> Outcome<Buffer<u32>>,
    routing: *mut dualpipe_routing,
    senders: Senders,
) -> Outcome {
    let object = handle::get::<RouterObject>("router", router)?;
    let _busy = object.busy.enter("router")?;
    let layer = object.index("layer", layer)?;
    // SAFETY: as promised by the caller.
    let options = unsafe { read_options(options) }?;
    let Placement { cluster, num_experts, .. } = &object.placement;
    let wanted = match senders {
        Senders::Unknown => *num_experts,
        Senders::Known => num_experts * cluster.num_gpus(),
    };
    args::in_range("num_counts", num_counts, wanted..=wanted)?;
    // SAFETY: as promised by the caller, also below.
    let counts = unsafe { args::slice("counts", counts, "num_counts", num_counts) }?;
    let quotas = quotas()?;
    // SAFETY: as above.
    let out = unsafe { OutStruct::new("routing", routing) }?;
    let mut layers = object.layers();
    let LayerRouter { router, last } = layers[layer].router(&object.placement, layer)?;
    let routed = match senders {
        Senders::Unknown => router.route(counts, &options)?,
        Senders::Known => router.route_from(counts, &options)?,
    };
    quotas.fill(routed.quotas.len(), routed.quotas.iter().copied())?;
    last.keep(&routed);
    out.write(dualpipe_routing {
        size: 0,
        num_bottleneck_gpus: routed.bottleneck.len() as u32,
        heaviest: routed.heaviest,
        bound: routed.bound,
        bottleneck_load: routed.bottleneck_load,
        tokens_on_gpu: routed.tokens_on_gpu,
        tokens_on_node: routed.tokens_on_node,
    });
    Ok(())
}

/// # Safety
/// The pointer, if its bits pass, may be read: as many bytes as its `size` says.
unsafe fn read_options(options: *const dualpipe_route_options) -> Outcome<RouteOptions> {
    // SAFETY: as promised by the caller.
    let given = unsafe { options::read("options", options) }?;
    let mut read = RouteOptions { tile: given.tile.max(1), ..RouteOptions::default() };
    if args::flag("options->ignore_senders", given.ignore_senders)? {
        args::zero("options->gpu_price, beside ignore_senders,", given.gpu_price)?;
        args::zero("options->node_price, beside ignore_senders,", given.node_price)?;
        (read.gpu_price, read.node_price) = (0, 0);
    } else if (given.gpu_price, given.node_price) != (0, 0) {
        (read.gpu_price, read.node_price) = (given.gpu_price, given.node_price);
    }
    Ok(read)
}

/// How many of its tokens each of num_gpus GPUs, from first_gpu on, sends to each slot, by the last
/// dualpipe_router_route_from of this layer: num_gpus rows of num_slots numbers. Those of all GPUs add up to the
/// quotas. Tokens stay on their GPU if they can, else on their node. Buffers are filled as dualpipe.h says under
/// "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed, or last by dualpipe_router_route.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_source_quotas(
    router: dualpipe_router_t,
    layer: u32,
    first_gpu: u32,
    num_gpus: u32,
    quotas: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_router_source_quotas", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let index = object.index("layer", layer)?;
        let cluster = &object.placement.cluster;
        let first = args::index("first_gpu", first_gpu, cluster.num_gpus())?;
        let num_gpus = args::in_range("num_gpus", num_gpus as usize, 0..=cluster.num_gpus() - first)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("quotas", quotas, capacity, "count", count) }?;
        let layers = object.layers();
        let quotas = &layers[index].last(layer)?.source_quotas;
        if quotas.is_empty() {
            return Err(Failure::argument("layer", format!("is {layer}, which was routed without senders")));
        }
        let rows = &quotas[first * cluster.num_slots()..][..num_gpus * cluster.num_slots()];
        out.fill(rows.len(), rows.iter().copied())
    })
}

/// Each GPU's load by the last routing of this layer, num_gpus numbers: tokens, or tiles times the tokens of a
/// tile. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_gpu_loads(
    router: dualpipe_router_t,
    layer: u32,
    gpu_loads: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_router_gpu_loads", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let index = object.index("layer", layer)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("gpu_loads", gpu_loads, capacity, "count", count) }?;
        let layers = object.layers();
        let loads = &layers[index].last(layer)?.gpu_loads;
        out.fill(loads.len(), loads.iter().copied())
    })
}

/// The GPUs of the bottleneck by the last routing of this layer, in order: the experts that are on these GPUs only
/// have dualpipe_routing's bottleneck_load. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if the layer was not routed.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_bottleneck(
    router: dualpipe_router_t,
    layer: u32,
    gpus: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_router_bottleneck", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let index = object.index("layer", layer)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("gpus", gpus, capacity, "count", count) }?;
        let layers = object.layers();
        let gpus = &layers[index].last(layer)?.bottleneck;
        out.fill(gpus.len(), gpus.iter().copied())
    })
}

/// The shares of slots in their experts' tokens that make the heaviest GPU as light as can be if the loads are
/// these: num_loads = num_experts, finite and not negative. Writes num_slots shares, those of an expert adding up
/// to 1 (an expert without load is shared equally), and the heaviest GPU's load. Buffers are filled as dualpipe.h
/// says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert has a load that no live GPU has.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_shares(
    router: dualpipe_router_t,
    layer: u32,
    loads: *const f32,
    num_loads: usize,
    shares: *mut f64,
    capacity: usize,
    count: *mut usize,
    heaviest: *mut f64,
) -> dualpipe_status {
    call("dualpipe_router_shares", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let layer = object.index("layer", layer)?;
        let num_experts = object.placement.num_experts;
        args::in_range("num_loads", num_loads, num_experts..=num_experts)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("shares", shares, capacity, "count", count) }?;
        // SAFETY: the caller's.
        let heaviest = unsafe { Out::new("heaviest", heaviest) }?;
        let loads: Vec<f64> = loads.iter().map(|&load| load.into()).collect();
        let mut shares = vec![0.0; object.placement.cluster.num_slots()];
        let mut layers = object.layers();
        let load = layers[layer].router(&object.placement, layer)?.router.shares(&loads, &mut shares)?;
        out.fill(shares.len(), shares)?;
        heaviest.write(load);
        Ok(())
    })
}
