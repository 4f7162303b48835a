//! A step's tokens shared out among the slots of one layer's placement.
//!
//! In tiles: a slot with n tokens is as busy as with ⌈n / tile⌉ * tile, the rows of its matrix product. An expert of n
//! tokens needs ⌈n / tile⌉ tiles at least, and no more if all its slots but one get whole tiles; so the tiles are split
//! as tokens are, and what lacks in an expert's last tile is taken off its last slot.

use super::super::cluster::Cluster;
use super::level::Leveller;
use super::links::Links;
use super::local::{Locality, Prices, Step};
use super::placement::{check_placement, no_replica};
use super::shares::share;
use crate::error::{in_range, Error, Result};

/// Shares out a step's tokens over one placement; made once, then it allocates nothing, except for the first step with
/// counts per sender, whose quotas it makes room for.
///
/// Steps do not influence each other: the same counts are routed alike on every rank and after any other step.
pub struct Router {
    cluster: Cluster,
    links: Links,
    leveller: Leveller,
    locality: Locality,
    /// `[num_experts]`: tokens.
    totals: Vec<u64>,
    /// `[num_experts]`: tiles.
    units: Vec<u64>,
    quotas: Vec<u32>,
    source_quotas: Vec<u32>,
    /// `[num_gpus]`: of one expert, what each sender has left.
    unsent: Vec<u32>,
    /// `[num_slots]`: of one expert, what each slot has left.
    unfilled: Vec<u32>,
}

/// What is to be kept small besides the heaviest GPU, which comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteOptions {
    /// A slot's load counts as a whole number of so many tokens; 1 to 65536, 1 by default.
    pub tile: u32,
    /// Where counts are per sender: the price of a token that leaves its sender's GPU, 0 to 1000, 1 by default. With
    /// both prices 0 senders play no part in the quotas of slots.
    pub gpu_price: u32,
    /// The price, besides, of a token that leaves its sender's node; 0 to 1000, 8 by default.
    pub node_price: u32,
}

impl Default for RouteOptions {
    fn default() -> Self {
        RouteOptions { tile: 1, gpu_price: 1, node_price: 8 }
    }
}

/// How a step is routed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing<'a> {
    /// `[num_slots]`: the tokens that each slot gets. Those of an expert's slots add up to the expert's.
    pub quotas: &'a [u32],
    /// `[num_gpus, num_slots]`, row major: how many of them each GPU sends; empty where counts were not per sender.
    /// Tokens stay on their GPU if they can, else on their node; the others go from the lowest sender to the lowest
    /// slot.
    pub source_quotas: &'a [u32],
    /// `[num_gpus]`: each GPU's load: tokens, or tiles times the tokens of a tile.
    pub gpu_loads: &'a [u64],
    /// The heaviest GPU's load. No whole-numbered routing has a lighter one.
    pub heaviest: u64,
    /// What no routing can beat, even of parts of tokens or tiles: load / GPUs of the bottleneck. `heaviest` is less
    /// than one token (one tile) above it.
    pub bound: f64,
    /// Some GPUs, in order, and the load of experts that are on no other, tokens or tiles times tokens: it stays there
    /// however it is routed. Another replica helps only where it takes some of this load elsewhere.
    pub bottleneck: &'a [u32],
    /// The load of the bottleneck.
    pub bottleneck_load: u64,
    /// Tokens that stay on their sender's GPU; 0 where counts were not per sender.
    pub tokens_on_gpu: u64,
    /// Tokens that stay on their sender's node, or GPU; 0 where counts were not per sender.
    pub tokens_on_node: u64,
}

const TILE_MAX: u32 = 1 << 16;
const PRICE_MAX: u32 = 1000;
const SOURCE_QUOTAS_MAX: usize = 1 << 28;

