//! Schedules from outside and costs of pairs: every function with its arguments, and what the table cannot say.

use std::ffi::{c_char, CStr};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use dualpipe::capi::cost::{dualpipe_costs, dualpipe_pair_costs};
use dualpipe::capi::op::dualpipe_op_kind::*;
use dualpipe::capi::op::{dualpipe_op, dualpipe_op_kind, dualpipe_pass, DUALPIPE_NONE};
use dualpipe::capi::schedule::*;
use dualpipe::capi::schedule_orders::*;
use dualpipe::capi::status::dualpipe_status::{self, *};
use dualpipe::capi::timeline::*;

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Entry};
use super::table::{entry, values};
use super::world::{self, World};

const RANK_OF: [u32; 3] = [0, 1, 1];
const TEXT: &str = "0| 0F0 0B0\n1| 1F0 2F0 2B0 1B0\n";

/// Of the text: none of it, without the micro-batch of its last op, more than can be.
const BAD_LENGTHS: &[(usize, &str)] = &[
    (0, "is 0, must be at least 1"),
    (TEXT.len() - 2, "is \"1B\", must be STAGE"),
    (usize::MAX, "must be 0 to 9223372036854775807"),
];

fn op(kind: u32, stage: u32) -> dualpipe_op {
    let pass = dualpipe_pass { direction: 0, stage, microbatch: 0, copy: 77 };
    let none = dualpipe_pass { direction: 99, stage: 99, microbatch: DUALPIPE_NONE, copy: 0 };
    match kind == DUALPIPE_OP_F as u32 {
        true => dualpipe_op { kind, forward: pass, backward: none },
        false => dualpipe_op { kind, forward: none, backward: pass },
    }
}

fn ops(of: &[(dualpipe_op_kind, u32)]) -> Vec<dualpipe_op> {
    of.iter().map(|&(kind, stage)| op(kind as u32, stage)).collect()
}

fn order(ops: &[dualpipe_op]) -> dualpipe_order {
    dualpipe_order { ops: ops.as_ptr(), num_ops: ops.len() }
}

fn orders(orders: &[dualpipe_order]) -> dualpipe_schedule_orders {
    dualpipe_schedule_orders {
        size: size_of::<dualpipe_schedule_orders>() as u32,
        num_ranks: 2,
        num_stages: 3,
        num_directions: 1,
        num_microbatches: 1,
        forward_only: 0,
        rank_of: RANK_OF.as_ptr(),
        orders: orders.as_ptr(),
        name: c"mine".as_ptr(),
    }
}

fn first() -> Vec<dualpipe_op> {
    ops(&[(DUALPIPE_OP_F, 0), (DUALPIPE_OP_B, 0)])
}

fn second() -> Vec<dualpipe_op> {
    ops(&[(DUALPIPE_OP_F, 1), (DUALPIPE_OP_F, 2), (DUALPIPE_OP_B, 2), (DUALPIPE_OP_B, 1)])
}

/// The struct, and lists that stay.
fn good_orders() -> Vec<u64> {
    static LISTS: OnceLock<usize> = OnceLock::new();
    let lists = *LISTS.get_or_init(|| {
        let lists = [first(), second()].map(|ops| order(ops.leak()));
        std::ptr::from_ref(&*Box::leak(Box::new(lists))) as usize
    });
    let mut given = orders(&[]);
    given.orders = lists as _;
    static RANKS: [u32; 3] = RANK_OF;
    given.rank_of = RANKS.as_ptr();
    inputs::words(&given)
}

fn good_text() -> Vec<u64> {
    let mut words = vec![0; TEXT.len().div_ceil(8)];
    for (i, byte) in TEXT.bytes().enumerate() {
        words[i / 8] |= u64::from(byte) << (8 * (i % 8));
    }
    words
}

