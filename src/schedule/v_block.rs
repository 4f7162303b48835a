//! Schedules from a building block on the V placement (arXiv 2405.15362, "Pipeline Parallelism with Controllable
//! Memory"): one micro-batch's forwards and backwards, laid out in time and repeated every 6 slots.
//!
//! Rank r of P holds stage r, on the way down, and stage 2P-1-r, on the way back up. A slot is the time of one F, I or
//! W of a stage. A micro-batch goes F down, F up, I up, I down, and the block says how many slots lie between one rank
//! and the next on each of these four ways. What a rank keeps alive is the time from F to I over 6, both stages
//! together: P/6 times the sum of the four numbers, the same on every rank if those of the down stage (F down and
//! I down) are together those of the up stage.
//!
//! Repeated as it is, the block leaves gaps before the first backward and after the last forward, and 2 of 6 slots
//! for W. The paper moves ops into them within the same memory; here the greedy rule of [`Rows::play`] does.
//!
//! Time: proportional to the slots of all ranks, and O(P) more for each forward that may run ahead of its place.

use std::collections::VecDeque;

use super::dualpipe::Streams;
use super::Work;
use crate::ids::{Microbatch, Rank};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;

/// Slots from one micro-batch to the next: F, I and W of two stages.
const PERIOD: usize = 6;

/// The four ways of a micro-batch: F down, F up, I up, I down.
const WAYS: usize = 4;
/// Position of each way's copy among its rank's.
const COPY: [usize; WAYS] = [0, 1, 1, 0];

/// One micro-batch, laid out.
pub(super) struct Block {
    /// Slots from one rank to the next, for each way.
    pub(super) steps: [usize; WAYS],
    /// Slots left free so that no two ways of repeated blocks share a slot: on rank 0 between F up and I up, on rank
    /// P - 1 between I up and I down.
    pub(super) waits: [usize; 2],
}

impl Block {
    /// Slots of micro-batch 0 on `rank`, for each way.
    pub(super) fn slots(&self, num_ranks: usize, rank: usize) -> [usize; WAYS] {
        let last = num_ranks - 1;
        let [f_down, f_up, i_up, i_down] = self.steps;
        let turn = last * f_down + 1;
        let top = turn + last * f_up + 1 + self.waits[0];
        let back = top + last * i_up + 1 + self.waits[1];
        [rank * f_down, turn + (last - rank) * f_up, top + rank * i_up, back + (last - rank) * i_down]
    }

    /// The most activations that repeated blocks keep alive on `rank`, each W in the first free slot.
    pub(super) fn live(&self, num_ranks: usize, rank: usize) -> usize {
        let slots = self.slots(num_ranks, rank);
        let mut free = [true; PERIOD];
        for slot in slots {
            free[slot % PERIOD] = false;
        }
        let mut first_free = |after: usize| {
            let slot = (after + 1..=after + PERIOD).find(|slot| free[slot % PERIOD]).unwrap_or(after);
            free[slot % PERIOD] = false;
            slot
        };
        let [f_down, f_up, i_up, i_down] = slots;
        let lives = [(f_up, first_free(i_up)), (f_down, first_free(i_down))];
        // At `now`, late enough for every micro-batch that lives then to have one before it that is over.
        let latest = PERIOD * (lives[0].1.max(lives[1].1) / PERIOD + 1);
        let alive = |now: usize| -> usize {
            lives.iter().map(|(start, end)| (now - start) / PERIOD + 1 - (now - end).div_ceil(PERIOD)).sum()
        };
        (latest..latest + PERIOD).map(alive).max().unwrap_or(0)
    }
}

/// For each rank the order in which it forwards, as in DualPipeV: down until the first comes back up, then in turns.
pub(super) fn forwards_in_turns(placement: &Placement, num_microbatches: usize) -> Vec<Vec<Op>> {
    let num_ranks = placement.num_ranks();
    let order = |rank: usize| {
        let [near, far] = [0, 1].map(|i| placement.copies_on(Rank::from_index(rank))[i]);
        let streams =
            Streams { near, far, depth: rank, num_ranks: 2 * num_ranks, per_stream: num_microbatches };
        streams.order(Work::ForwardOnly)
    };
    (0..num_ranks).map(order).collect()
}

/// For each rank the order that [`Rows::play`] finds: with forwards that run ahead in the warm-up if that saves slots,
/// without otherwise.
pub(super) fn greedy_orders(placement: &Placement, block: &Block, num_microbatches: usize) -> Vec<Vec<Op>> {
    let mut plain = Rows::new(placement, block, num_microbatches);
    let plain_slots = plain.play(false);
    let mut ahead = Rows::new(placement, block, num_microbatches);
    let ahead_slots = ahead.play(true);
    let rows = if ahead_slots < plain_slots { ahead.0 } else { plain.0 };
    rows.into_iter().map(|row| row.order).collect()
}

/// All ranks.
struct Rows(Vec<Row>);

impl Rows {
    fn new(placement: &Placement, block: &Block, num_microbatches: usize) -> Rows {
        let num_ranks = placement.num_ranks();
        let cap = (0..num_ranks).map(|rank| block.live(num_ranks, rank)).max().unwrap_or(0);
        let row = |rank| Row {
            slots: block.slots(num_ranks, rank),
            num_microbatches,
            cap,
            copies: [0, 1].map(|i| placement.copies_on(Rank::from_index(rank))[i]),
            done: [0; WAYS],
            put_off: VecDeque::new(),
            order: Vec::with_capacity(PERIOD * num_microbatches),
        };
        Rows((0..num_ranks).map(row).collect())
    }

