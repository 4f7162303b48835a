//! Two slots to a GPU: experts are vertices, GPUs are edges, and what can be loaded evenly is a tree.
//!
//! k experts on k - 1 GPUs that connect them, a tree, need no GPU to carry more than T if all their loads add up to
//! (k - 1) T at most; `wrap` says which tree. So E experts on G GPUs are to be parted in E - G trees, the greatest of
//! whose ratios, load / GPUs, is to be small. An expert of no load, a phantom, stands for a GPU whose second slot is
//! free, so that there may be one tree more; where E <= G, there are so many that one tree is left, whose ratio is
//! the mean.
//!
//! It starts with the heaviest experts, one to a tree, and gives the others, lightest first, to the tree that lacks
//! most room. Then the tree of the greatest ratio and another share out their experts anew, in the best of all ways,
//! the other being the one that this gains most with, until it gains nothing. That is a local optimum; kicks look for
//! others.
//!
//! `O(E log E)` to start. A sharing out reads all trees, tries 2^n ways with each that may bear it, for n experts of
//! two trees, of which at most 12 move, and stops after 128 trees if one of them was good. There are at most a few
//! times E of them, in practice fewer than E.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::Random;

/// Experts parted in trees, and the room to do it.
#[derive(Default)]
pub(super) struct Trees {
    trees: Vec<Tree>,
    /// Those of the least ratio so far.
    best: Vec<Tree>,
    lightest_first: Vec<u32>,
    /// While planting: what each tree lacks, the greatest first.
    lacks: BinaryHeap<(u64, Reverse<u32>)>,
    /// The tree that the heaviest tries first to share out with; each in turn, if there are many.
    first_other: usize,
    /// The experts of two trees.
    both: Vec<u32>,
}

#[derive(Default)]
pub(super) struct Tree {
    pub(super) experts: Vec<u32>,
    load: f64,
}

/// Of two trees at most so many experts may change places at once.
const MOVABLE_MAX: usize = 12;
/// After a kick at most so many pairs of trees share out.
const STEPS_PER_KICK: usize = 24;
/// Having tried so many, the heaviest tree shares out with the best of them, if any is good.
const OTHERS_TRIED: usize = 128;
/// Trees looked at by all sharings out of one descent.
const TREES_READ: usize = 1 << 24;
/// What counts as a gain: a part of the ratio.
const GAIN: f64 = 1e-9;

impl Trees {
    /// Parts the experts, phantoms being those without load, in `num_trees` of two or more, fewer than half as many as
    /// experts. Stops when no ratio is above `enough`, or after leaving a local optimum `kicks` times. `bound` is what
    /// ratios should be about. Returns the greatest.
    pub(super) fn part(
        &mut self,
        loads: &[f64],
        num_trees: usize,
        bound: f64,
        enough: f64,
        kicks: usize,
    ) -> f64 {
        self.first_other = 0;
        self.plant(loads, num_trees, bound);
        let steps = (8 * loads.len()).min(TREES_READ / num_trees);
        let mut ratio = self.descend(loads, enough, steps);
        self.best.clone_from(&self.trees);
        for kick in 0..kicks {
            if ratio <= enough || num_trees == 1 {
                break;
            }
            self.kick(loads, kick);
            let kicked = self.descend(loads, enough, STEPS_PER_KICK);
            if kicked <= ratio {
                ratio = kicked;
                self.best.clone_from(&self.trees);
            } else {
                self.trees.clone_from(&self.best);
            }
        }
        ratio
    }

    /// The trees of the least ratio that were found.
    pub(super) fn best(&self) -> &[Tree] {
        &self.best
    }

