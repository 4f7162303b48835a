//! What a change of placement moves: each slot that holds another expert than before, by how near the expert was.

use std::ops::Add;

use crate::balance::{moves, Cluster};
use crate::error::Result;

/// Slots whose expert is not the one they held before, by where the nearest copy of it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// In another slot of the same GPU.
    pub same_gpu: u64,
    /// On another GPU of the same node.
    pub same_node: u64,
    /// On another node.
    pub other_node: u64,
    /// What the moves of `same_node` carry; saturates.
    pub same_node_bytes: u64,
    /// What the moves of `other_node` carry; saturates.
    pub other_node_bytes: u64,
}

impl Moves {
    /// Moves from GPU to GPU.
    pub fn between_gpus(&self) -> u64 {
        self.same_node + self.other_node
    }
}

impl Add for Moves {
    type Output = Moves;

    fn add(self, other: Moves) -> Moves {
        Moves {
            same_gpu: self.same_gpu + other.same_gpu,
            same_node: self.same_node + other.same_node,
            other_node: self.other_node + other.other_node,
            same_node_bytes: self.same_node_bytes.saturating_add(other.same_node_bytes),
            other_node_bytes: self.other_node_bytes.saturating_add(other.other_node_bytes),
        }
    }
}

/// What it takes to get from one placement to another, both `[num_layers, num_slots]`; what no GPU held any more
/// counts as if it came from another node.
///
/// # Errors
///
/// As of [`moves`].
pub(super) fn count(
    cluster: &Cluster,
    num_experts: usize,
    expert_bytes: u64,
    before: &[u32],
    after: &[u32],
) -> Result<Moves> {
    let mut sum = Moves::default();
    for layer in moves(cluster, num_experts, before, after)? {
        sum.same_gpu += layer.same_gpu as u64;
        sum.same_node += layer.same_node as u64;
        sum.other_node += (layer.other_node + layer.lost) as u64;
    }
    sum.same_node_bytes = sum.same_node.saturating_mul(expert_bytes);
    sum.other_node_bytes = sum.other_node.saturating_mul(expert_bytes);
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::EMPTY;

    #[test]
    fn moves_are_counted_by_the_nearest_copy() {
        // Nodes {0, 2} and {1}: GPU by GPU 0 1 | 2 3 | 4 0.
        let cluster = Cluster::new(&[2, 2, 2], &[0, 1, 0], &[]).unwrap();
        let before = [0, 1, 2, 3, 4, 0];
        let count = |before: &[u32], after: &[u32]| count(&cluster, 5, 10, before, after).unwrap();
        for (after, want) in [
            ([0, 1, 2, 3, 4, 0], [0, 0, 0]),
            ([1, 0, 3, 2, 0, 4], [6, 0, 0]),
            ([4, 1, 2, 3, 4, 1], [0, 2, 0]),
            ([3, 1, 2, 0, 4, 0], [0, 0, 2]),
            ([0, 0, 2, 2, 1, 3], [2, 1, 1]),
            ([EMPTY, 4, 1, 3, 4, 0], [0, 1, 1]),
        ] {
            let moves = count(&before, &after);
            assert_eq!([moves.same_gpu, moves.same_node, moves.other_node], want, "{after:?}");
            assert_eq!([moves.same_node_bytes, moves.other_node_bytes], [10 * want[1], 10 * want[2]]);
        }
        // Where an expert is in one layer says nothing of another.
        let other = [2, 0, 1, 3, 4, 0];
        let moves = count(&[before, other].concat(), &[before, [1, 0, 1, 3, 4, 2]].concat());
        assert_eq!([moves.same_gpu, moves.same_node, moves.other_node], [0, 1, 1]);
        // Layers add up.
        let moves = count(&[before, before].concat(), &[1, 0, 2, 3, 4, 0, 0, 1, 2, 3, 4, 2]);
        assert_eq!((moves.same_gpu, moves.between_gpus()), (2, 1));
    }
}
