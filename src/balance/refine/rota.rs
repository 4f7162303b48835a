//! A placement that only sees to it that every expert is on enough GPUs and nodes.
//!
//! The experts take the slots in turn, 0, 1, 2, … and 0 again, GPU by GPU, so that each gets equally many, and none is
//! twice on a GPU, as no GPU has more slots than there are experts. Where they must be on several nodes, the GPUs are
//! taken node by node, and no node's slots beyond one for each expert. What slots are left over go on in turn, without
//! an expert that the GPU has already.
//!
//! This finds a placement whenever there is one for `nodes_min` nodes and no more GPUs than that, or for any number of
//! GPUs on one node. `O(slots log slots)`.

use super::part::Part;

/// Places the part anew.
pub(super) fn take_turns(part: &mut Part) {
    let num_experts = part.loads.len();
    let mut by_node: Vec<usize> = (0..part.num_slots()).collect();
    let node = |slot: usize| part.nodes[part.gpu_of_slot[slot] as usize];
    by_node.sort_by_key(|&slot| (node(slot), slot));
    let (mut in_turn, mut left_over) = (Vec::new(), Vec::new());
    for slots in by_node.chunk_by(|&a, &b| part.nodes_min == 1 || node(a) == node(b)) {
        let most = if part.nodes_min == 1 { slots.len() } else { slots.len().min(num_experts) };
        in_turn.extend_from_slice(&slots[..most]);
        left_over.extend_from_slice(&slots[most..]);
    }
    part.held.clear();
    part.held.resize(part.num_slots(), u32::MAX);
    part.counts.clear();
    part.counts.resize(num_experts, 0);
    let mut turn = (0..num_experts as u32).cycle();
    for (&slot, expert) in in_turn.iter().zip(turn.by_ref()) {
        part.held[slot] = expert;
        part.counts[expert as usize] += 1;
    }
    let mut on_gpu = vec![u32::MAX; num_experts];
    for slots in left_over.chunk_by(|&a, &b| part.gpu_of_slot[a] == part.gpu_of_slot[b]) {
        let gpu = part.gpu_of_slot[slots[0]];
        for &expert in part.held[part.slots(gpu as usize)].iter().filter(|&&expert| expert != u32::MAX) {
            on_gpu[expert as usize] = gpu;
        }
        for &slot in slots {
            // One is absent: the GPU has no more slots than there are experts.
            let absent = turn.by_ref().take(num_experts).find(|&expert| on_gpu[expert as usize] != gpu);
            let expert = absent.unwrap_or(0);
            on_gpu[expert as usize] = gpu;
            part.held[slot] = expert;
            part.counts[expert as usize] += 1;
        }
    }
    part.weigh();
}
