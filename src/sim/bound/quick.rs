//! A bound in closed form, cheap enough for any size.
//!
//! For each rank r, whatever the order of its ops and of everyone else's:
//!
//! - `head`: nothing can start on r before the first micro-batch has come to one of its stages.
//! - `work`: F and B of all its passes have to be done there, one after the other but for overlapped pairs.
//! - `share`: a pair takes at least this part of its F + B (at most 1).
//! - `earliest_pair`: a pair needs a backward, and none can start on r before a micro-batch has been through the
//!   whole model and back.
//! - `after_forward`: when a forward on r ends, its micro-batch still has to go to the end and back.
//! - `tail`: forward only, the last forward on r still has to go to the end.
//!
//! Forward only, T ≥ head + work + tail. In training, overlap can only happen between `earliest_pair` and
//! T - `after_forward`: before and after, work is done at rate 1, in between at rate 1/share at most. If T is at least
//! `earliest_pair` + `after_forward`, that is
//! T ≥ share·(head + work) + (1 - share)·(earliest_pair + after_forward);
//! if it is less, nothing overlaps and T ≥ head + work. The lesser of the two cases holds.
//! And T is at least the way of one micro-batch through the model and back, on its own.
//!
//! It knows nothing of memory, and for share < 1 it is usually not reached.

use crate::cost::Costs;
use crate::ids::{Direction, Rank, Stage};
use crate::op::StageCopy;
use crate::placement::Placement;
use crate::schedule::Work;

/// The quick bound of this file. `microbatches` are those of each direction.
///
/// Time: proportional to the stages, and to the square of the copies on a rank.
pub(super) fn quick_bound_ns(
    placement: &Placement,
    microbatches: [usize; 2],
    costs: &Costs,
    work: Work,
) -> u64 {
    let used = Direction::ALL.into_iter().filter(|d| microbatches[d.index()] > 0);
    let ways: Vec<Way> = used.map(|d| Way::new(placement, costs, d)).collect();
    let alone = ways.iter().map(|way| way.alone_ns(work));
    let ranks = (0..placement.num_ranks()).map(Rank::from_index);
    let ranks = ranks.map(|rank| rank_bound(placement, microbatches, costs, &ways, work, rank));
    alone.chain(ranks).max().unwrap_or(0)
}

/// The way of a micro-batch through the stages of one direction, if nothing else were to be done.
struct Way {
    direction: Direction,
    /// `[stage]`: from the start of the step to where F of the stage can start.
    to_forward_ns: Vec<u64>,
    /// `[stage]`: from the end of F of the last stage to where I of the stage can start.
    to_backward_ns: Vec<u64>,
    /// From the start of the step to the end of F of the last stage.
    forward_ns: u64,
    /// From the end of F of the last stage to the end of all its Is and Ws.
    backward_ns: u64,
}

impl Way {
    fn new(placement: &Placement, costs: &Costs, direction: Direction) -> Way {
        let stages: Vec<Stage> = (0..placement.num_stages()).map(|s| Stage(s as u16)).collect();
        let rank = |stage| placement.rank_of(StageCopy { direction, stage });
        let hop_ns = |a: Stage, b: Stage| if rank(a) == rank(b) { 0 } else { costs.output_ns(a.min(b)) };
        let (mut to_forward_ns, mut to_backward_ns) = (Vec::new(), vec![0; stages.len()]);
        let mut now = 0;
        for (i, &stage) in stages.iter().enumerate() {
            now += if i > 0 { hop_ns(stages[i - 1], stage) } else { 0 };
            to_forward_ns.push(now);
            now += costs.stage(stage).forward_ns;
        }
        let forward_ns = now;
        let (mut now, mut backward_ns) = (0, 0);
        for (i, &stage) in stages.iter().enumerate().rev() {
            now += stages.get(i + 1).map_or(0, |&next| hop_ns(stage, next));
            to_backward_ns[i] = now;
            now += costs.stage(stage).input_ns;
            backward_ns = backward_ns.max(now + costs.stage(stage).weight_ns);
        }
        Way { direction, to_forward_ns, to_backward_ns, forward_ns, backward_ns }
    }

    /// The whole way.
    fn alone_ns(&self, work: Work) -> u64 {
        match work {
            Work::Training => self.forward_ns + self.backward_ns,
            Work::ForwardOnly => self.forward_ns,
        }
    }

    /// From the end of F of `stage` to the end of F of the last.
    fn after_forward_ns(&self, costs: &Costs, stage: Stage) -> u64 {
        self.forward_ns - self.to_forward_ns[stage.index()] - costs.stage(stage).forward_ns
    }
}

fn rank_bound(
    placement: &Placement,
    microbatches: [usize; 2],
    costs: &Costs,
    ways: &[Way],
    work: Work,
    rank: Rank,
) -> u64 {
    let held = placement.copies_on(rank).iter().filter_map(|copy| {
        let way = ways.iter().find(|way| way.direction == copy.direction)?;
        Some((way, copy.stage, microbatches[copy.direction.index()] as u64))
    });
    let held: Vec<(&Way, Stage, u64)> = held.collect();
    let least = |ns: &dyn Fn(&Way, Stage) -> u64| held.iter().map(|&(way, stage, _)| ns(way, stage)).min();
    let head = least(&|way, stage| way.to_forward_ns[stage.index()]).unwrap_or(0);
    let after_forward = least(&|way, stage| way.after_forward_ns(costs, stage)).unwrap_or(0);
    if work == Work::ForwardOnly {
        let work: u64 = held.iter().map(|&(_, stage, n)| n * costs.stage(stage).forward_ns).sum();
        return head + work + after_forward;
    }
    let whole = |stage| costs.stage(stage).forward_ns + costs.stage(stage).backward_ns();
    let work: u64 = held.iter().map(|&(_, stage, n)| n * whole(stage)).sum();
    let earliest_pair = least(&|way, stage| way.forward_ns + way.to_backward_ns[stage.index()]).unwrap_or(0);
    let after_forward =
        least(&|way, stage| way.after_forward_ns(costs, stage) + way.backward_ns).unwrap_or(0);
    let share = held.iter().flat_map(|&(_, f, _)| held.iter().map(move |&(_, b, _)| (f, b)));
    let share = share.map(|(f, b)| Share::of_pair(costs, f, b)).fold(Share::ONE, Share::min);
    if head + work < earliest_pair + after_forward {
        // Short enough a schedule has no time in which a pair could run.
        return head + work;
    }
    share.of(head + work) + share.rest_of(earliest_pair + after_forward)
}

/// A part of a whole, 0 to 1, exact.
#[derive(Clone, Copy)]
struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    const ONE: Share = Share { part: 1, whole: 1 };

    fn of_pair(costs: &Costs, forward: Stage, backward: Stage) -> Share {
        let whole = costs.stage(forward).forward_ns + costs.stage(backward).backward_ns();
        match whole {
            0 => Share::ONE,
            _ => Share { part: costs.pair_ns(forward, backward).min(whole), whole },
        }
    }

    fn min(self, other: Share) -> Share {
        let less = (self.part as u128 * other.whole as u128) < (other.part as u128 * self.whole as u128);
        if less {
            self
        } else {
            other
        }
    }

    /// This share of `ns`, rounded down.
    fn of(self, ns: u64) -> u64 {
        (ns as u128 * self.part as u128 / self.whole as u128) as u64
    }

    /// The rest of `ns`, rounded down.
    fn rest_of(self, ns: u64) -> u64 {
        (ns as u128 * (self.whole - self.part) as u128 / self.whole as u128) as u64
    }
}
