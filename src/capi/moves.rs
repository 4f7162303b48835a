//! From the placement that is there: how much may change, what a change moves, what a move gains.
//!
//! ```c
//! // At most 10 experts of each layer are moved; those of a failed GPU come on top, as they must.
//! #include <dualpipe.h>
//!
//! static dualpipe_status plan_next(const dualpipe_cluster *cluster, const dualpipe_goal *goal, const float *loads,
//!                                  const int64_t *slot_to_expert, dualpipe_expert_plan_t *next) {
//!   const size_t num_loads = (size_t)goal->num_layers * goal->num_experts;
//!   dualpipe_current_placement current = DUALPIPE_CURRENT_PLACEMENT_INIT;
//!   current.slot_to_expert = slot_to_expert;
//!   current.num_slots = (size_t)goal->num_layers * cluster->num_slots;
//!   current.budget = DUALPIPE_BUDGET_MOVES;
//!   current.max_moves = 10;
//!   return dualpipe_expert_plan_balance(cluster, goal, loads, num_loads, &current, 0, next);
//! }
//! ```

use super::args::{self, Buffer};
use super::cluster::{dualpipe_cluster, dualpipe_goal, read_cluster, read_goal, read_slots, steps_of};
use super::guard::call;
use super::options::{self, Growing};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::{move_curve, moves, MoveBudget, MovePrices};

/// How much of a placement may change, of each layer for itself. A move is an expert that comes to a GPU that did not
/// have it. What must move, as a GPU died or the goal forbids what is there, comes on top.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub enum dualpipe_budget {
    /// All: it is placed anew, and numbered so that as much as possible stays.
    DUALPIPE_BUDGET_FREE = 0,
    /// At most max_moves moves.
    DUALPIPE_BUDGET_MOVES = 1,
    /// Moves of a price of at most max_price.
    DUALPIPE_BUDGET_PRICE = 2,
    /// The cheapest that reaches `imbalance`, or comes as near to it as can be found.
    DUALPIPE_BUDGET_REACH = 3,
}

/// The placement that experts lie by, and what may change. Start from DUALPIPE_CURRENT_PLACEMENT_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_current_placement {
    /// sizeof(dualpipe_current_placement).
    pub size: u32,
    /// A dualpipe_budget.
    pub budget: u32,
    /// num_layers rows of the cluster's slots: the expert in each, -1 where there is none. What slots of dead GPUs hold
    /// does not matter.
    pub slot_to_expert: *const i64,
    /// How many numbers slot_to_expert has.
    pub num_slots: usize,
    /// For DUALPIPE_BUDGET_MOVES, otherwise 0.
    pub max_moves: u64,
    /// For DUALPIPE_BUDGET_PRICE, otherwise 0. Finite, not negative.
    pub max_price: f64,
    /// For DUALPIPE_BUDGET_REACH, otherwise 0: the heaviest GPU's load / the mean, at least 1.
    pub imbalance: f64,
    /// For DUALPIPE_BUDGET_PRICE and _REACH, otherwise 0: the price of a move within a node, in any unit. Finite, not
    /// negative.
    pub same_node_price: f64,
    /// Likewise, of a move between nodes.
    pub other_node_price: f64,
}

// SAFETY: repr(C), two u32, a pointer and six numbers of 64 bits.
unsafe impl Growing for dualpipe_current_placement {
    const SIZE_V1: usize = 64;
}

/// # Safety
/// The caller of the entry point promises what dualpipe.h says under "Ownership".
pub(super) unsafe fn read_current(
    argument: &str,
    pointer: *const dualpipe_current_placement,
) -> Outcome<Option<(Vec<u32>, MoveBudget)>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    let given = unsafe { options::read(argument, pointer) }?;
    let field = |name: &str| format!("{argument}->{name}");
    let (slots, num_slots) = (field("slot_to_expert"), field("num_slots"));
    // SAFETY: as promised by the caller.
    let slots = unsafe { read_slots(&slots, given.slot_to_expert, &num_slots, given.num_slots) }?;
    Ok(Some((slots, read_budget(argument, &given)?)))
}

