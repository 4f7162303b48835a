//! How far a rank can be: the states of its progress, and the ops that lead from one to the next.
//!
//! The copies on a rank form one group or two. A state counts, for each group, how many F, I and W are done; W of both
//! groups together where they cost the same time and memory, since then only their number matters. A schedule's order
//! on this rank is a path from the state in which nothing is done to the one in which everything is. B is I and then
//! W: its gradient leaves no earlier than after I, and its memory is free at the end of both.

/// What of a rank decides which states it can be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// One group or two.
    pub(super) groups: Vec<GroupShape>,
    /// W of all groups are counted together; then all activations take as much memory.
    pub(super) weights_together: bool,
    /// How much memory the activations may take.
    pub(super) cap: u64,
    /// `[group of F][group of B]`: whether such pairs save time.
    pub(super) pairs: [[bool; 2]; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupShape {
    /// Passes: micro-batches times copies.
    pub(super) count: usize,
    /// Memory of the activations of one pass.
    pub(super) memory: u64,
}

/// What a rank does next, by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    F(usize),
    I(usize),
    W(usize),
    /// F of the first group with B of the second.
    Pair(usize, usize),
}

/// One op in one state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// The state after it.
    pub(super) next: u32,
    /// Position in [`Graph::steps`].
    pub(super) step: u8,
    /// Which F starts with it, as [`Shape::slot`] numbers them; 0: none.
    pub(super) forward: u16,
    /// Which I starts with it; 0: none.
    pub(super) input: u16,
}

/// All states of a rank, each after those that come before it, and their edges.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) steps: Vec<Step>,
    /// `edges[first_edge[state] .. first_edge[state + 1]]`.
    first_edge: Vec<u32>,
    edges: Vec<Edge>,
}

impl Shape {
    /// Slots for a table over the Fs and Is of all groups. Slot 0 is of none of them.
    pub(super) fn num_slots(&self) -> usize {
        1 + 2 * self.groups.iter().map(|group| group.count).sum::<usize>()
    }

    /// The slot of the `k`-th op of this kind (0: F, 1: I) of a group.
    pub(super) fn slot(&self, group: usize, kind: usize, k: usize) -> usize {
        let before: usize = self.groups[..group].iter().map(|group| 2 * group.count).sum();
        1 + before + kind * self.groups[group].count + k
    }

    fn steps(&self) -> Vec<Step> {
        let groups = 0..self.groups.len();
        let single = groups.clone().flat_map(|g| [Step::F(g), Step::I(g)]);
        let weights = groups.clone().take(if self.weights_together { 1 } else { 2 }).map(Step::W);
        let pairs = groups.clone().flat_map(|f| groups.clone().map(move |b| (f, b)));
        let pairs = pairs.filter(|&(f, b)| self.pairs[f][b]).map(|(f, b)| Step::Pair(f, b));
        single.chain(weights).chain(pairs).collect()
    }
}

/// How many of each are done: `[F of group 0, F of 1, I of 0, I of 1, W of 0 or of both, W of 1]`.
type Counts = [u16; 6];
const F: usize = 0;
const I: usize = 2;
const W: usize = 4;

impl Graph {
    /// `None` if there are more than `states_max` states, or too many to tell.
    ///
    /// Time and memory: proportional to the number of states and to the product of all counts but the last.
    pub(super) fn new(shape: &Shape, states_max: usize) -> Option<Graph> {
        let states = States::new(shape, states_max)?;
        let steps = shape.steps();
        let (mut first_edge, mut edges) = (vec![0], Vec::new());
        for counts in &states.counts {
            for (index, &step) in steps.iter().enumerate() {
                if let Some(mut edge) = states.edge(shape, counts, step) {
                    edge.step = index as u8;
                    edges.push(edge);
                }
            }
            first_edge.push(u32::try_from(edges.len()).ok()?);
        }
        Some(Graph { steps, first_edge, edges })
    }

    pub(super) fn num_states(&self) -> usize {
        self.first_edge.len() - 1
    }

    pub(super) fn edges(&self, state: usize) -> &[Edge] {
        &self.edges[self.first_edge[state] as usize..self.first_edge[state + 1] as usize]
    }
}

/// The states in lexicographic order of their counts, so that every op leads to a later one.
struct States {
    counts: Vec<Counts>,
    /// The states that share all counts but the last lie together: which is the first, and its last count.
    rows: Vec<(u32, u16)>,
    /// Of the counts but the last, in `rows`.
    strides: [usize; 6],
    /// Which count is the last.
    last: usize,
}

