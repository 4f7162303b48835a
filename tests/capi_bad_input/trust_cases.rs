//! Verify, GPU loads, heat maps and replays: what the table cannot say, as it is behind a pointer, or one of several.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use dualpipe::capi::heat_map::*;
use dualpipe::capi::policy::*;
use dualpipe::capi::replay::*;
use dualpipe::capi::status::dualpipe_status::{self, *};
use dualpipe::capi::verify::*;

use super::inputs::last_error;
use super::plans::cluster;
use super::trust::{goal, options, panel, placement, policy, LOADS, SHARES, SLOTS};

fn refused(status: dualpipe_status, want: &str) {
    assert_eq!(status, DUALPIPE_ERROR_INVALID_ARGUMENT, "{want}");
    assert!(last_error().contains(want), "{} does not say {want}", last_error());
}

unsafe extern "C-unwind" fn keeps(
    _: *mut c_void,
    _: *const dualpipe_policy_past,
    _: *mut i64,
    _: *mut f64,
) -> i32 {
    0
}

unsafe extern "C-unwind" fn places_what_is_no_expert(
    expert: *mut c_void,
    past: *const dualpipe_policy_past,
    slots: *mut i64,
    _: *mut f64,
) -> i32 {
    // SAFETY: as the policy's type promises.
    unsafe {
        assert_eq!((*past).num_slots, 12);
        slots.add(5).write(expert.addr() as i64);
    }
    1
}

unsafe extern "C-unwind" fn panics(
    _: *mut c_void,
    _: *const dualpipe_policy_past,
    _: *mut i64,
    _: *mut f64,
) -> i32 {
    panic!("in a policy")
}

/// All of it.
pub(crate) fn bad_placements_and_policies() {
    bad_placements();
    bad_panels();
    bad_policies();
}

fn bad_placements() {
    let (mut count, mut hash, mut gpus) = (0, 7, [7.0; 4]);
    for expert in [-2, 1 << 32, i64::from(u32::MAX), i64::MIN, i64::MAX] {
        let mut slots = SLOTS;
        slots[3] = expert;
        let want = format!("slot_to_expert[3] is {expert}, must be an expert, or -1 for none");
        // SAFETY: locals.
        unsafe {
            refused(dualpipe_expert_hash(&cluster(), slots.as_ptr(), null(), 12, &mut hash), &want);
            let (loads, gpus) = (LOADS.as_ptr(), gpus.as_mut_ptr());
            let slots = slots.as_ptr();
            let status =
                dualpipe_expert_gpu_loads(&cluster(), 4, slots, null(), 12, loads, 8, gpus, 4, &mut count);
            refused(status, &want);
        }
    }
    for (share, want) in [
        (f64::NAN, "shares[layer 0, slot 1] is NaN, must be finite and not negative"),
        (f64::INFINITY, "shares[layer 0, slot 1] is inf, must be"),
        (-0.5, "shares[layer 0, slot 1] is -0.5, must be"),
        (0.75, "the sum of the live shares of layer 0's expert 1 is 1.25, must be 1"),
    ] {
        let mut shares = SHARES;
        shares[1] = share;
        // SAFETY: locals.
        let status = unsafe {
            let (slots, shares, loads) = (SLOTS.as_ptr(), shares.as_ptr(), LOADS.as_ptr());
            let gpus = gpus.as_mut_ptr();
            dualpipe_expert_gpu_loads(&cluster(), 4, slots, shares, 12, loads, 8, gpus, 4, &mut count)
        };
        refused(status, want);
    }
    for load in [f32::NAN, f32::INFINITY, -1.0] {
        let mut loads = LOADS;
        loads[6] = load;
        let given = dualpipe_unverified_placement { loads: loads.as_ptr(), ..placement() };
        // SAFETY: locals.
        unsafe {
            let (slots, loads, gpus) = (SLOTS.as_ptr(), loads.as_ptr(), gpus.as_mut_ptr());
            let status =
                dualpipe_expert_gpu_loads(&cluster(), 4, slots, null(), 12, loads, 8, gpus, 4, &mut count);
            refused(status, "loads[layer 1, expert 2] is ");
            let (none, text) = (0, null_mut());
            let status = dualpipe_expert_verify_text(&cluster(), &goal(), &given, text, none, &mut count);
            refused(status, "loads[layer 1, expert 2] is ");
        }
    }
    assert_eq!((count, hash, gpus), (0, 7, [7.0; 4]), "written to");

    // In what is verified any number may be: it is found.
    let mut slots = SLOTS;
    for (slot, expert) in [-2, 1 << 32, i64::MIN, i64::MAX].into_iter().enumerate() {
        slots[slot] = expert;
    }
    let shares = [f64::NAN, f64::INFINITY, -1.0].repeat(4);
    let wrong = [i64::MIN, i64::MAX, 1 << 40, -3].repeat(4);
    let given = dualpipe_unverified_placement {
        slot_to_expert: slots.as_ptr(),
        shares: shares.as_ptr(),
        expert_to_slots: wrong.as_ptr(),
        replica_counts: wrong.as_ptr(),
        ..placement()
    };
    let mut verdict = dualpipe_verdict { num_errors: 0, num_warnings: 0, counts: [0; 16] };
    // SAFETY: locals.
    let status = unsafe {
        dualpipe_expert_verify(&cluster(), &goal(), &given, &mut verdict, null_mut(), 0, &mut count)
    };
    assert_eq!(status, DUALPIPE_OK, "{}", last_error());
    use dualpipe_finding_kind::*;
    let counts =
        [DUALPIPE_FINDING_NOT_AN_EXPERT, DUALPIPE_FINDING_REPLICA_COUNT, DUALPIPE_FINDING_WRONG_SLOT];
    assert_eq!(counts.map(|kind| verdict.counts[kind as usize]), [4, 8, 16]);

    let alone = dualpipe_unverified_placement { expert_to_slots: null(), ..placement() };
    let unlimited = dualpipe_unverified_placement { loads: null(), ..placement() };
    for (given, want) in [
        (alone, "placement->num_expert_to_slots is 16, but there are none"),
        (unlimited, "placement->imbalance_max is 2, must be 0 without loads"),
    ] {
        // SAFETY: locals.
        let status = unsafe {
            dualpipe_expert_verify(&cluster(), &goal(), &given, &mut verdict, null_mut(), 0, &mut count)
        };
        refused(status, want);
    }
}

