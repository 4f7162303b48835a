//! How long words take: the longest path through all steps, in dense tables, without allocation.
//!
//! Each copy is two nodes of a chain, F of the first stage to F of the last, then I of the last to I of the first.
//! The k-th step of a node leaves its end, and the message's time, in slot k of the next node. Steps of one rank are
//! done in order until one has to wait for a slot; whoever fills it wakes the rank. As slots are filled in order, a
//! count per node tells which are. Reducing gradients takes no time and keeps no rank waiting
//! for ever (`Schedule::tasks`), so it is not here.

use super::model::{Model, Words};

/// What a word takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Length {
    /// When the last rank is done.
    pub(super) makespan_ns: u64,
    /// The sum over the ranks of when each is done.
    pub(super) sum_of_ends_ns: u64,
}

/// A step as [`Clock::run`] comes to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    pub(super) rank: u32,
    pub(super) position: u32,
    /// Whether it starts as soon as the step before it on its rank ends, or at 0.
    pub(super) is_prompt: bool,
    pub(super) end_ns: u64,
    /// The slots that it reads, for its F and its I, and those that it fills, and when. The
    /// first four slots stand for none.
    pub(super) reads: [u32; 2],
    pub(super) fills: [(u32, u64); 2],
}

/// The chain of nodes and the room to walk it.
pub(super) struct Clock {
    /// Nodes: F of each copy and of none, I of each copy and of none, the end of the chain.
    nodes: Vec<Node>,
    start: Vec<State>,
    state: Vec<State>,
    slots: Vec<u64>,
    /// `[rank]`.
    ranks: Vec<RankState>,
    /// Ranks that may go on.
    awake: Vec<u32>,
    num_copies: u32,
}

#[derive(Clone, Copy)]
struct Node {
    /// From a slot to the one that it fills, behind `state.at`.
    offset: u32,
    next: u32,
    next_rank: u32,
    /// 1, or 0 for the node of no copy.
    stride: u32,
    message_ns: u64,
}

#[derive(Clone, Copy)]
struct State {
    /// The next slot.
    at: u32,
    /// The first slot that is not yet filled.
    filled: u32,
}

#[derive(Clone, Copy)]
struct RankState {
    position: u32,
    /// The node that it waits for.
    waits_for: u32,
    free_ns: u64,
    left_ns: u64,
}

const NOTHING: u32 = u32::MAX;

impl Clock {
    pub(super) fn new(model: &Model) -> Clock {
        let n = model.num_copies();
        let (first_input, none_input, sink) = (n + 1, 2 * n + 1, 2 * n + 2);
        let mut first_slot = Vec::with_capacity(n as usize);
        let mut total = 0u32;
        for copy in &model.copies {
            first_slot.push(total);
            total += copy.count;
        }
        let off_ranks = model.num_ranks() as u32;
        let idle = Node { offset: 1, next: sink, next_rank: off_ranks, stride: 0, message_ns: 0 };
        let mut nodes = vec![idle; sink as usize + 1];
        // A slot that holds 0 and one to write to for each node of none; then nodes with their slots.
        let mut start = vec![State { at: 0, filled: u32::MAX }; sink as usize + 1];
        start[none_input as usize].at = 2;
        start[sink as usize] = State { at: 0, filled: 0 };
        let base = 4u32;
        let slot = |node: u32| match node {
            c if c < n => base + first_slot[c as usize],
            c => base + total + first_slot[(c - first_input) as usize],
        };
        for (c, copy) in (0u32..).zip(&model.copies) {
            let (next, message_ns) = copy.next.unwrap_or((first_input + c, 0));
            nodes[c as usize] = Node {
                offset: slot(next).wrapping_sub(slot(c)),
                next,
                next_rank: model.copies[if next >= n { c } else { next } as usize].rank,
                stride: 1,
                message_ns,
            };
            let input = (first_input + c) as usize;
            nodes[input] = match copy.previous {
                Some((previous, message_ns)) => Node {
                    offset: slot(first_input + previous).wrapping_sub(slot(first_input + c)),
                    next: first_input + previous,
                    next_rank: model.copies[previous as usize].rank,
                    stride: 1,
                    message_ns,
                },
                None => Node { offset: total, stride: 1, ..idle },
            };
            let at = slot(c);
            start[c as usize] =
                State { at, filled: at + if copy.previous.is_none() { copy.count } else { 0 } };
            let at = slot(first_input + c);
            start[input] = State { at, filled: at };
        }
        Clock {
            nodes,
            state: start.clone(),
            start,
            slots: vec![0; (base + 3 * total) as usize],
            ranks: vec![
                RankState { position: 0, waits_for: NOTHING, free_ns: 0, left_ns: 0 };
                off_ranks as usize + 1
            ],
            awake: Vec::with_capacity(off_ranks as usize + 1),
            num_copies: n,
        }
    }

