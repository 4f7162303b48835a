//! A schedule one can trust: whether it is complete, in order and within memory, whether every message finds its
//! receive, and under which transports no rank waits for ever. What fails comes with a smallest counterexample.
//!
//! A communicating order (action.h) may be given: of a runtime of your own, of a program. Without one, sends stand
//! behind what makes the message, and three places of the receives are tried: the schedule is good for a transport if
//! it is with one of them. docs/schedules.md has the table of what is proved.
//!
//! ```c
//! // Prints what is wrong with a schedule on a transport without tags; returns whether nothing is.
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static int is_right(dualpipe_schedule_t schedule) {
//!   dualpipe_schedule_verify_options options = DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT;
//!   dualpipe_verification_info info = DUALPIPE_VERIFICATION_INFO_INIT;
//!   dualpipe_verification_t verification = NULL;
//!   static char text[1 << 16];
//!   size_t length = 0;
//!   options.transports = DUALPIPE_VERIFY_ASYNCHRONOUS | DUALPIPE_VERIFY_RENDEZVOUS;
//!   if (dualpipe_schedule_verify(schedule, &options, &verification) != DUALPIPE_OK) return 0;
//!   if (dualpipe_verification_to_text(verification, text, sizeof text, &length) == DUALPIPE_OK)
//!     fputs(text, stdout);
//!   (void)dualpipe_verification_describe(verification, &info);
//!   (void)dualpipe_verification_free(verification);
//!   return info.is_valid == 1;
//! }
//! ```

use std::ffi::c_char;

use super::action::{dualpipe_action_order, read_action_orders, read_transports};
use super::args::{self, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle;
use super::options::{self, Growing};
use super::schedule::{dualpipe_schedule_t, ScheduleObject};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use super::torch_csv::read_format;
use super::verification::{dualpipe_verification_t, VerificationObject};
use crate::cost::Costs;
use crate::op::Action;
use crate::placement::RANKS_MAX;
use crate::schedule::torch_csv::{read_csv, TorchVersion};
use crate::schedule::Schedule;
use crate::sim::MemoryCap;
use crate::verify::{verify, Options, Transport};

/// What to verify besides the schedule, and for what. Start from DUALPIPE_SCHEDULE_VERIFY_OPTIONS_INIT: all transports,
/// no actions, no costs, no cap, with counterexamples.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_schedule_verify_options {
    /// sizeof(dualpipe_schedule_verify_options).
    pub size: u32,
    /// Bits of dualpipe_verify_transport: those to hold for. 0: all.
    pub transports: u32,
    /// NULL, or the communicating order of each rank.
    pub orders: *const dualpipe_action_order,
    /// How many there are: the number of ranks; 0 without.
    pub num_orders: usize,
    /// NULL, or costs to count bytes with; only those of memory matter.
    pub costs: *const dualpipe_costs,
    /// NULL, or how many micro-batch activations may be alive at once, at least 1: on each rank, or one entry for all.
    pub cap_activations: *const u64,
    /// How many there are: 1, or the number of ranks; 0 without.
    pub num_cap_activations: usize,
    /// NULL, or how many bytes each rank may keep, parameters included, at most 2^50; likewise. It needs costs. Only
    /// one of the caps may be there.
    pub cap_bytes: *const u64,
    /// How many there are; 0 without.
    pub num_cap_bytes: usize,
    /// 1: do not look for counterexamples, which takes time where there are faults. 0: look for them.
    pub no_counterexamples: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: repr(C), two u32, four pointers, which may be anything until they are checked, three usize, and two u32.
unsafe impl Growing for dualpipe_schedule_verify_options {
    const SIZE_V1: usize = 72;
}

/// Verifies a schedule, and with `orders` of the options a communicating order of it.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT where it cannot be told what is meant: an action of no kind, of a rank that
/// is none of the schedule's, or of a pass that no schedule has, with rank and position; a cap of another number of
/// ranks, or in bytes without costs; costs of another number of stages. Whatever else is wrong is a finding. Time and
/// memory: proportional to the ops, the actions and the passes; a counterexample for each kind of fault takes a bounded
/// number of tries more.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_verify(
    schedule: dualpipe_schedule_t,
    options: *const dualpipe_schedule_verify_options,
    verification: *mut dualpipe_verification_t,
) -> dualpipe_status {
    call("dualpipe_schedule_verify", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's, as is what it points to.
        let given = unsafe { Given::read(options, Some(object.schedule.num_ranks())) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("verification", verification) }?;
        out.write(handle::insert(given.verify(&object.schedule, given.orders.as_deref())?)?);
        Ok(())
    })
}

