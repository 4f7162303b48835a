//! Policies to replay: those of this library, and callbacks.
//!
//! ```c
//! // A policy that puts back what there was an hour ago: user_data points to it, a number for each slot.
//! #include <dualpipe.h>
//! #include <string.h>
//!
//! static int32_t put_back(void *user_data, const dualpipe_policy_past *past, int64_t *slot_to_expert,
//!                         double *shares) {
//!   (void)shares;
//!   memcpy(slot_to_expert, user_data, past->num_slots * sizeof *slot_to_expert);
//!   return DUALPIPE_POLICY_PLACED;
//! }
//!
//! static dualpipe_policy policy_of(int64_t *what_there_was) {
//!   dualpipe_policy policy = {0};
//!   policy.kind = DUALPIPE_POLICY_CALLBACK;
//!   policy.name = "put back";
//!   policy.plan = put_back;
//!   policy.user_data = what_there_was;
//!   return policy;
//! }
//! ```

use std::ffi::{c_char, c_void};

use super::args::{self, UserData};
use super::cluster::{read_slots, to_c};
use super::moves::{dualpipe_current_placement, read_budget};
use super::status::{Failure, Outcome};
use crate::balance::replay::{Past, Placed, Policy};
use crate::balance::MoveBudget;
use crate::error::{Error, ErrorKind};

use dualpipe_policy_answer::*;
use dualpipe_policy_kind::*;

/// What a policy does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_policy_kind {
    /// Nothing: what there is stays.
    DUALPIPE_POLICY_NONE = 0,
    /// DeepSeek's policy on the sum of the window. Only for equal GPUs in equal nodes, all alive.
    DUALPIPE_POLICY_DEEPSEEK = 1,
    /// dualpipe_expert_plan_balance on the steps of the window, anew each time, numbered so that as much as possible
    /// stays where it is.
    DUALPIPE_POLICY_REFINED = 2,
    /// dualpipe_expert_plan_balance on the steps of the window, from what there is, within a budget.
    DUALPIPE_POLICY_FEW_MOVES = 3,
    /// What a callback says.
    DUALPIPE_POLICY_CALLBACK = 4,
}

/// What a callback may know: the steps before a rebalance, and where the experts are. Valid until it returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_policy_past {
    /// num_steps times num_layers rows of num_experts: the loads of all steps before the rebalance.
    pub loads: *const f32,
    /// The expert in each of the cluster's slots, num_layers rows, -1 where there is none.
    pub slot_to_expert: *const i64,
    /// The share of its expert's tokens that each slot gets, likewise; NULL: an equal split.
    pub shares: *const f64,
    /// How many numbers slot_to_expert has, and shares if there are any.
    pub num_slots: usize,
    /// Steps before the rebalance.
    pub num_steps: u32,
    /// How many of them, the last ones, are the window.
    pub window: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// Logical experts of a layer.
    pub num_experts: u32,
}

/// What a callback says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_policy_answer {
    /// What there is stays.
    DUALPIPE_POLICY_KEEP = 0,
    /// slot_to_expert was written; each expert's replicas share equally.
    DUALPIPE_POLICY_PLACED = 1,
    /// slot_to_expert and shares were written.
    DUALPIPE_POLICY_PLACED_WITH_SHARES = 2,
}

/// Plans one rebalance: reads `past` and returns a dualpipe_policy_answer; anything else ends the replay with
/// DUALPIPE_ERROR_CALLBACK_FAILED.
///
/// slot_to_expert and shares have room for past->num_slots numbers each; the first begins as what there is, the second
/// as zeros. Called on the thread that replays. It may call the library. It must return: no exception, no longjmp.
pub type dualpipe_policy_fn = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        past: *const dualpipe_policy_past,
        slot_to_expert: *mut i64,
        shares: *mut f64,
    ) -> i32,
>;

/// A policy to replay. What it has no use for must be 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_policy {
    /// A dualpipe_policy_kind.
    pub kind: u32,
    /// For DUALPIPE_POLICY_FEW_MOVES: a dualpipe_budget, of each layer at each rebalance.
    pub budget: u32,
    /// NULL for the kind's own, or its name: UTF-8, NUL-terminated, of which at most 255 bytes count.
    pub name: *const c_char,
    /// For DUALPIPE_POLICY_CALLBACK: what to call.
    pub plan: dualpipe_policy_fn,
    /// For DUALPIPE_POLICY_CALLBACK: what it is handed.
    pub user_data: *mut c_void,
    /// For DUALPIPE_BUDGET_MOVES, as of dualpipe_current_placement; likewise the next.
    pub max_moves: u64,
    /// For DUALPIPE_BUDGET_PRICE.
    pub max_price: f64,
    /// For DUALPIPE_BUDGET_REACH.
    pub imbalance: f64,
    /// For DUALPIPE_BUDGET_PRICE and _REACH.
    pub same_node_price: f64,
    /// For DUALPIPE_BUDGET_PRICE and _REACH.
    pub other_node_price: f64,
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
pub(super) unsafe fn read_policies<'p>(
    policies: *const dualpipe_policy,
    num_policies: usize,
) -> Outcome<Vec<Policy<'p>>> {
    args::in_range("num_policies", num_policies, 1..=POLICIES_MAX)?;
    // SAFETY: as promised by the caller.
    let given = unsafe { args::slice("policies", policies, "num_policies", num_policies) }?;
    let read = |(i, policy)| {
        // SAFETY: as promised by the caller.
        unsafe { read_policy(&format!("policies[{i}]"), policy) }
    };
    given.iter().enumerate().map(read).collect()
}

