//! Routers: every function with its arguments, and what the table cannot say.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use dualpipe::capi::route::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::token_map::*;

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::plans::cluster;
use super::table::{entry, out_struct, values};

/// 2 layers of 4 experts on 2 GPUs of 3 slots each.
const SLOTS: [i64; 12] = [0, 1, 2, 1, 2, 3, 3, 3, 0, 0, 1, 2];

pub(crate) const CLUSTER: Arg = InStruct {
    name: "cluster",
    size: 40,
    size_v1: 40,
    align: 8,
    good: |_| inputs::words(&cluster()),
    bad: &[
        (1, 0, "cluster->num_gpus is 0, must be 1 to 1048576"),
        (1, 7, "num_slots is 6, must be 7 to 1048576"),
        (2, 1, "num_slots is 1, must be 2 to 1048576"),
        (2, 5, "num_slots is 12, must be a multiple of the cluster's 5"),
        (3, 3, "num_nodes is 3, must be 1 to 2"),
    ],
};

fn options() -> dualpipe_route_options {
    let size = size_of::<dualpipe_route_options>() as u32;
    dualpipe_route_options { size, tile: 0, gpu_price: 0, node_price: 0, ignore_senders: 0 }
}

/// A new router, of which layer 0 has been routed with senders.
fn router() -> usize {
    let (mut router, mut quotas, mut count) = (null_mut(), [0; 6], 0);
    // SAFETY: all bits zero are a routing.
    let mut routing: dualpipe_routing = unsafe { std::mem::zeroed() };
    routing.size = size_of::<dualpipe_routing>() as u32;
    // SAFETY: locals.
    let statuses = unsafe {
        let create = dualpipe_router_create_from_slots(&cluster(), 4, SLOTS.as_ptr(), 12, &mut router);
        let counts = [9u32; 8];
        let (counts, quotas) = (counts.as_ptr(), quotas.as_mut_ptr());
        let route =
            dualpipe_router_route_from(router, 0, &options(), counts, 8, quotas, 6, &mut count, &mut routing);
        [create, route]
    };
    assert_eq!(statuses, [DUALPIPE_OK; 2], "{}", last_error());
    router as usize
}

/// This thread's own: one thread at a time may use a router.
fn own_router() -> usize {
    thread_local!(static ROUTER: usize = router());
    ROUTER.with(|&router| router)
}

const ROUTER: Arg = Handle("router", |_| own_router());
const LAYER: Arg = Number("layer", 0, &[(2, "must be 0 to 1"), (u32::MAX as usize, "must be 0 to 1")]);
const OPTIONS: Arg = InStruct {
    name: "options",
    size: 20,
    size_v1: 20,
    align: 4,
    good: |_| inputs::words(&options()),
    bad: &[
        (1, 65537, "tile is 65537, must be 1 to 65536"),
        (2, 1001, "gpu_price is 1001, must be 0 to 1000"),
        (3, u32::MAX, "node_price is 4294967295, must be 0 to 1000"),
        (4, 2, "options->ignore_senders is 2, must be 0 to 1"),
    ],
};
const COUNTS: Arg = Lent("counts", 4, |_| inputs::words(&[5u32; 8]));
const QUOTAS: Arg = Lent("quotas", 4, |_| inputs::words(&[100u32; 6]));
const CHOICES: Arg = Lent("choices", 8, |_| inputs::words(&[0i64, 3, -1]));
const CHOICE_BYTES: Arg =
    Number("choice_bytes", 8, &[(0, "must be 4 or 8"), (2, "must be 4 or 8"), (64, "must be 4 or 8")]);
const NUM_CHOICES: Arg = Number("num_choices", 3, &[(usize::MAX, "must be 0 to ")]);

