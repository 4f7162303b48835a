//! Plays orders against many tables of durations at once: one walk over the ops, each of them done in all lanes.
//!
//! The rules are those of `sim`: an op starts as soon as its rank is free and its messages are there.

use super::draw::Durations;
use crate::cost::Costs;
use crate::error::Result;
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Op, Pass, StageCopy};
use crate::placement::Placement;
use crate::schedule::{Schedule, Work};

/// What a step has nothing of.
pub(in crate::search) const NO_PASS: u32 = u32::MAX;

/// One op: the passes whose F, I and W it does. B does I and W of one pass, a pair all three.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::search) struct Step {
    pub(in crate::search) forward: u32,
    pub(in crate::search) input: u32,
    pub(in crate::search) weight: u32,
    /// Of a pair: its time without a spread, as part of its F and B.
    pub(in crate::search) share: f64,
    /// Of a pair: its time where its F and B take none.
    pub(in crate::search) least_ns: f64,
}

impl Step {
    /// F, I, W or B.
    pub(in crate::search) fn alone(forward: u32, input: u32, weight: u32) -> Step {
        Step { forward, input, weight, share: 1.0, least_ns: 0.0 }
    }
}

/// A problem's passes, by number.
pub(in crate::search) struct Model {
    passes: Vec<PassModel>,
    num_ranks: usize,
    costs: Costs,
}

#[derive(Clone, Copy)]
struct PassModel {
    pass: Pass,
    /// F, I, W.
    costs_ns: [f64; 3],
    /// The pass at the stage before and at the stage after, or [`NO_PASS`].
    previous: u32,
    next: u32,
    rank: u32,
    /// From the end of F to where the next stage has its output, and from the end of I to where the previous one has
    /// its gradient.
    output_ns: f64,
    gradient_ns: f64,
    is_real: bool,
}

impl Model {
    /// `costs` must fit. Fails if the sizes are beyond a schedule's.
    pub(in crate::search) fn new(
        placement: &Placement,
        num_microbatches: usize,
        costs: &Costs,
    ) -> Result<Model> {
        // Knows its passes' numbers; its orders are not used.
        let orders = vec![Vec::new(); placement.num_ranks()];
        let numbers = Schedule::new("spread", placement.clone(), num_microbatches, Work::Training, orders)?;
        let per_copy = numbers.microbatches_in(Direction::Down);
        let mut passes = Vec::with_capacity(numbers.num_passes());
        for &direction in &Direction::ALL[..placement.num_directions()] {
            for stage in (0..placement.num_stages()).map(|stage| Stage(stage as u16)) {
                let copy = StageCopy { direction, stage };
                for microbatch in (0..per_copy).map(Microbatch::from_index) {
                    passes.push(PassModel::new(&numbers, costs, Pass { direction, stage, microbatch }, copy));
                }
            }
        }
        Ok(Model { passes, num_ranks: placement.num_ranks(), costs: costs.clone() })
    }

    pub(in crate::search) fn num_passes(&self) -> usize {
        self.passes.len()
    }

    pub(in crate::search) fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// F, I and W of a pass without a spread.
    pub(super) fn costs_ns(&self, pass: usize) -> [f64; 3] {
        self.passes[pass].costs_ns
    }

    /// The pass of a number.
    pub(in crate::search) fn pass(&self, number: u32) -> Pass {
        self.passes[number as usize].pass
    }

