//! Verify, GPU loads, heat maps and replays: every function with its arguments.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use dualpipe::capi::cluster::*;
use dualpipe::capi::heat_map::*;
use dualpipe::capi::policy::*;
use dualpipe::capi::replay::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::verify::*;

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::plans::{cluster, CLUSTER};
use super::table::{entry, values};

/// 2 layers of 4 experts on 2 GPUs of 3 slots each.
pub(crate) static SLOTS: [i64; 12] = [0, 1, 2, 1, 2, 3, 3, 3, 0, 0, 1, 2];
pub(crate) static SHARES: [f64; 12] = [1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0];
static TABLE: [i64; 16] = [0, -1, 1, 3, 2, 4, 5, -1, 2, 3, 4, -1, 5, -1, 0, 1];
static COUNTS: [i64; 8] = [1, 2, 2, 1, 2, 1, 1, 2];
pub(crate) static LOADS: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0];

pub(crate) fn goal() -> dualpipe_goal {
    dualpipe_goal {
        size: size_of::<dualpipe_goal>() as u32,
        num_layers: 2,
        num_experts: 4,
        num_groups: 0,
        group_rule: 0,
        split: 0,
        min_gpus: 0,
        min_nodes: 0,
        effort: 0,
        reserved: 0,
        price: 0.0,
    }
}

pub(crate) fn placement() -> dualpipe_unverified_placement {
    dualpipe_unverified_placement {
        size: size_of::<dualpipe_unverified_placement>() as u32,
        reserved: 0,
        slot_to_expert: SLOTS.as_ptr(),
        num_slots: 12,
        shares: SHARES.as_ptr(),
        expert_to_slots: TABLE.as_ptr(),
        num_expert_to_slots: 16,
        replica_counts: COUNTS.as_ptr(),
        loads: LOADS.as_ptr(),
        num_experts: 8,
        imbalance_max: 2.0,
    }
}

fn traffic() -> dualpipe_expert_traffic {
    let size = size_of::<dualpipe_expert_traffic>() as u32;
    let (num_layers, num_experts) = (2, 4);
    dualpipe_expert_traffic {
        size,
        num_layers,
        num_experts,
        top_k: 2,
        hidden: 64,
        tokens_per_rank: 8,
        expert_bytes: 100,
    }
}

pub(crate) fn options() -> dualpipe_replay_options {
    dualpipe_replay_options {
        size: size_of::<dualpipe_replay_options>() as u32,
        window: 1,
        every: 1,
        with_bounds: 1,
        num_threads: 1,
        reserved: 0,
        initial: SLOTS.as_ptr(),
        num_slots: 12,
        expert_bytes: 1,
    }
}

pub(crate) fn policy(kind: dualpipe_policy_kind) -> dualpipe_policy {
    dualpipe_policy {
        kind: kind as u32,
        budget: 0,
        name: null(),
        plan: None,
        user_data: null_mut(),
        max_moves: 0,
        max_price: 0.0,
        imbalance: 0.0,
        same_node_price: 0.0,
        other_node_price: 0.0,
    }
}

/// A panel that lives on.
pub(crate) fn panel(title: *const c_char, loads: &'static [f64]) -> dualpipe_heat_map_panel {
    dualpipe_heat_map_panel {
        title,
        cluster: Box::leak(Box::new(cluster())),
        loads: loads.as_ptr(),
        num_loads: loads.len(),
    }
}

/// Of `num_policies` that do nothing, over 3 steps.
fn replay() -> usize {
    let (mut replay, loads) = (null_mut(), LOADS.repeat(3));
    let none = policy(dualpipe_policy_kind::DUALPIPE_POLICY_NONE);
    // SAFETY: locals.
    let status = unsafe {
        dualpipe_replay_create(&cluster(), &goal(), loads.as_ptr(), 24, &options(), &none, 1, &mut replay)
    };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    replay as usize
}

/// One for the whole process: it never changes.
fn one_replay() -> usize {
    static REPLAY: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *REPLAY.get_or_init(replay)
}