pub(super) fn read_budget(argument: &str, given: &dualpipe_current_placement) -> Outcome<MoveBudget> {
    use dualpipe_budget::*;
    let budget = args::one_of(
        &format!("{argument}->budget"),
        given.budget,
        [
            (0, DUALPIPE_BUDGET_FREE),
            (1, DUALPIPE_BUDGET_MOVES),
            (2, DUALPIPE_BUDGET_PRICE),
            (3, DUALPIPE_BUDGET_REACH),
        ],
    )?;
    let is_priced = matches!(budget, DUALPIPE_BUDGET_PRICE | DUALPIPE_BUDGET_REACH);
    for (name, value, is_used) in [
        ("max_moves", given.max_moves as f64, matches!(budget, DUALPIPE_BUDGET_MOVES)),
        ("max_price", given.max_price, matches!(budget, DUALPIPE_BUDGET_PRICE)),
        ("imbalance", given.imbalance, matches!(budget, DUALPIPE_BUDGET_REACH)),
        ("same_node_price", given.same_node_price, is_priced),
        ("other_node_price", given.other_node_price, is_priced),
    ] {
        if !is_used && value != 0.0 {
            let how = format!("is {value}, must be 0 with {budget:?}");
            return Err(Failure::argument(format!("{argument}->{name}"), how));
        }
    }
    let prices = MovePrices { same_node: given.same_node_price, other_node: given.other_node_price };
    Ok(match budget {
        DUALPIPE_BUDGET_FREE => MoveBudget::Free,
        DUALPIPE_BUDGET_MOVES => MoveBudget::Moves(given.max_moves.try_into().unwrap_or(usize::MAX)),
        DUALPIPE_BUDGET_PRICE => MoveBudget::Price { most: given.max_price, prices },
        DUALPIPE_BUDGET_REACH => MoveBudget::Target { imbalance: given.imbalance, prices },
    })
}

/// What leads from one placement of a layer to another, by where the nearest replica of each expert is at first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_move_count {
    /// Slots whose expert was not on their GPU: the sum of the next three.
    pub moves: u32,
    /// From another GPU of the node.
    pub same_node: u32,
    /// From another node.
    pub other_node: u32,
    /// From nowhere: they must be loaded again.
    pub lost: u32,
    /// Slots whose expert was in another slot of their GPU: copies within the GPU, no moves.
    pub same_gpu: u32,
}

/// Counts for each layer what leads from a placement to another, num_layers entries; both are num_layers rows of the
/// cluster's slots, -1 where there is no expert, and have num_slots numbers. num_layers follows from them. Buffers are
/// filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_moves(
    cluster: *const dualpipe_cluster,
    num_experts: u32,
    from: *const i64,
    to: *const i64,
    num_slots: usize,
    counts: *mut dualpipe_move_count,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_moves", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let from = unsafe { read_slots("from", from, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let to = unsafe { read_slots("to", to, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("counts", counts, capacity, "count", count) }?;
        let costs = moves(&cluster, num_experts as usize, &from, &to)?;
        let of_layer = costs.iter().map(|cost| dualpipe_move_count {
            moves: cost.moves as u32,
            same_node: cost.same_node as u32,
            other_node: cost.other_node as u32,
            lost: cost.lost as u32,
            same_gpu: cost.same_gpu as u32,
        });
        out.fill(costs.len(), of_layer)
    })
}

/// A point of the curve of imbalance against moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct dualpipe_move_point {
    /// Its layer.
    pub layer: u32,
    /// Moves.
    pub moves: u32,
    /// The heaviest GPU's load / the mean, with an equal split.
    pub imbalance: f64,
}

/// What imbalance can be had for how many moves from a placement, up to max_moves (at most 2^20) or to where no more
/// is gained: for each layer points with more and more moves and less and less imbalance, of which the first is the
/// current placement, made valid where it is not. A layer that single moves cannot make valid has no points. Every
/// point was found by a search, which is no proof that none is lower.
///
/// loads: as for dualpipe_expert_plan_balance. slot_to_expert: num_layers rows of the cluster's slots, -1 where there
/// is no expert, num_slots in all. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_move_curve(
    cluster: *const dualpipe_cluster,
    goal: *const dualpipe_goal,
    loads: *const f32,
    num_loads: usize,
    slot_to_expert: *const i64,
    num_slots: usize,
    max_moves: u32,
    points: *mut dualpipe_move_point,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_move_curve", || {
        // SAFETY: the caller's.
        let (cluster, goal) = unsafe { (read_cluster("cluster", cluster)?, read_goal("goal", goal)?) };
        goal.check(&cluster)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("points", points, capacity, "count", count) }?;
        let curves = move_curve(&cluster, &goal, steps_of(&goal, loads)?, &slots, max_moves as usize)?;
        let points = curves.iter().zip(0..).flat_map(|(points, layer)| {
            points.iter().map(move |point| dualpipe_move_point {
                layer,
                moves: point.moves as u32,
                imbalance: point.imbalance,
            })
        });
        out.fill(curves.iter().map(Vec::len).sum(), points)
    })
}