#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    vec![
        entry("dualpipe_schedule_create_from_orders",
              |w| unsafe { dualpipe_schedule_create_from_orders(w.at(0), w.at(1)) },
              &[
                  InStruct {
                      name: "orders", size: 48, size_v1: 48, align: 8,
                      good: |_| good_orders(),
                      bad: &[
                          (1, 0, "orders->num_ranks is 0, must be 1 to 4096"),
                          (1, 4097, "orders->num_ranks is 4097, must be 1 to 4096"),
                          (1, 1, "orders->rank_of[1] is 1, must be 0 to 0"),
                          (2, 0, "orders->num_stages is 0, must be 1 to 8192"),
                          (2, 8193, "orders->num_stages is 8193, must be 1 to 8192"),
                          (3, 0, "orders->num_directions is 0, must be 1 to 2"),
                          (3, 3, "orders->num_directions is 3, must be 1 to 2"),
                          (4, 0, "mine: num_microbatches is 0, must be 1 to 1048576"),
                          (4, DUALPIPE_NONE, "mine: num_microbatches is 4294967295, must be 1 to 1048576"),
                          (5, 2, "orders->forward_only is 2, must be 0 to 1"),
                          (6, 1, "orders->rank_of is 0x"),
                          (8, 1, "orders->orders is 0x"),
                      ],
                  },
                  Out("schedule", 8),
              ]),
        entry("dualpipe_schedule_create_from_text",
              |w| unsafe { dualpipe_schedule_create_from_text(w.at(0), w.usize(1), w.at(2), w.at(3)) },
              &[
                  Lent("text", 1, |_| good_text()),
                  Number("num_bytes", TEXT.len(), BAD_LENGTHS), Anything("name"), Out("schedule", 8),
              ]),
        entry("dualpipe_schedule_name",
              |w| unsafe { dualpipe_schedule_name(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[Handle("schedule", |world: &World| world.schedule), values::<c_char>("name"), Capacity, Count("length")]),
    ]
}

pub(crate) fn bad_orders_and_pairs(world: &World) {
    bad_lists();
    bad_ops();
    bad_names_and_texts();
    bad_pairs(world);
}

fn refuse(given: &dualpipe_schedule_orders, want: &str) {
    let mut schedule = null_mut();
    // SAFETY: locals, and lists that the caller keeps.
    let status = unsafe { dualpipe_schedule_create_from_orders(given, &mut schedule) };
    refused(status, schedule, "dualpipe_schedule_create_from_orders: ", want);
}

