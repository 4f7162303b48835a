//! Plans, with and without a spread: their functions with their arguments, and what the table cannot say.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use dualpipe::capi::cost::dualpipe_costs;
use dualpipe::capi::log::dualpipe_set_progress;
use dualpipe::capi::op::DUALPIPE_NONE;
use dualpipe::capi::plan::dualpipe_placement_kind::*;
use dualpipe::capi::plan::*;
use dualpipe::capi::robust_plan::dualpipe_plan_objective::*;
use dualpipe::capi::robust_plan::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::{self, *};

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::table::{entry, out_struct, values};
use super::world::{self, World};

const MANY: usize = DUALPIPE_NONE as usize;

/// Two ranks, on which each of two stages has a copy; few iterations.
pub(crate) fn plan_options() -> dualpipe_plan_options {
    dualpipe_plan_options {
        size: size_of::<dualpipe_plan_options>() as u32,
        placement: DUALPIPE_PLACEMENT_BIDIRECTIONAL as u32,
        num_ranks: 2,
        num_microbatches: 2,
        stages_per_rank: 0,
        num_stages: 0,
        num_directions: 0,
        num_threads: 1,
        rank_of: null(),
        cap_activations: null(),
        num_cap_activations: 0,
        cap_bytes: null(),
        num_cap_bytes: 0,
        iterations: 10,
        time_limit_ns: 0,
        seed: 0,
    }
}

/// Options of a plan as the table tries them.
pub(crate) const OPTIONS: Arg = InStruct {
    name: "options",
    size: 96,
    size_v1: 96,
    align: 8,
    good: |_| inputs::words(&plan_options()),
    bad: &[
        (1, 0, "options->placement is 0, must be one of DUALPIPE_PLACEMENT_LINEAR (1), DUALPIPE_PLACEMENT_V (2), "),
        (1, 6, "options->placement is 6, must be one of "),
        (1, DUALPIPE_NONE, "options->placement is 4294967295, must be one of "),
        (1, 3, "stages_per_rank is 0, must be"),
        (1, 5, "options->num_stages is 0, must be 1 to 8192"),
        (2, 0, "options->num_ranks is 0, must be 1 to 4096"),
        (2, 4097, "options->num_ranks is 4097, must be 1 to 4096"),
        (3, 0, "num_microbatches is 0, must be 1 to 1048576"),
        (3, DUALPIPE_NONE, "num_microbatches is 4294967295, must be 1 to 1048576"),
        (4, 1, "options->stages_per_rank is 1, must be 0 for DUALPIPE_PLACEMENT_BIDIRECTIONAL"),
        (5, 2, "options->num_stages is 2, must be 0 for DUALPIPE_PLACEMENT_BIDIRECTIONAL"),
        (6, 1, "options->num_directions is 1, must be 0 for DUALPIPE_PLACEMENT_BIDIRECTIONAL"),
        (7, 4097, "options->num_threads is 4097, must be 0 to 4096"),
        (8, 4, "options->rank_of must be NULL for DUALPIPE_PLACEMENT_BIDIRECTIONAL"),
        (10, 1, "options->num_cap_activations is 0, must be 1 to 4096"),
        (12, 1, "options->num_cap_activations is 1, must be 0 to 0"),
        (14, 1, "options->num_cap_bytes is 0, must be 1 to 4096"),
        (16, 1, "options->num_cap_bytes is 1, must be 0 to 0"),
        (21, 0x7FFF_FFFF, "options->time_limit_ns is 9223372032559808512, must be 0 to 86400000000000"),
    ],
};

const COSTS: Arg = InStruct {
    name: "costs",
    size: 56,
    size_v1: 40,
    align: 8,
    good: |world: &World| inputs::words(&world::costs(&world.stages[..2])),
    bad: &[(1, 1, "costs->reserved is 1, must be 0"), (4, 0, "costs->num_stages is 0, must be 1 to 8192")],
};

fn spread() -> dualpipe_spread {
    let size = size_of::<dualpipe_spread>() as u32;
    dualpipe_spread { size, samples: 3, op_jitter: 0.1, expert_imbalance: 0.2, seed: 1 }
}

fn made(create: impl FnOnce(*mut dualpipe_plan_t) -> dualpipe_status) -> usize {
    let mut plan = null_mut();
    assert_eq!(create(&mut plan), DUALPIPE_OK, "{}", last_error());
    plan as usize
}

