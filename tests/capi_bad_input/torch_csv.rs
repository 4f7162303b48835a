//! PyTorch's schedule CSV: its functions with their arguments, and what the table cannot say.

use std::ffi::c_char;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use dualpipe::capi::schedule::*;
use dualpipe::capi::schedule_orders::dualpipe_schedule_create_from_text;
use dualpipe::capi::status::dualpipe_status::{self, *};
use dualpipe::capi::torch_csv::dualpipe_torch_csv_format::*;
use dualpipe::capi::torch_csv::*;

use super::inputs::Arg::*;
use super::inputs::{last_error, Arg, Entry};
use super::loads::bytes;
use super::table::{entry, values};
use super::world::World;

/// 1F1B on two ranks, one micro-batch.
const CSV: &str = "0F0,0B0\n1F0,1B0\n";

const MAJOR: Arg =
    Number("torch_major", 2, &[(0, "is 0.6, must be at least 2.6"), (1, "is 1.6, must be at least 2.6")]);
const MINOR: Arg =
    Number("torch_minor", 6, &[(0, "is 2.0, must be at least 2.6"), (5, "is 2.5, must be at least 2.6")]);
const FORMAT: Arg = Number(
    "format",
    DUALPIPE_TORCH_CSV_COMPUTE_ONLY as usize,
    &[
        (0, "is 0, must be one of DUALPIPE_TORCH_CSV_COMPUTE_ONLY (1), DUALPIPE_TORCH_CSV_COMPUTE_COMMS (2)"),
        (3, "is 3, must be one of "),
        (u32::MAX as usize, "is 4294967295, must be one of "),
    ],
);
/// Of the text: none of it, without the micro-batch of its last cell, more than can be.
const BAD_LENGTHS: &[(usize, &str)] = &[
    (0, "is empty, must have a row for each rank"),
    (CSV.len() - 2, "is \"1B\", must end with a micro-batch"),
    (usize::MAX, "must be 0 to 9223372036854775807"),
];

#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    vec![
        entry("dualpipe_schedule_to_torch_csv",
              |w| unsafe {
                  dualpipe_schedule_to_torch_csv(w.at(0), w.u32(1), w.u32(2), w.u32(3), w.at(4), w.usize(5), w.at(6))
              },
              &[
                  Handle("schedule", |_| two_ranks()), MAJOR, MINOR, FORMAT,
                  values::<c_char>("text"), Capacity, Count("length"),
              ]),
        entry("dualpipe_schedule_create_from_torch_csv",
              |w| unsafe {
                  let (text, name, schedule) = (w.at(0), w.at::<c_char>(5), w.at(6));
                  dualpipe_schedule_create_from_torch_csv(
                      text, w.usize(1), w.u32(2), w.u32(3), w.u32(4), name, schedule,
                  )
              },
              &[
                  Lent("text", 1, |_| bytes(CSV.as_bytes())), Number("num_bytes", CSV.len(), BAD_LENGTHS),
                  MAJOR, MINOR, FORMAT, Anything("name"), Out("schedule", 8),
              ]),
    ]
}

/// A schedule of one direction: the world's has two. It is never freed.
fn two_ranks() -> usize {
    static SCHEDULE: OnceLock<usize> = OnceLock::new();
    *SCHEDULE.get_or_init(|| create_from(CSV, DUALPIPE_TORCH_CSV_COMPUTE_ONLY, c"mine".as_ptr()) as usize)
}

fn read(text: &[u8], format: u32, name: *const c_char) -> (dualpipe_status, dualpipe_schedule_t) {
    let mut schedule = null_mut();
    // SAFETY: locals, and a name that the caller keeps.
    let status = unsafe {
        dualpipe_schedule_create_from_torch_csv(
            text.as_ptr().cast(),
            text.len(),
            2,
            15,
            format,
            name,
            &mut schedule,
        )
    };
    (status, schedule)
}

fn create_from(text: &str, format: dualpipe_torch_csv_format, name: *const c_char) -> dualpipe_schedule_t {
    let (status, schedule) = read(text.as_bytes(), format as u32, name);
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    schedule
}

pub(crate) fn bad_schedules_and_texts(world: &World) {
    bad_schedules(world);
    bad_texts();
}

