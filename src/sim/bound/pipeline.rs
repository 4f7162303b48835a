//! Windows carried from rank to rank: whether any schedule can be as short as a trial makespan.
//!
//! Each rank is looked at on its own ([`RankStates::explore`]). When its k-th F and I can end and start becomes the
//! windows of the copies before and after, whose ranks are looked at next, and so on. If some rank is left without a
//! way through its states, no schedule ends by then.

use super::graph::{Graph, Shape};
use super::model::{Copy, Memory, Model, Neighbour};
use super::rank::RankStates;
use super::windows::{Found, Windows, FORWARD, INPUT, KINDS};
use crate::cost::Costs;
use crate::placement::Placement;
use crate::sim::MemoryCap;

/// Most states of one rank. A rank that would have more counts its copies together; if there are still more, only
/// that each copy runs one F and one I at a time is known of it.
const STATES_MAX: usize = 400_000;
/// Most states of all graphs: they take about 80 bytes each.
const STATES_OF_ALL_MAX: usize = 2_000_000;
/// Every rank can be looked at so often, at least, before the work limit.
const LOOKS_MIN: u64 = 3;
/// How often every rank may be looked at in one trial. Most trials that refute do so in the first sweep.
const SWEEPS_MAX: usize = 8;

/// What a trial came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No schedule ends by the horizon.
    Refuted,
    /// One may.
    Open,
    /// The work limit came first.
    OutOfWork,
}

/// How a rank counts what it has done of its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// All copies together: few states, quick to explore.
    Together,
    /// Two copies each on its own, where a rank holds two.
    Apart,
}

/// The ranks with their states, for any number of trials.
pub(super) struct Pipeline {
    copies: Vec<Copy>,
    ranks: Vec<RankView>,
    /// What ranks share that have as many copies, micro-batches and memory; `None` where there are too many states.
    graphs: Vec<(Shape, Option<Graph>)>,
    /// How many states may still be explored.
    work_left: u64,
    /// Scratch of all ranks.
    earliest_ns: Vec<i64>,
}

/// The copies of one rank, in groups that are counted on their own.
struct RankView {
    groups: Vec<Vec<usize>>,
    /// Position in [`Pipeline::graphs`], and the states; `None` if there would be too many.
    states: Option<(usize, RankStates)>,
}

impl Pipeline {
    /// `costs` and `cap` must fit the placement. `work_max` states may be explored, in all trials together. `None` if
    /// there is nothing to be counted apart.
    pub(super) fn new(
        placement: &Placement,
        microbatches: [usize; 2],
        costs: &Costs,
        cap: &MemoryCap,
        counting: Counting,
        work_max: u64,
    ) -> Option<Pipeline> {
        let model = Model::new(placement, microbatches, costs, cap);
        let states_max = (work_max / LOOKS_MIN) as usize / model.held.len();
        let mut graphs = Graphs { known: Vec::new(), states_max: states_max.min(STATES_MAX) };
        let ranks = model.held.iter().enumerate().map(|(rank, held)| {
            let memory = Memory::new(rank, placement, costs, cap);
            RankView::new(&model, held, costs, &memory, counting, &mut graphs)
        });
        let ranks: Vec<RankView> = ranks.collect();
        let is_new = counting == Counting::Together || ranks.iter().any(|rank| rank.groups.len() > 1);
        is_new.then(|| Pipeline {
            copies: model.copies,
            ranks,
            graphs: graphs.known,
            work_left: work_max,
            earliest_ns: Vec::new(),
        })
    }

    /// A few windows that any schedule keeps that ends by `horizon_ns`, found without looking at states.
    pub(super) fn rough_windows(&self, horizon_ns: i64) -> Vec<Windows> {
        let mut windows: Vec<Windows> = self.copies.iter().map(|copy| Windows::open(copy.count)).collect();
        let mut changed = vec![false; self.ranks.len()];
        let mut carry = |windows: &mut Vec<Windows>, copy: usize| {
            let found = self.copies[copy].one_at_a_time(&windows[copy], horizon_ns);
            self.carry(copy, &found, windows, &mut changed);
        };
        // Forward to the last stages, back to the first, and forward again: copies are in order of their stages.
        for _ in 0..2 {
            (0..self.copies.len()).for_each(|copy| carry(&mut windows, copy));
            (0..self.copies.len()).rev().for_each(|copy| carry(&mut windows, copy));
        }
        windows
    }

    /// Narrows `windows`, one for each copy, to what a schedule that ends by `horizon_ns` can keep.
    pub(super) fn narrow(&mut self, windows: &mut [Windows], horizon_ns: i64) -> Verdict {
        for rank in &mut self.ranks {
            if let Some((graph, states)) = &mut rank.states {
                states.revive(self.graphs[*graph].1.as_ref().map_or(0, Graph::num_states), horizon_ns);
            }
        }
        let num_ranks = self.ranks.len();
        let mut changed = vec![true; num_ranks];
        for sweep in 0..SWEEPS_MAX {
            if !changed.contains(&true) {
                break;
            }
            for i in 0..num_ranks {
                let rank = if sweep % 2 == 0 { i } else { num_ranks - 1 - i };
                if !std::mem::replace(&mut changed[rank], false) {
                    continue;
                }
                let Some(found) = self.look_at(rank, windows, horizon_ns) else { return Verdict::Refuted };
                for (copy, found) in found {
                    self.carry(copy, &found, windows, &mut changed);
                }
                if self.work_left == 0 {
                    return Verdict::OutOfWork;
                }
            }
        }
        Verdict::Open
    }