/// Every function of routers.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let routes = |name, call, num_counts| {
        let args = [ROUTER, LAYER, OPTIONS, COUNTS, num_counts, values::<u32>("quotas"), Capacity, Count("count"),
                    out_struct::<dualpipe_routing>("routing")];
        entry(name, call, &args)
    };
    let reads = |name, call, values| entry(name, call, &[ROUTER, LAYER, values, Capacity, Count("count")]);
    vec![
        entry("dualpipe_router_create", |w| unsafe { dualpipe_router_create(w.at(0), w.at(1)) },
              &[Handle("plan", |world| world.plan), Out("router", 8)]),
        entry("dualpipe_router_create_from_slots",
              |w| unsafe { dualpipe_router_create_from_slots(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  CLUSTER,
                  Number("num_experts", 4, &[
                      (0, "must be 1 to 65536"), (65537, "must be 1 to 65536"),
                      (3, "is 3, must be -1 to 2"), // what slot_to_expert[5] is
                  ]),
                  Lent("slot_to_expert", 8, |_| inputs::words(&SLOTS)),
                  Number("num_slots", 12, &[
                      (0, "must be a multiple of the cluster's 6, 1 to 4096 times"), (7, "must be a multiple of"),
                      (6 * 4097, "must be a multiple of"), (usize::MAX, "must be a multiple of"),
                  ]),
                  Out("router", 8),
              ]),
        entry("dualpipe_router_free", |w| unsafe { dualpipe_router_free(w.at(0)) }, &[Owned("router", |_| router())]),
        entry("dualpipe_router_describe", |w| unsafe { dualpipe_router_describe(w.at(0), w.at(1)) },
              &[ROUTER, out_struct::<dualpipe_router_info>("info")]),
        routes("dualpipe_router_route",
               |w| unsafe {
                   dualpipe_router_route(w.at(0), w.u32(1), w.at(2), w.at(3), w.usize(4), w.at(5), w.usize(6), w.at(7),
                                         w.at(8))
               },
               Number("num_counts", 4, &[(0, "must be 4 to 4"), (8, "must be 4 to 4"), (usize::MAX, "must be 4 to")])),
        routes("dualpipe_router_route_from",
               |w| unsafe {
                   dualpipe_router_route_from(w.at(0), w.u32(1), w.at(2), w.at(3), w.usize(4), w.at(5), w.usize(6),
                                              w.at(7), w.at(8))
               },
               Number("num_counts", 8, &[(0, "must be 8 to 8"), (4, "must be 8 to 8"), (usize::MAX, "must be 8 to")])),
        entry("dualpipe_router_source_quotas",
              |w| unsafe {
                  dualpipe_router_source_quotas(w.at(0), w.u32(1), w.u32(2), w.u32(3), w.at(4), w.usize(5), w.at(6))
              },
              &[
                  ROUTER, LAYER,
                  Number("first_gpu", 0, &[(2, "must be 0 to 1"), (u32::MAX as usize, "must be 0 to 1")]),
                  Number("num_gpus", 2, &[(3, "must be 0 to 2"), (u32::MAX as usize, "must be 0 to 2")]),
                  values::<u32>("quotas"), Capacity, Count("count"),
              ]),
        reads("dualpipe_router_gpu_loads",
              |w| unsafe { dualpipe_router_gpu_loads(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              values::<u64>("gpu_loads")),
        reads("dualpipe_router_bottleneck",
              |w| unsafe { dualpipe_router_bottleneck(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              Values { name: "gpus", size: 4, align: 4, too_small: &[0] }),
        entry("dualpipe_router_shares",
              |w| unsafe {
                  dualpipe_router_shares(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4), w.usize(5), w.at(6), w.at(7))
              },
              &[
                  ROUTER, LAYER, Lent("loads", 4, |_| inputs::words(&[1.5f32; 4])),
                  Number("num_loads", 4, &[(0, "must be 4 to 4"), (5, "must be 4 to 4"), (usize::MAX, "must be 4")]),
                  values::<f64>("shares"), Capacity, Count("count"), Out("heaviest", 8),
              ]),
        entry("dualpipe_router_slots_by_quotas",
              |w| unsafe {
                  dualpipe_router_slots_by_quotas(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4), w.usize(5), w.at(6),
                                                  w.u32(7), w.usize(8), w.at(9), w.usize(10), w.at(11))
              },
              &[
                  ROUTER, LAYER, QUOTAS,
                  Number("num_quotas", 6, &[(0, "must be 6 to 6"), (5, "must be 6 to 6"), (usize::MAX, "must be 6")]),
                  Lent("before", 4, |_| inputs::words(&[0u32; 4])),
                  Number("num_before", 4, &[(3, "must be 4 to 4"), (usize::MAX, "must be 4 to 4")]),
                  CHOICES, CHOICE_BYTES, NUM_CHOICES, values::<i32>("slots"), Capacity, Count("count"),
              ]),
        entry("dualpipe_router_slots_by_shares",
              |w| unsafe {
                  dualpipe_router_slots_by_shares(w.at(0), w.u32(1), w.at(2), w.usize(3), w.usize(4) as u64, w.at(5),
                                                  w.u32(6), w.usize(7), w.at(8), w.usize(9), w.at(10))
              },
              &[
                  ROUTER, LAYER, Lent("shares", 8, |_| inputs::words(&[0.5f64; 6])),
                  Number("num_shares", 6, &[(5, "must be 6 to 6"), (usize::MAX, "must be 6 to 6")]),
                  Anything("phase"), CHOICES, CHOICE_BYTES, NUM_CHOICES, values::<i32>("slots"), Capacity,
                  Count("count"),
              ]),
    ]
}

/// What the table cannot say: what is wrong behind a pointer, or before something else was done.
pub(crate) fn bad_counts_and_choices() {
    let router = router() as dualpipe_router_t;
    let (mut count, mut heaviest, mut shares, mut slots) = (0, 0.0, [7.0; 6], [7; 3]);
    let refused = |status, want: &str| {
        assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT, "{want}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    };
    for (load, want) in [
        (f32::NAN, "loads[expert 2] is NaN, must be 0 to 1e300"),
        (f32::INFINITY, "loads[expert 2] is inf, must be"),
        (-0.5, "loads[expert 2] is -0.5, must be"),
    ] {
        let loads = [1.0, 1.0, load, 1.0];
        // SAFETY: locals and a handle.
        let status = unsafe {
            let (loads, shares) = (loads.as_ptr(), shares.as_mut_ptr());
            dualpipe_router_shares(router, 0, loads, 4, shares, 6, &mut count, &mut heaviest)
        };
        refused(status, want);
    }
    for (share, want) in [
        (f64::NAN, "shares[slot 0] is NaN, must be"),
        (-1.0, "shares[slot 0] is -1.0, must be"),
        (0.0, "the sum of shares of expert 0 is 0, must be"),
    ] {
        let (given, choices) = ([share, 1.0, 1.0, 1.0, 1.0, 1.0], [3i32, 0, 3]);
        // SAFETY: as above.
        let status = unsafe {
            let (given, choices) = (given.as_ptr(), choices.as_ptr().cast::<c_void>());
            dualpipe_router_slots_by_shares(
                router,
                0,
                given,
                6,
                0,
                choices,
                4,
                3,
                slots.as_mut_ptr(),
                3,
                &mut count,
            )
        };
        refused(status, want);
    }
    for (choice, want) in [
        (4, "experts[1] is 4, must be less than 4, or -1 for none"),
        (-2, "experts[1] is -2, must be"),
        (i64::MIN, "experts[1] is -9223372036854775808, must be"),
        (0, "the number of tokens of expert 0 is 3, must be at most its quotas 2 less before 0"),
    ] {
        let (quotas, choices) = ([2u32; 6], [0, choice, 0]);
        // SAFETY: as above.
        let status = unsafe {
            let (quotas, choices) = (quotas.as_ptr(), choices.as_ptr().cast::<c_void>());
            let slots = slots.as_mut_ptr();
            dualpipe_router_slots_by_quotas(
                router,
                0,
                quotas,
                6,
                null(),
                0,
                choices,
                8,
                3,
                slots,
                3,
                &mut count,
            )
        };
        refused(status, want);
    }
    assert_eq!((shares, heaviest, slots, count), ([7.0; 6], 0.0, [7; 3], 0), "written to");

    let (mut loads, counts) = ([7u64; 2], [u32::MAX; 4]);
    // SAFETY: as above; all bits zero are a routing.
    unsafe {
        let status = dualpipe_router_gpu_loads(router, 1, loads.as_mut_ptr(), 2, &mut count);
        refused(status, "layer is 1, which has not been routed");
        let mut routing: dualpipe_routing = std::mem::zeroed();
        routing.size = size_of::<dualpipe_routing>() as u32;
        let (counts, no) = (counts.as_ptr(), null_mut());
        let status = dualpipe_router_route(router, 0, &options(), counts, 4, no, 0, &mut count, &mut routing);
        refused(status, "the sum of counts is 17179869180, must be at most 4294967295");
        let priced = dualpipe_route_options { ignore_senders: 1, gpu_price: 3, ..options() };
        let status = dualpipe_router_route(router, 0, &priced, counts, 4, no, 0, &mut count, &mut routing);
        refused(status, "options->gpu_price, beside ignore_senders, is 3, must be 0");
        for (expert, want) in
            [(-2, "slot_to_expert[3] is -2, must be"), (1 << 32, "slot_to_expert[3] is 4294967296")]
        {
            let (mut bad, mut none) = (SLOTS, null_mut());
            bad[3] = expert;
            let status = dualpipe_router_create_from_slots(&cluster(), 4, bad.as_ptr(), 12, &mut none);
            refused(status, want);
            assert!(none.is_null());
        }
        assert_eq!(dualpipe_router_free(router), DUALPIPE_OK);
    }
}

/// Threads at one router get BUSY, or what they would have got alone.
pub(crate) fn a_router_is_one_threads_at_a_time() {
    let router = router();
    let counts = [7u32, 9, 4, 5];
    let route = || {
        let (mut quotas, mut count) = ([0u32; 6], 0);
        // SAFETY: all bits zero are a routing.
        let mut routing: dualpipe_routing = unsafe { std::mem::zeroed() };
        routing.size = size_of::<dualpipe_routing>() as u32;
        let (router, counts, to) = (router as dualpipe_router_t, counts.as_ptr(), quotas.as_mut_ptr());
        // SAFETY: locals and a handle.
        let status = unsafe {
            dualpipe_router_route(router, 1, &options(), counts, 4, to, 6, &mut count, &mut routing)
        };
        (status, quotas, count, routing.heaviest)
    };
    let alone = route();
    assert_eq!(alone.0, DUALPIPE_OK);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let got = route();
                    assert!(got == alone || got == (DUALPIPE_ERROR_BUSY, [0; 6], 0, 0), "{got:?}");
                }
            });
        }
    });
    // SAFETY: a handle.
    assert_eq!(unsafe { dualpipe_router_free(router as dualpipe_router_t) }, DUALPIPE_OK);
    assert_eq!(route().0, DUALPIPE_ERROR_INVALID_HANDLE);
}
