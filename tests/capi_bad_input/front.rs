//! Fronts and comparisons: every function with its arguments, and what the table cannot say.

use std::ffi::c_char;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use dualpipe::capi::comparison::*;
use dualpipe::capi::cost::{dualpipe_costs, dualpipe_stage_costs};
use dualpipe::capi::front::dualpipe_memory_unit::*;
use dualpipe::capi::front::*;
use dualpipe::capi::plan::{dualpipe_placement_kind, dualpipe_plan_options};
use dualpipe::capi::status::dualpipe_status::{self, *};

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::table::{entry, out_struct, values};

/// Of 2 ranks in a V, 3 micro-batches: each rank has to keep 2 activations, and 4 published schedules are possible.
fn plan_options() -> dualpipe_plan_options {
    dualpipe_plan_options {
        size: size_of::<dualpipe_plan_options>() as u32,
        placement: dualpipe_placement_kind::DUALPIPE_PLACEMENT_V as u32,
        num_ranks: 2,
        num_microbatches: 3,
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
        seed: 1,
    }
}

/// The same devices and as much effort: 28 candidates, of which those that want an even number of micro-batches are not
/// possible.
fn comparison_options() -> dualpipe_comparison_options {
    dualpipe_comparison_options {
        size: size_of::<dualpipe_comparison_options>() as u32,
        num_ranks: 2,
        num_microbatches: 3,
        num_threads: 1,
        cap_activations: null(),
        num_cap_activations: 0,
        cap_bytes: null(),
        num_cap_bytes: 0,
        iterations: 10,
        time_limit_ns: 0,
        seed: 1,
    }
}

/// Of all stages alike; the list stays.
fn costs() -> dualpipe_costs {
    static STAGE: dualpipe_stage_costs = dualpipe_stage_costs {
        forward_ns: 1000,
        input_ns: 1000,
        weight_ns: 1000,
        overlapped_ns: 2500,
        output_bytes: 1 << 20,
        activation_bytes: 1 << 10,
        parameter_bytes: 1 << 20,
    };
    dualpipe_costs {
        size: size_of::<dualpipe_costs>() as u32,
        reserved: 0,
        stages: &STAGE,
        num_stages: 1,
        p2p_latency_ns: 0,
        p2p_bytes_per_second: 0,
        pairs: null(),
        num_pairs: 0,
    }
}

const CAPS: [u64; 2] = [2, 5];

/// A new front.
fn front() -> usize {
    let mut front = null_mut();
    let unit = DUALPIPE_MEMORY_ACTIVATIONS as u32;
    // SAFETY: locals.
    let status =
        unsafe { dualpipe_front_create(&plan_options(), &costs(), unit, CAPS.as_ptr(), 2, &mut front) };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    front as usize
}

/// One that is never freed.
fn one_front() -> usize {
    static FRONT: OnceLock<usize> = OnceLock::new();
    *FRONT.get_or_init(front)
}

/// A new comparison.
fn comparison() -> usize {
    let mut comparison = null_mut();
    // SAFETY: locals.
    let status = unsafe { dualpipe_comparison_create(&comparison_options(), &costs(), &mut comparison) };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    comparison as usize
}

/// One that is never freed.
fn one_comparison() -> usize {
    static COMPARISON: OnceLock<usize> = OnceLock::new();
    *COMPARISON.get_or_init(comparison)
}

const MOST: usize = u32::MAX as usize;
const COSTS: Arg = InStruct {
    name: "costs",
    size: 56,
    size_v1: 40,
    align: 8,
    good: |_| inputs::words(&costs()),
    bad: &[
        (1, 1, "costs->reserved is 1, must be 0"),
        (2, 1, "costs->stages is 0x"),
        (4, 0, "costs->num_stages is 0, must be 1 to 8192"),
    ],
};
const FRONT: Arg = Handle("front", |_| one_front());
const POINT: Arg = Number("point", 1, &[(2, "must be 0 to 1"), (MOST, "must be 0 to 1")]);
const COMPARISON: Arg = Handle("comparison", |_| one_comparison());
/// The last, which is not possible.
const CANDIDATE: Arg = Number("candidate", 27, &[(28, "must be 0 to 27"), (MOST, "must be 0 to 27")]);

const POSSIBLE: Arg = Number(
    "candidate",
    0,
    &[(27, "is 27, dualpipe on bidirectional, which is not possible: "), (28, "must be 0 to 27")],
);