const POLICIES_MAX: usize = 64;
/// What counts of a name.
const NAME_MAX: usize = 255;

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
unsafe fn read_policy<'p>(argument: &str, given: &dualpipe_policy) -> Outcome<Policy<'p>> {
    let field = |name: &str| format!("{argument}.{name}");
    let kinds = [
        DUALPIPE_POLICY_NONE,
        DUALPIPE_POLICY_DEEPSEEK,
        DUALPIPE_POLICY_REFINED,
        DUALPIPE_POLICY_FEW_MOVES,
        DUALPIPE_POLICY_CALLBACK,
    ];
    let kind = args::one_of(&field("kind"), given.kind, kinds.map(|kind| (kind as u32, kind)))?;
    let is_callback = kind == DUALPIPE_POLICY_CALLBACK;
    if given.plan.is_some() != is_callback {
        let how =
            if is_callback { "is NULL" } else { "must be NULL unless kind is DUALPIPE_POLICY_CALLBACK" };
        return Err(Failure::argument(field("plan"), how));
    }
    let budget = read_policy_budget(argument, given)?;
    if kind != DUALPIPE_POLICY_FEW_MOVES && budget != MoveBudget::Free {
        let how = format!("is {}, must be 0 unless kind is DUALPIPE_POLICY_FEW_MOVES", given.budget);
        return Err(Failure::argument(field("budget"), how));
    }
    let name = match given.name.is_null() {
        true => None,
        // SAFETY: as promised by the caller.
        false => Some(unsafe { args::text(&field("name"), given.name, NAME_MAX) }?),
    };
    let policy = match (kind, given.plan) {
        (DUALPIPE_POLICY_DEEPSEEK, _) => Policy::deepseek(),
        (DUALPIPE_POLICY_REFINED, _) => Policy::refined(),
        (DUALPIPE_POLICY_FEW_MOVES, _) => Policy::few_moves(budget),
        (DUALPIPE_POLICY_CALLBACK, Some(plan)) => {
            let name = name.clone().unwrap_or_else(|| "callback".into());
            let callback = Callback { name: name.clone(), plan, user_data: UserData(given.user_data) };
            Policy::new(name, move |past, current| callback.plan(past, current))
        }
        _ => Policy::none(),
    };
    Ok(match name {
        Some(name) => policy.named(name),
        None => policy,
    })
}

fn read_policy_budget(argument: &str, given: &dualpipe_policy) -> Outcome<MoveBudget> {
    let budget = dualpipe_current_placement {
        size: 0,
        budget: given.budget,
        slot_to_expert: std::ptr::null(),
        num_slots: 0,
        max_moves: given.max_moves,
        max_price: given.max_price,
        imbalance: given.imbalance,
        same_node_price: given.same_node_price,
        other_node_price: given.other_node_price,
    };
    // An array has no arrows.
    read_budget(argument, &budget)
        .map_err(|failure| Failure { text: failure.text.replace("->", "."), ..failure })
}

/// A policy of the caller's.
struct Callback {
    name: String,
    plan: unsafe extern "C-unwind" fn(*mut c_void, *const dualpipe_policy_past, *mut i64, *mut f64) -> i32,
    user_data: UserData,
}

impl Callback {
    fn plan(&self, past: &Past<'_>, current: &Placed) -> crate::error::Result<Option<Placed>> {
        let held: Vec<i64> = current.slot_to_expert.iter().map(|&expert| to_c(expert)).collect();
        let (mut slots, mut shares) = (held.clone(), vec![0.0; held.len()]);
        let in_c = dualpipe_policy_past {
            loads: past.loads().as_ptr(),
            slot_to_expert: held.as_ptr(),
            shares: current.shares.as_ref().map_or(std::ptr::null(), |shares| shares.as_ptr()),
            num_slots: held.len(),
            num_steps: past.step() as u32,
            window: past.window().num_steps() as u32,
            num_layers: past.goal().num_layers as u32,
            num_experts: past.goal().num_experts as u32,
        };
        // SAFETY: the caller's function, with the caller's data; the rest outlives the call.
        let answer = unsafe { (self.plan)(self.user_data.0, &in_c, slots.as_mut_ptr(), shares.as_mut_ptr()) };
        let answers = [DUALPIPE_POLICY_KEEP, DUALPIPE_POLICY_PLACED, DUALPIPE_POLICY_PLACED_WITH_SHARES];
        let at = || format!("policy `{}` at step {}", self.name, past.step());
        let Some(&answer) = answers.iter().find(|&&known| i64::from(answer) == known as i64) else {
            let text = format!("{} returned {answer}", at());
            return Err(Error::new(ErrorKind::CallbackFailed, text));
        };
        if answer == DUALPIPE_POLICY_KEEP {
            return Ok(None);
        }
        // SAFETY: its own values.
        let slots = unsafe { read_slots("slot_to_expert", slots.as_ptr(), "num_slots", slots.len()) };
        let slot_to_expert = slots.map_err(|failure| {
            Error::new(ErrorKind::InvalidArgument, format!("{}: {}", at(), failure.text))
        })?;
        let shares = (answer == DUALPIPE_POLICY_PLACED_WITH_SHARES).then_some(shares);
        Ok(Some(Placed { slot_to_expert, shares }))
    }
}
