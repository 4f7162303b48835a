//! Expert plans on any cluster, and their moves: every function with its arguments, and what the table cannot say.

use std::ptr::{null, null_mut};

use dualpipe::capi::balance::*;
use dualpipe::capi::cluster::*;
use dualpipe::capi::moves::*;
use dualpipe::capi::status::dualpipe_status::{self, *};

use super::inputs::Arg::*;
use super::inputs::{self, last_error, Arg, Entry};
use super::table::{entry, out_struct, values};

/// 2 layers of 4 experts on 2 GPUs of 3 slots each.
const SLOTS: [i64; 12] = [0, 1, 2, 1, 2, 3, 3, 3, 0, 0, 1, 2];
const LOADS: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0];

pub(crate) fn cluster() -> dualpipe_cluster {
    dualpipe_cluster {
        size: size_of::<dualpipe_cluster>() as u32,
        num_gpus: 2,
        num_slots: 6,
        num_nodes: 1,
        slots_per_gpu: null(),
        node_of_gpu: null(),
        is_alive: null(),
    }
}

fn goal() -> dualpipe_goal {
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

fn current() -> dualpipe_current_placement {
    dualpipe_current_placement {
        size: size_of::<dualpipe_current_placement>() as u32,
        budget: 0,
        slot_to_expert: SLOTS.as_ptr(),
        num_slots: 12,
        max_moves: 0,
        max_price: 0.0,
        imbalance: 0.0,
        same_node_price: 0.0,
        other_node_price: 0.0,
    }
}

pub(crate) const CLUSTER: Arg = InStruct {
    name: "cluster",
    size: 40,
    size_v1: 40,
    align: 8,
    good: |_| inputs::words(&cluster()),
    bad: &[
        (1, 0, "cluster->num_gpus is 0, must be 1 to 1048576"),
        (1, 1 << 21, "cluster->num_gpus is 2097152, must be 1 to 1048576"),
        (1, 7, "num_slots is 6, must be 7 to 1048576"),
        (2, 1, "num_slots is 1, must be 2 to 1048576"),
        (3, 3, "num_nodes is 3, must be 1 to 2"),
        (4, 8, "cluster->num_slots, beside slots_per_gpu, is 6, must be 0"),
        (6, 8, "cluster->num_nodes, beside node_of_gpu, is 1, must be 0"),
    ],
};

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
        (2, 65537, "num_experts is 65537, must be 1 to 65536"),
        (2, 7, "the number of live slots is 6, must be at least 7"),
        (3, 5, "num_groups is 5, must be 1 to 4"),
        (4, 3, "goal->group_rule is 3, must be one of DUALPIPE_GROUPS_FREE (0), "),
        (5, 2, "goal->split is 2, must be one of DUALPIPE_SPLIT_EQUAL (0), "),
        (6, 3, "min_gpus is 3, must be 1 to 2"),
        (6, 2, "the number of live slots is 6, must be at least 8"),
        (7, 2, "min_nodes is 2, must be 1 to 1"),
        (8, 1001, "effort is 1001, must be 1 to 1000"),
        (9, 1, "goal->reserved is 1, must be 0"),
        (11, 0x3FF0_0000, "goal->price is 1, must be 0 unless group_rule is DUALPIPE_GROUPS_PRICED"),
    ],
};

const PLAN: Arg = Handle("plan", |world| world.plan);
const LENT_LOADS: Arg = Lent("loads", 4, |_| inputs::words(&LOADS));
const NUM_LOADS: Arg = Number(
    "num_loads",
    8,
    &[(0, "must be a multiple, not 0, of num_layers * num_experts = 2 * 4 = 8"), (12, "must be a multiple")],
);
const LOADS_OF_ONE_STEP: Arg =
    Number("num_loads", 8, &[(0, "must be 8 to 8"), (16, "must be 8 to 8"), (usize::MAX, "must be ")]);

fn slots(name: &'static str) -> Arg {
    Lent(name, 8, |_| inputs::words(&SLOTS))
}

