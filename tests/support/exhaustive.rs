//! The least makespan of a small case, by going through all schedules: an oracle for bounds and planners.
//!
//! A* over moments at which something ends or arrives. At each, every free rank starts an op that it can start, or
//! waits for the next such moment: schedules that start an op at any other time could start it earlier. Passes of one
//! copy whose input is there are alike, so only their number is kept; B is I and then W, which is never worse.
#![allow(dead_code)] // each test file uses a part of it

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use dualpipe::cost::Costs;
use dualpipe::ids::{Direction, Rank, Stage};
use dualpipe::op::StageCopy;
use dualpipe::placement::Placement;
use dualpipe::sim::MemoryCap;

/// The least makespan of a training step within `cap`, in nanoseconds; `None` if no schedule keeps to it.
///
/// Time and memory: exponential. Up to 3 ranks with 3 micro-batches take milliseconds to seconds.
pub(crate) fn optimal_makespan_ns(
    placement: &Placement,
    num_microbatches: usize,
    costs: &Costs,
    cap: &MemoryCap,
) -> Option<u64> {
    let case = Case::new(placement, num_microbatches, costs, cap)?;
    let start = case.start();
    let mut best: HashMap<Moment, u64> = HashMap::from([(start.clone(), 0)]);
    let mut queue = BinaryHeap::from([Reverse((case.rest_ns(&start), 0, start))]);
    while let Some(Reverse((_, now, moment))) = queue.pop() {
        if best[&moment] < now {
            continue;
        }
        if case.is_done(&moment) {
            return Some(now);
        }
        let mut choices = Vec::new();
        case.choose(&moment, 0, &mut choices);
        for chosen in choices {
            let Some((passed, next)) = case.wait(chosen) else { continue };
            let then = now + passed;
            if best.get(&next).is_none_or(|&known| then < known) {
                best.insert(next.clone(), then);
                queue.push(Reverse((then + case.rest_ns(&next), then, next)));
            }
        }
    }
    None
}

/// One copy that has micro-batches, and what it costs.
struct Copy {
    rank: usize,
    stage: Stage,
    count: u8,
    memory: u64,
    /// How long its output and its gradient travel; `None` at the ends of the model.
    output: Option<(usize, u64)>,
    gradient: Option<(usize, u64)>,
}

struct Case<'a> {
    costs: &'a Costs,
    copies: Vec<Copy>,
    /// Memory for activations, of each rank.
    free: Vec<u64>,
    /// Of each copy: from the start of an F to the end of its micro-batch, if nothing else were to be done.
    forward_way_ns: Vec<u64>,
    /// The same from the start of an I.
    backward_way_ns: Vec<u64>,
}

/// What is done and what is under way. Times count from now.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Moment {
    /// Of each copy.
    progress: Vec<Progress>,
    /// Of each rank: how long its op still runs, and which F and B it is.
    running: Vec<Option<(u64, Running)>>,
    /// Messages under way: when, F or not, to which copy. In order.
    messages: Vec<(u64, bool, usize)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Progress {
    /// Inputs and gradients that are there and not yet used.
    inputs: u8,
    gradients: u8,
    /// Started F, I and W.
    forward: u8,
    input: u8,
    weight: u8,
}

/// By copy. W is neither.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Running {
    forward: Option<usize>,
    input: Option<usize>,
}

