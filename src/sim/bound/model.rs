//! A placement with micro-batches and costs as the bound sees it: copies with their neighbours, and what a rank's ops
//! cost when its copies are counted in groups.

use super::graph::{GroupShape, Shape};
use super::rank::Durations;
use crate::cost::{Costs, StageCosts};
use crate::ids::{Direction, Rank, Stage};
use crate::op::StageCopy;
use crate::placement::Placement;
use crate::sim::MemoryCap;

/// One parameter copy.
pub(super) struct Copy {
    pub(super) stage: Stage,
    /// Micro-batches.
    pub(super) count: usize,
    /// Which rank is looked at for it.
    pub(super) rank: usize,
    pub(super) next: Option<Neighbour>,
    pub(super) previous: Option<Neighbour>,
    pub(super) forward_ns: i64,
    pub(super) input_ns: i64,
}

/// The copy of the next or previous stage, and how long a message to it takes.
#[derive(Clone, Copy)]
pub(super) struct Neighbour {
    pub(super) copy: usize,
    pub(super) message_ns: i64,
}

/// All copies, and which of them each rank holds.
pub(super) struct Model {
    pub(super) copies: Vec<Copy>,
    /// `[rank]`: indices of `copies` that have micro-batches.
    pub(super) held: Vec<Vec<usize>>,
}

impl Model {
    /// Every copy and rank; or, where the directions mirror one another, the copies of direction 0 and the ranks of
    /// the first half, with each copy of direction 1 read as its mirror image.
    pub(super) fn new(
        placement: &Placement,
        microbatches: [usize; 2],
        costs: &Costs,
        cap: &MemoryCap,
    ) -> Model {
        let num_ranks = placement.num_ranks();
        let mirrored = directions_mirror(placement, microbatches, cap);
        let index = |copy: StageCopy| {
            let direction = if mirrored { 0 } else { copy.direction.index() };
            direction * placement.num_stages() + copy.stage.index()
        };
        let rank_of = |copy: StageCopy| placement.rank_of(copy).map_or(0, Rank::index);
        let copies = all_copies(placement).filter(|copy| !mirrored || copy.direction == Direction::Down);
        let copies = copies.map(|copy| {
            let rank = rank_of(copy);
            let neighbour = |other: StageCopy| {
                let output_ns = costs.output_ns(copy.stage.min(other.stage)) as i64;
                let message_ns = if rank_of(other) == rank { 0 } else { output_ns };
                Neighbour { copy: index(other), message_ns }
            };
            Copy {
                stage: copy.stage,
                count: microbatches[copy.direction.index()],
                rank: if mirrored { rank.min(num_ranks - 1 - rank) } else { rank },
                next: placement.next(copy).map(neighbour),
                previous: placement.previous(copy).map(neighbour),
                forward_ns: costs.stage(copy.stage).forward_ns as i64,
                input_ns: costs.stage(copy.stage).input_ns as i64,
            }
        });
        let ranks = 0..if mirrored { num_ranks.div_ceil(2) } else { num_ranks };
        let held = ranks.map(|rank| {
            let copies = placement.copies_on(Rank::from_index(rank)).iter();
            copies.filter(|copy| microbatches[copy.direction.index()] > 0).map(|&copy| index(copy)).collect()
        });
        Model { copies: copies.collect(), held: held.collect() }
    }

