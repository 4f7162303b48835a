//! A planning problem laid out for the dispatcher: lines of stages that micro-batches go along, on ranks that do one op
//! at a time.
//!
//! A bidirectional placement whose directions are mirror images is folded: rank P-1-r does what rank r does, with the
//! directions swapped, so one line on half of the ranks is the whole of it. DualPipe is DualPipeV folded open.

use std::collections::VecDeque;

use crate::cost::Costs;
use crate::error::{Error, Result};
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Op, Pass, StageCopy};
use crate::search::Problem;
use crate::sim::MemoryCap;

/// The problem, laid out.
pub(super) struct Lines {
    /// One stop per (line, stage) that has micro-batches, line by line in order of stages.
    pub(super) stops: Vec<Stop>,
    /// `[rank]`: its stops.
    pub(super) on_rank: Vec<Vec<usize>>,
    /// `[rank]`: how much may be alive, in the unit of [`Stop::size`].
    pub(super) room: Vec<u64>,
    /// Of each line.
    pub(super) microbatches: Vec<usize>,
    /// `[line]`: from F to I of its first stop.
    pub(super) ways_ns: Vec<f64>,
    /// Work of the busiest rank for one micro-batch of each line.
    pub(super) period_ns: f64,
    /// The least time from one micro-batch of each line to the next: the period, or what memory allows.
    pub(super) entry_ns: f64,
    /// `[rank]`: an overlapped pair takes at least this part of its F + B.
    pub(super) share: Vec<f64>,
    /// The whole pipeline's ranks, if folded.
    unfolded_ranks: Option<usize>,
}

/// One stage of a line.
pub(super) struct Stop {
    pub(super) line: usize,
    pub(super) stage: usize,
    pub(super) rank: usize,
    /// Among its rank's.
    pub(super) local: usize,
    pub(super) copy: StageCopy,
    pub(super) forward_ns: u64,
    pub(super) input_ns: u64,
    pub(super) weight_ns: u64,
    /// What one micro-batch keeps alive here: 1, or its bytes.
    pub(super) size: u64,
    /// The stop after and before, with the time of a message.
    pub(super) next: Option<(usize, u64)>,
    pub(super) previous: Option<(usize, u64)>,
    /// From the end of F, of I, to the end of the micro-batch's last op, if nothing else were to be done.
    pub(super) after_forward_ns: f64,
    pub(super) after_input_ns: f64,
    /// `[local]` of the backward: time of this stop's F overlapped with that B, where it is less than both alone.
    pub(super) pair_ns: Vec<Option<u64>>,
}

/// What a rank does with the next micro-batch of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    F(u32),
    I(u32),
    W(u32),
    FB(u32, u32),
}

impl Lines {
    /// Lays out `problem`, whose costs and cap fit its placement.
    ///
    /// # Errors
    /// A rank that cannot keep one micro-batch of each of its stages in one direction. No schedule can do with less: a
    /// micro-batch is alive on all of them when its forward reaches the last.
    pub(super) fn new(problem: &Problem) -> Result<Lines> {
        if can_fold(problem) {
            // Mirrored ranks keep one micro-batch of both directions at once: with less room, they take turns.
            if let Ok(folded) = Lines::laid_out(problem, true) {
                return Ok(folded);
            }
        }
        Lines::laid_out(problem, false)
    }

    fn laid_out(problem: &Problem, fold: bool) -> Result<Lines> {
        let Problem { placement, costs, .. } = problem;
        let microbatches = microbatches(problem);
        let num_ranks = placement.num_ranks();
        let ranks = if fold { num_ranks / 2 } else { num_ranks };
        let mut lines = Lines {
            stops: Vec::new(),
            on_rank: vec![Vec::new(); ranks],
            room: Vec::new(),
            period_ns: 0.0,
            ways_ns: Vec::new(),
            entry_ns: 0.0,
            share: vec![1.0; ranks],
            microbatches: if fold { vec![microbatches[0]] } else { microbatches },
            unfolded_ranks: fold.then_some(num_ranks),
        };
        for line in 0..lines.microbatches.len() {
            lines.add_line(problem, line, fold);
        }
        for rank in 0..ranks {
            let least = lines.least_room(rank);
            let copies = placement.copies_on(Rank::from_index(rank));
            let parameters = copies.iter().map(|copy| costs.stage(copy.stage).parameter_bytes);
            let parameters = parameters.fold(0, u64::saturating_add);
            lines.room.push(room(problem, rank, least, parameters)?);
        }
        lines.add_pairs(costs);
        let works = lines.on_rank.iter().zip(&lines.share).map(|(held, share)| {
            let work = held
                .iter()
                .map(|&stop| &lines.stops[stop])
                .map(|at| at.forward_ns + at.input_ns + at.weight_ns);
            work.sum::<u64>() as f64 * share
        });
        lines.period_ns = works.fold(0.0, f64::max);
        let spans = lines.on_rank.iter().zip(&lines.room).map(|(held, &room)| {
            let kept = held.iter().map(|&stop| &lines.stops[stop]).map(|at| {
                let least = at.after_forward_ns - at.after_input_ns + (at.forward_ns + at.weight_ns) as f64;
                at.size as f64 * least
            });
            kept.sum::<f64>() / room.max(1) as f64
        });
        lines.entry_ns = spans.fold(lines.period_ns, f64::max);
        Ok(lines)
    }

