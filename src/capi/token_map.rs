//! Which token goes to which slot: every rank finds the same for itself.
//!
//! ```c
//! // Without counts, by the shares of the plan that the router was made from. topk: [tokens, top_k], the experts of
//! // this rank's tokens. The phase keeps ranks and steps from beginning with the same replica.
//! #include <dualpipe.h>
//!
//! static dualpipe_status map_tokens(dualpipe_router_t router, uint32_t layer, uint64_t step, uint32_t rank,
//!                                   uint32_t num_ranks, const int32_t *topk, size_t num_choices, int32_t *slots) {
//!   size_t count = 0;
//!   return dualpipe_router_slots_by_shares(router, layer, NULL, 0, step * num_ranks + rank, topk, sizeof *topk,
//!                                          num_choices, slots, num_choices, &count);
//! }
//! ```

use std::ffi::c_void;

use super::args::{self, Buffer};
use super::guard::call;
use super::handle;
use super::route::dualpipe_router_t;
use super::router_object::{Placement, RouterObject};
use super::status::{dualpipe_status, Failure, Outcome};

/// The slot of each of a rank's tokens by quotas, num_quotas = num_slots; -1 where there is no expert. Any rank
/// that is given the same finds the same, and when all tokens have been sent that the quotas were made for, each
/// slot has had its quota exactly. Of the first tokens, however many, each slot gets its part as near as can be.
///
/// choices: the experts of the tokens, [tokens, top_k], num_choices integers of choice_bytes bytes each: 4
/// (int32_t) or 8 (int64_t); -1 is none. slots become as many, in the same order. Buffers are filled as dualpipe.h
/// says under "Buffers".
///
/// before: with the quotas of this rank's tokens alone (its row of dualpipe_router_source_quotas) NULL, num_before
/// 0. With the quotas of all ranks' tokens (dualpipe_router_route) the number of each expert's tokens on lower
/// ranks, num_before = num_experts. If a rank sends its tokens in chunks, those of its earlier chunks are added to
/// it.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert has more tokens than its quotas.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_slots_by_quotas(
    router: dualpipe_router_t,
    layer: u32,
    quotas: *const u32,
    num_quotas: usize,
    before: *const u32,
    num_before: usize,
    choices: *const c_void,
    choice_bytes: u32,
    num_choices: usize,
    slots: *mut i32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_router_slots_by_quotas", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let layer = object.index("layer", layer)?;
        let Placement { cluster, num_experts, .. } = &object.placement;
        args::in_range("num_quotas", num_quotas, cluster.num_slots()..=cluster.num_slots())?;
        if num_before != 0 {
            args::in_range("num_before", num_before, *num_experts..=*num_experts)?;
        }
        // SAFETY: the caller's.
        let quotas = unsafe { args::slice("quotas", quotas, "num_quotas", num_quotas) }?;
        // SAFETY: the caller's.
        let before = unsafe { args::slice("before", before, "num_before", num_before) }?;
        // SAFETY: the caller's.
        let choices = unsafe { read_choices(choices, choice_bytes, num_choices) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("slots", slots, capacity, "count", count) }?;
        let mut layers = object.layers();
        let tokens = layers[layer].tokens(&object.placement, layer)?;
        out.fill_in_place(num_choices, |slots| {
            match choices {
                Choices::Narrow(experts) => tokens.by_quotas(quotas, before, experts, slots)?,
                Choices::Wide(experts) => tokens.by_quotas(quotas, before, experts, slots)?,
            }
            Ok(())
        })
    })
}

/// The slot of each of a rank's tokens by shares, without counts: each slot gets about its share of its expert's
/// tokens, of any tokens in a row. choices and slots are as for dualpipe_router_slots_by_quotas.
///
/// shares: num_shares = num_slots, of which only the proportions among an expert's slots matter; NULL with 0 stands
/// for the plan's, or, if the router was made from slots, for equal ones. phase: another for each rank and step,
/// such as step * num_gpus + rank, lest all begin with the same replica.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also if an expert with tokens has no share.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_router_slots_by_shares(
    router: dualpipe_router_t,
    layer: u32,
    shares: *const f64,
    num_shares: usize,
    phase: u64,
    choices: *const c_void,
    choice_bytes: u32,
    num_choices: usize,
    slots: *mut i32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_router_slots_by_shares", || {
        let object = handle::get::<RouterObject>("router", router)?;
        let _busy = object.busy.enter("router")?;
        let layer = object.index("layer", layer)?;
        let num_slots = object.placement.cluster.num_slots();
        if num_shares != 0 {
            args::in_range("num_shares", num_shares, num_slots..=num_slots)?;
        }
        // SAFETY: the caller's.
        let shares = unsafe { args::slice("shares", shares, "num_shares", num_shares) }?;
        let shares = if shares.is_empty() {
            &object.placement.shares[layer * num_slots..][..num_slots]
        } else {
            shares
        };
        // SAFETY: the caller's.
        let choices = unsafe { read_choices(choices, choice_bytes, num_choices) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("slots", slots, capacity, "count", count) }?;
        let mut layers = object.layers();
        let tokens = layers[layer].tokens(&object.placement, layer)?;
        out.fill_in_place(num_choices, |slots| {
            match choices {
                Choices::Narrow(experts) => tokens.by_shares(shares, phase, experts, slots)?,
                Choices::Wide(experts) => tokens.by_shares(shares, phase, experts, slots)?,
            }
            Ok(())
        })
    })
}

/// Experts of tokens, as engines have them.
enum Choices<'a> {
    Narrow(&'a [i32]),
    Wide(&'a [i64]),
}

/// # Safety
/// As of [`args::slice`].
unsafe fn read_choices<'a>(
    choices: *const c_void,
    choice_bytes: u32,
    num_choices: usize,
) -> Outcome<Choices<'a>> {
    match choice_bytes {
        4 => {
            // SAFETY: as promised by the caller.
            let narrow = unsafe { args::slice("choices", choices.cast(), "num_choices", num_choices) };
            narrow.map(Choices::Narrow)
        }
        8 => {
            // SAFETY: as promised by the caller.
            let wide = unsafe { args::slice("choices", choices.cast(), "num_choices", num_choices) };
            wide.map(Choices::Wide)
        }
        other => Err(Failure::argument("choice_bytes", format!("is {other}, must be 4 or 8"))),
    }
}
