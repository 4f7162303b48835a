//! Planning from a placement that is there: few moves for much balance. docs/moves.md explains it.
//!
//! | file       | what                                                            |
//! | ---------- | --------------------------------------------------------------- |
//! | `price`    | from where an expert comes to a slot, and what that costs       |
//! | `repair`   | makes a placement valid again, after failures and other changes |
//! | `search`   | the local search                                                |
//! | `changes`  | its single steps                                                |
//! | `renumber` | keeps as much as possible of a placement made anew              |
//! | `assign`   | the assignment problem, exactly                                 |

mod assign;
mod changes;
mod price;
mod renumber;
mod repair;
mod search;
#[cfg(test)]
mod tests;

use self::price::Before;
use self::renumber::{keep_slots, Renumber};
use self::repair::Repair;
use self::search::Search;
use super::cluster::{Cluster, EMPTY};
use super::goal::{Goal, GroupRule};
use super::layout::Layout;
use super::loads::{add_up, Loads};
use super::transfer::check_placements;
use crate::error::{in_range, Error, Result};

/// How much may be moved to get a better placement than the current one. Of each layer for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MoveBudget {
    /// As much as it takes: the placement is made anew, and renumbered so that as much as possible stays.
    Free,
    /// The best balance with so many moves at most.
    Moves(usize),
    /// The best balance for a price.
    Price {
        /// At most so much; finite, not negative.
        most: f64,
        /// What moves cost.
        prices: MovePrices,
    },
    /// A given balance for the least price, or as near to it as can be found.
    Target {
        /// The heaviest GPU's load / the mean that is enough, at least 1 and finite.
        imbalance: f64,
        /// What moves cost.
        prices: MovePrices,
    },
}

/// What it costs that an expert comes to a GPU that did not have it, by where its nearest replica is. Finite and not
/// negative; bytes, seconds, or plain numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovePrices {
    /// On another GPU of the node.
    pub same_node: f64,
    /// On another node, or nowhere any more.
    pub other_node: f64,
}

/// What leads from one placement to another of one layer, by where the nearest replica of each expert is at first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MoveCost {
    /// Slots whose expert was not on their GPU: the sum of the next three.
    pub moves: usize,
    /// From another GPU of the node.
    pub same_node: usize,
    /// From another node.
    pub other_node: usize,
    /// From nowhere: they must be loaded again.
    pub lost: usize,
    /// Slots whose expert was in another slot of their GPU; not a move, and free.
    pub same_gpu: usize,
    /// Moves without which the current placement could not stay, as GPUs died or the goal forbids it. They are part of
    /// `moves` and may exceed the budget.
    pub forced: usize,
    /// The price of all moves.
    pub price: f64,
}

/// A point of the curve of imbalance against moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovePoint {
    /// Moved slots.
    pub moves: usize,
    /// The heaviest GPU's load / the mean, with an equal split.
    pub imbalance: f64,
}

/// Nearer to the bound than this, single moves are not compared with a placement made anew.
const CLOSE: f64 = 1.01;

impl Default for MovePrices {
    /// 1 each: a price is a number of moves.
    fn default() -> Self {
        MovePrices { same_node: 1.0, other_node: 1.0 }
    }
}

impl MoveBudget {
    /// Whether numbers are in their ranges.
    pub(super) fn check(&self) -> Result<()> {
        let check = |argument: &str, value: f64, least: f64| {
            if value >= least && value.is_finite() {
                return Ok(());
            }
            let range = format!("must be finite and at least {least}");
            Err(Error::argument("balance", argument, value, range))
        };
        let check_prices = |prices: MovePrices| {
            check("the price of moves within a node", prices.same_node, 0.0)?;
            check("the price of moves between nodes", prices.other_node, 0.0)
        };
        match *self {
            MoveBudget::Free | MoveBudget::Moves(_) => Ok(()),
            MoveBudget::Price { most, prices } => {
                check("the price of all moves", most, 0.0).and(check_prices(prices))
            }
            MoveBudget::Target { imbalance, prices } => {
                check("the imbalance to reach", imbalance, 1.0).and(check_prices(prices))
            }
        }
    }

    /// Whether a placement that costs this may be taken, where the one that few moves lead to costs `forced` at least.
    pub(super) fn affords(&self, cost: &MoveCost, forced: usize) -> bool {
        match *self {
            MoveBudget::Free | MoveBudget::Target { .. } => true,
            MoveBudget::Moves(most) => cost.moves <= most.max(forced),
            MoveBudget::Price { most, .. } => cost.price <= most,
        }
    }

