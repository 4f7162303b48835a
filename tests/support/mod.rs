//! What several test files share.
#![allow(dead_code)] // each test file uses a part of it

pub(crate) mod data;
pub(crate) mod naive;
pub(crate) mod net;

use dualpipe::op::{Op, Pass};
use dualpipe::schedule::{
    chimera, dualpipe, dualpipe_v, gpipe, interleaved_1f1b, interleaved_overlapped, interleaved_zero_bubble,
    looped_bfs, one_f_one_b, v_half, v_min, zb_h1, zb_h2, zb_v, Schedule, Work,
};

/// Every published schedule here that admits the sizes.
pub(crate) fn family(num_ranks: usize, num_microbatches: usize) -> Vec<Schedule> {
    [Work::Training, Work::ForwardOnly]
        .into_iter()
        .flat_map(|work| {
            [
                dualpipe(num_ranks, num_microbatches, work),
                dualpipe_v(num_ranks, num_microbatches, work),
                one_f_one_b(num_ranks, num_microbatches, work),
                gpipe(num_ranks, num_microbatches, work),
                chimera(num_ranks, num_microbatches, work),
                looped_bfs(num_ranks, 2, num_microbatches, work),
                interleaved_1f1b(num_ranks, 3, num_microbatches, work),
                interleaved_overlapped(num_ranks, 2, num_microbatches, work),
                interleaved_zero_bubble(num_ranks, 2, num_microbatches, work),
                zb_h1(num_ranks, num_microbatches, work),
                zb_h2(num_ranks, num_microbatches, work),
                zb_v(num_ranks, num_microbatches, work),
                v_half(num_ranks, num_microbatches, work),
                v_min(num_ranks, num_microbatches, work),
            ]
        })
        .filter_map(Result::ok)
        .collect()
}

/// `F3`, or `f3` for a rank's second parameter copy; a pair is `F3&b1`.
pub(crate) fn short_token(schedule: &Schedule, op: Op) -> String {
    let token = |kind: char, pass: Pass| {
        let second = schedule.placement().local_index(pass.copy()) == Some(1);
        let kind = if second { kind.to_ascii_lowercase() } else { kind };
        format!("{kind}{}", pass.microbatch)
    };
    match op {
        Op::F(p) => token('F', p),
        Op::B(p) => token('B', p),
        Op::I(p) => token('I', p),
        Op::W(p) => token('W', p),
        Op::FB(f, b) => format!("{}&{}", token('F', f), token('B', b)),
    }
}

/// An order as one line of short tokens.
pub(crate) fn order_line(schedule: &Schedule, order: &[Op]) -> String {
    let tokens: Vec<String> = order.iter().map(|&op| short_token(schedule, op)).collect();
    tokens.join(" ")
}

/// The seeds to try, and whether they are all: `SEED=7` repeats one.
pub(crate) fn seeds(count: u64) -> (Box<dyn Iterator<Item = u64>>, bool) {
    match std::env::var("SEED") {
        Ok(seed) => (Box::new(std::iter::once(seed.parse().unwrap())), false),
        Err(_) => (Box::new(0..count), true),
    }
}
