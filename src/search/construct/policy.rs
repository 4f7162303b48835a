//! The rule by which a rank chooses its next op, as numbers that can be varied.

use super::lines::Lines;
use crate::random::Random;

/// What a rank prefers. Times are in parts of the period: the work of the busiest rank per micro-batch.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// How much the way that a micro-batch still has to go counts: 0 is oldest first, 1 is by due time.
    pub(super) urgency: f64,
    /// How long W may be put off when there is other work.
    pub(super) weight_delay: f64,
    /// How much sooner than its parts an overlapped pair is due, per period saved.
    pub(super) pair_bonus: f64,
    /// How long a rank may wait for a message that is on its way.
    pub(super) wait: f64,
    /// What waiting costs.
    pub(super) wait_price: f64,
    /// W fills a wait that is at least this part of it.
    pub(super) filler: f64,
    /// Micro-batches between F and I of a stop, in parts of the stages that are left, which is 1F1B's lead.
    pub(super) lead: f64,
    /// Periods from one micro-batch that enters to the next.
    pub(super) pace: f64,
    /// Micro-batches that may enter at once, in parts of the stages.
    pub(super) burst: f64,
    /// How many more there may be where the F is part of an overlapped pair.
    pub(super) pair_lead: usize,
    /// `[stop]`: F and I come sooner or later than by the rules above.
    pub(super) bias: Vec<[f64; 2]>,
    /// `[stop][F or I][microbatch]`: the same for single steps; empty where there are too many of them.
    pub(super) shifts: Vec<[Vec<f64>; 2]>,
    /// `[stop]`: added to what `lead` allows.
    pub(super) extra_lead: Vec<f64>,
}

/// No limit worth the name.
const FREE: f64 = 1e6;
/// Most steps that are shifted one by one.
const SHIFTED_STEPS_MAX: usize = 4000;

/// The numbers of a rule, in order of the fields.
type Row = (f64, f64, f64, f64, f64, f64, f64, f64, f64, usize);

impl Policy {
    /// The rules to begin with: each was found by varying numbers at random, and is the best of its kind somewhere.
    pub(super) fn basics(lines: &Lines) -> Vec<Policy> {
        let rows = [
            // urgency, weight_delay, pair_bonus, wait, wait_price, filler, lead, pace, burst, pair_lead
            (0.3, FREE, 1.0, 0.00, 0.3, 0.7, 2.0, 0.0, 0.25, 1),
            (1.0, 0.50, 0.0, 0.00, 1.0, 1.0, FREE, 1.0, 0.1, 0),
            (0.1, FREE, 4.0, 0.00, 3.0, 0.7, 2.0, 0.0, 0.25, 0),
            (1.0, 0.50, 0.0, 0.20, 0.3, 0.7, 0.35, 1.0, 0.5, 0),
            (0.7, FREE, 4.0, 0.00, 0.3, 1.0, 1.0, 1.0, 0.25, 0),
            (0.3, 0.50, 4.0, 0.20, 0.3, 0.7, 2.0, 1.0, 0.25, 0),
            (0.1, FREE, 0.0, 0.00, 0.3, 0.3, FREE, 1.0, 0.25, 0),
            (0.5, FREE, 4.0, 0.00, 3.0, 1.0, 2.0, 0.8, 0.25, 0),
            (0.1, 0.50, 4.0, 0.35, 3.0, 1.0, 2.0, 0.0, 0.25, 2),
            (0.7, 0.50, 0.0, 0.35, 1.0, 0.3, 1.0, 1.2, 0.1, 1),
            (1.0, 2.00, 1.0, 0.35, 3.0, 1.0, 1.0, 0.0, 0.5, 0),
            (0.5, FREE, 0.0, 0.35, 3.0, 0.3, FREE, 0.0, 0.5, 0),
            (0.3, FREE, 1.0, 0.00, 3.0, 0.7, FREE, 0.0, 0.5, 1),
            (0.3, FREE, 0.0, 0.00, 3.0, 1.0, FREE, 1.2, 0.25, 0),
            (1.0, 2.00, 0.0, 0.00, 1.0, 0.3, 2.0, 0.0, 0.25, 0),
            (0.5, FREE, 4.0, 0.00, 0.3, 0.3, FREE, 1.2, 0.5, 0),
        ];
        rows.map(|row| Policy::new(lines, row)).into()
    }

    fn new(lines: &Lines, row: Row) -> Policy {
        let (urgency, weight_delay, pair_bonus, wait, wait_price, filler, lead, pace, burst, pair_lead) = row;
        let are_few = lines.num_steps() <= SHIFTED_STEPS_MAX;
        let shifts = lines.stops.iter().map(|stop| {
            let n = if are_few { lines.microbatches[stop.line] } else { 0 };
            [vec![0.0; n], vec![0.0; n]]
        });
        Policy {
            urgency,
            weight_delay,
            pair_bonus,
            wait,
            wait_price,
            filler,
            lead,
            pace,
            burst,
            pair_lead,
            bias: vec![[0.0; 2]; lines.stops.len()],
            shifts: shifts.collect(),
            extra_lead: vec![0.0; lines.stops.len()],
        }
    }

    /// How much later, in periods, F (0) or I (1) of a micro-batch is due at `stop`.
    pub(super) fn later(&self, stop: usize, kind: usize, microbatch: usize) -> f64 {
        self.bias[stop][kind] + self.shifts[stop][kind].get(microbatch).unwrap_or(&0.0)
    }

    /// A policy near this one; `shifts`: also with single steps moved.
    pub(super) fn varied(&self, random: &mut Random, shifts: bool) -> Policy {
        let mut policy = self.clone();
        for _ in 0..1 + random.below(3) {
            policy.vary_one(random, shifts);
        }
        policy
    }

    fn vary_one(&mut self, random: &mut Random, shifts: bool) {
        let stop = random.below(self.bias.len());
        let step = 2.0 * random.unit() - 1.0;
        match random.below(if shifts { 26 } else { 13 }) {
            0 => self.urgency = (self.urgency + 0.3 * step).max(0.0),
            1 => self.weight_delay = if random.below(4) == 0 { FREE } else { 4.0 * random.unit() - 0.5 },
            2 => self.pair_bonus = 8.0 * random.unit() - 1.0,
            3 => self.wait = if random.below(3) == 0 { 0.0 } else { random.unit() },
            4 => self.wait_price = 3.0 * random.unit(),
            5 => self.filler = 1.2 * random.unit(),
            6 => match random.below(4) {
                0 => self.lead = if random.below(3) == 0 { FREE } else { 0.2 + 1.2 * random.unit() },
                1 => self.pace = if random.below(3) == 0 { 0.0 } else { 0.7 + 0.8 * random.unit() },
                2 => self.pace = (self.pace + 0.1 * step).max(0.0),
                _ => self.burst = random.unit(),
            },
            7 => self.extra_lead[stop] += 2.0 * step,
            8 => self.pair_lead = random.below(3),
            13.. => self.shift(stop, 2.0 * step, random),
            9 | 10 => self.bias[stop][0] += 1.5 * step,
            _ => self.bias[stop][1] += 1.5 * step,
        }
    }

    /// Moves one step, or it and all later ones of its kind.
    fn shift(&mut self, stop: usize, by: f64, random: &mut Random) {
        let steps = &mut self.shifts[stop][random.below(2)];
        if steps.is_empty() {
            return;
        }
        let first = random.below(steps.len());
        let end =
            if random.below(3) == 0 { steps.len() } else { (first + 1 + random.below(2)).min(steps.len()) };
        steps[first..end].iter_mut().for_each(|step| *step += by);
    }
}