    fn add_line(&mut self, problem: &Problem, line: usize, fold: bool) {
        let Problem { placement, costs, .. } = problem;
        let (num_stages, first) = (placement.num_stages(), self.stops.len());
        let in_bytes = matches!(problem.cap, MemoryCap::Bytes(_));
        let direction = Direction::ALL[line];
        let real_rank = |stage: usize| {
            let copy = StageCopy { direction, stage: Stage(stage as u16) };
            placement.rank_of(copy).map_or(0, Rank::index)
        };
        let hop_ns = |stage: usize| match real_rank(stage) == real_rank(stage + 1) {
            true => 0,
            false => costs.output_ns(Stage(stage as u16)),
        };
        for stage in 0..num_stages {
            let real = real_rank(stage);
            let (rank, direction) = match fold && real >= self.on_rank.len() {
                true => (placement.num_ranks() - 1 - real, direction.opposite()),
                false => (real, direction),
            };
            let copy = StageCopy { direction, stage: Stage(stage as u16) };
            let cost = costs.stage(copy.stage);
            let local = self.on_rank[rank].len();
            self.on_rank[rank].push(first + stage);
            self.stops.push(Stop {
                line,
                stage,
                rank,
                local,
                copy,
                forward_ns: cost.forward_ns,
                input_ns: cost.input_ns,
                weight_ns: cost.weight_ns,
                size: if in_bytes { cost.activation_bytes } else { 1 },
                next: (stage + 1 < num_stages).then(|| (first + stage + 1, hop_ns(stage))),
                previous: stage.checked_sub(1).map(|before| (first + before, hop_ns(before))),
                after_forward_ns: 0.0,
                after_input_ns: 0.0,
                pair_ns: Vec::new(),
            });
        }
        self.add_ways(first);
    }

    /// How far it is from each stop of the line that begins at `first` to the end.
    fn add_ways(&mut self, first: usize) {
        let stops = &mut self.stops[first..];
        let mut way = stops.first().map_or(0, |stop| stop.weight_ns) as f64;
        for stop in stops.iter_mut() {
            way += stop.previous.map_or(0, |(_, hop)| hop) as f64;
            stop.after_input_ns = way;
            way += stop.input_ns as f64;
        }
        for stop in stops.iter_mut().rev() {
            way += stop.next.map_or(0, |(_, hop)| hop) as f64;
            stop.after_forward_ns = way;
            way += stop.forward_ns as f64;
        }
        let way_ns = stops.first().map_or(0.0, |stop| stop.after_forward_ns - stop.after_input_ns);
        self.ways_ns.push(way_ns);
    }

    fn add_pairs(&mut self, costs: &Costs) {
        for (held, share) in self.on_rank.iter().zip(&mut self.share) {
            for &f in held {
                let pairs = held.iter().map(|&b| {
                    let (f, b) = (&self.stops[f], &self.stops[b]);
                    let pair_ns = costs.pair_ns(f.copy.stage, b.copy.stage);
                    let apart_ns = f.forward_ns + b.input_ns + b.weight_ns;
                    if pair_ns < apart_ns {
                        *share = share.min(pair_ns as f64 / apart_ns as f64);
                    }
                    (pair_ns < apart_ns).then_some(pair_ns)
                });
                let pairs: Vec<Option<u64>> = pairs.collect();
                self.stops[f].pair_ns = pairs;
            }
        }
    }

    /// What one micro-batch keeps alive on all stages of `rank`, in the direction where that is more.
    fn least_room(&self, rank: usize) -> u64 {
        let of_line = |line: usize| {
            let held = self.on_rank[rank].iter().map(|&stop| &self.stops[stop]);
            held.filter(|stop| stop.line == line).map(|stop| stop.size).fold(0, u64::saturating_add)
        };
        (0..self.microbatches.len()).map(of_line).max().unwrap_or(0)
    }

    /// Stages of `line`.
    pub(super) fn on_line(&self, line: usize) -> usize {
        debug_assert!(line < self.microbatches.len());
        self.stops.len() / self.microbatches.len()
    }

    /// All passes' F, I and W.
    pub(super) fn num_steps(&self) -> usize {
        self.stops.iter().map(|stop| 3 * self.microbatches[stop.line]).sum()
    }

