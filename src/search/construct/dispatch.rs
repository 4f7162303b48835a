//! List scheduling in simulated time: whenever a rank is free, a [`Policy`] chooses what it does next.
//!
//! It never gets stuck: a rank waits only for what is on its way, and the memory rule of `room` always lets some
//! micro-batch go on.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::lines::{Lines, Step};
use super::policy::Policy;

/// What came of a policy.
pub(super) struct Outcome {
    /// Each step as early as the order allows, which may be earlier than it was dispatched.
    pub(super) makespan_ns: u64,
    /// The squares of when the ranks end, summed, in periods.
    pub(super) ends: f64,
    /// `[rank]`.
    pub(super) steps: Vec<Vec<Step>>,
}

/// Lets every rank follow `policy`; `None` as soon as it is sure to take longer than `limit_ns`. Time: proportional to
/// the number of steps, times the micro-batches in flight where memory is tight.
pub(super) fn dispatch(lines: &Lines, policy: &Policy, limit_ns: u64) -> Option<Outcome> {
    let mut dispatch = Dispatch::new(lines, policy);
    while let Some(Reverse((now, rank))) = dispatch.wakes.pop() {
        let state = &dispatch.ranks[rank];
        if state.free_ns > now || state.left == 0 {
            continue;
        }
        if now as f64 + state.left_ns as f64 * lines.share[rank] > limit_ns as f64 + 1.0 {
            return None;
        }
        if let Some((step, start)) = dispatch.choose(rank, now) {
            if start <= now {
                dispatch.run(rank, step, now);
            }
        }
    }
    assert!(dispatch.ranks.iter().all(|rank| rank.left == 0), "the dispatcher never gets stuck");
    let steps: Vec<Vec<Step>> = dispatch.ranks.into_iter().map(|rank| rank.steps).collect();
    let ends = lines.play(&steps);
    let period = lines.period_ns.max(1.0);
    let squares = ends.iter().map(|&end| end as f64 / period).map(|end| end * end).sum();
    Some(Outcome { makespan_ns: ends.into_iter().max().unwrap_or(0), ends: squares, steps })
}

pub(super) struct Dispatch<'a> {
    pub(super) lines: &'a Lines,
    policy: &'a Policy,
    pub(super) stops: Vec<Progress>,
    pub(super) ranks: Vec<RankState>,
    /// Of each line.
    pub(super) entered: [usize; 2],
    /// `[line][microbatch]`: how many of each line had entered before it.
    pub(super) entered_before: [Vec<[usize; 2]>; 2],
    /// When to look at which rank.
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
}

/// How far the micro-batches of a stop are.
pub(super) struct Progress {
    pub(super) forwards: usize,
    pub(super) inputs: usize,
    /// Micro-batches whose W is put off, oldest first.
    pub(super) put_off: VecDeque<usize>,
    /// When the activations and gradients that are known of are there, in order.
    activation_ns: Vec<u64>,
    gradient_ns: Vec<u64>,
    /// The most micro-batches between F and I.
    lead: usize,
}

pub(super) struct RankState {
    free_ns: u64,
    pub(super) alive: u64,
    /// Stops with a W put off, oldest first.
    put_off: VecDeque<usize>,
    /// F, I and W yet to be done.
    left: usize,
    /// The time that they take if none overlap.
    left_ns: u64,
    steps: Vec<Step>,
}

/// A step that could be next.
#[derive(Clone, Copy)]
struct Candidate {
    start_ns: u64,
    /// When it is due, in periods.
    due: f64,
}

