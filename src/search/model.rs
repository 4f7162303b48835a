//! A planning problem as dense tables, and a rank's order as a word.
//!
//! Micro-batches of one direction are alike, so they may be handled in order: if the k-th F of each stage starts when
//! it did, whichever micro-batch it was, at least k activations were there by then, and so for I; W only needs an I
//! before it on its rank. So without loss a rank's order is a word of tokens, "the next F of this copy", "its next
//! I", "the oldest W put off" or "the next F of this overlapped with the next B of that". Every word with the right
//! counts has each pass exactly once. B alone is no token: I and then W takes as long, and its gradient leaves sooner.
//!
//! Where ranks come in pairs that hold the same stages in opposite directions, with as many micro-batches and as much
//! memory, only one rank of each pair is modelled and the other does the same with the directions swapped:
//! costs belong to stages, so what one sends to its neighbour the other sends to its neighbour's mirror at the same
//! time. The half has one direction; where it crosses the middle a message goes to the mirror of its own rank.
//! Schedules that are not their own mirror are not found then.

use super::Problem;
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Op, Pass, StageCopy};

/// What comes next on a rank: an index into [`Model::steps`].
pub(super) type Token = u32;

/// `[rank]`: its order. Ranks are those of the model.
pub(super) type Words = Vec<Vec<Token>>;

/// A token spelt out. Copies are the model's; [`Model::num_copies`] stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Whose next F.
    pub(super) forward: u32,
    /// Whose next I.
    pub(super) input: u32,
    /// Whose W: the oldest that was put off, or that of the I of this very step.
    pub(super) weight: u32,
    /// How long it takes.
    pub(super) ns: u64,
}

/// The dense tables.
pub(super) struct Model {
    /// `[copy]`.
    pub(super) copies: Vec<CopyModel>,
    /// `[rank]`: its copies.
    pub(super) held: Vec<Vec<u32>>,
    /// `[rank]`: what activations it may keep, in the units of [`CopyModel::size`].
    pub(super) cap: Vec<u64>,
    /// `[token]`: first F of all copies, then I, W, and pairs rank by rank.
    pub(super) steps: Vec<Step>,
    /// `[rank]`: its first pair.
    first_pair: Vec<u32>,
    /// `[rank]`: the real one, and the one that mirrors it.
    real: Vec<(Rank, Option<Rank>)>,
}

/// One parameter copy.
pub(super) struct CopyModel {
    pub(super) rank: u32,
    /// Its position among its rank's.
    pub(super) local: u32,
    /// The copy that its activations go to, and how long they take.
    pub(super) next: Option<(u32, u64)>,
    /// The copy that its gradients go to, and how long they take.
    pub(super) previous: Option<(u32, u64)>,
    /// Micro-batches that pass it.
    pub(super) count: u32,
    /// What a micro-batch keeps there from its F to its W.
    pub(super) size: u64,
    /// On the real rank of its rank.
    real: StageCopy,
}

/// More pairs than these on all ranks together and a problem is not searched.
pub(super) const PAIRS_MAX: usize = 1 << 18;

impl Model {
    /// `None` if a rank holds so many stages that their pairs do not fit a table.
    pub(super) fn new(problem: &Problem) -> Option<Model> {
        let placement = &problem.placement;
        let num_pairs: usize = (0..placement.num_ranks())
            .map(|rank| placement.copies_on(Rank::from_index(rank)).len().pow(2))
            .fold(0, usize::saturating_add);
        if num_pairs > PAIRS_MAX {
            return None;
        }
        let real = match mirrored_ranks(problem) {
            Some(pairs) => pairs.into_iter().map(|(rank, mirror)| (rank, Some(mirror))).collect(),
            None => (0..placement.num_ranks()).map(|r| (Rank::from_index(r), None)).collect(),
        };
        let mut model = Model {
            copies: Vec::new(),
            held: Vec::new(),
            cap: Vec::new(),
            steps: Vec::new(),
            first_pair: Vec::new(),
            real,
        };
        model.add_copies(problem);
        model.add_caps(problem);
        model.add_steps(problem);
        Some(model)
    }

    pub(super) fn num_ranks(&self) -> usize {
        self.held.len()
    }

    /// Also the copy that is none.
    pub(super) fn num_copies(&self) -> u32 {
        self.copies.len() as u32
    }

    pub(super) fn step(&self, token: Token) -> &Step {
        &self.steps[token as usize]
    }

    pub(super) fn forward(&self, copy: u32) -> Token {
        copy
    }

    pub(super) fn input(&self, copy: u32) -> Token {
        self.num_copies() + copy
    }

    pub(super) fn weight(&self, copy: u32) -> Token {
        2 * self.num_copies() + copy
    }

    /// F of one copy overlapped with B of another on the same rank.
    pub(super) fn pair(&self, forward: u32, backward: u32) -> Token {
        let (f, b) = (&self.copies[forward as usize], &self.copies[backward as usize]);
        self.first_pair[f.rank as usize] + f.local * self.held[f.rank as usize].len() as u32 + b.local
    }

