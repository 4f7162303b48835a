//! The last touch: an I with its own W right behind it becomes B where that delays nothing.

use super::evaluate::Clock;
use super::model::{Model, Namer, Words};

/// `[rank][i]`: the I at `i` and the W behind it become B. The makespan stays what it is.
///
/// B sends its gradient when W is done, so its receiver must be able to wait. Time: proportional to the number of
/// steps.
pub(super) fn merges(model: &Model, words: &Words) -> Vec<Vec<bool>> {
    let mut is_merged: Vec<Vec<bool>> = words.iter().map(|word| vec![false; word.len()]).collect();
    let mut order = Vec::new();
    let length = Clock::new(model).run(model, words, u64::MAX >> 1, |visit| order.push(visit));
    let Some(length) = length else { return is_merged };
    let may_merge: Vec<Vec<bool>> =
        (0..words.len()).map(|rank| own_weight_follows(model, words, rank)).collect();
    // Backwards from the end: the latest start of each step that keeps the makespan, with those already merged. As long
    // as no latest end comes to lie before the earliest one, the latest times are themselves a way to run the words.
    let none = model.num_copies();
    let mut latest_forward: Vec<Vec<u64>> =
        model.copies.iter().map(|c| vec![length.makespan_ns; c.count as usize]).collect();
    let mut latest_input = latest_forward.clone();
    let mut forwards: Vec<u32> = model.copies.iter().map(|c| c.count).collect();
    let mut inputs = forwards.clone();
    let mut latest_end = vec![length.makespan_ns; words.len()];
    for visit in order.iter().rev() {
        let (rank, i) = (visit.rank as usize, visit.position as usize);
        let step = model.step(words[rank][i]);
        let mut end = latest_end[rank];
        if step.forward != none {
            let copy = step.forward as usize;
            forwards[copy] -= 1;
            let k = forwards[copy] as usize;
            end = end.min(match model.copies[copy].next {
                Some((next, ns)) => latest_forward[next as usize][k] - ns,
                None => latest_input[copy][k],
            });
        }
        if step.input != none {
            let copy = step.input as usize;
            inputs[copy] -= 1;
            let k = inputs[copy] as usize;
            if let Some((previous, ns)) = model.copies[copy].previous {
                let mut sent_by = latest_input[previous as usize][k] - ns;
                let weight_ns = model.step(model.weight(step.input)).ns;
                if may_merge[rank][i] && visit.end_ns + weight_ns <= sent_by {
                    is_merged[rank][i] = true;
                    sent_by -= weight_ns;
                }
                end = end.min(sent_by);
            } else {
                is_merged[rank][i] = may_merge[rank][i];
            }
        }
        let start = end - step.ns;
        latest_end[rank] = start;
        if step.forward != none {
            latest_forward[step.forward as usize][forwards[step.forward as usize] as usize] = start;
        }
        if step.input != none {
            latest_input[step.input as usize][inputs[step.input as usize] as usize] = start;
        }
    }
    is_merged
}

/// `[i]`: at `i` is an I, and behind it the W of the same pass.
fn own_weight_follows(model: &Model, words: &Words, rank: usize) -> Vec<bool> {
    let none = model.num_copies();
    let mut names = Namer::new(model);
    let word = &words[rank];
    let named: Vec<_> = word.iter().map(|&token| names.name(token)).collect();
    let at = |i: usize| {
        let step = model.step(word[i]);
        step.input != none
            && step.weight == none
            && named.get(i + 1).is_some_and(|next| {
                model.step(word[i + 1]).input == none
                    && next.weight.is_some()
                    && next.weight == named[i].input
            })
    };
    (0..word.len()).map(at).collect()
}