/// Every function of plans that DeepSeek's policy has no part in.
#[rustfmt::skip] // an argument list reads better on one line
#[allow(clippy::undocumented_unsafe_blocks)] // whoever calls an entry says why it may: `inputs::check_all`
pub(crate) fn entries() -> Vec<Entry> {
    vec![
        entry("dualpipe_expert_plan_balance",
              |w| unsafe {
                  dualpipe_expert_plan_balance(w.at(0), w.at(1), w.at(2), w.usize(3), w.at(4), w.u32(5), w.at(6))
              },
              &[
                  CLUSTER, GOAL, LENT_LOADS, NUM_LOADS, Anything("current"), // NULL; see bad_loads_and_placements
                  Number("num_threads", 1, &[(4097, "must be 0 to 4096"), (u32::MAX as usize, "must be 0 to 4096")]),
                  Out("plan", 8),
              ]),
        entry("dualpipe_expert_plan_create_from_slots",
              |w| unsafe {
                  dualpipe_expert_plan_create_from_slots(w.at(0), w.at(1), w.at(2), w.usize(3), w.at(4), w.usize(5),
                                                         w.at(6), w.usize(7), w.at(8))
              },
              &[
                  CLUSTER, GOAL, slots("slot_to_expert"),
                  Number("num_slots", 12, &[(0, "must be 12 to 12"), (11, "must be 12"), (usize::MAX, "must be ")]),
                  Anything("shares"), Number("num_shares", 0, &[(12, "is NULL")]),
                  Anything("loads"), Number("num_loads", 0, &[(8, "is NULL")]),
                  Out("plan", 8),
              ]),
        entry("dualpipe_expert_plan_describe", |w| unsafe { dualpipe_expert_plan_describe(w.at(0), w.at(1)) },
              &[PLAN, out_struct::<dualpipe_expert_plan_info>("info")]),
        entry("dualpipe_expert_plan_shares",
              |w| unsafe { dualpipe_expert_plan_shares(w.at(0), w.at(1), w.usize(2), w.at(3)) },
              &[PLAN, values::<f64>("shares"), Capacity, Count("count")]),
        entry("dualpipe_expert_plan_gpu_loads",
              |w| unsafe { dualpipe_expert_plan_gpu_loads(w.at(0), w.at(1), w.usize(2), w.at(3), w.usize(4), w.at(5)) },
              &[PLAN, LENT_LOADS, LOADS_OF_ONE_STEP, values::<f64>("gpu_loads"), Capacity, Count("count")]),
        entry("dualpipe_expert_plan_node_loads",
              |w| unsafe {
                  dualpipe_expert_plan_node_loads(w.at(0), w.at(1), w.usize(2), w.at(3), w.usize(4), w.at(5))
              },
              &[PLAN, LENT_LOADS, LOADS_OF_ONE_STEP, values::<f64>("node_loads"), Capacity, Count("count")]),
        entry("dualpipe_expert_moves",
              |w| unsafe {
                  dualpipe_expert_moves(w.at(0), w.u32(1), w.at(2), w.at(3), w.usize(4), w.at(5), w.usize(6), w.at(7))
              },
              &[
                  CLUSTER,
                  Number("num_experts", 4, &[
                      (0, "must be 1 to 65536"), (65537, "must be 1 to 65536"),
                      (3, "is 3, must be less than num_experts = 3"), // what from[5] is
                  ]),
                  slots("from"), slots("to"),
                  Number("num_slots", 12, &[
                      (0, "is 0, must be num_layers * 6 slots, for 1 to 4096 layers"),
                      (7, "is 7, must be num_layers * 6 slots"), (usize::MAX, "must be "),
                  ]),
                  values::<dualpipe_move_count>("counts"), Capacity, Count("count"),
              ]),
        entry("dualpipe_expert_move_curve",
              |w| unsafe {
                  dualpipe_expert_move_curve(w.at(0), w.at(1), w.at(2), w.usize(3), w.at(4), w.usize(5), w.u32(6),
                                             w.at(7), w.usize(8), w.at(9))
              },
              &[
                  CLUSTER, GOAL, LENT_LOADS, NUM_LOADS, slots("slot_to_expert"),
                  Number("num_slots", 12, &[
                      (0, "is 0, must be num_layers * num_slots = 2 * 6"), (6, "is 6, must be num_layers"),
                      (usize::MAX, "must be "),
                  ]),
                  Number("max_moves", 5, &[((1 << 20) + 1, "must be 0 to 1048576"), (u32::MAX as usize, "must be ")]),
                  values::<dualpipe_move_point>("points"), Capacity, Count("count"),
              ]),
    ]
}