impl<'a> Dispatch<'a> {
    fn new(lines: &'a Lines, policy: &'a Policy) -> Dispatch<'a> {
        let progress = lines.stops.iter().zip(&policy.extra_lead).map(|(stop, extra)| {
            let n = lines.microbatches[stop.line];
            let way = (stop.after_forward_ns - stop.after_input_ns) / lines.ways_ns[stop.line].max(1.0);
            let stages = lines.on_line(stop.line) as f64;
            Progress {
                forwards: 0,
                inputs: 0,
                put_off: VecDeque::new(),
                activation_ns: if stop.previous.is_none() { vec![0; n] } else { Vec::with_capacity(n) },
                gradient_ns: Vec::with_capacity(n),
                lead: (policy.lead * stages * way + extra + 1.0).max(1.0) as usize,
            }
        });
        let ranks = lines.on_rank.iter().map(|held| {
            let left = held.iter().map(|&stop| 3 * lines.microbatches[lines.stops[stop].line]).sum();
            RankState {
                free_ns: 0,
                alive: 0,
                put_off: VecDeque::new(),
                left,
                left_ns: held.iter().map(|&stop| lines.work_ns(stop)).sum(),
                steps: Vec::with_capacity(left),
            }
        });
        Dispatch {
            lines,
            policy,
            stops: progress.collect(),
            ranks: ranks.collect(),
            entered: [0; 2],
            entered_before: [Vec::new(), Vec::new()],
            wakes: (0..lines.on_rank.len()).map(|rank| Reverse((0, rank))).collect(),
        }
    }

    /// What `rank` does next, and when it can start; `None` if it has to wait for what is not on its way yet.
    fn choose(&self, rank: usize, now: u64) -> Option<(Step, u64)> {
        let period = self.lines.period_ns.max(1.0);
        let horizon = now.saturating_add((self.policy.wait * period) as u64);
        let price = |start: u64| self.policy.wait_price * (start - now) as f64 / period;
        let held = &self.lines.on_rank[rank];
        let mut best: Option<(f64, Step, u64)> = None;
        let mut offer = |score: f64, step: Step, start: u64| {
            if start <= horizon && best.is_none_or(|(least, ..)| score < least) {
                best = Some((score, step, start));
            }
        };
        let weight = self.weight(rank);
        if let Some((stop, due)) = weight {
            offer(due, Step::W(stop as u32), now);
        }
        for &stop in held {
            if let Some(b) = self.backward(stop, now) {
                offer(b.due + price(b.start_ns), Step::I(stop as u32), b.start_ns);
            }
        }
        for &stop in held {
            let Some(f) = self.forward(stop, now) else { continue };
            if f.start_ns > horizon || !self.fits(stop) {
                continue;
            }
            let in_flight = self.stops[stop].forwards - self.stops[stop].inputs;
            let lead = self.stops[stop].lead;
            if in_flight < lead {
                offer(f.due + price(f.start_ns), Step::F(stop as u32), f.start_ns);
            }
            if in_flight >= lead + self.policy.pair_lead {
                continue;
            }
            for &other in held {
                let stop_of_b = &self.lines.stops[other];
                let Some(pair_ns) = self.lines.stops[stop].pair_ns[stop_of_b.local] else { continue };
                let Some(b) = self.backward(other, now) else { continue };
                let apart = self.lines.stops[stop].forward_ns + stop_of_b.input_ns + stop_of_b.weight_ns;
                let saved = (apart - pair_ns) as f64 / period;
                let start = f.start_ns.max(b.start_ns);
                let due = f.due.min(b.due) - self.policy.pair_bonus * saved;
                offer(due + price(start), Step::FB(stop as u32, other as u32), start);
            }
        }
        let (_, step, start) = best?;
        if start > now {
            if let Some((stop, _)) = weight {
                let takes = self.lines.stops[stop].weight_ns as f64;
                if takes * self.policy.filler <= (start - now) as f64 {
                    return Some((Step::W(stop as u32), now));
                }
            }
        }
        Some((step, start))
    }

    fn forward(&self, stop: usize, now: u64) -> Option<Candidate> {
        let (at, progress) = (&self.lines.stops[stop], &self.stops[stop]);
        let m = progress.forwards;
        let &arrival = progress.activation_ns.get(m)?;
        let mut start_ns = arrival.max(now);
        if at.previous.is_none() && m > progress.inputs {
            start_ns = start_ns.max(self.entrance_ns(at.line, m));
        }
        let way = self.policy.urgency * at.after_forward_ns / self.lines.period_ns.max(1.0);
        let due = m as f64 - way + self.policy.later(stop, 0, m);
        Some(Candidate { start_ns, due })
    }

    fn backward(&self, stop: usize, now: u64) -> Option<Candidate> {
        let (at, progress) = (&self.lines.stops[stop], &self.stops[stop]);
        let m = progress.inputs;
        let &arrival = progress.gradient_ns.get(m)?;
        let way = self.policy.urgency * at.after_input_ns / self.lines.period_ns.max(1.0);
        let due = m as f64 - way + self.policy.later(stop, 1, m);
        Some(Candidate { start_ns: arrival.max(now), due })
    }

    /// The oldest W put off, and when it is due.
    fn weight(&self, rank: usize) -> Option<(usize, f64)> {
        let &stop = self.ranks[rank].put_off.front()?;
        let oldest = *self.stops[stop].put_off.front()?;
        Some((stop, oldest as f64 + self.policy.weight_delay))
    }

    /// When a micro-batch may enter while others are under way.
    fn entrance_ns(&self, line: usize, microbatch: usize) -> u64 {
        let burst = (self.policy.burst * self.lines.on_line(line) as f64) as usize + 1;
        let late = microbatch.saturating_sub(burst - 1) as f64;
        (late * self.policy.pace * self.lines.entry_ns) as u64
    }

    fn run(&mut self, rank: usize, step: Step, now: u64) {
        let end = match step {
            Step::F(stop) => {
                let end = now + self.lines.stops[stop as usize].forward_ns;
                self.finish_forward(stop as usize, end);
                end
            }
            Step::I(stop) => {
                let end = now + self.lines.stops[stop as usize].input_ns;
                let microbatch = self.stops[stop as usize].inputs;
                self.finish_input(stop as usize, end);
                self.stops[stop as usize].put_off.push_back(microbatch);
                self.ranks[rank].put_off.push_back(stop as usize);
                end
            }
            Step::W(stop) => {
                self.ranks[rank].put_off.pop_front();
                self.stops[stop as usize].put_off.pop_front();
                self.finish_weight(stop as usize);
                now + self.lines.stops[stop as usize].weight_ns
            }
            Step::FB(f, b) => {
                let end = now + self.lines.together_ns(f as usize, b as usize);
                self.finish_forward(f as usize, end);
                self.finish_input(b as usize, end);
                self.finish_weight(b as usize);
                end
            }
        };
        let state = &mut self.ranks[rank];
        state.steps.push(step);
        state.free_ns = end;
        self.wakes.push(Reverse((end, rank)));
    }

    fn finish_forward(&mut self, stop: usize, end: u64) {
        let at = &self.lines.stops[stop];
        self.stops[stop].forwards += 1;
        let state = &mut self.ranks[at.rank];
        state.alive += at.size;
        state.left -= 1;
        state.left_ns -= at.forward_ns;
        if at.previous.is_none() {
            self.enter(at.line, end);
        }
        match at.next {
            None => self.stops[stop].gradient_ns.push(end),
            Some((next, hop)) => {
                self.stops[next].activation_ns.push(end + hop);
                self.wakes.push(Reverse((end + hop, self.lines.stops[next].rank)));
            }
        }
    }

    fn enter(&mut self, line: usize, now: u64) {
        let before = self.before(line, self.entered[line]);
        self.entered_before[line].push(before);
        self.entered[line] += 1;
        if let Some(entrance) = self.lines.stops.iter().find(|stop| stop.stage == 0 && stop.line == line) {
            let next = self.entrance_ns(line, self.entered[line]);
            if next > now {
                self.wakes.push(Reverse((next, entrance.rank)));
            }
        }
        for entrance in self.lines.stops.iter().filter(|stop| stop.stage == 0 && stop.line != line) {
            self.wakes.push(Reverse((now, entrance.rank)));
        }
    }

    fn finish_input(&mut self, stop: usize, end: u64) {
        let at = &self.lines.stops[stop];
        self.stops[stop].inputs += 1;
        self.ranks[at.rank].left -= 1;
        self.ranks[at.rank].left_ns -= at.input_ns;
        if let Some((previous, hop)) = at.previous {
            self.stops[previous].gradient_ns.push(end + hop);
            self.wakes.push(Reverse((end + hop, self.lines.stops[previous].rank)));
        }
    }

    fn finish_weight(&mut self, stop: usize) {
        let at = &self.lines.stops[stop];
        let state = &mut self.ranks[at.rank];
        state.alive -= at.size;
        state.left -= 1;
        state.left_ns -= at.weight_ns;
    }
}
