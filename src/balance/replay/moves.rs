//! What a change of placement moves: each slot that holds another expert than before, by how near the expert was.

use std::ops::Add;

use crate::balance::cluster::{Cluster, EMPTY};

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

/// Counts moves in `O(num_slots)` a layer.
pub(super) struct MoveCount<'a> {
    cluster: &'a Cluster,
    expert_bytes: u64,
    /// The live GPUs, those of a node one after the other.
    gpus_by_node: Vec<usize>,
    /// `[num_experts]`: GPU and node, counted from 1, that were last found to have held the expert.
    last_gpu: Vec<usize>,
    last_node: Vec<usize>,
}

impl<'a> MoveCount<'a> {
    pub(super) fn new(cluster: &'a Cluster, num_experts: usize, expert_bytes: u64) -> MoveCount<'a> {
        let mut gpus_by_node: Vec<usize> = cluster.live_gpus().collect();
        gpus_by_node.sort_by_key(|&gpu| cluster.node_of_gpu()[gpu]);
        let (last_gpu, last_node) = (vec![0; num_experts], vec![0; num_experts]);
        MoveCount { cluster, expert_bytes, gpus_by_node, last_gpu, last_node }
    }

    /// What it takes to get from one placement to another, both `[num_layers, num_slots]` and verified.
    pub(super) fn count(&mut self, before: &[u32], after: &[u32]) -> Moves {
        let num_slots = self.cluster.num_slots();
        let mut moves = Moves::default();
        for (before, after) in before.chunks_exact(num_slots).zip(after.chunks_exact(num_slots)) {
            self.count_layer(before, after, &mut moves);
        }
        moves.same_node_bytes = moves.same_node.saturating_mul(self.expert_bytes);
        moves.other_node_bytes = moves.other_node.saturating_mul(self.expert_bytes);
        moves
    }

    fn count_layer(&mut self, before: &[u32], after: &[u32], moves: &mut Moves) {
        let MoveCount { cluster, gpus_by_node, last_gpu, last_node, .. } = self;
        last_gpu.fill(0);
        last_node.fill(0);
        let node_of = |gpu: usize| cluster.node_of_gpu()[gpu] as usize + 1;
        for gpus in gpus_by_node.chunk_by(|&a, &b| node_of(a) == node_of(b)) {
            let node = node_of(gpus[0]);
            for slot in gpus.iter().flat_map(|&gpu| cluster.slots(gpu)).filter(|&slot| before[slot] != EMPTY)
            {
                last_node[before[slot] as usize] = node;
            }
            for &gpu in gpus {
                for slot in cluster.slots(gpu).filter(|&slot| before[slot] != EMPTY) {
                    last_gpu[before[slot] as usize] = gpu + 1;
                }
                for slot in
                    cluster.slots(gpu).filter(|&slot| after[slot] != before[slot] && after[slot] != EMPTY)
                {
                    let expert = after[slot] as usize;
                    *match () {
                        () if last_gpu[expert] == gpu + 1 => &mut moves.same_gpu,
                        () if last_node[expert] == node => &mut moves.same_node,
                        () => &mut moves.other_node,
                    } += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_counted_by_the_nearest_copy() {
        // Nodes {0, 2} and {1}: GPU by GPU 0 1 | 2 3 | 4 0.
        let cluster = Cluster::new(&[2, 2, 2], &[0, 1, 0], &[]).unwrap();
        let before = [0, 1, 2, 3, 4, 0];
        let mut move_count = MoveCount::new(&cluster, 5, 10);
        for (after, want) in [
            ([0, 1, 2, 3, 4, 0], [0, 0, 0]),
            ([1, 0, 3, 2, 0, 4], [6, 0, 0]),
            ([4, 1, 2, 3, 4, 1], [0, 2, 0]),
            ([3, 1, 2, 0, 4, 0], [0, 0, 2]),
            ([0, 0, 2, 2, 1, 3], [2, 1, 1]),
            ([EMPTY, 4, 1, 3, 4, 0], [0, 1, 1]),
        ] {
            let moves = move_count.count(&before, &after);
            assert_eq!([moves.same_gpu, moves.same_node, moves.other_node], want, "{after:?}");
            assert_eq!([moves.same_node_bytes, moves.other_node_bytes], [10 * want[1], 10 * want[2]]);
        }
        // Where an expert is in one layer says nothing of another.
        let other = [2, 0, 1, 3, 4, 0];
        let moves = move_count.count(&[before, other].concat(), &[before, [1, 0, 1, 3, 4, 2]].concat());
        assert_eq!([moves.same_gpu, moves.same_node, moves.other_node], [0, 1, 1]);
        // Layers add up.
        let moves = move_count.count(&[before, before].concat(), &[1, 0, 2, 3, 4, 0, 0, 1, 2, 3, 4, 2]);
        assert_eq!((moves.same_gpu, moves.between_gpus()), (2, 1));
    }
}
