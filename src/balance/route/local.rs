//! Tokens kept near their senders: of all splits whose heaviest GPU is as light as can be, one that costs least.
//!
//! A token that leaves its sender's GPU has a price, and one that leaves its node another besides. Of the tokens of an
//! expert on GPU g, as many as were sent from g stay there, the others come from elsewhere; likewise on a node. So a
//! split earns, for each link, the price of min(carried, sent from this GPU), and for each expert and node that of
//! min(carried on the node, sent from the node); both can be had at once. That is a flow of least cost in
//!
//! ```text
//!            ⌈ sent from this node │ -node price ⌉           ⌈ sent from this GPU │ -GPU price ⌉
//! expert ──> ⌊ no limit            │ 0           ⌋ ─> site ─> ⌊ no limit           │ 0          ⌋ ─> GPU ≤ heaviest
//! ```
//!
//! where a site is an expert on a node. It starts from a split that earns all there is, which makes some GPUs too
//! heavy, and moves their surplus along cheapest paths: least cost is kept by each, see `flow`. In tiles, parts of a
//! tile that were sent from near do not count.

use std::ops::Range;

use super::super::cluster::Cluster;
use super::flow::{Edge, Network, NO_LIMIT};
use super::level::Leveller;
use super::links::Links;

/// Room to split one placement's tokens.
pub(super) struct Locality {
    num_gpus: usize,
    /// `[num_gpus]`: the GPUs, node by node.
    gpus: Vec<u32>,
    /// `[num_nodes + 1]`: node n has `gpus[first_gpu[n] .. first_gpu[n + 1]]`.
    first_gpu: Vec<u32>,
    /// The sites of the shared experts in the order of their links; those of an expert follow each other.
    sites: Vec<Site>,
    /// `[shared experts + 1]`: the sites of each.
    first_site: Vec<u32>,
    edges: Vec<Edge>,
    network: Network,
    prices: Option<Prices>,
    /// `[links]`: tokens that are sent from the link's own GPU.
    near: Vec<i64>,
}

/// An expert on a node.
struct Site {
    expert: u32,
    node: u32,
    first_link: u32,
    end_link: u32,
}

/// What a token costs that leaves its GPU, and what it costs besides if it leaves the node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Prices {
    pub(super) gpu: u32,
    pub(super) node: u32,
}

/// What is to be split.
pub(super) struct Step<'a> {
    /// `[num_gpus, num_experts]` tokens.
    pub(super) sent: &'a [u32],
    /// `[num_experts]` tiles.
    pub(super) units: &'a [u64],
    pub(super) tile: u32,
    /// Tiles.
    pub(super) heaviest: u64,
    pub(super) prices: Prices,
}

impl Site {
    fn links(&self) -> Range<usize> {
        self.first_link as usize..self.end_link as usize
    }
}

impl Locality {
    pub(super) fn new(cluster: &Cluster, links: &Links, shared: &[u32]) -> Locality {
        let node = |gpu: usize| cluster.node_of_gpu()[gpu];
        let mut gpus: Vec<u32> = (0..cluster.num_gpus() as u32).collect();
        gpus.sort_by_key(|&gpu| node(gpu as usize));
        let first = |n: usize| gpus.partition_point(|&gpu| (node(gpu as usize) as usize) < n) as u32;
        let first_gpu = (0..=cluster.num_nodes()).map(first).collect();
        let mut sites: Vec<Site> = Vec::new();
        let mut first_site = vec![0];
        for &expert in shared {
            for link in links.of(expert as usize) {
                let node = node(links.gpu(link));
                match sites.last_mut() {
                    Some(site) if (site.expert, site.node) == (expert, node) => site.end_link += 1,
                    _ => {
                        sites.push(Site { expert, node, first_link: link as u32, end_link: link as u32 + 1 })
                    }
                }
            }
            first_site.push(sites.len() as u32);
        }

        let near = vec![0; links.len()];
        let (edges, network) = (Vec::new(), Network::new());
        let mut locality = Locality {
            num_gpus: cluster.num_gpus(),
            gpus,
            first_gpu,
            sites,
            edges,
            network,
            prices: None,
            near,
            first_site,
        };
        locality.connect(links, Prices { gpu: 0, node: 0 });
        locality
    }

    /// The GPUs of a node.
    pub(super) fn gpus_of_node(&self, node: usize) -> &[u32] {
        &self.gpus[self.first_gpu[node] as usize..self.first_gpu[node + 1] as usize]
    }