impl<'a> Case<'a> {
    fn new(
        placement: &Placement,
        num_microbatches: usize,
        costs: &'a Costs,
        cap: &MemoryCap,
    ) -> Option<Case<'a>> {
        let counts = match placement.num_directions() {
            1 => [num_microbatches, 0],
            _ => [num_microbatches.div_ceil(2), num_microbatches / 2],
        };
        let index = |copy: StageCopy| copy.direction.index() * placement.num_stages() + copy.stage.index();
        let copies = Direction::ALL[..placement.num_directions()].iter().flat_map(|&direction| {
            (0..placement.num_stages()).map(move |s| StageCopy { direction, stage: Stage(s as u16) })
        });
        let copies = copies.map(|copy| {
            let rank = placement.rank_of(copy).unwrap();
            let to = |other: StageCopy| {
                let hop_ns = costs.output_ns(copy.stage.min(other.stage));
                (index(other), if placement.rank_of(other) == Some(rank) { 0 } else { hop_ns })
            };
            Copy {
                rank: rank.index(),
                stage: copy.stage,
                count: counts[copy.direction.index()] as u8,
                memory: match cap {
                    MemoryCap::Unlimited => 0,
                    MemoryCap::Activations(_) => 1,
                    MemoryCap::Bytes(_) => costs.stage(copy.stage).activation_bytes,
                },
                output: placement.next(copy).map(to),
                gradient: placement.previous(copy).map(to),
            }
        });
        let free = (0..placement.num_ranks()).map(|r| {
            let rank = Rank(r as u32);
            let parameters = placement.copies_on(rank).iter().map(|c| costs.stage(c.stage).parameter_bytes);
            match cap {
                MemoryCap::Unlimited => Some(0),
                MemoryCap::Activations(_) => cap.activations(rank).map(|cap| cap as u64),
                MemoryCap::Bytes(_) => cap.bytes(rank)?.checked_sub(parameters.sum()),
            }
        });
        let (copies, free) = (copies.collect(), free.collect::<Option<_>>()?);
        let mut case = Case { costs, copies, free, forward_way_ns: Vec::new(), backward_way_ns: Vec::new() };
        (case.forward_way_ns, case.backward_way_ns) = case.ways_ns();
        Some(case)
    }

    fn start(&self) -> Moment {
        let progress = self.copies.iter().map(|copy| Progress {
            inputs: if copy.gradient.is_none() { copy.count } else { 0 },
            ..Progress::default()
        });
        Moment { progress: progress.collect(), running: vec![None; self.free.len()], messages: Vec::new() }
    }

    fn is_done(&self, moment: &Moment) -> bool {
        let all = self.copies.iter().zip(&moment.progress).all(|(copy, p)| p.weight == copy.count);
        all && moment.running.iter().all(Option::is_none)
    }

    /// Every way in which the ranks from `rank` on can go on now.
    fn choose(&self, moment: &Moment, rank: usize, choices: &mut Vec<Moment>) {
        if rank == self.free.len() {
            return choices.push(moment.clone());
        }
        self.choose(moment, rank + 1, choices);
        if moment.running[rank].is_some() {
            return;
        }
        let live = |c: usize| {
            (moment.progress[c].forward - moment.progress[c].weight) as u64 * self.copies[c].memory
        };
        let held = || (0..self.copies.len()).filter(|&c| self.copies[c].rank == rank);
        let alive: u64 = held().map(live).sum();
        let has_room = |c: usize| alive + self.copies[c].memory <= self.free[rank];
        let mut start = |ns: u64, running: Running, weight: Option<usize>| {
            let mut next = moment.clone();
            if let Some(c) = running.forward {
                next.progress[c].inputs -= 1;
                next.progress[c].forward += 1;
            }
            if let Some(c) = running.input {
                next.progress[c].gradients -= 1;
                next.progress[c].input += 1;
            }
            if let Some(c) = weight {
                next.progress[c].weight += 1;
            }
            next.running[rank] = Some((ns, running));
            self.choose(&next, rank + 1, choices);
        };
        for c in held() {
            let progress = moment.progress[c];
            let costs = self.costs.stage(self.copies[c].stage);
            if progress.inputs > 0 && has_room(c) {
                start(costs.forward_ns, Running { forward: Some(c), input: None }, None);
                for b in held().filter(|&b| moment.progress[b].gradients > 0) {
                    let ns = self.costs.pair_ns(self.copies[c].stage, self.copies[b].stage);
                    start(ns, Running { forward: Some(c), input: Some(b) }, Some(b));
                }
            }
            if progress.gradients > 0 {
                start(costs.input_ns, Running { forward: None, input: Some(c) }, None);
            }
            if progress.input > progress.weight {
                start(costs.weight_ns, Running::default(), Some(c));
            }
        }
    }

    /// Until the next op ends or message arrives; `None` if nothing will.
    fn wait(&self, mut moment: Moment) -> Option<(u64, Moment)> {
        let ends = moment.running.iter().flatten().map(|&(ns, _)| ns);
        let passed = ends.chain(moment.messages.iter().map(|&(ns, ..)| ns)).min()?;
        for rank in 0..moment.running.len() {
            let Some((ns, running)) = &mut moment.running[rank] else { continue };
            *ns -= passed;
            if *ns > 0 {
                continue;
            }
            // Messages sent now have all of their way before them: `passed` is taken off below.
            if let Some(c) = running.forward {
                match self.copies[c].output {
                    Some((to, ns)) => moment.messages.push((passed + ns, true, to)),
                    None => moment.messages.push((passed, false, c)),
                }
            }
            if let Some((to, ns)) = running.input.and_then(|c| self.copies[c].gradient) {
                moment.messages.push((passed + ns, false, to));
            }
            moment.running[rank] = None;
        }
        for (ns, is_input, to) in &mut moment.messages {
            *ns -= passed;
            if *ns == 0 {
                let progress = &mut moment.progress[*to];
                *(if *is_input { &mut progress.inputs } else { &mut progress.gradients }) += 1;
            }
        }
        moment.messages.retain(|&(ns, ..)| ns > 0);
        moment.messages.sort_unstable();
        Some((passed, moment))
    }

    /// No more than what is left to do: on each rank with all pairs that there could be, and by each copy one F or I
    /// after the other, with the way of the last of them.
    fn rest_ns(&self, moment: &Moment) -> u64 {
        let stage = |c: usize| self.costs.stage(self.copies[c].stage);
        let of_rank = |rank: usize| {
            let held = || (0..self.copies.len()).filter(|&c| self.copies[c].rank == rank);
            let left = |c: usize| {
                let (p, count) = (moment.progress[c], self.copies[c].count);
                [count - p.forward, count - p.input, count - p.weight].map(u64::from)
            };
            let apart: u64 = held()
                .map(|c| {
                    let [f, i, w] = left(c);
                    f * stage(c).forward_ns + i * stage(c).input_ns + w * stage(c).weight_ns
                })
                .sum();
            let saved = held().flat_map(|f| held().map(move |b| (f, b))).map(|(f, b)| {
                let apart = stage(f).forward_ns + stage(b).backward_ns();
                apart.saturating_sub(self.costs.pair_ns(self.copies[f].stage, self.copies[b].stage))
            });
            let forwards: u64 = held().map(|c| left(c)[0]).sum();
            let backwards: u64 = held().map(|c| left(c)[1]).sum();
            let running = moment.running[rank].map_or(0, |(ns, _)| ns);
            running + apart.saturating_sub(saved.max().unwrap_or(0) * forwards.min(backwards))
        };
        let of_copy = |c: usize| {
            let (p, count) = (moment.progress[c], self.copies[c].count);
            let in_turn = |left: u8, ns: u64, way_ns: u64| {
                left.checked_sub(1).map_or(0, |rest| rest as u64 * ns + way_ns)
            };
            let forwards = in_turn(count - p.forward, stage(c).forward_ns, self.forward_way_ns[c]);
            forwards.max(in_turn(count - p.input, stage(c).input_ns, self.backward_way_ns[c]))
        };
        let ranks = (0..self.free.len()).map(of_rank).max();
        let copies = (0..self.copies.len()).map(of_copy).max();
        ranks.max(copies).unwrap_or(0)
    }

    /// The times of [`Case::forward_way_ns`] and [`Case::backward_way_ns`].
    fn ways_ns(&self) -> (Vec<u64>, Vec<u64>) {
        let stage = |c: usize| self.costs.stage(self.copies[c].stage);
        let mut backward = vec![0; self.copies.len()];
        for c in 0..self.copies.len() {
            // Copies are in order of their stages, so the previous one is known.
            let on = self.copies[c].gradient.map_or(0, |(to, ns)| ns + backward[to]);
            backward[c] = stage(c).input_ns + on.max(stage(c).weight_ns);
        }
        let mut forward = backward.clone();
        for c in (0..self.copies.len()).rev() {
            let on = self.copies[c].output.map_or(backward[c], |(to, ns)| ns + forward[to]);
            forward[c] = stage(c).forward_ns + on;
        }
        (forward, backward)
    }
}
