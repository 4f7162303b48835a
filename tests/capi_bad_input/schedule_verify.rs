//! The verifier: its functions with their arguments, and what the table cannot say.

use std::ffi::c_char;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use dualpipe::capi::action::dualpipe_action_kind::*;
use dualpipe::capi::action::*;
use dualpipe::capi::cost::dualpipe_costs;
use dualpipe::capi::op::dualpipe_message_kind::*;
use dualpipe::capi::op::dualpipe_op_kind::*;
use dualpipe::capi::op::{dualpipe_message, dualpipe_op, dualpipe_pass, DUALPIPE_NONE};
use dualpipe::capi::program::dualpipe_program_create;
use dualpipe::capi::schedule_verify::*;
use dualpipe::capi::status::dualpipe_status::*;
use dualpipe::capi::torch_csv::dualpipe_torch_csv_format::DUALPIPE_TORCH_CSV_COMPUTE_COMMS;
use dualpipe::capi::verification::*;

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::loads::bytes;
use super::table::{entry, out_struct, values};
use super::world::{self, World};

/// Rank 1 takes the two activations for one another; each rank keeps two alive.
const CSV: &str = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n\
                   1RECV_F1,1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1\n";

/// Of the text: none of it, without the micro-batch of its last cell, more than can be.
const BAD_LENGTHS: &[(usize, &str)] = &[
    (0, "is empty, must have a row for each rank"),
    (CSV.len() - 2, "is \"1SEND_B\", must end with a micro-batch"),
    (usize::MAX, "must be 0 to 9223372036854775807"),
];

const VERIFICATION: Arg = Handle("verification", |_| with_findings());
/// Of the verification: the caps of two ranks are exceeded, and the one that is about both.
const FINDING: Arg =
    Number("finding", 2, &[(3, "must be 0 to 2"), (DUALPIPE_NONE as usize, "must be 0 to 2")]);
const OPTIONS: Arg = InStruct {
    name: "options",
    size: 72,
    size_v1: 72,
    align: 8,
    good: |_| inputs::words(&options()),
    bad: &[
        (1, 64, "options->transports is 64, must be 0 to 63"),
        (1, DUALPIPE_NONE, "options->transports is 4294967295, must be 0 to 63"),
        (10, 1, "options->num_cap_activations is 1, must be 0 to 0"),
        (14, 4, "options->num_cap_bytes is 4, must be 0 to 0"),
        (16, 2, "options->no_counterexamples is 2, must be 0 to 1"),
        (17, 1, "options->reserved is 1, must be 0"),
        (2, 1, "options->"),
        (4, 3, "options->num_orders, without orders, is 3, must be 0 to 0"),
        (6, 1, "options->costs is 0x"),
    ],
};

fn options() -> dualpipe_schedule_verify_options {
    dualpipe_schedule_verify_options {
        size: size_of::<dualpipe_schedule_verify_options>() as u32,
        transports: 0,
        orders: null(),
        num_orders: 0,
        costs: null(),
        cap_activations: null(),
        num_cap_activations: 0,
        cap_bytes: null(),
        num_cap_bytes: 0,
        no_counterexamples: 0,
        reserved: 0,
    }
}

