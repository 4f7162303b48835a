//! A smaller schedule with the same kind of fault, found by leaving whole micro-batches out.
//!
//! First only the micro-batches that the fault is about are kept. If it is gone then, halves, quarters and so on of all
//! micro-batches are left out for as long as it shows (Zeller and Hildebrandt, "Simplifying and isolating
//! failure-inducing input", 2002). In the end no micro-batch can be left out; with two directions also no two, one of
//! each.

use super::{examine, Finding, Options, Report};
use crate::ids::{Direction, Microbatch};
use crate::op::{Action, Message, Op, Pass, Task};
use crate::schedule::Schedule;

/// How many ops, actions and passes all tries for one finding may look at, so that a fault in a large schedule is
/// reported without delay.
const WORK_MAX: usize = 1 << 21;

/// A smaller schedule with the same kind of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// It, with the micro-batches numbered anew from 0.
    pub schedule: Schedule,
    /// Its communicating order, if one was given.
    pub actions: Option<Vec<Vec<Action>>>,
    /// What its micro-batches are in the schedule that was verified, by direction.
    pub microbatches: [Vec<Microbatch>; 2],
    /// Whether the search came to its end: no more micro-batches can be left out one by one. If not, the work that it
    /// may do was not enough.
    pub is_smallest: bool,
    /// The fault, as it is there.
    pub text: String,
}

impl Counterexample {
    /// Which micro-batches it has, its orders and its fault.
    pub fn to_text(&self) -> String {
        let numbers = |kept: &Vec<Microbatch>| {
            let numbers: Vec<String> = kept.iter().map(Microbatch::to_string).collect();
            numbers.join(", ")
        };
        let [down, up] = &self.microbatches;
        let mut text = format!("The same with micro-batches {} of direction 0", numbers(down));
        if !up.is_empty() {
            text += &format!(" and {} of direction 1", numbers(up));
        }
        format!("{text}, numbered from 0:\n{}{}\n", self.schedule.to_text(), self.text)
    }
}

/// Gives the first finding of each kind, and of each set of transports, its counterexample.
pub(super) fn add(schedule: &Schedule, options: &Options<'_>, report: &mut Report) {
    for i in 0..report.findings.len() {
        let (before, rest) = report.findings.split_at(i);
        let finding = &rest[0];
        let is_same =
            |other: &Finding| (other.kind, &other.transports) == (finding.kind, &finding.transports);
        if !before.iter().any(is_same) {
            let smaller = Search::new(schedule, options, finding).smallest();
            report.findings[i].counterexample = smaller;
        }
    }
}

/// By direction, the micro-batches that are kept, in order.
type Kept = [Vec<u32>; 2];

struct Search<'a> {
    schedule: &'a Schedule,
    options: &'a Options<'a>,
    finding: &'a Finding,
    work_left: usize,
    best: Option<(Kept, Counterexample)>,
}