fn bad_schedules(world: &World) {
    let invalid = DUALPIPE_ERROR_INVALID_ARGUMENT;
    let (only, comms) = (DUALPIPE_TORCH_CSV_COMPUTE_ONLY as u32, DUALPIPE_TORCH_CSV_COMPUTE_COMMS as u32);
    let good = two_ranks() as dualpipe_schedule_t;
    let from_text = |text: &str| {
        let mut schedule = null_mut();
        // SAFETY: locals.
        let status = unsafe {
            dualpipe_schedule_create_from_text(text.as_ptr().cast(), text.len(), null(), &mut schedule)
        };
        assert_eq!(status, DUALPIPE_OK, "{}", last_error());
        schedule
    };
    let forward_only = from_text("0| 0F0\n");
    let late = from_text("0| 0F1 0F0 0B0 0B1\n");
    let stuck = from_text("0| 0B0 0F0\n");
    for (schedule, version, format, status, want) in [
        (
            world.schedule as _,
            (2, 15),
            only,
            invalid,
            "torch csv: schedule is dualpipe, of two directions: each stage",
        ),
        (
            forward_only,
            (2, 15),
            only,
            invalid,
            "torch csv: schedule is custom, forward_only, which torch does not load",
        ),
        (late, (2, 15), only, invalid, "with the forwards of stage 0 out of order, 1 before 0"),
        (
            stuck,
            (2, 15),
            only,
            DUALPIPE_ERROR_INVALID_SCHEDULE,
            "custom: rank 0, position 0 (0B0): this backward",
        ),
        (good, (2, 5), only, invalid, "torch csv: torch_version is 2.5, must be at least 2.6"),
        (good, (2, 16), comms, invalid, "torch csv: torch_version is 2.16, must be at most 2.15"),
        (
            good,
            (u32::MAX, u32::MAX),
            comms,
            invalid,
            "torch_version is 4294967295.4294967295, must be at most 2.15",
        ),
        (good, (u32::MAX, u32::MAX), only, DUALPIPE_OK, ""),
    ] {
        let mut length = 7;
        // SAFETY: a handle and a local.
        let got = unsafe {
            dualpipe_schedule_to_torch_csv(schedule, version.0, version.1, format, null_mut(), 0, &mut length)
        };
        assert_eq!(got, status, "{want}: {}", last_error());
        assert_eq!(length, if status == DUALPIPE_OK { CSV.len() } else { 7 }, "{want}");
        assert!(status == DUALPIPE_OK || last_error().contains(want), "{} does not say {want}", last_error());
    }
    for schedule in [forward_only, late, stuck] {
        // SAFETY: a handle.
        assert_eq!(unsafe { dualpipe_schedule_free(schedule) }, DUALPIPE_OK);
    }
}

fn bad_texts() {
    let comms = DUALPIPE_TORCH_CSV_COMPUTE_COMMS;
    for (text, format, want) in [
        (&b"0F0,\xFF"[..], DUALPIPE_TORCH_CSV_COMPUTE_ONLY, "text is not UTF-8 from byte 4 on"),
        (
            b"0F0\0",
            DUALPIPE_TORCH_CSV_COMPUTE_ONLY,
            "row 1, column 1 (rank 0) is \"0F0\\0\", must end after 0F0",
        ),
        (
            b"0F0,0B0\n0F1,0B1",
            DUALPIPE_TORCH_CSV_COMPUTE_ONLY,
            "stage 0 is on rank 0, and torch has each stage on one",
        ),
        (b"0F0", DUALPIPE_TORCH_CSV_COMPUTE_ONLY, "there are forwards only, which torch does not load"),
        (b"0F0,0B0", comms, "REDUCE_GRAD"),
    ] {
        let (status, schedule) = read(text, format as u32, null());
        assert_eq!(
            (status, schedule),
            (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()),
            "{want}: {}",
            last_error()
        );
        assert!(last_error().starts_with("dualpipe_schedule_create_from_torch_csv: "), "{}", last_error());
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    }
    let name = c"a\tb".as_ptr();
    assert_eq!(read(CSV.as_bytes(), 1, name).0, DUALPIPE_ERROR_INVALID_ARGUMENT);
    assert!(last_error().contains("name is \"a\\tb\", must have no control characters"), "{}", last_error());
}