    /// How many single moves can be had for what is left beside the forced ones.
    fn replacements_beside(&self, forced: &MoveCost) -> usize {
        match *self {
            // A target is to be reached cheaply.
            MoveBudget::Free | MoveBudget::Target { .. } => 0,
            MoveBudget::Moves(most) => most.saturating_sub(forced.moves),
            MoveBudget::Price { most, prices } => {
                // Down to a whole number; free moves are as many as one likes.
                ((most - forced.price).max(0.0) / prices.same_node.max(prices.other_node)) as usize
            }
        }
    }

    /// Whether nothing is gained by an imbalance below this one, if `lower_bound` is proven.
    pub(super) fn is_content(&self, imbalance: f64, lower_bound: f64) -> bool {
        match *self {
            MoveBudget::Target { imbalance: enough, .. } => imbalance <= enough,
            _ => imbalance <= lower_bound * CLOSE,
        }
    }

    fn prices(&self) -> MovePrices {
        match *self {
            MoveBudget::Free | MoveBudget::Moves(_) => MovePrices::default(),
            MoveBudget::Price { prices, .. } | MoveBudget::Target { prices, .. } => prices,
        }
    }
}

/// Plans layers from their current placements, one after the other. The search is for an equal split, also where the
/// goal is a weighted one.
pub(super) struct MovePlanner<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    budget: MoveBudget,
    layout: Layout<'a>,
    before: Before<'a>,
    renumber: Renumber,
    group_of_expert: Vec<u32>,
    loads: Vec<f64>,
    /// Slots of live GPUs that hold an expert.
    live_slots: Vec<u32>,
}

impl<'a> MovePlanner<'a> {
    /// For checked arguments.
    pub(super) fn new(cluster: &'a Cluster, goal: &'a Goal, budget: MoveBudget) -> MovePlanner<'a> {
        MovePlanner {
            cluster,
            goal,
            budget,
            layout: Layout::new(cluster, goal),
            before: Before::new(cluster, goal.num_experts, budget.prices()),
            renumber: Renumber::default(),
            group_of_expert: goal.group_of_expert(),
            loads: Vec::new(),
            live_slots: Vec::new(),
        }
    }

    /// Plans a layer within the budget: its loads are the sums over `steps`, `[num_experts]` each, `current` and
    /// `slot_to_expert` are `[num_slots]`. In `current` an entry that is no expert counts as empty.
    ///
    /// None if `current` cannot be repaired by this module, or the budget is free: then the layer is to be placed anew
    /// and given to [`MovePlanner::renumber`].
    pub(super) fn place(
        &mut self,
        steps: &[&[f32]],
        current: &[u32],
        slot_to_expert: &mut [u32],
    ) -> Option<MoveCost> {
        if self.budget == MoveBudget::Free || !self.start(steps, current, 0) {
            return None;
        }
        let forced = self.before.cost(self.layout.slot_to_expert());
        let staying = self.layout.heaviest_load();
        let seconds = self.budget.replacements_beside(&forced);
        if seconds > 0 && !self.start(steps, current, seconds) {
            return None;
        }
        self.spend(&forced);
        // Two replicas on one GPU are waste, but not at the price of balance.
        if seconds > 0 && self.layout.heaviest_load() > staying && self.start(steps, current, 0) {
            self.spend(&forced);
        }
        slot_to_expert.copy_from_slice(self.layout.slot_to_expert());
        keep_slots(self.cluster, self.before.slots(), slot_to_expert);
        Some(MoveCost { forced: forced.moves, ..self.before.cost(slot_to_expert) })
    }

    fn spend(&mut self, forced: &MoveCost) {
        let (budget, mean) = (self.budget, self.mean());
        let mut search = self.search();
        match budget {
            MoveBudget::Free => {}
            MoveBudget::Moves(most) => search.spend((most as f64).max(forced.price), mean),
            MoveBudget::Price { most, .. } => search.spend(most.max(forced.price), mean),
            MoveBudget::Target { imbalance, .. } => search.reach_cheaply(imbalance * mean, mean),
        }
    }

    /// Renumbers a placement of a layer, so that as much as possible of `current` stays.
    pub(super) fn renumber(&mut self, current: &[u32], slot_to_expert: &mut [u32]) -> MoveCost {
        self.before.start(current);
        let by_node = self.goal.groups != GroupRule::Free || self.goal.min_nodes > 1;
        let mut renumbered = slot_to_expert.to_vec();
        self.renumber.renumber(self.cluster, &self.before, by_node, &mut renumbered);
        slot_to_expert.copy_from_slice(&renumbered);
        self.before.cost(slot_to_expert)
    }

    /// The curve of a layer: points of which each has more moves than the one before, and a lower imbalance.
    fn curve(&mut self, steps: &[&[f32]], current: &[u32], max_moves: usize) -> Vec<MovePoint> {
        if !self.start(steps, current, 0) {
            return Vec::new();
        }
        let mean = self.mean();
        let ratio = |load: f64| if mean > 0.0 { (load / mean).max(1.0) } else { 1.0 };
        let trace = self.search().trace(mean, max_moves as f64);
        trace
            .into_iter()
            .map(|(price, load)| MovePoint { moves: price as usize, imbalance: ratio(load) })
            .collect()
    }

    /// Fills the layout with the current placement, repaired; `seconds` second replicas on a GPU may go.
    fn start(&mut self, steps: &[&[f32]], current: &[u32], seconds: usize) -> bool {
        add_up(steps, &mut self.loads);
        self.before.start(current);
        self.layout.start(&self.loads, self.before.slots());
        let (cluster, goal) = (self.cluster, self.goal);
        let (layout, before) = (&mut self.layout, &self.before);
        let group_of_expert = &self.group_of_expert;
        let mut repair = Repair { cluster, goal, layout, before, group_of_expert, seconds };
        if !repair.repair(&self.loads) {
            return false;
        }
        self.live_slots.clear();
        let held = self.layout.slot_to_expert().iter().enumerate().filter(|(_, &expert)| expert != EMPTY);
        self.live_slots.extend(held.map(|(slot, _)| slot as u32));
        true
    }

    fn search(&mut self) -> Search<'a, '_> {
        Search::new(self.goal, &mut self.layout, &self.before, &self.live_slots)
    }

    fn mean(&self) -> f64 {
        self.loads.iter().sum::<f64>() / self.cluster.num_live_gpus() as f64
    }
}