    /// The words of these orders, micro-batches put in order.
    pub(super) fn words(&self, orders: &[Vec<Op>]) -> Words {
        let copy_of = |pass: Pass, held: &[u32]| {
            held.iter().copied().find(|&c| self.copies[c as usize].real == pass.copy()).unwrap_or(0)
        };
        let ranks = self.real.iter().zip(&self.held);
        let words = ranks.map(|(&(real, _), held)| {
            let mut word = Vec::with_capacity(2 * orders[real.index()].len());
            for &op in &orders[real.index()] {
                match op {
                    Op::F(p) => word.push(self.forward(copy_of(p, held))),
                    Op::I(p) => word.push(self.input(copy_of(p, held))),
                    Op::W(p) => word.push(self.weight(copy_of(p, held))),
                    Op::B(p) => word.extend([self.input(copy_of(p, held)), self.weight(copy_of(p, held))]),
                    Op::FB(f, b) => word.push(self.pair(copy_of(f, held), copy_of(b, held))),
                }
            }
            word
        });
        words.collect()
    }

    /// The orders of all real ranks. Where `is_merged[rank][i]`, the I at `i` and the W behind it become B.
    pub(super) fn orders(&self, words: &Words, num_ranks: usize, is_merged: &[Vec<bool>]) -> Vec<Vec<Op>> {
        let mut orders = vec![Vec::new(); num_ranks];
        for ((word, is_merged), &(rank, mirror)) in words.iter().zip(is_merged).zip(&self.real) {
            let order = self.order(word, is_merged);
            if let Some(mirror) = mirror {
                orders[mirror.index()] = order.iter().map(|&op| swap_directions(op)).collect();
            }
            orders[rank.index()] = order;
        }
        orders
    }

    fn order(&self, word: &[Token], is_merged: &[bool]) -> Vec<Op> {
        let mut names = Namer::new(self);
        let mut order = Vec::with_capacity(word.len());
        let mut i = 0;
        while i < word.len() {
            let named = names.name(word[i]);
            let step = self.step(word[i]);
            let op = match (named.forward, named.input, named.weight) {
                (Some(f), Some(b), _) => Op::FB(f, b),
                (Some(f), ..) => Op::F(f),
                (None, Some(b), _) if is_merged[i] => {
                    names.merge(step.input);
                    i += 1;
                    Op::B(b)
                }
                (None, Some(b), _) => Op::I(b),
                (None, None, Some(w)) => Op::W(w),
                (None, None, None) => unreachable!("a step does something"),
            };
            order.push(op);
            i += 1;
        }
        order
    }

    fn add_copies(&mut self, problem: &Problem) {
        let placement = &problem.placement;
        let per_direction =
            [problem.num_microbatches.div_ceil(placement.num_directions()), problem.num_microbatches / 2];
        let is_half = self.real.first().is_some_and(|(_, mirror)| mirror.is_some());
        let num_directions = if is_half { 1 } else { placement.num_directions() };
        let mut model_rank = vec![u32::MAX; placement.num_ranks()];
        for (i, &(rank, mirror)) in self.real.iter().enumerate() {
            model_rank[rank.index()] = i as u32;
            if let Some(mirror) = mirror {
                model_rank[mirror.index()] = i as u32;
            }
        }
        self.held = vec![Vec::new(); self.real.len()];
        let num_stages = placement.num_stages() as u32;
        for &direction in &Direction::ALL[..num_directions] {
            let rank_of = |stage: u32| placement.rank_of(StageCopy { direction, stage: Stage(stage as u16) });
            let hop_ns = |a: u32, b: u32| match rank_of(a) == rank_of(b) {
                true => 0,
                false => problem.costs.output_ns(Stage(a.min(b) as u16)),
            };
            let first = direction.index() as u32 * num_stages;
            for stage in 0..num_stages {
                let at = rank_of(stage).map_or(0, |rank| rank.index());
                let rank = model_rank[at];
                let is_mirrored = self.real[rank as usize].0.index() != at;
                let direction = if is_mirrored { direction.opposite() } else { direction };
                let size = match problem.cap {
                    crate::sim::MemoryCap::Bytes(_) => {
                        problem.costs.stage(Stage(stage as u16)).activation_bytes
                    }
                    _ => 1,
                };
                let held = &mut self.held[rank as usize];
                self.copies.push(CopyModel {
                    rank,
                    local: held.len() as u32,
                    next: (stage + 1 < num_stages).then(|| (first + stage + 1, hop_ns(stage, stage + 1))),
                    previous: (stage > 0).then(|| (first + stage - 1, hop_ns(stage, stage - 1))),
                    count: per_direction[if is_half { 0 } else { direction.index() }] as u32,
                    size,
                    real: StageCopy { direction, stage: Stage(stage as u16) },
                });
                held.push(first + stage);
            }
        }
    }

    fn add_caps(&mut self, problem: &Problem) {
        let cap = |rank: Rank| {
            let copies = problem.placement.copies_on(rank);
            let parameters: u64 =
                copies.iter().map(|copy| problem.costs.stage(copy.stage).parameter_bytes).sum();
            let activations = problem.cap.activations(rank).map(|cap| cap as u64);
            activations
                .or(problem.cap.bytes(rank).map(|cap| cap.saturating_sub(parameters)))
                .unwrap_or(u64::MAX)
        };
        let caps = self.real.iter().map(|&(rank, mirror)| cap(rank).min(mirror.map_or(u64::MAX, cap)));
        self.cap = caps.collect();
    }

