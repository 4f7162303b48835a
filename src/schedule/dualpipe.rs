//! DualPipe, the bidirectional schedule of the DeepSeek-V3 report (arXiv 2412.19437, section 3.2.1);
//! the published figure is images/dualpipe.png of deepseek-ai/DualPipe.
//!
//! Two streams of micro-batches cross: one enters at rank 0, one at rank P-1. Seen from a rank, `near` is the
//! stream whose entrance is closer, `far` the other; so ranks r and P-1-r do the same with the streams swapped.
//! Each rank walks through eight steps, which are the published figure read from left to right:
//!
//! ```text
//!           step  ops                              repeated
//! warm-up    1    F near                           2(M - d)
//!            2    F near, F far                    d + 1
//!            3    I far, W, F far                  M - d
//! steady     4    F near & B far, F far & B near   C - P + d + 1
//! cool-down  5    B far, F far & B near            M - d
//!            6    B far, B near                    d + 1
//!            7    W, I near                        M - d
//!            8    W                                d + 1
//! ```
//!
//! P ranks, C micro-batches per stream, d the distance to the nearer end, M = P/2 - 1 that of the two middle ranks.
//!
//! Different from DeepSeek's code:
//! 1. Communication is not here; `program` derives it.
//! 2. Where step 6 turns from B to I they ask whether d is odd. Both answers are "half-way", so one comparison does.
//! 3. They ask for 2P micro-batches; from 2P - 2 on the same eight steps are complete.
//! 4. Forward only, they keep the forwards of the training order. Taking turns as soon as the far stream arrives
//!    is one forward shorter, n + P - 2, which is the least possible, and needs no least number of micro-batches.

use std::collections::VecDeque;

use super::{check_sizes, Schedule, Work};
use crate::error::{in_range, Error, Result};
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::{Placement, RANKS_MAX};

/// The DualPipe schedule: `num_ranks` even and at least 2; `num_microbatches` counts both streams, even and at
/// least `2 * num_ranks - 2` for training, at least 2 forward only.
pub fn dualpipe(num_ranks: usize, num_microbatches: usize, work: Work) -> Result<Schedule> {
    in_range("dualpipe", "num_ranks", num_ranks, 2..=RANKS_MAX as usize)?;
    if num_ranks % 2 != 0 {
        return Err(Error::argument("dualpipe", "num_ranks", num_ranks, "must be even and at least 2"));
    }
    let fewest = match work {
        Work::Training => 2 * num_ranks - 2,
        Work::ForwardOnly => 2,
    };
    if num_microbatches % 2 != 0 || num_microbatches < fewest {
        let range = format!("must be even and at least {fewest} for {num_ranks} ranks");
        return Err(Error::argument("dualpipe", "num_microbatches", num_microbatches, range));
    }
    let placement = Placement::bidirectional(num_ranks)?;
    check_sizes("dualpipe", &placement, num_microbatches)?;
    let orders = (0..num_ranks).map(|rank| {
        let [down, up] = [0, 1].map(|i| placement.copies_on(Rank::from_index(rank))[i]);
        let (near, far) = if rank < num_ranks / 2 { (down, up) } else { (up, down) };
        let streams = Streams {
            near,
            far,
            depth: rank.min(num_ranks - 1 - rank),
            num_ranks,
            per_stream: num_microbatches / 2,
        };
        streams.order(work)
    });
    let orders = orders.collect();
    Schedule::new("dualpipe", placement, num_microbatches, work, orders)
}

/// The two streams as one rank sees them.
pub(super) struct Streams {
    /// What the rank holds of the stream whose entrance is closer.
    pub(super) near: StageCopy,
    /// What it holds of the other stream.
    pub(super) far: StageCopy,
    /// d, the distance to the nearer end.
    pub(super) depth: usize,
    /// P.
    pub(super) num_ranks: usize,
    /// C, the micro-batches of one stream.
    pub(super) per_stream: usize,
}

impl Streams {
    pub(super) fn order(&self, work: Work) -> Vec<Op> {
        match work {
            Work::Training => self.eight_steps(),
            Work::ForwardOnly => self.forwards(),
        }
    }