    /// The numbers of the passes of a rank; with an odd number of micro-batches, one direction has fewer.
    pub(super) fn passes_of(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.passes.len())
            .filter(move |&p| self.passes[p].rank as usize == rank && self.passes[p].is_real)
    }

    pub(super) fn rank(&self, pass: usize) -> usize {
        self.passes[pass].rank as usize
    }

    /// The least share of a pair on a rank, at most 1.
    pub(super) fn least_share(&self, rank: usize) -> f64 {
        // The first micro-batch of each copy stands for all of them.
        let firsts = || self.passes_of(rank).filter(|&p| self.passes[p].pass.microbatch.0 == 0);
        let shares = firsts().flat_map(|f| firsts().map(move |b| self.pair(f as u32, b as u32).share));
        shares.fold(1.0, f64::min)
    }

    /// The passes of each micro-batch from the first stage to the last.
    pub(super) fn ways(&self) -> impl Iterator<Item = Vec<usize>> + '_ {
        let firsts =
            (0..self.passes.len()).filter(|&p| self.passes[p].previous == NO_PASS && self.passes[p].is_real);
        firsts.map(|first| {
            let next =
                |&p: &usize| Some(self.passes[p].next).filter(|&next| next != NO_PASS).map(|p| p as usize);
            std::iter::successors(Some(first), next).collect()
        })
    }

    /// From the end of F of a pass to where the next stage has its output.
    pub(super) fn output_ns(&self, pass: usize) -> f64 {
        self.passes[pass].output_ns
    }

    /// From the end of I of a pass to where the stage before has its gradient.
    pub(super) fn gradient_ns(&self, pass: usize) -> f64 {
        self.passes[pass].gradient_ns
    }

    /// A pair, of passes on one rank.
    pub(in crate::search) fn pair(&self, forward: u32, backward: u32) -> Step {
        let (f, b) = (&self.passes[forward as usize], &self.passes[backward as usize]);
        let whole_ns = f.costs_ns[0] + b.costs_ns[1] + b.costs_ns[2];
        let pair_ns = self.costs.pair_ns(f.pass.stage, b.pass.stage) as f64;
        let (share, least_ns) = if whole_ns > 0.0 { (pair_ns / whole_ns, 0.0) } else { (1.0, pair_ns) };
        Step { forward, input: backward, weight: backward, share, least_ns }
    }

    /// The orders of a schedule of this problem that passes its check.
    pub(in crate::search) fn steps(&self, schedule: &Schedule) -> Vec<Vec<Step>> {
        let number = |pass: Option<Pass>| {
            pass.and_then(|pass| schedule.pass_index(pass)).map_or(NO_PASS, |index| index as u32)
        };
        let step = |&op: &Op| {
            let (forward, input) = (number(op.forward()), number(op.backward_input()));
            match op {
                Op::FB(..) => self.pair(forward, input),
                _ => Step::alone(forward, input, number(op.backward_weight())),
            }
        };
        schedule.orders().iter().map(|order| order.iter().map(step).collect()).collect()
    }

    /// The op of a step; `None` for what no op does.
    pub(in crate::search) fn op(&self, step: Step) -> Option<Op> {
        match [step.forward, step.input, step.weight] {
            [f, NO_PASS, NO_PASS] if f != NO_PASS => Some(Op::F(self.pass(f))),
            [NO_PASS, i, NO_PASS] if i != NO_PASS => Some(Op::I(self.pass(i))),
            [NO_PASS, NO_PASS, w] if w != NO_PASS => Some(Op::W(self.pass(w))),
            [NO_PASS, i, w] if i == w => Some(Op::B(self.pass(i))),
            [f, i, w] if i == w && i != NO_PASS => Some(Op::FB(self.pass(f), self.pass(i))),
            _ => None,
        }
    }
}

impl PassModel {
    fn new(numbers: &Schedule, costs: &Costs, pass: Pass, copy: StageCopy) -> PassModel {
        let placement = numbers.placement();
        let number = |copy: Option<StageCopy>| {
            let index = copy.and_then(|copy| numbers.pass_index(Pass { stage: copy.stage, ..pass }));
            index.map_or(NO_PASS, |index| index as u32)
        };
        let (previous, next) = (placement.previous(copy), placement.next(copy));
        let rank = placement.rank_of(copy);
        let is_elsewhere =
            |other: Option<StageCopy>| other.is_some_and(|other| placement.rank_of(other) != rank);
        let message_ns =
            |stage: Stage, is_sent: bool| if is_sent { costs.output_ns(stage) as f64 } else { 0.0 };
        let cost = costs.stage(pass.stage);
        PassModel {
            pass,
            costs_ns: [cost.forward_ns, cost.input_ns, cost.weight_ns].map(|ns| ns as f64),
            previous: number(previous),
            next: number(next),
            rank: rank.unwrap_or(Rank(0)).0,
            output_ns: message_ns(pass.stage, is_elsewhere(next)),
            gradient_ns: previous.map_or(0.0, |before| message_ns(before.stage, is_elsewhere(previous))),
            is_real: numbers.pass_index(pass).is_some(),
        }
    }
}

