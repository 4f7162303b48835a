//! Integer identifiers that must not be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            /// The identifier as an index into a table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One device of the pipeline, `0 .. P`.
    Rank(u32)
}
id! {
    /// One part of the model, `0 .. S`, in the order in which a forward visits them.
    Stage(u16)
}
id! {
    /// A micro-batch, counted within its direction.
    Microbatch(u32)
}

/// Where micro-batches enter the pipeline. Each direction has its own copy of every stage's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Direction 0: stage 0 is at rank 0.
    Down = 0,
    /// Direction 1: stage 0 is at rank P-1.
    Up = 1,
}

impl Direction {
    /// Both, in order.
    pub const ALL: [Direction; 2] = [Direction::Down, Direction::Up];

    /// The other direction.
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Down => Direction::Up,
            Direction::Up => Direction::Down,
        }
    }

    /// 0 or 1.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&(*self as u8), f)
    }
}
