//! Loads, and whether to rebalance: every function with its arguments, and
//! what the table cannot say.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use dualpipe::capi::expert_map::*;
use dualpipe::capi::load_history::*;
use dualpipe::capi::load_monitor::*;
use dualpipe::capi::monitor_loads::*;
use dualpipe::capi::rebalance::*;
use dualpipe::capi::status::dualpipe_status::{self, *};

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::plans::cluster;
use super::table::{entry, out_struct, values};

/// 2 layers of 4 experts on 2 GPUs of 3 slots each.
static SLOTS: [i64; 12] = [0, 1, 2, 1, 2, 3, 3, 3, 0, 0, 1, 2];
static PLANNED: [i64; 12] = [3, 1, 2, 1, 0, 3, 2, 3, 1, 0, 1, 2];
/// 8 steps of them.
static COUNTS: [u32; 64] = [7; 64];
const CSV: &[u8] = b"1,2\n3,4\n\n5,6\n7,8\n";
const MAP: &[u8] = br#"{"moe_layer_count":1,"layer_list":[{"layer_id":0,"device_list":[
{"device_id":0,"device_expert":[0,1]},{"device_id":1,"device_expert":[1,0]}]}]}"#;
const NOWHERE: usize = u32::MAX as usize;

const CLUSTER: Arg = InStruct {
    name: "cluster",
    size: 40,
    size_v1: 40,
    align: 8,
    good: |_| inputs::words(&cluster()),
    bad: &[(1, 0, "cluster->num_gpus is 0, must be 1 to 1048576"), (3, 3, "num_nodes is 3, must be 1 to 2")],
};

fn monitor_options() -> dualpipe_load_monitor_options {
    let size = size_of::<dualpipe_load_monitor_options>() as u32;
    dualpipe_load_monitor_options {
        size,
        num_layers: 2,
        num_experts: 4,
        window: 3,
        num_ranks: 65536,
        reserved: 0,
        half_life: 0.0,
    }
}

/// A monitor with steps that lack reports, as many as calls of a test may add.
fn monitor() -> usize {
    let (mut monitor, mut is_kept) = (null_mut(), 0);
    // SAFETY: locals.
    let statuses = unsafe {
        let create = dualpipe_load_monitor_create(&monitor_options(), &mut monitor);
        let counts = COUNTS.as_ptr();
        [
            create,
            dualpipe_load_monitor_record_logical(monitor, 4, counts, 8, &mut is_kept),
            dualpipe_load_monitor_record_logical(monitor, 5, counts, 8, &mut is_kept),
        ]
    };
    assert_eq!(statuses, [DUALPIPE_OK; 3], "{}", last_error());
    monitor as usize
}

fn history_options() -> dualpipe_load_history_options {
    let size = size_of::<dualpipe_load_history_options>() as u32;
    let model = c"model".as_ptr();
    dualpipe_load_history_options {
        size,
        num_layers: 2,
        num_experts: 4,
        num_ranks: 2,
        num_groups: 0,
        num_nodes: 0,
        model,
    }
}

/// A history of a step with slots.
fn history() -> usize {
    let mut history = null_mut();
    let loads = [1.0f32; 12];
    // SAFETY: locals.
    let statuses = unsafe {
        let create = dualpipe_load_history_create(&history_options(), &mut history);
        [create, dualpipe_load_history_append_slots(history, 0, SLOTS.as_ptr(), loads.as_ptr(), 12)]
    };
    assert_eq!(statuses, [DUALPIPE_OK; 2], "{}", last_error());
    history as usize
}

/// This thread's own.
fn own(make: fn() -> usize, which: usize) -> usize {
    thread_local!(static OBJECTS: [std::cell::OnceCell<usize>; 3] = Default::default());
    OBJECTS.with(|objects| *objects[which].get_or_init(make))
}

const MONITOR: Arg = Handle("monitor", |_| own(monitor, 0));
const OTHER: Arg = Handle("other", |_| own(empty_monitor, 1));
const HISTORY: Arg = Handle("history", |_| own(history, 2));

/// It may be merged again and again.
fn empty_monitor() -> usize {
    let mut monitor = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_load_monitor_create(&monitor_options(), &mut monitor) }, DUALPIPE_OK);
    monitor as usize
}

