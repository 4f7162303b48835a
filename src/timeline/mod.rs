//! A timeline: who did what when, simulated or recorded, the same type; and its pictures.

mod label;
pub mod svg;
pub mod text;
pub mod trace;

use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::op::{Message, Task};
use crate::placement::Placement;

/// Where a timeline comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Computed from costs.
    Simulated,
    /// Measured while a program ran.
    Recorded,
}

/// A task and when it ran, in nanoseconds from the start of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What ran.
    pub task: Task,
    /// When it started.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// A message between two ranks and when it travelled, in nanoseconds from the start of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageSpan {
    /// What travelled.
    pub message: Message,
    /// The sender.
    pub from: Rank,
    /// The receiver.
    pub to: Rank,
    /// When it left.
    pub start_ns: u64,
    /// When it had arrived.
    pub end_ns: u64,
}

/// Who did what when, in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// What the pictures are headed by: the schedule's name and sizes.
    pub title: String,
    /// Simulated or recorded.
    pub source: Source,
    /// When the step started, on a clock that the ranks of a recorded step share; 0 if simulated.
    pub origin_ns: u64,
    /// Who holds which stage.
    pub placement: Placement,
    /// `spans[rank]`, in the order in which they ran.
    pub spans: Vec<Vec<Span>>,
    /// Messages between ranks, in no particular order that a reader may rely on, but always the same.
    pub messages: Vec<MessageSpan>,
}

impl Source {
    /// `simulated` or `measured`, as the pictures say it.
    fn name(self) -> &'static str {
        match self {
            Source::Simulated => "simulated",
            Source::Recorded => "measured",
        }
    }
}

impl Timeline {
    /// When the last task ends.
    pub fn makespan_ns(&self) -> u64 {
        self.spans.iter().flatten().map(|span| span.end_ns).max().unwrap_or(0)
    }

    /// Time that `rank` spends on tasks.
    pub fn busy_ns(&self, rank: Rank) -> u64 {
        self.spans[rank.index()]
            .iter()
            .map(|span| span.end_ns.saturating_sub(span.start_ns))
            .fold(0, u64::saturating_add)
    }

    /// The bubble of `rank`: time of the step in which it does nothing.
    pub fn idle_ns(&self, rank: Rank) -> u64 {
        self.makespan_ns().saturating_sub(self.busy_ns(rank))
    }

    /// The bubble's share of the step, mean over ranks, 0 to 1.
    pub fn bubble_share(&self) -> f64 {
        let total = self.makespan_ns() as f64 * self.spans.len() as f64;
        let idle: u128 =
            (0..self.spans.len()).map(|rank| u128::from(self.idle_ns(Rank::from_index(rank)))).sum();
        if total > 0.0 {
            idle as f64 / total
        } else {
            0.0
        }
    }

    /// One timeline of several that each recorded some ranks of the same step on a common clock. It starts with the
    /// earliest of them.
    ///
    /// Fails unless they agree on the placement and no rank is recorded twice.
    pub fn merge(parts: &[Timeline]) -> Result<Timeline> {
        let wrong = |i: usize, range: String| Error::argument("timeline merge", "timeline", i, range);
        let (first, rest) = parts.split_first().ok_or_else(|| {
            Error::argument("timeline merge", "the number of timelines", 0, "must be at least 1")
        })?;
        for (i, part) in rest.iter().enumerate() {
            if part.placement != first.placement {
                return Err(wrong(i + 1, "its ranks and stages must be those of the first".into()));
            }
        }
        let origin_ns = parts.iter().map(|part| part.origin_ns).min().unwrap_or(0);
        let mut merged = first.delayed_to(origin_ns);
        for (i, part) in rest.iter().enumerate() {
            let part = part.delayed_to(origin_ns);
            for (rank, spans) in part.spans.into_iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
                if !merged.spans[rank].is_empty() {
                    return Err(wrong(i + 1, format!("rank {rank} is already in an earlier one")));
                }
                merged.spans[rank] = spans;
            }
            merged.messages.extend(part.messages);
        }
        Ok(merged)
    }

    /// The same with its times counted from `origin_ns`, which is not later than its own origin.
    fn delayed_to(&self, origin_ns: u64) -> Timeline {
        let delay_ns = self.origin_ns.saturating_sub(origin_ns);
        let later = |ns: u64| ns.saturating_add(delay_ns);
        let mut delayed = Timeline { origin_ns, ..self.clone() };
        for span in delayed.spans.iter_mut().flatten() {
            (span.start_ns, span.end_ns) = (later(span.start_ns), later(span.end_ns));
        }
        for span in &mut delayed.messages {
            (span.start_ns, span.end_ns) = (later(span.start_ns), later(span.end_ns));
        }
        delayed
    }
}