/// Plays orders, again and again, without allocating.
pub(in crate::search) struct Lanes<'a> {
    model: &'a Model,
    durations: &'a Durations,
    lanes: usize,
    /// `[rank, lane]`
    free_ns: Vec<f64>,
    /// `[pass, F I, lane]`: when its message is where it is needed.
    arrival_ns: Vec<f64>,
    /// `[pass, F I W]`: in which play it was done last.
    done: Vec<u32>,
    plays: u32,
    /// `[rank]`: the next step.
    at: Vec<usize>,
    /// Ranks to look at, each once.
    ready: Vec<u32>,
    is_ready: Vec<bool>,
    /// `[lane]`
    now_ns: Vec<f64>,
    ends_ns: Vec<f64>,
}

impl<'a> Lanes<'a> {
    pub(in crate::search) fn new(model: &'a Model, durations: &'a Durations) -> Lanes<'a> {
        let (num_passes, num_ranks, lanes) = (model.num_passes(), model.num_ranks(), durations.lanes);
        Lanes {
            model,
            durations,
            lanes,
            free_ns: vec![0.0; num_ranks * lanes],
            arrival_ns: vec![0.0; num_passes * 2 * lanes],
            done: vec![0; num_passes * 3],
            plays: 0,
            at: vec![0; num_ranks],
            ready: Vec::with_capacity(num_ranks),
            is_ready: vec![false; num_ranks],
            now_ns: vec![0.0; lanes],
            ends_ns: vec![0.0; lanes],
        }
    }

    /// `[lane]`: the makespan; `None` if some rank waits for ever.
    pub(in crate::search) fn play(&mut self, orders: &[Vec<Step>]) -> Option<&[f64]> {
        if self.plays == u32::MAX {
            self.done.fill(0);
            self.plays = 0;
        }
        self.plays += 1;
        self.free_ns.fill(0.0);
        self.at.fill(0);
        self.is_ready.fill(true);
        self.ready.clear();
        self.ready.extend((0..orders.len() as u32).rev());
        while let Some(rank) = self.ready.pop() {
            self.is_ready[rank as usize] = false;
            while let Some(&step) = orders[rank as usize].get(self.at[rank as usize]) {
                if !self.can_start(step) {
                    break;
                }
                self.run(rank as usize, step);
                self.at[rank as usize] += 1;
            }
        }
        if self.at.iter().zip(orders).any(|(&at, order)| at < order.len()) {
            return None;
        }
        self.ends_ns.fill(0.0);
        for free_ns in self.free_ns.chunks_exact(self.lanes) {
            raise(&mut self.ends_ns, free_ns);
        }
        Some(&self.ends_ns)
    }

    fn is_done(&self, pass: u32, part: usize) -> bool {
        self.done[3 * pass as usize + part] == self.plays
    }

    /// Whether all that a step needs is done: on its own rank too, where what comes later never is.
    fn can_start(&self, step: Step) -> bool {
        let forward = step.forward == NO_PASS || {
            let previous = self.model.passes[step.forward as usize].previous;
            previous == NO_PASS || self.is_done(previous, 0)
        };
        let input = step.input == NO_PASS || {
            let next = self.model.passes[step.input as usize].next;
            self.is_done(step.input, 0) && (next == NO_PASS || self.is_done(next, 1))
        };
        let weight = step.weight == NO_PASS || step.weight == step.input || self.is_done(step.weight, 1);
        forward && input && weight
    }

    fn run(&mut self, rank: usize, step: Step) {
        let lanes = self.lanes;
        let now_ns = &mut self.now_ns[..];
        now_ns.copy_from_slice(&self.free_ns[rank * lanes..][..lanes]);
        let durations = self.durations;
        let arrival = |pass: u32, part: usize| (2 * pass as usize + part) * lanes;
        if step.forward != NO_PASS && self.model.passes[step.forward as usize].previous != NO_PASS {
            let previous = self.model.passes[step.forward as usize].previous;
            raise(now_ns, &self.arrival_ns[arrival(previous, 0)..][..lanes]);
        }
        if step.input != NO_PASS && self.model.passes[step.input as usize].next != NO_PASS {
            let next = self.model.passes[step.input as usize].next;
            raise(now_ns, &self.arrival_ns[arrival(next, 1)..][..lanes]);
        }
        let of = |pass: u32, part| durations.of(pass as usize, part);
        match [step.forward, step.input, step.weight] {
            [f, NO_PASS, NO_PASS] => add(now_ns, of(f, 0)),
            [NO_PASS, i, NO_PASS] => add(now_ns, of(i, 1)),
            [NO_PASS, NO_PASS, w] => add(now_ns, of(w, 2)),
            [NO_PASS, i, w] => {
                add(now_ns, of(i, 1));
                add(now_ns, of(w, 2));
            }
            [f, i, w] => add_pairs(now_ns, step, of(f, 0), of(i, 1), of(w, 2)),
        }
        self.free_ns[rank * lanes..][..lanes].copy_from_slice(now_ns);
        let mut woken = [NO_PASS; 2];
        if step.forward != NO_PASS {
            let pass = &self.model.passes[step.forward as usize];
            self.done[3 * step.forward as usize] = self.plays;
            if pass.next != NO_PASS {
                later(&mut self.arrival_ns[arrival(step.forward, 0)..][..lanes], now_ns, pass.output_ns);
                woken[0] = self.model.passes[pass.next as usize].rank;
            }
        }
        if step.input != NO_PASS {
            let pass = &self.model.passes[step.input as usize];
            self.done[3 * step.input as usize + 1] = self.plays;
            if pass.previous != NO_PASS {
                later(&mut self.arrival_ns[arrival(step.input, 1)..][..lanes], now_ns, pass.gradient_ns);
                woken[1] = self.model.passes[pass.previous as usize].rank;
            }
        }
        for rank in woken.into_iter().filter(|&rank| rank != NO_PASS) {
            if !std::mem::replace(&mut self.is_ready[rank as usize], true) {
                self.ready.push(rank);
            }
        }
    }
}

