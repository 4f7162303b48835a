//! Small changes of one rank's word. Each keeps the counts of F, I and W of every copy; whether the word can still
//! run and fits the memory is for others to say.

use super::model::{Model, Token};
use crate::random::Random;

/// How far a move reaches, mostly.
const REACH: usize = 8;

/// Changes `word`; false if there was nothing to change.
pub(super) fn change(model: &Model, word: &mut Vec<Token>, at: usize, random: &mut Random) -> bool {
    match random.below(16) {
        0..=4 => shift(word, at, random),
        5..=6 => swap(word, at, random),
        7..=8 => rotate(word, at, random),
        9..=11 => fuse(model, word, at, random),
        12..=13 => split(model, word, at, random),
        _ => exchange_partners(model, word, at, random),
    }
}

/// 1, 2 … mostly small.
fn distance(random: &mut Random) -> usize {
    match random.below(4) {
        0 | 1 => 1,
        2 => 1 + random.below(3),
        _ => 1 + random.below(REACH),
    }
}

/// A place not far from `at`, before or behind it.
fn near(word: &[Token], at: usize, random: &mut Random) -> usize {
    let distance = distance(random);
    match random.below(2) {
        0 => at.saturating_sub(distance),
        _ => (at + distance).min(word.len() - 1),
    }
}

/// Takes a step out and puts it in elsewhere.
fn shift(word: &mut [Token], at: usize, random: &mut Random) -> bool {
    let to = near(word, at, random);
    let is_change = if to < at {
        word[to..at].iter().any(|&token| token != word[at])
    } else {
        word[at..=to].iter().any(|&token| token != word[at])
    };
    if to < at {
        word[to..=at].rotate_right(1);
    } else {
        word[at..=to].rotate_left(1);
    }
    is_change
}

fn swap(word: &mut [Token], at: usize, random: &mut Random) -> bool {
    let to = near(word, at, random);
    word.swap(at, to);
    word[at] != word[to]
}

/// Exchanges two neighbouring blocks.
fn rotate(word: &mut [Token], at: usize, random: &mut Random) -> bool {
    let middle = (at + 1 + random.below(4)).min(word.len());
    let end = (middle + 1 + random.below(4)).min(word.len());
    word[at..end].rotate_left(middle - at);
    middle < end
}

/// Makes a pair of an F, an I not far from it, and a W.
fn fuse(model: &Model, word: &mut Vec<Token>, at: usize, random: &mut Random) -> bool {
    let none = model.num_copies();
    let is_f = |token: Token| model.step(token).forward != none && model.step(token).input == none;
    let is_i = |token: Token| model.step(token).input != none && model.step(token).forward == none;
    let wanted: &dyn Fn(Token) -> bool = match word[at] {
        token if is_f(token) => &is_i,
        token if is_i(token) => &is_f,
        _ => return false,
    };
    let low = at.saturating_sub(REACH);
    let high = (at + REACH + 1).min(word.len());
    let candidates = word[low..high].iter().filter(|&&token| wanted(token)).count();
    if candidates == 0 {
        return false;
    }
    // The nearer the likelier: half of the time the nearest.
    let pick = random.below(candidates);
    let found = (low..high).filter(|&i| wanted(word[i]));
    let other = match random.below(2) {
        0 => found.min_by_key(|&i| i.abs_diff(at)),
        _ => found.clone().nth(pick),
    };
    let Some(other) = other else { return false };
    let (f, i) = if is_f(word[at]) { (at, other) } else { (other, at) };
    let (forward, backward) = (model.step(word[f]).forward, model.step(word[i]).input);
    let weight = model.weight(backward);
    let Some(w) = word[i + 1..].iter().position(|&token| token == weight).map(|p| i + 1 + p) else {
        return false;
    };
    let place = if random.below(2) == 0 { f } else { i };
    word[place] = model.pair(forward, backward);
    let gone = if place == f { i } else { f };
    word.remove(w.max(gone));
    word.remove(w.min(gone));
    true
}

/// Makes F, I and W of a pair, in some order, W perhaps later.
fn split(model: &Model, word: &mut Vec<Token>, at: usize, random: &mut Random) -> bool {
    let none = model.num_copies();
    let step = *model.step(word[at]);
    if step.forward == none || step.input == none {
        return false;
    }
    let (f, i, w) = (model.forward(step.forward), model.input(step.input), model.weight(step.weight));
    let later = if random.below(2) == 0 { 0 } else { random.below(REACH) };
    match random.below(3) {
        0 => {
            word[at] = f;
            word.insert(at + 1, i);
        }
        1 => {
            word[at] = i;
            word.insert(at + 1, f);
        }
        _ => {
            word[at] = i;
            word.insert(at + 1, w);
            word.insert((at + 2 + later).min(word.len()), f);
            return true;
        }
    }
    word.insert((at + 2 + later).min(word.len()), w);
    true
}

/// A pair and another step not far from it exchange their Fs or their backwards.
fn exchange_partners(model: &Model, word: &mut [Token], at: usize, random: &mut Random) -> bool {
    let none = model.num_copies();
    let to = near(word, at, random);
    let (a, b) = (*model.step(word[at]), *model.step(word[to]));
    let is_pair = |step: &super::model::Step| step.forward != none && step.input != none;
    let is_f = |step: &super::model::Step| step.forward != none && step.input == none;
    if is_pair(&a) && is_pair(&b) {
        word[at] = model.pair(a.forward, b.input);
        word[to] = model.pair(b.forward, a.input);
    } else if is_pair(&a) && is_f(&b) {
        word[at] = model.pair(b.forward, a.input);
        word[to] = model.forward(a.forward);
    } else if is_f(&a) && is_pair(&b) {
        word[at] = model.forward(b.forward);
        word[to] = model.pair(a.forward, b.input);
    } else {
        return false;
    }
    a.forward != b.forward || (is_pair(&a) && is_pair(&b) && a.input != b.input)
}