fn refused(status: dualpipe_status, schedule: dualpipe_schedule_t, who: &str, want: &str) {
    let text = last_error();
    assert_eq!((status, schedule), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{want}: {text}");
    assert!(text.starts_with(who) && text.contains(want), "{text} does not say {want}");
}

fn bad_lists() {
    let (first, second) = (first(), second());
    let lists = [order(&first), order(&second)];
    let good = orders(&lists);
    for (given, want) in [
        (dualpipe_schedule_orders { rank_of: null(), ..good }, "orders->rank_of is NULL"),
        (dualpipe_schedule_orders { orders: null(), ..good }, "orders->orders is NULL"),
        (dualpipe_schedule_orders { num_ranks: 1, ..good }, "orders->rank_of[1] is 1, must be 0 to 0"),
        (
            dualpipe_schedule_orders { num_microbatches: 1_048_577, ..good },
            "mine: num_microbatches is 1048577, must be 1 to 1048576",
        ),
    ] {
        refuse(&given, want);
    }
    let ranks = vec![0; 8192];
    let many =
        dualpipe_schedule_orders { num_stages: 8192, num_microbatches: 513, rank_of: ranks.as_ptr(), ..good };
    refuse(&many, "mine: num_microbatches is 513, must be at most 512 for 8192 stages");
    for (order, want) in [
        (dualpipe_order { ops: null(), num_ops: 1 }, "orders->orders[1].ops is NULL"),
        (
            dualpipe_order { ops: first.as_ptr().cast::<u8>().wrapping_add(1).cast(), num_ops: 1 },
            "orders->orders[1].ops is 0x",
        ),
        (
            dualpipe_order { ops: null(), num_ops: usize::MAX },
            "orders->orders[1].num_ops is 18446744073709551615, must be 0 to 12582910",
        ),
        (
            dualpipe_order { ops: null(), num_ops: 12_582_911 },
            "orders->orders[1].num_ops is 12582911, must be",
        ),
    ] {
        refuse(&orders(&[lists[0], order]), want);
    }
}

fn bad_ops() {
    let first = first();
    let refuse_op = |bad: dualpipe_op, want: &str| {
        let second = [op(DUALPIPE_OP_F as u32, 1), bad];
        refuse(&orders(&[order(&first), order(&second)]), &format!("orders->orders[1].ops[1].{want}"));
    };
    for kind in [0, 7, DUALPIPE_OP_REDUCE_GRADS as u32, DUALPIPE_NONE] {
        let want = format!("kind is {kind}, must be one of DUALPIPE_OP_F (1), DUALPIPE_OP_B (2), ");
        refuse_op(op(kind, 0), &want);
    }
    let pass = first[0].forward;
    for (pass, want) in [
        (dualpipe_pass { direction: 2, ..pass }, "direction is 2, must be 0 to 1"),
        (dualpipe_pass { stage: 8192, ..pass }, "stage is 8192, must be 0 to 8191"),
        (dualpipe_pass { microbatch: 1 << 20, ..pass }, "microbatch is 1048576, must be 0 to 1048575"),
        (
            dualpipe_pass { microbatch: DUALPIPE_NONE, ..pass },
            "microbatch is 4294967295, must be 0 to 1048575",
        ),
    ] {
        let good = first[0].forward;
        refuse_op(dualpipe_op { forward: pass, ..op(DUALPIPE_OP_F as u32, 0) }, &format!("forward.{want}"));
        let pair = DUALPIPE_OP_FB as u32;
        refuse_op(dualpipe_op { kind: pair, forward: good, backward: pass }, &format!("backward.{want}"));
        refuse_op(dualpipe_op { kind: pair, forward: pass, backward: good }, &format!("forward.{want}"));
        for kind in [DUALPIPE_OP_B, DUALPIPE_OP_I, DUALPIPE_OP_W] {
            refuse_op(dualpipe_op { backward: pass, ..op(kind as u32, 0) }, &format!("backward.{want}"));
        }
    }
    // What the placement lacks, but another has, is for the check to find.
    for (of, want) in [
        (
            op(DUALPIPE_OP_F as u32, 3),
            "mine: rank 1, position 0 (3F0): no such stage: there are 3 in 1 direction(s)",
        ),
        (
            op(DUALPIPE_OP_F as u32, 0),
            "mine: rank 1, position 0 (0F0): micro-batch 0 of direction 0 at stage 0 belongs",
        ),
        (
            dualpipe_op { forward: dualpipe_pass { microbatch: 1, ..pass }, ..op(DUALPIPE_OP_F as u32, 0) },
            "mine: rank 1, position 0 (0F1): no such micro-batch: direction 0 has 1",
        ),
    ] {
        let (second, mut schedule, mut count) = ([of], null_mut(), 0);
        let lists = [order(&first), order(&second)];
        // SAFETY: locals.
        unsafe {
            assert_eq!(dualpipe_schedule_create_from_orders(&orders(&lists), &mut schedule), DUALPIPE_OK);
            let status = dualpipe_schedule_check(schedule, null_mut(), 0, &mut count);
            assert_eq!(status, DUALPIPE_ERROR_INVALID_SCHEDULE);
            assert!(last_error().contains(want), "{} does not say {want}", last_error());
            assert_eq!(dualpipe_schedule_order(schedule, 1, null_mut(), 0, &mut count), DUALPIPE_OK);
            assert_eq!(dualpipe_schedule_free(schedule), DUALPIPE_OK);
        }
        assert_eq!(count, 1);
    }
}

fn bad_names_and_texts() {
    let (first, second) = (first(), second());
    let lists = [order(&first), order(&second)];
    let name = c"two\nlines".as_ptr();
    refuse(
        &dualpipe_schedule_orders { name, ..orders(&lists) },
        "orders->name is \"two\\nlines\", must have no control",
    );
    for (name, want) in
        [(null(), "custom".into()), (c"".as_ptr(), "custom".into()), (LONG.as_ptr(), "x".repeat(255))]
    {
        let (mut schedule, mut text, mut length) = (null_mut(), [0u8; 300], 0);
        // SAFETY: locals.
        unsafe {
            let given = dualpipe_schedule_orders { name, ..orders(&lists) };
            assert_eq!(dualpipe_schedule_create_from_orders(&given, &mut schedule), DUALPIPE_OK);
            assert_eq!(
                dualpipe_schedule_name(schedule, text.as_mut_ptr().cast(), 300, &mut length),
                DUALPIPE_OK
            );
            assert_eq!(dualpipe_schedule_free(schedule), DUALPIPE_OK);
        }
        assert_eq!(CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap(), want);
        assert_eq!(length, want.len());
    }
    for (text, want) in [
        (&b"0| 0F0 \xFF"[..], "text is not UTF-8 from byte 7 on"),
        (b"0| 0F0\0", "schedule text: line 1, column 4 is \"0F0\\0\", must be STAGE KIND MICROBATCH"),
        (b"0| 0F0\n1| 0B0", "schedule text: line 2, column 4 is \"0B0\", must be on rank 0"),
    ] {
        let mut schedule = null_mut();
        // SAFETY: locals.
        let status = unsafe {
            dualpipe_schedule_create_from_text(text.as_ptr().cast(), text.len(), null(), &mut schedule)
        };
        refused(status, schedule, "dualpipe_schedule_create_from_text: ", want);
    }
}

/// Longer than counts.
const LONG: &CStr = match CStr::from_bytes_with_nul(&LONG_BYTES) {
    Ok(long) => long,
    Err(_) => panic!("no NUL"),
};
const LONG_BYTES: [u8; 400] = {
    let mut bytes = [b'x'; 400];
    bytes[399] = 0;
    bytes
};

fn bad_pairs(world: &World) {
    let pair = |forward_stage, backward_stage, overlapped_ns| dualpipe_pair_costs {
        forward_stage,
        backward_stage,
        overlapped_ns,
    };
    let good = world::costs(&world.stages[..2]);
    for (pairs, want) in [
        (vec![pair(0, 1, 1999)], "pairs[0].overlapped_ns is 1999, must be 2000 to 1000000000000"),
        (vec![pair(0, 1, 2000), pair(1, 2, 2000)], "costs->pairs[1].backward_stage is 2, must be 0 to 1"),
        (vec![pair(DUALPIPE_NONE, 1, 2000)], "costs->pairs[0].forward_stage is 4294967295, must be 0 to 1"),
        (vec![pair(1, 0, 2000), pair(0, 0, 2500), pair(1, 0, 2100)], "the pair of stages 1 and 0 is twice"),
    ] {
        let costs = dualpipe_costs { pairs: pairs.as_ptr(), num_pairs: pairs.len(), ..good };
        refuse_costs(world, &costs, want);
    }
    refuse_costs(world, &dualpipe_costs { num_pairs: 1, ..good }, "costs->pairs is NULL");
    let too_many = dualpipe_costs { num_pairs: 1_048_577, ..good };
    refuse_costs(world, &too_many, "costs->num_pairs is 1048577, must be 0 to 1048576");
}

fn refuse_costs(world: &World, costs: &dualpipe_costs, want: &str) {
    let mut timeline = null_mut();
    // SAFETY: locals.
    let status = unsafe { dualpipe_simulate(world.schedule as _, costs, &mut timeline) };
    assert_eq!((status, timeline), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()));
    assert!(last_error().contains(want), "{} does not say {want}", last_error());
}
