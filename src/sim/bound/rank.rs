//! What one rank can do within the windows of its ops: dynamic programming over the states of its progress.
//!
//! For each state the earliest time at which the rank can be there, and the latest at which it may still be: idling is
//! free, so being earlier is never worse, and one number each is enough. A state whose earliest is later than its
//! latest is dead: no schedule within the horizon goes through it. The ops that still lead from one living state to
//! another tell when the k-th F and I can end at the earliest and start at the latest.

use super::graph::{Graph, Shape, Step};
use super::windows::{Found, Windows, FAR_NS, KINDS};

/// What ops of one group take, in nanoseconds: the least of its copies'.
#[derive(Clone, Copy, Debug)]
pub(super) struct Durations {
    pub(super) forward_ns: i64,
    pub(super) input_ns: i64,
    pub(super) weight_ns: i64,
    /// `[group of B]`.
    pub(super) pair_ns: [i64; 2],
}

/// The states of one rank that are not yet dead.
pub(super) struct RankStates {
    /// `[step]`, as the graph's.
    duration_ns: Vec<i64>,
    alive: Vec<u32>,
    /// `[state]`; of a dead one, before all time.
    latest_ns: Vec<i64>,
}

/// The windows of all groups by slot, and what is found about them. Slot 0 is open.
struct Slots {
    ready_ns: Vec<i64>,
    due_ns: Vec<i64>,
    end_ns: Vec<i64>,
    start_ns: Vec<i64>,
}

impl RankStates {
    pub(super) fn new(graph: &Graph, durations: &[Durations]) -> RankStates {
        let duration_ns = graph.steps.iter().map(|&step| match step {
            Step::F(g) => durations[g].forward_ns,
            Step::I(g) => durations[g].input_ns,
            Step::W(g) => durations[g].weight_ns,
            Step::Pair(f, b) => durations[f].pair_ns[b],
        });
        RankStates { duration_ns: duration_ns.collect(), alive: Vec::new(), latest_ns: Vec::new() }
    }

    /// All states live again, until `horizon_ns`.
    pub(super) fn revive(&mut self, num_states: usize, horizon_ns: i64) {
        self.alive.clear();
        self.alive.extend(0..num_states as u32);
        self.latest_ns.clear();
        self.latest_ns.resize(num_states, horizon_ns);
    }

    /// The states that [`RankStates::explore`] would go through.
    pub(super) fn num_alive(&self) -> usize {
        self.alive.len()
    }

    /// What is left of `windows`, by group, when all of them have to be kept by `horizon_ns`; `None` if they cannot.
    ///
    /// `earliest_ns` is scratch. Time: proportional to the edges of the living states.
    pub(super) fn explore(
        &mut self,
        graph: &Graph,
        shape: &Shape,
        windows: &[Windows],
        horizon_ns: i64,
        earliest_ns: &mut Vec<i64>,
    ) -> Option<Vec<Found>> {
        let mut slots = Slots::new(shape, windows);
        self.advance(graph, &slots, earliest_ns);
        self.retreat(graph, &mut slots, horizon_ns, earliest_ns);
        let can_start = self.alive.first() == Some(&0);
        can_start.then(|| slots.found(shape))
    }

    /// Forward: the earliest time in each living state.
    fn advance(&self, graph: &Graph, slots: &Slots, earliest_ns: &mut Vec<i64>) {
        earliest_ns.resize(earliest_ns.len().max(graph.num_states()), FAR_NS);
        for &state in &self.alive {
            earliest_ns[state as usize] = FAR_NS;
        }
        earliest_ns[0] = 0;
        for &state in &self.alive {
            let state = state as usize;
            let now = earliest_ns[state];
            if now > self.latest_ns[state] {
                continue;
            }
            for edge in graph.edges(state) {
                let (next, f, i) = (edge.next as usize, edge.forward as usize, edge.input as usize);
                let start = now.max(slots.ready_ns[f]).max(slots.ready_ns[i]);
                let end = start + self.duration_ns[edge.step as usize];
                let due = slots.due_ns[f].min(slots.due_ns[i]).min(self.latest_ns[next]);
                if end <= due && end < earliest_ns[next] {
                    earliest_ns[next] = end;
                }
            }
        }
    }

    /// Backward: the latest time in each state, which of them live, and what their edges tell.
    fn retreat(&mut self, graph: &Graph, slots: &mut Slots, horizon_ns: i64, earliest_ns: &[i64]) {
        let done = graph.num_states() - 1;
        let mut alive = std::mem::take(&mut self.alive);
        for &state in alive.iter().rev() {
            let state = state as usize;
            let now = earliest_ns[state];
            let mut latest = if state == done { horizon_ns } else { -FAR_NS };
            if now <= self.latest_ns[state] {
                for edge in graph.edges(state) {
                    let (f, i) = (edge.forward as usize, edge.input as usize);
                    let duration = self.duration_ns[edge.step as usize];
                    let due = slots.due_ns[f].min(slots.due_ns[i]).min(self.latest_ns[edge.next as usize]);
                    let first = now.max(slots.ready_ns[f]).max(slots.ready_ns[i]);
                    let last = due - duration;
                    if first <= last {
                        latest = latest.max(last);
                        slots.learn(f, first + duration, last);
                        slots.learn(i, first + duration, last);
                    }
                }
            }
            self.latest_ns[state] = if now <= latest { latest } else { -FAR_NS };
        }
        alive.retain(|&state| self.latest_ns[state as usize] > -FAR_NS);
        self.alive = alive;
    }
}

impl Slots {
    fn new(shape: &Shape, windows: &[Windows]) -> Slots {
        let mut slots = Slots {
            ready_ns: vec![-FAR_NS; shape.num_slots()],
            due_ns: vec![FAR_NS; shape.num_slots()],
            end_ns: vec![FAR_NS; shape.num_slots()],
            start_ns: vec![-FAR_NS; shape.num_slots()],
        };
        for (g, windows) in windows.iter().enumerate() {
            for kind in KINDS {
                let first = shape.slot(g, kind, 0);
                let count = windows.ready_ns[kind].len();
                slots.ready_ns[first..first + count].copy_from_slice(&windows.ready_ns[kind]);
                slots.due_ns[first..first + count].copy_from_slice(&windows.due_ns[kind]);
            }
        }
        slots
    }

    fn learn(&mut self, slot: usize, end_ns: i64, start_ns: i64) {
        self.end_ns[slot] = self.end_ns[slot].min(end_ns);
        self.start_ns[slot] = self.start_ns[slot].max(start_ns);
    }

    fn found(&self, shape: &Shape) -> Vec<Found> {
        let groups = shape.groups.iter().enumerate();
        let found = groups.map(|(g, group)| {
            let of = |all: &[i64], kind: usize| {
                let first = shape.slot(g, kind, 0);
                all[first..first + group.count].to_vec()
            };
            Found {
                end_ns: KINDS.map(|kind| of(&self.end_ns, kind)),
                start_ns: KINDS.map(|kind| of(&self.start_ns, kind)),
            }
        });
        found.collect()
    }
}
