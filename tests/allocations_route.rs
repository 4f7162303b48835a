//! Routing a step does not allocate once a layer's first has been routed. A file of its own, because it replaces the
//! global allocator.

#[path = "support/counting.rs"]
mod counting;

use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering;

use counting::{ALLOCATIONS, COUNTS};
use dualpipe::capi::cluster::dualpipe_cluster;
use dualpipe::capi::route::*;
use dualpipe::capi::status::dualpipe_status::DUALPIPE_OK;
use dualpipe::capi::token_map::*;

const GPUS: usize = 8;
const EXPERTS: usize = 32;
const SLOTS: usize = 48;

/// 6 slots on each of 8 GPUs; experts 0 to 15 have two replicas.
fn router() -> dualpipe_router_t {
    let cluster = dualpipe_cluster {
        size: size_of::<dualpipe_cluster>() as u32,
        num_gpus: GPUS as u32,
        num_slots: SLOTS as u32,
        num_nodes: 2,
        slots_per_gpu: null(),
        node_of_gpu: null(),
        is_alive: null(),
    };
    let experts: Vec<i64> = (0..SLOTS as i64).map(|slot| slot % EXPERTS as i64).collect();
    let mut router = null_mut();
    // SAFETY: locals, as long as is said.
    let status = unsafe {
        dualpipe_router_create_from_slots(&cluster, EXPERTS as u32, experts.as_ptr(), SLOTS, &mut router)
    };
    assert_eq!(status, DUALPIPE_OK);
    router
}

#[test]
fn a_router_does_not_allocate_in_the_steady_state() {
    let router = router();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut quotas, mut of_sender, mut slots, mut count) = ([0; SLOTS], [0; SLOTS], [0; 512], 0);
    let size = size_of::<dualpipe_route_options>() as u32;
    let options = dualpipe_route_options { size, tile: 0, gpu_price: 0, node_price: 0, ignore_senders: 0 };
    // SAFETY: all bits zero are a routing.
    let mut routing: dualpipe_routing = unsafe { std::mem::zeroed() };
    routing.size = size_of::<dualpipe_routing>() as u32;
    for step in 0..40 {
        if step == 20 {
            COUNTS.store(true, Ordering::Relaxed);
        }
        let counts: [u32; GPUS * EXPERTS] = std::array::from_fn(|_| random.u32(100..200));
        let choices: [i64; 512] = std::array::from_fn(|_| random.i64(0..EXPERTS as i64));
        let (counts, choices, len) = (counts.as_ptr(), choices.as_ptr().cast(), choices.len());
        let (quotas, of_sender, slots) = (quotas.as_mut_ptr(), of_sender.as_mut_ptr(), slots.as_mut_ptr());
        let (options, count, routing) = (&options, &mut count, &mut routing);
        // SAFETY: locals, as long as is said.
        let statuses = unsafe {
            [
                dualpipe_router_route(router, 0, options, counts, EXPERTS, quotas, SLOTS, count, routing),
                dualpipe_router_route_from(
                    router,
                    0,
                    options,
                    counts,
                    GPUS * EXPERTS,
                    quotas,
                    SLOTS,
                    count,
                    routing,
                ),
                dualpipe_router_source_quotas(router, 0, 3, 1, of_sender, SLOTS, count),
                dualpipe_router_slots_by_quotas(
                    router,
                    0,
                    quotas,
                    SLOTS,
                    null(),
                    0,
                    choices,
                    8,
                    len,
                    slots,
                    len,
                    count,
                ),
                dualpipe_router_slots_by_shares(
                    router,
                    0,
                    null(),
                    0,
                    step,
                    choices,
                    8,
                    len,
                    slots,
                    len,
                    count,
                ),
            ]
        };
        assert_eq!(statuses, [DUALPIPE_OK; 5]);
    }
    COUNTS.store(false, Ordering::Relaxed);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), 0, "allocations in 20 steps");
    // SAFETY: a handle.
    assert_eq!(unsafe { dualpipe_router_free(router) }, DUALPIPE_OK);
}
