//! The published schedules, by name: what a plan is compared with.

use crate::error::Result;
use crate::placement::Placement;
use crate::schedule::{
    chimera, dualpipe, dualpipe_v, gpipe, interleaved_1f1b, interleaved_overlapped, interleaved_zero_bubble,
    looped_bfs, one_f_one_b, v_half, v_min, zb_h1, zb_h2, zb_v, Schedule, Work,
};

/// How to make a published schedule of a placement: name, and training order from ranks and micro-batches.
struct Maker {
    name: &'static str,
    make: fn(usize, usize, Work) -> Result<Schedule>,
}

/// The same of an interleaved one, whose second argument is the number of stages on a rank.
struct LoopedMaker {
    name: &'static str,
    make: fn(usize, usize, usize, Work) -> Result<Schedule>,
}

const LINEAR: [Maker; 4] = [
    Maker { name: "gpipe", make: gpipe },
    Maker { name: "1f1b", make: one_f_one_b },
    Maker { name: "zb_h1", make: zb_h1 },
    Maker { name: "zb_h2", make: zb_h2 },
];
const V: [Maker; 4] = [
    Maker { name: "zb_v", make: zb_v },
    Maker { name: "v_half", make: v_half },
    Maker { name: "v_min", make: v_min },
    Maker { name: "dualpipe_v", make: dualpipe_v },
];
const BIDIRECTIONAL: [Maker; 2] =
    [Maker { name: "chimera", make: chimera }, Maker { name: "dualpipe", make: dualpipe }];
const LOOPED: [LoopedMaker; 4] = [
    LoopedMaker { name: "looped_bfs", make: looped_bfs },
    LoopedMaker { name: "interleaved_1f1b", make: interleaved_1f1b },
    LoopedMaker { name: "interleaved_overlapped", make: interleaved_overlapped },
    LoopedMaker { name: "interleaved_zero_bubble", make: interleaved_zero_bubble },
];

/// A shape that stages are placed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A stage on each rank.
    Linear,
    /// Two on each rank: down the ranks and back up.
    V,
    /// A stage on each rank, and one of the other direction.
    Bidirectional,
    /// So many stages on each rank, one in each round over the ranks.
    Interleaved(usize),
}

/// A published schedule for training, or why it does not admit the sizes.
pub(super) struct Published {
    pub(super) name: &'static str,
    pub(super) schedule: Result<Schedule>,
}

impl Shape {
    /// The placement of this shape on so many ranks.
    ///
    /// # Errors
    /// Those of [`Placement`].
    pub fn placement(self, num_ranks: usize) -> Result<Placement> {
        match self {
            Shape::Linear => Placement::linear(num_ranks),
            Shape::V => Placement::v(num_ranks),
            Shape::Bidirectional => Placement::bidirectional(num_ranks),
            Shape::Interleaved(stages_per_rank) => Placement::interleaved(num_ranks, stages_per_rank),
        }
    }

    /// Stages of the model for each rank.
    pub fn stages_per_rank(self) -> usize {
        match self {
            Shape::Linear | Shape::Bidirectional => 1,
            Shape::V => 2,
            Shape::Interleaved(stages_per_rank) => stages_per_rank,
        }
    }

    /// As people say it: `linear`, `V`, `bidirectional`, `interleaved x2`.
    pub fn name(self) -> String {
        match self {
            Shape::Linear => "linear".to_owned(),
            Shape::V => "V".to_owned(),
            Shape::Bidirectional => "bidirectional".to_owned(),
            Shape::Interleaved(stages_per_rank) => format!("interleaved x{stages_per_rank}"),
        }
    }

    /// The published schedules on it, in order of their age.
    pub(super) fn published(self, num_ranks: usize, num_microbatches: usize) -> Vec<Published> {
        let all = |makers: &[Maker]| {
            let of = |maker: &Maker| Published {
                name: maker.name,
                schedule: (maker.make)(num_ranks, num_microbatches, Work::Training),
            };
            makers.iter().map(of).collect()
        };
        match self {
            Shape::Linear => all(&LINEAR),
            Shape::V => all(&V),
            Shape::Bidirectional => all(&BIDIRECTIONAL),
            Shape::Interleaved(v) => {
                let of = |maker: &LoopedMaker| Published {
                    name: maker.name,
                    schedule: (maker.make)(num_ranks, v, num_microbatches, Work::Training),
                };
                LOOPED.iter().map(of).collect()
            }
        }
    }
}

/// The published schedules that are possible on `placement`.
pub(super) fn published_on(placement: &Placement, num_microbatches: usize) -> Vec<Schedule> {
    let (num_ranks, stages_per_rank) =
        (placement.num_ranks(), placement.num_stages() / placement.num_ranks());
    let shapes = [Shape::Linear, Shape::V, Shape::Bidirectional, Shape::Interleaved(stages_per_rank)];
    let ours = shapes.into_iter().filter(|shape| shape.placement(num_ranks).as_ref() == Ok(placement));
    let published = ours.flat_map(|shape| shape.published(num_ranks, num_microbatches));
    published.filter_map(|published| published.schedule.ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_schedules() {
        for shape in [Shape::Linear, Shape::V, Shape::Bidirectional, Shape::Interleaved(2)] {
            for published in shape.published(4, 8) {
                assert_eq!(published.schedule.unwrap().name(), published.name);
            }
        }
    }

    #[test]
    fn a_placement_has_the_schedules_of_its_shape() {
        let names = |shape: Shape| {
            let published = published_on(&shape.placement(4).unwrap(), 8);
            published.iter().map(|schedule| schedule.name().to_owned()).collect::<Vec<String>>()
        };
        assert_eq!(names(Shape::Bidirectional), ["chimera", "dualpipe"]);
        assert_eq!(names(Shape::V), ["zb_v", "v_half", "v_min", "dualpipe_v"]);
        assert_eq!(names(Shape::Interleaved(3))[..2], ["looped_bfs", "interleaved_1f1b"]);
        // On a linear placement those for any number of stages on a rank are possible too.
        assert_eq!(names(Shape::Linear).len(), 8);
    }
}
