//! Changes of one rank's order. Each keeps every F, I and W exactly once; whether the order can run is found when it is
//! played.

use crate::random::Random;
use crate::search::spread::{Model, Step, NO_PASS};

/// How far a step goes at most, in places.
const FARTHEST: usize = 8;

/// One change at random; whether something changed.
pub(super) fn change(model: &Model, order: &mut Vec<Step>, random: &mut Random) -> bool {
    if order.len() < 2 {
        return false;
    }
    let at = random.below(order.len());
    match random.below(4) {
        0 => take_apart(order, at, random) || shift(order, at, random),
        1 => put_together(model, order, at) || shift(order, at, random),
        _ => shift(order, at, random),
    }
}

/// A step goes some places earlier or later.
fn shift(order: &mut [Step], at: usize, random: &mut Random) -> bool {
    let distance = 1 + random.below(FARTHEST).min(random.below(FARTHEST));
    if random.below(2) == 0 {
        let to = at.saturating_sub(distance);
        order[to..=at].rotate_right(1);
        to != at
    } else {
        let to = (at + distance).min(order.len() - 1);
        order[at..=to].rotate_left(1);
        to != at
    }
}

/// A pair becomes its F and its B, in either order; B becomes its I and, some places later, its W.
fn take_apart(order: &mut Vec<Step>, at: usize, random: &mut Random) -> bool {
    let Step { forward, input, weight, .. } = order[at];
    if input == NO_PASS || weight == NO_PASS {
        return false;
    }
    if forward != NO_PASS {
        order[at] = Step::alone(NO_PASS, input, weight);
        order.insert(at + random.below(2), Step::alone(forward, NO_PASS, NO_PASS));
        return true;
    }
    order[at] = Step::alone(NO_PASS, input, NO_PASS);
    let to = (at + 1 + random.below(FARTHEST)).min(order.len());
    order.insert(to, Step::alone(NO_PASS, NO_PASS, weight));
    true
}

/// An I and its W, wherever that is, become B; a B and a neighbouring F of another pass become a pair.
fn put_together(model: &Model, order: &mut Vec<Step>, at: usize) -> bool {
    let Step { forward, input, weight, .. } = order[at];
    if forward == NO_PASS && input != NO_PASS && weight == NO_PASS {
        let later = &order[at..];
        let own_weight = later.iter().position(|step| step.weight == input && step.input == NO_PASS);
        let Some(distance) = own_weight else { return false };
        order.remove(at + distance);
        order[at] = Step::alone(NO_PASS, input, input);
        return true;
    }
    let is_forward = |step: &Step| step.forward != NO_PASS && step.input == NO_PASS;
    let is_backward =
        |step: &Step| step.forward == NO_PASS && step.input != NO_PASS && step.weight != NO_PASS;
    let Some(next) = order.get(at + 1) else { return false };
    let (f, b) = match (is_forward(&order[at]), is_backward(next)) {
        (true, true) => (order[at].forward, next.input),
        _ if is_backward(&order[at]) && is_forward(next) => (next.forward, order[at].input),
        _ => return false,
    };
    if f == b {
        return false;
    }
    order[at] = model.pair(f, b);
    order.remove(at + 1);
    true
}