/// `[num_layers]`: what leads from placement `from` to placement `to`, both `[num_layers, num_slots]`, on the cluster
/// as it is now, at a price of 1 for each move. A transfer plan can be cheaper: it passes an expert on within a node.
/// `O(slots * replicas)`.
///
/// # Errors
///
/// `InvalidArgument` as for [`transfers`](super::transfers()).
pub fn moves(cluster: &Cluster, num_experts: usize, from: &[u32], to: &[u32]) -> Result<Vec<MoveCost>> {
    check_placements("moves", cluster, num_experts, from, to)?;
    let mut before = Before::new(cluster, num_experts, MovePrices::default());
    let layers = from.chunks_exact(cluster.num_slots()).zip(to.chunks_exact(cluster.num_slots()));
    let costs = layers.map(|(from, to)| {
        before.start(from);
        before.cost(to)
    });
    Ok(costs.collect())
}

/// `[num_layers]`: for each layer what imbalance can be had for how many moves from `current`, which is
/// `[num_layers, num_slots]`, up to `max_moves` or to where no more is gained. The first point is the current
/// placement, made valid where it is not; a layer that cannot be made valid with single moves has no points. All
/// points were reached by a search, which is no proof that none is lower. Some 5 ms for 288 slots on 32 GPUs.
///
/// # Errors
///
/// `InvalidArgument`: what [`Goal::check`] refuses, loads of other sizes than the goal's, a `current` that is not of
/// that size or holds what is neither an expert nor [`EMPTY`], `max_moves` above 2^20.
pub fn move_curve(
    cluster: &Cluster,
    goal: &Goal,
    loads: Loads<'_>,
    current: &[u32],
    max_moves: usize,
) -> Result<Vec<Vec<MovePoint>>> {
    goal.check(cluster)?;
    in_range("move_curve", "max_moves", max_moves, 0..=super::cluster::SLOTS_MAX)?;
    loads.check_sizes(goal).map_err(|error| error.within("move_curve"))?;
    check_current("move_curve", cluster, goal, current)?;
    let mut planner = MovePlanner::new(cluster, goal, MoveBudget::Moves(max_moves));
    let layers = current.chunks_exact(cluster.num_slots()).enumerate();
    let curves = layers.map(|(layer, current)| {
        let steps: Vec<&[f32]> = loads.steps_of(layer).collect();
        planner.curve(&steps, current, max_moves)
    });
    Ok(curves.collect())
}

/// Whether `current` is `[num_layers, num_slots]` and holds experts or nothing.
pub(super) fn check_current(what: &str, cluster: &Cluster, goal: &Goal, current: &[u32]) -> Result<()> {
    let num_slots = cluster.num_slots();
    if current.len() != goal.num_layers * num_slots {
        let range = format!("must be num_layers * num_slots = {} * {num_slots}", goal.num_layers);
        return Err(Error::argument(what, "the length of current", current.len(), range));
    }
    let is_wrong = |&expert: &u32| expert != EMPTY && expert as usize >= goal.num_experts;
    if let Some(index) = current.iter().position(is_wrong) {
        let argument = format!("current[layer {}, slot {}]", index / num_slots, index % num_slots);
        let range = format!("must be less than num_experts = {}, or 4294967295 for none", goal.num_experts);
        return Err(Error::argument(what, argument, current[index], range));
    }
    Ok(())
}