#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let text = |name| [values::<c_char>(name), Capacity, Count("length")];
    let [name, capacity, length] = text("name");
    let [drawn, ..] = text("text");
    let [reason, ..] = text("reason");
    let mut entries = front_entries(name, drawn);
    entries.extend([
        entry("dualpipe_comparison_create", |w| unsafe { dualpipe_comparison_create(w.at(0), w.at(1), w.at(2)) }, &[
            InStruct {
                name: "options", size: 72, size_v1: 72, align: 8,
                good: |_| inputs::words(&comparison_options()),
                bad: &[
                    (1, 0, "num_ranks is 0, must be 1 to 4096"),
                    (1, 4097, "num_ranks is 4097, must be 1 to 4096"),
                    (2, 0, "num_microbatches is 0, must be 1 to 1048576"),
                    (2, u32::MAX, "num_microbatches is 4294967295, must be 1 to 1048576"),
                    (2, 1 << 20, "num_ranks times num_microbatches is 2097152, must be 1 to 262144"),
                    (3, 4097, "options->num_threads is 4097, must be 0 to 4096"),
                    (6, 1, "options->num_cap_activations is 1, must be 0 to 0"),
                    (10, 1, "options->num_cap_bytes is 1, must be 0 to 0"),
                    (15, u32::MAX, "must be 0 to 86400000000000"),
                ],
            },
            COSTS, Out("comparison", 8),
        ]),
        entry("dualpipe_comparison_free", |w| unsafe { dualpipe_comparison_free(w.at(0)) },
              &[Owned("comparison", |_| comparison())]),
        entry("dualpipe_comparison_count", |w| unsafe { dualpipe_comparison_count(w.at(0), w.at(1)) },
              &[COMPARISON, Out("count", 4)]),
        entry("dualpipe_comparison_candidate",
              |w| unsafe { dualpipe_comparison_candidate(w.at(0), w.u32(1), w.at(2)) },
              &[COMPARISON, CANDIDATE, out_struct::<dualpipe_candidate>("info")]),
        entry("dualpipe_comparison_name",
              |w| unsafe { dualpipe_comparison_name(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[COMPARISON, CANDIDATE, name, capacity, length]),
        entry("dualpipe_comparison_reason",
              |w| unsafe { dualpipe_comparison_reason(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[COMPARISON, CANDIDATE, reason, capacity, length]),
        entry("dualpipe_comparison_schedule",
              |w| unsafe { dualpipe_comparison_schedule(w.at(0), w.u32(1), w.at(2)) },
              &[COMPARISON, POSSIBLE, Out("schedule", 8)]),
        entry("dualpipe_comparison_timeline",
              |w| unsafe { dualpipe_comparison_timeline(w.at(0), w.u32(1), w.at(2)) },
              &[COMPARISON, POSSIBLE, Out("timeline", 8)]),
        entry("dualpipe_comparison_text",
              |w| unsafe { dualpipe_comparison_text(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[COMPARISON, drawn, capacity, length]),
    ]);
    entries
}

#[rustfmt::skip] // as above
#[allow(clippy::undocumented_unsafe_blocks)] // as above
fn front_entries(name: Arg, text: Arg) -> Vec<Entry> {
    vec![
        entry("dualpipe_front_create",
              |w| unsafe { dualpipe_front_create(w.at(0), w.at(1), w.u32(2), w.at(3), w.usize(4), w.at(5)) },
              &[
                  InStruct {
                      name: "options", size: 96, size_v1: 96, align: 8,
                      good: |_| inputs::words(&plan_options()),
                      bad: &[
                          (1, 0, "options->placement is 0, must be one of DUALPIPE_PLACEMENT_LINEAR (1), "),
                          (2, 0, "options->num_ranks is 0, must be 1 to 4096"),
                          (3, 0, "num_microbatches is 0, must be 1 to 1048576"),
                          (4, 1, "options->stages_per_rank is 1, must be 0 for DUALPIPE_PLACEMENT_V"),
                          (7, 4097, "options->num_threads is 4097, must be 0 to 4096"),
                          (12, 1, "options->num_cap_activations is 1, must be 0 to 0"),
                          (21, u32::MAX, "must be 0 to 86400000000000"),
                      ],
                  },
                  COSTS,
                  Number("unit", DUALPIPE_MEMORY_ACTIVATIONS as usize, &[
                      (0, "is 0, must be one of DUALPIPE_MEMORY_ACTIVATIONS (1), DUALPIPE_MEMORY_BYTES (2)"),
                      (3, "is 3, must be one of "),
                      (MOST, "is 4294967295, must be one of "),
                  ]),
                  Lent("caps", 8, |_| CAPS.to_vec()),
                  Number("num_caps", 2, &[
                      (0, "must be 1 to 256"), (257, "must be 1 to 256"), (usize::MAX, "must be 1 to 256"),
                  ]),
                  Out("front", 8),
              ]),
        entry("dualpipe_front_free", |w| unsafe { dualpipe_front_free(w.at(0)) }, &[Owned("front", |_| front())]),
        entry("dualpipe_front_describe", |w| unsafe { dualpipe_front_describe(w.at(0), w.at(1)) },
              &[FRONT, out_struct::<dualpipe_front_info>("info")]),
        entry("dualpipe_front_describe_point",
              |w| unsafe { dualpipe_front_describe_point(w.at(0), w.u32(1), w.at(2)) },
              &[FRONT, POINT, out_struct::<dualpipe_front_point>("info")]),
        entry("dualpipe_front_started_from",
              |w| unsafe { dualpipe_front_started_from(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[FRONT, POINT, name, Capacity, Count("length")]),
        entry("dualpipe_front_schedule", |w| unsafe { dualpipe_front_schedule(w.at(0), w.u32(1), w.at(2)) },
              &[FRONT, POINT, Out("schedule", 8)]),
        entry("dualpipe_front_published_schedules",
              |w| unsafe { dualpipe_front_published_schedules(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[FRONT, values::<dualpipe_front_published>("published"), Capacity, Count("count")]),
        entry("dualpipe_front_published_name",
              |w| unsafe { dualpipe_front_published_name(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  FRONT,
                  Number("published", 3, &[
                      (4, "must be less than num_published, which is 4"),
                      (MOST, "must be less than num_published, which is 4"),
                  ]),
                  name, Capacity, Count("length"),
              ]),
        entry("dualpipe_front_draw",
              |w| unsafe { dualpipe_front_draw(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  FRONT,
                  Number("format", dualpipe_front_format::DUALPIPE_FRONT_TEXT as usize, &[
                      (0, "is 0, must be one of DUALPIPE_FRONT_TEXT (1), DUALPIPE_FRONT_SVG (2)"),
                      (3, "is 3, must be one of "),
                  ]),
                  text, Capacity, Count("length"),
              ]),
    ]
}

/// What is wrong only together with something else.
pub(crate) fn bad_caps_and_placements() {
    let cap = 9u64;
    let capped = dualpipe_plan_options { cap_activations: &cap, num_cap_activations: 1, ..plan_options() };
    // SAFETY: the one stage of `costs`, which stays.
    let three = [unsafe { *costs().stages }; 3];
    let of_three = dualpipe_costs { stages: three.as_ptr(), num_stages: 3, ..costs() };
    for (options, costs, caps, want) in [
        (capped, costs(), &[3u64, 4][..], "options must have no caps: those of a front are its own"),
        (plan_options(), costs(), &[4, 3], "front: caps[1] is 3, must be more than 4, the one before"),
        (plan_options(), costs(), &[4, 4], "front: caps[1] is 4, must be more than 4, the one before"),
        (plan_options(), costs(), &[0, 4], "front: caps[0] is 0, must be at least 1"),
        (plan_options(), costs(), &[1, 4], "the memory cap of rank 0 is 1, must be at least 2"),
        (
            plan_options(),
            of_three,
            &[3, 4],
            "the number of stages is 3, must be 1 or 4, the schedule's stages",
        ),
    ] {
        let mut front = null_mut();
        let unit = DUALPIPE_MEMORY_ACTIVATIONS as u32;
        // SAFETY: locals.
        let status =
            unsafe { dualpipe_front_create(&options, &costs, unit, caps.as_ptr(), caps.len(), &mut front) };
        refused(status, "dualpipe_front_create", want);
        assert!(front.is_null(), "{want}");
    }
    let two = [9u64; 3];
    let many =
        dualpipe_comparison_options { cap_bytes: two.as_ptr(), num_cap_bytes: 3, ..comparison_options() };
    let both = dualpipe_comparison_options {
        cap_activations: &cap,
        num_cap_activations: 1,
        cap_bytes: &cap,
        num_cap_bytes: 1,
        ..comparison_options()
    };
    for (options, costs, want) in [
        (many, costs(), "the number of entries is 3, must be 1 or 2, one for each rank"),
        (both, costs(), "options->cap_bytes must be NULL with cap_activations"),
        (
            comparison_options(),
            of_three,
            "the number of stages with costs is 3, must be 1 or a multiple of 2",
        ),
    ] {
        let mut comparison = null_mut();
        // SAFETY: locals.
        let status = unsafe { dualpipe_comparison_create(&options, &costs, &mut comparison) };
        refused(status, "dualpipe_comparison_create", want);
        assert!(comparison.is_null(), "{want}");
    }
    let mut schedule = null_mut();
    // SAFETY: a handle and a local.
    let status = unsafe { dualpipe_comparison_schedule(one_comparison() as _, 27, &mut schedule) };
    refused(status, "dualpipe_comparison_schedule", "which is not possible: ");
    assert!(schedule.is_null());
}

fn refused(status: dualpipe_status, function: &str, want: &str) {
    assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT, "{want}");
    let text = last_error();
    assert!(text.starts_with(&format!("{function}: ")) && text.contains(want), "{text} does not say {want}");
}