fn state() -> Vec<u8> {
    let (mut bytes, mut count) = (vec![0u8; 4096], 0);
    // SAFETY: locals.
    let status =
        unsafe { dualpipe_load_monitor_save(empty_monitor() as _, bytes.as_mut_ptr(), 4096, &mut count) };
    assert_eq!(status, DUALPIPE_OK);
    bytes.truncate(count);
    bytes
}

fn proposal() -> dualpipe_rebalance_proposal {
    dualpipe_rebalance_proposal {
        size: size_of::<dualpipe_rebalance_proposal>() as u32,
        num_layers: 2,
        num_experts: 4,
        plan_saw_counts: 0,
        counts: COUNTS.as_ptr(),
        num_counts: 64,
        current: SLOTS.as_ptr(),
        current_shares: null(),
        planned: PLANNED.as_ptr(),
        planned_shares: null(),
        num_slots: 12,
        horizon: 100,
        expert_seconds: 1.0,
        price_seconds: 0.0,
        bytes_per_expert: 0.0,
        bytes_per_second: 0.0,
        standard_errors: 0.0,
    }
}

/// Bytes as words.
pub(crate) fn bytes(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (i, &byte) in bytes.iter().enumerate() {
        words[i / 8] |= u64::from(byte) << (8 * (i % 8));
    }
    words
}

const STEP: Arg = Number("step", 5, &[(1 << 63, "must be 0 to 9223372036854775807")]);
const REPORTED: Arg = Number(
    "reported",
    2,
    &[
        (0, "must be one of DUALPIPE_REPORTED_BY_ALL_RANKS (1), DUALPIPE_REPORTED_BY_ANY (2)"),
        (3, "must be one of "),
        (NOWHERE, "must be one of "),
    ],
);
const FORMAT: Arg =
    Number("format", 3, &[(0, "must be one of DUALPIPE_LOAD_FORMAT_VLLM (1), "), (4, "must be one of ")]);
const SLOTS_GIVEN: Arg = Lent("slot_to_expert", 8, |_| inputs::words(&SLOTS));
const TOO_MANY: (usize, &str) = (usize::MAX, "must be 0 to ");

