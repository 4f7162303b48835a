//! What no placement can beat that keeps each group of experts on one node, with equally many groups on each.
//!
//! Some node carries at least the load of the heaviest node in the best packing of the groups, and one of its GPUs
//! at least that / GPUs per node. With k groups on each of N nodes the best packing is
//!
//! ```text
//! k = 1         the heaviest group
//! k = 2         the heaviest with the lightest, and so on inwards: optimal by exchange
//! N k <= 12     found by trying all
//! otherwise     bounded: of the j N + 1 heaviest groups some node holds j + 1, with k - j - 1 others
//! ```

use super::problem::{total, Problem};

/// Room to find the bound of one layer.
pub(super) struct NodeBound {
    group_size: usize,
    groups_per_node: usize,
    gpus_per_node: usize,
    /// `[num_groups]`, heaviest first.
    groups: Vec<f64>,
    nodes: Vec<Node>,
}

/// A node while all packings are tried.
#[derive(Clone, Copy)]
struct Node {
    load: f64,
    groups: usize,
}

/// So many groups are packed in all ways: 15400 at most, for 4 nodes with 3 groups each.
const TRIED_GROUPS_MAX: usize = 12;
/// So many of the pigeons' bounds are looked at; each is valid alone, and the first ones are the best.
const PIGEONS_MAX: usize = 64;

impl NodeBound {
    /// None where nodes and groups do not bind.
    pub(super) fn new(problem: &Problem) -> Option<NodeBound> {
        if !problem.is_hierarchical() || problem.num_nodes == 1 {
            return None;
        }
        Some(NodeBound {
            group_size: problem.num_experts / problem.num_groups,
            groups_per_node: problem.num_groups / problem.num_nodes,
            gpus_per_node: problem.num_gpus / problem.num_nodes,
            groups: Vec::with_capacity(problem.num_groups),
            nodes: vec![Node { load: 0.0, groups: 0 }; problem.num_nodes],
        })
    }

    /// Some GPU carries at least this.
    pub(super) fn heaviest_gpu(&mut self, loads: &[f32]) -> f64 {
        self.groups.clear();
        self.groups.extend(loads.chunks_exact(self.group_size).map(total));
        self.groups.sort_unstable_by(|a, b| b.total_cmp(a));
        self.heaviest_node() / self.gpus_per_node as f64
    }

    fn heaviest_node(&mut self) -> f64 {
        let groups = &self.groups;
        match self.groups_per_node {
            1 => groups[0],
            2 => {
                let pairs = groups.iter().zip(groups.iter().rev());
                pairs.map(|(heavy, light)| heavy + light).fold(0.0, f64::max)
            }
            _ if groups.len() <= TRIED_GROUPS_MAX => {
                self.nodes.fill(Node { load: 0.0, groups: 0 });
                self.least_by_trying_all(0, 0.0, f64::INFINITY)
            }
            _ => self.pigeons(),
        }
    }

    /// The least load of the heaviest node, if less than `best`, that carries `heaviest` before `group` is placed.
    fn least_by_trying_all(&mut self, group: usize, heaviest: f64, best: f64) -> f64 {
        if heaviest >= best || group == self.groups.len() {
            return heaviest.min(best);
        }
        let mut best = best;
        for node in 0..self.nodes.len() {
            let before = self.nodes[node];
            if before.groups == self.groups_per_node {
                continue;
            }
            let load = before.load + self.groups[group];
            let groups = before.groups + 1;
            self.nodes[node] = Node { load, groups };
            best = self.least_by_trying_all(group + 1, heaviest.max(load), best);
            self.nodes[node] = before;
            if before.groups == 0 {
                // The other empty nodes are the same.
                break;
            }
        }
        best
    }

    fn pigeons(&self) -> f64 {
        let (groups, per_node) = (&self.groups, self.groups_per_node);
        let num_nodes = self.nodes.len();
        let bounds = (0..per_node.min(PIGEONS_MAX)).map(|j| {
            let together = &groups[j * num_nodes - j..=j * num_nodes];
            let others = &groups[groups.len() - (per_node - j - 1)..];
            together.iter().sum::<f64>() + others.iter().sum::<f64>()
        });
        bounds.fold(0.0, f64::max)
    }
}
