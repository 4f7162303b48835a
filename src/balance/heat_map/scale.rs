//! What a load / mean looks like: the same colours in every picture, so that pictures can be compared.
//!
//! The steps are finer near the mean, where good placements differ, and about as wide in ratio on both sides of it.
//! Colours grow darker both ways, blue below and orange to brown above: lightness shows their order, and blue and
//! yellow their side, which nearly all who cannot tell red from green can tell apart:
//! `the_colours_differ_for_every_eye` below.

/// Where the colours above the mean begin.
pub(super) const ABOVE: [f64; 6] = [1.02, 1.05, 1.1, 1.2, 1.5, 2.0];
/// Where the colours below it do, downwards.
pub(super) const BELOW: [f64; 6] = [0.98, 0.95, 0.9, 0.8, 0.67, 0.5];
/// The colour of the mean.
pub(super) const MEAN: usize = 6;

/// From the least load to the most.
pub(super) const COLOURS: [[u8; 3]; 13] = [
    [0x08, 0x2a, 0x54],
    [0x1b, 0x4f, 0x91],
    [0x34, 0x7b, 0xb8],
    [0x6a, 0xa7, 0xd6],
    [0xa2, 0xcc, 0xe9],
    [0xd0, 0xe5, 0xf5],
    [0xf8, 0xf8, 0xf4],
    [0xfd, 0xe3, 0xbf],
    [0xfb, 0xc0, 0x7d],
    [0xf2, 0x95, 0x3f],
    [0xd4, 0x66, 0x12],
    [0x9c, 0x3d, 0x04],
    [0x5a, 0x1d, 0x02],
];

/// A GPU that is dead or has no slots.
pub(super) const GAP: [u8; 3] = [0x8f, 0x8f, 0x95];

/// The colour of a load / mean.
pub(super) fn colour(load: f64) -> usize {
    let above = ABOVE.iter().filter(|&&edge| load >= edge).count();
    let below = BELOW.iter().filter(|&&edge| load <= edge).count();
    MEAN + above - below
}

/// Blocks from the least load to the most, and from where each is.
pub(super) const BLOCKS: [(char, f64); 8] =
    [('▁', 0.0), ('▂', 0.5), ('▃', 0.8), ('▄', 0.95), ('▅', 1.05), ('▆', 1.2), ('▇', 1.5), ('█', 2.0)];

/// The block of a load / mean.
pub(super) fn block(load: f64) -> char {
    BLOCKS.iter().rev().find(|(_, from)| load >= *from).map_or(BLOCKS[0].0, |&(block, _)| block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::eyes::{distance, lab, EYES};

    #[test]
    fn the_mean_is_in_the_middle() {
        for (load, want) in [
            (0.0, 0),
            (0.5, 0),
            (0.51, 1),
            (0.979, 5),
            (0.981, 6),
            (1.0, 6),
            (1.019, 6),
            (1.02, 7),
            (1.5, 11),
            (9.0, 12),
        ] {
            assert_eq!(colour(load), want, "{load}");
        }
        for (load, want) in [(0.0, '▁'), (0.5, '▂'), (1.0, '▄'), (1.05, '▅'), (2.0, '█'), (99.0, '█')]
        {
            assert_eq!(block(load), want, "{load}");
        }
    }

    #[test]
    fn the_colours_differ_for_every_eye() {
        for eye in EYES {
            let seen: Vec<[f64; 3]> = COLOURS.iter().chain([&GAP]).map(|&colour| lab(colour, eye)).collect();
            for (i, a) in seen.iter().enumerate() {
                for (j, b) in seen[..i].iter().enumerate() {
                    let distance = distance(*a, *b);
                    // CIE 1976: 2.3 is just noticeable.
                    assert!(distance > 7.0, "{i} {j}: {distance}");
                }
            }
            // Darker and darker away from the mean, for grey printers and eyes without colours too.
            for i in 0..MEAN {
                assert!(seen[i][0] + 5.0 < seen[i + 1][0], "{i}: {seen:?}");
                assert!(seen[12 - i][0] + 5.0 < seen[11 - i][0], "{i}: {seen:?}");
            }
        }
    }
}
