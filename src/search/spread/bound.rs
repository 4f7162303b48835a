//! What no schedule can beat on one sample.
//!
//! For each rank, `head`: nothing can start there before the first micro-batch has come to one of its stages, which in
//! this sample takes at least the least of all micro-batches' sampled ways to it. Then it has to do F, I and W of all
//! its passes one after the other, but for pairs. A pair takes at least `share` of its sampled F and B, less half a
//! nanosecond for rounding, `share` being the least F&B / (F + B) of its stages, at most 1; and there are at most as
//! many pairs as passes. So T ≥ head + share · work - passes / 2.
//!
//! For each micro-batch: an op that does its F takes at least its sampled F, one that does its I at least its I, and
//! one that does both I and W at least both. So T is at least its way to the last stage and back to the first, with its
//! W there, which comes with the last I or after it.
//!
//! Both hold for whatever order; so the greatest of them is below every schedule's makespan on this sample.

use super::draw::Durations;
use super::lanes::Model;

/// Of the sample in a lane, in whole nanoseconds.
pub(super) fn lower_bound_ns(model: &Model, durations: &Durations, lane: usize) -> u64 {
    let of = |pass: usize, part: usize| durations.of(pass, part)[lane];
    let mut bound_ns = 0.0f64;
    let mut head_ns = vec![f64::INFINITY; model.num_ranks()];
    for way in model.ways() {
        let mut now_ns = 0.0;
        for &pass in &way {
            let head = &mut head_ns[model.rank(pass)];
            *head = head.min(now_ns);
            now_ns += of(pass, 0) + model.output_ns(pass);
        }
        for &pass in way.iter().rev() {
            now_ns += of(pass, 1) + model.gradient_ns(pass);
        }
        bound_ns = bound_ns.max(now_ns + way.first().map_or(0.0, |&first| of(first, 2)));
    }
    for (rank, head_ns) in head_ns.into_iter().enumerate().filter(|(_, head)| head.is_finite()) {
        let (mut work_ns, mut passes) = (0.0, 0.0);
        for pass in model.passes_of(rank) {
            work_ns += of(pass, 0) + of(pass, 1) + of(pass, 2);
            passes += 1.0;
        }
        let share = model.least_share(rank);
        // Where nothing overlaps, nothing is rounded; otherwise the product may be, by far less than the other half.
        let slack_ns = if share < 1.0 { passes * 0.5 + 1.0 } else { 0.0 };
        bound_ns = bound_ns.max(head_ns + share * work_ns - slack_ns);
    }
    bound_ns as u64
}