impl<'a> Search<'a> {
    fn new(schedule: &'a Schedule, options: &'a Options<'a>, finding: &'a Finding) -> Search<'a> {
        Search { schedule, options, finding, work_left: WORK_MAX, best: None }
    }

    fn smallest(mut self) -> Option<Counterexample> {
        let all = Direction::ALL.map(|d| (0..self.schedule.microbatches_in(d) as u32).collect::<Vec<u32>>());
        let about = self.balanced();
        if !self.shows(&about) {
            self.shows(&all);
        }
        let mut length = self.best.as_ref()?.0[0].len() / 2;
        while length > 1 {
            while self.leave_out(length) {}
            length /= 2;
        }
        while self.leave_out(1) {}
        let is_smallest = self.work_left > 0;
        self.best.map(|(_, smallest)| Counterexample { is_smallest, ..smallest })
    }

    /// The micro-batches that the finding is about and, where the directions would have numbers of them that no
    /// schedule has, the first others.
    fn balanced(&self) -> Kept {
        let mut kept: Kept = Default::default();
        for pass in &self.finding.passes {
            if pass.microbatch.index() < self.schedule.microbatches_in(pass.direction) {
                kept[pass.direction.index()].push(pass.microbatch.0);
            }
        }
        for kept in &mut kept {
            kept.sort_unstable();
            kept.dedup();
        }
        let two = self.schedule.placement().num_directions() == 2;
        let wanted_down = kept[0].len().max(kept[1].len()).max(1);
        let wanted_up = if two { kept[1].len().max(wanted_down - 1) } else { 0 };
        for (direction, wanted) in Direction::ALL.into_iter().zip([wanted_down, wanted_up]) {
            let kept = &mut kept[direction.index()];
            let others = (0..self.schedule.microbatches_in(direction) as u32)
                .filter(|i| kept.binary_search(i).is_err());
            let others: Vec<u32> = others.take(wanted.saturating_sub(kept.len())).collect();
            kept.extend(others);
            kept.sort_unstable();
        }
        kept
    }

    /// Leaves out `length` micro-batches in a row, of one direction or of both, if the fault still shows then.
    fn leave_out(&mut self, length: usize) -> bool {
        let Some(kept) = self.best.as_ref().map(|(kept, _)| kept.clone()) else { return false };
        let starts = |direction: usize| (0..kept[direction].len()).step_by(length).rev();
        let without = |direction: usize, start: usize| {
            let kept = &kept[direction];
            let end = kept.len().min(start + length);
            [&kept[..start], &kept[end..]].concat()
        };
        let down = starts(0).map(|start| [without(0, start), kept[1].clone()]);
        let up = starts(1).map(|start| [kept[0].clone(), without(1, start)]);
        let both = starts(0)
            .flat_map(|start| starts(1).map(move |other| (start, other)))
            .map(|(start, other)| [without(0, start), without(1, other)]);
        for smaller in down.chain(up).chain(both) {
            if self.work_left == 0 {
                return false;
            }
            if self.shows(&smaller) {
                return true;
            }
        }
        false
    }

    /// Whether the fault shows with these micro-batches; then they are the best so far.
    fn shows(&mut self, kept: &Kept) -> bool {
        let two = self.schedule.placement().num_directions() == 2;
        let [down, up] = [kept[0].len(), kept[1].len()];
        self.work_left = self.work_left.saturating_sub(1 + down + up);
        // Direction 0 has as many as direction 1, or one more.
        if down == 0 || (two && down - up.min(down) > 1) || (two && up > down) {
            return false;
        }
        // All that a try looks at in proportion to the part that is kept.
        let size = self.size() / self.schedule.num_microbatches().max(1) * (down + up);
        if size >= self.work_left {
            self.work_left = 0;
            return false;
        }
        self.work_left -= size;
        let Some((schedule, actions)) = reduced(self.schedule, self.options.actions, kept) else {
            return false;
        };
        let options = Options { actions: actions.as_deref(), ..self.options.clone() };
        let report = examine(&schedule, &options);
        let is_it = |finding: &&Finding| {
            let wanted = &self.finding.transports;
            finding.kind == self.finding.kind
                && (wanted.is_empty() || wanted.iter().any(|&transport| finding.applies_to(transport)))
        };
        let Some(found) = report.findings.iter().find(is_it) else { return false };
        let text = found.text.clone();
        let microbatches = kept.clone().map(|kept| kept.into_iter().map(Microbatch).collect());
        let smaller = Counterexample { schedule, actions, microbatches, is_smallest: false, text };
        self.best = Some((kept.clone(), smaller));
        true
    }

    fn size(&self) -> usize {
        let ops: usize = self.schedule.orders().iter().map(Vec::len).sum();
        let actions = self.options.actions.unwrap_or_default().iter().map(Vec::len);
        ops + self.schedule.num_passes() + actions.sum::<usize>()
    }
}

/// The schedule and its actions with these micro-batches alone, numbered anew.
fn reduced(
    schedule: &Schedule,
    actions: Option<&[Vec<Action>]>,
    kept: &Kept,
) -> Option<(Schedule, Option<Vec<Vec<Action>>>)> {
    let renumber = |pass: Pass| {
        let kept = &kept[pass.direction.index()];
        let number = match kept.binary_search(&pass.microbatch.0) {
            Ok(number) => number as u32,
            // A number beyond the schedule's stays beyond it.
            Err(_) => {
                let beyond = pass.microbatch.index().checked_sub(schedule.microbatches_in(pass.direction))?;
                (kept.len() + beyond) as u32
            }
        };
        Some(Pass { microbatch: Microbatch(number), ..pass })
    };
    let op = |op: &Op| match *op {
        Op::F(pass) => renumber(pass).map(Op::F),
        Op::B(pass) => renumber(pass).map(Op::B),
        Op::I(pass) => renumber(pass).map(Op::I),
        Op::W(pass) => renumber(pass).map(Op::W),
        Op::FB(f, b) => match (renumber(f), renumber(b)) {
            (Some(f), Some(b)) => Some(Op::FB(f, b)),
            (Some(f), None) => Some(Op::F(f)),
            (None, b) => b.map(Op::B),
        },
    };
    let message = |message: Message| Some(Message { pass: renumber(message.pass)?, ..message });
    let action = |action: &Action| match *action {
        Action::Run(Task::Op(ran)) => op(&ran).map(|op| Action::Run(Task::Op(op))),
        Action::Run(Task::ReduceGrads(_)) => Some(*action),
        Action::Send { message: sent, to } => message(sent).map(|message| Action::Send { message, to }),
        Action::Receive { message: received, from } => {
            message(received).map(|message| Action::Receive { message, from })
        }
        Action::WaitSend(sent) => message(sent).map(Action::WaitSend),
    };
    let orders = schedule.orders().iter().map(|order| order.iter().filter_map(op).collect()).collect();
    let smaller = Schedule::new(
        schedule.name(),
        schedule.placement().clone(),
        kept[0].len() + kept[1].len(),
        schedule.work(),
        orders,
    );
    let of_rank = |actions: &Vec<Action>| actions.iter().filter_map(action).collect();
    Some((smaller.ok()?, actions.map(|actions| actions.iter().map(of_rank).collect())))
}