const NONE: usize = u32::MAX as usize;
const NAN: u32 = 0x7FF8_0000;
const GOAL: Arg = InStruct {
    name: "goal",
    size: 48,
    size_v1: 48,
    align: 8,
    good: |_| inputs::words(&goal()),
    bad: &[
        (1, 0, "num_layers is 0, must be 1 to 4096"),
        (1, 4097, "num_layers is 4097, must be 1 to 4096"),
        (2, 0, "num_experts is 0, must be 1 to 65536"),
        (2, u32::MAX, "num_experts is 4294967295, must be 1 to 65536"),
        (3, 5, "num_groups is 5, must be 1 to 4"),
        (4, 3, "goal->group_rule is 3, must be one of "),
        (5, 2, "goal->split is 2, must be one of "),
        (9, 1, "goal->reserved is 1, must be 0"),
        (11, NAN, "goal->price is NaN, must be 0 unless"),
    ],
};
const PLACEMENT: Arg = InStruct {
    name: "placement",
    size: 80,
    size_v1: 80,
    align: 8,
    good: |_| inputs::words(&placement()),
    bad: &[
        (1, 1, "placement->reserved is 1, must be 0"),
        (2, 1, "placement->slot_to_expert is 0x"),
        (4, 11, "the length of slot_to_expert is 11, must be 12"),
        (5, u32::MAX, "placement->num_slots is 1844674406"),
        (6, 1, "placement->shares is 0x"),
        (8, 1, "placement->expert_to_slots is 0x"),
        (
            10,
            15,
            "the length of expert_to_slots is 15, must be a multiple of num_layers * num_experts = 2 * 4",
        ),
        (11, u32::MAX, "placement->num_expert_to_slots is 1844674406"),
        (12, 1, "placement->replica_counts is 0x"),
        (14, 1, "placement->loads is 0x"),
        (16, 7, "the length of replica_counts is 7, must be 8"),
        (17, u32::MAX, "placement->num_experts is 1844674406"),
        (19, 0, "imbalance_max is 0, must be at least 1"),
        (19, NAN, "imbalance_max is NaN, must be at least 1"),
    ],
};
const EXPERTS: Arg = Lent("slot_to_expert", 8, |_| inputs::words(&SLOTS));