/// Verifies a CSV of torch's: text, version and format as of dualpipe_schedule_create_from_torch_csv. The communicating
/// order of COMPUTE_COMMS is verified as it stands in the file; `orders` of the options must be NULL. Torch starts
/// each send and each receive by itself, which with gloo is ASYNCHRONOUS; NCCL runs them one after another, so that a
/// receive keeps a later send waiting: of these transports none does.
///
/// Errors: as of both.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_verify_torch_csv(
    text: *const c_char,
    num_bytes: usize,
    torch_major: u32,
    torch_minor: u32,
    format: u32,
    options: *const dualpipe_schedule_verify_options,
    verification: *mut dualpipe_verification_t,
) -> dualpipe_status {
    call("dualpipe_schedule_verify_torch_csv", || {
        // SAFETY: the caller's, as are the next two.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        let version = TorchVersion { major: torch_major, minor: torch_minor };
        let format = read_format(format)?;
        // SAFETY: as above, as is what it points to.
        let given = unsafe { Given::read(options, None) }?;
        // SAFETY: as above.
        let out = unsafe { Out::new("verification", verification) }?;
        let csv = read_csv(text, version, format)?;
        out.write(handle::insert(given.verify(csv.schedule(), csv.actions())?)?);
        Ok(())
    })
}

/// The options, checked.
struct Given {
    transports: Vec<Transport>,
    orders: Option<Vec<Vec<Action>>>,
    costs: Option<Costs>,
    cap: MemoryCap,
    counterexamples: bool,
}

impl Given {
    /// Without a number of ranks there must be no orders.
    ///
    /// # Safety
    /// The pointer, and those in it, if their bits pass, may be read.
    unsafe fn read(
        options: *const dualpipe_schedule_verify_options,
        num_ranks: Option<usize>,
    ) -> Outcome<Given> {
        // SAFETY: the caller's promise, also below.
        let options = unsafe { options::read("options", options) }?;
        args::zero("options->reserved", options.reserved)?;
        let transports = read_transports("options->transports", options.transports)?;
        let counterexamples = !args::flag("options->no_counterexamples", options.no_counterexamples)?;
        // SAFETY: as above.
        let cap = unsafe {
            let activations = (options.cap_activations, options.num_cap_activations);
            read_cap(activations, (options.cap_bytes, options.num_cap_bytes))
        }?;
        let costs = match options.costs.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { cost::read("options->costs", options.costs) }?),
        };
        let given = (options.orders, options.num_orders);
        // SAFETY: as above.
        let orders = unsafe { read_orders(given, num_ranks) }?;
        Ok(Given { transports, orders, costs, cap, counterexamples })
    }

    fn verify(&self, schedule: &Schedule, actions: Option<&[Vec<Action>]>) -> Outcome<VerificationObject> {
        let options = Options {
            actions,
            transports: &self.transports,
            costs: self.costs.as_ref(),
            cap: self.cap.clone(),
            counterexamples: self.counterexamples,
        };
        let report = verify(schedule, &options)?;
        let transports = self.transports.clone();
        Ok(VerificationObject { report, transports, placement: schedule.placement().clone() })
    }
}

/// # Safety
/// The lists, if their bits pass, may be read.
unsafe fn read_orders(
    (orders, num_orders): (*const dualpipe_action_order, usize),
    num_ranks: Option<usize>,
) -> Outcome<Option<Vec<Vec<Action>>>> {
    match num_ranks {
        _ if orders.is_null() => {
            args::in_range("options->num_orders, without orders,", num_orders, 0..=0)?;
            Ok(None)
        }
        Some(num_ranks) if num_orders == num_ranks => {
            // SAFETY: the caller's promise.
            unsafe { read_action_orders("options->orders", orders, num_orders) }.map(Some)
        }
        Some(num_ranks) => {
            let how = format!("is {num_orders}, must be {num_ranks}, one for each rank");
            Err(Failure::argument("options->num_orders", how))
        }
        None => Err(Failure::argument("options->orders", "must be NULL: the file has its own")),
    }
}

/// The cap of the fields cap_activations and cap_bytes of `options`, and their numbers.
///
/// # Safety
/// The lists, if their bits pass, may be read.
pub(super) unsafe fn read_cap(
    activations: (*const u64, usize),
    bytes: (*const u64, usize),
) -> Outcome<MemoryCap> {
    // SAFETY: the caller's promise, also below.
    let activations = unsafe { read_caps("options->cap_activations", activations.0, activations.1) }?;
    // SAFETY: as above.
    let bytes = unsafe { read_caps("options->cap_bytes", bytes.0, bytes.1) }?;
    Ok(match (activations, bytes) {
        (None, None) => MemoryCap::Unlimited,
        (Some(activations), None) => {
            MemoryCap::Activations(activations.iter().map(|&cap| cap as usize).collect())
        }
        (None, Some(bytes)) => MemoryCap::Bytes(bytes.to_vec()),
        (Some(_), Some(_)) => {
            return Err(Failure::argument("options->cap_bytes", "must be NULL with cap_activations"));
        }
    })
}

/// # Safety
/// As of [`args::slice`].
unsafe fn read_caps<'a>(name: &str, caps: *const u64, count: usize) -> Outcome<Option<&'a [u64]>> {
    let most = if caps.is_null() { 0 } else { RANKS_MAX as usize };
    let least = most.min(1);
    let count_name = name.replace("->", "->num_");
    args::in_range(&count_name, count, least..=most)?;
    if caps.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { args::slice(name, caps, count_name, count) }.map(Some)
}