    /// Plays all ranks slot by slot and returns the number of slots. A rank runs the op whose place in its repeated
    /// blocks is first, once its inputs are there and its activation fits; meanwhile the oldest W that was put off.
    /// Once rank 0 has no forward left, and with `ahead` also before its first backward, it runs the first of its ops
    /// that can go, in that order. (Doing so in between as well makes pairs of ranks fall out of step for good, which
    /// costs much time wherever F, I and W are not alike.)
    ///
    /// No rank ever keeps more alive than the blocks do at most. A forward runs ahead of its place only if all before
    /// it still fit then; so the op whose place is first can always run in the end, and none waits for ever.
    fn play(&mut self, ahead: bool) -> usize {
        let Rows(rows) = self;
        let mut slots = 0;
        let mut before: Vec<[usize; WAYS]> = vec![[0; WAYS]; rows.len()];
        while rows.iter().any(|row| row.order.len() < PERIOD * row.num_microbatches) {
            slots += 1;
            for (done, row) in before.iter_mut().zip(rows.iter()) {
                *done = row.done;
            }
            let [first_f_down, _, _, first_i_down] = before[0];
            for (rank, row) in rows.iter_mut().enumerate() {
                let all = row.num_microbatches;
                let above = rank.checked_sub(1).map(|above| before[above]);
                let below = before.get(rank + 1).copied();
                let here = before[rank];
                let arrived = [
                    above.map_or(all, |done| done[0]),
                    below.map_or(here[0], |done| done[1]),
                    above.map_or(here[1], |done| done[2]),
                    below.map_or(here[2], |done| done[3]),
                ];
                let any_place = first_f_down == all || (ahead && first_i_down == 0);
                row.run(arrived, any_place);
            }
        }
        slots
    }
}

/// One rank.
struct Row {
    /// Of micro-batch 0, for each way.
    slots: [usize; WAYS],
    num_microbatches: usize,
    /// The most activations alive at once.
    cap: usize,
    copies: [StageCopy; 2],
    /// Micro-batches that have gone each way.
    done: [usize; WAYS],
    /// Weight gradients put off, oldest first.
    put_off: VecDeque<Pass>,
    order: Vec<Op>,
}

impl Row {
    /// Runs an op, or none. `arrived` micro-batches can go each way; ops behind the first place may run at `any_place`.
    fn run(&mut self, arrived: [usize; WAYS], any_place: bool) {
        let mut ways = [0, 1, 2, 3];
        ways.sort_by_key(|&way| self.place(way));
        let left = ways.into_iter().filter(|&way| self.done[way] < self.num_microbatches);
        let mut candidates = left.take(if any_place { WAYS } else { 1 });
        if let Some(way) = candidates.find(|&way| self.done[way] < arrived[way] && self.fits(way)) {
            let StageCopy { direction, stage } = self.copies[COPY[way]];
            let pass = Pass { direction, stage, microbatch: Microbatch::from_index(self.done[way]) };
            self.done[way] += 1;
            if is_forward(way) {
                self.order.push(Op::F(pass));
            } else {
                self.order.push(Op::I(pass));
                self.put_off.push_back(pass);
            }
        } else if let Some(pass) = self.put_off.pop_front() {
            self.order.push(Op::W(pass));
        }
    }

    /// The slot, in the repeated blocks, of the next micro-batch to go `way`.
    fn place(&self, way: usize) -> usize {
        self.slots[way] + PERIOD * self.done[way]
    }

    /// Whether the next op of `way` leaves room for itself and for all whose place is before its own.
    fn fits(&self, way: usize) -> bool {
        if !is_forward(way) {
            return true;
        }
        let mut between = self.done[0] + self.done[1] - self.done[2] - self.done[3];
        if between + self.put_off.len() >= self.cap {
            return false;
        }
        between += 1;
        let place = self.place(way);
        let mut done = self.done;
        let next = |done: &[usize; WAYS]| {
            let left = (0..WAYS).filter(|&way| done[way] < self.num_microbatches);
            let places = left.map(|way| (self.slots[way] + PERIOD * done[way], way));
            places.min().filter(|&(other, _)| other < place)
        };
        while let Some((_, way)) = next(&done) {
            done[way] += 1;
            if is_forward(way) {
                between += 1;
            } else {
                between -= 1;
            }
            if between > self.cap {
                return false;
            }
        }
        true
    }
}

fn is_forward(way: usize) -> bool {
    way < 2
}

#[cfg(test)]
mod tests {
    use super::super::{v_half, v_min, Work};
    use super::*;

    #[test]
    fn no_two_ways_of_repeated_blocks_share_a_slot() {
        for num_ranks in 1..=64 {
            for block in [v_half::block(num_ranks), v_min::block(num_ranks)] {
                for rank in 0..num_ranks {
                    let mut slots = block.slots(num_ranks, rank).map(|slot| slot % PERIOD);
                    slots.sort_unstable();
                    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "rank {rank} of {num_ranks}");
                }
            }
        }
    }

    #[test]
    fn a_schedule_keeps_as_much_alive_as_its_block() {
        for num_ranks in 1..=12 {
            let schedules = [
                (v_half::v_half(num_ranks, 32, Work::Training), v_half::block(num_ranks)),
                (v_min::v_min(num_ranks, 32, Work::Training), v_min::block(num_ranks)),
            ];
            for (schedule, block) in schedules {
                let most = (0..num_ranks).map(|rank| block.live(num_ranks, rank)).max();
                assert_eq!(schedule.unwrap().peak_live().iter().max().copied(), most, "{num_ranks} ranks");
            }
        }
    }
}
