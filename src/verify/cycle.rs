//! A shortest circle of waits, and how it is shown to people.

use std::collections::VecDeque;

use super::names::action_name;
use crate::ids::Rank;
use crate::op::{Action, Pass, Task};

/// Something that a rank waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Where in its order the rank waits.
    pub(super) position: usize,
    /// Who is to do it, and where that rank has it.
    pub(super) peer: usize,
    pub(super) done_at: usize,
}

/// A shortest circle of ranks each of which waits for the next, from `waits[rank]`: of several the one that begins
/// with the lowest rank. `None` if no rank waits.
///
/// Time: the number of waiting ranks times that of waits between them; a breadth-first search from each.
pub(super) fn shortest(waits: &[Vec<Wait>]) -> Option<Vec<(usize, Wait)>> {
    // Of several waits for one rank the first is enough.
    let first_of_each = |waits: &Vec<Wait>| {
        let mut seen: Vec<Wait> = waits.clone();
        seen.sort_by_key(|wait| (wait.peer, wait.position));
        seen.dedup_by_key(|wait| wait.peer);
        seen
    };
    let edges: Vec<Vec<Wait>> = waits.iter().map(first_of_each).collect();
    let mut best: Option<Vec<(usize, Wait)>> = None;
    for start in 0..edges.len() {
        if edges[start].is_empty() {
            continue;
        }
        let longest = best.as_ref().map_or(usize::MAX, Vec::len);
        if let Some(circle) = circle_through(&edges, start, longest) {
            best = Some(circle);
        }
        if best.as_ref().is_some_and(|best| best.len() <= 2) {
            break;
        }
    }
    let nobody_waits = edges.iter().all(Vec::is_empty);
    assert!(best.is_some() || nobody_waits, "who waits for ever waits for one who waits for ever");
    best
}

/// The shortest circle through `start` that has fewer than `longest` ranks.
fn circle_through(edges: &[Vec<Wait>], start: usize, longest: usize) -> Option<Vec<(usize, Wait)>> {
    let mut came_from: Vec<Option<(usize, Wait)>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([(start, 1)]);
    while let Some((rank, length)) = queue.pop_front() {
        if length >= longest {
            return None;
        }
        for &wait in &edges[rank] {
            if wait.peer == start {
                let mut circle = vec![(rank, wait)];
                let mut at = rank;
                while let Some(step) = came_from[at] {
                    circle.push(step);
                    at = step.0;
                }
                circle.reverse();
                return Some(circle);
            }
            if came_from[wait.peer].is_none() {
                came_from[wait.peer] = Some((rank, wait));
                queue.push_back((wait.peer, length + 1));
            }
        }
    }
    None
}

/// The orders that a circle is drawn in.
pub(super) struct Sheet<'a> {
    pub(super) actions: &'a [Vec<Action>],
    /// Shows the ops alone, and counts positions among them.
    pub(super) ops_only: bool,
}

/// Actions drawn before and after one that matters.
const AROUND: usize = 1;

impl Sheet<'_> {
    /// The ranks of a circle, the passes that it is about, and its text.
    pub(super) fn draw(&self, circle: &[(usize, Wait)], how: &str) -> (Vec<Rank>, Vec<Pass>, String) {
        let ranks: Vec<Rank> = circle.iter().map(|&(rank, _)| Rank::from_index(rank)).collect();
        let mut text = format!("{how}, rank {} waits for ", ranks[0]);
        for rank in &ranks[1..] {
            text += &format!("rank {rank}, which waits for ");
        }
        text += &format!("rank {}", ranks[0]);
        let mut passes = Vec::new();
        for &(rank, wait) in circle {
            let (position, line) = self.at(rank, wait.position);
            let (done_at, what) = self.at(wait.peer, wait.done_at);
            text += &format!(
                "\n  rank {rank} at {position}, {line}: waits for rank {} at {done_at}, {what}",
                wait.peer
            );
            passes.extend(self.passes(rank, wait.position));
            passes.extend(self.passes(wait.peer, wait.done_at));
        }
        for (i, &(rank, wait)) in circle.iter().enumerate() {
            let (waiting, waited_for) = circle[(i + circle.len() - 1) % circle.len()];
            text += &format!("\n  rank {rank}");
            let marks = [
                (self.at(rank, wait.position).0, format!("<-- waits here, for rank {}", wait.peer)),
                (self.at(rank, waited_for.done_at).0, format!("<-- rank {waiting} waits for this")),
            ];
            text += &self.excerpt(rank, &marks);
        }
        (ranks, passes, text)
    }

    /// Where a rank's action is in the drawing, and what is written there: for a message among ops the op of its own
    /// rank that it belongs to.
    fn at(&self, rank: usize, position: usize) -> (usize, String) {
        let actions = &self.actions[rank];
        if !self.ops_only {
            return (position, action_name(&actions[position]));
        }
        let is_run = |action: &Action| matches!(action, Action::Run(_));
        // A send stands after its op, an op that waits is the op itself.
        let index = actions[..=position].iter().filter(|action| is_run(action)).count().saturating_sub(1);
        (index, self.line(rank, index))
    }

    fn line(&self, rank: usize, index: usize) -> String {
        self.lines(rank).nth(index).map_or_else(String::new, action_name)
    }

    fn lines(&self, rank: usize) -> impl Iterator<Item = &Action> {
        self.actions[rank].iter().filter(|action| !self.ops_only || matches!(action, Action::Run(_)))
    }

    fn passes(&self, rank: usize, position: usize) -> Vec<Pass> {
        match self.actions[rank][position] {
            Action::Run(Task::Op(op)) => {
                [op.forward(), op.backward_input(), op.backward_weight()].into_iter().flatten().collect()
            }
            Action::Run(Task::ReduceGrads(_)) => Vec::new(),
            Action::Send { message, .. } | Action::Receive { message, .. } | Action::WaitSend(message) => {
                vec![message.pass]
            }
        }
    }

    /// The lines around the marked ones.
    fn excerpt(&self, rank: usize, marks: &[(usize, String)]) -> String {
        let mut text = String::new();
        let mut last_drawn = None;
        for (index, action) in self.lines(rank).enumerate() {
            if !marks.iter().any(|(at, _)| index + AROUND >= *at && index <= at + AROUND) {
                continue;
            }
            if last_drawn.map_or(0, |last| last + 1) != index {
                text += "\n        ...";
            }
            last_drawn = Some(index);
            let here: Vec<&str> =
                marks.iter().filter(|(at, _)| *at == index).map(|(_, mark)| mark.as_str()).collect();
            let line = format!("    {index:>4}  {}  {}", action_name(action), here.join("  "));
            text += &format!("\n{}", line.trim_end());
        }
        text
    }
}
