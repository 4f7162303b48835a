//! The longest path through the steps of some words: only a change that touches it can shorten them.

use super::evaluate::Clock;
use super::model::{Model, Words};

/// Room to find it in.
pub(super) struct CriticalPath {
    /// `[slot]`: when it was filled, message included, and by which step.
    filled: Vec<(u64, Place)>,
    /// `[rank][position]`: the step that it could not start before.
    waited_for: Vec<Vec<Option<Place>>>,
    ends: Vec<u64>,
    path: Vec<Place>,
}

/// Rank and position.
pub(super) type Place = (u32, u32);

impl CriticalPath {
    pub(super) fn new() -> CriticalPath {
        CriticalPath { filled: Vec::new(), waited_for: Vec::new(), ends: Vec::new(), path: Vec::new() }
    }

    /// The path found last, from its end to its start.
    pub(super) fn path(&self) -> &[Place] {
        &self.path
    }

    /// Finds one; where several ranks end last, that which `pick` chooses among so many.
    pub(super) fn find(
        &mut self,
        clock: &mut Clock,
        model: &Model,
        words: &Words,
        pick: impl FnOnce(usize) -> usize,
    ) {
        let CriticalPath { filled, waited_for, ends, path } = self;
        path.clear();
        filled.clear();
        filled.resize(clock.num_slots(), (0, (0, 0)));
        waited_for.resize(words.len(), Vec::new());
        for (waited_for, word) in waited_for.iter_mut().zip(words) {
            waited_for.resize(word.len(), None);
        }
        ends.clear();
        ends.resize(words.len(), 0);
        let length = clock.run(model, words, u64::MAX >> 1, |visit| {
            let rank = visit.rank as usize;
            let [f, i] = visit.reads.map(|slot| filled[slot as usize]);
            waited_for[rank][visit.position as usize] = match (visit.is_prompt, visit.position) {
                (true, 0) => None,
                (true, position) => Some((visit.rank, position - 1)),
                (false, _) => Some(if f.0 >= i.0 { f.1 } else { i.1 }),
            };
            ends[rank] = visit.end_ns;
            for (slot, arrival_ns) in visit.fills {
                filled[slot as usize] = (arrival_ns, (visit.rank, visit.position));
            }
        });
        let Some(length) = length else { return };
        let is_last = |rank: &usize| ends[*rank] == length.makespan_ns && !words[*rank].is_empty();
        let num_last = (0..words.len()).filter(is_last).count();
        let last = (0..words.len()).filter(is_last).nth(if num_last > 0 { pick(num_last) } else { 0 });
        let mut at = last.map(|rank| (rank as u32, words[rank].len() as u32 - 1));
        while let Some(place) = at {
            path.push(place);
            at = waited_for[place.0 as usize][place.1 as usize];
        }
    }
}