    /// The states of a rank that counts its copies in these groups, and what its ops take: of the copies of a group
    /// the least.
    pub(super) fn shape(
        &self,
        groups: &[Vec<usize>],
        costs: &Costs,
        memory: &Memory,
    ) -> (Shape, Vec<Durations>) {
        let of = |copy: usize| costs.stage(self.copies[copy].stage);
        let pair_ns = |f: usize, b: usize| costs.pair_ns(self.copies[f].stage, self.copies[b].stage);
        let durations = groups.iter().map(|group| {
            let least_pair = |with: &Vec<usize>| least(group, |f| least(with, |b| pair_ns(f, b))) as i64;
            let mut pairs = groups.iter().map(least_pair);
            Durations {
                forward_ns: least(group, |copy| of(copy).forward_ns) as i64,
                input_ns: least(group, |copy| of(copy).input_ns) as i64,
                weight_ns: least(group, |copy| of(copy).weight_ns) as i64,
                pair_ns: [(); 2].map(|()| pairs.next().unwrap_or(0)),
            }
        });
        let durations: Vec<Durations> = durations.collect();
        let shapes = groups.iter().map(|group| GroupShape {
            count: group.iter().map(|&copy| self.copies[copy].count).sum(),
            memory: least(group, |copy| memory.of_activation(of(copy))),
        });
        let shapes: Vec<GroupShape> = shapes.collect();
        // A pair that saves nothing is no better than F, I, W.
        let mut pairs = [[false; 2]; 2];
        for (f, forward) in durations.iter().enumerate() {
            for (b, backward) in durations.iter().enumerate() {
                let apart_ns = forward.forward_ns + backward.input_ns + backward.weight_ns;
                pairs[f][b] = forward.pair_ns[b] < apart_ns;
            }
        }
        let weights_together = durations.iter().zip(&shapes).all(|(duration, shape)| {
            duration.weight_ns == durations[0].weight_ns && shape.memory == shapes[0].memory
        });
        (Shape { groups: shapes, weights_together, cap: memory.free(), pairs }, durations)
    }
}

/// The memory of one rank, in the unit of its cap.
pub(super) struct Memory<'a> {
    cap: &'a MemoryCap,
    rank: Rank,
    parameter_bytes: u64,
}

impl<'a> Memory<'a> {
    pub(super) fn new(rank: usize, placement: &Placement, costs: &Costs, cap: &'a MemoryCap) -> Memory<'a> {
        let rank = Rank::from_index(rank);
        let copies = placement.copies_on(rank).iter();
        let parameter_bytes = copies.map(|copy| costs.stage(copy.stage).parameter_bytes).sum();
        Memory { cap, rank, parameter_bytes }
    }

    /// What the activations may take: nothing if the parameters take all.
    fn free(&self) -> u64 {
        match self.cap {
            MemoryCap::Unlimited => 0,
            MemoryCap::Activations(_) => self.cap.activations(self.rank).map_or(u64::MAX, |cap| cap as u64),
            MemoryCap::Bytes(_) => {
                let bytes = self.cap.bytes(self.rank);
                bytes.map_or(u64::MAX, |cap| cap.saturating_sub(self.parameter_bytes))
            }
        }
    }

    fn of_activation(&self, stage: &StageCosts) -> u64 {
        match self.cap {
            MemoryCap::Unlimited => 0,
            MemoryCap::Activations(_) => 1,
            MemoryCap::Bytes(_) => stage.activation_bytes,
        }
    }
}

/// Every copy of the placement, in order of (direction, stage).
pub(super) fn all_copies(placement: &Placement) -> impl Iterator<Item = StageCopy> + '_ {
    let directions = &Direction::ALL[..placement.num_directions()];
    let stages = 0..placement.num_stages();
    directions.iter().flat_map(move |&direction| {
        stages.clone().map(move |stage| StageCopy { direction, stage: Stage(stage as u16) })
    })
}

/// Whether exchanging the directions, with rank P-1-r for r, changes nothing. (Costs are the stage's in either.)
fn directions_mirror(placement: &Placement, microbatches: [usize; 2], cap: &MemoryCap) -> bool {
    if placement.num_directions() != 2 || microbatches[0] != microbatches[1] {
        return false;
    }
    let num_ranks = placement.num_ranks();
    let image = |rank: Rank| Rank::from_index(num_ranks - 1 - rank.index());
    let is_placed_so = all_copies(placement).all(|copy| {
        let other = StageCopy { direction: copy.direction.opposite(), ..copy };
        placement.rank_of(other) == placement.rank_of(copy).map(image)
    });
    let has_caps_so = (0..num_ranks).map(Rank::from_index).all(|rank| {
        cap.activations(rank) == cap.activations(image(rank)) && cap.bytes(rank) == cap.bytes(image(rank))
    });
    is_placed_so && has_caps_so
}

/// The least of a group's, which is not empty.
fn least(group: &[usize], of: impl Fn(usize) -> u64) -> u64 {
    group.iter().map(|&copy| of(copy)).min().unwrap_or(0)
}