fn bad_panels() {
    let (title, mut length) = (c"title".as_ptr(), 0);
    let good = panel(title, &[1.0; 4]);
    let no_cluster = dualpipe_heat_map_panel { cluster: null(), ..good };
    for (bad, want) in [
        (panel(null(), &[1.0; 4]), "panels[1].title is NULL"),
        (no_cluster, "panels[1].cluster is NULL"),
        (panel(title, &[1.0; 3]), "the length of panel 1's loads is 3, must be a multiple of num_gpus = 2"),
        (panel(title, &[]), "panel 1's num_layers is 0, must be 1 to 4096"),
        (panel(title, &[1.0, f64::NAN]), "panel 1's loads[layer 0, GPU 1] is NaN, must be 0 to 1e300"),
        (panel(title, &[1.0, -1.0]), "panel 1's loads[layer 0, GPU 1] is -1.0, must be 0 to 1e300"),
        (panel(title, &[1.0, f64::MAX]), "must be 0 to 1e300"),
        (dualpipe_heat_map_panel { loads: null(), ..good }, "panels[1].loads is NULL"),
        (dualpipe_heat_map_panel { num_loads: usize::MAX, ..good }, "panels[1].num_loads is 184467440"),
    ] {
        let panels = [good, bad];
        // SAFETY: locals, and what lives on.
        refused(unsafe { dualpipe_heat_map(panels.as_ptr(), 2, 2, null_mut(), 0, &mut length) }, want);
    }
    assert_eq!(length, 0, "written to");
}

fn bad_policies() {
    use dualpipe_policy_kind::*;
    let (loads, mut none) = (LOADS.repeat(3), null_mut());
    let mut create = |bad: dualpipe_policy| {
        let policies = [policy(DUALPIPE_POLICY_NONE), bad];
        // SAFETY: locals.
        let status = unsafe {
            let (loads, policies) = (loads.as_ptr(), policies.as_ptr());
            dualpipe_replay_create(&cluster(), &goal(), loads, 24, &options(), policies, 2, &mut none)
        };
        assert!(none.is_null());
        status
    };
    let few = dualpipe_policy { budget: 1, ..policy(DUALPIPE_POLICY_FEW_MOVES) };
    let priced = dualpipe_policy { budget: 2, ..few };
    let called = dualpipe_policy { plan: Some(keeps), ..policy(DUALPIPE_POLICY_CALLBACK) };
    for (bad, want) in [
        (
            dualpipe_policy { kind: 5, ..few },
            "policies[1].kind is 5, must be one of DUALPIPE_POLICY_NONE (0), ",
        ),
        (dualpipe_policy { budget: 4, ..few }, "policies[1].budget is 4, must be one of "),
        (
            dualpipe_policy { kind: 2, ..few },
            "policies[1].budget is 1, must be 0 unless kind is DUALPIPE_POLICY_FEW",
        ),
        (dualpipe_policy { max_price: 1.0, ..few }, "policies[1].max_price is 1, must be 0 with "),
        (dualpipe_policy { max_price: f64::NAN, ..priced }, " is NaN, must be finite and at least 0"),
        (dualpipe_policy { same_node_price: -1.0, ..priced }, " is -1, must be finite and at least 0"),
        (dualpipe_policy { budget: 3, imbalance: 0.5, ..few }, " is 0.5, must be finite and at least 1"),
        (dualpipe_policy { plan: None, ..called }, "policies[1].plan is NULL"),
        (
            dualpipe_policy { kind: 2, ..called },
            "policies[1].plan must be NULL unless kind is DUALPIPE_POLICY_CALLBACK",
        ),
    ] {
        refused(create(bad), want);
    }
    for expert in [4usize, 1 << 32, usize::MAX - 1] {
        let user_data = std::ptr::without_provenance_mut(expert);
        let status = create(dualpipe_policy { plan: Some(places_what_is_no_expert), user_data, ..called });
        refused(status, &format!("{}", expert as i64));
    }
    assert_eq!(create(dualpipe_policy { plan: Some(panics), ..called }), DUALPIPE_ERROR_PANIC);
    assert!(last_error().contains("in a policy"), "{}", last_error());

    let without = dualpipe_replay_options { initial: null(), ..options() };
    // SAFETY: locals.
    let status = unsafe {
        dualpipe_replay_create(&cluster(), &goal(), loads.as_ptr(), 24, &without, &called, 1, &mut none)
    };
    refused(status, "options->num_slots, without initial, is 12, must be 0 to 0");
}
