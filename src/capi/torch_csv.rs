//! PyTorch's schedule CSV: schedules that torch.distributed.pipelining loads, and those that it dumps.
//!
//! A row for each rank, a cell for each action: 3F0 is the forward of micro-batch 0 in stage 3, likewise I, W and B;
//! (0F3;3B1)OVERLAP_F_B is a pair. What else a cell may hold depends on the format and on the version of torch, and
//! torch does not refuse what only another version knows, so both are said:
//!
//! ```text
//! torch         COMPUTE_ONLY            COMPUTE_COMMS
//! 2.6 to 2.8    F, I, W, B and blanks   F, I, W, B, SEND_F, RECV_F, SEND_B, RECV_B, UNSHARD, RESHARD
//! 2.9           also pairs              as before
//! 2.10 to 2.14  as before               also pairs and REDUCE_GRAD
//! 2.15          as before               also WAIT_SEND_F, WAIT_SEND_B, WAIT_REDUCE_GRAD
//! newer         as before               not known
//! ```
//!
//! ```c
//! // Writes a file for `_PipelineScheduleRuntime._load_csv` of torch 2.10 or newer.
//! #include <dualpipe.h>
//! #include <stdio.h>
//! #include <stdlib.h>
//!
//! static dualpipe_status write_csv(dualpipe_schedule_t schedule, FILE *file) {
//!   const uint32_t format = DUALPIPE_TORCH_CSV_COMPUTE_ONLY;
//!   size_t length = 0;
//!   dualpipe_status status = dualpipe_schedule_to_torch_csv(schedule, 2, 10, format, NULL, 0, &length);
//!   if (status != DUALPIPE_OK) return status;
//!   char *text = malloc(length + 1);
//!   if (text != NULL) status = dualpipe_schedule_to_torch_csv(schedule, 2, 10, format, text, length + 1, &length);
//!   if (text != NULL && status == DUALPIPE_OK) fputs(text, file);
//!   free(text);
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle;
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::schedule_orders::read_name;
use super::status::dualpipe_status;
use super::status::Outcome;
use crate::schedule::torch_csv::{read_csv, write_csv, Format, TorchVersion};

use dualpipe_torch_csv_format::*;

/// What a CSV of torch's holds: the format of its `_load_csv`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_torch_csv_format {
    /// "compute_only": F, I, W, B and pairs; torch puts in the communication when it loads the file. Its default.
    DUALPIPE_TORCH_CSV_COMPUTE_ONLY = 1,
    /// "compute_comms": the communication is in the file.
    DUALPIPE_TORCH_CSV_COMPUTE_COMMS = 2,
}

/// A schedule as the CSV that torch `torch_major`.`torch_minor` loads (format: a dualpipe_torch_csv_format).
///
/// Torch has no pairs before 2.9, in COMPUTE_COMMS before 2.10: there they are forward, then backward. COMPUTE_COMMS
/// has the sends and receives, the gathering and releasing of sharded parameters (UNSHARD before the first action,
/// RESHARD after a stage's last one), from 2.10 the gradient reductions, from 2.15 the waits. A NUL ends the text; the
/// length is without the NUL.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a version before 2.6, of COMPUTE_COMMS after 2.15; and for schedules
/// that torch does not run: of two directions, forward only, with a rank that holds no stage, or whose last stage takes
/// micro-batches out of their order. DUALPIPE_ERROR_INVALID_SCHEDULE, with rank, position, op and reason, if it cannot
/// run at all. Time: proportional to the length, for COMPUTE_COMMS times the logarithm of the ranks.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_to_torch_csv(
    schedule: dualpipe_schedule_t,
    torch_major: u32,
    torch_minor: u32,
    format: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_schedule_to_torch_csv", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        let version = TorchVersion { major: torch_major, minor: torch_minor };
        let format = read_format(format)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&write_csv(&object.schedule, version, format)?)
    })
}

/// Creates a schedule, of kind DUALPIPE_KIND_CUSTOM, from a CSV for torch `torch_major`.`torch_minor`: of num_bytes
/// bytes of UTF-8, which needs no NUL; format: a dualpipe_torch_csv_format. `name` as of dualpipe_schedule_orders.
///
/// The stages are on the ranks whose rows have them; there is one micro-batch more than the highest number. What
/// COMPUTE_COMMS has besides computations must be complete, and is then left out: a program has its own messages. Lines
/// may end with CR LF; blanks around a cell, and quotes, do not matter; a cell may be empty in COMPUTE_ONLY.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with row, column, rank and cell: what is no action, or none that this
/// version takes for what it says; numbers out of range; a stage on two ranks or on none; no backward at all; sends,
/// receives, reductions and waits that are doubled, too early, of a pass that the row does not compute, or missing
/// where the version wants them. Whether the schedule can run is dualpipe_schedule_check's to say. Time and memory:
/// proportional to num_bytes and the passes.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_create_from_torch_csv(
    text: *const c_char,
    num_bytes: usize,
    torch_major: u32,
    torch_minor: u32,
    format: u32,
    name: *const c_char,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_schedule_create_from_torch_csv", || {
        // SAFETY: the caller's, as are the next two.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        let version = TorchVersion { major: torch_major, minor: torch_minor };
        let format = read_format(format)?;
        // SAFETY: as above.
        let (name, out) = unsafe { (read_name("name", name)?, Out::new("schedule", schedule)?) };
        let schedule = read_csv(text, version, format)?.into_schedule().renamed(name);
        out.write(handle::insert(ScheduleObject::custom(schedule))?);
        Ok(())
    })
}

pub(super) fn read_format(format: u32) -> Outcome<Format> {
    let all = [DUALPIPE_TORCH_CSV_COMPUTE_ONLY, DUALPIPE_TORCH_CSV_COMPUTE_COMMS];
    Ok(match args::one_of("format", format, all.map(|format| (format as u32, format)))? {
        DUALPIPE_TORCH_CSV_COMPUTE_ONLY => Format::ComputeOnly,
        DUALPIPE_TORCH_CSV_COMPUTE_COMMS => Format::ComputeComms,
    })
}