    fn plant(&mut self, loads: &[f64], num_trees: usize, bound: f64) {
        let load = |expert: u32| loads[expert as usize];
        self.lightest_first.clear();
        self.lightest_first.extend(0..loads.len() as u32);
        self.lightest_first.sort_by(|&a, &b| load(a).total_cmp(&load(b)).then(b.cmp(&a)));
        let (light, heavy) = self.lightest_first.split_at(loads.len() - num_trees);
        self.trees.resize_with(num_trees, Tree::default);
        for (tree, &expert) in self.trees.iter_mut().zip(heavy.iter().rev()) {
            tree.experts.clear();
            tree.experts.push(expert);
            tree.load = load(expert);
        }
        self.lacks.clear();
        let indexed = (0..).zip(&self.trees);
        self.lacks.extend(indexed.map(|(index, tree)| (tree.lack(bound), Reverse(index))));
        let mut alone = num_trees;
        for (index, &expert) in light.iter().enumerate() {
            let Some((_, Reverse(mut poorest))) = self.lacks.pop() else { return };
            // At the end, who has no GPU yet comes first.
            while light.len() - index <= alone && self.trees[poorest as usize].experts.len() > 1 {
                let Some((_, Reverse(next))) = self.lacks.pop() else { return };
                poorest = next;
            }
            let tree = &mut self.trees[poorest as usize];
            alone -= usize::from(tree.experts.len() == 1);
            tree.experts.push(expert);
            tree.load += load(expert);
            self.lacks.push((tree.lack(bound), Reverse(poorest)));
        }
    }

    /// Relieves the heaviest tree as long as that is possible, `steps` times at most. Returns its ratio.
    fn descend(&mut self, loads: &[f64], enough: f64, steps: usize) -> f64 {
        for _ in 0..steps {
            if !self.relieve_heaviest(loads, enough) {
                break;
            }
        }
        self.trees.iter().map(Tree::ratio).fold(0.0, f64::max)
    }

    /// Shares out the experts of the heaviest tree and another anew. False if no other helps, or none need.
    fn relieve_heaviest(&mut self, loads: &[f64], enough: f64) -> bool {
        let a = first_greatest(self.trees.iter().map(Tree::ratio));
        let heaviest = &self.trees[a];
        if heaviest.ratio() <= enough {
            return false;
        }
        let (mut best, mut found) = (heaviest.ratio() * (1.0 - GAIN), None);
        let mut num_tried = 0;
        let (before, after) = (0..self.first_other, self.first_other..self.trees.len());
        for b in after.chain(before) {
            if num_tried >= OTHERS_TRIED && found.is_some() {
                self.first_other = b;
                break;
            }
            let other = &self.trees[b];
            let least = (heaviest.load + other.load) / (heaviest.num_gpus() + other.num_gpus());
            if b != a && least < best {
                num_tried += 1;
                let (ratio, moved) = best_sharing(loads, heaviest, other);
                if ratio < best {
                    (best, found) = (ratio, Some((b, moved)));
                }
            }
        }
        let Some((b, moved)) = found else {
            return false;
        };
        self.both.clear();
        self.both.append(&mut self.trees[a].experts);
        let num_in_a = self.both.len();
        self.both.append(&mut self.trees[b].experts);
        for (place, &expert) in self.both.iter().enumerate() {
            let moves = place < MOVABLE_MAX && moved >> place & 1 == 1;
            let tree = if (place < num_in_a) == moves { b } else { a };
            self.trees[tree].experts.push(expert);
        }
        self.trees[a].weigh(loads);
        self.trees[b].weigh(loads);
        true
    }

    /// Exchanges an expert of the heaviest tree with one of another, whatever that does; others with each number.
    fn kick(&mut self, loads: &[f64], number: usize) {
        let a = first_greatest(self.trees.iter().map(Tree::ratio));
        let mut random = Random::after(3 * number);
        let b = (a + 1 + random.below(self.trees.len() - 1)) % self.trees.len();
        let place_a = random.below(self.trees[a].experts.len());
        let place_b = random.below(self.trees[b].experts.len());
        let expert = self.trees[a].experts[place_a];
        self.trees[a].experts[place_a] = std::mem::replace(&mut self.trees[b].experts[place_b], expert);
        self.trees[a].weigh(loads);
        self.trees[b].weigh(loads);
    }
}

impl Tree {
    fn weigh(&mut self, loads: &[f64]) {
        self.load = self.experts.iter().map(|&expert| loads[expert as usize]).sum();
    }

