//! Fewer rounds than this no plan for a layer has.
//!
//! ```text
//! receives  a GPU gets each expert that it wants and holds nowhere from another GPU, at least once
//! sends     a GPU sends each expert that nobody else holds and another GPU wants, at least once
//! doubling  after r rounds at most h (1 + sends)^r GPUs hold an expert that h of them held at first
//! links     what a node does not hold comes over the links of its other nodes, and what only it holds leaves over them
//! cycle     a closed cycle needs a round to stage an expert and one after it
//! ```
//!
//! Order and contention are not counted: the least number may be higher. `O(slots + experts + GPUs)`.

use super::needs::{reset, Needs};
use super::stock::Stock;
use super::TransferOptions;
use crate::balance::cluster::Cluster;

/// Room to count.
#[derive(Default)]
pub(super) struct RoundBound {
    /// `[num_gpus]`
    receives: Vec<usize>,
    sends: Vec<usize>,
    /// `[num_nodes]`
    arrivals: Vec<usize>,
    departures: Vec<usize>,
}

impl RoundBound {
    /// For needs and stock as they are before the first round.
    pub(super) fn least_rounds(
        &mut self,
        cluster: &Cluster,
        needs: &Needs,
        stock: &Stock,
        options: &TransferOptions<'_>,
    ) -> usize {
        reset(&mut self.receives, cluster.num_gpus(), 0);
        reset(&mut self.sends, cluster.num_gpus(), 0);
        reset(&mut self.arrivals, cluster.num_nodes(), 0);
        reset(&mut self.departures, cluster.num_nodes(), 0);
        let mut least = 0;
        let (mut gpu_group, mut node_group) = (0, 0);
        for all in &stock.anywhere {
            let gpus = next_groups(&stock.on_gpu, &mut gpu_group, all.end);
            let nodes = next_groups(&stock.on_node, &mut node_group, all.end);
            if all.left == 0 {
                continue;
            }
            least = least.max(1);
            let slot = |entry: u32| needs.entries[entry as usize] as usize;
            let gpu = |entry: u32| cluster.gpu_of_slot()[slot(entry)] as usize;
            let node = |entry: u32| cluster.node_of_gpu()[gpu(entry)] as usize;
            let (mut holding_gpus, mut wanting_gpus, mut holder) = (0usize, 0usize, 0);
            for group in gpus {
                if group.holders > 0 {
                    holding_gpus += 1;
                    holder = gpu(group.first);
                } else {
                    wanting_gpus += 1;
                    self.receives[gpu(group.first)] += 1;
                }
            }
            if holding_gpus == 1 && wanting_gpus > 0 {
                self.sends[holder] += 1;
            }
            least = least.max(doublings(holding_gpus, wanting_gpus, options.sends_per_gpu));
            let (mut holding_nodes, mut wanting_nodes, mut holder) = (0usize, 0usize, 0);
            for group in nodes {
                if group.holders > 0 {
                    holding_nodes += 1;
                    holder = node(group.first);
                } else {
                    wanting_nodes += 1;
                    self.arrivals[node(group.first)] += 1;
                }
            }
            if holding_nodes == 1 && wanting_nodes > 0 {
                self.departures[holder] += 1;
            }
        }
        let most = |counts: &[usize]| counts.iter().copied().max().unwrap_or(0);
        let links = options.copies_per_node_link.saturating_mul(num_live_nodes(cluster) - 1);
        let over_links = match links {
            0 => 0,
            links => most(&self.arrivals).max(most(&self.departures)).div_ceil(links),
        };
        let of_cycle = if needs.cycle_ends.is_empty() { 0 } else { 2 };
        let receives = most(&self.receives).div_ceil(options.receives_per_gpu);
        let sends = most(&self.sends).div_ceil(options.sends_per_gpu);
        least.max(receives).max(sends).max(over_links).max(of_cycle)
    }
}

/// The groups up to an entry.
fn next_groups<'a>(
    groups: &'a [super::stock::Group],
    next: &mut usize,
    end: u32,
) -> &'a [super::stock::Group] {
    let first = *next;
    while groups.get(*next).is_some_and(|group| group.end <= end) {
        *next += 1;
    }
    &groups[first..*next]
}

fn doublings(holding: usize, wanting: usize, sends_per_gpu: usize) -> usize {
    let (mut reached, mut rounds) = (holding, 0);
    while reached < holding + wanting {
        reached = reached.saturating_add(reached.saturating_mul(sends_per_gpu));
        rounds += 1;
    }
    rounds
}

fn num_live_nodes(cluster: &Cluster) -> usize {
    let mut nodes: Vec<u32> = cluster.live_gpus().map(|gpu| cluster.node_of_gpu()[gpu]).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.len()
}