/// What the table cannot say: what is wrong behind a pointer, and in a struct that may be left out.
pub(crate) fn bad_loads_and_placements() {
    let refused = |status, want: &str| {
        assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT, "{want}");
        assert!(last_error().contains(want), "{} does not say {want}", last_error());
    };
    for (load, want) in [
        (f32::NAN, "loads[step 1, layer 0, expert 2] is NaN, must be"),
        (f32::INFINITY, "loads[step 1, layer 0, expert 2] is inf, must be"),
        (-1.0, "loads[step 1, layer 0, expert 2] is -1.0, must be"),
        (f32::MAX, "loads"),
    ] {
        let mut loads = [LOADS, LOADS].concat();
        loads[10] = load;
        refused(balance(&cluster(), &goal(), &loads, null()), want);
    }
    for (price, want) in [(f64::NAN, "is NaN"), (f64::INFINITY, "is inf"), (-1.0, "is -1")] {
        let priced = dualpipe_goal { group_rule: 2, price, ..goal() };
        refused(
            balance(&cluster(), &priced, &LOADS, null()),
            &format!("price {want}, must be finite and not"),
        );
    }
    bad_lists(&refused);
    bad_current(&refused);
    bad_slots_and_shares(&refused);
}

fn balance(
    cluster: &dualpipe_cluster,
    goal: &dualpipe_goal,
    loads: &[f32],
    current: *const dualpipe_current_placement,
) -> dualpipe_status {
    let mut plan = null_mut();
    // SAFETY: locals, and what the callers of this make of them.
    let status = unsafe {
        dualpipe_expert_plan_balance(cluster, goal, loads.as_ptr(), loads.len(), current, 1, &mut plan)
    };
    assert!(plan.is_null() || status == DUALPIPE_OK);
    // SAFETY: a handle, or NULL.
    assert_eq!(unsafe { dualpipe_expert_plan_free(plan) }, DUALPIPE_OK);
    status
}

fn bad_lists(refused: &dyn Fn(dualpipe_status, &str)) {
    let (huge, nodes, none) = ([u32::MAX, 6], [0, 2], [0, 0]);
    let misaligned = huge.as_ptr().cast::<u8>().wrapping_add(1).cast();
    for (slots, want) in [
        (huge.as_ptr(), "the sum of slots_per_gpu is 4294967301, must be at most 1048576"),
        (none.as_ptr(), "the number of live slots is 0, must be at least 1: no live GPU has a slot"),
        (misaligned, "must be a multiple of 4"),
    ] {
        refused(
            balance(
                &dualpipe_cluster { num_slots: 0, slots_per_gpu: slots, ..cluster() },
                &goal(),
                &LOADS,
                null(),
            ),
            want,
        );
    }
    let bad = dualpipe_cluster { num_nodes: 0, node_of_gpu: nodes.as_ptr(), ..cluster() };
    refused(balance(&bad, &goal(), &LOADS, null()), "node_of_gpu[1] is 2, must be 0 to 1");
    for (is_alive, want) in [
        ([1, 2], "cluster->is_alive[1] is 2, must be 0 to 1"),
        ([0, 0], "the number of live slots is 0, must be at least 1"),
        ([1, 0], "the number of live slots is 3, must be at least 4 for 4 experts"),
    ] {
        let bad = dualpipe_cluster { is_alive: is_alive.as_ptr(), ..cluster() };
        refused(balance(&bad, &goal(), &LOADS, null()), want);
    }
}

