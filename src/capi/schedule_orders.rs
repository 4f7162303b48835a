//! Schedules from outside: orders of the caller's, or a text.
//!
//! What a search of your own found, or another program wrote, becomes a schedule like the published ones: it can be
//! checked, simulated, drawn, lowered to programs and run. Ops may come in any order on any placement of stages on
//! ranks; whether that can run is dualpipe_schedule_check's to say, with rank and position.
//!
//! ```c
//! // Two stages on one rank and one on the next, a single micro-batch.
//! #include <dualpipe.h>
//!
//! static dualpipe_op op(uint32_t kind, uint32_t stage) {
//!   const dualpipe_pass pass = {0, stage, 0, DUALPIPE_NONE};
//!   const dualpipe_op made = {kind, pass, pass}; // F reads forward, B backward
//!   return made;
//! }
//!
//! static dualpipe_status create(dualpipe_schedule_t *schedule) {
//!   const uint32_t rank_of[] = {0, 0, 1}; // of stages 0, 1, 2
//!   const dualpipe_op first[] = {op(DUALPIPE_OP_F, 0), op(DUALPIPE_OP_F, 1), op(DUALPIPE_OP_B, 1),
//!                                op(DUALPIPE_OP_B, 0)};
//!   const dualpipe_op second[] = {op(DUALPIPE_OP_F, 2), op(DUALPIPE_OP_B, 2)};
//!   const dualpipe_order orders[] = {{first, 4}, {second, 2}};
//!   dualpipe_schedule_orders given = DUALPIPE_SCHEDULE_ORDERS_INIT;
//!   given.num_ranks = 2;
//!   given.num_stages = 3;
//!   given.num_directions = 1;
//!   given.num_microbatches = 1;
//!   given.rank_of = rank_of;
//!   given.orders = orders;
//!   return dualpipe_schedule_create_from_orders(&given, schedule);
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::guard::call;
use super::handle;
use super::op::{dualpipe_op, read_op};
use super::options::{self, Growing};
use super::schedule::{dualpipe_schedule_t, work_of, ScheduleObject};
use super::status::dualpipe_status;
use super::status::{Failure, Outcome};
use crate::ids::Rank;
use crate::op::Op;
use crate::placement::{Placement, RANKS_MAX, STAGES_MAX};
use crate::schedule::Schedule;

/// The ops of one rank, in order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_order {
    /// num_ops of them, read during the call; NULL if there are none.
    pub ops: *const dualpipe_op,
    /// All ranks together may have at most 12582912.
    pub num_ops: usize,
}

/// A schedule in its parts. Start from DUALPIPE_SCHEDULE_ORDERS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_schedule_orders {
    /// sizeof(dualpipe_schedule_orders).
    pub size: u32,
    /// The ranks of the pipeline, 1 to 4096.
    pub num_ranks: u32,
    /// The stages of the model, 1 to 8192.
    pub num_stages: u32,
    /// 1, or 2: then each stage has two parameter copies.
    pub num_directions: u32,
    /// The micro-batches of a step, as of dualpipe_schedule_options; of two directions the first has the odd one.
    pub num_microbatches: u32,
    /// 0: every micro-batch goes forward and backward. 1: only forward, for inference.
    pub forward_only: u32,
    /// The rank of each stage: num_directions rows of num_stages, below num_ranks. A rank may have any stages, or none.
    pub rank_of: *const u32,
    /// The order of each rank, num_ranks of them. Of an op its kind and the passes of that kind are read: forward of F,
    /// backward of B, I and W, both of FB; of a pass all but copy, which the placement says.
    pub orders: *const dualpipe_order,
    /// What errors and pictures call it: UTF-8, NUL-terminated, of which at most 255 bytes count, without control
    /// characters; NULL or empty: "custom".
    pub name: *const c_char,
}

// SAFETY: repr(C), six u32 and three pointers, which may be anything until they are checked.
unsafe impl Growing for dualpipe_schedule_orders {
    const SIZE_V1: usize = 48;
}

/// Creates a schedule from its parts, of kind DUALPIPE_KIND_CUSTOM. What dualpipe_schedule_order gives may go in.
///
/// It need not be one that can run: passes that are missing, doubled, misplaced, or none of the placement's are found
/// by dualpipe_schedule_check, and by whatever is made from the schedule.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with rank and position of an op of another kind, or of a pass whose
/// direction is not 0 or 1, whose stage is above 8191 or whose micro-batch above 1048575. Time and memory: proportional
/// to the ops.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_create_from_orders(
    orders: *const dualpipe_schedule_orders,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_schedule_create_from_orders", || {
        // SAFETY: both are the caller's.
        let (given, out) = unsafe { (options::read("orders", orders)?, Out::new("schedule", schedule)?) };
        let work = work_of("orders->forward_only", given.forward_only)?;
        // SAFETY: the caller's, as is what it points to.
        let name = unsafe { read_name("orders->name", given.name) }?;
        let sizes = [given.num_ranks, given.num_stages, given.num_directions];
        // SAFETY: as above.
        let placement = unsafe { read_placement("orders", sizes, given.rank_of) }?;
        let num_microbatches = given.num_microbatches as usize;
        // So that sizes are refused before the ops are read.
        let empty = vec![Vec::new(); placement.num_ranks()];
        Schedule::new(name.as_str(), placement.clone(), num_microbatches, work, empty)?;
        // SAFETY: the caller's, as is what it points to.
        let orders = unsafe { read_orders(&given) }?;
        let schedule = Schedule::new(name, placement, num_microbatches, work, orders)?;
        out.write(handle::insert(ScheduleObject::custom(schedule))?);
        Ok(())
    })
}

