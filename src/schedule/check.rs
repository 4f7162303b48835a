//! Whether a schedule can run: complete, in order, free of deadlock; and what it keeps alive.

use super::play::{play, Stuck, Wait};
use super::{Schedule, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Op, Pass, StageCopy};

/// What a check found out about a schedule that can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// `peak_live[rank]`: the most micro-batch activations alive at once, each from the start of its F to the end of
    /// its B or W (of its F when forward only). A pair begins its forward before its backward ends.
    pub peak_live: Vec<usize>,
}

impl Schedule {
    /// Proves that the schedule can run, or says why not: rank, position, op and reason.
    ///
    /// - Every pass has its F and then, in training, its B, or its I and then its W: exactly once, on the rank that
    ///   holds the stage.
    /// - No rank waits for ever: for a message, or for the other copy of a stage to reduce gradients with.
    ///
    /// That every message has its pair, and that blocking exchanges do not deadlock either, is a matter of where
    /// receives and sends are put: `program::lower` does it, `program::check` proves it.
    ///
    /// Time: proportional to the number of ops.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSchedule`].
    pub fn check(&self) -> Result<CheckReport> {
        self.check_passes()?;
        play(self, |_| {}).map_err(|stuck| self.deadlock(&stuck))?;
        Ok(CheckReport { peak_live: self.peak_live() })
    }

    /// `[rank]`: the most micro-batch activations alive at once, as [`CheckReport::peak_live`]; of a schedule that
    /// passes its check.
    pub fn peak_live(&self) -> Vec<usize> {
        self.orders().iter().map(|order| peak_live(order, self.work())).collect()
    }

    /// The part of the check that looks at each pass: once, in order, on its rank.
    pub(crate) fn check_passes(&self) -> Result<()> {
        let mut done = vec![Seen::default(); self.num_passes()];
        for (r, order) in self.orders().iter().enumerate() {
            let rank = Rank::from_index(r);
            for (position, &op) in order.iter().enumerate() {
                let wrong =
                    |why: String| self.invalid(format!("rank {rank}, position {position} ({op}): {why}"));
                for (part, pass) in parts(op).into_iter().flatten() {
                    let index = self.find(pass, rank).map_err(wrong)?;
                    if let Some(why) = done[index].add(part, self.work()) {
                        return Err(wrong(format!("{why} ({})", describe(pass))));
                    }
                }
            }
        }
        for copy in self.copies() {
            for microbatch in (0..self.microbatches_in(copy.direction)).map(Microbatch::from_index) {
                let pass = Pass { direction: copy.direction, stage: copy.stage, microbatch };
                let missing = self.pass_index(pass).and_then(|i| done[i].missing(self.work()));
                if let (Some(missing), Some(rank)) = (missing, self.placement().rank_of(copy)) {
                    let end = self.order(rank).len();
                    let pass = describe(pass);
                    return Err(
                        self.invalid(format!("rank {rank}, position {end} (end): no {missing} for {pass}"))
                    );
                }
            }
        }
        Ok(())
    }

    /// The table index of `pass`, which must be one of the schedule's and of `rank`'s.
    fn find(&self, pass: Pass, rank: Rank) -> std::result::Result<usize, String> {
        let holder = self.placement().rank_of(pass.copy()).ok_or_else(|| {
            format!(
                "no such stage: there are {} in {} direction(s)",
                self.placement().num_stages(),
                self.placement().num_directions()
            )
        })?;
        let index = self.pass_index(pass).ok_or_else(|| {
            let n = self.microbatches_in(pass.direction);
            format!("no such micro-batch: direction {} has {n}", pass.direction)
        })?;
        if holder != rank {
            return Err(format!("{} belongs to rank {holder}", describe(pass)));
        }
        Ok(index)
    }

    fn copies(&self) -> impl Iterator<Item = StageCopy> + '_ {
        let directions = &Direction::ALL[..self.placement().num_directions()];
        let stages = 0..self.placement().num_stages();
        directions.iter().flat_map(move |&direction| {
            stages.clone().map(move |stage| StageCopy { direction, stage: Stage(stage as u16) })
        })
    }

    /// The error for ranks that wait for ever, of which it names the first few.
    pub(crate) fn deadlock(&self, stuck: &[Stuck]) -> Error {
        let waits = stuck.iter().take(8).map(|s| {
            let what = match s.waits_for {
                Wait::Message(message) => format!("the {message}"),
                Wait::OwnOp => "an op that it has in a later place".to_string(),
                Wait::Reduction(rank) => format!("rank {rank} to reduce the same stage's gradients"),
            };
            format!("rank {}, position {} ({}): waits for {what}", s.rank, s.position, s.task)
        });
        let waits = waits.collect::<Vec<_>>().join("; ");
        self.invalid(format!("{waits}; none of it can ever come: deadlock"))
    }

    fn invalid(&self, why: String) -> Error {
        Error::new(ErrorKind::InvalidSchedule, format!("{}: {why}", self.name()))
    }
}

/// The parts of a pass's life that an op can be.
#[derive(Clone, Copy)]
enum Part {
    F,
    B,
    I,
    W,
}

fn parts(op: Op) -> [Option<(Part, Pass)>; 2] {
    match op {
        Op::F(p) => [Some((Part::F, p)), None],
        Op::B(p) => [Some((Part::B, p)), None],
        Op::I(p) => [Some((Part::I, p)), None],
        Op::W(p) => [Some((Part::W, p)), None],
        // The backward first: an overlapped pair cannot need its own forward.
        Op::FB(f, b) => [Some((Part::B, b)), Some((Part::F, f))],
    }
}

fn describe(pass: Pass) -> String {
    let Pass { direction, stage, microbatch } = pass;
    format!("micro-batch {microbatch} of direction {direction} at stage {stage}")
}

/// What of a pass has been done so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    forward: bool,
    input: bool,
    weight: bool,
}

impl Seen {
    /// Adds a part; the reason if it must not come now.
    fn add(&mut self, part: Part, work: Work) -> Option<&'static str> {
        match part {
            Part::F if self.forward => Some("this F is done twice"),
            Part::F => {
                self.forward = true;
                None
            }
            _ if work == Work::ForwardOnly => Some("a backward in a schedule that only goes forward"),
            _ if !self.forward => Some("this backward comes before its F"),
            Part::B | Part::I if self.input => Some("this backward for the input is done twice"),
            Part::W if !self.input => Some("this W comes before its I"),
            Part::W if self.weight => Some("this backward for the weights is done twice"),
            part => {
                self.input = true;
                self.weight |= !matches!(part, Part::I);
                None
            }
        }
    }

    fn missing(self, work: Work) -> Option<&'static str> {
        match (self, work) {
            (Seen { forward: false, .. }, _) => Some("F"),
            (_, Work::ForwardOnly) => None,
            (Seen { input: false, .. }, _) => Some("B or I"),
            (Seen { weight: false, .. }, _) => Some("W"),
            _ => None,
        }
    }
}

fn peak_live(order: &[Op], work: Work) -> usize {
    let (mut live, mut peak) = (0usize, 0);
    for op in order {
        live += usize::from(op.forward().is_some());
        peak = peak.max(live);
        let ends = work == Work::ForwardOnly || op.backward_weight().is_some();
        live = live.saturating_sub(usize::from(ends));
    }
    peak
}
