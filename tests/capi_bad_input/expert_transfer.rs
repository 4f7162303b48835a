//! Expert transfers: every function with its arguments, and what the table cannot say.

use std::ptr::null_mut;

use dualpipe::capi::expert_transfer::*;
use dualpipe::capi::status::dualpipe_status::*;

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::plans::cluster;
use super::route::CLUSTER;
use super::table::{entry, out_struct, values};

/// 2 layers of 4 experts on 2 GPUs of 3 slots each.
const FROM: [i64; 12] = [0, 1, 2, 1, 2, 3, 3, 3, 0, 0, 1, 2];
const TO: [i64; 12] = [3, 1, 2, 1, 0, 3, 2, 3, 1, 0, 1, 2];
static BYTES: [u64; 2] = [1000, 24];

fn options() -> dualpipe_expert_transfer_options {
    dualpipe_expert_transfer_options {
        size: size_of::<dualpipe_expert_transfer_options>() as u32,
        sends_per_gpu: 0,
        receives_per_gpu: 0,
        copies_per_node_link: 0,
        staging_per_gpu: 0,
        num_tensors: 2,
        num_gains: 0,
        reserved: 0,
        tensor_bytes: BYTES.as_ptr(),
        gains: std::ptr::null(),
    }
}

fn transfers() -> usize {
    let mut transfers = null_mut();
    let (from, to) = (FROM.as_ptr(), TO.as_ptr());
    // SAFETY: locals.
    let status =
        unsafe { dualpipe_expert_transfers_create(&cluster(), 4, from, to, 12, &options(), &mut transfers) };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    transfers as usize
}

/// This thread's own.
fn own_transfers() -> usize {
    thread_local!(static TRANSFERS: usize = transfers());
    TRANSFERS.with(|&transfers| transfers)
}

const TRANSFERS: Arg = Handle("transfers", |_| own_transfers());

/// Every function of transfers.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let reads = |name, call, values| entry(name, call, &[TRANSFERS, values, Capacity, Count("count")]);
    vec![
        entry("dualpipe_expert_transfers_create",
              |w| unsafe {
                  dualpipe_expert_transfers_create(w.at(0), w.u32(1), w.at(2), w.at(3), w.usize(4), w.at(5), w.at(6))
              },
              &[
                  CLUSTER,
                  Number("num_experts", 4, &[
                      (0, "must be 1 to 65536"), (65537, "must be 1 to 65536"),
                      (3, "is 3, must be less than num_experts = 3"), // what from[5] is
                  ]),
                  Lent("from", 8, |_| inputs::words(&FROM)),
                  Lent("to", 8, |_| inputs::words(&TO)),
                  Number("num_slots", 12, &[
                      (0, "must be a multiple of the cluster's 6"), (7, "must be a multiple of"),
                      (usize::MAX / 6 * 6, "must be 0 to"),
                  ]),
                  InStruct {
                      name: "options", size: 48, size_v1: 48, align: 8,
                      good: |_| inputs::words(&options()),
                      bad: &[
                          (1, 1 << 21, "sends_per_gpu is 2097152, must be 1 to 1048576"),
                          (2, u32::MAX, "receives_per_gpu is 4294967295, must be 1 to 1048576"),
                          (3, 1 << 21, "copies_per_node_link is 2097152, must be 0 to 1048576"),
                          (4, 1025, "staging_per_gpu is 1025, must be 0 to 1024"),
                          (6, 1, "options->gains is NULL"), (7, 1, "options->reserved is 1, must be 0"),
                          (8, 1, "options->tensor_bytes is 0x"),
                      ],
                  },
                  Out("transfers", 8),
              ]),
        entry("dualpipe_expert_transfers_free", |w| unsafe { dualpipe_expert_transfers_free(w.at(0)) },
              &[Owned("transfers", |_| transfers())]),
        entry("dualpipe_expert_transfers_describe", |w| unsafe { dualpipe_expert_transfers_describe(w.at(0), w.at(1)) },
              &[TRANSFERS, out_struct::<dualpipe_expert_transfers_info>("info")]),
        reads("dualpipe_expert_transfers_layers",
              |w| unsafe { dualpipe_expert_transfers_layers(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              values::<dualpipe_expert_layer_transfers>("layers")),
        reads("dualpipe_expert_transfers_copies",
              |w| unsafe { dualpipe_expert_transfers_copies(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              values::<dualpipe_expert_copy>("copies")),
        entry("dualpipe_expert_transfers_for_gpu",
              |w| unsafe { dualpipe_expert_transfers_for_gpu(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  TRANSFERS, Number("gpu", 1, &[(2, "must be 0 to 1"), (u32::MAX as usize, "must be 0 to 1")]),
                  values::<dualpipe_expert_copy>("copies"), Capacity, Count("count"),
              ]),
        reads("dualpipe_expert_transfers_staging",
              |w| unsafe { dualpipe_expert_transfers_staging(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              values::<u32>("staging")),
        // Nothing is lost here: room for nothing is enough.
        reads("dualpipe_expert_transfers_lost",
              |w| unsafe { dualpipe_expert_transfers_lost(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              Values { name: "lost", size: 12, align: 4, too_small: &[] }),
        entry("dualpipe_expert_transfers_placement_after",
              |w| unsafe { dualpipe_expert_transfers_placement_after(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[
                  TRANSFERS, Number("layers_done", 2, &[(3, "must be 0 to 2"), (u32::MAX as usize, "must be 0 to 2")]),
                  values::<i64>("experts"), Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_transfers_check", |w| unsafe { dualpipe_expert_transfers_check(w.at(0)) }, &[TRANSFERS]),
    ]
}

/// What the table cannot say: what is wrong behind a pointer.
pub(crate) fn bad_gains_and_tensors() {
    let mut transfers = null_mut();
    let (bytes, nothing) = ([u64::MAX, 1], std::ptr::null());
    for (gain, bytes, want) in [
        (f64::NAN, BYTES.as_ptr(), "gains[1] is NaN, must be finite"),
        (f64::NEG_INFINITY, BYTES.as_ptr(), "gains[1] is -inf, must be finite"),
        (0.0, bytes.as_ptr(), "the sum of tensor_bytes is 2^64 or more, must be at most"),
        (0.0, nothing, "options->tensor_bytes is NULL"),
    ] {
        let gains = [1.0, gain];
        let options = dualpipe_expert_transfer_options {
            tensor_bytes: bytes,
            num_gains: 2,
            gains: gains.as_ptr(),
            ..options()
        };
        let (from, to) = (FROM.as_ptr(), TO.as_ptr());
        // SAFETY: locals.
        let status = unsafe {
            dualpipe_expert_transfers_create(&cluster(), 4, from, to, 12, &options, &mut transfers)
        };
        assert_eq!((status, transfers), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{want}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    }
}