/// Creates a schedule, of kind DUALPIPE_KIND_CUSTOM, from a text such as dualpipe_schedule_to_text writes: of num_bytes
/// bytes, which needs no NUL. Ranks, stages and micro-batches are as many as the text has, a stage is on the rank that
/// has its ops, and without any backward the schedule is forward only. Blanks and empty lines do not matter. `name` as
/// of dualpipe_schedule_orders.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, with line and column: what is no rank or op, ranks out of order, a stage
/// on two ranks or without any op; directions with other numbers of stages, or whose micro-batches are not as many, but
/// for one more in direction 0. Whether the schedule can run is dualpipe_schedule_check's to say.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_create_from_text(
    text: *const c_char,
    num_bytes: usize,
    name: *const c_char,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_schedule_create_from_text", || {
        // SAFETY: the caller's, as are the next two.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        // SAFETY: as above.
        let (name, out) = unsafe { (read_name("name", name)?, Out::new("schedule", schedule)?) };
        let schedule = Schedule::from_text(name, text)?;
        out.write(handle::insert(ScheduleObject::custom(schedule))?);
        Ok(())
    })
}

/// The name of a schedule: of a published one such as "dualpipe_v", otherwise as it was created. A NUL ends it; the
/// length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_schedule_name(
    schedule: dualpipe_schedule_t,
    name: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_schedule_name", || {
        let object = handle::get::<ScheduleObject>("schedule", schedule)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("name", name, capacity, "length", length) }?;
        out.fill_text(object.schedule.name())
    })
}

/// Bytes of a name that count.
const NAME_BYTES_MAX: usize = 255;

/// # Safety
/// As of [`args::text`], if it is not NULL.
pub(super) unsafe fn read_name(argument: &str, name: *const c_char) -> Outcome<String> {
    if name.is_null() {
        return Ok(UNNAMED.into());
    }
    // SAFETY: the caller's promise.
    let name = unsafe { args::text(argument, name, NAME_BYTES_MAX) }?;
    if name.contains(char::is_control) {
        return Err(Failure::argument(argument, format!("is {name:?}, must have no control characters")));
    }
    Ok(if name.is_empty() { UNNAMED.into() } else { name })
}

/// What a schedule without a name is called.
const UNNAMED: &str = "custom";

/// The placement of the fields num_ranks, num_stages, num_directions and rank_of of what is given as `argument`.
///
/// # Safety
/// The list, if its bits pass, may be read.
pub(super) unsafe fn read_placement(
    argument: &str,
    [num_ranks, num_stages, num_directions]: [u32; 3],
    rank_of: *const u32,
) -> Outcome<Placement> {
    let field = |name: &str| format!("{argument}->{name}");
    let all_ranks = args::in_range(field("num_ranks"), num_ranks, 1..=RANKS_MAX)? as usize;
    let num_stages = args::in_range(field("num_stages"), num_stages, 1..=STAGES_MAX)? as usize;
    let num_directions = args::in_range(field("num_directions"), num_directions, 1..=2)? as usize;
    let count = num_directions * num_stages;
    // SAFETY: the caller's promise.
    let ranks = unsafe { args::slice(field("rank_of"), rank_of, field("num_stages"), count) }?;
    if let Some(i) = ranks.iter().position(|&rank| rank >= num_ranks) {
        let how = format!("is {}, must be 0 to {}", ranks[i], num_ranks - 1);
        return Err(Failure::argument(field(&format!("rank_of[{i}]")), how));
    }
    let rows = ranks.chunks(num_stages).map(|row| row.iter().map(|&rank| Rank(rank)).collect());
    Ok(Placement::new(all_ranks, &rows.collect::<Vec<_>>())?)
}

/// # Safety
/// The lists in it, if their bits pass, may be read, and so may theirs.
unsafe fn read_orders(given: &dualpipe_schedule_orders) -> Outcome<Vec<Vec<Op>>> {
    let count = given.num_ranks as usize;
    // SAFETY: the caller's promise.
    let orders = unsafe { args::slice("orders->orders", given.orders, "orders->num_ranks", count) }?;
    let mut left = Schedule::OPS_MAX;
    for (rank, order) in orders.iter().enumerate() {
        let name = format!("orders->orders[{rank}].num_ops");
        args::in_range(name, order.num_ops, 0..=left)?;
        left -= order.num_ops;
    }
    let read = |(rank, order): (usize, &dualpipe_order)| {
        let field = |name: &str| format!("orders->orders[{rank}].{name}");
        // SAFETY: the caller's promise.
        let ops = unsafe { args::slice(field("ops"), order.ops, field("num_ops"), order.num_ops) }?;
        let ops = ops.iter().enumerate().map(|(i, op)| read_op(op, || field(&format!("ops[{i}]"))));
        ops.collect::<Outcome<Vec<Op>>>()
    };
    orders.iter().enumerate().map(read).collect()
}