fn new_plan(world: &World) -> usize {
    let costs = world::costs(&world.stages[..2]);
    // SAFETY: locals.
    made(|plan| unsafe { dualpipe_plan_create(&plan_options(), &costs, plan) })
}

/// Neither is ever freed.
fn plan(world: &World) -> usize {
    static PLAN: OnceLock<usize> = OnceLock::new();
    *PLAN.get_or_init(|| new_plan(world))
}

fn robust_plan(world: &World) -> usize {
    static PLAN: OnceLock<usize> = OnceLock::new();
    *PLAN.get_or_init(|| {
        let (costs, objective) = (world::costs(&world.stages[..2]), DUALPIPE_OBJECTIVE_P95 as u32);
        // SAFETY: locals.
        made(|plan| unsafe {
            dualpipe_plan_create_robust(&plan_options(), &costs, &spread(), objective, plan)
        })
    })
}

const PLAN: Arg = Handle("plan", plan);

#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    vec![
        entry("dualpipe_plan_create", |w| unsafe { dualpipe_plan_create(w.at(0), w.at(1), w.at(2)) },
              &[OPTIONS, COSTS, Out("plan", 8)]),
        entry("dualpipe_plan_create_robust",
              |w| unsafe { dualpipe_plan_create_robust(w.at(0), w.at(1), w.at(2), w.u32(3), w.at(4)) },
              &[
                  OPTIONS, COSTS,
                  InStruct {
                      name: "spread", size: 32, size_v1: 32, align: 8,
                      good: |_| inputs::words(&spread()),
                      bad: &[
                          (1, 0, "spread: samples is 0, must be 1 to 1024"),
                          (1, 1025, "spread: samples is 1025, must be 1 to 1024"),
                          (3, 0x7FF8_0000, "spread: op_jitter is NaN, must be 0 to 1"),
                          (3, 0x4000_0000, "spread: op_jitter is 2"),
                          (3, 0xBFF0_0000, "spread: op_jitter is -1"),
                          (5, 0x7FF8_0000, "spread: expert_imbalance is NaN, must be 0 to 1"),
                          (5, 0xFFF0_0000, "spread: expert_imbalance is "),
                      ],
                  },
                  Number("objective", DUALPIPE_OBJECTIVE_MEAN as usize, &[
                      (0, "is 0, must be one of DUALPIPE_OBJECTIVE_MEAN (1), DUALPIPE_OBJECTIVE_P95 (2)"),
                      (3, "is 3, must be one of "), (MANY, "is 4294967295, must be one of "),
                  ]),
                  Out("plan", 8),
              ]),
        entry("dualpipe_plan_free", |w| unsafe { dualpipe_plan_free(w.at(0)) }, &[Owned("plan", new_plan)]),
        entry("dualpipe_plan_describe", |w| unsafe { dualpipe_plan_describe(w.at(0), w.at(1)) },
              &[PLAN, out_struct::<dualpipe_plan_info>("info")]),
        entry("dualpipe_plan_started_from",
              |w| unsafe { dualpipe_plan_started_from(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[PLAN, values::<c_char>("name"), Capacity, Count("length")]),
        entry("dualpipe_plan_peaks",
              |w| unsafe { dualpipe_plan_peaks(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[PLAN, values::<dualpipe_plan_peak>("peaks"), Capacity, Count("count")]),
        entry("dualpipe_plan_sampled",
              |w| unsafe { dualpipe_plan_sampled(w.at(0), w.u32(1), w.at(2)) },
              &[
                  Handle("plan", robust_plan),
                  Number("which", 1, &[
                      (0, "is 0, must be one of DUALPIPE_SAMPLED_PLAN (1), "),
                      (4, "is 4, must be one of "), (MANY, "is 4294967295, must be one of "),
                  ]),
                  out_struct::<dualpipe_sampled>("sampled"),
              ]),
        entry("dualpipe_plan_schedule", |w| unsafe { dualpipe_plan_schedule(w.at(0), w.at(1)) },
              &[PLAN, Out("schedule", 8)]),
    ]
}

pub(crate) fn bad_placements_caps_and_spreads() {
    let world = World::new();
    let costs = world::costs(&world.stages[..2]);
    bad_placements(&world);
    bad_caps(&costs);
    bad_spreads(&costs);
    what_a_plan_lacks(&world);
    a_callback_that_stops_a_plan_gets_the_best_so_far();
}

fn refuse(options: &dualpipe_plan_options, costs: &dualpipe_costs, want: &str) {
    let mut plan = null_mut();
    // SAFETY: locals, and lists that the caller keeps.
    let status = unsafe { dualpipe_plan_create(options, costs, &mut plan) };
    let text = last_error();
    assert_eq!((status, plan), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{want}: {text}");
    assert!(text.starts_with("dualpipe_plan_create: ") && text.contains(want), "{text} does not say {want}");
}

fn bad_placements(world: &World) {
    let costs = world::costs(&world.stages[..2]);
    let custom = DUALPIPE_PLACEMENT_CUSTOM as u32;
    let ranks = [0, 1, 2, 0];
    let good = dualpipe_plan_options {
        placement: custom,
        num_stages: 2,
        num_directions: 1,
        rank_of: ranks.as_ptr(),
        ..plan_options()
    };
    for (options, want) in [
        (dualpipe_plan_options { rank_of: null(), ..good }, "options->rank_of is NULL"),
        (dualpipe_plan_options { num_directions: 0, ..good }, "options->num_directions is 0, must be 1 to 2"),
        (dualpipe_plan_options { num_directions: 3, ..good }, "options->num_directions is 3, must be 1 to 2"),
        (dualpipe_plan_options { num_directions: 2, ..good }, "options->rank_of[2] is 2, must be 0 to 1"),
        (
            dualpipe_plan_options { num_stages: 8193, ..good },
            "options->num_stages is 8193, must be 1 to 8192",
        ),
        (dualpipe_plan_options { stages_per_rank: 1, ..good }, "must be 0 for DUALPIPE_PLACEMENT_CUSTOM"),
    ] {
        refuse(&options, &costs, want);
    }
    let interleaved = dualpipe_plan_options {
        placement: DUALPIPE_PLACEMENT_INTERLEAVED as u32,
        stages_per_rank: 8192,
        ..plan_options()
    };
    refuse(&interleaved, &costs, "stages_per_rank is 8192, must be 1 to 4096");
    // The V of two ranks has four stages.
    let v = dualpipe_plan_options { placement: DUALPIPE_PLACEMENT_V as u32, ..plan_options() };
    refuse(&v, &costs, "the number of stages is 2, must be 1 or 4");
    let nothing = dualpipe_costs { stages: null(), ..costs };
    refuse(&plan_options(), &nothing, "costs->stages is NULL");
}

fn bad_caps(costs: &dualpipe_costs) {
    let activations = |caps: &[u64]| dualpipe_plan_options {
        cap_activations: caps.as_ptr(),
        num_cap_activations: caps.len(),
        ..plan_options()
    };
    let bytes = |caps: &[u64]| dualpipe_plan_options {
        cap_bytes: caps.as_ptr(),
        num_cap_bytes: caps.len(),
        ..plan_options()
    };
    for (options, want) in [
        (activations(&[0]), "activations[0] is 0, must be"),
        (activations(&[2, 0]), "activations[1] is 0, must be"),
        (activations(&[2; 3]), "the number of entries is 3, must be 1 or 2"),
        (bytes(&[u64::MAX]), "bytes[0] is 18446744073709551615, must be 0 to 1125899906842624"),
        (bytes(&[1 << 40; 3]), "the number of entries is 3, must be 1 or 2"),
        (bytes(&[1]), "the memory cap of rank 0 is 1, must be at least 3: one micro-batch on each"),
        (
            dualpipe_plan_options { num_cap_activations: 4097, ..activations(&[2]) },
            "options->num_cap_activations is 4097, must be 1 to 4096",
        ),
        (
            dualpipe_plan_options { cap_bytes: [9].as_ptr(), num_cap_bytes: 1, ..activations(&[2]) },
            "options->cap_bytes must be NULL with cap_activations",
        ),
    ] {
        refuse(&options, costs, want);
    }
}

fn bad_spreads(costs: &dualpipe_costs) {
    const LONG: u64 = 1_000_000_000_000;
    let mut stage = World::new().stages[0];
    [stage.forward_ns, stage.input_ns, stage.weight_ns, stage.overlapped_ns] = [LONG, 0, LONG, LONG];
    let slow = world::costs(std::slice::from_ref(&stage));
    let many = dualpipe_plan_options { num_microbatches: 1 << 20, ..plan_options() };
    let samples = |samples| dualpipe_spread { samples, ..spread() };
    for (options, costs, spread, want) in [
        (many, *costs, samples(9), "spread: samples is 9, must be at most 8"),
        (many, slow, samples(1), "the time of all ops and messages in ns is "),
        (
            plan_options(),
            *costs,
            dualpipe_spread { op_jitter: f64::INFINITY, ..spread() },
            "op_jitter is inf",
        ),
        (
            plan_options(),
            *costs,
            dualpipe_spread { expert_imbalance: -0.5, ..spread() },
            "expert_imbalance is -0.5",
        ),
    ] {
        let mut plan = null_mut();
        let objective = DUALPIPE_OBJECTIVE_MEAN as u32;
        // SAFETY: locals.
        let status = unsafe { dualpipe_plan_create_robust(&options, &costs, &spread, objective, &mut plan) };
        let text = last_error();
        assert_eq!((status, plan), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{want}: {text}");
        assert!(text.contains(want), "{text} does not say {want}");
    }
}

fn what_a_plan_lacks(world: &World) {
    let mut sampled =
        // SAFETY: numbers only.
        dualpipe_sampled { size: size_of::<dualpipe_sampled>() as u32, ..unsafe { std::mem::zeroed() } };
    // SAFETY: a handle and a local.
    let status = unsafe { dualpipe_plan_sampled(plan(world) as _, 1, &mut sampled) };
    assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT);
    assert!(last_error().contains("plan was made without a spread: it has no samples"), "{}", last_error());
    // No published schedule has both stages on rank 1.
    let ranks = [1, 1];
    let options = dualpipe_plan_options {
        placement: DUALPIPE_PLACEMENT_CUSTOM as u32,
        num_stages: 2,
        num_directions: 1,
        rank_of: ranks.as_ptr(),
        ..plan_options()
    };
    let costs = world::costs(&world.stages[..2]);
    // SAFETY: locals.
    let made = made(|plan| unsafe { dualpipe_plan_create_robust(&options, &costs, &spread(), 1, plan) });
    for (which, want) in [(1, DUALPIPE_OK), (2, DUALPIPE_OK), (3, DUALPIPE_ERROR_INVALID_ARGUMENT)] {
        // SAFETY: a handle and a local.
        assert_eq!(unsafe { dualpipe_plan_sampled(made as _, which, &mut sampled) }, want);
    }
    assert!(last_error().contains("which is the published schedule, of which none was"), "{}", last_error());
    // SAFETY: a handle.
    assert_eq!(unsafe { dualpipe_plan_free(made as _) }, DUALPIPE_OK);
}

unsafe extern "C-unwind" fn stops(calls: *mut c_void, _: u64, _: u64) -> i32 {
    // SAFETY: as it was given to dualpipe_set_progress.
    unsafe { *calls.cast::<u32>() += 1 };
    7
}

fn a_callback_that_stops_a_plan_gets_the_best_so_far() {
    let (mut calls, mut schedule) = (0u32, null_mut());
    let mut info =
        // SAFETY: numbers only.
        dualpipe_plan_info { size: size_of::<dualpipe_plan_info>() as u32, ..unsafe { std::mem::zeroed() } };
    // Pairs gain so much that the search goes on as long as it may.
    let mut stage = World::new().stages[0];
    [stage.forward_ns, stage.input_ns, stage.weight_ns, stage.overlapped_ns] = [1000, 1300, 700, 2100];
    let costs = world::costs(std::slice::from_ref(&stage));
    let options =
        dualpipe_plan_options { iterations: u64::MAX, num_ranks: 4, num_microbatches: 7, ..plan_options() };
    // SAFETY: locals; the callback is turned off before they go.
    unsafe {
        dualpipe_set_progress(Some(stops), std::ptr::from_mut(&mut calls).cast());
        let plan = made(|plan| dualpipe_plan_create(&options, &costs, plan)) as dualpipe_plan_t;
        dualpipe_set_progress(None, null_mut());
        assert_eq!(dualpipe_plan_describe(plan, &mut info), DUALPIPE_OK);
        assert_eq!(dualpipe_plan_schedule(plan, &mut schedule), DUALPIPE_OK);
        assert_eq!(dualpipe_plan_free(plan), DUALPIPE_OK);
        assert_eq!(dualpipe_schedule_free(schedule), DUALPIPE_OK);
    }
    assert_eq!((info.stop, calls), (dualpipe_plan_stop::DUALPIPE_STOP_CANCELLED as u32, 1));
    assert!(info.lower_bound_ns <= info.makespan_ns && info.makespan_ns <= info.start_makespan_ns);
}