#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    let of_finding = |name, call, rest: &[Arg]| entry(name, call, &[&[VERIFICATION, FINDING], rest].concat());
    let list = |name, call, values: Arg| entry(name, call, &[VERIFICATION, values, Capacity, Count("count")]);
    vec![
        entry("dualpipe_program_actions",
              |w| unsafe { dualpipe_program_actions(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[
                  Handle("program", |world: &World| world.program), values::<dualpipe_action>("actions"), Capacity,
                  Count("count"),
              ]),
        entry("dualpipe_schedule_verify",
              |w| unsafe { dualpipe_schedule_verify(w.at(0), w.at(1), w.at(2)) },
              &[Handle("schedule", |world: &World| world.schedule), OPTIONS, Out("verification", 8)]),
        entry("dualpipe_schedule_verify_torch_csv",
              |w| unsafe {
                  dualpipe_schedule_verify_torch_csv(
                      w.at(0), w.usize(1), w.u32(2), w.u32(3), w.u32(4), w.at(5), w.at(6),
                  )
              },
              &[
                  Lent("text", 1, |_| bytes(CSV.as_bytes())),
                  Number("num_bytes", CSV.len(), BAD_LENGTHS),
                  Number("torch_major", 2, &[(0, "is 0.9, must be at least 2.6"), (3, "is 3.9, must be at most 2.15")]),
                  Number("torch_minor", 9, &[(5, "is 2.5, must be at least 2.6"), (16, "is 2.16, must be at most 2.15")]),
                  Number("format", DUALPIPE_TORCH_CSV_COMPUTE_COMMS as usize, &[
                      (0, "is 0, must be one of DUALPIPE_TORCH_CSV_COMPUTE_ONLY (1), "), (3, "is 3, must be one of "),
                  ]),
                  OPTIONS, Out("verification", 8),
              ]),
        entry("dualpipe_verification_free", |w| unsafe { dualpipe_verification_free(w.at(0)) },
              &[Owned("verification", |_| verification() as usize)]),
        entry("dualpipe_verification_describe",
              |w| unsafe { dualpipe_verification_describe(w.at(0), w.at(1)) },
              &[VERIFICATION, out_struct::<dualpipe_verification_info>("info")]),
        list("dualpipe_verification_ranks",
             |w| unsafe { dualpipe_verification_ranks(w.at(0), w.at(1), w.usize(2), w.at(3)) },
             values::<dualpipe_verification_rank>("ranks")),
        list("dualpipe_verification_findings",
             |w| unsafe { dualpipe_verification_findings(w.at(0), w.at(1), w.usize(2), w.at(3)) },
             values::<dualpipe_schedule_finding>("findings")),
        list("dualpipe_verification_trials",
             |w| unsafe { dualpipe_verification_trials(w.at(0), w.at(1), w.usize(2), w.at(3)) },
             values::<dualpipe_verification_trial>("trials")),
        entry("dualpipe_verification_to_text",
              |w| unsafe { dualpipe_verification_to_text(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[VERIFICATION, values::<c_char>("text"), Capacity, Count("length")]),
        of_finding("dualpipe_verification_finding_ranks",
              |w| unsafe { dualpipe_verification_finding_ranks(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[values::<u32>("ranks"), Capacity, Count("count")]),
        of_finding("dualpipe_verification_finding_passes",
              |w| unsafe { dualpipe_verification_finding_passes(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[values::<dualpipe_pass>("passes"), Capacity, Count("count")]),
        of_finding("dualpipe_verification_finding_text",
              |w| unsafe { dualpipe_verification_finding_text(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4)) },
              &[values::<c_char>("text"), Capacity, Count("length")]),
        of_finding("dualpipe_verification_counterexample",
              |w| unsafe { dualpipe_verification_counterexample(w.at(0), w.u32(1), w.at(2)) },
              &[Out("schedule", 8)]),
        of_finding("dualpipe_verification_counterexample_actions",
              |w| unsafe {
                  let (actions, capacity, count) = (w.at(3), w.usize(4), w.at(5));
                  dualpipe_verification_counterexample_actions(
                      w.at(0), w.u32(1), w.u32(2), actions, capacity, count,
                  )
              },
              &[
                  Number("rank", 1, &[(2, "must be 0 to 1"), (DUALPIPE_NONE as usize, "must be 0 to 1")]),
                  values::<dualpipe_action>("actions"), Capacity, Count("count"),
              ]),
        of_finding("dualpipe_verification_counterexample_text",
              |w| unsafe {
                  dualpipe_verification_counterexample_text(w.at(0), w.u32(1), w.at(2), w.usize(3), w.at(4))
              },
              &[values::<c_char>("text"), Capacity, Count("length")]),
    ]
}

fn verification() -> dualpipe_verification_t {
    let (cap, mut verification) = ([1], null_mut());
    let given = dualpipe_schedule_verify_options {
        cap_activations: cap.as_ptr(),
        num_cap_activations: 1,
        ..options()
    };
    let format = DUALPIPE_TORCH_CSV_COMPUTE_COMMS as u32;
    let (text, num_bytes) = (CSV.as_ptr().cast(), CSV.len());
    // SAFETY: locals.
    let status = unsafe {
        dualpipe_schedule_verify_torch_csv(text, num_bytes, 2, 9, format, &given, &mut verification)
    };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    verification
}

/// It is never freed.
fn with_findings() -> usize {
    static VERIFICATION: OnceLock<usize> = OnceLock::new();
    *VERIFICATION.get_or_init(|| verification() as usize)
}

pub(crate) fn bad_actions_and_caps(world: &World) {
    bad_actions(world);
    bad_caps(world);
    findings_that_are_not_there(world);
    let freed = verification();
    // SAFETY: handles, of which the second is refused.
    unsafe {
        assert_eq!(dualpipe_verification_free(freed), DUALPIPE_OK);
        assert_eq!(dualpipe_verification_free(freed), DUALPIPE_ERROR_INVALID_HANDLE);
    }
    assert!(last_error().contains("verification has been freed"), "{}", last_error());
}

fn refuse(world: &World, given: &dualpipe_schedule_verify_options, want: &str) {
    let mut verification = null_mut();
    // SAFETY: locals, and lists that the caller keeps.
    let status = unsafe { dualpipe_schedule_verify(world.schedule as _, given, &mut verification) };
    let text = last_error();
    assert_eq!((status, verification), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()), "{want}: {text}");
    assert!(
        text.starts_with("dualpipe_schedule_verify: ") && text.contains(want),
        "{text} does not say {want}"
    );
}

/// The actions of the world's schedule.
fn good_actions(world: &World) -> Vec<Vec<dualpipe_action>> {
    let of_rank = |rank| {
        let (mut program, mut count) = (null_mut(), 0);
        // SAFETY: locals.
        unsafe {
            assert_eq!(dualpipe_program_create(world.schedule as _, rank, &mut program), DUALPIPE_OK);
            assert_eq!(dualpipe_program_actions(program, null_mut(), 0, &mut count), DUALPIPE_OK);
            let mut actions = Vec::with_capacity(count);
            let status = dualpipe_program_actions(program, actions.as_mut_ptr(), count, &mut count);
            assert_eq!(status, DUALPIPE_OK);
            actions.set_len(count);
            actions
        }
    };
    (0..2).map(of_rank).collect()
}

fn orders(actions: &[Vec<dualpipe_action>]) -> Vec<dualpipe_action_order> {
    let order = |actions: &Vec<dualpipe_action>| dualpipe_action_order {
        actions: actions.as_ptr(),
        num_actions: actions.len(),
    };
    actions.iter().map(order).collect()
}

fn bad_actions(world: &World) {
    let good = good_actions(world);
    let kept = orders(&good);
    let asynchronous = dualpipe_verify_transport::DUALPIPE_VERIFY_ASYNCHRONOUS as u32;
    let given = dualpipe_schedule_verify_options {
        transports: asynchronous,
        orders: kept.as_ptr(),
        num_orders: 2,
        ..options()
    };
    let mut verification = null_mut();
    // SAFETY: locals.
    let status = unsafe { dualpipe_schedule_verify(world.schedule as _, &given, &mut verification) };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    let mut info: dualpipe_verification_info = dualpipe_verification_info {
        size: size_of::<dualpipe_verification_info>() as u32,
        is_valid: 77,
        num_ranks: 0,
        num_findings: 0,
        transports: 0,
        holds_for: 0,
        has_bytes: 0,
        reserved: 0,
        num_omitted: 0,
    };
    // SAFETY: locals and a handle.
    unsafe {
        assert_eq!(dualpipe_verification_describe(verification, &mut info), DUALPIPE_OK);
        assert_eq!(dualpipe_verification_free(verification), DUALPIPE_OK);
    }
    assert_eq!(info.is_valid, 1, "a program's actions");

    let place = |kind: dualpipe_action_kind| {
        let of_kind = |action: &dualpipe_action| action.kind == kind as u32;
        good[1].iter().position(of_kind).unwrap_or_else(|| panic!("no {kind:?}"))
    };
    let refuse_action = |i: usize, change: &dyn Fn(&mut dualpipe_action), want: &str| {
        let mut changed = good.clone();
        change(&mut changed[1][i]);
        let orders = orders(&changed);
        let given = dualpipe_schedule_verify_options { orders: orders.as_ptr(), num_orders: 2, ..options() };
        refuse(world, &given, &format!("options->orders[1].actions[{i}].{want}"));
    };
    for kind in [0, 5, DUALPIPE_NONE] {
        let want =
            format!("kind is {kind}, must be one of DUALPIPE_ACTION_RUN (1), DUALPIPE_ACTION_SEND (2), ");
        refuse_action(0, &|action| action.kind = kind, &want);
    }
    for kind in [DUALPIPE_ACTION_SEND, DUALPIPE_ACTION_RECEIVE] {
        for peer in [2, DUALPIPE_NONE] {
            let want = format!("peer is {peer}, must be 0 to 1");
            refuse_action(place(kind), &|action| action.peer = peer, &want);
        }
    }
    for kind in [DUALPIPE_ACTION_SEND, DUALPIPE_ACTION_RECEIVE, DUALPIPE_ACTION_WAIT_SEND] {
        bad_messages(&|change, want| refuse_action(place(kind), &|action| change(&mut action.message), want));
    }
    bad_tasks(&|change, want| {
        refuse_action(place(DUALPIPE_ACTION_RUN), &|action| change(&mut action.op), want)
    });

    for num_orders in [0, 1, 3] {
        let want = format!("options->num_orders is {num_orders}, must be 2, one for each rank");
        let given = dualpipe_schedule_verify_options { orders: kept.as_ptr(), num_orders, ..options() };
        refuse(world, &given, &want);
    }
    let refuse_order = |order: dualpipe_action_order, want: &str| {
        let orders = [kept[0], order];
        let given = dualpipe_schedule_verify_options { orders: orders.as_ptr(), num_orders: 2, ..options() };
        refuse(world, &given, want);
    };
    let odd = good[1].as_ptr().cast::<u8>().wrapping_add(1).cast();
    for (actions, num_actions, want) in [
        (null(), 1, "options->orders[1].actions is NULL"),
        (odd, 1, "options->orders[1].actions is 0x"),
        (null(), usize::MAX, "options->orders[1].num_actions is 18446744073709551615, must be 0 to "),
        (null(), 1 << 26, "options->orders[1].num_actions is 67108864, must be 0 to "),
    ] {
        refuse_order(dualpipe_action_order { actions, num_actions }, want);
    }
}

/// Is told how a good `T` is changed, and why that is refused.
type Refuse<'a, T> = &'a dyn Fn(&dyn Fn(&mut T), &str);

fn bad_messages(refuse: Refuse<'_, dualpipe_message>) {
    for kind in [0, 3, DUALPIPE_NONE] {
        let want = format!("message.kind is {kind}, must be one of DUALPIPE_MESSAGE_ACTIVATION (1), ");
        refuse(&|message| message.kind = kind, &want);
    }
    refuse(&|message| message.pass.direction = 2, "message.pass.direction is 2, must be 0 to 1");
    refuse(&|message| message.pass.stage = 8192, "message.pass.stage is 8192, must be 0 to 8191");
    let want = "message.pass.microbatch is 4294967295, must be 0 to 1048575";
    refuse(&|message| message.pass.microbatch = DUALPIPE_NONE, want);
    let next = |message: &mut dualpipe_message| {
        (message.kind, message.pass.stage, message.to_stage) = (DUALPIPE_MESSAGE_ACTIVATION as u32, 0, 0);
    };
    refuse(&next, "message.to_stage is 0, must be 1, the next stage");
    let previous = |message: &mut dualpipe_message| {
        (message.kind, message.pass.stage, message.to_stage) = (DUALPIPE_MESSAGE_GRADIENT as u32, 4, 4);
    };
    refuse(&previous, "message.to_stage is 4, must be 3, the previous stage");
    let before_all = |message: &mut dualpipe_message| {
        (message.kind, message.pass.stage, message.to_stage) = (DUALPIPE_MESSAGE_GRADIENT as u32, 0, 1);
    };
    refuse(&before_all, "message.to_stage is 1, must be DUALPIPE_NONE: there is none");
}

fn bad_tasks(refuse: Refuse<'_, dualpipe_op>) {
    for kind in [0, 7, DUALPIPE_NONE] {
        let want = format!("op.kind is {kind}, must be one of DUALPIPE_OP_F (1), ");
        refuse(&|op| op.kind = kind, &want);
    }
    let pass = dualpipe_pass { direction: 0, stage: 0, microbatch: 0, copy: DUALPIPE_NONE };
    for (pass, want) in [
        (dualpipe_pass { direction: 2, ..pass }, "direction is 2, must be 0 to 1"),
        (dualpipe_pass { stage: 8192, ..pass }, "stage is 8192, must be 0 to 8191"),
    ] {
        for kind in [DUALPIPE_OP_B, DUALPIPE_OP_I, DUALPIPE_OP_W, DUALPIPE_OP_REDUCE_GRADS] {
            let change = |op: &mut dualpipe_op| (op.kind, op.backward) = (kind as u32, pass);
            refuse(&change, &format!("op.backward.{want}"));
        }
        let forward = |op: &mut dualpipe_op| (op.kind, op.forward) = (DUALPIPE_OP_F as u32, pass);
        refuse(&forward, &format!("op.forward.{want}"));
    }
}

fn bad_caps(world: &World) {
    let (live, bytes) = ([3, 3, 0], [1 << 40, 1 << 40, (1 << 50) + 1]);
    let costs = world::costs(&world.stages[..2]);
    let of_live = |cap: &[u64]| dualpipe_schedule_verify_options {
        cap_activations: cap.as_ptr(),
        num_cap_activations: cap.len(),
        ..options()
    };
    let of_bytes = |cap: &[u64], costs: *const dualpipe_costs| dualpipe_schedule_verify_options {
        cap_bytes: cap.as_ptr(),
        num_cap_bytes: cap.len(),
        costs,
        ..options()
    };
    refuse(world, &of_live(&live), "the number of entries is 3, must be 1 or 2, one for each rank");
    refuse(world, &of_live(&live[1..]), "activations[1] is 0, must be 1 to ");
    refuse(world, &of_live(&live[..0]), "options->num_cap_activations is 0, must be 1 to 4096");
    let too_many = dualpipe_schedule_verify_options { num_cap_activations: 4097, ..of_live(&live) };
    refuse(world, &too_many, "options->num_cap_activations is 4097, must be 1 to 4096");
    refuse(world, &of_bytes(&bytes[..2], null()), "costs is none, must be there for a cap in bytes");
    refuse(
        world,
        &of_bytes(&bytes[2..], &costs),
        "bytes[0] is 1125899906842625, must be 0 to 1125899906842624",
    );
    let both = dualpipe_schedule_verify_options {
        cap_activations: live.as_ptr(),
        num_cap_activations: 1,
        ..of_bytes(&bytes[..1], &costs)
    };
    refuse(world, &both, "options->cap_bytes must be NULL with cap_activations");
    let three = world::costs(&world.stages);
    refuse(world, &dualpipe_schedule_verify_options { costs: &three, ..options() }, "stages");
    let misaligned = live.as_ptr().cast::<u8>().wrapping_add(1).cast();
    let given = dualpipe_schedule_verify_options { cap_activations: misaligned, ..of_live(&live[..1]) };
    refuse(world, &given, "options->cap_activations is 0x");
}

fn findings_that_are_not_there(world: &World) {
    let (mut verification, mut count, mut schedule) = (null_mut(), 77, null_mut());
    // SAFETY: locals and handles.
    unsafe {
        let status = dualpipe_schedule_verify(world.schedule as _, &options(), &mut verification);
        assert_eq!(status, DUALPIPE_OK);
        let status = dualpipe_verification_finding_ranks(verification, 0, null_mut(), 0, &mut count);
        assert_eq!((status, count), (DUALPIPE_ERROR_INVALID_ARGUMENT, 77));
        assert!(last_error().contains("finding is 0, but nothing was found"), "{}", last_error());
        assert_eq!(dualpipe_verification_free(verification), DUALPIPE_OK);
        let second = with_findings() as _;
        let status = dualpipe_verification_counterexample(second, 1, &mut schedule);
        assert_eq!((status, schedule), (DUALPIPE_ERROR_INVALID_ARGUMENT, null_mut()));
    }
    assert!(last_error().contains("finding is 1, which has no counterexample"), "{}", last_error());
}