/// A number of values.
fn length(name: &'static str, good: usize, bad: &'static [(usize, &'static str)]) -> Arg {
    Number(name, good, bad)
}

/// Every function of these pages.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let replay_of = Handle("replay", |_| one_replay());
    let run = Number("run", 0, &[(1, "must be 0 to 0"), (NONE, "must be 0 to 0")]);
    vec![
        entry("dualpipe_expert_verify",
              |w| unsafe { dualpipe_expert_verify(w.at(0), w.at(1), w.at(2), w.at(3), w.at(4), w.usize(5), w.at(6)) },
              &[
                  CLUSTER, GOAL, PLACEMENT, Out("verdict", 8),
                  // One finding: expert 3 is twice on GPU 0.
                  Values { name: "findings", size: 72, align: 8, too_small: &[0] }, Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_verify_text",
              |w| unsafe { dualpipe_expert_verify_text(w.at(0), w.at(1), w.at(2), w.at(3), w.usize(4), w.at(5)) },
              &[CLUSTER, GOAL, PLACEMENT, values::<c_char>("text"), Capacity, Count("length")]),
        entry("dualpipe_expert_hash",
              |w| unsafe { dualpipe_expert_hash(w.at(0), w.at(1), null(), w.usize(3), w.at(4)) },
              &[
                  CLUSTER, EXPERTS, Anything("shares"),
                  length("num_slots", 12, &[(usize::MAX, "must be 0 to ")]), Out("hash", 8),
              ]),
        entry("dualpipe_expert_hash_agree",
              |w| unsafe { dualpipe_expert_hash_agree(w.at(0), w.usize(1), w.at(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  Lent("hashes", 8, |_| vec![1, 2, 1]),
                  length("num_ranks", 3, &[(0, "must be 1 to 1048576"), (usize::MAX, "must be 1 to 1048576")]),
                  Out("hash", 8),
                  Values { name: "ranks", size: 4, align: 4, too_small: &[0] }, Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_buffers", |w| unsafe { dualpipe_expert_buffers(w.at(0), w.at(1), w.at(2)) }, &[
            CLUSTER,
            InStruct {
                name: "traffic", size: 32, size_v1: 32, align: 8,
                good: |_| inputs::words(&traffic()),
                bad: &[
                    (1, 0, "num_layers is 0, must be 1 to 4096"),
                    (2, 65537, "num_experts is 65537, must be 1 to 65536"),
                    (3, 5, "top_k is 5, must be 1 to 4"), (3, 0, "top_k is 0, must be 1 to 4"),
                    (4, 0, "hidden is 0, must be 1 to 1048576"),
                    (5, u32::MAX, "tokens_per_rank is 4294967295, must be"),
                    (7, 32, "expert_bytes is 137438953572, must be 0 to 137438953472"),
                ],
            },
            OutStruct { name: "memory", size: 40, align: 8 },
        ]),
        entry("dualpipe_expert_gpu_loads",
              |w| unsafe {
                  dualpipe_expert_gpu_loads(w.at(0), w.u32(1), w.at(2), null(), w.usize(4), w.at(5), w.usize(6),
                                            w.at(7), w.usize(8), w.at(9))
              },
              &[
                  CLUSTER,
                  Number("num_experts", 4, &[
                      (0, "must be 1 to 65536"), (NONE, "must be 1 to 65536"), (3, "is 8, must be 6"),
                  ]),
                  EXPERTS, Anything("shares"),
                  Number("num_slots", 12, &[
                      (0, "is 0, must be 12"), (11, "is 11, must be 12"), (usize::MAX, "must be 0 to "),
                  ]),
                  Lent("loads", 4, |_| inputs::words(&LOADS)),
                  Number("num_loads", 8, &[
                      (0, "is 0, must be 1 to 4096"), (7, "is 7, must be 4"),
                      (usize::MAX, "must be 0 to "),
                  ]),
                  values::<f64>("gpu_loads"), Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_node_loads",
              |w| unsafe { dualpipe_expert_node_loads(w.at(0), w.at(1), w.usize(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  CLUSTER, Lent("gpu_loads", 8, |_| inputs::words(&[1.0f64; 4])),
                  Number("num_gpu_loads", 4, &[
                      (0, "must be a multiple of num_gpus = 2"), (3, "must be a multiple of num_gpus = 2"),
                      (usize::MAX, "must be 0 to "),
                  ]),
                  values::<f64>("node_loads"), Capacity, Count("count"),
              ]),
        entry("dualpipe_heat_map",
              |w| unsafe { dualpipe_heat_map(w.at(0), w.usize(1), w.u32(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  Lent("panels", 8, |_| inputs::words(&panel(c"title".as_ptr(), &[1.0; 4]))),
                  Number("num_panels", 1, &[
                      (0, "must be 1 to 16"), (17, "must be 1 to 16"), (usize::MAX, "must be 1 to 16"),
                  ]),
                  Number("format", 1, &[(0, "must be one of DUALPIPE_HEAT_MAP_TEXT (1), "), (3, "must be one of ")]),
                  values::<c_char>("text"), Capacity, Count("length"),
              ]),
        entry("dualpipe_replay_create",
              |w| unsafe {
                  dualpipe_replay_create(w.at(0), w.at(1), w.at(2), w.usize(3), w.at(4), w.at(5), w.usize(6), w.at(7))
              },
              &[
                  CLUSTER, GOAL,
                  Lent("loads", 4, |_| inputs::words(&[LOADS, LOADS, LOADS])),
                  Number("num_loads", 24, &[
                      (0, "is 0, must be 2 to 65536"), (8, "is 1, must be 2 to 65536"),
                      (23, "is 23, must be 16"), (usize::MAX, "must be 0 to "),
                  ]),
                  InStruct {
                      name: "options", size: 48, size_v1: 48, align: 8,
                      good: |_| inputs::words(&options()),
                      bad: &[
                          (1, 0, "window is 0, must be 1 to 2"), (1, 3, "window is 3, must be 1 to 2"),
                          (2, 0, "every is 0, must be 1 to "), (3, 2, "options->with_bounds is 2, must be 0 to 1"),
                          (4, 4097, "num_threads is 4097, must be 0 to 4096"),
                          (5, 1, "options->reserved is 1, must be 0"),
                          (6, 1, "options->initial is 0x"), (8, 11, "the length of slot_to_expert is 11, must be 12"),
                          (9, u32::MAX, "options->num_slots is 1844674406"),
                          (11, 32, "expert_bytes is 137438953473, must be 0 to 137438953472"),
                      ],
                  },
                  Lent("policies", 8, |_| inputs::words(&policy(dualpipe_policy_kind::DUALPIPE_POLICY_REFINED))),
                  Number("num_policies", 1, &[
                      (0, "must be 1 to 64"), (65, "must be 1 to 64"), (usize::MAX, "must be 1 to 64"),
                  ]),
                  Out("replay", 8),
              ]),
        entry("dualpipe_replay_free", |w| unsafe { dualpipe_replay_free(w.at(0)) }, &[Owned("replay", |_| replay())]),
        entry("dualpipe_replay_runs",
              |w| unsafe { dualpipe_replay_runs(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[replay_of, Values { name: "runs", size: 88, align: 8, too_small: &[0] }, Capacity, Count("count")]),
        entry("dualpipe_replay_windows",
              |w| unsafe { dualpipe_replay_windows(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[replay_of, run, values::<dualpipe_replay_window>("windows"), Capacity, Count("count")]),
        entry("dualpipe_replay_layers",
              |w| unsafe { dualpipe_replay_layers(w.at(0), w.u32(1), w.u32(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  replay_of, run, Number("window", 1, &[(2, "must be 0 to 1"), (NONE - 1, "must be 0 to 1")]),
                  values::<dualpipe_replay_layer>("layers"), Capacity, Count("count"),
              ]),
        entry("dualpipe_replay_gpu_loads",
              |w| unsafe { dualpipe_replay_gpu_loads(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[replay_of, run, values::<f64>("gpu_loads"), Capacity, Count("count")]),
        entry("dualpipe_replay_text",
              |w| unsafe { dualpipe_replay_text(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[replay_of, values::<c_char>("text"), Capacity, Count("length")]),
    ]
}