    /// What one rank finds out about its copies; `None` if it cannot do its ops in their windows.
    fn look_at(&mut self, rank: usize, windows: &[Windows], horizon_ns: i64) -> Option<Vec<(usize, Found)>> {
        let RankView { groups, states } = &mut self.ranks[rank];
        let known = states.as_mut().and_then(|(graph, states)| match &self.graphs[*graph] {
            (shape, Some(graph)) => Some((shape, graph, states)),
            (_, None) => None,
        });
        let Some((shape, graph, states)) = known else {
            let copies = groups.iter().flatten();
            let found =
                copies.map(|&copy| (copy, self.copies[copy].one_at_a_time(&windows[copy], horizon_ns)));
            let found: Vec<(usize, Found)> = found.collect();
            let work: usize = found.iter().map(|&(copy, _)| self.copies[copy].count).sum();
            self.work_left = self.work_left.saturating_sub(work as u64);
            return Some(found);
        };
        self.work_left = self.work_left.saturating_sub(states.num_alive() as u64);
        let merged = groups.iter().map(|group| Windows::merged(group.iter().map(|&copy| &windows[copy])));
        let merged: Vec<Windows> = merged.collect();
        let of_groups = states.explore(graph, shape, &merged, horizon_ns, &mut self.earliest_ns)?;
        let of_copies = groups.iter().zip(&of_groups).flat_map(|(group, of_group)| {
            group.iter().map(|&copy| (copy, of_group.of_member(self.copies[copy].count)))
        });
        Some(of_copies.collect())
    }

    /// What was found about `copy` becomes the windows of its neighbours: an F cannot start before the F of the stage
    /// before has ended and its output has come, nor end too late for the F of the next; with I the other way round.
    fn carry(&self, copy: usize, found: &Found, windows: &mut [Windows], changed: &mut [bool]) {
        let Copy { next, previous, rank, .. } = self.copies[copy];
        if let Some(Neighbour { copy: next, message_ns }) = next {
            let is_narrower = windows[next].wait_for(FORWARD, &found.end_ns[FORWARD], message_ns)
                | windows[next].hurry_for(INPUT, &found.start_ns[INPUT], message_ns);
            changed[self.copies[next].rank] |= is_narrower;
        } else {
            // The last stage turns round: its own F is what its I waits for.
            let is_narrower = windows[copy].wait_for(INPUT, &found.end_ns[FORWARD], 0)
                | windows[copy].hurry_for(FORWARD, &found.start_ns[INPUT], 0);
            changed[rank] |= is_narrower;
        }
        if let Some(Neighbour { copy: previous, message_ns }) = previous {
            let is_narrower = windows[previous].wait_for(INPUT, &found.end_ns[INPUT], message_ns)
                | windows[previous].hurry_for(FORWARD, &found.start_ns[FORWARD], message_ns);
            changed[self.copies[previous].rank] |= is_narrower;
        }
    }
}

impl RankView {
    /// Two groups if the rank holds two copies; one if it holds more, or if two would have too many states.
    fn new(
        model: &Model,
        held: &[usize],
        costs: &Costs,
        memory: &Memory,
        counting: Counting,
        graphs: &mut Graphs,
    ) -> RankView {
        let apart: Vec<Vec<usize>> = held.iter().map(|&copy| vec![copy]).collect();
        let together = vec![held.to_vec()];
        let ways = [apart, together];
        let groups_max = if counting == Counting::Apart { 2 } else { 1 };
        for groups in ways.iter().filter(|groups| groups.len() <= groups_max && !held.is_empty()) {
            let (shape, durations) = model.shape(groups, costs, memory);
            let index = graphs.find(shape);
            if let Some(graph) = &graphs.known[index].1 {
                let states = Some((index, RankStates::new(graph, &durations)));
                return RankView { groups: groups.clone(), states };
            }
        }
        RankView { groups: ways[1].clone(), states: None }
    }
}

/// The graphs while ranks are set up.
struct Graphs {
    known: Vec<(Shape, Option<Graph>)>,
    states_max: usize,
}

impl Graphs {
    /// The position of this shape's, made if it is new.
    fn find(&mut self, shape: Shape) -> usize {
        if let Some(index) = self.known.iter().position(|(known, _)| *known == shape) {
            return index;
        }
        let so_far: usize = self.known.iter().flat_map(|(_, graph)| graph).map(Graph::num_states).sum();
        let graph = Graph::new(&shape, self.states_max.min(STATES_OF_ALL_MAX - so_far));
        self.known.push((shape, graph));
        self.known.len() - 1
    }
}

impl Copy {
    /// What is known if all that counts is that the copy runs one F and one I at a time.
    fn one_at_a_time(&self, windows: &Windows, horizon_ns: i64) -> Found {
        let duration_ns = [self.forward_ns, self.input_ns];
        let ends = |kind: usize| {
            let end = |now: &mut i64, &ready: &i64| {
                *now = ready.max(*now) + duration_ns[kind];
                Some(*now)
            };
            windows.ready_ns[kind].iter().scan(0, end).collect()
        };
        let starts = |kind: usize| {
            let start = |now: &mut i64, &due: &i64| {
                *now = due.min(*now) - duration_ns[kind];
                Some(*now)
            };
            let mut starts: Vec<i64> = windows.due_ns[kind].iter().rev().scan(horizon_ns, start).collect();
            starts.reverse();
            starts
        };
        Found { end_ns: KINDS.map(ends), start_ns: KINDS.map(starts) }
    }
}