const NO_ROW: (u32, u16) = (u32::MAX, 0);
/// Most rows for each state that there may be.
const ROWS_PER_STATE_MAX: usize = 8;

impl States {
    fn new(shape: &Shape, states_max: usize) -> Option<States> {
        let mut sizes = [1usize; 6];
        for (g, group) in shape.groups.iter().enumerate() {
            sizes[F + g] = group.count + 1;
            sizes[I + g] = group.count + 1;
            sizes[W + g] = group.count + 1;
        }
        let last = if shape.weights_together { W } else { W + shape.groups.len() - 1 };
        if shape.weights_together {
            sizes[W] = shape.groups.iter().map(|group| group.count).sum::<usize>() + 1;
            sizes[W + 1] = 1;
        }
        if sizes[W] > u16::MAX as usize || shape.num_slots() > u16::MAX as usize {
            return None;
        }
        let mut strides = [0; 6];
        let mut num_rows = 1usize;
        for count in (0..last).rev() {
            strides[count] = num_rows;
            num_rows = num_rows.checked_mul(sizes[count])?;
            if num_rows > ROWS_PER_STATE_MAX * states_max {
                return None;
            }
        }
        let mut states = States { counts: Vec::new(), rows: vec![NO_ROW; num_rows], strides, last };
        let mut counts: Counts = [0; 6];
        for row in 0..num_rows {
            for count in 0..last {
                counts[count] = (row / strides[count] % sizes[count]) as u16;
            }
            for value in 0..sizes[last] as u16 {
                counts[last] = value;
                if shape.admits(&counts) {
                    states.push(row, counts);
                }
            }
            if states.counts.len() > states_max {
                return None;
            }
        }
        Some(states)
    }

    fn push(&mut self, row: usize, counts: Counts) {
        if self.rows[row] == NO_ROW {
            self.rows[row] = (self.counts.len() as u32, counts[self.last]);
        }
        self.counts.push(counts);
    }

    /// The number of an admitted state.
    fn find(&self, counts: &Counts) -> u32 {
        let row: usize = (0..self.last).map(|count| counts[count] as usize * self.strides[count]).sum();
        let (first, value) = self.rows[row];
        first + (counts[self.last] - value) as u32
    }

    /// The edge of `step` from `counts`, if it can come next.
    fn edge(&self, shape: &Shape, counts: &Counts, step: Step) -> Option<Edge> {
        let mut next = *counts;
        let (mut forward, mut input) = (0, 0);
        let mut add_forward = |next: &mut Counts, g: usize| {
            forward = shape.slot(g, 0, next[F + g] as usize);
            next[F + g] += 1;
        };
        let mut add_input = |next: &mut Counts, g: usize| {
            input = shape.slot(g, 1, next[I + g] as usize);
            next[I + g] += 1;
        };
        let weight = |g: usize| if shape.weights_together { W } else { W + g };
        match step {
            Step::F(g) => add_forward(&mut next, g),
            Step::I(g) => add_input(&mut next, g),
            Step::W(g) => next[weight(g)] += 1,
            Step::Pair(f, b) => {
                // The pair's forward takes its memory before its backward frees any, and is of another pass.
                let mut started = *counts;
                started[F + f] += 1;
                if !shape.admits(&started) || counts[I + b] >= counts[F + b] {
                    return None;
                }
                add_forward(&mut next, f);
                add_input(&mut next, b);
                next[weight(b)] += 1;
            }
        }
        let is_state = shape.admits(&next);
        is_state.then(|| Edge {
            next: self.find(&next),
            step: 0,
            forward: forward as u16,
            input: input as u16,
        })
    }
}

impl Shape {
    /// Whether a rank may be in this state: no more than there is to do, I after F, W after I, memory within the cap.
    fn admits(&self, counts: &Counts) -> bool {
        let groups = || self.groups.iter().enumerate();
        let in_order = groups().all(|(g, group)| {
            counts[F + g] as usize <= group.count
                && counts[I + g] <= counts[F + g]
                && (self.weights_together || counts[W + g] <= counts[I + g])
        });
        if !in_order || (self.weights_together && counts[W] > counts[I] + counts[I + 1]) {
            return false;
        }
        let memory = |live: u16, group: &GroupShape| (live as u64).saturating_mul(group.memory);
        let alive = if self.weights_together {
            memory(counts[F] + counts[F + 1] - counts[W], &self.groups[0])
        } else {
            let alive = groups().map(|(g, group)| memory(counts[F + g] - counts[W + g], group));
            alive.fold(0, u64::saturating_add)
        };
        alive <= self.cap
    }
}