    fn add_steps(&mut self, problem: &Problem) {
        let none = self.num_copies();
        let costs = &problem.costs;
        let stage = |copy: u32| self.copies[copy as usize].real.stage;
        let mut steps = Vec::new();
        let idle = Step { forward: none, input: none, weight: none, ns: 0 };
        steps.extend((0..none).map(|c| Step { forward: c, ns: costs.stage(stage(c)).forward_ns, ..idle }));
        steps.extend((0..none).map(|c| Step { input: c, ns: costs.stage(stage(c)).input_ns, ..idle }));
        steps.extend((0..none).map(|c| Step { weight: c, ns: costs.stage(stage(c)).weight_ns, ..idle }));
        let mut first_pair = Vec::new();
        for held in &self.held {
            first_pair.push(steps.len() as u32);
            for &f in held {
                let pairs = held.iter().map(|&b| {
                    let ns = costs.pair_ns(stage(f), stage(b));
                    Step { forward: f, input: b, weight: b, ns }
                });
                steps.extend(pairs);
            }
        }
        self.steps = steps;
        self.first_pair = first_pair;
    }
}

/// Numbers the micro-batches of a rank's word as it is read.
pub(super) struct Namer<'a> {
    model: &'a Model,
    /// `[copy]`: Fs, Is so far.
    forwards: Vec<u32>,
    inputs: Vec<u32>,
    /// `[copy]`: what W still has to come.
    put_off: Vec<std::collections::VecDeque<u32>>,
}

/// The passes of a step.
pub(super) struct Named {
    pub(super) forward: Option<Pass>,
    pub(super) input: Option<Pass>,
    pub(super) weight: Option<Pass>,
}

impl<'a> Namer<'a> {
    pub(super) fn new(model: &'a Model) -> Namer<'a> {
        let n = model.copies.len();
        Namer { model, forwards: vec![0; n], inputs: vec![0; n], put_off: vec![Default::default(); n] }
    }

    pub(super) fn name(&mut self, token: Token) -> Named {
        let none = self.model.num_copies();
        let Step { forward, input, weight, .. } = *self.model.step(token);
        let pass = |copy: u32, k: u32| {
            let real = self.model.copies[copy as usize].real;
            Pass { direction: real.direction, stage: real.stage, microbatch: Microbatch(k) }
        };
        let next = |counts: &mut Vec<u32>, copy: u32| {
            (copy != none).then(|| {
                counts[copy as usize] += 1;
                (copy, counts[copy as usize] - 1)
            })
        };
        let f = next(&mut self.forwards, forward);
        let i = next(&mut self.inputs, input);
        let w = match (i, weight == none) {
            (i, false) if input != none => i,
            (_, false) => self.put_off[weight as usize].pop_front().map(|k| (weight, k)),
            (Some((copy, k)), true) => {
                self.put_off[copy as usize].push_back(k);
                None
            }
            (None, true) => None,
        };
        let named = |at: Option<(u32, u32)>| at.map(|(copy, k)| pass(copy, k));
        Named { forward: named(f), input: named(i), weight: named(w) }
    }

    /// The W of the newest I of `copy` is done with it.
    fn merge(&mut self, copy: u32) {
        self.put_off[copy as usize].pop_back();
    }
}

fn swap_directions(op: Op) -> Op {
    let swap = |pass: Pass| Pass { direction: pass.direction.opposite(), ..pass };
    match op {
        Op::F(p) => Op::F(swap(p)),
        Op::B(p) => Op::B(swap(p)),
        Op::I(p) => Op::I(swap(p)),
        Op::W(p) => Op::W(swap(p)),
        Op::FB(f, b) => Op::FB(swap(f), swap(b)),
    }
}

/// The ranks that are each other's mirror, each pair once, lower rank first; `None` if some rank has no mirror.
fn mirrored_ranks(problem: &Problem) -> Option<Vec<(Rank, Rank)>> {
    let placement = &problem.placement;
    if placement.num_directions() != 2 || problem.num_microbatches % 2 != 0 {
        return None;
    }
    let mut mirror: Vec<Option<Rank>> = vec![None; placement.num_ranks()];
    for stage in (0..placement.num_stages()).map(|s| Stage(s as u16)) {
        let [a, b] = Direction::ALL.map(|direction| placement.rank_of(StageCopy { direction, stage }));
        let (a, b) = (a?, b?);
        for (from, to) in [(a, b), (b, a)] {
            let caps = [from, to].map(|rank| (problem.cap.activations(rank), problem.cap.bytes(rank)));
            if *mirror[from.index()].get_or_insert(to) != to || from == to || caps[0] != caps[1] {
                return None;
            }
        }
    }
    let pairs = mirror.iter().enumerate().filter_map(|(r, &to)| Some((Rank::from_index(r), to?)));
    Some(pairs.filter(|(from, to)| from < to).collect())
}