    /// Slots in all, those of [`Visit`].
    pub(super) fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// The length of these words; `None` if ranks wait for ever or a rank cannot be done by `limit_ns`.
    pub(super) fn length(&mut self, model: &Model, words: &Words, limit_ns: u64) -> Option<Length> {
        self.run(model, words, limit_ns, |_| {})
    }

    /// The same, and tells `visit` of each step, in an order in which they can be done.
    pub(super) fn run(
        &mut self,
        model: &Model,
        words: &Words,
        limit_ns: u64,
        mut visit: impl FnMut(Visit),
    ) -> Option<Length> {
        self.state.copy_from_slice(&self.start);
        self.awake.clear();
        let mut to_do = 0;
        for (r, word) in (0u32..).zip(words) {
            let left_ns = word.iter().map(|&token| model.step(token).ns).sum();
            self.ranks[r as usize] = RankState { position: 0, waits_for: NOTHING, free_ns: 0, left_ns };
            self.awake.push(r);
            to_do += word.len();
        }
        let first_input = self.num_copies + 1;
        while let Some(r) = self.awake.pop() {
            let word = &words[r as usize];
            let RankState { mut position, mut free_ns, mut left_ns, .. } = self.ranks[r as usize];
            let mut waits_for = NOTHING;
            while let Some(&token) = word.get(position as usize) {
                let step = &model.steps[token as usize];
                let (f, i) = (step.forward as usize, (first_input + step.input) as usize);
                let (f_state, i_state) = (self.state[f], self.state[i]);
                if f_state.at >= f_state.filled || i_state.at >= i_state.filled {
                    waits_for = if f_state.at >= f_state.filled { f } else { i } as u32;
                    break;
                }
                let ready_ns = self.slots[f_state.at as usize].max(self.slots[i_state.at as usize]);
                let start_ns = free_ns.max(ready_ns);
                if start_ns + left_ns > limit_ns {
                    return None;
                }
                let is_prompt = start_ns == free_ns;
                free_ns = start_ns + step.ns;
                left_ns -= step.ns;
                visit(Visit {
                    rank: r,
                    position,
                    is_prompt,
                    end_ns: free_ns,
                    reads: [f_state.at, i_state.at],
                    fills: [(f, f_state), (i, i_state)].map(|(node, state)| {
                        let Node { offset, message_ns, .. } = self.nodes[node];
                        (state.at.wrapping_add(offset), free_ns + message_ns)
                    }),
                });
                for (node, state) in [(f, f_state), (i, i_state)] {
                    let Node { offset, next, next_rank, stride, message_ns } = self.nodes[node];
                    self.slots[state.at.wrapping_add(offset) as usize] = free_ns + message_ns;
                    self.state[node].at += stride;
                    self.state[next as usize].filled = self.state[next as usize].filled.wrapping_add(stride);
                    let waiting = &mut self.ranks[next_rank as usize].waits_for;
                    if *waiting == next {
                        *waiting = NOTHING;
                        self.awake.push(next_rank);
                    }
                }
                position += 1;
                to_do -= 1;
            }
            self.ranks[r as usize] = RankState { position, waits_for, free_ns, left_ns };
        }
        if to_do > 0 {
            return None;
        }
        let ends = self.ranks[..words.len()].iter().map(|rank| rank.free_ns);
        let makespan_ns = ends.clone().max().unwrap_or(0);
        Some(Length { makespan_ns, sum_of_ends_ns: ends.fold(0, u64::saturating_add) })
    }
}
