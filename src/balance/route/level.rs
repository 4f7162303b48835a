//! The heaviest GPU as light as can be, by a flow: which part of each expert's load goes to which of its GPUs.
//!
//! Loads are whole units: tokens, tiles, or small parts of a load. For a set X of GPUs let L(X) be the load of the
//! experts that are on GPUs of X only. It stays in X, so that the heaviest GPU carries at least L(X) / |X|:
//!
//! ```text
//! heaviest  =  max over X of ⌈ L(X) / |X| ⌉
//! ```
//!
//! and the algorithm finds a split that reaches it, with its X, by Newton's method on sets (Dinkelbach; Radzik 1992):
//!
//! 1. T = the greater of ⌈L(all) / GPUs⌉ and the greatest load of one GPU that can go nowhere else.
//! 2. Move load from GPUs above T to GPUs below T along shared experts, as long as there is a way.
//! 3. If none is above T: done. Otherwise let X be the GPUs that can be reached from those above. Each carries at least
//!    T, and whoever has load there is on GPUs of X only: their loads add up to L(X) > T |X|. T = ⌈L(X) / |X|⌉; go on.
//!
//! T never exceeds the maximum, for it is one of its terms; when it stops it is reached. No set occurs twice, and each
//! is smaller than the one before: at most one round for each GPU, seldom more than three.
//!
//! Only experts on several GPUs are in the network, so that it is as small as the number of redundant slots.

use super::super::cluster::Cluster;
use super::flow::{Edge, Network, NO_LIMIT};
use super::links::Links;

/// Room to find the split of one placement's loads.
pub(in super::super) struct Leveller {
    num_gpus: usize,
    live_gpus: Vec<u32>,
    network: Network,
    edges: Vec<Edge>,
    /// Experts on one GPU: `(expert, link)`.
    fixed: Vec<(u32, u32)>,
    /// Experts on several.
    shared: Vec<u32>,
    /// `[links]`: what of its expert each link carries.
    pub(in super::super) carried: Vec<u64>,
    /// `[num_gpus]`
    pub(in super::super) gpu_loads: Vec<u64>,
    /// The GPUs of the set that the heaviest cannot be lighter for.
    pub(in super::super) bottleneck: Vec<u32>,
}

/// How level it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Level {
    /// The load of the heaviest GPU.
    pub(in super::super) heaviest: u64,
    /// L(X) of the bottleneck X: `heaviest` is ⌈L(X) / |X|⌉.
    pub(in super::super) bottleneck_load: u64,
}

impl Leveller {
    pub(in super::super) fn new(cluster: &Cluster) -> Leveller {
        Leveller {
            num_gpus: cluster.num_gpus(),
            live_gpus: cluster.live_gpus().map(|gpu| gpu as u32).collect(),
            network: Network::new(),
            edges: Vec::new(),
            fixed: Vec::new(),
            shared: Vec::new(),
            carried: Vec::new(),
            gpu_loads: vec![0; cluster.num_gpus()],
            bottleneck: Vec::with_capacity(cluster.num_gpus()),
        }
    }

    /// Takes in the links of a placement. Node g of the network is GPU g, the others are the shared experts.
    pub(in super::super) fn read(&mut self, links: &Links) {
        self.fixed.clear();
        self.shared.clear();
        self.edges.clear();
        for expert in 0..links.num_experts() {
            let of = links.of(expert);
            if of.len() == 1 {
                self.fixed.push((expert as u32, of.start as u32));
            } else if of.len() > 1 {
                let from = (self.num_gpus + self.shared.len()) as u32;
                self.shared.push(expert as u32);
                self.edges.extend(of.map(|link| Edge { from, to: links.gpu(link) as u32, cost: 0 }));
            }
        }
        self.network.connect(self.num_gpus + self.shared.len(), &self.edges);
        self.carried.clear();
        self.carried.resize(links.len(), 0);
    }

    /// The experts on several GPUs, in order.
    pub(in super::super) fn shared(&self) -> &[u32] {
        &self.shared
    }

    /// Splits the load of each expert; who has a load is on a GPU. Loads add up to at most 2^56. Fills `carried` and
    /// `gpu_loads`.
    pub(in super::super) fn level(&mut self, links: &Links, load: impl Fn(usize) -> u64) -> Level {
        self.gpu_loads.fill(0);
        let mut total = 0;
        for &(expert, link) in &self.fixed {
            let load = load(expert as usize);
            self.carried[link as usize] = load;
            self.gpu_loads[links.gpu(link as usize)] += load;
            total += load;
        }
        total += self.shared.iter().map(|&expert| load(expert as usize)).sum::<u64>();

        let mut heaviest = total.div_ceil(self.live_gpus.len() as u64);
        let mut bottleneck_load = total;
        self.bottleneck.clone_from(&self.live_gpus);
        for (gpu, &load) in self.gpu_loads.iter().enumerate() {
            if load > heaviest {
                (heaviest, bottleneck_load) = (load, load);
                self.bottleneck.clear();
                self.bottleneck.push(gpu as u32);
            }
        }
        self.fill(links, heaviest, load);
        while !self.network.carry() {
            let reached = |gpu: &usize| self.network.is_reached(*gpu);
            self.bottleneck.clear();
            self.bottleneck.extend((0..self.num_gpus).filter(reached).map(|gpu| gpu as u32));
            let above = |&gpu: &u32| self.network.surplus[gpu as usize];
            let above: i64 = self.bottleneck.iter().map(above).sum();
            let size = self.bottleneck.len() as u64;
            bottleneck_load = heaviest * size + above as u64;
            let raise = (above as u64).div_ceil(size);
            heaviest += raise;
            self.network.surplus[..self.num_gpus].iter_mut().for_each(|surplus| *surplus -= raise as i64);
        }
        for (load, &surplus) in self.gpu_loads.iter_mut().zip(&self.network.surplus) {
            *load = (heaviest as i64 + surplus) as u64;
        }
        let mut edge = 0;
        for &expert in &self.shared {
            for link in links.of(expert as usize) {
                self.carried[link] = self.network.flow(edge) as u64;
                edge += 1;
            }
        }
        Level { heaviest, bottleneck_load }
    }

    /// Takes the shared experts off the loads of the GPUs again.
    pub(super) fn take_out_shared(&mut self, links: &Links) {
        for &expert in &self.shared {
            for link in links.of(expert as usize) {
                self.gpu_loads[links.gpu(link)] -= self.carried[link];
                self.carried[link] = 0;
            }
        }
    }

    /// A first split: each shared expert onto its GPUs in order as far as they stay below `heaviest`, what is left onto
    /// the first. Most of it stays.
    fn fill(&mut self, links: &Links, heaviest: u64, load: impl Fn(usize) -> u64) {
        let surpluses = self.network.surplus.iter_mut().zip(&self.gpu_loads);
        surpluses.for_each(|(surplus, &load)| *surplus = load as i64 - heaviest as i64);
        let mut edge = 0;
        for &expert in &self.shared {
            let mut left = load(expert as usize) as i64;
            let first = (edge, links.gpu(links.of(expert as usize).start));
            for link in links.of(expert as usize) {
                let surplus = &mut self.network.surplus[links.gpu(link)];
                let flow = left.min(-*surplus).max(0);
                *surplus += flow;
                left -= flow;
                self.network.set_flow(edge, flow, NO_LIMIT);
                edge += 1;
            }
            if left > 0 {
                self.network.surplus[first.1] += left;
                self.network.set_flow(first.0, self.network.flow(first.0) + left, NO_LIMIT);
            }
        }
    }
}