    /// The nodes of the network are GPUs, then sites, then experts; each of its edges is two, the first of which earns.
    fn connect(&mut self, links: &Links, prices: Prices) {
        if self.prices == Some(prices) {
            return;
        }
        self.prices = Some(prices);
        self.edges.clear();
        let mut num_nodes = self.num_gpus + self.sites.len();
        let mut expert_before = u32::MAX;
        for (index, site) in self.sites.iter().enumerate() {
            if site.expert != expert_before {
                num_nodes += 1;
                expert_before = site.expert;
            }
            let (expert, node) = (num_nodes as u32 - 1, (self.num_gpus + index) as u32);
            let mut connect = |from: u32, to: u32, price: u32| {
                self.edges.push(Edge { from, to, cost: -(price as i32) });
                self.edges.push(Edge { from, to, cost: 0 });
            };
            connect(expert, node, prices.node);
            for link in site.links() {
                connect(node, links.gpu(link) as u32, prices.gpu);
            }
        }
        self.network.connect(num_nodes, &self.edges);
    }

    /// Splits anew what `leveller` has split, with no GPU heavier than `step.heaviest`, which there is a way for.
    pub(super) fn split(&mut self, links: &Links, leveller: &mut Leveller, step: &Step<'_>) {
        self.connect(links, step.prices);
        leveller.take_out_shared(links);
        let heaviest = step.heaviest as i64;
        let loads = self.network.surplus.iter_mut().zip(&leveller.gpu_loads);
        loads.for_each(|(surplus, &load)| *surplus = load as i64 - heaviest);
        self.network.surplus[self.num_gpus..].fill(0);
        let mut edge = 0;
        for index in 1..self.first_site.len() {
            let sites = self.first_site[index - 1] as usize..self.first_site[index] as usize;
            self.earn_all(links, leveller, step, sites.clone());
            for site in sites {
                edge = self.set_flows(leveller, step, site, edge);
            }
        }
        let is_carried = self.network.carry();
        debug_assert!(is_carried, "there is a split with no GPU above {heaviest}");
        edge = 0;
        for site in &self.sites {
            edge += 2;
            for link in site.links() {
                leveller.carried[link] = (self.network.flow(edge) + self.network.flow(edge + 1)) as u64;
                edge += 2;
            }
        }
        let loads = leveller.gpu_loads.iter_mut().zip(&self.network.surplus);
        loads.for_each(|(load, &surplus)| *load = (heaviest + surplus) as u64);
    }

    /// Splits the expert of these sites so that it earns all it can, however heavy GPUs become.
    fn earn_all(&mut self, links: &Links, leveller: &mut Leveller, step: &Step<'_>, sites: Range<usize>) {
        let expert = self.sites[sites.start].expert as usize;
        let mut left = step.units[expert] as i64;
        for link in links.of(expert) {
            let gpu = links.gpu(link);
            self.near[link] = i64::from(step.sent[gpu * links.num_experts() + expert] / step.tile);
            leveller.carried[link] = self.near[link] as u64;
            self.network.surplus[gpu] += self.near[link];
            left -= self.near[link];
        }
        for site in sites {
            let links_of_site = self.sites[site].links();
            let on_gpus: i64 = self.near[links_of_site.clone()].iter().sum();
            let on_node = self.near_node(site, step) - on_gpus;
            self.put(links, leveller, links_of_site, on_node);
            left -= on_node;
        }
        self.put(links, leveller, links.of(expert), left);
    }

    /// Sets the flows of a site that earns all, on the edges from `edge` on; returns the edge after them.
    fn set_flows(&mut self, leveller: &Leveller, step: &Step<'_>, site: usize, mut edge: usize) -> usize {
        let links = self.sites[site].links();
        let carried: u64 = leveller.carried[links.clone()].iter().sum();
        let near = self.near_node(site, step);
        self.set_pair(edge, carried, near);
        for link in links {
            edge += 2;
            self.set_pair(edge, leveller.carried[link], self.near[link]);
        }
        edge + 2
    }

    /// Sets the flow of an edge that earns up to its limit `near`, and of the next, which has none and earns nothing.
    fn set_pair(&mut self, edge: usize, carried: u64, near: i64) {
        self.network.set_flow(edge, near, near);
        self.network.set_flow(edge + 1, carried as i64 - near, NO_LIMIT);
    }

    /// What a site earns with at most: tiles that are sent from its node.
    fn near_node(&self, site: usize, step: &Step<'_>) -> i64 {
        let Site { expert, node, .. } = self.sites[site];
        let gpus = self.gpus_of_node(node as usize).iter();
        let num_experts = step.units.len();
        let sent = gpus.map(|&gpu| u64::from(step.sent[gpu as usize * num_experts + expert as usize]));
        (sent.sum::<u64>() / u64::from(step.tile)) as i64
    }

    /// Puts `amount` on some links of an expert, in order as far as their GPUs have room, what is left on the first.
    fn put(&mut self, links: &Links, leveller: &mut Leveller, some: Range<usize>, amount: i64) {
        let mut left = amount;
        for link in some.clone() {
            let surplus = &mut self.network.surplus[links.gpu(link)];
            let part = left.min(-*surplus).max(0);
            *surplus += part;
            leveller.carried[link] += part as u64;
            left -= part;
        }
        self.network.surplus[links.gpu(some.start)] += left;
        leveller.carried[some.start] += left as u64;
    }
}