fn raise(now_ns: &mut [f64], to_ns: &[f64]) {
    for (now, &to) in now_ns.iter_mut().zip(to_ns) {
        *now = if to > *now { to } else { *now };
    }
}

fn add(now_ns: &mut [f64], more_ns: &[f64]) {
    for (now, &more) in now_ns.iter_mut().zip(more_ns) {
        *now += more;
    }
}

fn later(to_ns: &mut [f64], now_ns: &[f64], delay_ns: f64) {
    for (to, &now) in to_ns.iter_mut().zip(now_ns) {
        *to = now + delay_ns;
    }
}

fn add_pairs(now_ns: &mut [f64], step: Step, forward_ns: &[f64], input_ns: &[f64], weight_ns: &[f64]) {
    let backward_ns = input_ns.iter().zip(weight_ns).map(|(&input, &weight)| input + weight);
    for ((now, &forward), backward) in now_ns.iter_mut().zip(forward_ns).zip(backward_ns) {
        let longer = if forward > backward { forward } else { backward };
        let pair = whole((forward + backward) * step.share) + step.least_ns;
        *now += if pair > longer { pair } else { longer };
    }
}

/// To the nearest whole number: above 2^52 there are no others. Unlike `round`, it is two additions.
fn whole(value: f64) -> f64 {
    const FROM: f64 = (1u64 << 52) as f64;
    (value + FROM) - FROM
}