fn count(name: &'static str, good: usize, bad: &'static [(usize, &'static str)]) -> Arg {
    Number(name, good, bad)
}

/// Every function of monitors, histories, maps and the trigger.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let is_kept = Out("is_kept", 4);
    let kept = count("num_counts", 8, &[(7, "is 7, must be 8"), (0, "is 0, must be 8"), TOO_MANY]);
    let counts = Lent("counts", 4, |_| inputs::words(&COUNTS));
    let reads = |name, call, values| entry(name, call, &[MONITOR, REPORTED, values, Capacity, Count("count")]);
    let gets = |name, call, values| entry(name, call, &[HISTORY, values, Capacity, Count("count")]);
    vec![
        entry("dualpipe_load_monitor_create", |w| unsafe { dualpipe_load_monitor_create(w.at(0), w.at(1)) }, &[
            InStruct {
                name: "options", size: 32, size_v1: 32, align: 8,
                good: |_| inputs::words(&monitor_options()),
                bad: &[
                    (1, 0, "num_layers is 0, must be 1 to 4096"), (1, 4097, "num_layers is 4097"),
                    (2, 0, "num_experts is 0, must be 1 to 65536"), (2, 65537, "num_experts is 65537"),
                    (3, 65537, "window is 65537, must be 1 to 65536"), (4, 65537, "num_ranks is 65537"),
                    (5, 1, "options->reserved is 1, must be 0"),
                    (7, 0xBFF0_0000, "half_life is -1, must be above 0"), (7, 0x7FF8_0000, "half_life is NaN"),
                ],
            },
            Out("monitor", 8),
        ]),
        entry("dualpipe_load_monitor_free", |w| unsafe { dualpipe_load_monitor_free(w.at(0)) },
              &[Owned("monitor", |_| monitor())]),
        entry("dualpipe_load_monitor_record_logical",
              |w| unsafe {
                  dualpipe_load_monitor_record_logical(w.at(0), w.usize(1) as u64, w.at(2), w.usize(3), w.at(4))
              },
              &[MONITOR, STEP, counts, kept, is_kept]),
        entry("dualpipe_load_monitor_record_layer",
              |w| unsafe {
                  dualpipe_load_monitor_record_layer(w.at(0), w.usize(1) as u64, w.u32(2), w.at(3), w.usize(4), w.at(5))
              },
              &[
                  MONITOR, STEP, Number("layer", 1, &[(2, "must be 0 to 1"), (NOWHERE, "must be 0 to 1")]), counts,
                  count("num_counts", 4, &[(8, "is 8, must be 4"), TOO_MANY]), is_kept,
              ]),
        entry("dualpipe_load_monitor_record_physical",
              |w| unsafe {
                  dualpipe_load_monitor_record_physical(w.at(0), w.usize(1) as u64, w.at(2), w.at(3), w.usize(4),
                                                        w.at(5))
              },
              &[
                  MONITOR, STEP, SLOTS_GIVEN, counts,
                  count("num_counts", 12, &[(11, "is 11, must be a multiple of num_layers = 2"), TOO_MANY]), is_kept,
              ]),
        entry("dualpipe_load_monitor_record_cumulative",
              |w| unsafe {
                  dualpipe_load_monitor_record_cumulative(w.at(0), w.usize(1) as u64, w.at(2), w.at(3), w.usize(4),
                                                        w.at(5))
              },
              &[
                  MONITOR, STEP, SLOTS_GIVEN, Lent("counters", 4, |_| inputs::words(&COUNTS)),
                  count("num_counters", 12, &[(11, "is 11, must be 12"), TOO_MANY]), is_kept,
              ]),
        // The other readings of this monitor's stay as they are: it has as many.
        entry("dualpipe_load_monitor_set_counters",
              |w| unsafe { dualpipe_load_monitor_set_counters(w.at(0), w.at(1), w.usize(2)) },
              &[MONITOR, Lent("counters", 4, |_| inputs::words(&COUNTS)),
                count("num_counters", 12, &[(11, "is 11, must be a multiple of num_layers = 2"), TOO_MANY])]),
        entry("dualpipe_load_monitor_merge", |w| unsafe { dualpipe_load_monitor_merge(w.at(0), w.at(1)) },
              &[MONITOR, OTHER]),
        entry("dualpipe_load_monitor_describe", |w| unsafe { dualpipe_load_monitor_describe(w.at(0), w.at(1)) },
              &[MONITOR, out_struct::<dualpipe_load_monitor_info>("info")]),
        entry("dualpipe_load_monitor_loads",
              |w| unsafe { dualpipe_load_monitor_loads(w.at(0), w.u32(1), w.u32(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  MONITOR, REPORTED,
                  Number("kind", 3, &[(0, "must be one of DUALPIPE_LOADS_SUM (1), "), (4, "must be one of ")]),
                  values::<f32>("loads"), Capacity, Count("count"),
              ]),
        reads("dualpipe_load_monitor_counts",
              |w| unsafe { dualpipe_load_monitor_counts(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              values::<u64>("counts")),
        reads("dualpipe_load_monitor_step_numbers",
              |w| unsafe { dualpipe_load_monitor_step_numbers(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              values::<u64>("steps")),
        entry("dualpipe_load_monitor_incomplete_steps",
              |w| unsafe { dualpipe_load_monitor_incomplete_steps(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[MONITOR, values::<u64>("steps"), Capacity, Count("count")]),
        entry("dualpipe_load_monitor_reports",
              |w| unsafe { dualpipe_load_monitor_reports(w.at(0), w.usize(1) as u64, w.at(2), w.usize(3), w.at(4)) },
              &[MONITOR, Anything("step"), values::<u32>("reports"), Capacity, Count("count")]),
        entry("dualpipe_load_monitor_save",
              |w| unsafe { dualpipe_load_monitor_save(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[MONITOR, values::<u8>("bytes"), Capacity, Count("count")]),
        entry("dualpipe_load_monitor_load",
              |w| unsafe { dualpipe_load_monitor_load(w.at(0), w.usize(1), w.at(2)) },
              &[Lent("bytes", 1, |_| bytes(&state())), count("num_bytes", state().len(), &[TOO_MANY]),
                Out("monitor", 8)]),
        entry("dualpipe_load_monitor_balancedness",
              |w| unsafe {
                  dualpipe_load_monitor_balancedness(w.at(0), w.u32(1), w.at(2), w.at(3), w.at(4), w.usize(5), w.at(6),
                                                     w.at(7), w.usize(8), w.at(9))
              },
              &[
                  MONITOR, REPORTED, CLUSTER, SLOTS_GIVEN, Anything("shares"),
                  count("num_slots", 12, &[(11, "is 11, must be 12"), (0, "is 0, must be 12"), TOO_MANY]),
                  Out("overall", 8), values::<f64>("layers"), Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_balancedness",
              |w| unsafe {
                  dualpipe_expert_balancedness(w.at(0), w.at(1), w.usize(2), w.at(3), w.at(4), w.usize(5), w.at(6))
              },
              &[
                  CLUSTER, Lent("gpu_loads", 8, |_| inputs::words(&[1.0f64; 4])),
                  count("num_gpu_loads", 4, &[(3, "is 3, must be a multiple of 2"), TOO_MANY]),
                  Out("overall", 8), values::<f64>("layers"), Capacity, Count("count"),
              ]),

        entry("dualpipe_load_history_create", |w| unsafe { dualpipe_load_history_create(w.at(0), w.at(1)) }, &[
            InStruct {
                name: "options", size: 32, size_v1: 32, align: 8,
                good: |_| inputs::words(&history_options()),
                bad: &[
                    (1, 0, "num_layers is 0, must be 1 to 4096"), (1, 4097, "num_layers is 4097"),
                    (2, 0, "num_experts is 0, must be 1 to 65536"), (2, 65537, "num_experts is 65537"),
                ],
            },
            Out("history", 8),
        ]),
        entry("dualpipe_load_history_read",
              |w| unsafe { dualpipe_load_history_read(w.at(0), w.usize(1), w.u32(2), w.at(3)) },
              &[Lent("text", 1, |_| bytes(CSV)), count("num_bytes", CSV.len(), &[TOO_MANY]), FORMAT,
                Out("history", 8)]),
        entry("dualpipe_load_history_free", |w| unsafe { dualpipe_load_history_free(w.at(0)) },
              &[Owned("history", |_| history())]),
        entry("dualpipe_load_history_append",
              |w| unsafe { dualpipe_load_history_append(w.at(0), w.usize(1) as u64, w.at(2), w.usize(3)) },
              &[
                  HISTORY, Number("step", 9, &[(usize::MAX, "must be 0 to 18446744073709551614")]),
                  Lent("loads", 4, |_| inputs::words(&[1.0f32; 8])),
                  count("num_loads", 8, &[(7, "is 7, must be a multiple of num_layers * num_experts = 8"), TOO_MANY]),
              ]),
        entry("dualpipe_load_history_append_slots",
              |w| unsafe {
                  dualpipe_load_history_append_slots(w.at(0), w.usize(1) as u64, w.at(2), w.at(3), w.usize(4))
              },
              &[
                  HISTORY, Number("step", 9, &[(usize::MAX, "must be 0 to 18446744073709551614")]), SLOTS_GIVEN,
                  Lent("loads", 4, |_| inputs::words(&[1.0f32; 12])),
                  count("num_slots", 12, &[(11, "is 11, must be 10"), (0, "is 0, must be 1 to 1048576"), TOO_MANY]),
              ]),
        entry("dualpipe_load_history_describe", |w| unsafe { dualpipe_load_history_describe(w.at(0), w.at(1)) },
              &[HISTORY, out_struct::<dualpipe_load_history_info>("info")]),
        entry("dualpipe_load_history_model",
              |w| unsafe { dualpipe_load_history_model(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[HISTORY, values::<c_char>("text"), Capacity, Count("length")]),
        gets("dualpipe_load_history_loads",
             |w| unsafe { dualpipe_load_history_loads(w.at(0), w.at(1), w.usize(2), w.at(3)) }, values::<f32>("loads")),
        // So far it has one step.
        gets("dualpipe_load_history_step_numbers",
             |w| unsafe { dualpipe_load_history_step_numbers(w.at(0), w.at(1), w.usize(2), w.at(3)) },
             Values { name: "steps", size: 8, align: 8, too_small: &[0] }),
        entry("dualpipe_load_history_slot_to_expert",
              |w| unsafe {
                  dualpipe_load_history_slot_to_expert(w.at(0), w.usize(1) as u64, w.at(2), w.usize(3), w.at(4))
              },
              &[
                  HISTORY, Number("index", 0, &[(usize::MAX, "must be less than the ")]), values::<i64>("experts"),
                  Capacity, Count("count"),
              ]),
        entry("dualpipe_load_history_slot_loads",
              |w| unsafe { dualpipe_load_history_slot_loads(w.at(0), w.usize(1) as u64, w.at(2), w.usize(3), w.at(4)) },
              &[
                  HISTORY, Number("index", 0, &[(usize::MAX, "must be less than the ")]), values::<f32>("loads"),
                  Capacity, Count("count"),
              ]),
        entry("dualpipe_load_history_write",
              |w| unsafe { dualpipe_load_history_write(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[HISTORY, FORMAT, values::<c_char>("text"), Capacity, Count("length")]),

        entry("dualpipe_expert_map_read_slots",
              |w| unsafe { dualpipe_expert_map_read_slots(w.at(0), w.usize(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  Lent("text", 1, |_| bytes(MAP)), count("num_bytes", MAP.len(), &[TOO_MANY]), values::<i64>("experts"),
                  Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_map_read_gpus",
              |w| unsafe { dualpipe_expert_map_read_gpus(w.at(0), w.usize(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  Lent("text", 1, |_| bytes(MAP)), count("num_bytes", MAP.len(), &[TOO_MANY]),
                  values::<u32>("slots_per_gpu"), Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_map_write",
              |w| unsafe { dualpipe_expert_map_write(w.at(0), w.at(1), w.usize(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  CLUSTER, SLOTS_GIVEN,
                  count("num_slots", 12, &[
                      (11, "is 11, must be a multiple of num_slots = 6"), (0, "is 0, must be 1 to 4096"), TOO_MANY,
                  ]),
                  values::<c_char>("text"), Capacity, Count("length"),
              ]),
        entry("dualpipe_expert_logical_loads",
              |w| unsafe {
                  dualpipe_expert_logical_loads(w.u32(0), w.u32(1), w.at(2), w.usize(3), w.at(4), w.usize(5), w.at(6),
                                                w.usize(7), w.at(8))
              },
              &[
                  Number("num_layers", 2, &[(0, "must be 1 to 4096"), (4097, "must be 1 to 4096")]),
                  Number("num_experts", 4, &[(0, "must be 1 to 65536"), (65537, "must be 1 to 65536")]),
                  SLOTS_GIVEN,
                  count("num_slots", 12, &[(11, "is 11, must be a multiple of"), (0, "is 0, must be 1 to"), TOO_MANY]),
                  Lent("counts", 8, |_| inputs::words(&[1i64; 24])),
                  count("num_counts", 24, &[(23, "is 23, must be a multiple of slot_to_expert's 12"), TOO_MANY]),
                  values::<f32>("loads"), Capacity, Count("count"),
              ]),
        entry("dualpipe_should_rebalance", |w| unsafe { dualpipe_should_rebalance(w.at(0), w.at(1), w.at(2)) }, &[
            CLUSTER,
            InStruct {
                name: "proposal", size: 120, size_v1: 120, align: 8,
                good: |_| inputs::words(&proposal()),
                bad: &[
                    (1, 0, "num_layers is 0, must be 1 to 4096"), (2, 65537, "num_experts is 65537"),
                    (3, 2, "proposal->plan_saw_counts is 2, must be 0 to 1"),
                    (6, 63, "the number of counts is 63, must be a multiple of num_layers * num_experts = 8"),
                    (16, 11, "the length of current is 11, must be 12"), (17, 1 << 31, "proposal->num_slots is "),
                    (19, 1 << 31, "horizon is 9223372036854775908, must be 0 to 9007199254740992"),
                    (21, 0xBFF0_0000, "expert_seconds is -1, must be 0 to "),
                    (21, 0x7FF8_0000, "expert_seconds is NaN"),
                    (23, 0xBFF0_0000, "the price in seconds is -1"), (23, 0x7FF8_0000, "the price in seconds is NaN"),
                    (25, 0x3FF0_0000, "proposal->bytes_per_expert is 1, must be 0 without bytes_per_second"),
                    (27, 0xBFF0_0000, "bandwidth is -1, must be 1 to "), (27, 0x7FF8_0000, "bandwidth is NaN"),
                    (29, 0xBFF0_0000, "standard_errors is -1, must be 0 to 100"),
                    (29, 0x7FF8_0000, "standard_errors is NaN"),
                ],
            },
            out_struct::<dualpipe_rebalance_decision>("decision"),
        ]),
    ]
}

/// What the table cannot say: what is wrong behind a pointer.
pub(crate) fn bad_loads_and_texts() {
    let bad = |status: dualpipe_status, want: &str| {
        assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT, "{want}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    };
    let (monitor, history, mut is_kept) = (monitor() as _, history() as _, 9);
    let counts = |slot: usize, count: i32| {
        let mut counts = [1; 12];
        counts[slot] = count;
        counts
    };
    for (expert, count, want) in [
        (4, 1, "slot_to_expert[layer 0, slot 3] is 4, must be 0 to 3"),
        (-2, 1, "slot_to_expert[3] is -2, must be an expert, or -1 for none"),
        (i64::MAX, 1, "slot_to_expert[3] is 9223372036854775807, must be an expert"),
        (-1, 1, "counts[layer 0, slot 3] is 1, must be 0 where the slot is empty"),
        (0, -1, "counts[layer 0, slot 3] is -1, must not be negative"),
    ] {
        let (mut slots, counts) = (SLOTS, counts(3, count));
        slots[3] = expert;
        // SAFETY: locals.
        bad(
            unsafe {
                dualpipe_load_monitor_record_physical(
                    monitor,
                    5,
                    slots.as_ptr(),
                    counts.as_ptr(),
                    12,
                    &mut is_kept,
                )
            },
            want,
        );
        let loads = counts.map(|count| count as f32);
        if count > 0 && (-1..5).contains(&expert) {
            // SAFETY: locals.
            bad(
                unsafe { dualpipe_load_history_append_slots(history, 5, slots.as_ptr(), loads.as_ptr(), 12) },
                "[layer 0, slot 3] is ",
            );
        }
    }
    for load in [f32::NAN, f32::INFINITY, -1.0] {
        let loads = [1.0, 1.0, load, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let want = "must be finite and not negative";
        // SAFETY: locals.
        unsafe {
            bad(dualpipe_load_history_append(history, 5, loads.as_ptr(), 8), want);
            bad(dualpipe_load_history_append_slots(history, 5, SLOTS.as_ptr(), loads.as_ptr(), 12), want);
        }
    }
    for (text, format, want) in [
        (&b"1,2\n3,-4"[..], 3, "line 2, column 2 is -4, must be finite and not negative"),
        (b"1,\xff", 3, "text is not UTF-8 from byte 2 on"),
        (b"", 3, "there is no number"),
        (b"", 1, "there is no eplb_load_stats record"),
        (b"{\"load_history\":[{\"logical_expert_load\":[[1e99]]}]}", 2, "must be finite"),
        (b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 2, "line 1, column"),
    ] {
        let mut read = null_mut();
        // SAFETY: locals.
        bad(unsafe { dualpipe_load_history_read(text.as_ptr().cast(), text.len(), format, &mut read) }, want);
        assert!(read.is_null());
    }
    // SAFETY: handles.
    unsafe {
        bad(dualpipe_load_monitor_merge(monitor, monitor), "other is monitor itself, must be another");
        assert_eq!(is_kept, 9);
        assert_eq!(dualpipe_load_monitor_free(monitor), DUALPIPE_OK);
        assert_eq!(dualpipe_load_history_free(history), DUALPIPE_OK);
    }
}