    /// The load that has no GPU if GPUs carry `bound`: as bits that order as the numbers do.
    fn lack(&self, bound: f64) -> u64 {
        let bits = (self.load - self.num_gpus() * bound).to_bits();
        let is_negative = bits >> 63 == 1;
        if is_negative {
            !bits
        } else {
            bits | 1 << 63
        }
    }

    fn num_gpus(&self) -> f64 {
        self.experts.len() as f64 - 1.0
    }

    fn ratio(&self) -> f64 {
        self.load / self.num_gpus()
    }
}

impl Clone for Tree {
    fn clone(&self) -> Tree {
        Tree { experts: self.experts.clone(), load: self.load }
    }

    // Into the memory there is.
    fn clone_from(&mut self, other: &Tree) {
        self.experts.clone_from(&other.experts);
        self.load = other.load;
    }
}

/// The least that the greater ratio of two trees can be made, and the experts to change places for that: a bit for
/// each of those of `a` and then of `b`.
fn best_sharing(loads: &[f64], a: &Tree, b: &Tree) -> (f64, u32) {
    // What a gains when an expert changes places: load, and a GPU or none.
    let mut gains = [(0.0, 0.0); MOVABLE_MAX];
    let experts = a.experts.iter().chain(&b.experts);
    for (place, (gain, &expert)) in gains.iter_mut().zip(experts).enumerate() {
        let load = loads[expert as usize];
        *gain = if place < a.experts.len() { (-load, -1.0) } else { (load, 1.0) };
    }
    let (load_of_both, gpus_of_both) = (a.load + b.load, a.num_gpus() + b.num_gpus());
    let (mut load, mut gpus, mut moved) = (a.load, a.num_gpus(), 0u32);
    let mut best = (f64::MAX, 0);
    // In the order of Gray's code: one changes places at a time.
    for step in 1..1u32 << (a.experts.len() + b.experts.len()).min(MOVABLE_MAX) {
        let place = step.trailing_zeros();
        moved ^= 1 << place;
        let sign = if moved >> place & 1 == 1 { 1.0 } else { -1.0 };
        load += sign * gains[place as usize].0;
        gpus += sign * gains[place as usize].1;
        let other_gpus = gpus_of_both - gpus;
        if gpus >= 1.0 && other_gpus >= 1.0 {
            let ratio = (load / gpus).max((load_of_both - load) / other_gpus);
            if ratio < best.0 {
                best = (ratio, moved);
            }
        }
    }
    best
}

/// The first place of the greatest value.
fn first_greatest(values: impl Iterator<Item = f64>) -> usize {
    let mut greatest = (0, f64::NEG_INFINITY);
    for (place, value) in values.enumerate() {
        if value > greatest.1 {
            greatest = (place, value);
        }
    }
    greatest.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_trees_share_out_in_the_best_way() {
        let loads = [7.0, 1.0, 1.0, 5.0, 3.0, 0.5];
        let tree = |experts: &[u32]| {
            let mut tree = Tree { experts: experts.to_vec(), load: 0.0 };
            tree.weigh(&loads);
            tree
        };
        // 8 / 1 and 9.5 / 3: the lightest three to the heaviest, 9.5 / 3 and 8 / 1, are no better; 7 1 .5 3 and 1 5
        // are.
        let (ratio, moved) = best_sharing(&loads, &tree(&[0, 1]), &tree(&[2, 3, 4, 5]));
        let ways = 1..64u32;
        let ratio_of = |moved: u32| {
            let places = [0, 0, 1, 1, 1, 1].iter().enumerate();
            let side = |which: u32| {
                let of = places.clone().filter(|&(place, &at)| (at ^ (moved >> place & 1)) == which);
                tree(&of.map(|(place, _)| place as u32).collect::<Vec<_>>())
            };
            let (a, b) = (side(0), side(1));
            let is_tree = a.experts.len() >= 2 && b.experts.len() >= 2;
            if is_tree {
                a.ratio().max(b.ratio())
            } else {
                f64::MAX
            }
        };
        let want = ways.map(ratio_of).fold(f64::MAX, f64::min);
        assert!((ratio - want).abs() < 1e-12 && (ratio_of(moved) - want).abs() < 1e-12);
        assert!(want < 6.01);
    }
}