    fn eight_steps(&self) -> Vec<Op> {
        let &Streams { near, far, depth, num_ranks, per_stream } = self;
        let middle = num_ranks / 2 - 1;
        let mut o = Order::new(near, far, 4 * per_stream);

        for _ in 0..2 * (middle - depth) {
            o.forward(near); // 1
        }
        for _ in 0..depth + 1 {
            o.forward(near); // 2
            o.forward(far);
        }
        for _ in 0..middle - depth {
            o.input_backward(far); // 3
            o.weight_backward();
            o.forward(far);
        }
        for i in 0..per_stream + depth + 1 - num_ranks {
            if i == 0 && depth == middle {
                // DeepSeek leaves the middle ranks' first pair apart. Overlapping it is faster for some costs and
                // slower for others: `the_first_pair_of_the_middle_ranks` in tests/sim.rs.
                o.forward(near);
                o.backward(far);
            } else {
                o.forward_and_backward(near, far); // 4
            }
            o.forward_and_backward(far, near);
        }
        for _ in 0..middle - depth {
            o.backward(far); // 5
            o.forward_and_backward(far, near);
        }
        // 6: from half-way on, the weight gradients are put off to steps 7 and 8.
        for i in 0..2 * (depth + 1) {
            let stream = if i % 2 == 0 { far } else { near };
            if i <= depth {
                o.backward(stream);
            } else {
                o.input_backward(stream);
            }
        }
        for _ in 0..middle - depth {
            o.weight_backward(); // 7
            o.input_backward(near);
        }
        for _ in 0..depth + 1 {
            o.weight_backward(); // 8
        }
        assert!(o.put_off.is_empty(), "every weight gradient that was put off is done");
        o.ops
    }

    /// Near until the far stream arrives, then in turns.
    fn forwards(&self) -> Vec<Op> {
        let &Streams { near, far, depth, num_ranks, per_stream } = self;
        let mut o = Order::new(near, far, 2 * per_stream);
        let alone = (num_ranks - 1 - 2 * depth).min(per_stream);
        for _ in 0..alone {
            o.forward(near);
        }
        for i in 0..per_stream {
            o.forward(far);
            if alone + i < per_stream {
                o.forward(near);
            }
        }
        o.ops
    }
}

/// Numbers the micro-batches of a rank's order as it is written down.
struct Order {
    ops: Vec<Op>,
    near: Counts,
    far: Counts,
    /// Weight gradients put off, oldest first, both streams together.
    put_off: VecDeque<Pass>,
}

/// How many passes of one stream have gone forward and backward.
struct Counts {
    copy: StageCopy,
    forwards: usize,
    backwards: usize,
}

impl Order {
    fn new(near: StageCopy, far: StageCopy, capacity: usize) -> Order {
        let counts = |copy| Counts { copy, forwards: 0, backwards: 0 };
        Order {
            ops: Vec::with_capacity(capacity),
            near: counts(near),
            far: counts(far),
            put_off: VecDeque::new(),
        }
    }

    fn forward(&mut self, stream: StageCopy) {
        let pass = self.next_forward(stream);
        self.ops.push(Op::F(pass));
    }

    fn backward(&mut self, stream: StageCopy) {
        let pass = self.next_backward(stream);
        self.ops.push(Op::B(pass));
    }

    fn forward_and_backward(&mut self, forward: StageCopy, backward: StageCopy) {
        let pair = Op::FB(self.next_forward(forward), self.next_backward(backward));
        self.ops.push(pair);
    }

    fn input_backward(&mut self, stream: StageCopy) {
        let pass = self.next_backward(stream);
        self.ops.push(Op::I(pass));
        self.put_off.push_back(pass);
    }

    fn weight_backward(&mut self) {
        if let Some(pass) = self.put_off.pop_front() {
            self.ops.push(Op::W(pass));
        }
    }

    fn next_forward(&mut self, stream: StageCopy) -> Pass {
        let counts = self.counts(stream);
        counts.forwards += 1;
        pass(stream, counts.forwards - 1)
    }

    fn next_backward(&mut self, stream: StageCopy) -> Pass {
        let counts = self.counts(stream);
        counts.backwards += 1;
        pass(stream, counts.backwards - 1)
    }

    fn counts(&mut self, stream: StageCopy) -> &mut Counts {
        if stream == self.near.copy {
            &mut self.near
        } else {
            &mut self.far
        }
    }
}

fn pass(copy: StageCopy, microbatch: usize) -> Pass {
    let StageCopy { direction, stage } = copy;
    Pass { direction, stage, microbatch: Microbatch::from_index(microbatch) }
}