impl Router {
    /// For a placement of one layer: `slot_to_expert` is `[num_slots]`, [`EMPTY`](super::super::EMPTY) where there is
    /// none. What slots of dead GPUs hold does not matter. `O(num_experts + num_slots + num_gpus)` time and memory.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: `num_experts` outside 1 to 65536, a list of another length, an expert that is out of range.
    pub fn new(cluster: &Cluster, num_experts: usize, slot_to_expert: &[u32]) -> Result<Router> {
        check_placement(cluster, num_experts, slot_to_expert)?;
        let mut links = Links::new(cluster, num_experts);
        links.read(cluster, num_experts, slot_to_expert);
        let mut leveller = Leveller::new(cluster);
        leveller.read(&links);
        let locality = Locality::new(cluster, &links, leveller.shared());
        Ok(Router {
            cluster: cluster.clone(),
            links,
            leveller,
            locality,
            totals: vec![0; num_experts],
            units: vec![0; num_experts],
            quotas: vec![0; cluster.num_slots()],
            source_quotas: Vec::new(),
            unsent: vec![0; cluster.num_gpus()],
            unfilled: vec![0; cluster.num_slots()],
        })
    }

    /// Routes a step of which the totals are known: `counts` is `[num_experts]` tokens.
    ///
    /// Exact, by the flow that docs/routing.md proves: with r slots of experts on several GPUs `O(r)` for each of its
    /// searches, of which there are a handful.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a list of another length, more than 2^32 - 1 tokens, tokens for an expert that no live GPU
    /// has, options out of range. Nothing is changed then.
    pub fn route(&mut self, counts: &[u32], options: &RouteOptions) -> Result<Routing<'_>> {
        check_options(options)?;
        let num_experts = self.totals.len();
        in_range("route", "the number of counts", counts.len(), num_experts..=num_experts)?;
        self.totals.iter_mut().zip(counts).for_each(|(total, &count)| *total = u64::from(count));
        self.check_totals()?;
        let (heaviest, bottleneck_load) = self.level(options.tile);
        self.fill_quotas(options.tile);
        Ok(self.routing(options.tile, heaviest, bottleneck_load, None))
    }

    /// Routes a step of which the senders are known: `counts` is `[num_gpus, num_experts]`, row major, the tokens
    /// that each GPU sends to each expert; dead ones may. Of all splits with the least heaviest GPU it takes one of
    /// the least price; with tiles, as far as whole tiles go.
    ///
    /// `O(num_gpus * (num_experts + num_slots))` to read and write, besides what [`Router::route`] takes.
    ///
    /// # Errors
    ///
    /// As [`Router::route`]; and more than 2^28 quotas of senders.
    pub fn route_from(&mut self, counts: &[u32], options: &RouteOptions) -> Result<Routing<'_>> {
        check_options(options)?;
        let (num_gpus, num_experts) = (self.cluster.num_gpus(), self.totals.len());
        let size = num_gpus * num_experts; // at most 2^36
        in_range("route", "the number of counts", counts.len(), size..=size)?;
        let size = num_gpus * self.cluster.num_slots();
        in_range("route", "num_gpus * num_slots", size, 1..=SOURCE_QUOTAS_MAX)?;
        self.totals.fill(0);
        for sent in counts.chunks_exact(num_experts) {
            self.totals.iter_mut().zip(sent).for_each(|(total, &count)| *total += u64::from(count));
        }
        self.check_totals()?;
        let (heaviest, bottleneck_load) = self.level(options.tile);
        let prices = Prices { gpu: options.gpu_price, node: options.node_price };
        if prices.gpu + prices.node > 0 {
            let Router { links, leveller, locality, units, .. } = self;
            let step = Step { sent: counts, units, tile: options.tile, heaviest, prices };
            locality.split(links, leveller, &step);
        }
        self.fill_quotas(options.tile);
        let near = self.fill_source_quotas(counts);
        Ok(self.routing(options.tile, heaviest, bottleneck_load, Some(near)))
    }

    /// The shares of each slot in its expert's tokens that make the heaviest GPU as light as can be if the loads are
    /// these (to 2^-44 of them all for each expert): `loads` is `[num_experts]`, `shares` becomes `[num_slots]`,
    /// those of an expert adding up to 1. An expert without load is shared equally. Returns the heaviest GPU's load.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a list of another length, a load that is negative, infinite or not a number, loads that add
    /// up to more than 1e300, a load of an expert that no live GPU has.
    pub fn shares(&mut self, loads: &[f64], shares: &mut [f64]) -> Result<f64> {
        let (num_experts, num_slots) = (self.totals.len(), self.cluster.num_slots());
        in_range("route", "the number of loads", loads.len(), num_experts..=num_experts)?;
        in_range("route", "the number of shares", shares.len(), num_slots..=num_slots)?;
        for (expert, &load) in loads.iter().enumerate() {
            if !(0.0..=1e300).contains(&load) {
                let (argument, value) = (format!("loads[expert {expert}]"), format!("{load:?}"));
                return Err(Error::argument("route", argument, value, "must be 0 to 1e300"));
            }
            if load > 0.0 && self.links.of(expert).is_empty() {
                return Err(no_replica(format!("loads[expert {expert}]"), load));
            }
        }
        let total: f64 = loads.iter().sum();
        if total > 1e300 {
            return Err(Error::argument("route", "the sum of loads", total, "must be at most 1e300"));
        }
        Ok(share(&self.links, &mut self.leveller, loads, shares))
    }

    fn check_totals(&self) -> Result<()> {
        let mut sum = 0u64;
        for (expert, &total) in self.totals.iter().enumerate() {
            sum += total; // at most 2^36 numbers below 2^32, less than 2^52 for an expert
            if total > 0 && self.links.of(expert).is_empty() {
                return Err(no_replica(format!("the count of expert {expert}"), total));
            }
        }
        if sum > u64::from(u32::MAX) {
            let range = format!("must be at most {}", u32::MAX);
            return Err(Error::argument("route", "the sum of counts", sum, range));
        }
        Ok(())
    }

    /// Splits the tiles; returns the heaviest GPU's and the bottleneck's number of them.
    fn level(&mut self, tile: u32) -> (u64, u64) {
        if tile == 1 {
            self.units.copy_from_slice(&self.totals);
        } else {
            let tiles = |(units, &total): (&mut u64, &u64)| *units = total.div_ceil(u64::from(tile));
            self.units.iter_mut().zip(&self.totals).for_each(tiles);
        }
        let units = &self.units;
        let level = self.leveller.level(&self.links, |expert| units[expert]);
        (level.heaviest, level.bottleneck_load)
    }

    /// Gives out what the links carry to their slots, in tokens; GPU loads become tokens too.
    fn fill_quotas(&mut self, tile: u32) {
        self.leveller.gpu_loads.iter_mut().for_each(|load| *load *= u64::from(tile));
        self.quotas.fill(0);
        for expert in 0..self.totals.len() {
            let mut lacking = self.units[expert] * u64::from(tile) - self.totals[expert];
            for link in self.links.of(expert).rev() {
                let slots = self.links.slots(link);
                let (each, more) = match slots.len() as u64 {
                    1 => (self.leveller.carried[link], 0),
                    len => (self.leveller.carried[link] / len, self.leveller.carried[link] % len),
                };
                for (index, &slot) in slots.iter().enumerate().rev() {
                    let tokens = (each + u64::from((index as u64) < more)) * u64::from(tile);
                    // Less than a tile, which the last slot that has any can spare.
                    let spared = lacking.min(tokens);
                    lacking -= spared;
                    self.quotas[slot as usize] = (tokens - spared) as u32;
                }
            }
        }
    }

    /// Gives out the quotas to senders; returns the tokens that stay on their GPU, and on their node.
    fn fill_source_quotas(&mut self, sent: &[u32]) -> (u64, u64) {
        let Router { cluster, links, locality, quotas, source_quotas, unsent, unfilled, .. } = self;
        let (num_slots, num_experts) = (cluster.num_slots(), links.num_experts());
        source_quotas.clear();
        source_quotas.resize(cluster.num_gpus() * num_slots, 0);
        let (mut on_gpu, mut on_node) = (0, 0); // each token once
        for expert in 0..num_experts {
            let slots = links.slots_of(expert);
            if slots.is_empty() {
                continue;
            }
            for (source, unsent) in unsent.iter_mut().enumerate() {
                *unsent = sent[source * num_experts + expert];
            }
            if let &[slot] = slots {
                let gpu = cluster.gpu_of_slot()[slot as usize] as usize;
                for (source, &count) in unsent.iter().enumerate() {
                    source_quotas[source * num_slots + slot as usize] = count;
                }
                let node = locality.gpus_of_node(cluster.node_of_gpu()[gpu] as usize);
                on_gpu += u64::from(unsent[gpu]);
                let others = node.iter().filter(|&&other| other as usize != gpu);
                on_node += others.map(|&gpu| u64::from(unsent[gpu as usize])).sum::<u64>();
                continue;
            }
            slots.iter().for_each(|&slot| unfilled[slot as usize] = quotas[slot as usize]);
            let mut give = |source: usize, slot: usize| {
                let tokens = unsent[source].min(unfilled[slot]);
                unsent[source] -= tokens;
                unfilled[slot] -= tokens;
                source_quotas[source * num_slots + slot] += tokens;
                (u64::from(tokens), unsent[source] == 0)
            };
            for &slot in slots {
                on_gpu += give(cluster.gpu_of_slot()[slot as usize] as usize, slot as usize).0;
            }
            // Within each node, then among all: the lowest sender that has tokens, the lowest slot that has room.
            let node_of_slot =
                |slot: u32| cluster.node_of_gpu()[cluster.gpu_of_slot()[slot as usize] as usize];
            for slots in slots.chunk_by(|&a, &b| node_of_slot(a) == node_of_slot(b)) {
                let senders = locality.gpus_of_node(node_of_slot(slots[0]) as usize);
                on_node += pair(senders.iter().map(|&gpu| gpu as usize), slots, &mut give);
            }
            pair(0..cluster.num_gpus(), slots, &mut give);
        }
        (on_gpu, on_gpu + on_node)
    }

    fn routing(
        &self,
        tile: u32,
        heaviest: u64,
        bottleneck_load: u64,
        near: Option<(u64, u64)>,
    ) -> Routing<'_> {
        let tile = u64::from(tile);
        let (tokens_on_gpu, tokens_on_node) = near.unwrap_or((0, 0));
        Routing {
            quotas: &self.quotas,
            source_quotas: if near.is_some() { &self.source_quotas } else { &[] },
            gpu_loads: &self.leveller.gpu_loads,
            heaviest: heaviest * tile,
            bound: (bottleneck_load * tile) as f64 / self.leveller.bottleneck.len() as f64,
            bottleneck: &self.leveller.bottleneck,
            bottleneck_load: bottleneck_load * tile,
            tokens_on_gpu,
            tokens_on_node,
        }
    }
}

/// Lets senders give to slots, both in order, until either has nothing; returns how many tokens found a slot.
fn pair(
    senders: impl Iterator<Item = usize>,
    slots: &[u32],
    mut give: impl FnMut(usize, usize) -> (u64, bool),
) -> u64 {
    let (mut tokens, mut slots) = (0, slots.iter());
    let Some(mut slot) = slots.next() else {
        return 0;
    };
    for sender in senders {
        loop {
            let (given, is_done) = give(sender, *slot as usize);
            tokens += given;
            if is_done {
                break;
            }
            let Some(next) = slots.next() else {
                return tokens;
            };
            slot = next;
        }
    }
    tokens
}

fn check_options(options: &RouteOptions) -> Result<()> {
    in_range("route", "tile", options.tile, 1..=TILE_MAX)?;
    in_range("route", "gpu_price", options.gpu_price, 0..=PRICE_MAX)?;
    in_range("route", "node_price", options.node_price, 0..=PRICE_MAX)?;
    Ok(())
}