fn bad_current(refused: &dyn Fn(dualpipe_status, &str)) {
    let good = current();
    let (moves, price, reach) = (1, 2, 3);
    let mut strange = SLOTS;
    strange[7] = -2;
    for (bad, want) in [
        (
            dualpipe_current_placement { size: 0, ..good },
            "current->size is 0, must be the size of the struct",
        ),
        (dualpipe_current_placement { size: 65, ..good }, "current->size is 65, must be"),
        (
            dualpipe_current_placement { budget: 4, ..good },
            "current->budget is 4, must be one of DUALPIPE_BUDGET_FREE",
        ),
        (dualpipe_current_placement { slot_to_expert: null(), ..good }, "current->slot_to_expert is NULL"),
        (
            dualpipe_current_placement { num_slots: 11, ..good },
            "the number of current slots is 11, must be 12 to 12",
        ),
        (
            dualpipe_current_placement { num_slots: usize::MAX, ..good },
            "current->num_slots is 18446744073709551615",
        ),
        (
            dualpipe_current_placement { slot_to_expert: strange.as_ptr(), ..good },
            "current->slot_to_expert[7] is -2",
        ),
        (
            dualpipe_current_placement { max_moves: 1, ..good },
            "current->max_moves is 1, must be 0 with DUALPIPE_BUDGET_FREE",
        ),
        (
            dualpipe_current_placement { budget: moves, max_price: 1.0, ..good },
            "current->max_price is 1, must be 0",
        ),
        (
            dualpipe_current_placement { budget: moves, same_node_price: f64::NAN, ..good },
            "same_node_price is NaN, must be 0",
        ),
        (
            dualpipe_current_placement { budget: price, imbalance: 1.5, ..good },
            "current->imbalance is 1.5, must be 0",
        ),
        (
            dualpipe_current_placement { budget: price, max_price: f64::NAN, ..good },
            "price of all moves is NaN, must be finite",
        ),
        (
            dualpipe_current_placement { budget: price, max_price: -1.0, ..good },
            "price of all moves is -1, must be",
        ),
        (
            dualpipe_current_placement { budget: price, same_node_price: -1.0, ..good },
            "moves within a node is -1, must be",
        ),
        (
            dualpipe_current_placement { budget: reach, imbalance: 0.5, ..good },
            "imbalance to reach is 0.5, must be",
        ),
        (
            dualpipe_current_placement {
                budget: reach,
                imbalance: 1.0,
                other_node_price: f64::INFINITY,
                ..good
            },
            "moves between nodes is inf, must be finite",
        ),
    ] {
        refused(balance(&cluster(), &goal(), &LOADS, &bad), want);
    }
    let misaligned = std::ptr::from_ref(&good).cast::<u8>().wrapping_add(1).cast();
    refused(balance(&cluster(), &goal(), &LOADS, misaligned), "must be a multiple of 8");
    for budget in [0, moves, price] {
        let fine = dualpipe_current_placement { budget, ..good };
        assert_eq!(balance(&cluster(), &goal(), &LOADS, &fine), DUALPIPE_OK, "{}", last_error());
    }
    let most = dualpipe_current_placement { budget: moves, max_moves: u64::MAX, ..good };
    assert_eq!(balance(&cluster(), &goal(), &LOADS, &most), DUALPIPE_OK, "{}", last_error());
}

fn bad_slots_and_shares(refused: &dyn Fn(dualpipe_status, &str)) {
    let from = |goal: &dualpipe_goal, slots: &[i64], shares: &[f64], loads: &[f32]| {
        let mut plan = null_mut();
        // SAFETY: locals.
        let status = unsafe {
            let (shares, num_shares) = (shares.as_ptr(), shares.len());
            let (loads, num_loads) = (loads.as_ptr(), loads.len());
            let (slots, num_slots) = (slots.as_ptr(), slots.len());
            dualpipe_expert_plan_create_from_slots(
                &cluster(),
                goal,
                slots,
                num_slots,
                shares,
                num_shares,
                loads,
                num_loads,
                &mut plan,
            )
        };
        assert!(plan.is_null());
        status
    };
    for (expert, want) in [
        (4, "layer 0"),
        (-2, "slot_to_expert[3] is -2, must be an expert, or -1 for none"),
        (i64::MIN, "slot_to_expert[3] is -9223372036854775808, must be"),
        (u32::MAX.into(), "slot_to_expert[3] is 4294967295, must be"),
        (1 << 32, "slot_to_expert[3] is 4294967296, must be"),
    ] {
        let mut slots = SLOTS;
        slots[3] = expert;
        refused(from(&goal(), &slots, &[], &[]), want);
    }
    let mut lost = SLOTS;
    lost[0] = 1;
    refused(from(&goal(), &lost, &[], &[]), "layer 0: expert 0 is on no live GPU");
    refused(from(&goal(), &SLOTS, &[0.5; 12], &[]), "num_shares is 12, must be 0 to 0");
    refused(from(&goal(), &SLOTS, &[], &LOADS[1..]), "num_loads is 7, must be a multiple");

    let weighted = dualpipe_goal { split: 1, ..goal() };
    refused(from(&weighted, &SLOTS, &[], &[]), "num_shares is 0, must be 12 to 12");
    let good = [1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0];
    for share in [f64::NAN, f64::INFINITY, -0.5, 0.75] {
        let mut shares = good;
        shares[1] = share;
        refused(from(&weighted, &SLOTS, &shares, &[]), "layer 0");
    }
}