    /// F, I and W of all passes of `stop`, if none overlap.
    pub(super) fn work_ns(&self, stop: usize) -> u64 {
        let Stop { line, forward_ns, input_ns, weight_ns, .. } = self.stops[stop];
        self.microbatches[line] as u64 * (forward_ns + input_ns + weight_ns)
    }

    /// Time of F of one stop and B of another of the same rank, overlapped if that is shorter.
    pub(super) fn together_ns(&self, forward: usize, backward: usize) -> u64 {
        let (f, b) = (&self.stops[forward], &self.stops[backward]);
        f.pair_ns[b.local].unwrap_or(f.forward_ns + b.input_ns + b.weight_ns)
    }

    /// The orders of all ranks of the problem.
    pub(super) fn orders(&self, steps: &[Vec<Step>]) -> Vec<Vec<Op>> {
        let half = steps.iter().map(|steps| self.order(steps, false));
        match self.unfolded_ranks {
            None => half.collect(),
            Some(_) => half.chain(steps.iter().rev().map(|steps| self.order(steps, true))).collect(),
        }
    }

    fn order(&self, steps: &[Step], mirrored: bool) -> Vec<Op> {
        let mut forwards = vec![0; self.stops.len()];
        let mut inputs = vec![0; self.stops.len()];
        let mut put_off = vec![VecDeque::new(); self.stops.len()];
        let pass = |stop: usize, microbatch: usize| {
            let StageCopy { direction, stage } = self.stops[stop].copy;
            let direction = if mirrored { direction.opposite() } else { direction };
            Pass { direction, stage, microbatch: Microbatch::from_index(microbatch) }
        };
        let next = |counts: &mut [usize], stop: usize| {
            counts[stop] += 1;
            counts[stop] - 1
        };
        let ops = steps.iter().filter_map(|&step| match step {
            Step::F(f) => Some(Op::F(pass(f as usize, next(&mut forwards, f as usize)))),
            Step::I(b) => {
                let microbatch = next(&mut inputs, b as usize);
                put_off[b as usize].push_back(microbatch);
                Some(Op::I(pass(b as usize, microbatch)))
            }
            Step::W(b) => Some(Op::W(pass(b as usize, put_off[b as usize].pop_front()?))),
            Step::FB(f, b) => {
                let backward = pass(b as usize, next(&mut inputs, b as usize));
                Some(Op::FB(pass(f as usize, next(&mut forwards, f as usize)), backward))
            }
        });
        ops.collect()
    }
}

/// Of each direction that has any.
fn microbatches(problem: &Problem) -> Vec<usize> {
    let n = problem.num_microbatches;
    match problem.placement.num_directions() {
        1 => vec![n],
        _ if n == 1 => vec![1],
        _ => vec![n.div_ceil(2), n / 2],
    }
}

/// Whether rank P-1-r can do what rank r does with the directions swapped.
fn can_fold(problem: &Problem) -> bool {
    let Problem { placement, cap, .. } = problem;
    let last = placement.num_ranks() - 1;
    let mirrored = |stage: usize| {
        let rank = |direction| {
            placement.rank_of(StageCopy { direction, stage: Stage(stage as u16) }).map(Rank::index)
        };
        rank(Direction::Down).is_some_and(|down| rank(Direction::Up) == Some(last - down))
    };
    let same_cap = |rank: usize| {
        let (rank, mirror) = (Rank::from_index(rank), Rank::from_index(last - rank));
        cap.activations(rank) == cap.activations(mirror) && cap.bytes(rank) == cap.bytes(mirror)
    };
    placement.num_directions() == 2
        && problem.num_microbatches % 2 == 0
        && placement.num_ranks() % 2 == 0
        && (0..placement.num_stages()).all(mirrored)
        && (0..=last).all(same_cap)
}

/// What `rank` may keep alive beside its parameters.
fn room(problem: &Problem, rank: usize, least: u64, parameters: u64) -> Result<u64> {
    let rank = Rank::from_index(rank);
    let too_small = |cap: u64, least: u64, what: &str| {
        let range = format!(
            "must be at least {least}: one micro-batch on each of the rank's stages of a direction{what}"
        );
        Err(Error::argument("plan", format!("the memory cap of rank {rank}"), cap, range))
    };
    if let Some(cap) = problem.cap.activations(rank) {
        return if (cap as u64) < least { too_small(cap as u64, least, "") } else { Ok(cap as u64) };
    }
    match problem.cap.bytes(rank) {
        None => Ok(u64::MAX),
        Some(cap) if cap < parameters.saturating_add(least) => {
            too_small(cap, parameters.saturating_add(least), " and its parameters, in bytes")
        }
        Some(cap) => Ok(cap - parameters),
    }
}
